//! What the parts of an open volume share: state, store, cache, budget, progress.
//!
//! Must not know how the parts work. A field is here only if several parts use it, and a method only if
//! several parts call it; what one part does is in that part's folder.
//!
//! Invariants: the lock of the state is never held across an await. `progress` only grows. A volume that has
//! stopped stays stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::environment::Environment;
use super::error::Error;
use super::format::geometry::{BLOCK_BYTES, Geometry};
use super::format::keys::{Epoch, Keys, ObjectId};
use super::format::root::Root;
use super::held::{HeldHead, Unheld};
use super::options::Options;
use super::signal::Signal;
use super::state::{State, Status};
use crate::buffers::Buffers;
use crate::metrics::VolumeMetrics;
use crate::metrics::labels::Share;
use crate::mutant::{self, Mutant};
use crate::store;
use crate::task::Tasks;

/// How far an open volume has come. Tasks wait on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Every commit of our epoch up to this slot number is durable. Commits become durable only in the
    /// bucket, so this one number answers both `answers_flush` and `is_in_bucket`. Whoever waits asks one of
    /// these, and never the number.
    pub durable_n: u64,
    /// Number of checkpoints published since the volume was opened.
    pub checkpoints: u64,
    /// Whether the volume has stopped.
    pub stopped: bool,
    /// Whether it stopped because another gateway took it over.
    pub fenced: bool,
}

impl Progress {
    /// Whether the commits of our epoch up to slot number `n` are as durable as the answer to a FLUSH
    /// promises.
    pub(super) fn answers_flush(&self, n: u64) -> bool {
        self.durable_n >= n
    }

    /// Whether the commits of our epoch up to slot number `n` are in the bucket, where every gateway finds
    /// them. A fold, a snapshot, a new size and the release of the volume need that.
    pub(super) fn is_in_bucket(&self, n: u64) -> bool {
        self.durable_n >= n
    }
}

/// What the parts of an open volume share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The store, the cache and the budget. Every part needs one of them, and other volumes use them too.
    pub(super) env: Environment,
    /// What an operator can set. Writes, commits and folds obey the same limits of the journal. Folds and the
    /// head keeper find their intervals here.
    pub(super) options: Options,
    /// Every part counts what it does.
    pub(super) metrics: VolumeMetrics,
    /// Names the objects that writes, folds and the collector create and delete, and that reads fetch.
    pub(super) keys: Keys,
    /// Divides the volume for reads, writes and folds alike.
    pub(super) geometry: Geometry,
    /// Our epoch. It is in the slots of commits and in every object id, and the collector compares it with
    /// the head's.
    pub(super) epoch: Epoch,
    /// All layers, behind one lock: writes, commits and folds move changes from one layer to the next, and a
    /// read must find each change in exactly one.
    pub(super) state: Mutex<State>,
    /// How far the commits and folds have come. Commands wait for it.
    pub(super) progress: Signal<Progress>,
    /// Wakes the committer, which cuts and sends commits: a write, a flush, a snapshot or a new size
    /// needs one, or the volume has stopped.
    pub(super) commit_wake: Notify,
    /// Wakes the folder: a write waits for room in the journal, a commit has filled it, a snapshot or a
    /// new size needs a root, or the volume has stopped.
    pub(super) fold_wake: Notify,
    /// The tasks of all parts. They end together.
    pub(super) tasks: Tasks,
    /// When our lease expires, according to the answers that the head keeper got. A strict volume serves no
    /// command from then on.
    lease_ends_at: Mutex<Instant>,
    /// Number of the next object id of this epoch. Writes and folds take their ids from the same sequence.
    next_k: AtomicU64,
}

impl Shared {
    pub(super) fn new(
        env: Environment,
        options: Options,
        keys: Keys,
        geometry: Geometry,
        held: &HeldHead,
        metrics: VolumeMetrics,
        state: State,
    ) -> Self {
        env.cache.count_for(keys.volume(), metrics.clone());
        let durable_n = state.next_n - 1;
        Self {
            env,
            options,
            metrics,
            keys,
            geometry,
            epoch: held.head().epoch,
            state: Mutex::new(state),
            progress: Signal::new(Progress { durable_n, checkpoints: 0, stopped: false, fenced: false }),
            commit_wake: Notify::new(),
            fold_wake: Notify::new(),
            tasks: Tasks::new(),
            lease_ends_at: Mutex::new(held.ends_at()),
            next_k: AtomicU64::new(1),
        }
    }

    /// Returns the buffers for uploads.
    pub(super) fn buffers(&self) -> &Arc<Buffers> {
        self.env.budget.buffers()
    }

    /// Frees the buffers for uploads if nothing is left to upload.
    pub(super) fn rest_buffers(&self) {
        let is_idle = {
            let state = self.state.lock();
            state.dirty.is_empty() && state.in_flight.is_empty() && state.folding.is_none()
        };
        if is_idle {
            self.buffers().rest();
        }
    }

    /// Returns an id that this epoch has not used before.
    pub(super) fn next_id(&self) -> ObjectId {
        ObjectId { epoch: self.epoch, k: self.next_k.fetch_add(1, Ordering::Relaxed) }
    }

    /// Stops the volume because another gateway has taken it over. From then on every command fails, and
    /// nothing is deleted.
    pub(super) fn fence(&self, why: String) {
        self.metrics.fenced.set(1);
        self.progress.update(|progress| progress.fenced |= !progress.stopped);
        self.stop(why);
    }

    /// Stops the volume for a reason that an operator must see. From then on every command fails,
    /// and nothing is deleted.
    pub(super) fn stop(&self, why: String) {
        tracing::error!(volume = %self.keys.volume(), epoch = self.epoch, "volume stopped: {why}");
        self.retire(why);
    }

