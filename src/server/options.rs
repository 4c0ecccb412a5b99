//! Bounds of the server.
//!
//! Owns their defaults. Every queue, timeout and length that a client can influence is bounded by a field
//! here.

use std::time::Duration;

/// What the server is configured with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long a client may take for its part of the handshake.
    pub handshake_timeout: Duration,
    /// Most connections at a time; further ones are closed at once.
    pub maximum_connections: usize,
    /// Of these, connections that are kept for Unix sockets and inherited streams: this machine's own way in.
    /// At most half of [`Options::maximum_connections`] is.
    pub reserved_connections: usize,
    /// Most connections of one address of TCP; of IPv6, of one network of 64 bits.
    pub connections_per_address: usize,
    /// How long a connection may rest without a command before it is closed; none for ever.
    pub idle_timeout: Option<Duration>,
    /// Most requests of a connection that are not yet answered; reading pauses at the bound.
    pub in_flight_requests: u32,
    /// Most payload bytes of such requests, theirs and their replies'; reading pauses at the bound.
    pub in_flight_bytes: u32,
    /// Most payload bytes of the requests of all connections; one that finds no room is not read on. Each
    /// connection has a share of its own of one half, divided by the most connections there may be; the other
    /// half is for who comes first.
    pub total_in_flight_bytes: u64,
    /// How long a payload, or a client's reading of its replies, may stand still before the connection is
    /// closed.
    pub stall_timeout: Duration,
    /// Largest payload of a request or reply in bytes; advertised as the maximum block size.
    pub maximum_payload_bytes: u32,
    /// How long commands in flight are waited for when the server drains.
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
