//! Snapshots as disks that can only be read.
//!
//! A snapshot is read from its root. That takes no lease, so any number of gateways read it at once, also
//! while another one writes the volume. Must not know how snapshots are taken or deleted. Invariant: after a
//! snapshot is deleted, a read of it returns what was written, or an error.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use super::environment::Environment;
use super::error::{Error, OpenError};
use super::format::codec::Checksum;
use super::format::keys::{Keys, ObjectId};
use super::format::root::{Root, RootTable};
use super::format::snapshot::Snapshot;
use super::objects::{fetch, read_head};
use super::options::Options;
use super::read::ahead::ReadAhead;
use super::read::reader::Reader;
use super::read::{Extent, STATUS_WINDOWS, Segment, WINDOW_BYTES, Window};
use super::state::Resolved;
use crate::metrics::labels::Command;
use crate::metrics::{Metrics, VolumeMetrics};
use crate::store;
use crate::task::Tasks;

/// Limit on lookups of a root table that a checkpoint replaces and deletes in the meantime.
const LOOKUPS: u32 = 8;

/// Returns the snapshots of a volume, in the order in which they were taken.
///
/// # Errors
/// If the volume is being deleted, if an object is damaged, or if the store fails.
pub async fn list(env: &Environment, volume: Uuid) -> Result<Vec<Snapshot>, OpenError> {
    let kept = kept(env, Keys::new(volume)).await?;
    Ok(kept.into_iter().map(|(snapshot, _)| snapshot).collect())
}

