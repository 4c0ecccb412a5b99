//! Metrics of the NBD server.
//!
//! Knows nothing of the protocol. Invariant: gauges fall back when the guard that raised them is dropped.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};

use super::definitions as define;
use super::family::{By, counters, gauges};
use super::labels::{Direction, HandshakeFailure, Label, Transport};
use super::volume::InFlight;

/// Metrics of the NBD server.
#[derive(Clone, Debug)]
pub struct ServerMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connections: By<Transport, IntGauge>,
    connections_total: By<Transport, IntCounter>,
    handshake_failures: IntCounterVec,
    stalled: By<Direction, IntCounter>,
    requests_in_flight: IntGauge,
    bytes_in_flight: IntGauge,
}

impl ServerMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let connections = gauges(registry, &define::CONNECTIONS);
        let connections_total = counters(registry, &define::CONNECTIONS_TOTAL);
        let stalled = counters(registry, &define::CONNECTIONS_STALLED);
        Self(Arc::new(Inner {
            connections: By::new(|l: Transport| connections.with_label_values(&[l.as_str()])),
            connections_total: By::new(|l: Transport| connections_total.with_label_values(&[l.as_str()])),
            handshake_failures: counters(registry, &define::HANDSHAKE_FAILURES),
            stalled: By::new(|l: Direction| stalled.with_label_values(&[l.as_str()])),
            requests_in_flight: gauges(registry, &define::SERVER_REQUESTS_IN_FLIGHT)
                .with_label_values::<&str>(&[]),
            bytes_in_flight: gauges(registry, &define::SERVER_BYTES_IN_FLIGHT).with_label_values::<&str>(&[]),
        }))
    }

    /// Counts a connection, and as open until the guard is dropped.
    #[must_use]
    pub fn connected(&self, transport: Transport) -> InFlight {
        self.0.connections_total.of(transport).inc();
        InFlight::new(self.0.connections.of(transport).clone())
    }

    /// Counts a connection that ended before transmission.
    pub fn handshake_failed(&self, transport: Transport, reason: HandshakeFailure) {
        self.0.handshake_failures.with_label_values(&[transport.as_str(), reason.as_str()]).inc();
    }

    /// Counts a connection that was closed because its client stood still.
    pub fn stalled(&self, direction: Direction) {
        self.0.stalled.of(direction).inc();
    }

    /// Counts a request as in flight until the guard is dropped.
    #[must_use]
    pub fn request(&self) -> InFlight {
        InFlight::new(self.0.requests_in_flight.clone())
    }

    /// Counts payload bytes as held for a request in flight, until the guard is dropped.
    #[must_use]
    pub fn hold_bytes(&self, bytes: u32) -> HeldBytes {
        let held = HeldBytes { gauge: self.0.bytes_in_flight.clone(), bytes: i64::from(bytes) };
        held.gauge.add(held.bytes);
        held
    }
}

/// Payload bytes that are held while this lives.
#[derive(Debug)]
pub struct HeldBytes {
    gauge: IntGauge,
    bytes: i64,
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.gauge.sub(self.bytes);
    }
}
