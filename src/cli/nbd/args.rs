//! The grammar of `cairn nbd`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::error::Error;
use crate::cli::listeners::Inherited;

#[derive(Clone, Debug, Subcommand)]
pub(in crate::cli) enum Action {
    /// Serve a file or a block device over NBD until SIGTERM or SIGINT
    Serve(Serve),
    /// Print the size of an export in bytes
    Size(Size),
    /// Print the names of a server's exports; exits with 1 if it cannot list them, with 2 if its policy forbids it, with 3 if it
    /// cannot be asked
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
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(super) address: String,
    /// TCP port to listen on; 0 for any
    #[arg(long, default_value_t = crate::client::uri::DEFAULT_PORT)]
    pub(super) port: u16,
    /// Listen on this Unix socket, and on no port
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Name of the export, which is the default one too
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(super) exportname: String,
    #[command(flatten)]
    pub(super) encryption: Encryption,
    /// Serve the one client on standard input and output, and end when it leaves
    #[arg(long)]
    pub(super) stdio: bool,
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
    /// Name or address of the server
    pub(super) host: String,
    /// Its port
    pub(super) port: u16,
    /// Name of the export
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(super) export: String,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct List {
    /// Name or address of the server
    pub(super) host: String,
    /// Its port
    pub(super) port: u16,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Info {
    /// nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH, or nbds for TLS
    pub(super) uri: String,
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
    pub(super) source: String,
    /// File, block device or NBD URI; a file is made, or replaced
    pub(super) target: String,
    /// Connections to each server that allows several
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) connections: u16,
    /// Show no progress
    #[arg(long)]
    pub(super) quiet: bool,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Mirror {
    /// File, block device or NBD URI: what is served
    pub(super) primary: String,
    /// File, block device or NBD URI of the same size: what it is copied to
    pub(super) secondary: String,
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
