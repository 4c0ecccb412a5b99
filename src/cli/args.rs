//! The grammar of the command line, and which flag sets which setting.
//!
//! Owns the arguments, and must not know what a command does. Invariant: every flag that sets a setting takes
//! precedence over the other sources.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use url::Url;

use super::endpoint::{Endpoint, Exported, Format};
use super::nbd::Waiting;
use super::place::{Common, Place};
use super::snapshot_name::SnapshotName;
use crate::config::{self, Config, Flag, FlagValue, Size};
use crate::volume::Shrink;

/// NBD disks that live in object storage.
#[derive(Clone, Debug, Parser)]
#[command(name = "cairn", version, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum Command {
    /// Serve volumes over NBD until SIGTERM or SIGINT
    Serve(Serve),
    /// Create, list, show, resize, rename and delete volumes, and show what they take
    Volume(Volume),
    /// Take, list and delete snapshots: what a volume contained at one instant, served read-only as
    /// VOLUME@NAME
    Snapshot(Snapshot),
    /// Make a new volume that begins with the content of a snapshot and shares its objects; without
    /// --gateway, only of a volume that no gateway holds
    Clone(CloneArgs),
    /// Make a new volume of a raw or qcow2 image, an NBD export or standard input. It gets its name once all
    /// of it is in the store
    Import(Import),
    /// Copy a snapshot, or a volume that no gateway holds, to an image, an NBD export or standard output
    Export(Export),
    /// Verify a volume in the store, also while a gateway serves it; changes nothing. Exits with 0 if it is
    /// sound, with 1 if damage was found, and with 2 if it could not be checked
    Check(Check),
    /// NBD tools that need no store: serve files, query servers, copy and mirror disks
    Nbd(Nbd),
    /// Measure a store
    Bench(Bench),
    /// Ask a gateway whether it is ready; exits with 0 if it is, otherwise with 1
    Health(Health),
}

