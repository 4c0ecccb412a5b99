//! Metrics of one volume.
//!
//! Must not know what a volume is. Invariant: the time series of a volume are removed when the last
//! [`VolumeMetrics`] of its name is dropped, and not before.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Registry,
};
use tokio::time::Instant;

use super::definitions as define;
use super::family::{By, Owned, counters, float_counters, float_gauges, gauges, histograms};
use super::labels::{
    Command, Errno, FoldResult, Label, ObjectKind, ReadAhead, ReadSource, Share, Tier, Work,
};

/// The families of the metrics of all volumes.
#[derive(Debug)]
pub(super) struct VolumeFamilies {
    requests: IntCounterVec,
    request_bytes: IntCounterVec,
    request_errors: IntCounterVec,
    requests_in_flight: IntGaugeVec,
    read_duration: HistogramVec,
    write_duration: HistogramVec,
    flush_duration: HistogramVec,
    clients: IntGaugeVec,
    size_bytes: IntGaugeVec,
    dirty_bytes: IntGaugeVec,
    uncommitted_bytes: IntGaugeVec,
    uncommitted_age: GaugeVec,
    write_throttled: CounterVec,
    commits: IntCounterVec,
    commit_bytes: IntCounterVec,
    commits_in_flight: IntGaugeVec,
    commit_group: HistogramVec,
    commit_duration: HistogramVec,
    folds: IntCounterVec,
    fold_duration: HistogramVec,
    checkpoint_time: IntGaugeVec,
    journal_bytes: IntGaugeVec,
    journal_records: IntGaugeVec,
    put_bytes: IntCounterVec,
    data_bytes: IntGaugeVec,
    overlaid_bytes: IntGaugeVec,
    packs: IntGaugeVec,
    background_bytes: IntCounterVec,
    flatten_remaining: IntGaugeVec,
    snapshots: IntGaugeVec,
    snapshot_time: IntGaugeVec,
    snapshot_failures: IntCounterVec,
    cache_hits: IntCounterVec,
    cache_misses: IntCounterVec,
    cache_evictions: IntCounterVec,
    cache_bytes: IntGaugeVec,
    read_ahead: IntCounterVec,
    warmed_bytes: IntCounterVec,
    warm_requests: IntCounterVec,
    lease_remaining: GaugeVec,
    lease_ttl: GaugeVec,
    fenced: IntGaugeVec,
    open: Mutex<BTreeMap<String, Weak<Inner>>>,
}

