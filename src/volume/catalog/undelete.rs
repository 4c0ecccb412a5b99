//! Deletes volumes so that they can be brought back, and brings them back.
//!
//! Owns the order of both, and must not know how long a volume is kept: `watch` counts the time. A deleted
//! volume keeps all its objects. Its head says that it is kept and records its name. The steps of bringing it
//! back are:
//!
//! 1. `settle` takes all names from the volume,
//! 2. the name that it gets is read,
//! 3. the head records this name,
//! 4. the name is bound to the volume, if it is still as it was read,
//! 5. the head says that the volume is in use.
//!
//! Each change of the head replaces exactly the head of the step before. Invariants: a volume in use has
//! exactly one name, and its head records that. Why it has one: if step 5 succeeds, there was no other head
//! since step 3. Whoever takes a name from a kept volume replaces the head after it has read the names. So it
//! read them before step 2, and step 4 has replaced what it read. Why it has no second one: each name that a
//! request in flight may bind is recorded, and `settle` replaces it before it is forgotten.
//!
//! Nothing is sealed while a volume is kept: its journal must stay as the next opening expects it. A gateway
//! that lost the volume to a deletion notices that at its next update of the head. What it flushes until then
//! is there when the volume is opened again.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use super::deletion::{MARKS, delete, finish, refuse};
use super::name::{self, Swapped};
use super::settle::{ATTEMPTS, replace, settle};
use super::volumes::{CONCURRENT_LOOKUPS, check_name, claim, describe, identities};
use crate::mutant::{self, Mutant};
use crate::store;
use crate::volume::environment::Environment;
use crate::volume::error::OpenError;
use crate::volume::format::head::{Head, HolderName, Kept, Lease, Names, VolumeState};
use crate::volume::format::keys::Keys;
use crate::volume::format::root::Root;
use crate::volume::info::Info;
use crate::volume::objects::{fetch_if_present, read_head};
use crate::volume::open::replay::seal_all;
use crate::volume::options::Options;

/// A deleted volume that can be brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Id of the volume.
    pub volume: Uuid,
    /// The name that the volume had. Another volume may have it by now.
    pub name: String,
    /// Size of the volume in bytes; `None` if its root cannot be read.
    pub size_bytes: Option<u64>,
    /// When the volume was deleted, as Unix time in seconds, by the clock of whoever did it.
    pub deleted_at_seconds: u64,
    /// About until when the volume is kept, as Unix time in seconds by the local clock. It is an estimate for
    /// people: gateways count the time that is left, and the last count may be some time ago.
    pub kept_until_seconds: u64,
}

/// Deletes the volume that a name is bound to, and keeps it so that it can be brought back. The name is free
/// afterwards. Returns for how long the volume is kept at least. Returns `None` if it is deleted for good:
/// because nothing is to be kept, or because such a deletion had begun.
///
/// # Errors
/// If a gateway holds the volume (unless `takeover`), if its head cannot be read, or if the store fails. The
/// call can then be repeated.
pub async fn set_aside(
    env: &Environment,
    options: &Options,
    name: &str,
    takeover: bool,
) -> Result<Option<Duration>, OpenError> {
    if options.undelete.is_zero() {
        return delete(env, options, name, takeover).await.map(|()| None);
    }
    check_name(name)?;
    let found = name::read(env, name).await?;
    let volume = found.volume().ok_or_else(|| OpenError::NoSuchVolume(name.to_owned()))?;
    let keys = Keys::new(volume);
    for _ in 0..MARKS {
        let (old, etag) = match read_head(env, keys).await {
            Ok(read) => read,
            // Another deletion was faster.
            Err(OpenError::Store(store::Error::NotFound { .. }))
                if !name::look_closely(env, name).await?.is(&found) =>
            {
                return Ok(None);
            }
            Err(OpenError::Store(store::Error::NotFound { .. })) => {
                return Err(OpenError::Unkeepable { why: "the object is missing".to_owned() });
            }
            Err(OpenError::Damaged { source, .. }) => {
                return Err(OpenError::Unkeepable { why: source.to_string() });
            }
            Err(error) => return Err(error),
        };
        match old.state {
            VolumeState::Deleting => {
                finish(env, name, &found, volume, Some(&old)).await?;
                return Ok(None);
            }
            // A deletion was cut short before it took the name.
            VolumeState::Kept(kept) => {
                settle(env, keys).await?;
                return Ok(Some(Duration::from_secs(kept.seconds_left.into())));
            }
            VolumeState::Live => refuse(&old, Some(name), takeover)?,
        }
        let Some((head, _)) = replace(env, kept(env, options, old, name), &etag).await? else { continue };
        if mutant::is(Mutant::SealedAside) {
            seal_all(env, keys, &head).await?;
        }
        // Others may have brought it back or deleted it for good meanwhile.
        settle(env, keys).await?;
        tracing::info!(%volume, name, "deleted the volume, and keep it for {:?}", options.undelete);
        return Ok(Some(options.undelete));
    }
    Err(OpenError::Lost("its holder, which updates the head faster than it can be deleted".to_owned()))
}