    /// Stops the volume without a log line. Dirty data is discarded, and its permits are returned, because
    /// other volumes may need them.
    pub(super) fn retire(&self, why: String) {
        let permits = {
            let mut state = self.state.lock();
            if matches!(state.status, Status::Stopped(_)) {
                return;
            }
            state.status = Status::Stopped(why);
            let permits = state.give_up();
            self.gauge(&state);
            permits
        };
        if !mutant::is(Mutant::BudgetKept) {
            self.env.budget.give(permits);
        }
        self.buffers().rest();
        self.progress.update(|progress| progress.stopped = true);
        self.commit_wake.notify_one();
        self.fold_wake.notify_one();
    }

    /// Whether the journal is over its limit.
    pub(super) fn wants_fold(&self, state: &State) -> bool {
        let (bytes, records) = (state.committed.weight(), state.committed.records());
        state.folding.is_none()
            && (bytes >= self.options.journal_max_bytes
                || records >= self.options.journal_max_records
                || state.committed.closed() > 0)
    }

    /// Updates the gauges from the state.
    pub(super) fn gauge(&self, state: &State) {
        let (journal_bytes, journal_records) = state.journal();
        self.gauge_dirty(state);
        self.metrics.size_bytes.set(count(state.size_bytes));
        self.metrics.commits_in_flight.set(count(state.in_flight.len() as u64));
        self.metrics.journal_bytes.set(count(journal_bytes));
        self.metrics.journal_records.set(count(journal_records));
        let index_bytes = state.journal_weight() - journal_bytes;
        self.env.cache.set_journal_index(self.keys.volume(), index_bytes);
    }

    /// Updates the gauges of what a root stores.
    pub(super) fn gauge_root(&self, root: &Root) {
        let overlaid: u64 = root.own_pages().map(|page| u64::from(page.counts.overlaid)).sum();
        let space = root.space();
        self.metrics.packs.set(count(root.packs.len() as u64));
        self.metrics.overlaid_bytes.set(count(overlaid * BLOCK_BYTES));
        self.metrics.data_bytes.of(Share::Live).set(count(space.live * BLOCK_BYTES));
        self.metrics.data_bytes.of(Share::Garbage).set(count((space.stored - space.live) * BLOCK_BYTES));
    }

    /// Updates the gauge of what a flattening has yet to rewrite.
    pub(super) fn gauge_flattening(&self, remaining_bytes: u64) {
        self.metrics.flatten_remaining_bytes.set(count(remaining_bytes));
    }

    /// Updates the gauges that a write changes.
    pub(super) fn gauge_dirty(&self, state: &State) {
        let dirty = state.dirty_permits as u64 * BLOCK_BYTES;
        let on_their_way: u64 =
            state.in_flight.iter().map(|commit| commit.permits as u64 * BLOCK_BYTES).sum();
        let oldest = state.in_flight.front().map(|commit| commit.dirty_since).or(state.dirty_since);
        self.metrics.dirty_bytes.set(count(dirty));
        self.metrics.uncommitted_bytes.set(count(dirty + on_their_way));
        self.metrics.uncommitted_since.set(oldest);
    }

    /// Returns an error if the volume has stopped. Stops a strict volume whose lease has expired: the timer
    /// for this may be late if the machine was suspended.
    pub(super) fn check_serving(&self) -> Result<(), Error> {
        if self.options.lease_strict && !mutant::is(Mutant::LeaseOutlived) && self.is_lease_over() {
            self.stop(Unheld::Over.why());
        }
        match &self.state.lock().status {
            Status::Stopped(why) => Err(Error::Stopped(why.clone())),
            Status::Serving | Status::Draining => Ok(()),
        }
    }

    /// Records when the lease expires, now that it was renewed.
    pub(super) fn renewed_until(&self, ends_at: Instant) {
        *self.lease_ends_at.lock() = ends_at;
    }

    fn is_lease_over(&self) -> bool {
        // A volume that has stopped has no lease.
        let stopped = matches!(self.state.lock().status, Status::Stopped(_));
        !stopped && Instant::now() >= *self.lease_ends_at.lock()
    }

    /// Waits for `waited`, but not longer than the store's deadline, if there is one.
    pub(super) async fn within_deadline<T>(
        &self,
        waited: impl Future<Output = T> + Send,
    ) -> Result<T, Error> {
        let Some(deadline) = self.options.store_deadline else { return Ok(waited.await) };
        let after_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        tokio::time::timeout(deadline, waited).await.map_err(|_| Error::Deadline { after_ms })
    }

    /// Waits for `waited`, but not after the volume has stopped. What a volume that was taken over waits for
    /// may take long: its journal is being deleted.
    pub(super) async fn while_serving<T>(
        &self,
        waited: impl Future<Output = Result<T, store::Error>> + Send,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = self.progress.wait(|now| now.stopped.then_some(())) => {
                self.check_serving()?;
                Err(Error::Stopped("the volume is closed".to_owned()))
            }
            found = waited => Ok(found?),
        }
    }

    /// Waits until `reached` returns `true` for the progress. Returns an error if the volume stops or the
    /// deadline passes first.
    pub(super) async fn wait(&self, reached: impl FnMut(&Progress) -> bool + Send) -> Result<(), Error> {
        let mut reached = reached;
        let waited = self.progress.wait(|now| (now.stopped || reached(now)).then_some(now.stopped));
        let stopped = self.within_deadline(waited).await?;
        if stopped && !mutant::is(Mutant::StopIsSuccess) { self.check_serving() } else { Ok(()) }
    }
}

/// Converts a count for a gauge.
fn count(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
