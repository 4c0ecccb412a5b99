//! Why a command of `cairn nbd` failed, and its exit status.
//!
//! Owns the exit statuses of these commands, and must not know how an error came about. Invariant: `cairn nbd
//! list` has a separate status for each reason why there is no list.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::client::{self, UriError};
use crate::server::{ExportError, TlsError};

/// Exit status for a mistake in the command line, as clap uses it.
const USAGE: u8 = 2;
/// Exit statuses of `cairn nbd list`: LIST is not supported, is forbidden, or failed.
const LIST_UNSUPPORTED: u8 = 1;
const LIST_FORBIDDEN: u8 = 2;
const LIST_FAILED: u8 = 3;

/// Why a command of `cairn nbd` failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum NbdError {
    /// The arguments contradict each other or cannot work.
    #[error("{0}")]
    Usage(String),
    /// The text is not an NBD URI.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A server cannot be reached, or a request to it failed.
    #[error("{server}: {source}")]
    Client {
        /// The server as the user named it.
        server: String,
        /// The error of the client.
        source: client::Error,
    },
    /// A file cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A command on a disk failed.
    #[error("{disk}: {source}")]
    Disk {
        /// The disk as the user named it.
        disk: String,
        /// The error of the command.
        source: ExportError,
    },
    /// Two disks cannot be used together, for example because their sizes differ.
    #[error("{0}")]
    Misfit(String),
    /// The mirror ended, or lost its secondary, before it was complete.
    #[error("the secondary is not complete: {0}")]
    Incomplete(String),
    /// The server does not support LIST.
    #[error("{server} cannot list its exports: {source}")]
    ListUnsupported {
        /// The server as the user named it.
        server: String,
        /// The answer of the server.
        source: client::Error,
    },
    /// The server supports LIST but does not allow it.
    #[error("the policy of {server} forbids listing its exports: {source}")]
    ListForbidden {
        /// The server as the user named it.
        server: String,
        /// The answer of the server.
        source: client::Error,
    },
    /// The server could not be asked.
    #[error("{server}: {source}")]
    ListFailed {
        /// The server as the user named it.
        server: String,
        /// The error of the client.
        source: client::Error,
    },
}

impl NbdError {
    pub(in crate::cli) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::Uri(_) => ExitCode::from(USAGE),
            Self::ListUnsupported { .. } => ExitCode::from(LIST_UNSUPPORTED),
            Self::ListForbidden { .. } => ExitCode::from(LIST_FORBIDDEN),
            Self::ListFailed { .. } => ExitCode::from(LIST_FAILED),
            Self::Tls(_)
            | Self::Client { .. }
            | Self::File { .. }
            | Self::Disk { .. }
            | Self::Misfit(_)
            | Self::Incomplete(_) => ExitCode::FAILURE,
        }
    }
}
