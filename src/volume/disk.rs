//! An open volume: what the layers above see.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use super::error::Error;
use super::fold::FoldHandle;
use super::format::keys::Epoch;
use super::info::Info;
use super::keeper::HeadHandle;
use super::read::ahead::ReadAhead;
use super::read::picture::Picture;
use super::read::{Extent, Segment};
use super::shared::Shared;
use super::state::Status;
use super::write::change::Change;
use crate::metrics::labels::Command;
use crate::mutant::{self, Mutant};

/// A volume that is open for writing. All methods may run concurrently.
#[derive(Debug)]
pub struct Volume {
    shared: Arc<Shared>,
    head: HeadHandle,
    folds: FoldHandle,
    read_ahead: Mutex<ReadAhead>,
    created_at_seconds: u64,
}

/// Of the journal's bounds, the part that is left to a successor: an eighth.
const HANDED_ON: u64 = 8;

/// Where a volume stands, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Blocks of 4 KiB that are dirty and in no commit yet.
    pub dirty_blocks: usize,
    /// Commits on their way.
    pub commits_in_flight: usize,
    /// Bytes of records that no checkpoint has.
    pub journal_bytes: u64,
    /// Records that no checkpoint has.
    pub journal_records: u64,
    /// What bounds the journal: the bytes of these records and what their changes take of memory, and the
    /// same at most of those that are on their way or still to be made.
    pub journal_weight_bytes: u64,
    /// Checkpoints published since the opening.
    pub checkpoints: u64,
}

impl Volume {
    pub(super) fn new(
        shared: Arc<Shared>,
        head: HeadHandle,
        folds: FoldHandle,
        created_at_seconds: u64,
    ) -> Self {
        let read_ahead = Mutex::new(ReadAhead::new(shared.options.read_ahead_bytes));
        Self { shared, head, folds, read_ahead, created_at_seconds }
    }