/// Returns the snapshots of a volume with their roots.
async fn kept(env: &Environment, keys: Keys) -> Result<Vec<(Snapshot, ObjectId)>, OpenError> {
    for _ in 0..LOOKUPS {
        let (head, _) = read_head(env, keys).await?;
        if !head.state.is_live() {
            return Err(OpenError::Deleting);
        }
        let id = head.root_table;
        match fetch(env, &keys.root(id), |bytes| RootTable::decode(keys.sealing(), id, bytes)).await {
            Ok((table, _)) => {
                let named = table.roots.into_iter().filter_map(|kept| Some((kept.snapshot?, kept.root)));
                return Ok(named.collect());
            }
            // A checkpoint has replaced the table since the head was read.
            Err(OpenError::Store(store::Error::NotFound { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    Err(OpenError::Contended(keys.volume().to_string()))
}

/// Whether a snapshot keeps a root.
async fn has_root(env: &Environment, keys: Keys, id: ObjectId) -> Result<bool, OpenError> {
    Ok(kept(env, keys).await?.iter().any(|(_, root)| *root == id))
}

/// A snapshot that is open for reading. All methods may run concurrently.
#[derive(Debug)]
pub struct SnapshotDisk {
    env: Environment,
    keys: Keys,
    snapshot: Snapshot,
    root: Arc<Root>,
    root_checksum: Checksum,
    metrics: VolumeMetrics,
    read_ahead: Mutex<ReadAhead>,
    most_ahead_bytes: u64,
    is_deleted: AtomicBool,
    tasks: Tasks,
}

impl SnapshotDisk {
    /// Opens a snapshot of a volume.
    ///
    /// # Errors
    /// If the volume has no such snapshot or is being deleted, if an object is damaged, or if the store
    /// fails.
    pub async fn open(
        env: &Environment,
        options: &Options,
        volume: Uuid,
        name: &str,
    ) -> Result<Arc<Self>, OpenError> {
        let keys = Keys::new(volume);
        let found = kept(env, keys).await?.into_iter().find(|(snapshot, _)| snapshot.name == name);
        let (snapshot, id) = found.ok_or_else(|| OpenError::NoSuchSnapshot(name.to_owned()))?;
        let decode = |bytes: &[u8]| {
            let root = Root::decode(keys.sealing(), id, bytes);
            root.map(|root| (root, Checksum::at_end_of(bytes)))
        };
        let (root, root_checksum) = match fetch(env, &keys.root(id), decode).await {
            Ok((found, _)) => found,
            Err(OpenError::Store(store::Error::NotFound { .. })) if !has_root(env, keys, id).await? => {
                return Err(OpenError::NoSuchSnapshot(name.to_owned()));
            }
            Err(error) => return Err(error),
        };
        let metrics = options.metrics.clone().unwrap_or_else(|| Metrics::new().volume(&volume.to_string()));
        Ok(Arc::new(Self {
            env: env.clone(),
            keys,
            snapshot,
            root: Arc::new(root),
            root_checksum,
            metrics,
            read_ahead: Mutex::new(ReadAhead::default()),
            most_ahead_bytes: options.read_ahead_bytes.min(env.cache.most_ahead_bytes()),
            is_deleted: AtomicBool::new(false),
            tasks: Tasks::new(),
        }))
    }

    /// The snapshot.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Returns what identifies the content of the disk: no two snapshots that differ have the same.
    #[must_use]
    pub fn identity(&self) -> String {
        self.keys.root(self.root.id)
    }

    /// What the disk shares with all others of the process.
    pub(super) fn environment(&self) -> &Environment {
        &self.env
    }

    /// Keys of the volume that the snapshot is of.
    pub(super) fn keys(&self) -> Keys {
        self.keys
    }

    /// The root that has the content of the snapshot.
    pub(super) fn root(&self) -> &Arc<Root> {
        &self.root
    }

    /// The checksum of that root, as the store has it.
    pub(super) fn root_checksum(&self) -> Checksum {
        self.root_checksum
    }

    /// Size of the disk in bytes when the snapshot was taken.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.root.size_bytes
    }

    /// Whether the snapshot was taken before another one of the same volume.
    #[must_use]
    pub fn precedes(&self, other: &Self) -> bool {
        self.root.commit < other.root.commit
    }

    /// Asks the store whether the snapshot still exists. If it does not, all commands fail from then on.
    ///
    /// # Errors
    /// If the volume cannot be read.
    pub async fn is_kept(&self) -> Result<bool, OpenError> {
        let is_kept = match kept(&self.env, self.keys).await {
            Ok(kept) => {
                kept.iter().any(|(snapshot, root)| *root == self.root.id && *snapshot == self.snapshot)
            }
            Err(OpenError::Deleting | OpenError::Store(store::Error::NotFound { .. })) => false,
            Err(error) => return Err(error),
        };
        if !is_kept {
            self.is_deleted.store(true, Ordering::Relaxed);
        }
        Ok(is_kept)
    }

    /// Whether it is known that the snapshot was deleted. [`SnapshotDisk::is_kept`] asks the store.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.is_deleted.load(Ordering::Relaxed)
    }

    /// Fails once it is known that the snapshot was deleted.
    pub(super) fn check_kept(&self) -> Result<(), Error> {
        match self.is_deleted() {
            true => Err(Error::Stopped(format!("snapshot {} was deleted", self.snapshot.name))),
            false => Ok(()),
        }
    }

    /// Returns the bytes of a command, if they are within the disk.
    pub(super) fn range(&self, offset: u64, length: u64) -> Result<Range<u64>, Error> {
        self.check_kept()?;
        let size = self.size_bytes();
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(offset..end),
            _ => Err(Error::OutOfRange { offset, length, size }),
        }
    }

    fn reader(&self) -> Reader<'_> {
        Reader { env: &self.env, keys: self.keys }
    }

    /// Nothing has changed since the root.
    fn resolved(&self, range: Range<u64>) -> Resolved {
        Resolved { pieces: Vec::new(), uncommitted: 0, base: vec![range], root: Arc::clone(&self.root) }
    }

    /// Returns the cause of a failed read. Objects of a deleted snapshot are no loss.
    pub(super) async fn explained(&self, error: Error) -> Error {
        if error.is_loss() && matches!(self.is_kept().await, Ok(false)) {
            return self.check_kept().err().unwrap_or(error);
        }
        error
    }

    /// Reads `length` bytes at `offset`.
    ///
    /// # Errors
    /// If the range is not within the disk, if the snapshot was deleted, or if any byte cannot be read back
    /// exactly as it was written.
    pub async fn read(self: &Arc<Self>, offset: u64, length: u64) -> Result<Vec<Segment>, Error> {
        let range = self.range(offset, length)?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let ahead = self.read_ahead.lock().note(range.clone(), self.size_bytes(), self.most_ahead_bytes);
        if let Some(ahead) = ahead {
            let this = Arc::clone(self);
            self.tasks.spawn_until_cancelled(async move {
                match this.reader().fetches(this.resolved(ahead)).await {
                    Ok(fetches) => this.env.cache.prefetch(&this.env.store, &fetches).await,
                    Err(error) => tracing::debug!("read-ahead failed: {error}"),
                }
            });
        }
        let _busy = self.metrics.in_flight();
        let begun = Instant::now();
        match self.reader().read_segments(self.resolved(range)).await {
            Ok((segments, source)) => {
                self.metrics.read_duration.of(source).observe(begun.elapsed().as_secs_f64());
                self.metrics.succeeded(Command::Read, length);
                Ok(segments)
            }
            Err(error) => Err(self.explained(error).await),
        }
    }

    /// Loads a range into the cache, up to the cache's capacity.
    ///
    /// # Errors
    /// If the range is not within the disk, if the snapshot was deleted, or if its map cannot be read.
    pub async fn prefetch(&self, offset: u64, length: u64) -> Result<(), Error> {
        let range = self.range(offset, length)?;
        let mut room = self.env.cache.capacity_bytes();
        let mut at = range.start;
        while at < range.end && room > 0 {
            let window = Window::of(&self.root, at..range.end, WINDOW_BYTES.min(room)).range;
            at = window.end;
            let fetches = self.reader().fetches(self.resolved(window)).await?;
            room = room.saturating_sub(fetches.iter().map(|fetch| u64::from(fetch.length)).sum());
            self.env.cache.fetch_ahead(&self.env.store.ahead, &fetches).await;
            tokio::task::yield_now().await;
        }
        self.metrics.succeeded(Command::Cache, length);
        Ok(())
    }

    /// Returns the allocation of a range as at most `limit` extents, with equal neighbours merged. The
    /// extents may end before the range does. Reads no data.
    ///
    /// # Errors
    /// If the range is not within the disk, if the snapshot was deleted, or if its map cannot be read.
    pub async fn allocation(&self, offset: u64, length: u64, limit: usize) -> Result<Vec<Extent>, Error> {
        let range = self.range(offset, length)?;
        let mut extents = Vec::new();
        let mut at = range.start;
        for _ in 0..STATUS_WINDOWS {
            if at == range.end {
                break;
            }
            let window = Window::of(&self.root, at..range.end, WINDOW_BYTES).range;
            at = window.end;
            let parts = match self.reader().allocation_of(self.resolved(window.clone())).await {
                // A client that copies the disk continues after the lost range.
                Err(error) if error.is_loss() => vec![(window, false, false)],
                parts => parts?,
            };
            if Extent::push_all(&mut extents, parts, limit).is_break() {
                break;
            }
            tokio::task::yield_now().await;
        }
        self.metrics
            .succeeded(Command::BlockStatus, extents.iter().map(|extent: &Extent| extent.length).sum());
        Ok(extents)
    }
}

impl Drop for SnapshotDisk {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}
