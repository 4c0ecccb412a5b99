//! The current limits as metrics, which rules and dashboards divide by.
//!
//! Owns the mapping from settings to metrics, and must not enforce a limit. Invariant: after a reload, only
//! those values change that a running gateway applies.

use super::settings::Options;
use crate::metrics::{Limits, Metrics};
use crate::server::Tls;

/// Exports the limits and the certificate of a gateway that is starting.
pub(super) fn export(metrics: &Metrics, options: &Options) {
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    metrics.gateway().set_limits(Limits {
        dirty_bytes: options.dirty_bytes,
        clean_bytes: options.clean_bytes,
        connections: count(options.server.maximum_connections),
        open_volumes: count(options.maximum_open),
        store_requests: count(options.store.concurrency),
        journal_bytes: options.volume.journal_max_bytes,
        journal_records: options.volume.journal_max_records,
        lease_ttl: options.volume.lease_ttl,
        commit_age: options.volume.commit_max_age,
    });
    export_certificate(metrics, options);
}

/// Exports the values that a reload can change.
pub(super) fn export_reloaded(metrics: &Metrics, options: &Options) {
    let gateway = metrics.gateway();
    let (dirty_bytes, clean_bytes) = (options.dirty_bytes, options.clean_bytes);
    gateway.set_limits(Limits { dirty_bytes, clean_bytes, ..gateway.limits() });
    export_certificate(metrics, options);
}

fn export_certificate(metrics: &Metrics, options: &Options) {
    metrics.gateway().set_certificate_expiry(options.tls.as_ref().and_then(Tls::expires_at_seconds));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn options(variables: &[(&str, &str)]) -> Options {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        Options::of(&config::load(None, variables, []).unwrap()).unwrap()
    }

    #[test]
    fn a_reload_changes_the_bounds_that_a_running_gateway_takes_over() {
        let metrics = Metrics::new();
        export(&metrics, &options(&[("CAIRN_JOURNAL__MAX_BYTES", "8MiB"), ("CAIRN_LEASE__TTL", "9s")]));
        let before = metrics.gateway().limits();
        assert_eq!((before.journal_bytes, before.lease_ttl.as_secs()), (8 << 20, 9));
        assert_eq!((before.dirty_bytes, before.connections), (128 << 20, 1024));
        export_reloaded(
            &metrics,
            &options(&[("CAIRN_CACHE__DIRTY", "2MiB"), ("CAIRN_SERVER__CONNECTIONS", "64")]),
        );
        assert_eq!(metrics.gateway().limits(), Limits { dirty_bytes: 2 << 20, ..before });
        assert!(metrics.render().contains("cairn_limit_dirty_bytes 2097152\n"));
    }
}
