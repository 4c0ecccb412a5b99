//! `cairn snapshot`: takes, lists, compares and deletes snapshots.
//!
//! Owns the choice between the store and a gateway, and must not know how a snapshot is stored. Invariant:
//! in the store, a volume is changed only while no gateway holds it, and never taken over.

use super::api_client::Gateway;
use super::diff;
use super::environment::for_reading;
use super::error::Error;
use super::opened::{close, open};
use super::printed::{print, print_json, table};
use super::settings::Options;
use super::snapshot_args::SnapshotAction;
use super::snapshot_name::SnapshotName;
use super::volume::Place;
use crate::admin::SnapshotView;
use crate::metrics::Metrics;
use crate::volume::{SnapshotError, catalog, snapshot};

/// Executes a command.
pub(super) async fn run(action: SnapshotAction, options: Options, place: Place) -> Result<(), Error> {
    match place {
        Place::Store => in_store(action, options).await,
        Place::Gateway(gateway) => by_gateway(action, &gateway).await,
    }
}

async fn by_gateway(action: SnapshotAction, gateway: &Gateway) -> Result<(), Error> {
    match action {
        SnapshotAction::Create(args) => {
            let taken = gateway.take_snapshot(&args.of.volume, &args.of.name).await?;
            print_taken(&args.of, &taken, args.json)
        }
        SnapshotAction::List(args) => print_all(&gateway.snapshots(&args.volume).await?, args.json),
        SnapshotAction::Delete(args) => {
            gateway.delete_snapshot(&args.of.volume, &args.of.name).await?;
            print(&format!("deleted {}\n", args.of))
        }
        SnapshotAction::Diff(_) => unreachable!("the grammar has no gateway for it"),
    }
}

async fn in_store(action: SnapshotAction, options: Options) -> Result<(), Error> {
    match action {
        SnapshotAction::Create(args) => {
            let volume = open(options, &args.of.volume).await?;
            let taken = volume.snapshot(&args.of.name).await;
            let closed = close(&volume, &args.of.volume).await;
            let taken = taken.map_err(|source| failed(&args.of, source))?;
            print_taken(&args.of, &taken.into(), args.json)?;
            closed
        }
        SnapshotAction::List(args) => {
            let env = for_reading(options, &Metrics::new()).await?;
            let of = |source| Error::Volume { name: args.volume.clone(), source };
            let id = catalog::resolve(&env, &args.volume).await.map_err(of)?;
            let listed = snapshot::list(&env, id).await.map_err(of)?;
            print_all(&listed.into_iter().map(SnapshotView::from).collect::<Vec<_>>(), args.json)
        }
        SnapshotAction::Delete(args) => {
            let volume = open(options, &args.of.volume).await?;
            let deleted = volume.delete_snapshot(&args.of.name).await;
            let closed = close(&volume, &args.of.volume).await;
            deleted.map_err(|source| failed(&args.of, source))?;
            print(&format!("deleted {}\n", args.of))?;
            closed
        }
        SnapshotAction::Diff(args) => Box::pin(diff::run(args, options)).await,
    }
}

/// Makes a volume what it was at a snapshot.
pub(super) async fn restore(of: SnapshotName, options: Options) -> Result<(), Error> {
    let volume = open(options, &of.volume).await?;
    if let Err(error) = volume.restore(&of.name).await {
        if matches!(error, SnapshotError::NoSuchSnapshot(_)) {
            close(&volume, &of.volume).await?;
        }
        return Err(failed(&of, error));
    }
    print(&format!("restored {of}\n"))
}

fn failed(of: &SnapshotName, source: SnapshotError) -> Error {
    Error::Snapshot { of: of.to_string(), source }
}

fn print_taken(of: &SnapshotName, taken: &SnapshotView, json: bool) -> Result<(), Error> {
    if json { print_json(taken) } else { print(&format!("created {of}\n")) }
}

fn print_all(snapshots: &[SnapshotView], json: bool) -> Result<(), Error> {
    if json {
        return print_json(&snapshots);
    }
    let head = ["NAME", "TAKEN"].map(str::to_owned);
    let rows = snapshots.iter().map(|snapshot| [snapshot.name.clone(), snapshot.taken_at.clone()]);
    print(&table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()))
}
