//! The grammar of the command line, and which flag sets which setting.
//!
//! Owns the arguments, and must not know what a command does. Invariant: every flag that sets a setting takes
//! precedence over the other sources.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use url::Url;

use super::backup_args::Backup;
use super::endpoint::{Endpoint, Exported, Format};
use super::nbd::Waiting;
use super::place::{Common, Place};
use super::snapshot_args::{CloneArgs, Snapshot};
use super::snapshot_name::{self, Earlier, SnapshotName};
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
    /// Create, list, show, resize, rename and delete volumes, bring deleted ones back, and show what volumes
    /// take
    Volume(Volume),
    /// Take, list, compare and delete snapshots: what a volume contained at one instant, served read-only as
    /// VOLUME@NAME
    Snapshot(Snapshot),
    /// Make a new volume that begins with the content of a snapshot and shares its objects; without
    /// --gateway, only of a volume that no gateway holds
    Clone(CloneArgs),
    /// Make a new volume of a raw or qcow2 image, an NBD export or standard input. It gets its name once all
    /// of it is in the store. With --onto, bring a copy up to date with what cairn export --since wrote
    Import(Import),
    /// Copy a snapshot, or a volume that no gateway holds, to an image, an NBD export or standard output.
    /// With --since, write only what differs from an earlier snapshot
    Export(Export),
    /// Bring a copy of a snapshot into another store, as a volume that has a snapshot for each backup. Only
    /// what has changed since the last backup is sent. The volume may be in use; the copy may not
    Backup(Backup),
    /// Verify a volume in the store, also while a gateway serves it; changes nothing. Exits with 0 if it is
    /// sound, with 1 if damage was found, and with 2 if it could not be checked
    Check(Check),
    /// Delete the objects of volumes that nothing references: what crashes and late requests left; without
    /// --gateway, only of volumes that no gateway holds
    Gc(Gc),
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

#[derive(Clone, Debug, Args)]
pub(super) struct Gc {
    #[command(flatten)]
    place: Place,
    /// Names of the volumes; without any, all volumes, and volumes without a name are listed
    #[arg(value_name = "VOLUME")]
    pub(super) names: Vec<String>,
    /// Only show what would be deleted, also while a gateway serves the volumes
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Gc {
    /// Loads the settings, with these flags taking precedence.
    pub(super) fn config(&self) -> Result<Config, config::Errors> {
        self.place.common.config(Vec::new())
    }

    /// As [`Volume::gateway`].
    pub(super) fn gateway(&self) -> Option<&Option<PathBuf>> {
        self.place.gateway.as_ref()
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
    #[arg(value_name = "VOLUME", required_unless_present = "onto")]
    name: Option<String>,
    /// Size of the objects that hold the data; cannot be changed later: 64KiB to 32MiB, a power of two
    /// [default: 4MiB]
    #[arg(long, value_name = "SIZE", conflicts_with = "resume")]
    chunk_size: Option<String>,
    /// Apply what cairn export --since wrote to this volume, which no gateway may hold. It must have the
    /// content of the snapshot that was named there
    #[arg(long, value_name = "VOLUME", conflicts_with_all = ["name", "chunk_size", "format"])]
    pub(super) onto: Option<String>,
    /// Take a snapshot of this name of the volume in the end
    #[arg(long, value_name = "NAME", requires = "onto", conflicts_with = "name",
          value_parser = snapshot_name::name)]
    pub(super) snapshot: Option<String>,
    #[command(flatten)]
    pub(super) transfer: Transfer,
}

