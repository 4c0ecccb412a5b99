//! `cairn serve`: from the options to a serving process, and from a signal to a clean end.
//!
//! Invariants: it says that it listens only when every listener accepts and every configured volume is open; the lease
//! of a volume is released last, after what clients were told is durable.

use std::sync::Arc;
use std::time::Duration;

use super::catalogue::Catalogue;
use super::error::{Error, chain};
use super::exports::VolumeExports;
use super::listeners::{Inherited, Listeners};
use super::open_volumes::{self, OpenVolumes};
use super::process::{self, Signals};
use super::settings::Options;
use super::size::Wanted;
use super::status::{GatewayStatus, Serving};
use super::{volume, welcome};
use crate::admin::{self, Access, Admin, Gateway};
use crate::metrics::Metrics;
use crate::server::{Drained, Greeting, Listener, Server, Stream, Tls};
use crate::volume::catalog;
use crate::volume::{Environment, OpenError};

/// Serves until told to end.
pub(super) async fn serve(options: Options, inherited: Inherited) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    let metrics = Metrics::new();
    let listeners = Listeners::open(&options.listeners, inherited).await?;
    let status = GatewayStatus::starting();
    let admin = start_admin(&options, listeners.admin, &metrics, &status).await?;
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
    let volumes = OpenVolumes::new(env.clone(), how, metrics.clone());
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
    let catalogue = Arc::new(Catalogue::new(env.clone(), options.catalogue_age));
    let exports = VolumeExports::new(Arc::clone(&volumes), Arc::clone(&catalogue), default);
    let server = Server::new(Arc::new(exports), options.server.clone(), metrics.server());
    let server = Arc::new(match &options.tls {
        Some(tls) => server.with_tls(tls.clone()),
        None => server,
    });
    let addresses: Vec<_> = listeners
        .nbd
        .into_iter()
        .map(|(listener, greeting)| (server.listen(listener, greeting.clone()), greeting))
        .collect();
    let stream_ended = serve_stream(&server, listeners.stream);
    status.serves(Serving {
        env,
        volumes: Arc::clone(&volumes),
        catalogue,
        server: Arc::clone(&server),
        options: options.volume.clone(),
        chunk_bytes: options.chunk_bytes,
    });
    if !addresses.is_empty() {
        let encrypted = options.tls.as_ref().is_some_and(Tls::is_required);
        welcome::print(&addresses, encrypted, &configured, admin.as_ref().map(Admin::address));
    }

    let ended = tokio::select! {
        signal = signals.next() => {
            tracing::info!("{signal}: finishing what is in flight");
            Ok(())
        }
        () = stream_ended => {
            tracing::info!("the client has left");
            Ok(())
        }
        () = status.asked_to_end() => {
            tracing::info!("asked to end: finishing what is in flight");
            Ok(())
        }
        () = lost(&volumes, configured.len(), options.server.drain_timeout) => Err(Error::NothingLeft),
    };
    status.ends();
    tokio::select! {
        drained = server.drain() => match drained {
            Drained::Answered => tracing::info!("every command in flight is answered"),
            Drained::TimedOut { tasks } => tracing::warn!(tasks, "commands in flight took too long and were dropped"),
        },
        signal = signals.next() => give_up(signal),
    }
    let closed = close(&volumes, &options, &mut signals).await;
    if let Some(admin) = admin {
        admin.stop().await;
    }
    ended.and(closed)
}

/// Serves a connection that is there already, beside all others; returns when it has ended, without one never.
async fn serve_stream(server: &Server, stream: Option<Box<dyn Stream>>) {
    match stream {
        Some(stream) => server.serve_stream(stream, Greeting::Newstyle).await,
        None => std::future::pending().await,
    }
}

/// Starts the admin server, from the start, so that it can say that the gateway is not ready. Where nobody asked for it
/// and its address is taken, by another gateway on this machine say, there is none.
async fn start_admin(
    options: &Options,
    inherited: Option<Listener>,
    metrics: &Metrics,
    status: &Arc<GatewayStatus>,
) -> Result<Option<Admin>, Error> {
    let listener = match (inherited, &options.admin) {
        (Some(listener), _) => listener,
        (None, None) => return Ok(None),
        (None, Some(address)) => match Listener::bind(address).await {
            Err(error) if !options.admin_required => {
                tracing::warn!("no admin server: {}", chain(&error));
                return Ok(None);
            }
            bound => bound?,
        },
    };
    let address = listener.address();
    let access = Access::at(address, options.admin_token.clone());
    if access == Access::Closed {
        tracing::warn!(
            "{address} is not local and admin.token_file is not set: only metrics and health are served"
        );
    }
    let gateway: Arc<dyn Gateway> = Arc::<GatewayStatus>::clone(status);
    let bounds = admin::Options::default();
    Ok(Some(Admin::start(listener, metrics.clone(), gateway, access, bounds)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    /// A second gateway on this machine has no admin server, unless somebody asked for one.
    #[tokio::test]
    async fn a_taken_admin_address_matters_only_if_it_was_asked_for() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let variable = ("CAIRN_ADMIN__LISTEN".into(), taken.local_addr().unwrap().to_string().into());
        let mut options = Options::of(&config::load(None, [variable], []).unwrap()).unwrap();
        let (metrics, status) = (Metrics::new(), GatewayStatus::starting());
        assert!(options.admin_required);
        assert!(matches!(start_admin(&options, None, &metrics, &status).await, Err(Error::Listen(_))));
        options.admin_required = false;
        assert!(matches!(start_admin(&options, None, &metrics, &status).await, Ok(None)));
    }

    #[tokio::test]
    async fn it_is_ready_only_while_it_serves() {
        let status = GatewayStatus::starting();
        assert!(status.obstacles().await[0].contains("starting"));
        assert!(status.volumes().await.is_err());
        status.ends();
        assert_eq!(status.obstacles().await, ["shutting down"]);
    }
}
