//! The NBD server: it serves exports over TCP, Unix sockets or any other byte stream.
//!
//! Each connection passes through the modules in this order: `connection` negotiates, `dispatch` checks each
//! request, `execute` carries it out on an [`Export`], and `outgoing` encodes the reply. `transmission` runs
//! many requests of a connection at the same time.
//!
//! The server owns the traits [`Exports`] and [`Export`] that it serves. It must not know what a disk is.
//! Invariant: no connection outlives its [`Server`].

mod admission;
mod connection;
mod connections;
mod dispatch;
mod drain;
mod execute;
mod export;
mod in_flight;
mod listener;
mod metrics;
mod options;
mod outgoing;
mod serve;
mod shared;
mod single;
mod stall;
mod tls;
mod transmission;
mod transport;

pub use crate::effect::{Durability, ZeroSpeed, Zeroing};
pub use connection::Greeting;
pub use connections::Connection;
pub use export::{
    Alignment, Allocation, ContextStatus, Export, ExportDescription, ExportError, Exports, ListEntry,
    OfferedContext, OpenError, Segment,
};
pub use listener::{AddressError, ListenAddress, ListenError, Listener, SharedListener, SocketPermissions};
pub use metrics::{Direction, HandshakeFailure, Metrics, NoMetrics, TransportKind};
pub use options::Options;
pub use serve::{Drained, Server};
pub use single::SingleExport;
pub use tls::{Tls, TlsError, TlsFile, TlsOptions};
pub use transport::Stream;
