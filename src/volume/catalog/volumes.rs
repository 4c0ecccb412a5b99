//! The volumes of a store: creates them, lists them, looks them up by name, and finds those without a name.
//!
//! Invariant: a name is bound last, to a complete volume, and only if the name is unchanged since before the
//! volume's first object was made. A process that has changed the name in the meantime, for example to delete
//! that volume, therefore need not know whether the creator is still running. `deletion` is the other half,
//! `opening` opens a volume by its name, and `rename` gives it another one.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use super::name::{self, Found, Swapped, Unbind};
use super::settle::settle;
use crate::mutant::{self, Mutant};
use crate::store::{self, ETag, Pages};
use crate::volume::environment::Environment;
use crate::volume::error::OpenError;
use crate::volume::format::codec::Checksum;
use crate::volume::format::geometry::{ChunkBytes, Geometry};
use crate::volume::format::head::{Checkpoint, Head, HolderName, Lease, VolumeState};
use crate::volume::format::identity::{Identity, NameBinding};
use crate::volume::format::keys::{self, IDENTITIES, Keys, NAMES, ObjectId, Slot};
use crate::volume::format::root::{KeptRoot, Root, RootTable};
use crate::volume::info::Info;
use crate::volume::objects::{create as create_object, fetch, fetch_if_present, read_head};
use crate::volume::options::Options;

/// Limit on concurrent lookups of volumes.
pub const CONCURRENT_LOOKUPS: usize = 16;
/// Limit on attempts to create a volume whose name other processes bind and free in the meantime.
pub(super) const CREATIONS: u32 = 16;
/// Limit on lookups of a volume with a missing object: another process may be deleting it, and creating
/// another one with the same name.
const LOOKUPS: u32 = 4;

/// Id of the root that a volume is created with.
const FIRST_ROOT: ObjectId = ObjectId { epoch: 0, k: 1 };
/// Id of the root table that a volume is created with.
const FIRST_TABLE: ObjectId = ObjectId { epoch: 0, k: 2 };

/// A name and the volume that it is bound to. A damaged or partly deleted volume does not keep the others
/// from being listed.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The name, as it is listed; always a valid one.
    pub name: String,
    /// Description of the volume, or the error that prevented reading it.
    pub found: Result<Info, Arc<OpenError>>,
}

/// A volume to which no name is bound: it is being created or deleted, or its creation or deletion was
/// interrupted.
#[derive(Clone, Debug)]
pub struct Unnamed {
    /// UUID of the volume, by which it can be deleted.
    pub volume: Uuid,
    /// The name that it was created for; `None` if its identity cannot be read.
    pub made_for: Option<String>,
    /// Time of its creation as Unix time in seconds; `None` if its identity cannot be read.
    pub created_at_seconds: Option<u64>,
    /// How far its creation or deletion has come.
    pub progress: Progress,
}

/// How far the creation or deletion of a volume without a name has come.
#[derive(Clone, Debug)]
pub enum Progress {
    /// The head or its root does not exist yet, as during an import, or is already deleted.
    Incomplete,
    /// The volume is complete, and its name is not bound yet.
    Unbound,
    /// The head says that the volume is being deleted.
    Deleting,
    /// The objects that exist cannot be read.
    Unknown(Arc<OpenError>),
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Incomplete => write!(f, "incomplete"),
            Self::Unbound => write!(f, "not named yet"),
            Self::Deleting => write!(f, "being deleted"),
            Self::Unknown(error) => write!(f, "{error}"),
        }
    }
}

/// Checks that a volume may have this name and these sizes. Sends no request to the store.
///
/// # Errors
/// If the name or one of the sizes is not valid.
pub fn check(name: &str, size_bytes: u64, chunk: ChunkBytes) -> Result<(), OpenError> {
    check_name(name)?;
    Ok(Geometry::new(chunk.0)?.check_size(size_bytes)?)
}

