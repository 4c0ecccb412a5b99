//! An open volume, the interface for the layers above.
//!
//! Owns the checks of ranges, the metrics of commands, and the order of closing. It does not know NBD:
//! offsets, lengths and errors are the volume's own. Invariant: once closing has begun, no new change is
//! accepted, so that everything answered before is in the last commit.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use super::clones;
use super::collect::Collector;
use super::environment::Environment;
use super::error::{Error, ResizeError, SnapshotError};
use super::flatten::{Flattened, Flattening};
use super::fold::FoldHandle;
use super::fold::snapshots::MAX_SNAPSHOTS;
use super::format::geometry::Geometry;
use super::format::head::Names;
use super::format::keys::{Epoch, is_valid_name};
use super::format::root::Root;
use super::format::snapshot::Snapshot;
use super::info::Info;
use super::keeper::HeadHandle;
use super::options::Options;
use super::pins::{Look, Pins};
use super::read::ahead::ReadAhead;
use super::read::picture::{self, Picture};
use super::read::{self, Extent, Segment};
use super::shared::Shared;
use super::state::{Status, Usage};
use super::warming::{self, Warm, Warmed, Warming};
use super::write::change::{self, Change};
use super::write::resize::{self, Shrink};
use super::write::{commit, snapshot};
use crate::effect::{Durability, Zeroing};
use crate::metrics::labels::Command;
use crate::mutant::{self, Mutant};

/// A volume that is open for writing. All methods may run concurrently.
#[derive(Debug)]
pub struct Volume {
    shared: Arc<Shared>,
    head: HeadHandle,
    folds: FoldHandle,
    read_ahead: Mutex<ReadAhead>,
    /// Held while a snapshot gets its name, so that no two get the same.
    naming: tokio::sync::Mutex<()>,
    pins: Pins,
    flattening: Flattening,
    /// The names that may be bound to the volume. A new one is noted before it is recorded in the head.
    names: Mutex<Names>,
    created_at_seconds: u64,
    warming: Warming,
}

/// Divisor of the journal's limits: [`Volume::hand_on`] leaves at most an eighth of them for the successor to
/// replay.
const HANDED_ON: u64 = 8;

impl Volume {
    pub(super) fn new(
        shared: Arc<Shared>,
        head: HeadHandle,
        folds: FoldHandle,
        names: Names,
        created_at_seconds: u64,
    ) -> Self {
        let read_ahead = Mutex::new(ReadAhead::default());
        let (naming, names, pins) = (tokio::sync::Mutex::new(()), Mutex::new(names), Pins::default());
        let (flattening, warming) = (Flattening::default(), Warming::begin(&shared));
        Self { shared, head, folds, read_ahead, naming, pins, flattening, names, created_at_seconds, warming }
    }

