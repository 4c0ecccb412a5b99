//! The object under a name, and its changes: only by compare-and-swap against the version that was read.
//!
//! It does not know when a volume is complete or being deleted; `volumes` and `deletion` decide that.
//! Invariants: the object under a name is never deleted, and its version grows with every change. A request
//! that was sent for an earlier version therefore never takes effect, however late it arrives. A name is
//! bound to a volume only once that is complete, and taken from a volume only once that is deleted or has
//! another name. Only a name that is absent, free or damaged is bound: a bound one is freed first.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::mutant::{self, Mutant};
use crate::store::error::cause;
use crate::store::{self, ByteRange, Condition, ETag};
use crate::volume::environment::Environment;
use crate::volume::error::OpenError;
use crate::volume::format::codec::DecodeError;
use crate::volume::format::identity::NameBinding;
use crate::volume::format::keys;
use crate::volume::store_exact::{CheckedError, agreed, fetch_checked, fetch_if_present, get_referenced};

/// Limit on attempts to send a change that is refused although the version that it replaces still exists.
const REFUSALS: u32 = 20;
/// Pause after such a refusal.
const PAUSE: Duration = Duration::from_millis(100);
/// Least version of an object that replaces a damaged one, whose version cannot be read. A random number is
/// added. It is larger than any version that counting reaches.
const AFTER_DAMAGE: u64 = 1 << 62;

/// What was read under a name.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The object, which may be damaged. `None` if the name was never used.
    object: Option<(ETag, Result<NameBinding, DecodeError>)>,
}

impl Found {
    /// The volume that the name is bound to.
    pub(crate) fn volume(&self) -> Option<Uuid> {
        match &self.object {
            Some((_, Ok(NameBinding { volume, name: Some(_), .. }))) => Some(*volume),
            _ => None,
        }
    }

