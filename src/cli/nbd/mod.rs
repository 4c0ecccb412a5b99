//! `cairn nbd`: what can be done with NBD and files alone, without a store.
//!
//! Files and servers' exports are both [`Export`](crate::server::Export)s here ([`disk`]), so that whatever
//! is done to one can be done to the other.

mod args;
mod copy;
mod disk;
mod file;
mod host;
mod identity;
mod mirror;
mod place;
mod query;
mod ranges;
mod remote;

pub(super) use args::Action;

use super::error::Error;
use super::listeners::Inherited;

/// Does what was asked for.
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
