//! Metrics of the NBD server.
//!
//! Must not know the protocol. Invariant: the caller that increases a gauge decreases it again by the same
//! amount.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};

use super::definitions as define;
use super::family::{By, counters, gauges};
use super::labels::{Direction, HandshakeFailure, Label, Transport};

/// The metrics of the NBD server. Clones share them.
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

    /// Counts a new connection and marks it as open.
    pub fn connection_opened(&self, transport: Transport) {
        self.0.connections_total.of(transport).inc();
        self.0.connections.of(transport).inc();
    }

    /// Marks a connection as no longer open.
    pub fn connection_closed(&self, transport: Transport) {
        self.0.connections.of(transport).dec();
    }

    /// Counts a connection that ended before transmission.
    pub fn handshake_failed(&self, transport: Transport, reason: HandshakeFailure) {
        self.0.handshake_failures.with_label_values(&[transport.as_str(), reason.as_str()]).inc();
    }

    /// Counts a connection that was closed because its client made no progress.
    pub fn stalled(&self, direction: Direction) {
        self.0.stalled.of(direction).inc();
    }

    /// Counts a request as in flight, together with the payload bytes held for it.
    pub fn request_started(&self, payload_bytes: u32) {
        self.0.requests_in_flight.inc();
        self.0.bytes_in_flight.add(i64::from(payload_bytes));
    }

    /// Removes a request from those in flight, together with its payload bytes.
    pub fn request_ended(&self, payload_bytes: u32) {
        self.0.requests_in_flight.dec();
        self.0.bytes_in_flight.sub(i64::from(payload_bytes));
    }
}
