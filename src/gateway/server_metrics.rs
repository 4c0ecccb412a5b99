//! The events of the NBD server as metrics: the gateway's implementation of [`server::Metrics`].
//!
//! Owns only the translation: the server must not know Prometheus, and the metrics must not know the server.
//! Invariant: each label of the server has a label of its own in the metrics.

use crate::metrics::{self, ServerMetrics};
use crate::server::{self, Direction, HandshakeFailure, TransportKind};

impl server::Metrics for ServerMetrics {
    fn connection_opened(&self, transport: TransportKind) {
        Self::connection_opened(self, transport_label(transport));
    }

    fn connection_closed(&self, transport: TransportKind) {
        Self::connection_closed(self, transport_label(transport));
    }

    fn handshake_failed(&self, transport: TransportKind, reason: HandshakeFailure) {
        Self::handshake_failed(self, transport_label(transport), failure_label(reason));
    }

    fn stalled(&self, direction: Direction) {
        Self::stalled(self, direction_label(direction));
    }

    fn request_started(&self, payload_bytes: u32) {
        Self::request_started(self, payload_bytes);
    }

    fn request_ended(&self, payload_bytes: u32) {
        Self::request_ended(self, payload_bytes);
    }
}

fn transport_label(transport: TransportKind) -> metrics::Transport {
    match transport {
        TransportKind::Tcp => metrics::Transport::Tcp,
        TransportKind::Unix => metrics::Transport::Unix,
        TransportKind::Tls => metrics::Transport::Tls,
    }
}

fn failure_label(reason: HandshakeFailure) -> metrics::HandshakeFailure {
    use metrics::HandshakeFailure as Label;
    match reason {
        HandshakeFailure::Limit => Label::Limit,
        HandshakeFailure::Protocol => Label::Protocol,
        HandshakeFailure::Tls => Label::Tls,
        HandshakeFailure::Export => Label::Export,
        HandshakeFailure::Aborted => Label::Aborted,
        HandshakeFailure::Timeout => Label::Timeout,
        HandshakeFailure::Disconnected => Label::Disconnected,
    }
}

fn direction_label(direction: Direction) -> metrics::Direction {
    match direction {
        Direction::Requests => metrics::Direction::Requests,
        Direction::Replies => metrics::Direction::Replies,
    }
}