impl VolumeFamilies {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            requests: counters(registry, &define::REQUESTS),
            request_bytes: counters(registry, &define::REQUEST_BYTES),
            request_errors: counters(registry, &define::REQUEST_ERRORS),
            requests_in_flight: gauges(registry, &define::REQUESTS_IN_FLIGHT),
            read_duration: histograms(registry, &define::READ_DURATION),
            write_duration: histograms(registry, &define::WRITE_DURATION),
            flush_duration: histograms(registry, &define::FLUSH_DURATION),
            clients: gauges(registry, &define::VOLUME_CLIENTS),
            size_bytes: gauges(registry, &define::SIZE_BYTES),
            dirty_bytes: gauges(registry, &define::DIRTY_BYTES),
            uncommitted_bytes: gauges(registry, &define::UNCOMMITTED_BYTES),
            uncommitted_age: float_gauges(registry, &define::UNCOMMITTED_AGE),
            write_throttled: float_counters(registry, &define::WRITE_THROTTLED),
            commits: counters(registry, &define::COMMITS),
            commit_bytes: counters(registry, &define::COMMIT_BYTES),
            commits_in_flight: gauges(registry, &define::COMMITS_IN_FLIGHT),
            commit_group: histograms(registry, &define::COMMIT_GROUP),
            commit_duration: histograms(registry, &define::COMMIT_DURATION),
            folds: counters(registry, &define::FOLDS),
            fold_duration: histograms(registry, &define::FOLD_DURATION),
            checkpoint_time: gauges(registry, &define::CHECKPOINT_TIME),
            journal_bytes: gauges(registry, &define::JOURNAL_BYTES),
            journal_records: gauges(registry, &define::JOURNAL_RECORDS),
            put_bytes: counters(registry, &define::PUT_BYTES),
            data_bytes: gauges(registry, &define::DATA_BYTES),
            overlaid_bytes: gauges(registry, &define::OVERLAID_BYTES),
            packs: gauges(registry, &define::PACKS),
            background_bytes: counters(registry, &define::BACKGROUND_BYTES),
            flatten_remaining: gauges(registry, &define::FLATTEN_REMAINING),
            snapshots: gauges(registry, &define::SNAPSHOTS),
            snapshot_time: gauges(registry, &define::SNAPSHOT_TIME),
            snapshot_failures: counters(registry, &define::SNAPSHOT_FAILURES),
            cache_hits: counters(registry, &define::CACHE_HITS),
            cache_misses: counters(registry, &define::CACHE_MISSES),
            cache_evictions: counters(registry, &define::CACHE_EVICTIONS),
            cache_bytes: gauges(registry, &define::CACHE_BYTES),
            read_ahead: counters(registry, &define::READ_AHEAD),
            warmed_bytes: counters(registry, &define::WARMED),
            warm_requests: counters(registry, &define::WARM_REQUESTS),
            lease_remaining: float_gauges(registry, &define::LEASE_REMAINING),
            lease_ttl: float_gauges(registry, &define::LEASE_TTL),
            fenced: gauges(registry, &define::FENCED),
            open: Mutex::new(BTreeMap::new()),
        }
    }

    /// Returns the metrics of the volume `name`, shared with all existing handles of this name.
    pub(super) fn volume(families: &Arc<Self>, name: &str) -> VolumeMetrics {
        let mut open = families.open.lock();
        if let Some(weak) = open.get(name) {
            if let Some(inner) = weak.upgrade() {
                return VolumeMetrics(inner);
            }
            // The last owner is being dropped and waits for the lock. Its children are removed now. Otherwise
            // they would be handed out again here and then be removed by it.
            Self::owned(families, name).remove();
        }
        let mut owned = Owned::default();
        let handles = families.handles(&mut owned, name);
        let inner = Arc::new(Inner { name: name.to_owned(), handles, owned, families: Arc::clone(families) });
        open.insert(name.to_owned(), Arc::downgrade(&inner));
        VolumeMetrics(inner)
    }

    fn owned(families: &Arc<Self>, name: &str) -> Owned {
        let mut owned = Owned::default();
        drop(families.handles(&mut owned, name));
        owned
    }

    fn handles(&self, owned: &mut Owned, name: &str) -> VolumeHandles {
        for command in Command::ALL {
            for errno in Errno::ALL {
                owned.remove_later(&self.request_errors, &[name, command.as_str(), errno.as_str()]);
            }
        }
        // A snapshot that is open has the other metrics of a volume, but no snapshots.
        owned.remove_later(&self.snapshots, &[name]);
        owned.remove_later(&self.snapshot_time, &[name]);
        VolumeHandles {
            requests: By::new(|l: Command| owned.child(&self.requests, &[name, l.as_str()])),
            request_bytes: By::new(|l: Command| owned.child(&self.request_bytes, &[name, l.as_str()])),
            requests_in_flight: owned.child(&self.requests_in_flight, &[name]),
            read_duration: By::new(|l: ReadSource| owned.child(&self.read_duration, &[name, l.as_str()])),
            write_duration: owned.child(&self.write_duration, &[name]),
            flush_duration: owned.child(&self.flush_duration, &[name]),
            clients: owned.child(&self.clients, &[name]),
            size_bytes: owned.child(&self.size_bytes, &[name]),
            dirty_bytes: owned.child(&self.dirty_bytes, &[name]),
            uncommitted_bytes: owned.child(&self.uncommitted_bytes, &[name]),
            uncommitted_since: Moment::new(owned.child(&self.uncommitted_age, &[name]), Reading::Age),
            write_throttled: Waits::new(owned.child(&self.write_throttled, &[name])),
            commits: owned.child(&self.commits, &[name]),
            commit_bytes: owned.child(&self.commit_bytes, &[name]),
            commits_in_flight: owned.child(&self.commits_in_flight, &[name]),
            commit_group: owned.child(&self.commit_group, &[name]),
            commit_duration: owned.child(&self.commit_duration, &[name]),
            folds: By::new(|l: FoldResult| owned.child(&self.folds, &[name, l.as_str()])),
            fold_duration: owned.child(&self.fold_duration, &[name]),
            checkpoint_time: owned.child(&self.checkpoint_time, &[name]),
            journal_bytes: owned.child(&self.journal_bytes, &[name]),
            journal_records: owned.child(&self.journal_records, &[name]),
            put_bytes: By::new(|l: ObjectKind| owned.child(&self.put_bytes, &[name, l.as_str()])),
            data_bytes: By::new(|l: Share| owned.child(&self.data_bytes, &[name, l.as_str()])),
            overlaid_bytes: owned.child(&self.overlaid_bytes, &[name]),
            packs: owned.child(&self.packs, &[name]),
            background_bytes: By::new(|l: Work| owned.child(&self.background_bytes, &[name, l.as_str()])),
            flatten_remaining_bytes: owned.child(&self.flatten_remaining, &[name]),
            snapshot_failures: owned.child(&self.snapshot_failures, &[name]),
            cache_hits: By::new(|l: Tier| owned.child(&self.cache_hits, &[name, l.as_str()])),
            cache_misses: By::new(|l: Tier| owned.child(&self.cache_misses, &[name, l.as_str()])),
            cache_evictions: By::new(|l: Tier| owned.child(&self.cache_evictions, &[name, l.as_str()])),
            cache_bytes: By::new(|l: Tier| owned.child(&self.cache_bytes, &[name, l.as_str()])),
            read_ahead_bytes: By::new(|l: ReadAhead| owned.child(&self.read_ahead, &[name, l.as_str()])),
            warmed_bytes: owned.child(&self.warmed_bytes, &[name]),
            warm_requests: owned.child(&self.warm_requests, &[name]),
            lease_ends: Moment::new(owned.child(&self.lease_remaining, &[name]), Reading::Remaining),
            lease_ttl: owned.child(&self.lease_ttl, &[name]),
            fenced: owned.child(&self.fenced, &[name]),
        }
    }

    /// Updates the gauges that depend on the time.
    pub(super) fn refresh(&self, now: Instant) {
        let open: Vec<_> = self.open.lock().values().filter_map(Weak::upgrade).collect();
        for inner in open {
            inner.handles.uncommitted_since.refresh(now);
            inner.handles.lease_ends.refresh(now);
            inner.handles.write_throttled.count(now, |waiting| waiting);
        }
    }
}

