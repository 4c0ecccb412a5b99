//! Deletes volumes for good: complete or incomplete, sound or damaged, in use or kept.
//!
//! Owns the order of such a deletion. `undelete` deletes volumes so that they can be brought back.
//! Invariants: first the head is marked as being deleted, under a new epoch; this decides whether a gateway
//! or the deletion has the volume. Then its names are taken from the volume, before any object is deleted:
//! the one that its creator binds, and those that the marked head records. Those of a kept volume are free
//! already, and are replaced once more, so that whoever brings the volume back comes too late. The identity,
//! by which a volume without a name is found, is deleted last. A deletion that is interrupted therefore
//! leaves a volume that is never opened again and that can be deleted again by its id. A deletion that
//! resumes late touches no names and objects of other volumes.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use super::name::{self, Found, Unbind};
use super::needed::{Answer, Known};
use super::settle::replace;
use super::volumes::{self, CONCURRENT_LOOKUPS};
use crate::mutant::{self, Mutant};
use crate::store::error::cause;
use crate::store::{self, ByteRange, ETag, Pages};
use crate::volume::environment::Environment;
use crate::volume::error::OpenError;
use crate::volume::format::head::{Checkpoint, Head, HolderName, Lease, Names, VolumeState};
use crate::volume::format::identity::Identity;
use crate::volume::format::keys::{Keys, ObjectId, Parsed, Slot};
use crate::volume::objects::{fetch, read_head};
use crate::volume::open::replay::{Logs, seal_all};
use crate::volume::options::Options;

/// Limit on attempts to mark the head while its holder keeps updating it.
pub(super) const MARKS: u32 = 100;

/// Deletes the volume that a name is bound to for good, or continues its interrupted deletion.
///
/// # Errors
/// If a gateway holds the volume (unless `takeover`), if a clone needs it, or if the store fails. The call
/// can then be repeated.
pub async fn delete(
    env: &Environment,
    options: &Options,
    name: &str,
    takeover: bool,
) -> Result<(), OpenError> {
    volumes::check_name(name)?;
    let found = name::read(env, name).await?;
    let volume = found.volume().ok_or_else(|| OpenError::NoSuchVolume(name.to_owned()))?;
    let marked = mark(env, options, Keys::new(volume), Some(name), takeover).await?;
    finish(env, name, &found, volume, marked.as_ref()).await
}

/// Finishes the deletion of a volume that was found by a name, once its head is marked or gone.
pub(super) async fn finish(
    env: &Environment,
    name: &str,
    found: &Found,
    volume: Uuid,
    marked: Option<&Head>,
) -> Result<(), OpenError> {
    if marked.is_none() && !name::look_closely(env, name).await?.is(found) {
        // Another deletion was faster: it took the name from the volume before it deleted the head.
        return Ok(());
    }
    name::unbind(env, name, volume, Unbind::Bound).await?;
    unbind_recorded(env, volume, marked).await?;
    remove(env, Keys::new(volume), marked).await
}

/// Deletes a kept volume for good, if it still has exactly the head that was read. Returns whether it had.
///
/// # Errors
/// If a clone needs the volume, or if the store fails.
pub(super) async fn purge(
    env: &Environment,
    options: &Options,
    head: Head,
    read: &ETag,
) -> Result<bool, OpenError> {
    let keys = Keys::new(head.volume);
    if Known::default().check(env, keys, &head).await? == Answer::Moved {
        return Ok(false);
    }
    // A head that was read afresh could be that of a volume that was brought back.
    let Some((marked, _)) = replace(env, doomed(options, head), read).await? else { return Ok(false) };
    unbind_recorded(env, keys.volume(), Some(&marked)).await?;
    remove(env, keys, Some(&marked)).await?;
    Ok(true)
}

/// Deletes a volume for good by its id, but only while it is kept: a volume that was brought back stays. If
/// its deletion for good has begun, this call finishes that.
///
/// # Errors
/// If the volume is not kept, if a clone needs it, or if the store fails. The call can then be repeated.
pub async fn delete_kept(env: &Environment, options: &Options, volume: Uuid) -> Result<(), OpenError> {
    for _ in 0..MARKS {
        let (head, etag) = match read_head(env, Keys::new(volume)).await {
            Err(OpenError::Store(store::Error::NotFound { .. })) => {
                return Err(OpenError::NotDeleted(volume.to_string()));
            }
            read => read?,
        };
        match head.state {
            VolumeState::Live => return Err(OpenError::NotDeleted(volume.to_string())),
            // This state is final.
            VolumeState::Deleting => return delete_by_id(env, options, volume, false).await,
            VolumeState::Kept(_) => {}
        }
        // Otherwise a gateway has counted the time, or somebody has brought the volume back.
        if purge(env, options, head, &etag).await? {
            return Ok(());
        }
    }
    Err(OpenError::Contended(volume.to_string()))
}

