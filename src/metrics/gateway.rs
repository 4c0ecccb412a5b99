//! Metrics of the gateway as a whole: its limits, its settings, its certificate, and the stored bytes.
//!
//! Must not know settings or volumes. Invariant: a volume that the last census did not find has no stored
//! bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{Gauge, GaugeVec, IntGauge, IntGaugeVec, Registry};

use super::definitions as define;
use super::family::{float_gauges, gauges};

/// The configured limits. They are exported so that alerts and dashboards can divide by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Maximum of changed bytes in memory, for all volumes together.
    pub dirty_bytes: u64,
    /// Maximum of clean bytes in memory, for all volumes together.
    pub clean_bytes: u64,
    /// Maximum number of NBD connections.
    pub connections: u64,
    /// Maximum number of open volumes.
    pub open_volumes: u64,
    /// Maximum number of concurrent requests to the store in each class.
    pub store_requests: u64,
    /// Size of a journal in bytes at which it is folded. Near twice this size, writers wait.
    pub journal_bytes: u64,
    /// Number of journal records at which a journal is folded. Near twice this number, writers wait.
    pub journal_records: u64,
    /// How long a lease is valid after a renewal.
    pub lease_ttl: Duration,
    /// Age at which writes are committed without a request to do so.
    pub commit_age: Duration,
}

/// The result of reading the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The settings are in force, and all configured volumes are open.
    Applied,
    /// The settings are invalid, or a configured volume is not open.
    Failed,
}

/// The metrics of the gateway. Clones share them.
#[derive(Clone, Debug)]
pub struct GatewayMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Mutex<Limits>,
    dirty_bytes: IntGauge,
    clean_bytes: IntGauge,
    connections: IntGauge,
    open_volumes: IntGauge,
    store_requests: IntGauge,
    journal_bytes: IntGauge,
    journal_records: IntGauge,
    lease_ttl: Gauge,
    commit_age: Gauge,
    snapshot_interval: Gauge,
    reload_successful: IntGauge,
    reload_time: IntGauge,
    certificate_expiry: GaugeVec,
    stored: IntGaugeVec,
    census_time: IntGauge,
    counted: Mutex<BTreeMap<String, u64>>,
}

impl GatewayMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let whole = |definition| gauges(registry, definition).with_label_values::<&str>(&[]);
        let float = |definition| float_gauges(registry, definition).with_label_values::<&str>(&[]);
        Self(Arc::new(Inner {
            limits: Mutex::default(),
            dirty_bytes: whole(&define::LIMIT_DIRTY),
            clean_bytes: whole(&define::LIMIT_CLEAN),
            connections: whole(&define::LIMIT_CONNECTIONS),
            open_volumes: whole(&define::LIMIT_VOLUMES),
            store_requests: whole(&define::LIMIT_STORE_REQUESTS),
            journal_bytes: whole(&define::LIMIT_JOURNAL_BYTES),
            journal_records: whole(&define::LIMIT_JOURNAL_RECORDS),
            lease_ttl: float(&define::LIMIT_LEASE),
            commit_age: float(&define::LIMIT_COMMIT_AGE),
            snapshot_interval: float(&define::SNAPSHOT_INTERVAL),
            reload_successful: whole(&define::RELOAD_SUCCESSFUL),
            reload_time: whole(&define::RELOAD_TIME),
            certificate_expiry: float_gauges(registry, &define::CERTIFICATE_EXPIRY),
            stored: gauges(registry, &define::STORED_BYTES),
            census_time: whole(&define::CENSUS_TIME),
            counted: Mutex::default(),
        }))
    }

    /// Exports the limits that are in force.
    pub fn set_limits(&self, limits: Limits) {
        let inner = &*self.0;
        *inner.limits.lock() = limits;
        for (gauge, bound) in [
            (&inner.dirty_bytes, limits.dirty_bytes),
            (&inner.clean_bytes, limits.clean_bytes),
            (&inner.connections, limits.connections),
            (&inner.open_volumes, limits.open_volumes),
            (&inner.store_requests, limits.store_requests),
            (&inner.journal_bytes, limits.journal_bytes),
            (&inner.journal_records, limits.journal_records),
        ] {
            gauge.set(i64::try_from(bound).unwrap_or(i64::MAX));
        }
        inner.lease_ttl.set(limits.lease_ttl.as_secs_f64());
        inner.commit_age.set(limits.commit_age.as_secs_f64());
    }

    /// Returns the limits that were exported last.
    #[must_use]
    pub fn limits(&self) -> Limits {
        *self.0.limits.lock()
    }

    /// Exports the shortest period of the schedule of snapshots. `None` without a schedule.
    pub fn set_snapshot_interval(&self, interval: Option<Duration>) {
        self.0.snapshot_interval.set(interval.unwrap_or_default().as_secs_f64());
    }

    /// Records when the settings were read, in seconds since 1970, and the result.
    pub fn reloaded(&self, result: Reload, now_seconds: u64) {
        self.0.reload_successful.set(i64::from(result == Reload::Applied));
        self.0.reload_time.set(i64::try_from(now_seconds).unwrap_or(i64::MAX));
    }

    /// Exports when the first certificate of the chain expires, in seconds since 1970. `None` without TLS.
    pub fn set_certificate_expiry(&self, expires_at_seconds: Option<i64>) {
        match expires_at_seconds {
            // A float represents seconds since 1970 exactly for the next 200 million years.
            #[allow(clippy::cast_precision_loss)]
            Some(seconds) => {
                self.0.certificate_expiry.with_label_values::<&str>(&[]).set(seconds as f64);
            }
            None => self.0.certificate_expiry.reset(),
        }
    }

    /// Exports the result of a census: the stored bytes by volume name, and its time in seconds since 1970.
    pub fn set_stored(&self, counted: BTreeMap<String, u64>, now_seconds: u64) {
        let mut before = self.0.counted.lock();
        for gone in before.keys().filter(|name| !counted.contains_key(*name)) {
            // An error means that the child does not exist, which is the desired result.
            drop(self.0.stored.remove_label_values(&[gone]));
        }
        for (name, bytes) in &counted {
            self.0.stored.with_label_values(&[name]).set(i64::try_from(*bytes).unwrap_or(i64::MAX));
        }
        self.0.census_time.set(i64::try_from(now_seconds).unwrap_or(i64::MAX));
        *before = counted;
    }

    /// Returns the result of the last census: the stored bytes by volume name, and its time in seconds since
    /// 1970. `None` before the first census.
    #[must_use]
    pub fn stored(&self) -> Option<(BTreeMap<String, u64>, u64)> {
        let counted = self.0.counted.lock();
        let at = u64::try_from(self.0.census_time.get()).unwrap_or(0);
        (at > 0).then(|| (counted.clone(), at))
    }
}
