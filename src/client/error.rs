//! The errors of the client.
//!
//! Owns the distinction between a failed command and a broken connection, and must not know how a connection
//! works. Invariant: each variant tells the caller what to do next.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::uri::Address;
use crate::protocol::negotiate_client::HandshakeError;
use crate::protocol::{DecodeError, Error as CommandError};

/// Why a call to the client failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server cannot be reached.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address that the client tried.
        address: Address,
        /// The error of the system.
        source: Arc<io::Error>,
    },
    /// The TLS handshake failed, or the TLS options cannot be used.
    #[error("TLS: {0}")]
    Tls(#[source] Arc<io::Error>),
    /// The negotiation failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// Connecting was successful, but the handshake took too long.
    #[error("the handshake took too long")]
    TimedOut,
    /// The server replied to the command with an error. The connection can still be used.
    #[error("{error}{}{message}", if .message.is_empty() { "" } else { ": " })]
    Command {
        /// The error value in the reply.
        error: CommandError,
        /// The server's explanation; empty if there is none.
        message: String,
    },
    /// The command was not sent because the export does not support it, or because its range or length is
    /// invalid.
    #[error("{0}")]
    NotAllowed(&'static str),
    /// The connection is broken. The command may or may not have taken effect. Connect again to continue.
    #[error("the connection is broken: {0}")]
    Broken(#[from] Broken),
}

/// Why a connection is broken.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// This client closed the connection, or was asked to.
    #[error("the client closed it")]
    Closed,
    /// The server closed the connection.
    #[error("the server closed it")]
    ByServer,
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[source] Arc<io::Error>),
    /// The server made no progress for this long while a command waited for its reply.
    #[error("the server has neither sent nor accepted a byte for {}", humantime::format_duration(*.0))]
    Stalled(Duration),
    /// The server violated the protocol.
    #[error("the server violated the protocol: {0}")]
    Protocol(#[from] DecodeError),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::ByServer,
            _ => Self::Io(Arc::new(error)),
        }
    }
}
