//! `cairn clone`: makes a volume that begins with the content of a snapshot.
//!
//! Owns the choice between the store and a gateway, and must not know how a clone is stored. Invariant: in
//! the store, the volume of the snapshot is changed only while no gateway holds it, and never taken over.

use super::error::Error;
use super::opened::{close, open};
use super::settings::Options;
use super::snapshot_args::CloneArgs;
use super::volume::Place;
use super::volume_view::print_cloned;
use crate::volume::{CloneError, catalog};

/// Executes the command.
pub(super) async fn run(args: CloneArgs, options: Options, place: Place) -> Result<(), Error> {
    let info = match place {
        Place::Gateway(gateway) => gateway.clone_snapshot(&args.of.volume, &args.of.name, &args.name).await?,
        Place::Store => {
            let volume = open(options, &args.of.volume).await?;
            let made = catalog::clone(&volume, &args.of.name, &args.name).await;
            let closed = close(&volume, &args.of.volume).await;
            let info = made.map_err(|source| failed(&args, source))?;
            closed?;
            info
        }
    };
    print_cloned(&info, &args.of, args.json)
}

fn failed(args: &CloneArgs, source: CloneError) -> Error {
    match source {
        CloneError::Volume(source) => Error::Volume { name: args.name.clone(), source },
        CloneError::Snapshot(source) => Error::Snapshot { of: args.of.to_string(), source },
        source @ CloneError::TooDeep(_) => Error::Clone { of: args.of.to_string(), source },
    }
}