/// Creates an empty volume, which is one hole, and binds the name to it.
///
/// # Errors
/// If the name is bound or not valid, if a size is not valid, or if the store fails. Objects made before the
/// failure may remain. They belong to no name, and [`unnamed`] lists them.
pub async fn create(
    env: &Environment,
    options: &Options,
    name: &str,
    size_bytes: u64,
    chunk: ChunkBytes,
) -> Result<Info, OpenError> {
    check(name, size_bytes, chunk)?;
    let geometry = Geometry::new(chunk.0)?;
    for _ in 0..CREATIONS {
        // Read before anything is made: see the invariant at the top of this file.
        let before = claim(env, name).await?;
        let volume = env.entropy.uuid();
        let keys = Keys::new(volume);
        let created_at_seconds = (env.wall_clock)();
        let identity = new_identity(name, volume, geometry, created_at_seconds);
        // After a failure nothing is removed: requests in flight may still take effect, and the volume can be
        // found as long as the identity exists.
        create_object(env, &keys.identity(), identity.encode()).await?;
        make(env, options, volume, &empty_root(geometry, size_bytes)).await?;
        let is_bound = name::bind(env, name, &before, volume).await? == Swapped::Done;
        // Never retried with the same volume: it may have been deleted by its id, which changes the name.
        if is_bound || was_bound(env, keys).await? {
            return Ok(Info {
                name: name.to_owned(),
                volume,
                size_bytes,
                chunk_bytes: chunk.0,
                created_at_seconds,
                epoch: 0,
                holder: None,
                clone_of: None,
            });
        }
    }
    Err(OpenError::Contended(name.to_owned()))
}

/// The identity of a volume that is made for a name.
pub(super) fn new_identity(
    name: &str,
    volume: Uuid,
    geometry: Geometry,
    created_at_seconds: u64,
) -> Identity {
    Identity {
        volume,
        features: 0,
        write_features: 0,
        geometry,
        codec: 0,
        cipher: 0,
        created_at_seconds,
        name: name.to_owned(),
    }
}

/// Returns what exists under a name to which another volume may be bound: nothing, or a free name. A name
/// that is bound to a volume that is being deleted, or that was deleted and is kept, is taken from it first.
/// Otherwise a deletion by id could not make the one who binds the name come too late: it leaves names of
/// other volumes as they are.
pub(super) async fn claim(env: &Environment, name: &str) -> Result<Found, OpenError> {
    for _ in 0..CREATIONS {
        let found = name::read(env, name).await?;
        let Some(volume) = found.volume() else { return Ok(found) };
        match read_head(env, Keys::new(volume)).await {
            Ok((head, _)) if head.state == VolumeState::Deleting => {
                name::unbind(env, name, volume, Unbind::Bound).await?;
            }
            // Somebody may be bringing it back, so the name is not freed as it is now.
            Ok((head, _)) if matches!(head.state, VolumeState::Kept(_)) => {
                drop(settle(env, Keys::new(volume)).await?);
            }
            // Deleted since the name was read, or never complete: reading the name again decides.
            Err(OpenError::Store(store::Error::NotFound { .. }))
                if !name::read(env, name).await?.is(&found) => {}
            Err(OpenError::Store(error)) if !matches!(error, store::Error::NotFound { .. }) => {
                return Err(error.into());
            }
            // Whether or not its head can be read, it is not known to be deleted.
            Ok(_) | Err(_) => return Err(OpenError::Exists(name.to_owned())),
        }
    }
    Err(OpenError::Contended(name.to_owned()))
}

/// Creates the objects of a volume whose identity exists, the head last. Their keys contain 128 random bits,
/// so whatever exists under them is ours.
pub(super) async fn make(
    env: &Environment,
    options: &Options,
    volume: Uuid,
    root: &Root,
) -> Result<(), OpenError> {
    let keys = Keys::new(volume);
    let (table, head) = (first_table(root), first_head(env, options, volume));
    create_object(env, &keys.root(root.id), root.encode(keys.sealing())).await?;
    create_object(env, &keys.root(table.id), table.encode(keys.sealing())).await?;
    create_object(env, &keys.head(), head.encode()).await?;
    Ok(())
}

