//! Takes all names from a deleted volume that is kept.
//!
//! Owns the order in which that happens, and must not know who deletes a volume or brings it back. It is the
//! only place where a name of a kept volume is freed. Unlike a deletion for good, this state is not final, so
//! a process that is late must harm nothing that others did since:
//!
//! 1. it reads the names that the head records,
//! 2. it replaces the head, which proves that no other head exists since it read the names,
//! 3. it frees each of these names, if it is still as it was read: also one that is free already, so that
//!    whoever read it in order to bind it comes too late,
//! 4. it forgets the next name: nobody can bind that any more.
//!
//! Invariants: a name is replaced only as it was read before the head was replaced. So whoever brings the
//! volume back after that has bound a newer version of the name, which this process does not touch. A name
//! stays recorded in the head until nobody can bind it to the volume any more.

use super::name::{self, Found, Swapped};
use crate::store::{self, ETag};
use crate::volume::environment::Environment;
use crate::volume::error::OpenError;
use crate::volume::format::head::{Head, Names, VolumeState};
use crate::volume::format::keys::Keys;
use crate::volume::held::{Updated, update_head};
use crate::volume::objects::read_head;

/// Limit on attempts to change a volume that other processes change in the meantime.
pub(super) const ATTEMPTS: u32 = 16;

/// Replaces exactly the head that was read, with a new version and a new holder. No two heads are equal, so
/// of two processes at most one is told that it succeeded. Returns `None` if there is another head by now.
pub(super) async fn replace(
    env: &Environment,
    head: Head,
    read: &ETag,
) -> Result<Option<(Head, ETag)>, OpenError> {
    let head = Head { version: head.version + 1, holder: env.entropy.next_u128(), ..head };
    match update_head(env.store.as_ref(), &Keys::new(head.volume).head(), read, &head).await {
        Ok(Updated::Done(etag)) => Ok(Some((head, etag))),
        Ok(Updated::Lost(_)) | Err(store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes its names from a deleted volume, if that is kept. Returns its head then: no name is bound to the
/// volume and none can be, until this head is replaced. Returns `None` if the volume is not kept, or is gone.
///
/// # Errors
/// If the head is damaged, if others change it all the time, or if the store fails.
pub(super) async fn settle(env: &Environment, keys: Keys) -> Result<Option<(Head, ETag)>, OpenError> {
    for _ in 0..ATTEMPTS {
        let (old, etag) = match read_head(env, keys).await {
            Err(OpenError::Store(store::Error::NotFound { .. })) => return Ok(None),
            read => read?,
        };
        if !matches!(old.state, VolumeState::Kept(_)) {
            return Ok(None);
        }
        let read = read_names(env, &old).await?;
        let Some((head, etag)) = replace(env, old, &etag).await? else { continue };
        if free_all(env, &head, &read).await? == Swapped::Lost {
            continue;
        }
        let Some(Names { current, next: Some(_) }) = &head.names else { return Ok(Some((head, etag))) };
        let names = Some(Names { current: current.clone(), next: None });
        if let Some(settled) = replace(env, Head { names, ..head }, &etag).await? {
            return Ok(Some(settled));
        }
    }
    Err(OpenError::Contended(keys.volume().to_string()))
}

/// Reads each name that a head records.
async fn read_names(env: &Environment, head: &Head) -> Result<Vec<(String, Found)>, OpenError> {
    let mut read = Vec::new();
    if let Some(Names { current, next }) = &head.names {
        for name in std::iter::once(current).chain(next) {
            read.push((name.clone(), name::look(env, name).await?));
        }
    }
    Ok(read)
}

/// Frees the names of a volume as they were read. `Lost` if one was changed since.
async fn free_all(env: &Environment, head: &Head, read: &[(String, Found)]) -> Result<Swapped, OpenError> {
    for (name, found) in read {
        let is_bindable = match found.volume() {
            Some(bound) => bound == head.volume,
            // Nobody binds a damaged name, which may be that of another volume by now.
            None => found.check(name).is_ok(),
        };
        if is_bindable && name::free(env, name, found, head.volume).await? == Swapped::Lost {
            return Ok(Swapped::Lost);
        }
    }
    Ok(Swapped::Done)
}