impl Import {
    /// The name of the new volume.
    pub(super) fn name(&self) -> &str {
        self.name.as_deref().expect("the grammar demands it without --onto")
    }

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
    /// Write only what differs from this earlier snapshot of the volume, to a file or standard output; cairn
    /// import --onto applies it to a copy
    #[arg(long, value_name = "@SNAPSHOT", conflicts_with_all = ["format", "resume"])]
    pub(super) since: Option<Earlier>,
    /// Read all of both snapshots and add their SHA-256, by which any copy of the earlier one is recognised
    #[arg(long, requires = "since")]
    pub(super) digest: bool,
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
    /// Make a clone independent of other volumes: what it shares with them is written once more, as its own;
    /// without --gateway, only of a volume that no gateway holds
    Flatten(Flatten),
    /// Load a volume into the cache of a gateway (--gateway): what clients read first after an earlier
    /// opening, which `volumes.record_reads` records. It takes at most half of the cache, and no room that is
    /// in use
    Warm(Warm),
    /// Delete a volume and all its data. `volume undelete` brings it back while it is kept: for
    /// `volumes.undelete`, a day by default
    Delete(Delete),
    /// Bring a deleted volume back with its data and snapshots. `volume list --deleted` shows which can be
    Undelete(Undelete),
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
            | Self::Flatten(Flatten { place, .. })
            | Self::Warm(Warm { place, .. })
            | Self::Delete(Delete { place, .. })
            | Self::Undelete(Undelete { place, .. }) => Some(place),
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
            | Self::Flatten(Flatten { place, .. })
            | Self::Warm(Warm { place, .. })
            | Self::Delete(Delete { place, .. })
            | Self::Undelete(Undelete { place, .. }) => &place.common,
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
    /// List only deleted volumes that `volume undelete` can bring back
    #[arg(long, conflicts_with = "unnamed")]
    pub(super) deleted: bool,
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
pub(super) struct Flatten {
    #[command(flatten)]
    place: Place,
    /// Name of the volume
    pub(super) name: String,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Warm {
    #[command(flatten)]
    place: Place,
    /// Name of the volume
    pub(super) name: String,
    /// Load the data of the disk from its beginning, and not what was recorded
    #[arg(long)]
    pub(super) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
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
    #[arg(required_unless_present_any = ["id", "deleted"])]
    pub(super) name: Option<String>,
    /// Id of the volume, as `volume list --unnamed` shows it, instead of a name; it is deleted for good,
    /// whether or not it is in use. If it is still being created, the creation fails
    #[arg(long, value_name = "ID", conflicts_with = "name")]
    pub(super) id: Option<uuid::Uuid>,
    /// Id of a deleted volume, as `volume list --deleted` shows it; it is deleted for good, unless it was
    /// brought back meanwhile
    #[arg(long, value_name = "ID", conflicts_with_all = ["name", "id", "takeover"])]
    pub(super) deleted: Option<uuid::Uuid>,
    /// Delete the volume for good, at once
    #[arg(long)]
    pub(super) now: bool,
    /// Delete the volume even if a gateway holds it; that gateway loses it
    #[arg(long)]
    pub(super) takeover: bool,
}

/// The volume that a command deletes.
#[derive(Clone, Debug)]
pub(super) enum Doomed {
    /// The one with this name.
    Named(String),
    /// The one with this id.
    Id(uuid::Uuid),
    /// The one with this id, but only while it is kept.
    Kept(uuid::Uuid),
}

impl Delete {
    pub(super) fn which(&self) -> Doomed {
        match (&self.name, self.id, self.deleted) {
            (Some(name), ..) => Doomed::Named(name.clone()),
            (None, Some(id), _) => Doomed::Id(id),
            (None, None, Some(id)) => Doomed::Kept(id),
            (None, None, None) => unreachable!("the grammar asks for one of them"),
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct Undelete {
    #[command(flatten)]
    place: Place,
    /// The name that the volume had, or its id
    #[arg(value_name = "NAME|ID")]
    pub(super) which: String,
    /// Bring it back under another name: 1 to 128 characters of A-Z a-z 0-9 . _ -, not beginning with a dot
    #[arg(long = "as", value_name = "NEW")]
    pub(super) to: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[cfg(test)]
mod tests;
