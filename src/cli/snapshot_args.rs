//! The grammar of the commands on snapshots and clones.
//!
//! Owns their arguments, and must not know what a command does. Invariant: only a command with a [`Place`]
//! can be executed by a gateway.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::endpoint::Exported;
use super::place::{Common, Place};
use super::snapshot_name::SnapshotName;
use crate::config::{self, Config};

#[derive(Clone, Debug, Args)]
pub(super) struct Snapshot {
    #[command(subcommand)]
    pub(super) action: SnapshotAction,
}

impl Snapshot {
    /// Loads the settings, with these flags taking precedence.
    pub(super) fn config(&self) -> Result<Config, config::Errors> {
        self.action.common().config(Vec::new())
    }

    /// Which gateway is to execute the command, if it is not executed in the store.
    pub(super) fn gateway(&self) -> Option<&Option<PathBuf>> {
        self.action.place().and_then(|place| place.gateway.as_ref())
    }
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum SnapshotAction {
    /// Take a snapshot; without --gateway, only of a volume that no gateway holds
    Create(SnapshotCreate),
    /// List the snapshots of a volume, in the order in which they were taken
    List(SnapshotList),
    /// Delete a snapshot; without --gateway, only of a volume that no gateway holds
    Delete(SnapshotDelete),
    /// Show which ranges of the disk differ between two snapshots of a volume. Reads no data. What was
    /// moved in the store may be listed too
    Diff(SnapshotDiff),
}

impl SnapshotAction {
    /// Where the command is executed, if that can be chosen.
    fn place(&self) -> Option<&Place> {
        match self {
            Self::Create(SnapshotCreate { place, .. })
            | Self::List(SnapshotList { place, .. })
            | Self::Delete(SnapshotDelete { place, .. }) => Some(place),
            Self::Diff(_) => None,
        }
    }

    fn common(&self) -> &Common {
        match self {
            Self::Create(SnapshotCreate { place, .. })
            | Self::List(SnapshotList { place, .. })
            | Self::Delete(SnapshotDelete { place, .. }) => &place.common,
            Self::Diff(SnapshotDiff { common, .. }) => common,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct SnapshotCreate {
    #[command(flatten)]
    place: Place,
    /// Names of the volume and of the new snapshot, separated by @
    #[arg(value_name = "VOLUME@NAME")]
    pub(super) of: SnapshotName,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct SnapshotList {
    #[command(flatten)]
    place: Place,
    /// Name of the volume
    #[arg(value_name = "VOLUME")]
    pub(super) volume: String,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct SnapshotDelete {
    #[command(flatten)]
    place: Place,
    /// Names of the volume and of the snapshot, separated by @
    #[arg(value_name = "VOLUME@NAME")]
    pub(super) of: SnapshotName,
}

#[derive(Clone, Debug, Args)]
pub(super) struct SnapshotDiff {
    #[command(flatten)]
    common: Common,
    /// Names of a volume and of a snapshot, separated by @
    #[arg(value_name = "VOLUME@NAME")]
    pub(super) from: SnapshotName,
    /// Another snapshot, of the same volume or of a clone; or a volume that no gateway holds, for what it
    /// contains now
    #[arg(value_name = "VOLUME[@NAME]")]
    pub(super) to: Exported,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct CloneArgs {
    #[command(flatten)]
    place: Place,
    /// Names of the volume and of its snapshot, separated by @
    #[arg(value_name = "VOLUME@NAME")]
    pub(super) of: SnapshotName,
    /// Name of the new volume: 1 to 128 characters of A-Z a-z 0-9 . _ -, not beginning with a dot
    #[arg(value_name = "NEW")]
    pub(super) name: String,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl CloneArgs {
    /// Loads the settings, with these flags taking precedence.
    pub(super) fn config(&self) -> Result<Config, config::Errors> {
        self.place.common.config(Vec::new())
    }

    /// Which gateway is to execute the command, if it is not executed in the store.
    pub(super) fn gateway(&self) -> Option<&Option<PathBuf>> {
        self.place.gateway.as_ref()
    }
}
