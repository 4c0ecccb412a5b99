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
    /// Create, list, show, resize and delete volumes, and show what they take
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
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_full_command_line() {
        let line =
            "cairn serve --store s3://b/p --listen 127.0.0.1:0 --listen unix:/s --create a=1GiB --takeover";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Serve(serve) = cli.command else { panic!("not serve") };
        assert_eq!(serve.listen, ["127.0.0.1:0", "unix:/s"]);
        assert_eq!(serve.create, ["a=1GiB"]);
        assert!(serve.takeover);
    }

    #[test]
    fn a_gateway_is_found_at_the_given_or_default_socket() {
        let gateway = |line: &str| {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Volume(volume) = cli.command else { panic!("not volume") };
            volume.gateway().cloned()
        };
        assert_eq!(gateway("cairn volume list"), None);
        assert_eq!(gateway("cairn volume delete --gateway disk"), Some(None));
        assert_eq!(gateway("cairn volume info disk --gateway=/s"), Some(Some("/s".into())));
    }

    #[test]
    fn a_snapshot_is_named_after_its_volume() {
        let cli = Cli::try_parse_from(["cairn", "snapshot", "delete", "--gateway", "disk@monday.1"]).unwrap();
        let Command::Snapshot(snapshot) = cli.command else { panic!("not snapshot") };
        assert_eq!(snapshot.gateway(), Some(&None));
        let SnapshotAction::Delete(delete) = snapshot.action else { panic!("not delete") };
        assert_eq!((&*delete.of.volume, &*delete.of.name), ("disk", "monday.1"));
        assert_eq!(delete.of.to_string(), "disk@monday.1");
    }

    #[test]
    fn mistakes_are_refused() {
        for line in [
            "cairn",
            "cairn sevre",
            "cairn serve extra",
            "cairn serve --listen",
            "cairn volume",
            "cairn volume create disk",
            "cairn volume create disk 1G",
            "cairn volume create disk -1",
            "cairn volume info",
            "cairn volume list name",
            "cairn volume usage",
            "cairn volume usage disk --gateway",
            "cairn snapshot",
            "cairn snapshot create disk",
            "cairn snapshot create @monday",
            "cairn snapshot create disk@",
            "cairn snapshot create disk@a@b",
            "cairn snapshot create a/b@monday",
            "cairn snapshot create disk@.hidden",
            "cairn snapshot list",
            "cairn snapshot list --gateway=/s --store file:///x disk",
            "cairn snapshot delete disk monday",
            "cairn import disk.img",
            "cairn import disk.img disk extra",
            "cairn import disk.img disk --resume --chunk-size 1MiB",
            "cairn import disk.img disk --format vmdk",
            "cairn export disk",
            "cairn export disk@ disk.img",
            "cairn export disk@a@b disk.img",
            "cairn export disk disk.img --gateway",
            "cairn check",
            "cairn check disk --gateway",
            "cairn check a b",
            "cairn volume list --gateway=/s --store file:///x",
            "cairn volume resize disk",
            "cairn volume resize disk 1G",
            "cairn volume resize disk 1GiB 2GiB",
            "cairn volume delete",
            "cairn volume delete disk --id 00000000-0000-4000-8000-000000000001",
            "cairn volume delete --id disk",
            "cairn bench",
            "cairn bench store",
            "cairn bench store s3://b --store s3://c",
            "cairn bench store s3://b --size 4M",
            "cairn health 127.0.0.1:9180",
            "cairn nbd",
            "cairn nbd serve disk.img",
            "cairn nbd serve disk.img --certfile c.pem --no-tls",
            "cairn nbd serve --no-tls",
            "cairn nbd size host 70000",
            "cairn nbd copy - b",
            "cairn nbd copy a -",
            "cairn nbd copy http://host/a b",
            "cairn nbd copy a b --timeout 0s",
            "cairn nbd serve a --no-tls --stdio --socket s",
            "cairn nbd serve a --no-tls --stdio --port 0",
            "cairn nbd serve a --no-tls --stdio --address ::1",
            "cairn nbd serve a --no-tls --socket s --port 0",
            "cairn nbd mirror a b --no-tls --stdio --socket s",
            "cairn nbd mirror a - --no-tls",
            "cairn nbd copy a b c",
            "cairn nbd copy a b --connections 0",
            "cairn nbd mirror a --no-tls",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
