//! Why a command of `cairn nbd` fails, and what it exits with.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::client::{self, UriError};
use crate::server::{ExportError, TlsError};

/// What a mistake in the command line exits with, as clap does.
const USAGE: u8 = 2;
/// The exits of `cairn nbd list`.
const LIST_UNSUPPORTED: u8 = 1;
const LIST_FORBIDDEN: u8 = 2;
const LIST_FAILED: u8 = 3;

/// Why a command of `cairn nbd` failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum NbdError {
    /// The command line asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// No NBD URI.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A server cannot be reached or did not do what was asked.
    #[error("{server}: {source}")]
    Client {
        /// The server.
        server: String,
        /// Why.
        source: client::Error,
    },
    /// A file cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A disk failed a command.
    #[error("{disk}: {source}")]
    Disk {
        /// The disk.
        disk: String,
        /// Why.
        source: ExportError,
    },
    /// Two disks do not fit each other.
    #[error("{0}")]
    Misfit(String),
    /// The mirror was ended, or its secondary was lost, before it was complete.
    #[error("the secondary is not complete: {0}")]
    Incomplete(String),
    /// The server has no LIST.
    #[error("{server} cannot list its exports: {source}")]
    ListUnsupported {
        /// The server.
        server: String,
        /// What it said.
        source: client::Error,
    },
    /// The server has LIST and does not allow it.
    #[error("{server} does not let its exports be listed: {source}")]
    ListForbidden {
        /// The server.
        server: String,
        /// What it said.
        source: client::Error,
    },
    /// The server could not be asked.
    #[error("{server}: {source}")]
    ListFailed {
        /// The server.
        server: String,
        /// Why.
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