#[derive(Clone, Debug, Args)]
pub(super) struct Nbd {
    #[command(subcommand)]
    pub(super) action: super::nbd::Action,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Bench {
    #[command(subcommand)]
    pub(super) action: super::bench::Action,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Health {
    /// URL to request; /health/live only checks that the gateway answers
    #[arg(default_value = "http://127.0.0.1:9180/health/ready", value_parser = super::health::parse)]
    pub(super) url: Url,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    common: Common,
    /// Name of the volume
    #[arg(value_name = "VOLUME")]
    pub(super) name: String,
    /// Read all data too, and verify every checksum
    #[arg(long)]
    pub(super) data: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Check {
    /// Loads the settings, with these flags taking precedence.
    pub(super) fn config(&self) -> Result<Config, config::Errors> {
        self.common.config(Vec::new())
    }
}

/// How an image is read or written.
#[derive(Clone, Debug, Args)]
pub(super) struct Transfer {
    #[command(flatten)]
    common: Common,
    /// Format of the file
    #[arg(long, value_enum)]
    pub(super) format: Option<Format>,
    /// Go on where an earlier run was cut short
    #[arg(long)]
    pub(super) resume: bool,
    #[command(flatten)]
    pub(super) waiting: Waiting,
    /// Number of connections to an NBD server that allows several
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) connections: u16,
    /// Show no progress
    #[arg(long)]
    pub(super) quiet: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Import {
    /// File, block device or NBD URI, or - for standard input; by default, a file that begins like a qcow2
    /// image is one
    pub(super) source: Endpoint,
    /// Name of the new volume: 1 to 128 characters of A-Z a-z 0-9 . _ -, not beginning with a dot
    #[arg(value_name = "VOLUME")]
    pub(super) name: String,
    /// Size of the objects that hold the data; cannot be changed later: 64KiB to 32MiB, a power of two
    /// [default: 4MiB]
    #[arg(long, value_name = "SIZE", conflicts_with = "resume")]
    chunk_size: Option<String>,
    #[command(flatten)]
    pub(super) transfer: Transfer,
}

impl Import {
    /// Loads the settings, with these flags taking precedence.
    pub(super) fn config(&self) -> Result<Config, config::Errors> {
        self.transfer.common.config(chunk_size_flag(self.chunk_size.as_ref()))
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct Export {
    /// Name of the volume, or VOLUME@SNAPSHOT
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    pub(super) of: Exported,
    /// File, block device or NBD URI, or - for standard output; a file is replaced once the export is
    /// complete; by default, a name that ends in .qcow2 is for a qcow2 image
    pub(super) target: Endpoint,
    #[command(flatten)]
    pub(super) transfer: Transfer,
}

impl Export {
    /// Loads the settings, with these flags taking precedence.
    pub(super) fn config(&self) -> Result<Config, config::Errors> {
        self.transfer.common.config(Vec::new())
    }
}

fn chunk_size_flag(size: Option<&String>) -> Vec<Flag> {
    let flag = |size: &String| {
        let value = FlagValue::One(size.clone());
        Flag { key: "volumes.chunk_size", flag: "--chunk-size", value }
    };
    size.map(flag).into_iter().collect()
}

#[derive(Clone, Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    common: Common,
    /// Address to listen on: HOST:PORT or unix:PATH; can be repeated [default: 127.0.0.1:10809]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// Open the volume, and create it first if it does not exist; an error if it exists with another size
    #[arg(long, value_name = "NAME=SIZE")]
    create: Vec<String>,
    /// Take over the volumes named here from the gateways that hold them; for one start by hand, because such
    /// a gateway exits with 10 when it has no volume left
    #[arg(long)]
    takeover: bool,
    /// Address of the admin server (metrics, health, API over HTTP): HOST:PORT, unix:PATH or none [default:
    /// 127.0.0.1:9180]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// Serve one client on standard input and output, and exit when it disconnects
    #[arg(long)]
    pub(super) stdio: bool,
}

impl Serve {
    /// Loads the settings, with these flags taking precedence.
    pub(super) fn config(&self) -> Result<Config, config::Errors> {
        let mut flags = Vec::new();
        let many = |key, flag, values: &[String]| {
            (!values.is_empty()).then(|| Flag { key, flag, value: FlagValue::Many(values.to_vec()) })
        };
        flags.extend(many("server.listen", "--listen", &self.listen));
        flags.extend(many("volumes.create", "--create", &self.create));
        if self.takeover {
            let value = FlagValue::One(true.to_string());
            flags.push(Flag { key: "lease.takeover", flag: "--takeover", value });
        }
        if let Some(address) = &self.admin {
            let value = FlagValue::One(address.clone());
            flags.push(Flag { key: "admin.listen", flag: "--admin", value });
        }
        self.common.config(flags)
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct Volume {
    #[command(subcommand)]
    pub(super) action: Action,
}

impl Volume {
    /// Loads the settings, with these flags taking precedence.
    pub(super) fn config(&self) -> Result<Config, config::Errors> {
        match &self.action {
            Action::Create(Create { place: Place { common, .. }, chunk_size, .. }) => {
                common.config(chunk_size_flag(chunk_size.as_ref()))
            }
            other => other.common().config(Vec::new()),
        }
    }

    /// Returns the gateway that should execute the command, or `None` for the store. The gateway is given by
    /// the path of its admin socket, or by `Some(None)` for the configured path.
    pub(super) fn gateway(&self) -> Option<&Option<PathBuf>> {
        self.action.place().and_then(|place| place.gateway.as_ref())
    }
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum Action {
    /// Create a volume that reads as zeros
    Create(Create),
    /// List all volumes
    List(List),
    /// Show one volume
    Info(Info),
    /// Show what a volume takes in the store: what is live, and what is garbage
    Usage(Usage),
    /// Change the size of a volume, also while clients use it; without --gateway, only of a volume that no
    /// gateway holds. Clients see the new size when they connect again
    Resize(Resize),
    /// Give a volume another name. No gateway may have it open, and no configuration may name it
    Rename(Rename),
    /// Delete a volume and all its data
    Delete(Delete),
    /// Make a volume what it was at a snapshot. What was written since then is lost, unless another snapshot
    /// has it. No gateway may hold the volume
    Restore(Restore),
}

impl Action {
    /// Returns where the action is carried out, or `None` if a gateway cannot do it.
    fn place(&self) -> Option<&Place> {
        match self {
            Self::Create(Create { place, .. })
            | Self::List(List { place, .. })
            | Self::Info(Info { place, .. })
            | Self::Resize(Resize { place, .. })
            | Self::Rename(Rename { place, .. })
            | Self::Delete(Delete { place, .. }) => Some(place),
            Self::Usage(_) | Self::Restore(_) => None,
        }
    }

    fn common(&self) -> &Common {
        match self {
            Self::Create(Create { place, .. })
            | Self::List(List { place, .. })
            | Self::Info(Info { place, .. })
            | Self::Resize(Resize { place, .. })
            | Self::Rename(Rename { place, .. })
            | Self::Delete(Delete { place, .. }) => &place.common,
            Self::Usage(Usage { common, .. }) | Self::Restore(Restore { common, .. }) => common,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    place: Place,
    /// Name: 1 to 128 characters of A-Z a-z 0-9 . _ -, not beginning with a dot
    pub(super) name: String,
    /// Size, such as 10GiB, 10GB or 4096
    pub(super) size: Size,
    /// Size of the objects that hold the data; cannot be changed later: 64KiB to 32MiB, a power of two
    /// [default: 4MiB]
    #[arg(long, value_name = "SIZE")]
    chunk_size: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    place: Place,
    /// List only volumes without a name: their creation or deletion is in progress or was interrupted
    #[arg(long)]
    pub(super) unnamed: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Info {
    #[command(flatten)]
    place: Place,
    /// Name of the volume
    pub(super) name: String,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Usage {
    #[command(flatten)]
    common: Common,
    /// Name of the volume
    pub(super) name: String,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Resize {
    #[command(flatten)]
    place: Place,
    /// Name of the volume
    pub(super) name: String,
    /// New size, such as 20GiB, 20GB or 4096
    pub(super) size: Size,
    /// Allow a smaller size: what is beyond it is discarded for good, except from snapshots
    #[arg(long)]
    pub(super) shrink: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Resize {
    pub(super) fn shrink(&self) -> Shrink {
        if self.shrink { Shrink::Discard } else { Shrink::Refuse }
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct Restore {
    #[command(flatten)]
    common: Common,
    /// Name of the volume and of its snapshot
    #[arg(value_name = "VOLUME@NAME")]
    pub(super) of: SnapshotName,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Rename {
    #[command(flatten)]
    place: Place,
    /// Name of the volume
    #[arg(value_name = "OLD")]
    pub(super) name: String,
    /// Its new name: 1 to 128 characters of A-Z a-z 0-9 . _ -, not beginning with a dot
    #[arg(value_name = "NEW")]
    pub(super) to: String,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Delete {
    #[command(flatten)]
    place: Place,
    /// Name of the volume
    #[arg(required_unless_present = "id")]
    pub(super) name: Option<String>,
    /// Id of the volume, as `volume list --unnamed` shows it, instead of a name; if it is still being
    /// created, the creation fails
    #[arg(long, value_name = "ID", conflicts_with = "name")]
    pub(super) id: Option<uuid::Uuid>,
    /// Delete the volume even if a gateway holds it; that gateway loses it
    #[arg(long)]
    pub(super) takeover: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Snapshot {
    #[command(subcommand)]
    pub(super) action: SnapshotAction,
}

impl Snapshot {
    /// Loads the settings, with these flags taking precedence.
    pub(super) fn config(&self) -> Result<Config, config::Errors> {
        self.action.place().common.config(Vec::new())
    }

    /// As [`Volume::gateway`].
    pub(super) fn gateway(&self) -> Option<&Option<PathBuf>> {
        self.action.place().gateway.as_ref()
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
}

impl SnapshotAction {
    fn place(&self) -> &Place {
        match self {
            Self::Create(SnapshotCreate { place, .. })
            | Self::List(SnapshotList { place, .. })
            | Self::Delete(SnapshotDelete { place, .. }) => place,
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

    /// As [`Volume::gateway`].
    pub(super) fn gateway(&self) -> Option<&Option<PathBuf>> {
        self.place.gateway.as_ref()
    }
}

#[cfg(test)]
mod tests;
