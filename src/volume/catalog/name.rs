//! What stands under a name, and how that changes: only by compare-and-swap against the version that was
//! read.
//!
//! Invariants: the object under a name is never deleted, and its version grows with every change, so that a
//! request that was sent for an earlier version never takes effect, however late it comes; a name is bound to
//! a volume when that is whole, and taken from a volume only when that is being deleted.

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

/// How often a change is sent that is refused although the version that it replaces still stands.
const REFUSALS: u32 = 20;
/// How long is waited after such a refusal.
const PAUSE: Duration = Duration::from_millis(100);
/// The version of what replaces a damaged object, of which no version can be read, and a random number: above
/// all that counting comes to.
const AFTER_DAMAGE: u64 = 1 << 62;

/// What stands under a name.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The object, which may be damaged; `None` if the name was never used.
    object: Option<(ETag, Result<NameBinding, DecodeError>)>,
}

impl Found {
    /// The volume that the name stands for.
    pub(crate) fn volume(&self) -> Option<Uuid> {
        match &self.object {
            Some((_, Ok(NameBinding { volume, name: Some(_), .. }))) => Some(*volume),
            _ => None,
        }
    }

    /// Whether the same version stands in both.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let etag = |found: &Self| found.object.as_ref().map(|(etag, _)| etag.clone());
        etag(self) == etag(other)
    }

    fn next_version(&self, env: &Environment) -> u64 {
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

/// Reads what exists under a name; a damaged object is no error. Its absence is believed at once: whatever is bound then
/// is created only if nothing exists.
pub(crate) async fn look(env: &Environment, name: &str) -> Result<Found, OpenError> {
    let fetched = fetch_if_present(env.store.as_ref(), &keys::name(name), |bytes| decode(name, bytes)).await;
    found(env, name, fetched).await
}

/// As [`look`], for whoever does without a change where nothing exists: one false answer would leave the name to a volume
/// that goes.
pub(crate) async fn look_closely(env: &Environment, name: &str) -> Result<Found, OpenError> {
    let fetched = match mutant::is(Mutant::NameDenied) {
        false => fetch_checked(env.store.as_ref(), &keys::name(name), |bytes| decode(name, bytes)).await,
        true => fetch_if_present(env.store.as_ref(), &keys::name(name), |bytes| decode(name, bytes)).await,
    };
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
            // It was read just now: a false answer that it does not exist would end a listing for all.
            let object = get_referenced(env.store.as_ref(), &keys::name(name), ByteRange::Full).await?;
            Ok(Found { object: Some((object.etag, decode(name, &object.body).map_err(|_| damage))) })
        }
    }
}

/// Reads what stands under a name.
///
/// # Errors
/// If that is damaged, or the store fails.
pub(crate) async fn read(env: &Environment, name: &str) -> Result<Found, OpenError> {
    let found = look(env, name).await?;
    match found.object {
        Some((_, Err(source))) => Err(OpenError::Damaged { key: keys::name(name), source }),
        _ => Ok(found),
    }
}

/// How a change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Swapped {
    /// It is made, be it by this request or by an earlier one whose answer was lost.
    Done,
    /// Another version stands: the change was never made, and never will be.
    Lost,
}

/// Binds the name to a volume, if still that stands which was read before the volume was made.
pub(super) async fn bind(
    env: &Environment,
    name: &str,
    read: &Found,
    volume: Uuid,
) -> Result<Swapped, OpenError> {
    let version = read.next_version(env);
    swap(env, name, read, &NameBinding { version, volume, name: Some(name.to_owned()) }).await
}

/// Which names a deletion changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unbind {
    /// One that stands for the volume.
    Bound,
    /// One that is free or damaged too: whoever has read it, to bind the volume to it, comes too late then.
    BoundOrFree,
    /// Only one that is free or damaged: the volume's head was not marked.
    Free,
}

/// Sees to it that the name does not stand for a volume that is being deleted, or to be deleted; gives the
/// volume that it stands for then.
pub(super) async fn unbind(
    env: &Environment,
    name: &str,
    volume: Uuid,
    which: Unbind,
) -> Result<Option<Uuid>, OpenError> {
    loop {
        let found = match which {
            Unbind::Bound => look_closely(env, name).await?,
            // The change is made where nothing exists, and fails if something does.
            Unbind::BoundOrFree | Unbind::Free => look(env, name).await?,
        };
        let changes = match found.volume() {
            Some(bound) if bound == volume => which != Unbind::Free,
            // Bound since its creator looked, which comes too late.
            Some(_) => mutant::is(Mutant::UnboundBlindly),
            None => which != Unbind::Bound && !mutant::is(Mutant::FreeNameKept),
        };
        if !changes {
            return Ok(found.volume());
        }
        let free = NameBinding { version: found.next_version(env), volume, name: None };
        // Each time this is lost, another made a change.
        if swap(env, name, &found, &free).await? == Swapped::Done {
            return Ok(None);
        }
    }
}

/// Replaces exactly what was read, until the fate of that is known.
async fn swap(env: &Environment, name: &str, read: &Found, to: &NameBinding) -> Result<Swapped, OpenError> {
    let (store, key) = (env.store.as_ref(), keys::name(name));
    let bytes = Bytes::from(to.encode());
    let old = read.object.as_ref().map(|(etag, _)| etag);
    for _ in 0..REFUSALS {
        let condition = match mutant::is(Mutant::BoundUnconditionally) && to.name.is_some() {
            false => old.map_or(Condition::IfAbsent, |etag| Condition::IfMatch(etag.clone())),
            true => Condition::Always,
        };
        match store.put(&key, bytes.clone(), condition).await {
            Ok(_) => return Ok(Swapped::Done),
            Err(store::Error::PreconditionFailed { .. } | store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        match store.get(&key, ByteRange::Full).await {
            Ok(found) if found.body == bytes => return Ok(Swapped::Done),
            // Still what was read: the refusal was for nothing that stands.
            Ok(found) if old == Some(&found.etag) => {}
            Ok(found) => {
                // Bytes that were damaged on the way must not pass for another's.
                let found = agreed(store, &key, found).await?;
                if found.body == bytes {
                    return Ok(Swapped::Done);
                }
                if old != Some(&found.etag) {
                    return Ok(Swapped::Lost);
                }
            }
            // What stands under a name stays: this is a false answer, or the refusal was.
            Err(store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(PAUSE).await;
    }
    let why = format!("a change was refused {REFUSALS} times although nothing else stands there");
    Err(store::Error::Transient { key, source: cause(why) }.into())
}