/// Whether a gauge shows the time since a moment or the time until it.
#[derive(Clone, Copy, Debug)]
enum Reading {
    Age,
    Remaining,
}

impl Reading {
    fn of(self, at: Instant, now: Instant) -> Duration {
        match self {
            Self::Age => now.saturating_duration_since(at),
            Self::Remaining => at.saturating_duration_since(now),
        }
    }
}

/// A gauge of the seconds since or until a moment, computed when metrics are rendered.
#[derive(Debug)]
pub struct Moment {
    gauge: Gauge,
    reading: Reading,
    at: Mutex<Option<Instant>>,
}

impl Moment {
    fn new(gauge: Gauge, reading: Reading) -> Self {
        Self { gauge, reading, at: Mutex::new(None) }
    }

    /// Sets the moment. With `None`, the gauge shows 0.
    pub fn set(&self, at: Option<Instant>) {
        *self.at.lock() = at;
    }

    /// Returns the time since or until the moment, whichever the gauge shows. `None` if no moment is set.
    #[must_use]
    pub fn length(&self) -> Option<Duration> {
        self.at.lock().map(|at| self.reading.of(at, Instant::now()))
    }

    fn refresh(&self, now: Instant) {
        let at = *self.at.lock();
        let length = at.map_or(Duration::ZERO, |at| self.reading.of(at, now));
        self.gauge.set(length.as_secs_f64());
    }
}

