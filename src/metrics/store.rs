//! Metrics of the store, shared by all volumes.
//!
//! Knows nothing of what is stored. Invariant: every attempt is counted once, under one outcome.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

use super::definitions as define;
use super::family::{By, counters, gauges, histograms};
use super::labels::{Label, StoreOperation, StoreOutcome};
use super::volume::InFlight;

/// Metrics of the store.
#[derive(Clone, Debug)]
pub struct StoreMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requests: IntCounterVec,
    retries: By<StoreOperation, IntCounter>,
    bytes: By<StoreOperation, IntCounter>,
    duration: By<StoreOperation, Histogram>,
    in_flight: By<StoreOperation, IntGauge>,
    waiting: IntGauge,
}

impl StoreMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let retries = counters(registry, &define::STORE_RETRIES);
        let bytes = counters(registry, &define::STORE_BYTES);
        let duration = histograms(registry, &define::STORE_DURATION);
        let in_flight = gauges(registry, &define::STORE_IN_FLIGHT);
        Self(Arc::new(Inner {
            requests: counters(registry, &define::STORE_REQUESTS),
            retries: By::new(|l: StoreOperation| retries.with_label_values(&[l.as_str()])),
            bytes: By::new(|l: StoreOperation| bytes.with_label_values(&[l.as_str()])),
            duration: By::new(|l: StoreOperation| duration.with_label_values(&[l.as_str()])),
            in_flight: By::new(|l: StoreOperation| in_flight.with_label_values(&[l.as_str()])),
            waiting: gauges(registry, &define::STORE_WAITING).with_label_values::<&str>(&[]),
        }))
    }

    /// Counts a request as sent until the guard is dropped.
    #[must_use]
    pub fn in_flight(&self, operation: StoreOperation) -> InFlight {
        InFlight::new(self.0.in_flight.of(operation).clone())
    }

    /// Counts a request as waiting for its turn until the guard is dropped.
    #[must_use]
    pub fn waiting(&self) -> InFlight {
        InFlight::new(self.0.waiting.clone())
    }

    /// Counts an attempt that ended after `elapsed`; `bytes` are those of a body that arrived.
    pub fn ended(&self, operation: StoreOperation, outcome: StoreOutcome, bytes: u64, elapsed: Duration) {
        self.0.requests.with_label_values(&[operation.as_str(), outcome.as_str()]).inc();
        self.0.bytes.of(operation).inc_by(bytes);
        self.0.duration.of(operation).observe(elapsed.as_secs_f64());
    }

    /// Counts an attempt that repeats a failed one.
    pub fn retried(&self, operation: StoreOperation) {
        self.0.retries.of(operation).inc();
    }

    /// Attempts so far that ended so.
    #[must_use]
    pub fn requests(&self, operation: StoreOperation, outcome: StoreOutcome) -> u64 {
        self.0.requests.with_label_values(&[operation.as_str(), outcome.as_str()]).get()
    }

    /// Attempts so far that repeated a failed one.
    #[must_use]
    pub fn retries(&self, operation: StoreOperation) -> u64 {
        self.0.retries.of(operation).get()
    }
}
