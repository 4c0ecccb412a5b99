//! Why the program ends otherwise than in good order.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use super::runtime_directory;
use crate::gateway::chain;
use crate::{config, server, store, volume};

mod nbd;

pub(super) use nbd::NbdError;

/// What a mistake in the command line or configuration exits with, as clap does.
const USAGE: u8 = 2;

/// What a gateway exits with whose volumes were taken over by another: whoever restarts it must not let it
/// take them back.
const FENCED: u8 = 10;

/// Why the program failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Settings are wrong.
    #[error(transparent)]
    Config(#[from] config::Errors),
    /// The store cannot be used.
    #[error("{}", chain(.0))]
    Store(#[from] store::OpenError),
    /// Something cannot be done with a volume.
    #[error("volume {name:?}: {}", chain(.source))]
    Volume {
        /// Its name.
        name: String,
        /// Why.
        source: volume::OpenError,
    },
    /// A configured volume cannot be opened.
    #[error("volume {name:?}: {}", chain(.source.as_ref()))]
    Open {
        /// Its name.
        name: String,
        /// Why.
        source: Arc<volume::OpenError>,
    },
    /// The list of volumes cannot be had.
    #[error("{}", chain(.0))]
    List(volume::OpenError),
    /// The server cannot listen.
    #[error("{}", chain(.0))]
    Listen(#[from] server::ListenError),
    /// The admin socket that was asked for has no place.
    #[error("admin.socket: {}", chain(.0))]
    AdminSocket(runtime_directory::Unusable),
    /// Clients that cannot use TLS would be turned away, each of them.
    #[error(
        "server.oldstyle, or an inherited socket, serves {export:?} at {address} to clients that cannot use \
         TLS, which tls.mode or tls.subjects ask of them"
    )]
    OldstyleNeedsTls {
        /// Where.
        address: server::ListenAddress,
        /// The export.
        export: String,
    },
    /// What whoever started the process has opened for it is of no use.
    #[error("inherited sockets: {0}")]
    Inherited(String),
    /// Every volume that was to be served stopped.
    #[error("no volume is left to serve")]
    NothingLeft,
    /// No volume is left to serve, since another gateway has taken one over, or somebody has deleted it.
    #[error("no volume is left to serve: they were taken over or deleted")]
    Fenced,
    /// A gateway is not as it should be.
    #[error("{url}: {why}")]
    Unhealthy {
        /// What was asked.
        url: String,
        /// What came.
        why: String,
    },
    /// A gateway does not do what it was asked for.
    #[error("gateway at unix:{}: {why}", socket.display())]
    Gateway {
        /// Its admin socket.
        socket: PathBuf,
        /// Its word, or that it has none.
        why: String,
        /// Whether something else must be asked for.
        is_mistake: bool,
    },
    /// A command of `cairn nbd` failed.
    #[error("{}", chain(.0))]
    Nbd(#[from] NbdError),
    /// Volumes were not closed in good order.
    #[error("not closed in good order: {}", .0.join(", "))]
    Close(Vec<String>),
    /// The system fails.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl From<config::Error> for Error {
    fn from(error: config::Error) -> Self {
        Self::Config(config::Errors(vec![error]))
    }
}

impl Error {
    /// 2 for what must be said otherwise, 10 where another gateway took a volume over, 1 for what failed.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_)
            | Self::OldstyleNeedsTls { .. }
            | Self::Gateway { is_mistake: true, .. }
            | Self::Volume {
                source: volume::OpenError::BadName(_) | volume::OpenError::Geometry(_), ..
            } => ExitCode::from(USAGE),
            Self::Nbd(error) => error.exit_code(),
            Self::Fenced => ExitCode::from(FENCED),
            Self::Open { source, .. } if matches!(**source, volume::OpenError::Lost(_)) => {
                ExitCode::from(FENCED)
            }
            Self::Store(_)
            | Self::Volume { .. }
            | Self::Open { .. }
            | Self::List(_)
            | Self::Listen(_)
            | Self::AdminSocket(_)
            | Self::Inherited(_)
            | Self::NothingLeft
            | Self::Unhealthy { .. }
            | Self::Gateway { .. }
            | Self::Close(_)
            | Self::System { .. } => ExitCode::FAILURE,
        }
    }
}