    /// The UUID of the volume, which never changes.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.shared.keys.volume()
    }

    /// The name of the volume. If it was opened by its id, another name may be bound to it too, because a
    /// renaming was cut short.
    #[must_use]
    pub fn name(&self) -> String {
        self.names.lock().current.clone()
    }

    /// The names that may be bound to the volume.
    pub(super) fn names(&self) -> Names {
        self.names.lock().clone()
    }

    /// Notes the names of the volume and records them in the head. Returns once that is durable, which proves
    /// that the volume was still held after the call began.
    pub(super) async fn record_names(&self, names: Names) -> Result<(), Error> {
        *self.names.lock() = names.clone();
        self.head.record_names(&self.shared, names).await
    }

    /// What this volume shares with all others of the process.
    pub(super) fn environment(&self) -> &Environment {
        &self.shared.env
    }

    /// The root of the last checkpoint.
    pub(super) fn root(&self) -> Arc<Root> {
        Arc::clone(&self.shared.state.lock().root)
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.shared.state.lock().size_bytes
    }

    /// Description of the volume under the given name. It is the same that
    /// [`catalog::info`](super::catalog::info) reads from the store, but comes from memory.
    #[must_use]
    pub fn info(&self, name: &str) -> Info {
        Info {
            name: name.to_owned(),
            volume: self.id(),
            size_bytes: self.size_bytes(),
            chunk_bytes: self.shared.geometry.chunk_bytes(),
            created_at_seconds: self.created_at_seconds,
            epoch: self.epoch(),
            holder: Some(self.shared.options.holder_name.clone()),
            clone_of: self.origins().first().copied(),
        }
    }

    /// The epoch under which this gateway opened the volume.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// Whether the volume serves requests, and if not, why.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.state.lock().status.clone()
    }

    /// Whether the volume stopped because another gateway has taken it over.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        let progress = *self.shared.progress.borrow();
        progress.stopped && progress.fenced
    }

    /// Waits until the volume stops by itself, and returns the reason.
    pub async fn stopped(&self) -> String {
        self.shared.progress.wait(|now| now.stopped.then_some(())).await;
        match self.status() {
            Status::Stopped(why) => why,
            Status::Serving | Status::Draining => unreachable!("progress says stopped after the status does"),
        }
    }

    /// Returns the current amounts of dirty and unfolded data.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let checkpoints = self.shared.progress.borrow().checkpoints;
        let state = self.shared.state.lock();
        let (journal_bytes, journal_records) = state.journal();
        Usage {
            dirty_blocks: state.dirty.block_count(),
            commits_in_flight: state.in_flight.len(),
            journal_bytes,
            journal_records,
            journal_weight_bytes: state.journal_weight() + state.coming_weight(self.shared.geometry),
            checkpoints,
        }
    }

    fn range(&self, offset: u64, length: u64) -> Result<Range<u64>, Error> {
        let size = self.size_bytes();
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(offset..end),
            _ => Err(Error::OutOfRange { offset, length, size }),
        }
    }

    /// Reads `length` bytes at `offset`.
    ///
    /// # Errors
    /// If the range is not within the volume, if the volume stopped, or if any byte cannot be read back
    /// exactly as it was written.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Vec<Segment>, Error> {
        let range = self.range(offset, length)?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let most = self.shared.options.read_ahead_bytes.min(self.shared.env.cache.most_ahead_bytes());
        let ahead = self.read_ahead.lock().note(range.clone(), self.size_bytes(), most);
        if let Some(ahead) = ahead {
            let shared = Arc::clone(&self.shared);
            self.shared.tasks.spawn_until_cancelled(async move {
                if let Err(error) = read::read_ahead(&shared, ahead).await {
                    tracing::debug!("read-ahead failed: {error}");
                }
            });
        }
        let _busy = self.shared.metrics.in_flight();
        let segments = read::read_range(&self.shared, range).await?;
        self.warming.note(offset, &segments);
        self.shared.metrics.succeeded(Command::Read, length);
        Ok(segments)
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// If the range is not within the volume, if the volume stopped, or if the store's deadline passed.
    /// If the write is volatile, an error means that nothing of `data` was written.
    pub async fn write(&self, offset: u64, data: Bytes, durability: Durability) -> Result<(), Error> {
        let range = self.range(offset, data.len() as u64)?;
        let length = range.end - range.start;
        let _busy = self.shared.metrics.in_flight();
        if !range.is_empty() {
            self.timed(Change::write(offset, data)).await?;
        }
        if durability == Durability::Durable {
            self.durable().await?;
        }
        self.shared.metrics.succeeded(Command::Write, length);
        Ok(())
    }

    async fn timed(&self, change: Change) -> Result<(), Error> {
        let begun = Instant::now();
        change::apply(&self.shared, change).await?;
        self.shared.metrics.write_duration.observe(begun.elapsed().as_secs_f64());
        Ok(())
    }

    async fn durable(&self) -> Result<(), Error> {
        let begun = Instant::now();
        commit::flush(&self.shared).await?;
        self.shared.metrics.flush_duration.observe(begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Zeroes a range.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub async fn zero(
        &self,
        offset: u64,
        length: u64,
        zeroing: Zeroing,
        durability: Durability,
    ) -> Result<(), Error> {
        let range = self.range(offset, length)?;
        let _busy = self.shared.metrics.in_flight();
        if !range.is_empty() {
            self.timed(Change::zero(range, zeroing == Zeroing::Deallocate)).await?;
        }
        if durability == Durability::Durable {
            self.durable().await?;
        }
        let command = match zeroing {
            Zeroing::Deallocate => Command::Trim,
            Zeroing::Allocate => Command::WriteZeroes,
        };
        self.shared.metrics.succeeded(command, length);
        Ok(())
    }

    /// Returns when every change that was answered before the call is durable: in the object store, where it
    /// survives the loss of this process and this machine.
    ///
    /// # Errors
    /// If the volume stopped, or if the store's deadline passed. The written data then stays dirty, and Cairn
    /// keeps trying to send it.
    pub async fn flush(&self) -> Result<(), Error> {
        let _busy = self.shared.metrics.in_flight();
        self.durable().await?;
        self.shared.metrics.succeeded(Command::Flush, 0);
        Ok(())
    }

    /// Loads a range into the cache, up to the cache's capacity. Other requests to the store take precedence.
    /// The future may be dropped at any time.
    ///
    /// # Errors
    /// If the range is not within the volume, or its map cannot be read.
    pub async fn prefetch(&self, offset: u64, length: u64) -> Result<(), Error> {
        let range = self.range(offset, length)?;
        self.shared.check_serving()?;
        if !range.is_empty() {
            read::prefetch(&self.shared, range).await?;
        }
        self.shared.metrics.succeeded(Command::Cache, length);
        Ok(())
    }

    /// Loads blocks into the cache before anybody asks for them, up to half of its capacity. Returns `None`
    /// if nothing says which. Other requests to the store take precedence. The future may be dropped at any
    /// time.
    ///
    /// # Errors
    /// If the volume stopped, or if its map or the record cannot be read.
    pub async fn warm(&self, what: Warm) -> Result<Option<Warmed>, Error> {
        warming::warm(&self.shared, what).await
    }

    /// Returns the allocation of a range as at most `limit` extents, with equal neighbours merged. The
    /// extents may end before the range does. Reads no data.
    ///
    /// # Errors
    /// If the range is not within the volume, the volume stopped, or its map cannot be read.
    pub async fn allocation(&self, offset: u64, length: u64, limit: usize) -> Result<Vec<Extent>, Error> {
        let range = self.range(offset, length)?;
        self.shared.check_serving()?;
        let extents = read::allocation(&self.shared, range, limit).await?;
        self.shared.metrics.succeeded(Command::BlockStatus, extents.iter().map(|extent| extent.length).sum());
        Ok(extents)
    }

    /// Summarizes the disk in at most `cells` equal parts, for display to people. Reads no data.
    ///
    /// # Errors
    /// If the volume stopped, or its map cannot be read.
    pub async fn picture(&self, cells: u64) -> Result<Picture, Error> {
        self.shared.check_serving()?;
        picture::take(&self.shared, cells).await
    }

    /// Takes a snapshot of the volume as it is at one instant during the call. It contains every change that
    /// was answered before the call. Clients are not paused. Returns once the snapshot has a root of its own,
    /// so that other gateways can read it. If the call fails after that instant, for example because the
    /// deadline passed, the snapshot may exist nevertheless.
    ///
    /// # Errors
    /// If the name is not valid or used already, if the volume has too many snapshots, if the volume stopped,
    /// or if the store's deadline passed.
    pub async fn snapshot(&self, name: &str) -> Result<Snapshot, SnapshotError> {
        if !is_valid_name(name) {
            return Err(SnapshotError::BadName(name.to_owned()));
        }
        let taken_at_seconds = (self.shared.env.wall_clock)();
        let snapshot = Snapshot { name: name.to_owned(), taken_at_seconds };
        let n = {
            let _naming = self.shared.within_deadline(self.naming.lock()).await?;
            self.shared.check_serving()?;
            self.check_name(name)?;
            snapshot::take(&self.shared, snapshot.clone()).await?
        };
        if mutant::is(Mutant::SnapshotAnsweredEarly) {
            return Ok(snapshot);
        }
        self.shared.wait(|progress| progress.is_in_bucket(n)).await?;
        self.folds.fold_closed(&self.shared).await?;
        tracing::info!(volume = %self.id(), snapshot = name, "took a snapshot");
        Ok(snapshot)
    }

    /// Changes the size of the disk at one instant during the call. A larger disk reads as zeros beyond its
    /// old end. A smaller one discards what is beyond its new end, for good. Clients are not paused. Commands
    /// beyond the new end fail from that instant on. Returns once a root has the new size, so that everyone
    /// who looks the volume up in the store sees it. If the call fails after that instant, for example
    /// because the deadline passed, the disk may have the new size nevertheless.
    ///
    /// # Errors
    /// If the size is not valid, if the disk would become smaller and `shrink` does not allow that, if the
    /// volume stopped, or if the store's deadline passed.
    pub async fn resize(&self, size_bytes: u64, shrink: Shrink) -> Result<(), ResizeError> {
        let n = resize::take(&self.shared, size_bytes, shrink).await?;
        if mutant::is(Mutant::ResizeAnsweredEarly) {
            return Ok(());
        }
        self.shared.wait(|progress| progress.is_in_bucket(n)).await?;
        self.folds.fold_closed(&self.shared).await?;
        tracing::info!(volume = %self.id(), size_bytes, "the volume has this size now");
        Ok(())
    }

    /// Checks that another snapshot may have this name. A snapshot moves from the state to the root table, so
    /// the state is searched first.
    fn check_name(&self, name: &str) -> Result<(), SnapshotError> {
        let (waiting, is_waiting) = {
            let state = self.shared.state.lock();
            (state.waiting_snapshots(), state.has_snapshot(name))
        };
        let kept = self.folds.snapshots();
        let is_used = is_waiting || kept.iter().any(|snapshot| snapshot.name == name);
        if is_used && !mutant::is(Mutant::SnapshotNameUnchecked) {
            return Err(SnapshotError::Exists(name.to_owned()));
        }
        match kept.len() + waiting {
            count if count >= MAX_SNAPSHOTS => Err(SnapshotError::TooMany(count)),
            _ => Ok(()),
        }
    }

    /// The snapshots of the volume, in the order in which they were taken. A snapshot that was taken a moment
    /// ago and has no root yet is left out.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.folds.snapshots()
    }

    /// Deletes a snapshot. Its objects are deleted after the grace period, as far as nothing else references
    /// them. Returns once the volume no longer keeps it.
    ///
    /// # Errors
    /// If there is no such snapshot, if a clone needs it, if the volume stopped, or if the store failed.
    pub async fn delete_snapshot(&self, name: &str) -> Result<(), SnapshotError> {
        match self.delete_unpinned(name).await? {
            Ok(()) => Ok(()),
            Err(clones) => {
                let clones = clones::mention(&self.shared.env, &clones).await;
                Err(SnapshotError::Pinned { name: name.to_owned(), clones })
            }
        }
    }

    /// As [`Volume::delete_snapshot`], but does not look up what clones that need the snapshot are called:
    /// returns their ids.
    ///
    /// # Errors
    /// If there is no such snapshot, if the volume stopped, or if the store failed.
    pub async fn delete_unpinned(&self, name: &str) -> Result<Result<(), Vec<Uuid>>, SnapshotError> {
        let delete = || self.folds.delete_snapshot(&self.shared, name);
        self.pins.unless_needed(&self.shared, &self.folds, Look::UntilAlive, delete).await
    }

    /// Whether clones keep a snapshot, as far as the volume knows. Clones may have been deleted since.
    #[must_use]
    pub fn is_pinned(&self, name: &str) -> bool {
        self.folds.is_pinned(name)
    }

    /// Keeps the root of a snapshot for a clone, whose identity exists already. Returns that root once the
    /// head says that it is kept.
    ///
    /// # Errors
    /// If there is no such snapshot, if it has too many clones, if its root is lost, if the volume stopped,
    /// or if the store failed.
    pub(super) async fn pin(&self, name: &str, clone: Uuid) -> Result<Root, SnapshotError> {
        let pin = || self.folds.pin(&self.shared, name, clone);
        let pinned = self.pins.unless_needed(&self.shared, &self.folds, Look::AtAll, pin).await?;
        pinned.map_err(|clones| SnapshotError::TooManyClones { name: name.to_owned(), count: clones.len() })
    }

    /// Rewrites what a clone shares with other volumes into objects of its own, while clients use it, so that
    /// it needs them no more. The work goes on if the call is dropped.
    ///
    /// # Errors
    /// If the volume stopped, or if the store failed. What is done stays done.
    pub async fn flatten(&self) -> Result<Flattened, Error> {
        self.flattening.run(&self.shared, &self.folds).await
    }

    /// What an operator has set.
    pub(super) fn options(&self) -> &Options {
        &self.shared.options
    }

    /// What deletes the garbage of the volume.
    pub(super) fn collector(&self) -> Collector {
        self.folds.collector(&self.shared)
    }

    /// How the volume is divided into chunks.
    pub(super) fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    /// The other volumes whose objects the volume may read: none unless it is a clone.
    pub(super) fn origins(&self) -> Vec<Uuid> {
        self.shared.state.lock().root.origins.clone()
    }

    /// Makes the volume what it was at a snapshot, and closes it: the next opening has the old content. What
    /// was written since then is gone, unless another snapshot has it. The caller ensures that no client uses
    /// the volume. The volume is closed even if the call fails, unless it has no snapshot of this name.
    ///
    /// # Errors
    /// If there is no such snapshot, if its root is lost, if the volume stopped, or if the store failed.
    pub async fn restore(&self, name: &str) -> Result<(), SnapshotError> {
        self.shared.check_serving()?;
        if !self.folds.snapshots().iter().any(|snapshot| snapshot.name == name) {
            return Err(SnapshotError::NoSuchSnapshot(name.to_owned()));
        }
        self.refuse_changes();
        let restored = match commit::into_bucket(&self.shared).await {
            Ok(()) => self.folds.restore(&self.shared, name).await,
            Err(error) => Err(error.into()),
        };
        self.close().await?;
        restored
    }

    /// Commits all changes, folds every commit into a new root, and publishes it.
    ///
    /// # Errors
    /// If the volume stopped.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        commit::into_bucket(&self.shared).await?;
        self.folds.fold(&self.shared).await
    }

    /// Makes a checkpoint and moves all blocks from packs back to chunk objects, so that sequential reads
    /// need few requests. It takes several checkpoints, and writes the chunks that have blocks in packs
    /// once more. Blocks that clients write meanwhile may remain in packs.
    ///
    /// # Errors
    /// If the volume stopped.
    pub async fn consolidate(&self) -> Result<(), Error> {
        commit::into_bucket(&self.shared).await?;
        self.folds.consolidate(&self.shared).await
    }

    /// Closes the volume: refuses new changes, commits, publishes a checkpoint, and releases the lease. The
    /// next opening has no lease to wait for and no journal to replay.
    ///
    /// # Errors
    /// If the volume stopped, or if the store's deadline passed. The call can then be repeated, or the volume
    /// dropped.
    pub async fn close(&self) -> Result<(), Error> {
        self.refuse_changes();
        if !mutant::is(Mutant::ClosedUncommitted) {
            self.checkpoint().await?;
        }
        self.warming.store(&self.shared).await;
        self.head.release(&self.shared, self.folds.is_unswept()).await?;
        self.shared.retire("the volume is closed".to_owned());
        self.shared.tasks.shutdown().await;
        Ok(())
    }

    /// Closes the volume for a successor that is waiting for it. Like [`Volume::close`], but a short journal
    /// is left for the successor to replay, which takes less time than folding it. Call
    /// [`Volume::checkpoint`] shortly before, so that the journal is short.
    ///
    /// # Errors
    /// As [`Volume::close`].
    pub async fn hand_on(&self) -> Result<(), Error> {
        self.refuse_changes();
        if !mutant::is(Mutant::ClosedUncommitted) {
            commit::into_bucket(&self.shared).await?;
        }
        let usage = self.usage();
        let options = &self.shared.options;
        let is_short = usage.journal_bytes <= options.journal_max_bytes / HANDED_ON
            && usage.journal_records <= options.journal_max_records.div_ceil(HANDED_ON);
        if !is_short {
            return self.close().await;
        }
        self.folds.rest().await;
        let superseded = self.shared.state.lock().unfolded().any(|segment| !segment.superseded.is_empty());
        let unswept = self.folds.is_unswept() || (superseded && !mutant::is(Mutant::SupersededUnreported));
        self.head.release(&self.shared, unswept).await?;
        self.shared.retire("the volume is closed".to_owned());
        self.shared.tasks.shutdown().await;
        Ok(())
    }

    fn refuse_changes(&self) {
        let mut state = self.shared.state.lock();
        if state.status == Status::Serving {
            state.status = Status::Draining;
        }
        self.head.hurry();
    }

    /// Ends all tasks without committing anything, as a crash would. For embedders that have lost the volume.
    pub async fn abandon(&self) {
        self.shared.retire("the volume was abandoned".to_owned());
        self.shared.tasks.shutdown().await;
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // The tasks hold the shared state too, so dropping the volume alone would not end them.
        self.shared.retire("the volume is closed".to_owned());
        self.shared.tasks.token().cancel();
        self.shared.env.cache.forget(self.id());
    }
}
