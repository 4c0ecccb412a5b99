//! The command line's grammar, and which flag sets which key of the configuration.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use url::Url;

use crate::config::{self, Config, Flag, FlagValue, Size};

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
    /// Create, list, show and delete volumes
    Volume(Volume),
    /// Work with NBD alone: serve files, ask servers, copy and mirror disks
    Nbd(Nbd),
    /// Ask a gateway whether it is ready; exits with 0 if it is, else with 1
    Health(Health),
}

#[derive(Clone, Debug, Args)]
pub(super) struct Nbd {
    #[command(subcommand)]
    pub(super) action: super::nbd::Action,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Health {
    /// What to ask; /health/live asks only whether it answers
    #[arg(default_value = "http://127.0.0.1:9180/health/ready", value_parser = super::health::parse)]
    pub(super) url: Url,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Common {
    /// Configuration file (TOML); the environment (CAIRN_<SECTION>__<KEY>) and flags go over it
    #[arg(long, value_name = "FILE", env = config::CONFIG_FILE)]
    config: Option<PathBuf>,
    /// Where the volumes are: file:///path, file://./path or s3://bucket/prefix [default:
    /// file://./cairn-data]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

/// Where a command on volumes is carried out.
#[derive(Clone, Debug, Args)]
pub(super) struct Place {
    #[command(flatten)]
    common: Common,
    /// Ask a gateway on this machine at its admin socket, not the store [default: admin.socket, or where it
    /// is by default]
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, require_equals = true, conflicts_with = "store")]
    gateway: Option<Option<PathBuf>>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    common: Common,
    /// Listen there: HOST:PORT or unix:PATH; several times for several [default: 127.0.0.1:10809]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// Make the volume where it is absent, and open it; an error where it stands with another size
    #[arg(long, value_name = "NAME=SIZE")]
    create: Vec<String>,
    /// Take volumes named here from whoever holds them, for one start by hand: that gateway then exits with
    /// 10
    #[arg(long)]
    takeover: bool,
    /// Metrics, health and volumes over HTTP: HOST:PORT, unix:PATH or none [default: 127.0.0.1:9180]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// Serve the one client on standard input and output, and end when it leaves
    #[arg(long)]
    pub(super) stdio: bool,
}

impl Serve {
    /// The settings, with these flags over them.
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
    /// The settings, with these flags over them.
    pub(super) fn config(&self) -> Result<Config, config::Errors> {
        match &self.action {
            Action::Create(Create { place: Place { common, .. }, chunk_size, .. }) => {
                let chunk = chunk_size.as_ref().map(|size| {
                    let value = FlagValue::One(size.clone());
                    Flag { key: "volumes.chunk_size", flag: "--chunk-size", value }
                });
                common.config(chunk.into_iter().collect())
            }
            other => other.place().common.config(Vec::new()),
        }
    }

    /// The gateway to ask, if one is: its socket, unless that is left to the settings.
    pub(super) fn gateway(&self) -> Option<&Option<PathBuf>> {
        self.action.place().gateway.as_ref()
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
    /// Delete a volume and all that it holds
    Delete(Delete),
}

impl Action {
    fn place(&self) -> &Place {
        match self {
            Self::Create(Create { place, .. })
            | Self::List(List { place, .. })
            | Self::Info(Info { place, .. })
            | Self::Delete(Delete { place, .. }) => place,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    place: Place,
    /// 1 to 128 of A-Z a-z 0-9 . _ -, not beginning with a dot
    pub(super) name: String,
    /// Such as 10GiB, 10GB or 4096
    pub(super) size: Size,
    /// Size of the objects that hold the data, fixed for ever: 64KiB to 32MiB, a power of two [default: 4MiB]
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
    /// Only volumes that have no name: they are being created or deleted, or that was cut short
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
    /// Its name
    pub(super) name: String,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Delete {
    #[command(flatten)]
    place: Place,
    /// Its name
    #[arg(required_unless_present = "id")]
    pub(super) name: Option<String>,
    /// Its id instead of a name, as `volume list --unnamed` shows it; whoever is still creating it fails
    #[arg(long, value_name = "ID", conflicts_with = "name")]
    pub(super) id: Option<uuid::Uuid>,
    /// Delete it although a gateway holds it: that gateway loses it
    #[arg(long)]
    pub(super) takeover: bool,
}

impl Common {
    fn config(&self, mut flags: Vec<Flag>) -> Result<Config, config::Errors> {
        if let Some(url) = &self.store {
            flags.push(Flag { key: "store.url", flag: "--store", value: FlagValue::One(url.clone()) });
        }
        config::load(self.config.as_deref(), std::env::vars_os(), flags)
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
    fn a_gateway_is_asked_where_it_is_named_or_expected() {
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
            "cairn volume list --gateway=/s --store file:///x",
            "cairn volume delete",
            "cairn volume delete disk --id 00000000-0000-4000-8000-000000000001",
            "cairn volume delete --id disk",
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
