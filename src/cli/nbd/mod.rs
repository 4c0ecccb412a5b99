//! `cairn nbd`: commands that work on NBD and files alone, without a store.
//!
//! Owns these commands and what they have in common with `cairn import` and `cairn export`. It must not know
//! volumes. Files and exports of servers are both
//! [`Export`](crate::server::Export)s here ([`disk`]). Invariant: what works with one kind of disk works with
//! the other.

mod args;
mod copy;
mod disk;
mod file;
mod host;
mod identity;
mod mirror;
mod pieces;
mod place;
mod query;
mod ranges;
mod remote;
mod target;

pub(super) use args::{Action, Waiting};
pub(super) use copy::{check_source, check_target};
pub(super) use disk::Disk;
pub(super) use file::FileExport;
pub(super) use pieces::{Content, Part, Source, Units};
pub(super) use place::{DiskName, DiskNameError, Place};
pub(super) use remote::Connecting;
pub(super) use target::Target;

use super::error::Error;
use super::listeners::Inherited;

/// Executes a command.
pub(super) async fn run(action: Action, inherited: Inherited) -> Result<(), Error> {
    match action {
        Action::Serve(args) => host::serve_file(args, inherited).await,
        Action::Size(args) => query::size(args).await,
        Action::List(args) => query::list(args).await,
        Action::Info(args) => query::info(args).await,
        Action::Copy(args) => copy::run(args).await,
        Action::Mirror(args) => mirror::run(args, inherited).await,
    }
}
