//! Metrics of the store, which all volumes share.
//!
//! Must not know what is stored. Invariant: every attempt is counted once, with one outcome.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, Registry};
use tokio::time::Instant;

use super::definitions as define;
use super::family::{By, counters, float_gauges, gauges, histograms};
use super::labels::{HedgeResult, Label, StoreClass, StoreOperation, StoreOutcome};
use super::volume::InFlight;

/// The metrics of the store. Clones share them.
#[derive(Clone, Debug)]
pub struct StoreMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requests: IntCounterVec,
    retries: By<StoreOperation, IntCounter>,
    hedges: IntCounterVec,
    bytes: By<StoreOperation, IntCounter>,
    duration: By<StoreOperation, Histogram>,
    in_flight: By<StoreOperation, IntGauge>,
    waiting: By<StoreClass, IntGauge>,
    failing: Gauge,
    failing_since: Mutex<Option<Instant>>,
}

impl StoreMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let retries = counters(registry, &define::STORE_RETRIES);
        let hedges = counters(registry, &define::STORE_HEDGES);
        let hedged = [StoreOperation::Get, StoreOperation::Put];
        let pairs = hedged.iter().flat_map(|of| HedgeResult::ALL.iter().map(move |result| (of, result)));
        // Each series exists from the start, so that its first increase is visible.
        for (of, result) in pairs {
            drop(hedges.with_label_values(&[of.as_str(), result.as_str()]));
        }
        let bytes = counters(registry, &define::STORE_BYTES);
        let duration = histograms(registry, &define::STORE_DURATION);
        let waiting = gauges(registry, &define::STORE_WAITING);
        let in_flight = gauges(registry, &define::STORE_IN_FLIGHT);
        Self(Arc::new(Inner {
            requests: counters(registry, &define::STORE_REQUESTS),
            hedges,
            retries: By::new(|l: StoreOperation| retries.with_label_values(&[l.as_str()])),
            bytes: By::new(|l: StoreOperation| bytes.with_label_values(&[l.as_str()])),
            duration: By::new(|l: StoreOperation| duration.with_label_values(&[l.as_str()])),
            in_flight: By::new(|l: StoreOperation| in_flight.with_label_values(&[l.as_str()])),
            waiting: By::new(|l: StoreClass| waiting.with_label_values(&[l.as_str()])),
            failing: float_gauges(registry, &define::STORE_FAILING).with_label_values::<&str>(&[]),
            failing_since: Mutex::default(),
        }))
    }

    /// Counts a request as in flight until the guard is dropped.
    #[must_use]
    pub fn in_flight(&self, operation: StoreOperation) -> InFlight {
        InFlight::new(self.0.in_flight.of(operation).clone())
    }

    /// Counts a request as waiting for the limit of its class until the guard is dropped.
    #[must_use]
    pub fn waiting(&self, class: StoreClass) -> InFlight {
        InFlight::new(self.0.waiting.of(class).clone())
    }

    /// Returns how long ago requests began to fail, or `None` if one has succeeded since.
    #[must_use]
    pub fn failing_for(&self) -> Option<Duration> {
        self.0.failing_since.lock().map(|since| since.elapsed())
    }

    /// Updates the gauge that depends on the current time.
    pub(super) fn refresh(&self) {
        self.0.failing.set(self.failing_for().unwrap_or_default().as_secs_f64());
    }

    /// Counts an attempt that ended after `elapsed`. `bytes` is the length of the body that was transferred.
    pub fn ended(&self, operation: StoreOperation, outcome: StoreOutcome, bytes: u64, elapsed: Duration) {
        self.0.requests.with_label_values(&[operation.as_str(), outcome.as_str()]).inc();
        self.0.bytes.of(operation).inc_by(bytes);
        self.0.duration.of(operation).observe(elapsed.as_secs_f64());
        match outcome {
            StoreOutcome::Ok | StoreOutcome::NotFound | StoreOutcome::PreconditionFailed => {
                *self.0.failing_since.lock() = None;
            }
            // A cancelled request says nothing about the state of the store.
            StoreOutcome::Cancelled => {}
            StoreOutcome::Truncated
            | StoreOutcome::Throttled
            | StoreOutcome::Timeout
            | StoreOutcome::Transient
            | StoreOutcome::Denied
            | StoreOutcome::Rejected => {
                self.0.failing_since.lock().get_or_insert_with(Instant::now);
            }
        }
    }

    /// Counts an attempt that repeats a failed one.
    pub fn retried(&self, operation: StoreOperation) {
        self.0.retries.of(operation).inc();
    }

    /// Counts a second request that was sent, or denied, because the first one was slow.
    pub fn hedged(&self, operation: StoreOperation, result: HedgeResult) {
        self.0.hedges.with_label_values(&[operation.as_str(), result.as_str()]).inc();
    }

    /// Returns how many second requests have had this result so far.
    #[must_use]
    pub fn hedges(&self, operation: StoreOperation, result: HedgeResult) -> u64 {
        self.0.hedges.with_label_values(&[operation.as_str(), result.as_str()]).get()
    }

    /// Returns how many attempts have ended with this outcome so far.
    #[must_use]
    pub fn requests(&self, operation: StoreOperation, outcome: StoreOutcome) -> u64 {
        self.0.requests.with_label_values(&[operation.as_str(), outcome.as_str()]).get()
    }

    /// Returns how many attempts have repeated a failed one so far.
    #[must_use]
    pub fn retries(&self, operation: StoreOperation) -> u64 {
        self.0.retries.of(operation).get()
    }
}
