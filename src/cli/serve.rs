//! `cairn serve`: from the options to a serving process, and from a signal to a clean end.
//!
//! Invariants: it says that it listens only when every listener accepts and every configured volume is open; the lease
//! of a volume is released last, after what clients were told is durable.

use std::sync::Arc;
use std::time::Duration;

use super::catalogue::Catalogue;
use super::error::Error;
use super::exports::VolumeExports;
use super::open_volumes::{self, OpenVolumes};
use super::process::{self, Signals};
use super::settings::Options;
use super::size::Wanted;
use super::{volume, welcome};
use crate::metrics::Metrics;
use crate::server::{Drained, Greeting, Listener, Server};
use crate::volume::catalog;
use crate::volume::{Environment, OpenError};

/// Serves until told to end.
pub(super) async fn serve(options: Options) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    let metrics = Metrics::new();
    let mut listeners = Vec::new();
    for address in &options.listen {
        listeners.push(Listener::bind(address).await?);
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), store = %options.location, "cairn starts");
    let env = tokio::select! {
        env = volume::environment(&options, &metrics) => env?,
        signal = signals.next() => {
            tracing::info!("{signal}: ends before it served");
            return Ok(());
        }
    };
    let how = open_volumes::Options {
        volume: options.volume.clone(),
        idle_timeout: options.idle_timeout,
        maximum_open: options.maximum_open,
    };
    let server_metrics = metrics.server();
    let volumes = OpenVolumes::new(env.clone(), how, metrics);
    let opened = tokio::select! {
        opened = open_configured(&env, &options, &volumes) => opened,
        signal = signals.next() => {
            tracing::info!("{signal}: ends before it served");
            return close(&volumes, &options, &mut signals).await;
        }
    };
    if let Err(error) = opened {
        // What was opened is given back; that this fails too would not change what there is to say.
        drop(close(&volumes, &options, &mut signals).await);
        return Err(error);
    }

    let configured = options.configured();
    let default = if let [only] = &configured[..] { Some(only.clone()) } else { None };
    let catalogue = Catalogue::new(env, options.catalogue_age);
    let exports = VolumeExports::new(Arc::clone(&volumes), catalogue, default);
    let server = Server::new(Arc::new(exports), options.server.clone(), server_metrics);
    let addresses: Vec<_> =
        listeners.into_iter().map(|listener| server.listen(listener, Greeting::Newstyle)).collect();
    welcome::print(&addresses, &configured);

    let ended = tokio::select! {
        signal = signals.next() => {
            tracing::info!("{signal}: finishing what is in flight");
            Ok(())
        }
        () = lost(&volumes, configured.len(), options.server.drain_timeout) => Err(Error::NothingLeft),
    };
    tokio::select! {
        drained = server.drain() => match drained {
            Drained::Answered => tracing::info!("every command in flight is answered"),
            Drained::TimedOut { tasks } => tracing::warn!(tasks, "commands in flight took too long and were dropped"),
        },
        signal = signals.next() => give_up(signal),
    }
    let closed = close(&volumes, &options, &mut signals).await;
    ended.and(closed)
}

/// Returns when no configured volume is left and their clients had time to learn why: their commands get ESHUTDOWN, which
/// tells them more than a connection that is cut.
async fn lost(volumes: &OpenVolumes, configured: usize, patience: Duration) {
    volumes.nothing_left(configured).await;
    tracing::error!("no configured volume is left; ends when its clients leave, or in {patience:?}");
    if tokio::time::timeout(patience, volumes.unused()).await.is_err() {
        tracing::warn!("clients that did not leave are cut off");
    }
}

/// Makes the volumes that are absent, and opens all that are configured, at the same time.
async fn open_configured(
    env: &Environment,
    options: &Options,
    volumes: &Arc<OpenVolumes>,
) -> Result<(), Error> {
    let of = |name: &str| {
        let name = name.to_owned();
        move |source| Error::Volume { name, source }
    };
    for wanted in &options.create {
        ensure(env, options, wanted).await.map_err(of(&wanted.name))?;
    }
    let names = options.configured();
    let opening = names.iter().map(|name| async move {
        let opened = volumes.open_configured(name, options.takeover).await;
        opened.map_err(|source| Error::Open { name: name.clone(), source })
    });
    futures::future::try_join_all(opening).await.map(drop)
}

/// Makes a volume where it is absent; an error where it stands with another size.
async fn ensure(env: &Environment, options: &Options, wanted: &Wanted) -> Result<(), OpenError> {
    let Wanted { name, size_bytes } = wanted;
    let found = match catalog::info(env, name).await {
        Err(OpenError::NoSuchVolume(_)) => {
            let made = catalog::create(env, &options.volume, name, *size_bytes, options.chunk_bytes).await;
            match made {
                Err(OpenError::Exists(_)) => catalog::info(env, name).await?,
                made => {
                    let made = made?;
                    tracing::info!(volume = name, id = %made.volume, size_bytes, "created");
                    made
                }
            }
        }
        found => found?,
    };
    if found.size_bytes != *size_bytes {
        let (found, wanted) = (found.size_bytes, *size_bytes);
        return Err(OpenError::SizeDiffers { name: name.clone(), found, wanted });
    }
    Ok(())
}

/// Closes all volumes, unless a further signal says not to wait.
async fn close(volumes: &OpenVolumes, options: &Options, signals: &mut Signals) -> Result<(), Error> {
    let failed = tokio::select! {
        failed = volumes.close_all(options.close_timeout) => failed,
        signal = signals.next() => give_up(signal),
    };
    if failed.is_empty() { Ok(()) } else { Err(Error::Close(failed)) }
}

/// A second signal: ends at once. What FLUSH promised is durable all the same.
fn give_up(signal: &str) -> ! {
    tracing::warn!("{signal} again: ends at once, without a checkpoint and with the leases held");
    std::process::exit(process::GIVEN_UP)
}
