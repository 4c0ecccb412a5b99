//! The steps by which a volume gets another name.
//!
//! Owns the order of a renaming, and must not know how the volume is opened. Only the holder of the volume
//! can rename it, while nobody uses it:
//!
//! 1. it reads the old and the new name,
//! 2. it records in the head that the volume gets the new name,
//! 3. it binds the new name to the volume,
//! 4. it takes the old name from the volume,
//! 5. it records in the head that the volume has the new name.
//!
//! Invariants: at every instant a name is bound to the volume, and the head records each name that is. The
//! names are read before the head is updated, and only these versions are replaced. So a process that has
//! lost the volume changes nothing that its successor did. While both names are bound, each refers to the
//! volume. Whoever opens the volume by name then finishes the renaming, by the same steps. Whoever deletes it
//! frees both.

use uuid::Uuid;

use super::name::{self, Found, Swapped, Unbind};
use super::volumes::claim;
use crate::mutant::{self, Mutant};
use crate::volume::disk::Volume;
use crate::volume::environment::Environment;
use crate::volume::error::OpenError;
use crate::volume::format::head::Names;

/// Limit on attempts to bind a name that other processes change in the meantime.
const ATTEMPTS: u32 = 16;

/// Finishes a renaming that was cut short, if there is one. If the new name belongs to another volume by now,
/// the volume keeps the old one.
///
/// # Errors
/// If the volume is lost to another gateway, or if the store failed.
pub(super) async fn finish(volume: &Volume) -> Result<(), OpenError> {
    let Names { current, next: Some(next) } = volume.names() else { return Ok(()) };
    match give(volume, &next).await {
        Err(OpenError::Exists(_)) => {
            tracing::warn!(
                volume = %volume.id(),
                "the volume keeps the name {current:?}: its renaming to {next:?} was cut short, and another \
                 volume has that name by now"
            );
            Ok(())
        }
        given => given,
    }
}

/// Carries out the steps of a renaming. The name may be the one that an earlier renaming recorded, but no
/// other may be recorded.
///
/// # Errors
/// If the name is bound to another volume, if the volume is lost to another gateway, or if the store failed.
pub(super) async fn give(volume: &Volume, to: &str) -> Result<(), OpenError> {
    let (env, id) = (volume.environment(), volume.id());
    for _ in 0..ATTEMPTS {
        let Names { current, next } = volume.names();
        let old = name::look_closely(env, &current).await?;
        let Some(new) = claim_for(env, to, id).await? else {
            if next.is_some() {
                // Nobody can bind the name to this volume any more, because it was changed since it was read.
                record(volume, Names { current, next: None }).await?;
            }
            return Err(OpenError::Exists(to.to_owned()));
        };
        if old.volume() != Some(id) && new.volume() != Some(id) {
            if name::look_closely(env, to).await?.volume() == Some(id) {
                // The store denied that once.
                continue;
            }
            old.check(&current)?;
            return Err(OpenError::NoSuchVolume(current));
        }
        if !mutant::is(Mutant::RenameUnrecorded) {
            record(volume, Names { current: current.clone(), next: Some(to.to_owned()) }).await?;
        }
        if old.volume() == Some(id) && mutant::is(Mutant::OldNameFirst) {
            name::free(env, &current, &old, id).await?;
        }
        if new.volume() != Some(id) && name::bind(env, to, &new, id).await? == Swapped::Lost {
            continue;
        }
        if mutant::is(Mutant::OldNameLookedUpLate) {
            name::unbind(env, &current, id, Unbind::Bound).await?;
        }
        // If somebody else has changed it, that is a successor or a deletion, and the next update fails.
        if old.volume() == Some(id) {
            name::free(env, &current, &old, id).await?;
        }
        record(volume, Names { current: to.to_owned(), next: None }).await?;
        tracing::info!(volume = %id, from = current, to, "renamed the volume");
        return Ok(());
    }
    Err(OpenError::Contended(to.to_owned()))
}

/// Records the names in the head. This proves that the volume was still held after the call began.
async fn record(volume: &Volume, names: Names) -> Result<(), OpenError> {
    volume.record_names(names).await.map_err(|stopped| {
        if volume.is_fenced() { OpenError::Lost(stopped.to_string()) } else { OpenError::LeaseOver }
    })
}

/// Returns what exists under a name that a volume may get, or that is bound to it already. Returns `None` if
/// another volume has the name. If the store falsely reports that nothing exists, the attempt to bind the
/// name fails.
async fn claim_for(env: &Environment, to: &str, volume: Uuid) -> Result<Option<Found>, OpenError> {
    for _ in 0..ATTEMPTS {
        let found = name::look(env, to).await?;
        if found.volume() == Some(volume) {
            return Ok(Some(found));
        }
        match claim(env, to).await {
            Ok(found) => return Ok(Some(found)),
            // A request of an earlier holder may have bound it to this volume just now.
            Err(OpenError::Exists(_)) => match name::look(env, to).await?.volume() {
                Some(other) if other != volume => return Ok(None),
                _ => {}
            },
            Err(error) => return Err(error),
        }
    }
    Err(OpenError::Contended(to.to_owned()))
}
