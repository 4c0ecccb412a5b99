//! The limits of the server and their defaults.
//!
//! Must not know how a limit is enforced. Invariant: a field here bounds every queue, timeout and length that
//! a client can influence.

use std::time::Duration;

/// The limits of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long a client may take for its part of the handshake.
    pub handshake_timeout: Duration,
    /// Maximum number of open connections. Further connections are closed at once.
    pub maximum_connections: usize,
    /// How many of these connections are reserved for Unix sockets and inherited streams, so that local
    /// clients can always connect. At most half of [`Options::maximum_connections`] is reserved.
    pub reserved_connections: usize,
    /// Maximum number of connections from one TCP address. The addresses of an IPv6 /64 network count as one.
    pub connections_per_address: usize,
    /// How long a connection may be idle, without a command, before it is closed. `None` means forever.
    pub idle_timeout: Option<Duration>,
    /// Maximum number of unanswered requests per connection. The server stops reading at the limit.
    pub in_flight_requests: u32,
    /// Maximum payload bytes of the unanswered requests of a connection and of their replies. The server
    /// stops reading at the limit.
    pub in_flight_bytes: u32,
    /// Maximum payload bytes of the requests of all connections. If a request does not fit, the server stops
    /// reading from its connection until it does. One half is divided into equal shares, one for each of the
    /// maximum number of connections, of at most [`Options::in_flight_bytes`] each. The rest is first come,
    /// first served.
    pub total_in_flight_bytes: u64,
    /// How long a client may make no progress, in sending a payload or in reading replies, before its
    /// connection is closed.
    pub stall_timeout: Duration,
    /// Maximum payload of a request or reply in bytes, advertised as the maximum block size.
    pub maximum_payload_bytes: u32,
    /// How long the server waits for commands in flight when it drains.
    pub drain_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            maximum_connections: 1024,
            reserved_connections: 16,
            connections_per_address: 512,
            idle_timeout: None,
            in_flight_requests: 256,
            in_flight_bytes: 64 << 20,
            total_in_flight_bytes: 256 << 20,
            stall_timeout: Duration::from_secs(60),
            maximum_payload_bytes: 64 << 20,
            drain_timeout: Duration::from_secs(30),
        }
    }
}
