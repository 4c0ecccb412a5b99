//! Why the program failed, and its exit status.
//!
//! Owns the exit statuses of all commands but `cairn nbd`, and must not know how an error came about.
//! Invariant: a mistake in the command line or configuration exits with 2, a takeover with 10, and
//! everything else with 1. Only `cairn check` differs: it exits with 1 for damage alone, and with 2 for any
//! other failure.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use super::runtime_directory;
use crate::gateway::chain;
use crate::{config, server, store, volume};

mod backup;
mod nbd;

pub(super) use backup::BackupError;
pub(super) use nbd::NbdError;

/// Exit status for a mistake in the command line or configuration, as clap uses it.
const USAGE: u8 = 2;

/// Exit status of a check that could not be made, so that scripts can tell this from damage.
const UNCHECKED: u8 = 2;

/// Exit status of a gateway whose volumes another gateway took over. Whoever restarts it must not let it take
/// them back.
const FENCED: u8 = 10;

/// Why the program failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] config::Errors),
    /// The store cannot be used.
    #[error("{}", chain(.0))]
    Store(#[from] store::OpenError),
    /// An operation on a volume failed.
    #[error("volume {name:?}: {}", chain(.source))]
    Volume {
        /// Name of the volume.
        name: String,
        /// The error of the operation.
        source: volume::OpenError,
    },
    /// Another gateway holds the volume.
    #[error(
        "volume {name:?} is in use by {holder}: add --gateway on the machine of that gateway, or use its \
         API; if it is gone for good, wait until its lease has expired"
    )]
    HeldElsewhere {
        /// Name of the volume.
        name: String,
        /// Who holds the volume.
        holder: String,
    },
    /// A volume cannot be imported.
    #[error("volume {name:?}: {}", chain(.source))]
    Import {
        /// Name of the volume.
        name: String,
        /// The error of the import.
        source: volume::ImportError,
    },
    /// A gateway holds the volume that a stream is to be applied to.
    #[error(
        "volume {name:?} is in use by {holder}, and nobody may use a copy while it is brought up to date: \
         disconnect its clients and wait until that gateway has closed it (volumes.idle_timeout), or end the \
         gateway; if it is gone for good, wait until its lease has expired"
    )]
    OntoHeld {
        /// Name of the volume.
        name: String,
        /// Who holds the volume.
        holder: String,
    },
    /// A gateway holds the volume that is to be exported.
    #[error(
        "volume {name:?} is in use by {holder}, so it changes: take a snapshot of it and export that \
         (cairn snapshot create {name}@NAME --gateway on the machine of that gateway, then cairn export \
         {name}@NAME)"
    )]
    ExportHeld {
        /// Name of the volume.
        name: String,
        /// Who holds the volume.
        holder: String,
    },
    /// A gateway holds the volume that is to be compared with a snapshot.
    #[error(
        "volume {name:?} is in use by {holder}, so it changes: take a snapshot of it and compare with that \
         (cairn snapshot create {name}@NAME --gateway on the machine of that gateway)"
    )]
    CompareHeld {
        /// Name of the volume.
        name: String,
        /// Who holds the volume.
        holder: String,
    },
    /// Two contents cannot be compared.
    #[error("{from} and {to}: {}", chain(.source))]
    Compare {
        /// What was to be compared.
        from: String,
        /// What it was to be compared with.
        to: String,
        /// The error of the comparison.
        source: volume::DiffError,
    },
    /// The bytes are not those of an incremental stream, or not all of them.
    #[error("{name} is not a whole stream of cairn export --since: {source}")]
    Stream {
        /// The file, as the user named it.
        name: String,
        /// What is wrong with it.
        source: volume::format::codec::DecodeError,
    },
    /// An incremental stream cannot be applied to a volume.
    #[error("volume {name:?}: {}", chain(.source))]
    Receive {
        /// Name of the volume.
        name: String,
        /// The error of the import.
        source: volume::ReceiveError,
    },
    /// A backup failed after the snapshot was found.
    #[error("backup to {to}: {source}")]
    Backup {
        /// URL of the other store.
        to: String,
        /// Why it failed.
        source: Box<Self>,
    },
    /// A snapshot cannot be backed up onto what the other store has.
    #[error("volume {name:?}: {source}")]
    Refused {
        /// Name of the copy.
        name: String,
        /// Why not.
        source: Box<BackupError>,
    },
    /// An import or export was cut short, and something of it is left.
    #[error("{source}; {advice}")]
    Cut {
        /// Why it ended.
        source: Box<Self>,
        /// What is left, and what can be done with it.
        advice: String,
    },
    /// A signal ended the command.
    #[error("stopped by {by}")]
    Interrupted {
        /// Name of the signal.
        by: &'static str,
    },
    /// A program that the command needs is not installed.
    #[error("{program} is not installed: it is in the package {package}")]
    NoProgram {
        /// Name of the program.
        program: &'static str,
        /// Names of packages that contain it.
        package: &'static str,
    },
    /// Another program failed.
    #[error("{program}: {why}")]
    Program {
        /// Name of the program.
        program: &'static str,
        /// What it printed, or how it ended.
        why: String,
    },
    /// The size of a volume cannot be changed.
    #[error("volume {name:?}: {}", chain(.source))]
    Resize {
        /// Name of the volume.
        name: String,
        /// The error of the operation.
        source: volume::ResizeError,
    },
    /// A gateway holds the volume that is to be renamed.
    #[error(
        "volume {name:?} is in use by {holder}, and only a volume that no gateway has open can be renamed: \
         disconnect its clients and wait until that gateway has closed it (volumes.idle_timeout), or end the \
         gateway. Remove {name:?} from its configuration before: a gateway creates an empty volume under the \
         old name if volumes.create contains it"
    )]
    RenameHeld {
        /// Name of the volume.
        name: String,
        /// Who holds the volume.
        holder: String,
    },
    /// A snapshot cannot be cloned.
    #[error("snapshot {of:?}: {}", chain(.source))]
    Clone {
        /// Names of the volume and of the snapshot, `VOLUME@NAME`.
        of: String,
        /// The underlying error.
        source: volume::CloneError,
    },
    /// A clone cannot be flattened.
    #[error("volume {name:?}: {}", chain(.source))]
    Flatten {
        /// Name of the volume.
        name: String,
        /// The error of the operation.
        source: volume::Error,
    },
    /// Snapshots of a clone need the volumes that it shares objects with.
    #[error(
        "all data of volume {name:?} is its own, but its snapshots {snapshots} were taken before that and \
         need other volumes: delete them, and repeat the command"
    )]
    FlattenHeld {
        /// Name of the volume.
        name: String,
        /// Names of the snapshots.
        snapshots: String,
    },
    /// Some of what a clone shares cannot be read.
    #[error(
        "volume {name:?}: {chunks} chunks or map pages that it shares cannot be read, and are left as they \
         are (cairn check says which): bring the objects back or overwrite the ranges, and repeat the command"
    )]
    FlattenUnread {
        /// Name of the volume.
        name: String,
        /// How many these are.
        chunks: u64,
    },
    /// The garbage of a volume cannot be collected.
    #[error("volume {name:?}: {}", chain(.source))]
    Collect {
        /// Name of the volume.
        name: String,
        /// The error of the collection.
        source: volume::CollectError,
    },
    /// The garbage of some volumes was not collected; the output says why.
    #[error("the garbage of {failed} of {all} volumes was not collected")]
    Uncollected {
        /// How many volumes these are.
        failed: usize,
        /// Number of all volumes.
        all: usize,
    },
    /// An operation on a snapshot failed.
    #[error("snapshot {of:?}: {}", chain(.source))]
    Snapshot {
        /// Names of the volume and of the snapshot, `VOLUME@NAME`.
        of: String,
        /// The error of the operation.
        source: volume::SnapshotError,
    },
    /// A configured volume cannot be opened.
    #[error("volume {name:?}: {}", chain(.source.as_ref()))]
    Open {
        /// Name of the volume.
        name: String,
        /// The error of the opening.
        source: Arc<volume::OpenError>,
    },
    /// A check found damage.
    #[error("volume {name:?} is damaged: {objects} findings, {bytes} bytes of the volume are affected")]
    Damaged {
        /// Name of the volume.
        name: String,
        /// Number of objects that are not as they should be.
        objects: u64,
        /// Bytes of the volume that cannot be read as they were written.
        bytes: u64,
    },
    /// A volume changes faster than it can be read.
    #[error("volume {name:?}: {why}")]
    Unsteady {
        /// Name of the volume.
        name: String,
        /// What was tried.
        why: String,
    },
    /// A volume could not be checked.
    #[error("{0}")]
    Unchecked(Box<Self>),
    /// The list of volumes cannot be read.
    #[error("{}", chain(.0))]
    List(volume::OpenError),
    /// The server cannot listen.
    #[error("{}", chain(.0))]
    Listen(#[from] server::ListenError),
    /// The admin socket was requested, but there is no place for it.
    #[error("admin.socket: {}", chain(.0))]
    AdminSocket(runtime_directory::Unusable),
    /// The oldstyle address would reject all its clients, because they cannot use TLS.
    #[error(
        "server.oldstyle, or an inherited socket, serves {export:?} at {address} to clients that cannot use \
         TLS, which tls.mode or tls.subjects ask of them"
    )]
    OldstyleNeedsTls {
        /// Address of the listener.
        address: server::ListenAddress,
        /// Name of the export.
        export: String,
    },
    /// A socket or connection that was passed to the process cannot be used.
    #[error("inherited sockets: {0}")]
    Inherited(String),
    /// Every volume that was served has stopped.
    #[error("no volume is left to serve")]
    NothingLeft,
    /// No volume is left to serve, because another gateway took one over or somebody deleted it.
    #[error("no volume is left to serve: all were taken over or deleted")]
    Fenced,
    /// A gateway is not healthy.
    #[error("{url}: {why}")]
    Unhealthy {
        /// The URL that was requested.
        url: String,
        /// The response, or why there is none.
        why: String,
    },
    /// A gateway did not execute a request.
    #[error("gateway at unix:{}: {why}", socket.display())]
    Gateway {
        /// Path of its admin socket.
        socket: PathBuf,
        /// The message of the gateway, or why there is none.
        why: String,
        /// Whether the request itself was a mistake.
        is_mistake: bool,
    },
    /// A command of `cairn nbd` failed.
    #[error("{}", chain(.0))]
    Nbd(#[from] NbdError),
    /// The arguments contradict each other or a setting.
    #[error("{0}")]
    Mistake(String),
    /// A request of a measurement failed.
    #[error("{}", chain(.source))]
    Request {
        /// The error of the request.
        source: store::Error,
    },
    /// A measurement was stopped, and everything that it wrote is deleted.
    #[error("stopped by {by}; everything that was written is deleted")]
    Stopped {
        /// Name of the signal.
        by: &'static str,
    },
    /// A measurement could not delete what it wrote.
    #[error("objects may be left below {prefix} in the store: {why}")]
    LeftBehind {
        /// The prefix of all of its keys.
        prefix: String,
        /// Why they may be left.
        why: String,
    },
    /// Some volumes were not closed cleanly. Contains their names.
    #[error("not closed cleanly: {}", .0.join(", "))]
    Close(Vec<String>),
    /// A call to the system failed.
    #[error("{what}: {source}")]
    System {
        /// What the program tried to do.
        what: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

impl From<config::Error> for Error {
    fn from(error: config::Error) -> Self {
        Self::Config(config::Errors(vec![error]))
    }
}

impl Error {
    /// Makes the error of `cairn check` of a failure: everything but damage means that nothing is known.
    pub(super) fn unchecked(self) -> Self {
        match self {
            Self::Config(_) | Self::Damaged { .. } => self,
            other => Self::Unchecked(Box::new(other)),
        }
    }

    /// Returns 2 for a mistake of the user, 10 if another gateway took over a volume, and 1 for every other
    /// failure.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_)
            | Self::Mistake(_)
            | Self::OldstyleNeedsTls { .. }
            | Self::Gateway { is_mistake: true, .. }
            | Self::Resize { source: volume::ResizeError::Geometry(_), .. }
            | Self::Volume {
                source: volume::OpenError::BadName(_) | volume::OpenError::Geometry(_), ..
            } => ExitCode::from(USAGE),
            Self::Unchecked(_) => ExitCode::from(UNCHECKED),
            Self::Refused { source, .. } if source.is_mistake() => ExitCode::from(USAGE),
            Self::Cut { source, .. } | Self::Backup { source, .. } => source.exit_code(),
            Self::Nbd(error) => error.exit_code(),
            Self::Fenced => ExitCode::from(FENCED),
            Self::Open { source, .. } if matches!(**source, volume::OpenError::Lost(_)) => {
                ExitCode::from(FENCED)
            }
            Self::Store(_)
            | Self::Volume { .. }
            | Self::HeldElsewhere { .. }
            | Self::RenameHeld { .. }
            | Self::Import { .. }
            | Self::OntoHeld { .. }
            | Self::ExportHeld { .. }
            | Self::CompareHeld { .. }
            | Self::Compare { .. }
            | Self::Stream { .. }
            | Self::Receive { .. }
            | Self::Refused { .. }
            | Self::Interrupted { .. }
            | Self::NoProgram { .. }
            | Self::Program { .. }
            | Self::Resize { .. }
            | Self::Flatten { .. }
            | Self::FlattenHeld { .. }
            | Self::FlattenUnread { .. }
            | Self::Collect { .. }
            | Self::Uncollected { .. }
            | Self::Snapshot { .. }
            | Self::Clone { .. }
            | Self::Open { .. }
            | Self::List(_)
            | Self::Damaged { .. }
            | Self::Unsteady { .. }
            | Self::Listen(_)
            | Self::AdminSocket(_)
            | Self::Inherited(_)
            | Self::NothingLeft
            | Self::Unhealthy { .. }
            | Self::Gateway { .. }
            | Self::Request { .. }
            | Self::Stopped { .. }
            | Self::LeftBehind { .. }
            | Self::Close(_)
            | Self::System { .. } => ExitCode::FAILURE,
        }
    }
}