/// A counter of the time that callers wait. It grows while they wait, not only afterwards.
#[derive(Debug)]
pub struct Waits {
    seconds: Counter,
    /// Number of callers that wait now, and the time up to which their waiting is counted.
    now: Mutex<(u32, Instant)>,
}

impl Waits {
    fn new(seconds: Counter) -> Self {
        Self { seconds, now: Mutex::new((0, Instant::now())) }
    }

    /// Counts the time from now until the guard is dropped.
    #[must_use]
    pub fn begin(&self) -> Waiting<'_> {
        self.count(Instant::now(), |waiting| waiting + 1);
        Waiting(self)
    }

    /// Returns the seconds counted so far, including those of current waits.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.count(Instant::now(), |waiting| waiting);
        self.seconds.get()
    }

    fn count(&self, at: Instant, change: impl FnOnce(u32) -> u32) {
        let mut now = self.now.lock();
        let (waiting, until) = *now;
        self.seconds.inc_by(at.saturating_duration_since(until).as_secs_f64() * f64::from(waiting));
        *now = (change(waiting), at);
    }
}

/// Counts a caller as waiting until it is dropped.
#[derive(Debug)]
pub struct Waiting<'a>(&'a Waits);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.count(Instant::now(), |waiting| waiting - 1);
    }
}

/// The handles of one volume's metrics. [`definitions`](super::definitions) contains their exact meaning.
#[derive(Debug)]
pub struct VolumeHandles {
    /// Number of commands answered with success.
    pub requests: By<Command, IntCounter>,
    /// Bytes covered by the commands that were answered with success.
    pub request_bytes: By<Command, IntCounter>,
    /// Number of commands in progress.
    pub requests_in_flight: IntGauge,
    /// Duration of READ commands in seconds.
    pub read_duration: By<ReadSource, Histogram>,
    /// Duration of WRITE, TRIM and WRITE_ZEROES commands in seconds.
    pub write_duration: Histogram,
    /// Duration of FLUSH commands, and of flushes caused by FUA, in seconds.
    pub flush_duration: Histogram,
    /// Number of NBD connections that use the volume.
    pub clients: IntGauge,
    /// Size of the disk in bytes.
    pub size_bytes: IntGauge,
    /// Changed bytes in memory that are not part of a commit yet.
    pub dirty_bytes: IntGauge,
    /// Changed bytes that are not durable in the store yet.
    pub uncommitted_bytes: IntGauge,
    /// When the oldest write that is not durable yet was answered.
    pub uncommitted_since: Moment,
    /// Time in seconds that writes waited at a limit.
    pub write_throttled: Waits,
    /// Number of commits made durable.
    pub commits: IntCounter,
    /// Bytes of the commits made durable.
    pub commit_bytes: IntCounter,
    /// Number of commits that are cut but not yet durable.
    pub commits_in_flight: IntGauge,
    /// Number of FLUSH and FUA commands answered by one commit.
    pub commit_group: Histogram,
    /// Time in seconds from the cut of a commit until it is durable.
    pub commit_duration: Histogram,
    /// Number of finished checkpoints.
    pub folds: By<FoldResult, IntCounter>,
    /// Duration of a checkpoint in seconds.
    pub fold_duration: Histogram,
    /// When the last checkpoint was published, in seconds since 1970.
    pub checkpoint_time: IntGauge,
    /// Bytes in the journal that are not folded yet.
    pub journal_bytes: IntGauge,
    /// Number of records in the journal that are not folded yet.
    pub journal_records: IntGauge,
    /// Bytes of objects uploaded.
    pub put_bytes: By<ObjectKind, IntCounter>,
    /// Bytes of blocks in chunk objects and packs.
    pub data_bytes: By<Share, IntGauge>,
    /// Bytes of the disk that overlays locate or zero.
    pub overlaid_bytes: IntGauge,
    /// Number of packs in use.
    pub packs: IntGauge,
    /// Bytes that checkpoints rewrote in addition to what clients wrote.
    pub background_bytes: By<Work, IntCounter>,
    /// Bytes that a flattening has yet to rewrite, at most.
    pub flatten_remaining_bytes: IntGauge,
    /// Number of times that the schedule of snapshots could not be met.
    pub snapshot_failures: IntCounter,
    /// Number of pages found in the cache.
    pub cache_hits: By<Tier, IntCounter>,
    /// Number of pages not found in the cache.
    pub cache_misses: By<Tier, IntCounter>,
    /// Number of pages evicted from the cache.
    pub cache_evictions: By<Tier, IntCounter>,
    /// Bytes held in the cache.
    pub cache_bytes: By<Tier, IntGauge>,
    /// Bytes read ahead, once they are used or dropped.
    pub read_ahead_bytes: By<ReadAhead, IntCounter>,
    /// Bytes loaded because an earlier opening read them first, or on request.
    pub warmed_bytes: IntCounter,
    /// Number of GETs that loaded them.
    pub warm_requests: IntCounter,
    /// When the lease expires.
    pub lease_ends: Moment,
    /// Duration of the lease after a renewal in seconds; 0 while no lease is held.
    pub lease_ttl: Gauge,
    /// 1 once another gateway has taken the volume over, otherwise 0.
    pub fenced: IntGauge,
}

