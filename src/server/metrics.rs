//! What the server reports to whoever counts: the trait [`Metrics`], and guards that call it in pairs.
//!
//! It must not know who counts, or how. Invariant: whatever was reported as begun is reported as ended once,
//! when its guard is dropped.

use std::fmt;
use std::sync::Arc;

/// What a connection runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransportKind {
    /// TCP without TLS.
    Tcp,
    /// A Unix socket, or any other stream of this machine.
    Unix,
    /// TLS, over whatever stream.
    Tls,
}

/// Why a connection ended before transmission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HandshakeFailure {
    /// The server has as many connections as it allows.
    Limit,
    /// The client broke the protocol.
    Protocol,
    /// TLS failed.
    Tls,
    /// The client asked for an export that it cannot have, in a way that knows no error reply.
    Export,
    /// The client sent ABORT.
    Aborted,
    /// The client took too long.
    Timeout,
    /// The client left, or the server shut down.
    Disconnected,
}

/// In which direction a client stopped moving bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// It stopped sending a request or its payload.
    Requests,
    /// It stopped reading replies.
    Replies,
}

/// `requests` or `replies`.
impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests",
            Self::Replies => "replies",
        })
    }
}

/// Counts what a server does. Every method does nothing unless it is implemented; [`NoMetrics`] implements
/// none.
///
/// The server calls these methods while it handles connections and requests, so they must return quickly.
pub trait Metrics: Send + Sync + 'static {
    /// A connection was accepted, or goes on over TLS from now on.
    fn connection_opened(&self, _transport: TransportKind) {}

    /// A connection that was reported by [`Metrics::connection_opened`] ended.
    fn connection_closed(&self, _transport: TransportKind) {}

    /// A connection ended before transmission.
    fn handshake_failed(&self, _transport: TransportKind, _reason: HandshakeFailure) {}

    /// A connection was closed because its client stopped moving bytes for the stall timeout.
    fn stalled(&self, _direction: Direction) {}

    /// A request was read and is about to be carried out. Its reply holds up to `payload_bytes` of memory.
    fn request_started(&self, _payload_bytes: u32) {}

    /// The reply to a request was written, or its connection is lost. `payload_bytes` is as in
    /// [`Metrics::request_started`].
    fn request_ended(&self, _payload_bytes: u32) {}
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoMetrics;

impl Metrics for NoMetrics {}

/// A connection that is reported as open while this lives.
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

/// A request that is reported as in flight while this lives.
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
