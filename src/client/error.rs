//! Errors of the client: each says what the caller can do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::uri::Address;
use crate::protocol::negotiate_client::HandshakeError;
use crate::protocol::{DecodeError, Error as CommandError};

/// Why the client did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server cannot be reached.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where it was looked for.
        address: Address,
        /// Why.
        source: Arc<io::Error>,
    },
    /// TLS is not possible.
    #[error("TLS: {0}")]
    Tls(#[source] Arc<io::Error>),
    /// The server and this client did not agree.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The server took too long for the handshake.
    #[error("the handshake took too long")]
    TimedOut,
    /// The server answered the command with an error. The connection stands.
    #[error("{error}{}{message}", if .message.is_empty() { "" } else { ": " })]
    Command {
        /// The error.
        error: CommandError,
        /// What the server says of it; empty for nothing.
        message: String,
    },
    /// The command was not sent: the export does not support it, or its range or length is not allowed.
    #[error("{0}")]
    NotAllowed(&'static str),
    /// The connection is gone. Whether the command took effect is not known; connect anew.
    #[error("the connection is broken: {0}")]
    Broken(#[from] Broken),
}

/// Why a connection is gone.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// It was closed by this side, or asked to be.
    #[error("the client closed it")]
    Closed,
    /// The server closed it.
    #[error("the server closed it")]
    ByServer,
    /// It failed.
    #[error("{0}")]
    Io(#[source] Arc<io::Error>),
    /// The server moved no byte for so long while a command waited for its answer.
    #[error("the server has neither sent nor accepted a byte for {}", humantime::format_duration(*.0))]
    Stalled(Duration),
    /// The server broke the protocol.
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