#[derive(Debug)]
struct Inner {
    name: String,
    handles: VolumeHandles,
    owned: Owned,
    families: Arc<VolumeFamilies>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut open = self.families.open.lock();
        // If the entry belongs to a newer instance of the same name, that instance has already removed these
        // children.
        if open.get(&self.name).is_some_and(|weak| std::ptr::eq(weak.as_ptr(), self)) {
            open.remove(&self.name);
            self.owned.remove();
        }
    }
}

/// The metrics of one volume. Clones share them, and so do all handles created for the same name.
#[derive(Clone, Debug)]
pub struct VolumeMetrics(Arc<Inner>);

impl Deref for VolumeMetrics {
    type Target = VolumeHandles;

    fn deref(&self) -> &VolumeHandles {
        &self.0.handles
    }
}

impl VolumeMetrics {
    /// Name of the volume, which is the value of the label `volume`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Counts a command that was answered with success and covered `bytes` bytes.
    pub fn succeeded(&self, command: Command, bytes: u64) {
        self.requests.of(command).inc();
        self.request_bytes.of(command).inc_by(bytes);
    }

    /// Counts a command that was answered with an error.
    pub fn failed(&self, command: Command, errno: Errno) {
        let labels = [self.name(), command.as_str(), errno.as_str()];
        self.0.families.request_errors.with_label_values(&labels).inc();
    }

    /// Exports how many snapshots the volume has, and when the last one was taken, in seconds since 1970: 0
    /// if there is none.
    pub fn set_snapshots(&self, count: usize, last_seconds: u64) {
        let (families, labels) = (&self.0.families, [self.name()]);
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        families.snapshots.with_label_values(&labels).set(count);
        let last = i64::try_from(last_seconds).unwrap_or(i64::MAX);
        families.snapshot_time.with_label_values(&labels).set(last);
    }

    /// Counts a command as in flight until the guard is dropped.
    #[must_use]
    pub fn in_flight(&self) -> InFlight {
        InFlight::new(self.requests_in_flight.clone())
    }
}

/// Keeps a gauge increased by one until it is dropped.
#[derive(Debug)]
pub struct InFlight(IntGauge);

impl InFlight {
    pub(super) fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