    /// The volume's uuid.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.shared.keys.volume()
    }

    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes
    }

    /// What [`catalog::info`](super::catalog::info) finds in the store of a volume of that name; from memory.
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
        }
    }

    /// Our epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// Whether the volume serves, and if not, why.
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

    /// Waits until the volume stops by itself; gives the reason.
    pub async fn stopped(&self) -> String {
        self.shared.progress.wait(|now| now.stopped.then_some(())).await;
        match self.status() {
            Status::Stopped(why) => why,
            Status::Serving | Status::Draining => unreachable!("progress says stopped after the status does"),
        }
    }

    /// Where the volume stands.
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
    /// If the range is not within the volume, the volume stopped, or any byte cannot be had as it was
    /// written.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Vec<Segment>, Error> {
        let range = self.range(offset, length)?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let ahead = self.read_ahead.lock().note(range.clone(), self.size_bytes());
        if let Some(ahead) = ahead {
            let shared = Arc::clone(&self.shared);
            self.shared.tasks.spawn_until_cancelled(async move {
                if let Err(error) = shared.read_ahead(ahead).await {
                    tracing::debug!("read-ahead failed: {error}");
                }
            });
        }
        let _busy = self.shared.metrics.in_flight();
        let segments = self.shared.read(range).await?;
        self.shared.metrics.succeeded(Command::Read, length);
        Ok(segments)
    }

    /// Writes `data` at `offset`; with `fua`, returns when it is durable.
    ///
    /// # Errors
    /// If the range is not within the volume, the volume stopped, or the store's deadline passed. Without
    /// `fua`, nothing of `data` was written then.
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Error> {
        let range = self.range(offset, data.len() as u64)?;
        let length = range.end - range.start;
        let _busy = self.shared.metrics.in_flight();
        if !range.is_empty() {
            self.timed(Change::write(offset, data)).await?;
        }
        if fua {
            self.durable().await?;
        }
        self.shared.metrics.succeeded(Command::Write, length);
        Ok(())
    }

    async fn timed(&self, change: Change) -> Result<(), Error> {
        let begun = Instant::now();
        self.shared.change(change).await?;
        self.shared.metrics.write_duration.observe(begun.elapsed().as_secs_f64());
        Ok(())
    }

    async fn durable(&self) -> Result<(), Error> {
        let begun = Instant::now();
        self.shared.flush().await?;
        self.shared.metrics.flush_duration.observe(begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Zeroes a range; with `hole` it is then unallocated; with `fua`, returns when that is durable.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub async fn zero(&self, offset: u64, length: u64, hole: bool, fua: bool) -> Result<(), Error> {
        let range = self.range(offset, length)?;
        let _busy = self.shared.metrics.in_flight();
        if !range.is_empty() {
            self.timed(Change::zero(range, hole)).await?;
        }
        if fua {
            self.durable().await?;
        }
        let command = if hole { Command::Trim } else { Command::WriteZeroes };
        self.shared.metrics.succeeded(command, length);
        Ok(())
    }

    /// Returns when every change that was answered before the call is durable: in the object store, where it
    /// survives the loss of this process and this machine.
    ///
    /// # Errors
    /// If the volume stopped, or the store's deadline passed; what was written stays dirty and is sent on.
    pub async fn flush(&self) -> Result<(), Error> {
        let _busy = self.shared.metrics.in_flight();
        self.durable().await?;
        self.shared.metrics.succeeded(Command::Flush, 0);
        Ok(())
    }

    /// Brings a range into the cache, as far as that holds it; other work in the store goes first. May be
    /// dropped at any time.
    ///
    /// # Errors
    /// If the range is not within the volume, or its map cannot be read.
    pub async fn prefetch(&self, offset: u64, length: u64) -> Result<(), Error> {
        let range = self.range(offset, length)?;
        self.shared.check_serving()?;
        if !range.is_empty() {
            self.shared.prefetch(range).await?;
        }
        self.shared.metrics.succeeded(Command::Cache, length);
        Ok(())
    }

    /// Allocation of a range: at most `limit` extents, adjacent ones alike merged; may end before the range
    /// does. Touches no data.
    ///
    /// # Errors
    /// If the range is not within the volume, the volume stopped, or its map cannot be read.
    pub async fn allocation(&self, offset: u64, length: u64, limit: usize) -> Result<Vec<Extent>, Error> {
        let range = self.range(offset, length)?;
        self.shared.check_serving()?;
        let extents = self.shared.allocation(range, limit).await?;
        self.shared.metrics.succeeded(Command::BlockStatus, extents.iter().map(|extent| extent.length).sum());
        Ok(extents)
    }

    /// The disk in at most `cells` equal parts, for people. Touches no data.
    ///
    /// # Errors
    /// If the volume stopped, or its map cannot be read.
    pub async fn picture(&self, cells: u64) -> Result<Picture, Error> {
        self.shared.check_serving()?;
        self.shared.picture(cells).await
    }

    /// Commits, and folds every commit into a new root.
    ///
    /// # Errors
    /// If the volume stopped.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        self.shared.flush().await?;
        self.folds.fold(&self.shared).await
    }

    /// Closes the volume: refuses new changes, commits, checkpoints, releases the lease. The next opening
    /// waits for nothing and replays nothing.
    ///
    /// # Errors
    /// If the volume stopped, or the store's deadline passed; it can then be called again, or the volume
    /// dropped.
    pub async fn close(&self) -> Result<(), Error> {
        self.refuse_changes();
        if !mutant::is(Mutant::ClosedUncommitted) {
            self.checkpoint().await?;
        }
        self.head.release(&self.shared, self.folds.is_unswept()).await?;
        self.shared.retire("the volume is closed".to_owned());
        self.shared.tasks.shutdown().await;
        Ok(())
    }

    /// Closes the volume for a successor that waits for it: as [`Volume::close`], but leaves a short journal
    /// for the successor to replay, which takes less time than to fold it. Call [`Volume::checkpoint`]
    /// shortly before, so that it is short.
    ///
    /// # Errors
    /// As [`Volume::close`].
    pub async fn hand_on(&self) -> Result<(), Error> {
        self.refuse_changes();
        if !mutant::is(Mutant::ClosedUncommitted) {
            self.shared.flush().await?;
        }
        let usage = self.usage();
        let options = &self.shared.options;
        let is_short = usage.journal_bytes <= options.journal_max_bytes / HANDED_ON
            && usage.journal_records <= options.journal_max_records.div_ceil(HANDED_ON);
        if !is_short {
            return self.close().await;
        }
        self.folds.rest().await;
        let superseded = !self.shared.state.lock().committed.superseded.is_empty();
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

    /// Ends all tasks without committing anything, as a crash would; for embedders that lost the volume.
    pub async fn abandon(&self) {
        self.shared.retire("the volume was abandoned".to_owned());
        self.shared.tasks.shutdown().await;
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // The tasks share the state, so that only this ends them.
        self.shared.retire("the volume is closed".to_owned());
        self.shared.tasks.token().cancel();
        self.shared.env.cache.forget(self.id());
    }
}