/// The first root of a volume, which has no chunks.
pub(super) fn empty_root(geometry: Geometry, size_bytes: u64) -> Root {
    Root {
        id: FIRST_ROOT,
        commit: Slot::START,
        size_bytes,
        geometry,
        origins: Vec::new(),
        map_pages: std::collections::BTreeMap::new(),
        packs: std::collections::BTreeMap::new(),
        zeroed: crate::volume::format::interval::IntervalMap::default(),
    }
}

/// The table of a volume that only ever had its first root.
pub(super) fn first_table(root: &Root) -> RootTable {
    let kept = KeptRoot { parent: None, ..KeptRoot::current(root, root.id, None) };
    RootTable { id: FIRST_TABLE, roots: vec![kept] }
}

/// The head of a volume that was never opened. It references the first root and the first table.
pub(super) fn first_head(env: &Environment, options: &Options, volume: Uuid) -> Head {
    Head {
        volume,
        version: 1,
        epoch: 0,
        holder: env.entropy.next_u128(),
        holder_name: HolderName::new(&options.holder_name),
        lease: Lease::Released,
        checkpoint: Checkpoint { slot: Slot::START, checksum: Checksum::default() },
        root: FIRST_ROOT,
        root_table: FIRST_TABLE,
        wrapped_key: Vec::new(),
        local_journal: String::new(),
        state: VolumeState::Live,
        names: None,
    }
}