/// The head of a volume that was found by a name, once the volume is deleted and kept.
fn kept(env: &Environment, options: &Options, old: Head, name: &str) -> Head {
    let seconds_left = u32::try_from(options.undelete.as_secs().max(1)).unwrap_or(u32::MAX);
    Head {
        epoch: old.epoch + 1,
        holder_name: HolderName::new(&options.holder_name),
        // What a holder that is deposed leaves behind must be found by the next opening.
        lease: if old.lease == Lease::Released { Lease::Released } else { Lease::Unswept },
        state: VolumeState::Kept(Kept { deleted_at_seconds: (env.wall_clock)(), seconds_left }),
        names: Some(match old.names {
            // A volume that was never renamed has the name by which it was found.
            None => Names { current: name.to_owned(), next: None },
            // Its renaming was cut short. People look for it under the name by which they deleted it.
            Some(Names { current, next: Some(next) }) if next == name => {
                Names { current: next, next: Some(current) }
            }
            Some(names) => names,
        }),
        ..old
    }
}

/// Brings a deleted volume back, under a name that is free. Without `to`, this is the name that it had.
///
/// # Errors
/// If the volume is not kept, if the name is not valid or bound to another volume, or if the store fails. The
/// volume is still kept then, perhaps with a name that the next creation, deletion or attempt to bring it
/// back takes. It is in use under the name only if the answer to the last request was lost, or if its
/// identity or its root is damaged or missing, as the error says. Such a volume may have sound snapshots,
/// which would be lost if it could not be brought back.
pub async fn undelete(env: &Environment, volume: Uuid, to: Option<&str>) -> Result<Info, OpenError> {
    if let Some(to) = to {
        check_name(to)?;
    }
    for _ in 0..ATTEMPTS {
        let not_deleted = || OpenError::NotDeleted(volume.to_string());
        let (head, etag) = settle(env, Keys::new(volume)).await?.ok_or_else(not_deleted)?;
        let Names { current, .. } = head.names.clone().ok_or_else(not_deleted)?;
        let name = to.unwrap_or(&current).to_owned();
        // Read before the volume is in use, so that it stays kept if the store fails.
        let info = match describe(env, &name, &head).await {
            Err(OpenError::Store(store::Error::NotFound { key })) => Err(OpenError::Incomplete { key }),
            Err(OpenError::Store(error)) => return Err(error.into()),
            described => described,
        };
        let found = match claim(env, &name).await {
            Ok(found) => found,
            // Somebody else brought it back.
            Err(OpenError::Exists(_)) if name::look(env, &name).await?.volume() == Some(volume) => continue,
            Err(OpenError::Exists(name)) => return Err(OpenError::Taken(name)),
            Err(error) => return Err(error),
        };
        let next = (name != current).then(|| name.clone());
        let head = Head { names: Some(Names { current, next }), ..head };
        let Some((head, etag)) = replace(env, head, &etag).await? else { continue };
        if !mutant::is(Mutant::LiveBeforeNamed)
            && name::bind(env, &name, &found, volume).await? == Swapped::Lost
        {
            continue;
        }
        let names = Some(Names { current: name.clone(), next: None });
        let live = Head { state: VolumeState::Live, names, ..head };
        if replace(env, live, &etag).await?.is_none() {
            continue;
        }
        if mutant::is(Mutant::LiveBeforeNamed) {
            name::bind(env, &name, &found, volume).await?;
        }
        match &info {
            Ok(_) => tracing::info!(%volume, name, "brought the volume back"),
            Err(error) => tracing::warn!(%volume, name, "brought a volume back that is damaged: {error}"),
        }
        return info;
    }
    Err(OpenError::Contended(volume.to_string()))
}

