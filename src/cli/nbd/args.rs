//! The grammar of `cairn nbd`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::place::{DiskName, ServerName};
use crate::cli::error::Error;
use crate::cli::listeners::Inherited;
use crate::client::Options;

#[derive(Clone, Debug, Subcommand)]
pub(in crate::cli) enum Action {
    /// Serve a file or a block device over NBD until SIGTERM or SIGINT
    Serve(Serve),
    /// Print the size of an export in bytes
    Size(Size),
    /// Print the names of a server's exports; exits with 1 if it cannot list them, with 2 if its policy
    /// forbids it, with 3 if it cannot be asked
    List(List),
    /// Show what a server tells of an export
    Info(Info),
    /// Copy a disk, holes as holes
    Copy(Copy),
    /// Serve a disk while copying it to another; what is written goes to both
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
    /// Listen on this Unix socket, and on no port
    #[arg(long, value_name = "PATH", conflicts_with_all = ["address", "port"])]
    pub(super) socket: Option<PathBuf>,
    /// Name of the export, which is the default one too
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(super) exportname: String,
    #[command(flatten)]
    pub(super) encryption: Encryption,
    /// Serve the one client on standard input and output, listen nowhere, and end when the client leaves
    #[arg(long, conflicts_with_all = ["address", "port", "socket"])]
    pub(super) stdio: bool,
}

/// How long servers are waited for.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Waiting {
    /// Give up a server that neither sends nor takes a byte for this long although it owes an answer, such as
    /// 30s; or never. A server is given this time, and no more than 30s, for the handshake
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    timeout: Limit,
}

/// A duration, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<Duration>);

/// No longer than this is of use to anybody.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self(None));
        }
        let limit = humantime::parse_duration(text).map_err(|error| format!("{error}; 30s, 5m or never"))?;
        if limit.is_zero() || limit > LONGEST {
            return Err("more than 0 and at most a year, or never".to_owned());
        }
        Ok(Self(Some(limit)))
    }
}

impl Waiting {
    /// The client's options with these limits.
    pub(super) fn options(self) -> Options {
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
    /// Clients must use TLS; PEM file with the server's certificate and its key
    #[arg(long, value_name = "PEM")]
    pub(super) certfile: Option<PathBuf>,
    /// Clients cannot use TLS: whoever reaches the port may read and write
    #[arg(long)]
    no_tls: bool,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Serve {
    /// File or block device
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) host: Host,
    /// Let no client write
    #[arg(long)]
    pub(super) read_only: bool,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Size {
    #[command(flatten)]
    pub(super) server: ServerName,
    /// Name of the export, if the URI has none
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
    /// Name of the export, if the URI has none
    #[arg(long, value_name = "NAME")]
    pub(super) export: Option<String>,
    #[command(flatten)]
    pub(super) waiting: Waiting,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Tell what is allocated: offset, length, and what it is
    #[arg(long)]
    pub(super) map: bool,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Copy {
    /// File, block device or NBD URI
    pub(super) source: DiskName,
    /// File, block device or NBD URI, and another disk than the source; a file is made, or replaced
    pub(super) target: DiskName,
    #[command(flatten)]
    pub(super) waiting: Waiting,
    /// Connections to each server that allows several
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) connections: u16,
    /// Show no progress
    #[arg(long)]
    pub(super) quiet: bool,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Mirror {
    /// File, block device or NBD URI: what is served
    pub(super) primary: DiskName,
    /// File, block device or NBD URI of the same size, and another disk: what it is copied to
    pub(super) secondary: DiskName,
    #[command(flatten)]
    pub(super) waiting: Waiting,
    #[command(flatten)]
    pub(super) host: Host,
}

impl Action {
    /// What whoever started this process has opened for it, where that is of use.
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
    fn the_handshake_takes_no_longer_than_the_limit() {
        let options = |limit: &str| Waiting { timeout: limit.parse().unwrap() }.options();
        assert_eq!(options("2s").handshake_timeout, Duration::from_secs(2));
        assert_eq!(options("5m").handshake_timeout, Duration::from_secs(30));
        assert_eq!(options("never").handshake_timeout, Duration::from_secs(30));
    }
}