    /// Returns an error if the object is damaged.
    pub(super) fn check(&self, name: &str) -> Result<(), OpenError> {
        match &self.object {
            Some((_, Err(source))) => {
                Err(OpenError::Damaged { key: keys::name(name), source: source.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Whether both were read from the same version of the object.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let etag = |found: &Self| found.object.as_ref().map(|(etag, _)| etag.clone());
        etag(self) == etag(other)
    }

    /// The version that the name has after the next change.
    pub(super) fn next_version(&self, env: &Environment) -> u64 {
        match &self.object {
            None => 1,
            Some((_, Ok(binding))) => binding.version + 1,
            Some((_, Err(_))) => AFTER_DAMAGE | env.entropy.next_u64() >> 8,
        }
    }
}

fn decode(name: &str, bytes: &[u8]) -> Result<NameBinding, DecodeError> {
    let binding = NameBinding::decode(bytes)?;
    match &binding.name {
        Some(bound) if bound != name => {
            Err(crate::volume::format::codec::invalid("name", format!("binds the name {bound:?}")))
        }
        _ => Ok(binding),
    }
}

/// Reads what exists under a name. A damaged object is not an error. If the store reports no object, that is
/// believed at once: a binding made on it succeeds only if no object exists.
pub(crate) async fn look(env: &Environment, name: &str) -> Result<Found, OpenError> {
    let fetched = fetch_if_present(env.store.as_ref(), &keys::name(name), |bytes| decode(name, bytes)).await;
    found(env, name, fetched).await
}

/// Like [`look`], for callers that make no change if nothing exists: one false answer would leave the name
/// bound to a volume that is being deleted.
pub(crate) async fn look_closely(env: &Environment, name: &str) -> Result<Found, OpenError> {
    if mutant::is(Mutant::NameDenied) {
        return look(env, name).await;
    }
    let fetched = fetch_checked(env.store.as_ref(), &keys::name(name), |bytes| decode(name, bytes)).await;
    found(env, name, fetched).await
}

async fn found(
    env: &Environment,
    name: &str,
    fetched: Result<(NameBinding, ETag), CheckedError>,
) -> Result<Found, OpenError> {
    match fetched {
        Ok((binding, etag)) => Ok(Found { object: Some((etag, Ok(binding))) }),
        Err(CheckedError::Store(store::Error::NotFound { .. })) => Ok(Found { object: None }),
        Err(CheckedError::Store(error)) => Err(error.into()),
        Err(CheckedError::Damaged(damage)) => {
            // The object was read just now, and a false answer that it does not exist would fail the whole
            // listing.
            let object = get_referenced(env.store.as_ref(), &keys::name(name), ByteRange::Full).await?;
            Ok(Found { object: Some((object.etag, decode(name, &object.body).map_err(|_| damage))) })
        }
    }
}

/// Reads what exists under a name.
///
/// # Errors
/// If the object is damaged, or if the store fails.
pub(crate) async fn read(env: &Environment, name: &str) -> Result<Found, OpenError> {
    let found = look(env, name).await?;
    found.check(name)?;
    Ok(found)
}

/// The outcome of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Swapped {
    /// The change is made, by this request or by an earlier one whose answer was lost.
    Done,
    /// Another version exists: the change was not made, and never will be.
    Lost,
}

/// Binds the name to a volume, if the object is still the one that was read before the volume was made.
pub(super) async fn bind(
    env: &Environment,
    name: &str,
    read: &Found,
    volume: Uuid,
) -> Result<Swapped, OpenError> {
    let version = read.next_version(env);
    swap(env, name, read, &NameBinding { version, volume, name: Some(name.to_owned()) }).await
}

/// Takes the name from the volume that it was bound to when it was read, unless it was changed since.
pub(super) async fn free(
    env: &Environment,
    name: &str,
    read: &Found,
    volume: Uuid,
) -> Result<Swapped, OpenError> {
    let version = read.next_version(env);
    swap(env, name, read, &NameBinding { version, volume, name: None }).await
}

/// Which names a deletion changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unbind {
    /// Only a name that is bound to the volume.
    Bound,
    /// Also a name that is free or damaged, so that a creator that read it before, in order to bind the
    /// volume, comes too late.
    BoundOrFree,
    /// Only a name that is free or damaged, because the volume's head was not marked.
    Free,
}

/// Makes sure that the name is not bound to a volume that is being deleted or is about to be. Returns the
/// volume that the name is bound to afterwards.
pub(super) async fn unbind(
    env: &Environment,
    name: &str,
    volume: Uuid,
    which: Unbind,
) -> Result<Option<Uuid>, OpenError> {
    loop {
        let found = match which {
            Unbind::Bound => look_closely(env, name).await?,
            // The change requires that nothing exists, and fails if something does.
            Unbind::BoundOrFree | Unbind::Free => look(env, name).await?,
        };
        let changes = match found.volume() {
            Some(bound) if bound == volume => which != Unbind::Free,
            // The name was bound to another volume in the meantime, so the creator of this one comes too
            // late.
            Some(_) if mutant::is(Mutant::UnboundBlindly) => true,
            Some(_) => false,
            None => which != Unbind::Bound && !mutant::is(Mutant::FreeNameKept),
        };
        if !changes {
            return Ok(found.volume());
        }
        let free = NameBinding { version: found.next_version(env), volume, name: None };
        // Each time the swap is lost, another process has made a change.
        if swap(env, name, &found, &free).await? == Swapped::Done {
            return Ok(None);
        }
    }
}

/// Replaces exactly what was read, and repeats the request until its outcome is known.
async fn swap(env: &Environment, name: &str, read: &Found, to: &NameBinding) -> Result<Swapped, OpenError> {
    let (store, key) = (env.store.as_ref(), keys::name(name));
    let bytes = Bytes::from(to.encode());
    let old = read.object.as_ref().map(|(etag, _)| etag);
    for _ in 0..REFUSALS {
        let condition = match old {
            _ if to.name.is_some() && mutant::is(Mutant::BoundUnconditionally) => Condition::Always,
            Some(etag) => Condition::IfMatch(etag.clone()),
            None => Condition::IfAbsent,
        };
        match store.put(&key, bytes.clone(), condition).await {
            Ok(_) => return Ok(Swapped::Done),
            Err(store::Error::PreconditionFailed { .. } | store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        match store.get(&key, ByteRange::Full).await {
            Ok(found) if found.body == bytes => return Ok(Swapped::Done),
            // The object is unchanged, so the refusal was spurious.
            Ok(found) if old == Some(&found.etag) => {}
            Ok(found) => {
                // Bytes that were damaged in transit must not be mistaken for another's change.
                let found = agreed(store, &key, found).await?;
                if found.body == bytes {
                    return Ok(Swapped::Done);
                }
                if old != Some(&found.etag) {
                    return Ok(Swapped::Lost);
                }
            }
            // An object under a name is never deleted, so either this answer or the refusal is false.
            Err(store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(PAUSE).await;
    }
    let why = format!("a change was refused {REFUSALS} times although nothing else stands there");
    Err(store::Error::Transient { key, source: cause(why) }.into())
}
