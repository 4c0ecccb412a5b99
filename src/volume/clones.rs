//! What others must know about a clone: whether it still exists and needs them, and how people call it.
//!
//! A clone reads objects of other volumes, so the snapshot that it is a clone of is kept: by a pin in the
//! root table. Must not know how clones are made or deleted. Invariant: a clone counts as gone only if it can
//! never be used again.
//!
//! Why a clone without an identity can never be used: its creator makes the identity before the pin, and
//! binds the name last, if that is as it was before the identity was made. The identity is deleted last of
//! all, and only after the name was changed. So a creator that is late cannot bind the name any more.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use super::environment::Environment;
use super::error::{Mentioned, OpenError};
use super::format::head::{Head, VolumeState};
use super::format::identity::{Identity, NameBinding};
use super::format::keys::{self, Keys};
use super::format::root::{MAX_ORIGINS, Root};
use super::objects::fetch_if_present;
use super::store_exact::{self, is_absent};
use crate::mutant::{self, Mutant};
use crate::store::{self, Pages};

/// Limit on concurrent lookups of clones.
const CONCURRENT_LOOKS: usize = 32;
/// Limit on the readings of a volume whose root is replaced meanwhile.
const READINGS: u32 = 4;
/// Number of volumes whose names are looked up for a message.
const NAMED: usize = 8;

/// What a first look at clones shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sighted {
    /// Those that exist.
    pub(super) alive: Vec<Uuid>,
    /// Those that the store denies. A single answer does not prove that they are gone.
    pub(super) doubtful: Vec<Uuid>,
}

/// Looks at each clone once, without a pause.
///
/// # Errors
/// If the store fails.
pub(super) async fn look(env: &Environment, clones: &[Uuid]) -> Result<Sighted, store::Error> {
    let looks = stream::iter(clones.to_vec()).map(|clone| async move {
        for key in signs(clone) {
            if !is_absent(env.store.as_ref(), &key).await? {
                return Ok::<_, store::Error>((clone, true));
            }
        }
        Ok((clone, false))
    });
    let mut sighted = Sighted::default();
    let mut looks = looks.buffered(CONCURRENT_LOOKS);
    while let Some((clone, is_alive)) = looks.try_next().await? {
        if is_alive { &mut sighted.alive } else { &mut sighted.doubtful }.push(clone);
    }
    Ok(sighted)
}

