//! What the server reports about itself: the trait [`Metrics`], and guards that call its methods in pairs.
//!
//! Must not know what counts the events, or how. Invariant: everything that was reported as started is
//! reported as ended exactly once, when its guard is dropped.

use std::fmt;
use std::sync::Arc;

/// The kind of stream that a connection runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransportKind {
    /// TCP without TLS.
    Tcp,
    /// A Unix socket, or any other stream that is local to this machine.
    Unix,
    /// TLS over any kind of stream.
    Tls,
}

/// Why a connection ended before transmission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HandshakeFailure {
    /// The server already has the maximum number of connections.
    Limit,
    /// The client violated the protocol.
    Protocol,
    /// The TLS handshake failed.
    Tls,
    /// The client asked for an unavailable export by a method that has no error reply: EXPORT_NAME or
    /// oldstyle negotiation.
    Export,
    /// The client sent ABORT.
    Aborted,
    /// The client did not finish the handshake in time.
    Timeout,
    /// The client disconnected, or the server shut down.
    Disconnected,
}

/// The direction in which a client stopped moving bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The client stopped sending a request or its payload.
    Requests,
    /// The client stopped reading replies.
    Replies,
}

/// Writes `requests` or `replies`.
impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests",
            Self::Replies => "replies",
        })
    }
}

/// Receives the events of a server. Every method has a default that does nothing; [`NoMetrics`] uses only
/// these defaults.
///
/// The server calls these methods while it handles connections and requests, so they must return quickly.
pub trait Metrics: Send + Sync + 'static {
    /// A connection was accepted, or it switched to TLS and is counted as a TLS connection from now on.
    fn connection_opened(&self, _transport: TransportKind) {}

    /// A connection that was reported by [`Metrics::connection_opened`] ended.
    fn connection_closed(&self, _transport: TransportKind) {}

    /// A connection ended before transmission.
    fn handshake_failed(&self, _transport: TransportKind, _reason: HandshakeFailure) {}

    /// A connection was closed because its client moved no bytes for the stall timeout.
    fn stalled(&self, _direction: Direction) {}

    /// A request was received and will be carried out. The request and its reply hold up to `payload_bytes`
    /// of memory.
    fn request_started(&self, _payload_bytes: u32) {}

    /// The reply to a request was written, or its connection was lost. `payload_bytes` is the value passed to
    /// [`Metrics::request_started`].
    fn request_ended(&self, _payload_bytes: u32) {}
}

/// An implementation of [`Metrics`] that counts nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoMetrics;

impl Metrics for NoMetrics {}

/// Reports a connection as open until it is dropped.
pub(crate) struct OpenConnection {
    metrics: Arc<dyn Metrics>,
    transport: TransportKind,
}

impl OpenConnection {
    pub(crate) fn new(metrics: &Arc<dyn Metrics>, transport: TransportKind) -> Self {
        metrics.connection_opened(transport);
        Self { metrics: Arc::clone(metrics), transport }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.metrics.connection_closed(self.transport);
    }
}

/// Reports a request as in flight until it is dropped.
pub(crate) struct StartedRequest {
    metrics: Arc<dyn Metrics>,
    payload_bytes: u32,
}

impl StartedRequest {
    pub(crate) fn new(metrics: &Arc<dyn Metrics>, payload_bytes: u32) -> Self {
        metrics.request_started(payload_bytes);
        Self { metrics: Arc::clone(metrics), payload_bytes }
    }
}

impl Drop for StartedRequest {
    fn drop(&mut self) {
        self.metrics.request_ended(self.payload_bytes);
    }
}

impl fmt::Debug for StartedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartedRequest").field("payload_bytes", &self.payload_bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Recorded(Arc<Mutex<Vec<String>>>);

    impl Metrics for Recorded {
        fn connection_opened(&self, transport: TransportKind) {
            self.0.lock().push(format!("{transport:?} opened"));
        }

        fn connection_closed(&self, transport: TransportKind) {
            self.0.lock().push(format!("{transport:?} closed"));
        }

        fn request_started(&self, payload_bytes: u32) {
            self.0.lock().push(format!("{payload_bytes} started"));
        }

        fn request_ended(&self, payload_bytes: u32) {
            self.0.lock().push(format!("{payload_bytes} ended"));
        }
    }

    #[test]
    fn whatever_is_reported_as_begun_is_reported_as_ended_with_the_same_words() {
        let recorded = Recorded::default();
        let metrics: Arc<dyn Metrics> = Arc::new(recorded.clone());
        let connection = OpenConnection::new(&metrics, TransportKind::Tls);
        let (one, two) = (StartedRequest::new(&metrics, 1), StartedRequest::new(&metrics, 2));
        drop(one);
        drop(connection);
        drop(two);
        let expected = ["Tls opened", "1 started", "2 started", "1 ended", "Tls closed", "2 ended"];
        assert_eq!(*recorded.0.lock(), expected);
    }
}
