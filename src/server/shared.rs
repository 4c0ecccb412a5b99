//! What all connections of a server share.

use std::sync::Arc;

use parking_lot::RwLock;

use super::connections::Connections;
use super::drain::Drain;
use super::export::Exports;
use super::in_flight::Budget;
use super::options::Options;
use super::tls::Tls;
use crate::metrics::ServerMetrics;
use crate::task::Tasks;

/// What all connections of a server share.
pub(crate) struct Shared {
    pub(crate) exports: Arc<dyn Exports>,
    pub(crate) options: Options,
    pub(crate) budget: Budget,
    pub(crate) tasks: Arc<Tasks>,
    /// Connections on which all is answered, and which the client has not closed.
    pub(crate) lingering: Tasks,
    pub(crate) drain: Drain,
    pub(crate) metrics: ServerMetrics,
    /// As it is for connections that begin now.
    pub(crate) tls: RwLock<Option<Tls>>,
    pub(crate) connections: Connections,
}