/// Returns those of the clones that need nothing of `parent` any more: their own root does not list it. That
/// is final, because a root without origins is published only when no other root of the clone needs them.
/// Whatever cannot be read needs everything. A root has a checksum, so one answer is enough.
///
/// # Errors
/// If the store fails.
pub(super) async fn untied(
    env: &Environment,
    clones: &[Uuid],
    parent: Uuid,
) -> Result<Vec<Uuid>, store::Error> {
    if mutant::is(Mutant::UntiedUnread) {
        return Ok(clones.to_vec());
    }
    let looks = stream::iter(clones.to_vec()).map(|clone| async move {
        Ok::<_, store::Error>(is_untied(env, clone, parent).await?.then_some(clone))
    });
    let found: Vec<Option<Uuid>> = looks.buffered(CONCURRENT_LOOKS).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Whether a clone needs nothing of `parent` any more, as [`untied`]. A clone of a clone lists what the clone
/// between them listed at the time. It needs nothing that this one does not need: see `fold/detach.rs`.
pub(super) async fn is_untied(env: &Environment, clone: Uuid, parent: Uuid) -> Result<bool, store::Error> {
    let mut asked = clone;
    for _ in 0..=MAX_ORIGINS {
        match origins(env, asked).await? {
            Some(origins) if !origins.contains(&parent) => return Ok(true),
            Some(origins) if origins[0] != parent => asked = origins[0],
            _ => return Ok(false),
        }
    }
    Ok(false)
}

/// The volumes whose objects the current root of a volume may reference: first the one that it is a clone of,
/// and then those that this one listed. Returns `None` if they cannot be read.
async fn origins(env: &Environment, volume: Uuid) -> Result<Option<Vec<Uuid>>, store::Error> {
    let keys = Keys::new(volume);
    for _ in 0..READINGS {
        let head = fetch_if_present(env, &keys.head(), |bytes| Head::decode(volume, bytes)).await;
        let id = match head {
            Ok((head, _)) => head.root,
            Err(OpenError::Store(store::Error::NotFound { .. })) => return Ok(None),
            Err(OpenError::Store(error)) => return Err(error),
            Err(_) => return Ok(None),
        };
        let decode = |bytes: &[u8]| Root::decode(keys.sealing(), id, bytes);
        match fetch_if_present(env, &keys.root(id), decode).await {
            Ok((root, _)) => return Ok(Some(root.origins)),
            // A checkpoint may have replaced it.
            Err(OpenError::Store(store::Error::NotFound { .. })) => {}
            Err(OpenError::Store(error)) => return Err(error),
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}

/// Returns those of the doubtful clones that do not exist any more. Several answers of the store must say so
/// of each: a false one would cost the clone its data. All clones share the pauses between the answers, so it
/// takes little longer for a thousand of them than for one.
///
/// # Errors
/// If the store fails, or contradicts itself.
pub(super) async fn gone(env: &Environment, doubtful: &[Uuid]) -> Result<Vec<Uuid>, store::Error> {
    if mutant::is(Mutant::GoneUnconfirmed) {
        return Ok(doubtful.to_vec());
    }
    let store = env.store.as_ref();
    let all: Vec<(Uuid, Vec<String>)> = doubtful.iter().map(|clone| (*clone, signs(*clone))).collect();
    let absent = store_exact::all_gone(store, all, CONCURRENT_LOOKS).await?;
    let looks = stream::iter(absent).map(|clone| async move {
        let is_gone = Pages::new(store, &Keys::new(clone).prefix()).are_empty().await?;
        Ok::<_, store::Error>(is_gone.then_some(clone))
    });
    let found: Vec<Option<Uuid>> = looks.buffered(CONCURRENT_LOOKS).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// The objects of which each shows that a clone exists, in the order in which they are asked for.
fn signs(clone: Uuid) -> Vec<String> {
    let keys = Keys::new(clone);
    let mut signs = vec![keys.head()];
    if !mutant::is(Mutant::PinReleasedEarly) {
        signs.push(keys.identity());
    }
    signs
}

/// Looks up how people call the first of some volumes.
pub(super) async fn mention(env: &Environment, volumes: &[Uuid]) -> Mentioned {
    let first = &volumes[..volumes.len().min(NAMED)];
    let labels = stream::iter(first.to_vec()).map(|volume| label(env, volume));
    Mentioned { names: labels.buffered(NAMED).collect().await, more: volumes.len() - first.len() }
}

/// Returns the name of a volume, or its id if it has none or if the name cannot be read. Of a deleted volume
/// that is kept, also the name that it had: people do not know it by its id.
async fn label(env: &Environment, volume: Uuid) -> String {
    if let Some(name) = name_of(env, volume).await {
        return name;
    }
    let decode = |bytes: &[u8]| Head::decode(volume, bytes);
    match fetch_if_present(env, &Keys::new(volume).head(), decode).await {
        Ok((Head { state: VolumeState::Kept(_), names: Some(names), .. }, _)) => {
            format!("{volume} (deleted {})", names.current)
        }
        _ => volume.to_string(),
    }
}

/// Returns the name of a volume. Returns `None` if it has none, or if the name cannot be read.
pub async fn name_of(env: &Environment, volume: Uuid) -> Option<String> {
    read_name(env, volume).await.ok().flatten()
}

async fn read_name(env: &Environment, volume: Uuid) -> Result<Option<String>, OpenError> {
    let keys = Keys::new(volume);
    // The head has the name of a volume that was renamed.
    let decode = |bytes: &[u8]| Head::decode(volume, bytes);
    let names = match fetch_if_present(env, &keys.head(), decode).await {
        Ok((head, _)) => head.names,
        Err(OpenError::Store(store::Error::NotFound { .. })) => None,
        Err(error) => return Err(error),
    };
    let name = match names {
        Some(names) => names.current,
        None => {
            let decode = |bytes: &[u8]| Identity::decode(volume, bytes);
            fetch_if_present(env, &keys.identity(), decode).await?.0.name
        }
    };
    let (binding, _) = fetch_if_present(env, &keys::name(&name), NameBinding::decode).await?;
    Ok((binding.volume == volume && binding.name.as_ref() == Some(&name)).then_some(name))
}
