//! The volumes of a store by name: create, list, look up, delete.
//!
//! Invariants: a name is created last, so that a name that stands points to a whole volume or to one that is being
//! deleted, which is never opened again; it is deleted when nothing but the head is left, so that whoever finds a
//! deletion that was cut short can end it by the name.

use uuid::Uuid;

use super::codec::Checksum;
use super::error::OpenError;
use super::geometry::Geometry;
use super::head::{Checkpoint, Head, Lease, VolumeState};
use super::held::{Updated, update_head};
use super::identity::{Identity, NameBinding};
use super::keys::{self, Keys, NAMES, ObjectId, Slot};
use super::open::{create as create_object, fetch, read_head};
use super::options::Options;
use super::root::{KeptRoot, Root, RootTable};
use super::shared::Environment;
use crate::store;

/// Keys of one delete request at most.
const DELETE_KEYS: usize = 1000;

/// What is known of a volume without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Name.
    pub name: String,
    /// The volume.
    pub volume: Uuid,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Chunk size in bytes.
    pub chunk_bytes: u64,
    /// When it was created, in seconds since 1970.
    pub created_at_seconds: u64,
    /// Generation of its last writer; 0 if it never had one.
    pub epoch: u32,
    /// Who claims it, if anybody; the claim may have run out.
    pub holder: Option<String>,
}

/// Creates a volume of holes.
///
/// # Errors
/// If the name stands or is none, if a size cannot be, or if the store fails.
pub async fn create(
    env: &Environment,
    options: &Options,
    name: &str,
    size_bytes: u64,
    chunk_bytes: u64,
) -> Result<Info, OpenError> {
    check_name(name)?;
    let geometry = Geometry::new(chunk_bytes)?;
    geometry.check_size(size_bytes)?;
    match resolve(env, name).await {
        Ok(_) => return Err(OpenError::Exists(name.to_owned())),
        Err(OpenError::NoSuchVolume(_)) => {}
        Err(error) => return Err(error),
    }
    let volume = env.entropy.uuid();
    let keys = Keys::new(volume);
    let created_at_seconds = (env.wall_clock)();
    let (root_id, table_id) = (ObjectId { epoch: 0, k: 1 }, ObjectId { epoch: 0, k: 2 });
    let start = Slot { epoch: 0, n: 0 };
    let identity = Identity {
        volume,
        features: 0,
        write_features: 0,
        geometry,
        codec: 0,
        cipher: 0,
        created_at_seconds,
    };
    let root = Root {
        id: root_id,
        commit: start,
        size_bytes,
        geometry,
        origins: Vec::new(),
        map_pages: std::collections::BTreeMap::new(),
    };
    let kept = KeptRoot { parent: None, ..KeptRoot::current(&root, root_id) };
    let table = RootTable { id: table_id, roots: vec![kept] };
    let mut holder_name = options.holder_name.clone();
    holder_name.truncate(holder_name.floor_char_boundary(super::head::MAX_HOLDER_BYTES));
    let head = Head {
        volume,
        version: 1,
        epoch: 0,
        holder: env.entropy.next_u128(),
        holder_name,
        lease: Lease::Released,
        checkpoint: Checkpoint { slot: start, checksum: Checksum::default() },
        root: root_id,
        root_table: table_id,
        wrapped_key: Vec::new(),
        local_journal: String::new(),
        state: VolumeState::Live,
    };
    // A name of 128 random bits: what stands under it can only be ours.
    create_object(env, &keys.identity(), identity.encode()).await?;
    create_object(env, &keys.root(root_id), root.encode(volume)).await?;
    create_object(env, &keys.root(table_id), table.encode(volume)).await?;
    create_object(env, &keys.head(), head.encode()).await?;
    let binding = NameBinding { volume, name: name.to_owned() };
    if !create_object(env, &keys::name(name), binding.encode()).await? {
        // Another creator was faster; ours was never visible.
        let names: Vec<String> = vec![keys.identity(), keys.root(root_id), keys.root(table_id), keys.head()];
        env.store.delete(&names).await?;
        return Err(OpenError::Exists(name.to_owned()));
    }
    Ok(Info {
        name: name.to_owned(),
        volume,
        size_bytes,
        chunk_bytes,
        created_at_seconds,
        epoch: 0,
        holder: None,
    })
}

fn check_name(name: &str) -> Result<(), OpenError> {
    if keys::is_valid_name(name) { Ok(()) } else { Err(OpenError::BadName(name.to_owned())) }
}

/// The volume that a name stands for.
///
/// # Errors
/// If there is none, or the store fails.
pub async fn resolve(env: &Environment, name: &str) -> Result<Uuid, OpenError> {
    check_name(name)?;
    let key = keys::name(name);
    match fetch(env, &key, NameBinding::decode).await {
        Ok((binding, _)) if binding.name == name => Ok(binding.volume),
        Ok((binding, _)) => {
            let why = format!("binds the name {:?}", binding.name);
            Err(OpenError::Damaged { key, source: super::codec::invalid("name", why) })
        }
        Err(OpenError::Store(store::Error::NotFound { .. })) => Err(OpenError::NoSuchVolume(name.to_owned())),
        Err(error) => Err(error),
    }
}

