//! Creates clones: new volumes that begin with the content of a snapshot and share its objects.
//!
//! The root of a clone references the map pages of the snapshot's root, and lists their owners. Must not know
//! how the parent keeps its roots. Invariant: the identity of a clone exists before its parent keeps the
//! snapshot for it, the parent keeps the snapshot before the head exists, and the name is bound last.

use uuid::Uuid;

use super::name::{self, Swapped};
use super::volumes::{CREATIONS, check_name, claim, empty_root, make, new_identity, unmake, was_bound};
use crate::mutant::{self, Mutant};
use crate::volume::disk::Volume;
use crate::volume::error::{CloneError, OpenError, SnapshotError};
use crate::volume::format::keys::{Keys, Slot};
use crate::volume::format::root::{MAX_ORIGINS, MapPageRef, Root};
use crate::volume::info::Info;
use crate::volume::objects::create as create_object;

/// Creates a volume that contains what the snapshot `snapshot` of `parent` contains, and binds the name to
/// it. It shares all objects of the snapshot and can be written at once.
///
/// # Errors
/// If the name is bound or not valid, if there is no such snapshot, if it has too many clones, if the clone
/// would need the objects of too many volumes, if the parent stopped, or if the store fails. Objects made
/// before the failure may remain. They belong to no name, and [`unnamed`](super::unnamed) lists them.
pub async fn clone(parent: &Volume, snapshot: &str, name: &str) -> Result<Info, CloneError> {
    let (env, options) = (parent.environment(), parent.options());
    check_name(name)?;
    let origins = parent.origins().len() + 1;
    if origins > MAX_ORIGINS {
        return Err(CloneError::TooDeep(origins));
    }
    for _ in 0..CREATIONS {
        // Read before anything is made, as for every volume.
        let before = claim(env, name).await?;
        let volume = env.entropy.uuid();
        let keys = Keys::new(volume);
        let identity = new_identity(name, volume, parent.geometry(), (env.wall_clock)());
        create_object(env, &keys.identity(), identity.encode()).await?;
        let kept = match parent.pin(snapshot, volume).await {
            Ok(kept) => kept,
            Err(error) => {
                // Otherwise the parent may keep the snapshot for it. What is left is found by its identity.
                if matches!(error, SnapshotError::NoSuchSnapshot(_) | SnapshotError::TooManyClones { .. }) {
                    unmake(env, keys).await;
                }
                return Err(error.into());
            }
        };
        let root = shared_root(kept, parent.id());
        make(env, options, volume, &root).await?;
        // Never retried with the same volume, as for every creation. If it got no name, its pin is left:
        // nothing needs it once the identity is gone.
        let is_bound = name::bind(env, name, &before, volume).await? == Swapped::Done;
        if is_bound || was_bound(env, keys).await? {
            tracing::info!(parent = %parent.id(), snapshot, clone = %volume, "cloned the snapshot");
            return Ok(Info {
                name: name.to_owned(),
                volume,
                size_bytes: root.size_bytes,
                chunk_bytes: root.geometry.chunk_bytes(),
                created_at_seconds: identity.created_at_seconds,
                epoch: 0,
                holder: None,
                clone_of: Some(parent.id()),
            });
        }
    }
    Err(OpenError::Contended(name.to_owned()).into())
}

/// The first root of a clone of `parent` whose content is `kept`, a root of the parent. The parent is the
/// first of its origins. After it come those of the parent.
fn shared_root(kept: Root, parent: Uuid) -> Root {
    let passed_on = |page: MapPageRef| {
        if mutant::is(Mutant::OriginUntranslated) {
            return page;
        }
        MapPageRef { origin: page.origin + 1, ..page }
    };
    let mut root = Root {
        origins: std::iter::once(parent).chain(kept.origins).collect(),
        map_pages: kept.map_pages.into_iter().map(|(number, page)| (number, passed_on(page))).collect(),
        ..empty_root(kept.geometry, kept.size_bytes)
    };
    // A commit of the clone may have the slot of any commit of the parent.
    for (run, _) in kept.zeroed.iter() {
        root.zeroed.insert(run, Slot::START);
    }
    root
}
