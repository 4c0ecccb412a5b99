//! The NBD server: connections over TCP, Unix sockets or any stream.
//!
//! A connection is negotiated ([`connection`]), then its requests are judged ([`dispatch`]), carried out on
//! an [`Export`] ([`execute`]) and answered ([`outgoing`]), many at a time ([`transmission`]). It must not
//! know what a disk is; it owns the traits [`Exports`] and [`Export`] that it serves.

mod admission;
mod connection;
mod connections;
mod dispatch;
mod drain;
mod execute;
pub mod export;
mod in_flight;
mod listener;
mod options;
mod outgoing;
mod serve;
mod shared;
mod stall;
mod tls;
mod transmission;
mod transport;

pub use connection::Greeting;
pub use connections::Connection;
pub use export::{
    Alignment, Allocation, Export, ExportDescription, ExportError, Exports, ListEntry, OpenError, Segment,
};
pub use listener::{AddressError, ListenAddress, ListenError, Listener, SharedListener};
pub use options::Options;
pub use serve::{Drained, Server};
pub use tls::{Tls, TlsError, TlsFile, TlsOptions};
pub use transport::Stream;