/// Whether a volume was bound to its name although its creator was told that it comes too late. The answer to
/// the first request of the creator was lost then, and the volume has been opened since. If the volume never
/// had a name, its objects are deleted. If it is being deleted, that is left to whoever does it: the volume
/// may have a journal by now, which only a deletion removes.
pub(super) async fn was_bound(env: &Environment, keys: Keys) -> Result<bool, OpenError> {
    match read_head(env, keys).await {
        Ok((head, _)) if head.state == VolumeState::Live => {
            // Only a name leads to a volume, and each opening begins an epoch.
            if head.epoch > 0 && !mutant::is(Mutant::RenamedUnmade) {
                return Ok(true);
            }
            unmake(env, keys).await;
            Ok(false)
        }
        Ok(_) | Err(OpenError::Store(store::Error::NotFound { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes the objects of a volume that its creator did not bind to a name.
pub(super) async fn unmake(env: &Environment, keys: Keys) {
    let (root, table) = (keys.root(FIRST_ROOT), keys.root(FIRST_TABLE));
    // The identity is deleted last, so that the volume can be found while any object is left.
    for objects in [vec![root, table, keys.head()], vec![keys.identity()]] {
        if let Err(error) = env.store.delete(&objects).await {
            tracing::warn!(volume = %keys.volume(),
                "what was made of a volume is left, without a name: {error}");
            return;
        }
    }
}

pub(super) fn check_name(name: &str) -> Result<(), OpenError> {
    if keys::is_valid_name(name) { Ok(()) } else { Err(OpenError::BadName(name.to_owned())) }
}

/// Returns the UUID of the volume that a name is bound to. To open the volume, use [`open`](super::open).
///
/// # Errors
/// If the name is not valid or not bound, or if the store fails.
pub async fn resolve(env: &Environment, name: &str) -> Result<Uuid, OpenError> {
    check_name(name)?;
    let found = name::read(env, name).await?;
    found.volume().ok_or_else(|| OpenError::NoSuchVolume(name.to_owned()))
}

/// Returns all names that are bound to a volume, sorted. Recognizes free names by the size of their objects,
/// without a request for each.
///
/// # Errors
/// If the store fails.
pub async fn list(env: &Environment) -> Result<Vec<String>, OpenError> {
    let mut entries = list_all(env, NAMES).await?;
    entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let bound = entries.into_iter().filter(|entry| entry.size_bytes != NameBinding::FREE_BYTES);
    let names = bound.filter_map(|entry| entry.key.strip_prefix(NAMES).map(str::to_owned));
    Ok(names.filter(|name| keys::is_valid_name(name)).collect())
}

async fn list_all(env: &Environment, prefix: &str) -> Result<Vec<store::Entry>, OpenError> {
    let mut entries = Vec::new();
    let mut pages = Pages::new(env.store.as_ref(), prefix);
    while let Some(page) = pages.next().await? {
        entries.extend(page);
    }
    Ok(entries)
}

/// Returns all names that are bound to a volume, sorted, with a description of each volume.
///
/// # Errors
/// If the store cannot list names. A failure that concerns one volume is reported with that volume.
pub async fn volumes(env: &Environment) -> Result<Vec<Listed>, OpenError> {
    let names = list(env).await?;
    let lookups = stream::iter(names).map(|name| async move {
        let found = info(env, &name).await.map_err(Arc::new);
        Listed { name, found }
    });
    let all = lookups.buffered(CONCURRENT_LOOKUPS);
    let all: Vec<Listed> = all.filter(|listed| std::future::ready(listed.stands())).collect().await;
    if mutant::is(Mutant::BrokenEndsListing)
        && let Some(error) = all.iter().find_map(|listed| listed.found.as_ref().err())
    {
        return Err(OpenError::clone(error));
    }
    Ok(all)
}

impl Listed {
    /// Whether the name was still bound to a volume when that was looked up.
    #[must_use]
    pub fn stands(&self) -> bool {
        !matches!(self.found.as_ref().map_err(|error| &**error), Err(OpenError::NoSuchVolume(_)))
    }
}

/// Returns all volumes to which no name is bound, except those that were deleted and are kept, and those in
/// use that are changed so often that nobody can say so.
///
/// # Errors
/// If the store cannot list identities and names, or cannot return a name. A failure that concerns one volume
/// is reported with that volume.
pub async fn unnamed(env: &Environment) -> Result<Vec<Unnamed>, OpenError> {
    // Listed before the names, so that a volume bound in the meantime is not reported.
    let all = identities(env).await?;
    let names = list(env).await?;
    let lookups = stream::iter(names)
        .map(|name| async move { Ok::<_, OpenError>(name::look_closely(env, &name).await?.volume()) });
    let named: Vec<Option<Uuid>> = lookups.buffered(CONCURRENT_LOOKUPS).try_collect().await?;
    let named: BTreeSet<Uuid> = named.into_iter().flatten().collect();
    let without = all.into_iter().filter(|volume| !named.contains(volume));
    let found = stream::iter(without).map(|volume| look_at_unnamed(env, volume));
    let found: Vec<Option<Unnamed>> = found.buffered(CONCURRENT_LOOKUPS).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Returns the ids of all volumes that have an identity.
pub(super) async fn identities(env: &Environment) -> Result<Vec<Uuid>, OpenError> {
    let listed = list_all(env, IDENTITIES).await?;
    let all = listed.iter().filter_map(|entry| Uuid::parse_str(entry.key.strip_prefix(IDENTITIES)?).ok());
    Ok(all.filter(|volume| !volume.is_nil()).collect())
}

/// Describes a volume without a name. Returns `None` if it was deleted for good, or bound to its name, in the
/// meantime, and if it is kept. Fails if its name cannot be read: whoever deletes what is listed must not
/// meet a volume in use.
async fn look_at_unnamed(env: &Environment, volume: Uuid) -> Result<Option<Unnamed>, OpenError> {
    let keys = Keys::new(volume);
    let identity = fetch_if_present(env, &keys.identity(), |bytes| Identity::decode(volume, bytes)).await;
    let (identity, unreadable) = match identity {
        Ok((identity, _)) => (Some(identity), None),
        Err(OpenError::Store(store::Error::NotFound { .. })) => return Ok(None),
        Err(error @ OpenError::Damaged { .. }) => (None, Some(error)),
        Err(error) => return Err(error),
    };
    let mut head = read_head(env, keys).await;
    let mut is_steady = false;
    for _ in 0..LOOKUPS {
        let (names, holder) = (names_in(&head), holder_in(&head));
        // The listing may have omitted its name, or it is getting another one just now.
        for name in identity.iter().map(|identity| &identity.name).chain(&names) {
            if name::look(env, name).await?.volume() == Some(volume) {
                return Ok(None);
            }
        }
        head = read_head(env, keys).await;
        // The names alone do not show that the volume was brought back under the name that it had.
        is_steady = names_in(&head) == names && holder_in(&head) == holder;
        if is_steady {
            break;
        }
    }
    let progress = match (head, unreadable) {
        (Ok((head, _)), _) if matches!(head.state, VolumeState::Kept(_)) => return Ok(None),
        // Somebody changes it all the time, so it may have got its name since that was looked up.
        (Ok((head, _)), _) if head.state.is_live() && !is_steady => return Ok(None),
        (Ok((head, _)), _) if head.state == VolumeState::Deleting => Progress::Deleting,
        (Err(OpenError::Store(store::Error::NotFound { .. })), _) => Progress::Incomplete,
        (Err(error), _) | (Ok(_), Some(error)) => Progress::Unknown(Arc::new(error)),
        (Ok((head, _)), None) => progress_of(env, keys, &head).await,
    };
    let created_at_seconds = identity.as_ref().map(|identity| identity.created_at_seconds);
    let made_for = identity.map(|identity| identity.name);
    Ok(Some(Unnamed { volume, made_for, created_at_seconds, progress }))
}

/// Returns the names that a head records.
fn names_in(head: &Result<(Head, ETag), OpenError>) -> Vec<String> {
    let names = head.as_ref().ok().and_then(|(head, _)| head.names.clone());
    names.map_or_else(Vec::new, |names| std::iter::once(names.current).chain(names.next).collect())
}

/// Returns what each opening, deletion and return of a volume changes in its head. Its holder keeps it.
fn holder_in(head: &Result<(Head, ETag), OpenError>) -> Option<u128> {
    head.as_ref().ok().map(|(head, _)| head.holder)
}

/// Returns whether a volume with a live head and without a name is complete.
async fn progress_of(env: &Environment, keys: Keys, head: &Head) -> Progress {
    let decode = |bytes: &[u8]| Root::decode(keys.sealing(), head.root, bytes);
    match fetch_if_present(env, &keys.root(head.root), decode).await {
        Ok(_) => Progress::Unbound,
        Err(OpenError::Store(store::Error::NotFound { .. })) => Progress::Incomplete,
        Err(error) => Progress::Unknown(Arc::new(error)),
    }
}

/// Describes a volume from its objects, without opening it.
///
/// # Errors
/// If no volume has that name, if it is being deleted, if an object is damaged or missing, or if the store
/// fails.
pub async fn info(env: &Environment, name: &str) -> Result<Info, OpenError> {
    let mut missing = String::new();
    for _ in 0..LOOKUPS {
        let volume = resolve(env, name).await?;
        match look_up(env, name, volume).await {
            // The volume was deleted since the name was read, or a checkpoint was published since the head
            // was: look it up again.
            Err(OpenError::Store(store::Error::NotFound { key })) => missing = key,
            described => return described,
        }
    }
    Err(OpenError::Incomplete { key: missing })
}

async fn look_up(env: &Environment, name: &str, volume: Uuid) -> Result<Info, OpenError> {
    let (head, _) = read_head(env, Keys::new(volume)).await?;
    if head.state.is_live() { describe(env, name, &head).await } else { Err(OpenError::Deleting) }
}

/// Describes a volume that has this name and this head, from its identity and its root.
pub(super) async fn describe(env: &Environment, name: &str, head: &Head) -> Result<Info, OpenError> {
    let volume = head.volume;
    let keys = Keys::new(volume);
    let (identity, _) = fetch(env, &keys.identity(), |bytes| Identity::decode(volume, bytes)).await?;
    let (root, _) =
        fetch(env, &keys.root(head.root), |bytes| Root::decode(keys.sealing(), head.root, bytes)).await?;
    Ok(Info {
        name: name.to_owned(),
        volume,
        size_bytes: root.size_bytes,
        chunk_bytes: identity.geometry.chunk_bytes(),
        created_at_seconds: identity.created_at_seconds,
        epoch: head.epoch,
        holder: matches!(head.lease, Lease::Held { .. }).then(|| head.holder_name.to_string()),
        clone_of: root.origins.first().copied(),
    })
}
