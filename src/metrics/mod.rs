//! Metrics: typed handles for counting, and the text that scrapers read.
//!
//! [`definitions`] defines every metric; the other files provide the handles. The module must not know the
//! layers that count. Invariant: every exported metric is in [`definitions::ALL`].

pub mod definitions;
mod family;
mod gateway;
pub mod labels;
mod log;
mod open_metrics;
mod server;
mod store;
mod volume;

use std::sync::Arc;

use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder};
use tokio::time::Instant;

pub use definitions::{Definition, Kind};
pub use family::By;
pub use gateway::{GatewayMetrics, Limits, Reload};
pub use labels::{
    Command, Direction, Errno, FoldResult, HandshakeFailure, HedgeResult, Label, LogLoss, ObjectKind,
    ReadAhead, ReadSource, StoreClass, StoreOperation, StoreOutcome, Tier, Transport,
};
pub use log::LogMetrics;
pub use server::ServerMetrics;
pub use store::StoreMetrics;
pub use volume::{InFlight, Moment, VolumeHandles, VolumeMetrics, Waiting, Waits};

/// All metrics of a process. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    log: LogMetrics,
    gateway: GatewayMetrics,
    server: ServerMetrics,
    store: StoreMetrics,
    volumes: Arc<volume::VolumeFamilies>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Creates metrics that start at zero.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        registry
            .register(Box::new(ProcessCollector::for_self()))
            .expect("the registry is empty, so no name is taken");
        family::gauges(&registry, &definitions::BUILD_INFO)
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Self {
            log: LogMetrics::new(&registry),
            gateway: GatewayMetrics::new(&registry),
            server: ServerMetrics::new(&registry),
            store: StoreMetrics::new(&registry),
            volumes: Arc::new(volume::VolumeFamilies::new(&registry)),
            registry,
        }
    }

    /// The metrics of the log.
    #[must_use]
    pub fn log(&self) -> LogMetrics {
        self.log.clone()
    }

    /// The metrics of the gateway as a whole.
    #[must_use]
    pub fn gateway(&self) -> GatewayMetrics {
        self.gateway.clone()
    }

    /// The metrics of the NBD server.
    #[must_use]
    pub fn server(&self) -> ServerMetrics {
        self.server.clone()
    }

    /// The metrics of the store.
    #[must_use]
    pub fn store(&self) -> StoreMetrics {
        self.store.clone()
    }

    /// Returns the metrics of the volume `name`. All callers with the same name share them. Their time series
    /// are removed when the last handle is dropped.
    #[must_use]
    pub fn volume(&self, name: &str) -> VolumeMetrics {
        volume::VolumeFamilies::volume(&self.volumes, name)
    }

    /// Renders the text format (version 0.0.4). Ages and remaining times are computed at the time of the
    /// call.
    #[must_use]
    pub fn render(&self) -> String {
        self.volumes.refresh(Instant::now());
        self.store.refresh();
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("gathered families have a name and at least one metric")
    }

    /// Renders the same metrics as OpenMetrics 1.0, without exemplars because the `prometheus` crate has
    /// none.
    #[must_use]
    pub fn render_open_metrics(&self) -> String {
        open_metrics::of(&self.render())
    }

    /// Returns the definition of every metric, in order of definition.
    #[must_use]
    pub fn table() -> &'static [Definition] {
        definitions::ALL
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use super::*;

    /// Creates metrics and touches every child that is created lazily, so that every family is exported.
    fn everything() -> (Metrics, VolumeMetrics) {
        let metrics = Metrics::new();
        let volume = metrics.volume("disk");
        volume.failed(Command::Read, Errno::Io);
        volume.set_snapshots(2, 1_800_000_000);
        metrics.server().handshake_failed(Transport::Tcp, HandshakeFailure::Timeout);
        metrics.store().ended(StoreOperation::Put, StoreOutcome::Ok, 7, Duration::from_millis(3));
        metrics.gateway().set_stored(BTreeMap::from([("disk".to_owned(), 7)]), 1_800_000_000);
        metrics.gateway().set_certificate_expiry(Some(1_900_000_000));
        (metrics, volume)
    }

    #[test]
    fn the_text_and_the_table_name_the_same_metrics_types_and_helps() {
        let (metrics, _volume) = everything();
        let text = metrics.render();
        let mut types = BTreeMap::new();
        let mut helps = BTreeMap::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                types.insert(name, kind);
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                helps.insert(name, help);
            }
        }
        let table = Metrics::table();
        assert_eq!(types, table.iter().map(|d| (d.name, d.kind.as_str())).collect());
        assert_eq!(helps, table.iter().map(|d| (d.name, d.help)).collect());
    }

    #[test]
    fn names_are_distinct_and_say_their_unit() {
        let names: BTreeSet<_> = Metrics::table().iter().map(|d| d.name).collect();
        assert_eq!(names.len(), Metrics::table().len());
        for definition in Metrics::table() {
            assert_eq!(definition.kind == Kind::Counter, definition.name.ends_with("_total"));
            assert_eq!(definition.kind == Kind::Histogram, !definition.buckets.is_empty());
            for unit in ["bytes", "seconds"] {
                assert_eq!(
                    definition.unit == unit,
                    definition.name.contains(unit),
                    "{} has the unit {}",
                    definition.name,
                    definition.unit
                );
            }
            assert!(definition.buckets.is_sorted());
        }
    }

    #[test]
    fn what_is_counted_is_shown() {
        let (metrics, volume) = everything();
        volume.succeeded(Command::Write, 4096);
        volume.put_bytes.of(ObjectKind::Chunk).inc_by(65536);
        volume.read_duration.of(ReadSource::Store).observe(0.03);
        metrics.server().connection_opened(Transport::Unix);
        let text = metrics.render();
        for line in [
            r#"cairn_requests_total{command="write",volume="disk"} 1"#,
            r#"cairn_request_bytes_total{command="write",volume="disk"} 4096"#,
            r#"cairn_request_errors_total{command="read",errno="eio",volume="disk"} 1"#,
            r#"cairn_put_bytes_total{kind="chunk",volume="disk"} 65536"#,
            r#"cairn_read_duration_seconds_bucket{source="store",volume="disk",le="0.02"} 0"#,
            r#"cairn_read_duration_seconds_bucket{source="store",volume="disk",le="0.04"} 1"#,
            r#"cairn_connections{transport="unix"} 1"#,
            r#"cairn_store_requests_total{operation="put",outcome="ok"} 1"#,
            r#"cairn_store_bytes_total{operation="put"} 7"#,
            r#"cairn_snapshots{volume="disk"} 2"#,
            r#"cairn_snapshot_timestamp_seconds{volume="disk"} 1800000000"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        metrics.server().connection_closed(Transport::Unix);
        assert!(metrics.render().contains("cairn_connections{transport=\"unix\"} 0\n"));
    }

    #[test]
    fn a_volume_leaves_with_its_last_handle() {
        let (metrics, volume) = everything();
        let second = metrics.volume("disk");
        second.dirty_bytes.set(5);
        assert_eq!(volume.dirty_bytes.get(), 5);
        drop(volume);
        assert!(metrics.render().contains("cairn_dirty_bytes{volume=\"disk\"} 5\n"));
        drop(second);
        // The stored bytes do not depend on the handles. They are removed by the next census.
        metrics.gateway().set_stored(BTreeMap::new(), 1_800_000_001);
        assert!(!metrics.render().contains("disk\""));
        assert_eq!(metrics.volume("disk").dirty_bytes.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn ages_and_remaining_times_are_as_of_now() {
        let (metrics, volume) = everything();
        let now = Instant::now();
        volume.uncommitted_since.set(Some(now));
        volume.lease_ends.set(Some(now + Duration::from_secs(30)));
        tokio::time::advance(Duration::from_secs(10)).await;
        let text = metrics.render();
        assert!(text.contains("cairn_oldest_uncommitted_age_seconds{volume=\"disk\"} 10\n"));
        assert!(text.contains("cairn_lease_remaining_seconds{volume=\"disk\"} 20\n"));
        tokio::time::advance(Duration::from_secs(30)).await;
        volume.uncommitted_since.set(None);
        let text = metrics.render();
        assert!(text.contains("cairn_oldest_uncommitted_age_seconds{volume=\"disk\"} 0\n"));
        assert!(text.contains("cairn_lease_remaining_seconds{volume=\"disk\"} 0\n"));
    }

    #[test]
    fn stored_bytes_are_those_of_the_last_census() {
        let metrics = Metrics::new();
        assert_eq!(metrics.gateway().stored(), None);
        let both = BTreeMap::from([("idle".to_owned(), 5), ("disk".to_owned(), 7)]);
        metrics.gateway().set_stored(both.clone(), 1_800_000_000);
        assert!(metrics.render().contains("cairn_stored_bytes{volume=\"idle\"} 5\n"));
        assert_eq!(metrics.gateway().stored(), Some((both, 1_800_000_000)));
        metrics.gateway().set_stored(BTreeMap::from([("disk".to_owned(), 9)]), 1_800_000_060);
        let text = metrics.render();
        assert!(text.contains("cairn_stored_bytes{volume=\"disk\"} 9\n") && !text.contains("idle"), "{text}");
        assert!(text.contains("cairn_census_timestamp_seconds 1800000060\n"), "{text}");
    }

    #[test]
    fn bounds_settings_and_the_certificate_are_exported_as_they_are_in_force() {
        let metrics = Metrics::new();
        let gateway = metrics.gateway();
        let limits = Limits { dirty_bytes: 9, lease_ttl: Duration::from_millis(1500), ..Limits::default() };
        gateway.set_limits(limits);
        gateway.reloaded(Reload::Failed, 1_800_000_000);
        assert_eq!(gateway.limits(), limits);
        let text = metrics.render();
        for line in [
            "cairn_limit_dirty_bytes 9",
            "cairn_limit_lease_seconds 1.5",
            "cairn_reload_successful 0",
            "cairn_reload_timestamp_seconds 1800000000",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("cairn_tls_certificate"), "{text}");
        gateway.set_certificate_expiry(Some(1_900_000_000));
        assert!(metrics.render().contains("cairn_tls_certificate_expiry_timestamp_seconds 1900000000\n"));
        gateway.set_certificate_expiry(None);
        assert!(!metrics.render().contains("cairn_tls_certificate"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_writes_that_still_wait_counts() {
        let metrics = Metrics::new();
        let volume = metrics.volume("disk");
        let waiting = [volume.write_throttled.begin(), volume.write_throttled.begin()];
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(metrics.render().contains("cairn_write_throttled_seconds_total{volume=\"disk\"} 6\n"));
        drop(waiting);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!((volume.write_throttled.seconds() - 6.0).abs() < f64::EPSILON);
    }

    /// A failed request between successful ones is not an outage.
    #[tokio::test(start_paused = true)]
    async fn a_store_fails_from_its_first_failure_without_a_success_since() {
        let metrics = Metrics::new();
        let end = |outcome| metrics.store().ended(StoreOperation::Put, outcome, 0, Duration::ZERO);
        let failing = || metrics.store().failing_for();
        assert_eq!(failing(), None);
        end(StoreOutcome::Timeout);
        tokio::time::advance(Duration::from_secs(40)).await;
        end(StoreOutcome::Denied);
        end(StoreOutcome::Cancelled);
        assert_eq!(failing(), Some(Duration::from_secs(40)));
        assert!(metrics.render().contains("cairn_store_failing_seconds 40\n"));
        // Any answer shows that the store works.
        end(StoreOutcome::NotFound);
        assert_eq!(failing(), None);
        assert!(metrics.render().contains("cairn_store_failing_seconds 0\n"));
    }
}