/// All names, in order.
///
/// # Errors
/// If the store fails.
pub async fn list(env: &Environment) -> Result<Vec<String>, OpenError> {
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let listing = env.store.list(NAMES, after.as_deref()).await?;
        let found = listing.entries.iter().filter_map(|entry| entry.key.strip_prefix(NAMES));
        names.extend(found.filter(|name| keys::is_valid_name(name)).map(str::to_owned));
        match listing.entries.last() {
            Some(last) if listing.more => after = Some(last.key.clone()),
            _ => return Ok(names),
        }
    }
}

/// What is known of a volume without opening it.
///
/// # Errors
/// If there is none of that name, an object is damaged, or the store fails.
pub async fn info(env: &Environment, name: &str) -> Result<Info, OpenError> {
    let volume = resolve(env, name).await?;
    let keys = Keys::new(volume);
    let (identity, _) = fetch(env, &keys.identity(), |bytes| Identity::decode(volume, bytes)).await?;
    let (head, _) = read_head(env, keys).await?;
    if head.state == VolumeState::Deleting {
        return Err(OpenError::Deleting);
    }
    let (root, _) = fetch(env, &keys.root(head.root), |bytes| Root::decode(volume, head.root, bytes)).await?;
    Ok(Info {
        name: name.to_owned(),
        volume,
        size_bytes: root.size_bytes,
        chunk_bytes: identity.geometry.chunk_bytes(),
        created_at_seconds: identity.created_at_seconds,
        epoch: head.epoch,
        holder: matches!(head.lease, Lease::Held { .. }).then_some(head.holder_name),
    })
}

/// Deletes a volume: marks its head under a new epoch, which fences a writer that still lives, then everything of it,
/// its name and the head last. Goes on with a deletion that was cut short.
///
/// # Errors
/// If a gateway holds it (unless `takeover`), or the store fails; it can then be called again.
pub async fn delete(
    env: &Environment,
    options: &Options,
    name: &str,
    takeover: bool,
) -> Result<(), OpenError> {
    let keys = Keys::new(resolve(env, name).await?);
    match mark(env, options, keys, takeover).await {
        Ok(head) => {
            delete_objects(env, keys, &head).await?;
            env.store.delete(&[keys::name(name)]).await?;
            env.store.delete(&[keys.head()]).await?;
            Ok(())
        }
        // Its creator or an earlier deletion ended between the name and the head.
        Err(OpenError::Store(store::Error::NotFound { .. })) => {
            Ok(env.store.delete(&[keys::name(name)]).await?)
        }
        Err(error) => Err(error),
    }
}

/// Marks a volume as one that is being deleted.
async fn mark(env: &Environment, options: &Options, keys: Keys, takeover: bool) -> Result<Head, OpenError> {
    loop {
        let (old, etag) = read_head(env, keys).await?;
        if matches!(old.lease, Lease::Held { .. }) && !takeover {
            return Err(OpenError::Held { holder: format!("{} (epoch {})", old.holder_name, old.epoch) });
        }
        let head = Head {
            version: old.version + 1,
            epoch: old.epoch + 1,
            holder: env.entropy.next_u128(),
            holder_name: options.holder_name.chars().take(40).collect(),
            lease: Lease::Released,
            state: VolumeState::Deleting,
            ..old
        };
        if let Updated::Done(_) = update_head(env.store.as_ref(), &keys.head(), &etag, &head).await? {
            return Ok(head);
        }
    }
}

/// Deletes everything of a volume but its name and head.
async fn delete_objects(env: &Environment, keys: Keys, head: &Head) -> Result<(), OpenError> {
    // Seals what a writer that still lives would put next, so that no flush of it is answered any more. Roots go after
    // that and before the journal: where they are gone, an earlier deletion has sealed all.
    match super::replay::seal_all(env, keys, head).await {
        Ok(()) | Err(OpenError::Store(store::Error::NotFound { .. })) => {}
        Err(error) => return Err(error),
    }
    for prefix in [keys.chunks(), keys.packs(), keys.map_pages(), keys.roots(), keys.journal()] {
        delete_prefix(env, &prefix).await?;
    }
    Ok(env.store.delete(&[keys.identity()]).await?)
}

async fn delete_prefix(env: &Environment, prefix: &str) -> Result<(), OpenError> {
    let mut after: Option<String> = None;
    loop {
        let listing = env.store.list(prefix, after.as_deref()).await?;
        let names: Vec<String> = listing.entries.iter().map(|entry| entry.key.clone()).collect();
        for batch in names.chunks(DELETE_KEYS) {
            env.store.delete(batch).await?;
        }
        match listing.entries.last() {
            Some(last) if listing.more => after = Some(last.key.clone()),
            _ => return Ok(()),
        }
    }
}