/// Deletes a volume for good by its id, whether or not a name is bound to it. This includes volumes whose
/// creation or deletion was interrupted. If the volume's creator is still at work, the creation fails. If the
/// volume was kept and is brought back meanwhile, it stays; but a volume that was brought back before is
/// deleted, so use [`delete_kept`] for what was kept according to a list.
///
/// # Errors
/// If no object of the volume exists, if a gateway holds it (unless `takeover`), if a clone needs it, if it
/// was brought back meanwhile, or if the store fails. The call can then be repeated.
pub async fn delete_by_id(
    env: &Environment,
    options: &Options,
    volume: Uuid,
    takeover: bool,
) -> Result<(), OpenError> {
    let keys = Keys::new(volume);
    let names = names_of(env, volume).await?;
    let mut marked = mark(env, options, keys, None, takeover).await?;
    if marked.is_none() {
        for name in &names {
            // A creator may be about to create the head and bind the name.
            if name::unbind(env, name, volume, Unbind::Free).await? == Some(volume) {
                marked = mark(env, options, keys, None, takeover).await?;
            }
        }
    }
    for name in &names {
        name::unbind(env, name, volume, if marked.is_some() { Unbind::BoundOrFree } else { Unbind::Bound })
            .await?;
    }
    unbind_recorded(env, volume, marked.as_ref()).await?;
    remove(env, keys, marked.as_ref()).await
}

/// Makes sure that none of the names that a head records is bound to its volume, which is being deleted. The
/// next name may be free, and about to be bound.
async fn unbind_recorded(env: &Environment, volume: Uuid, marked: Option<&Head>) -> Result<(), OpenError> {
    let Some(Names { current, next }) = marked.and_then(|head| head.names.as_ref()) else { return Ok(()) };
    for name in std::iter::once(current).chain(next) {
        name::unbind(env, name, volume, Unbind::BoundOrFree).await?;
    }
    Ok(())
}

/// Returns the names that the creator of a volume has bound to it or may still bind to it. Without the
/// identity, which names the creator's, these are all names that are bound to the volume.
async fn names_of(env: &Environment, volume: Uuid) -> Result<Vec<String>, OpenError> {
    let keys = Keys::new(volume);
    match fetch(env, &keys.identity(), |bytes| Identity::decode(volume, bytes)).await {
        Ok((identity, _)) => return Ok(vec![identity.name]),
        Err(OpenError::Damaged { .. }) => {}
        Err(OpenError::Store(store::Error::NotFound { .. })) => {
            if Pages::new(env.store.as_ref(), &keys.prefix()).are_empty().await? {
                return Err(OpenError::NoSuchId(volume));
            }
        }
        Err(error) => return Err(error),
    }
    bound_to(env, volume).await
}