/// Brings back the deleted volume that a text means, as [`undelete`] does: the one with this id, or else the
/// one that had this name. Only for a name are all deleted volumes looked up.
///
/// # Errors
/// As [`undelete`] and [`choose`].
pub async fn undelete_by(env: &Environment, text: &str, to: Option<&str>) -> Result<Info, OpenError> {
    if let Ok(volume) = Uuid::parse_str(text) {
        match undelete(env, volume, to).await {
            // It may be a name all the same.
            Err(OpenError::NotDeleted(_)) => {}
            done => return done,
        }
    }
    let all = deleted(env).await?;
    let volume = choose(all.iter().map(|deleted| (deleted.volume, &*deleted.name)), text)?;
    undelete(env, volume, to).await
}

/// Returns all deleted volumes that can be brought back, in order of name and of the time of deletion. This
/// includes those whose deletion was cut short before it took their names.
///
/// # Errors
/// If the store cannot list volumes, or cannot return a head. Volumes with damaged heads are left out.
pub async fn deleted(env: &Environment) -> Result<Vec<Deleted>, OpenError> {
    let looks = stream::iter(identities(env).await?).map(|volume| look(env, volume));
    let found: Vec<Option<Deleted>> = looks.buffered(CONCURRENT_LOOKUPS).try_collect().await?;
    let mut all: Vec<Deleted> = found.into_iter().flatten().collect();
    let order = |deleted: &Deleted| (deleted.name.clone(), deleted.deleted_at_seconds, deleted.volume);
    all.sort_by_key(order);
    Ok(all)
}

/// Describes a volume if it is kept.
async fn look(env: &Environment, volume: Uuid) -> Result<Option<Deleted>, OpenError> {
    let keys = Keys::new(volume);
    let head = match fetch_if_present(env, &keys.head(), |bytes| Head::decode(volume, bytes)).await {
        Ok((head, _)) => head,
        Err(OpenError::Damaged { .. } | OpenError::Store(store::Error::NotFound { .. })) => return Ok(None),
        Err(error) => return Err(error),
    };
    let (VolumeState::Kept(kept), Some(names)) = (head.state, head.names) else { return Ok(None) };
    let decode = |bytes: &[u8]| Root::decode(keys.sealing(), head.root, bytes);
    let size_bytes = match fetch_if_present(env, &keys.root(head.root), decode).await {
        Ok((root, _)) => Some(root.size_bytes),
        Err(OpenError::Damaged { .. } | OpenError::Store(store::Error::NotFound { .. })) => None,
        Err(error) => return Err(error),
    };
    let kept_until_seconds = (env.wall_clock)().saturating_add(kept.seconds_left.into());
    let deleted_at_seconds = kept.deleted_at_seconds;
    Ok(Some(Deleted { volume, name: names.current, size_bytes, deleted_at_seconds, kept_until_seconds }))
}

/// Chooses the deleted volume that a text means: the one with this id, or else the one that had this name.
///
/// # Errors
/// If there is none, or if several had this name.
pub fn choose<'a>(deleted: impl IntoIterator<Item = (Uuid, &'a str)>, text: &str) -> Result<Uuid, OpenError> {
    let id = Uuid::parse_str(text).ok();
    let mut named = Vec::new();
    for (volume, name) in deleted {
        if Some(volume) == id {
            return Ok(volume);
        }
        if name == text {
            named.push(volume);
        }
    }
    match named[..] {
        [] => Err(OpenError::NotDeleted(text.to_owned())),
        [only] => Ok(only),
        _ => Err(OpenError::Ambiguous { name: text.to_owned(), volumes: named.len() }),
    }
}
