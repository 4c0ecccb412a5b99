//! The grammar of `cairn nbd`.
//!
//! Owns the arguments of its commands, and must not know what they do. Invariant: arguments that contradict
//! each other are refused before anything is opened.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::place::{DiskName, ServerName};
use crate::cli::error::Error;
use crate::cli::listeners::Inherited;
use crate::client::Options;
use crate::protocol::meta_context::BASE_ALLOCATION;

#[derive(Clone, Debug, Subcommand)]
pub(in crate::cli) enum Action {
    /// Serve a file or a block device over NBD until SIGTERM or SIGINT
    Serve(Serve),
    /// Print the size of an export in bytes
    Size(Size),
    /// Print the names of a server's exports; exits with 1 if the server cannot list them, with 2 if its
    /// policy forbids it, and with 3 if the server cannot be reached
    List(List),
    /// Show what a server reports about an export
    Info(Info),
    /// Copy a disk and keep its holes
    Copy(Copy),
    /// Serve a disk while copying it to another one; writes go to both
    Mirror(Mirror),
}

/// How a single export is served.
#[derive(Clone, Debug, Args)]
pub(super) struct Host {
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) address: Option<String>,
    /// TCP port to listen on; 0 for any [default: 10809]
    #[arg(long)]
    pub(super) port: Option<u16>,
    /// Listen on this Unix socket instead of a port
    #[arg(long, value_name = "PATH", conflicts_with_all = ["address", "port"])]
    pub(super) socket: Option<PathBuf>,
    /// Name of the export, which is also the default export
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(super) exportname: String,
    #[command(flatten)]
    pub(super) encryption: Encryption,
    /// Serve one client on standard input and output, do not listen, and exit when the client disconnects
    #[arg(long, conflicts_with_all = ["address", "port", "socket"])]
    pub(super) stdio: bool,
}

/// How long servers are waited for.
#[derive(Clone, Copy, Debug, Args)]
pub(in crate::cli) struct Waiting {
    /// Give up on a server that owes an answer but neither sends nor accepts a byte for this long, such as
    /// 30s; or never. The handshake may take this long too, but at most 30s
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    timeout: Limit,
}

/// A time limit, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<Duration>);

/// Maximum limit. A longer one would be of no use to anybody.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self(None));
        }
        let limit = humantime::parse_duration(text)
            .map_err(|error| format!("{error}; write a duration such as 30s or 5m, or never"))?;
        if limit.is_zero() || limit > LONGEST {
            return Err("must be more than 0 and at most a year, or never".to_owned());
        }
        Ok(Self(Some(limit)))
    }
}

impl Waiting {
    /// Returns the client options with these limits.
    pub(in crate::cli) fn options(self) -> Options {
        let Limit(stall_timeout) = self.timeout;
        let mut options = Options { stall_timeout, ..Options::default() };
        if let Some(limit) = stall_timeout {
            options.handshake_timeout = options.handshake_timeout.min(limit);
        }
        options
    }
}

#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Encryption {
    /// PEM file with the server's certificate and key; clients must use TLS
    #[arg(long, value_name = "PEM")]
    pub(super) certfile: Option<PathBuf>,
    /// Do not use TLS: everyone who can reach the port can read and write
    #[arg(long)]
    no_tls: bool,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Serve {
    /// File or block device
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) host: Host,
    /// Serve the disk read-only
    #[arg(long)]
    pub(super) read_only: bool,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Size {
    #[command(flatten)]
    pub(super) server: ServerName,
    /// Name of the export, if the URI does not contain one
    #[arg(long, value_name = "NAME")]
    pub(super) export: Option<String>,
    #[command(flatten)]
    pub(super) waiting: Waiting,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct List {
    #[command(flatten)]
    pub(super) server: ServerName,
    #[command(flatten)]
    pub(super) waiting: Waiting,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Info {
    #[command(flatten)]
    pub(super) server: ServerName,
    /// Name of the export, if the URI does not contain one
    #[arg(long, value_name = "NAME")]
    pub(super) export: Option<String>,
    #[command(flatten)]
    pub(super) waiting: Waiting,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Show the allocation: offset, length and type of each extent; or the extents in another metadata
    /// context, such as --map=qemu:dirty-bitmap:NAME
    #[arg(long, value_name = "CONTEXT", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = BASE_ALLOCATION)]
    pub(super) map: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Copy {
    /// File, block device or NBD URI
    pub(super) source: DiskName,
    /// File, block device or NBD URI of a different disk; a file is created or replaced
    pub(super) target: DiskName,
    #[command(flatten)]
    pub(super) waiting: Waiting,
    /// Number of connections to each server that allows several
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) connections: u16,
    /// Show no progress
    #[arg(long)]
    pub(super) quiet: bool,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Mirror {
    /// Disk to serve: file, block device or NBD URI
    pub(super) primary: DiskName,
    /// Disk to copy to, a different one of the same size: file, block device or NBD URI
    pub(super) secondary: DiskName,
    #[command(flatten)]
    pub(super) waiting: Waiting,
    #[command(flatten)]
    pub(super) host: Host,
}

impl Action {
    /// Takes the sockets and the connection that the process inherited, if the command can use them.
    pub(in crate::cli) fn inherited(&self) -> Result<Inherited, Error> {
        match self {
            Self::Serve(Serve { host, .. }) | Self::Mirror(Mirror { host, .. }) => {
                Inherited::take(host.stdio)
            }
            Self::Size(_) | Self::List(_) | Self::Info(_) | Self::Copy(_) => Ok(Inherited::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_duration_or_never() {
        let limit = |text: &str| text.parse::<Limit>().map(|Limit(limit)| limit);
        assert_eq!(limit("30s"), Ok(Some(Duration::from_secs(30))));
        assert_eq!(limit("5m"), Ok(Some(Duration::from_secs(300))));
        assert_eq!(limit("never"), Ok(None));
        for bad in ["", "30", "0s", "-1s", "2years", "soon"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_handshake_takes_at_most_the_limit() {
        let options = |limit: &str| Waiting { timeout: limit.parse().unwrap() }.options();
        assert_eq!(options("2s").handshake_timeout, Duration::from_secs(2));
        assert_eq!(options("5m").handshake_timeout, Duration::from_secs(30));
        assert_eq!(options("never").handshake_timeout, Duration::from_secs(30));
    }
}
