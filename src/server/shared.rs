//! The state that all connections of a server share.
//!
//! Owns no behaviour and must not know the protocol. Invariant: there is one [`Shared`] per server, and it
//! lives until the last connection has ended.

use std::sync::Arc;

use parking_lot::RwLock;

use super::connections::Connections;
use super::drain::Drain;
use super::export::Exports;
use super::in_flight::Budget;
use super::metrics::Metrics;
use super::options::Options;
use super::tls::Tls;
use crate::buffers::Buffers;
use crate::task::Tasks;

/// The state that all connections of a server share.
pub(crate) struct Shared {
    pub(crate) exports: Arc<dyn Exports>,
    pub(crate) options: Options,
    pub(crate) budget: Budget,
    pub(crate) tasks: Arc<Tasks>,
    /// Tasks of drained connections: everything is answered, but the client has not closed its side yet.
    pub(crate) lingering: Tasks,
    pub(crate) drain: Drain,
    pub(crate) metrics: Arc<dyn Metrics>,
    /// The TLS configuration for new connections.
    pub(crate) tls: RwLock<Option<Tls>>,
    pub(crate) connections: Connections,
    /// Memory for long payloads of WRITE.
    pub(crate) payloads: Arc<Buffers>,
}