/// Returns all names that are bound to a volume.
async fn bound_to(env: &Environment, volume: Uuid) -> Result<Vec<String>, OpenError> {
    let all = volumes::list(env).await?;
    let lookups = stream::iter(all).map(|name| async move {
        let stands = name::look_closely(env, &name).await?.volume() == Some(volume);
        Ok::<_, OpenError>(stands.then_some(name))
    });
    let found: Vec<Option<String>> = lookups.buffered(CONCURRENT_LOOKUPS).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Marks the head of a volume as being deleted. Returns `None` if the volume has no head. Fails if the volume
/// no longer has the name by which it was found, if it was found by its id and is brought back meanwhile, or
/// if a clone needs it.
async fn mark(
    env: &Environment,
    options: &Options,
    keys: Keys,
    found_by: Option<&str>,
    takeover: bool,
) -> Result<Option<Head>, OpenError> {
    // Kept from attempt to attempt: looking for clones takes longer than a holder takes to renew its lease.
    let mut known = Known::default();
    let mut was_kept = false;
    for _ in 0..MARKS {
        let (old, etag) = match read_head(env, keys).await {
            Ok((old, _)) if old.state == VolumeState::Deleting => return Ok(Some(old)),
            Ok((old, _)) if was_kept && found_by.is_none() && old.state.is_live() => {
                return Err(OpenError::NotDeleted(keys.volume().to_string()));
            }
            Ok(found) => found,
            Err(OpenError::Store(store::Error::NotFound { .. })) => {
                check_absent(env, keys).await?;
                known.check_without_head(env, keys).await?;
                return Ok(None);
            }
            Err(OpenError::Damaged { key, source }) if takeover => {
                let Some(found) = stand_in(env, keys, &key, source).await? else { continue };
                found
            }
            Err(OpenError::Damaged { key, source }) => {
                return Err(OpenError::Unclear { why: format!("{key}: {source}") });
            }
            Err(error) => return Err(error),
        };
        refuse(&old, found_by, takeover)?;
        was_kept = matches!(old.state, VolumeState::Kept(_));
        // A clone that is made meanwhile changes the head, so that it cannot be marked as it was read.
        match old.version {
            // It stands in for a damaged head.
            0 => known.check_without_head(env, keys).await?,
            _ if known.check(env, keys, &old).await? == Answer::Moved => continue,
            _ => {}
        }
        // Otherwise the head was changed or deleted since it was read.
        if let Some((marked, _)) = replace(env, doomed(options, old), &etag).await? {
            return Ok(Some(marked));
        }
    }
    Err(OpenError::Lost("its holder, which updates the head faster than it can be marked".to_owned()))
}

/// Returns an error if the volume no longer has the name by which it was found, or if a gateway holds it.
pub(super) fn refuse(old: &Head, found_by: Option<&str>, takeover: bool) -> Result<(), OpenError> {
    if let (Some(name), Some(names)) = (found_by, &old.names)
        && !names.contain(name)
    {
        return Err(OpenError::NoSuchVolume(name.to_owned()));
    }
    if matches!(old.lease, Lease::Held { .. }) && !takeover {
        return Err(OpenError::Held { holder: format!("{} (epoch {})", old.holder_name, old.epoch) });
    }
    Ok(())
}

/// The head of a volume once it is marked as being deleted, under a new epoch.
fn doomed(options: &Options, old: Head) -> Head {
    Head {
        epoch: old.epoch + 1,
        holder_name: HolderName::new(&options.holder_name),
        lease: Lease::Released,
        state: VolumeState::Deleting,
        ..old
    }
}

/// Returns an error unless a listing, too, shows that there is no head.
async fn check_absent(env: &Environment, keys: Keys) -> Result<(), OpenError> {
    let key = keys.head();
    if Pages::new(env.store.as_ref(), &key).are_empty().await? {
        return Ok(());
    }
    let why = "the store lists the object, and says that there is none".to_owned();
    Err(store::Error::Transient { key, source: cause(why) }.into())
}

/// Returns a stand-in for a damaged head, with an epoch above all that the journal shows, and with the names
/// that are bound to the volume. Returns `None` if the head is readable by now.
async fn stand_in(
    env: &Environment,
    keys: Keys,
    key: &str,
    damage: crate::volume::format::codec::DecodeError,
) -> Result<Option<(Head, ETag)>, OpenError> {
    tracing::warn!(%key, "the head is damaged: deleting what the journal shows ({damage})");
    let object = env.store.get(key, ByteRange::Full).await?;
    if Head::decode(keys.volume(), &object.body).is_ok() {
        return Ok(None);
    }
    // A volume that was renamed is found under another name than that in its identity. It has two at most.
    let mut bound = bound_to(env, keys.volume()).await?.into_iter();
    let names = bound.next().map(|current| Names { current, next: bound.next() });
    let logs = Logs::list(env, keys, Slot { epoch: 0, n: 0 }).await?;
    let id = ObjectId { epoch: 0, k: 0 };
    let head = Head {
        volume: keys.volume(),
        version: 0,
        // The newest epoch may have no record in its log yet.
        epoch: logs.last_epoch().map_or(0, |epoch| epoch + 1),
        holder: 0,
        holder_name: HolderName::default(),
        lease: Lease::Released,
        checkpoint: Checkpoint {
            slot: Slot { epoch: 0, n: 0 },
            checksum: crate::volume::format::codec::Checksum::default(),
        },
        root: id,
        root_table: id,
        wrapped_key: Vec::new(),
        local_journal: String::new(),
        state: VolumeState::Live,
        names,
    };
    Ok(Some((head, object.etag)))
}

/// Deletes all objects of a volume, once its head is marked and no name is bound to it.
async fn remove(env: &Environment, keys: Keys, marked: Option<&Head>) -> Result<(), OpenError> {
    // Seals the slots that a writer that is still running would use next, so that none of its flushes
    // succeeds any more.
    if let Some(head) = marked {
        seal_all(env, keys, head).await?;
    }
    if mutant::is(Mutant::IdentityFirst) {
        env.store.delete(&[keys.identity()]).await?;
    }
    for prefix in
        [keys.chunks(), keys.packs(), keys.overlays(), keys.map_pages(), keys.roots(), keys.journal()]
    {
        delete_prefix(env, keys, &prefix).await?;
    }
    // The hint which blocks are read first, and objects of kinds that this version does not know.
    delete_prefix(env, keys, &keys.prefix()).await?;
    env.store.delete(&[keys.head()]).await?;
    Ok(env.store.delete(&[keys.identity()]).await?)
}

/// Deletes all objects under a prefix except the head.
async fn delete_prefix(env: &Environment, keys: Keys, prefix: &str) -> Result<(), OpenError> {
    let mut pages = Pages::new(env.store.as_ref(), prefix);
    while let Some(entries) = pages.next().await? {
        let found = entries.into_iter().map(|entry| entry.key);
        let names: Vec<String> = found.filter(|key| keys.parse(key) != Some(Parsed::Head)).collect();
        for batch in names.chunks(store::MAXIMUM_DELETE_KEYS) {
            env.store.delete(batch).await?;
        }
    }
    Ok(())
}
