//! `cairn gc`: deletes what nothing references of volumes.
//!
//! Owns the choice between the store and a gateway, and must not know how garbage is found. Invariants: in
//! the store, a volume is changed only while no gateway holds it, and never taken over. A volume that fails
//! does not keep the others from being collected. Volumes without a name are only listed.

use super::api_client::Gateway;
use super::args::Gc;
use super::environment::for_reading;
use super::error::Error;
use super::gc_view::{Outcome, print_all};
use super::opened::{close, open_in, prepare};
use super::settings::Options;
use super::volume::Place;
use super::volume_view::Row;
use crate::admin::{GarbageView, UnnamedView};
use crate::metrics::Metrics;
use crate::volume::{self, CollectError, Environment, catalog, gc};

/// Executes the command.
pub(super) async fn run(args: Gc, options: Options, place: Place) -> Result<(), Error> {
    let (mut outcomes, unnamed) = match place {
        Place::Store => Box::pin(in_store(&args, options)).await?,
        Place::Gateway(gateway) => by_gateway(&args, &gateway).await?,
    };
    let failed = outcomes.iter().filter(|outcome| outcome.collected.is_err()).count();
    if let ([Outcome { collected: Err(_), .. }], false) = (&outcomes[..], args.names.is_empty()) {
        return outcomes.remove(0).collected.map(drop);
    }
    print_all(&outcomes, &unnamed, args.dry_run, args.json)?;
    match failed {
        0 => Ok(()),
        failed => Err(Error::Uncollected { failed, all: outcomes.len() }),
    }
}

type Outcomes = (Vec<Outcome>, Vec<UnnamedView>);

async fn in_store(args: &Gc, options: Options) -> Result<Outcomes, Error> {
    let (env, of_volume) = match args.dry_run {
        true => (for_reading(options, &Metrics::new()).await?, None),
        false => {
            let (env, of_volume) = prepare(options).await?;
            (env, Some(of_volume))
        }
    };
    let (names, unnamed) = match args.names.is_empty() {
        false => (args.names.clone(), Vec::new()),
        true => {
            let unnamed = catalog::unnamed(&env).await.map_err(Error::List)?;
            let names = catalog::list(&env).await.map_err(Error::List)?;
            (names, unnamed.into_iter().map(UnnamedView::from).collect())
        }
    };
    let mut outcomes = Vec::new();
    for name in names {
        let collected = match &of_volume {
            None => gc::look(&env, &name).await.map(GarbageView::from).map_err(|error| failed(&name, error)),
            Some(options) => collect(&env, options.clone(), &name).await,
        };
        outcomes.push(Outcome { name, collected });
    }
    Ok((outcomes, unnamed))
}

async fn collect(env: &Environment, options: volume::Options, name: &str) -> Result<GarbageView, Error> {
    let before = gc::look(env, name).await.map_err(|error| failed(name, error))?;
    let volume = open_in(env, options, name).await?;
    let collected = gc::collect(&volume, Some(before)).await;
    let closed = close(&volume, name).await;
    let collected = collected.map_err(|error| failed(name, error))?;
    closed?;
    Ok(collected.into())
}

async fn by_gateway(args: &Gc, gateway: &Gateway) -> Result<Outcomes, Error> {
    let (names, unnamed) = match args.names.is_empty() {
        false => (args.names.clone(), Vec::new()),
        true => {
            let unnamed = gateway.unnamed().await?;
            let name = |row| match row {
                Row::Volume(info) => info.name,
                Row::Problem { name, .. } => name,
            };
            (gateway.list().await?.into_iter().map(name).collect(), unnamed)
        }
    };
    let mut outcomes = Vec::new();
    for name in names {
        let collected = gateway.collect(&name, args.dry_run).await;
        outcomes.push(Outcome { name, collected });
    }
    Ok((outcomes, unnamed))
}

fn failed(name: &str, source: CollectError) -> Error {
    let name = name.to_owned();
    match source {
        CollectError::Open(source) => Error::Volume { name, source },
        source => Error::Collect { name, source },
    }
}
