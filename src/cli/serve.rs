//! `cairn serve`: from the options to a serving process, and from a signal to a clean end.
//!
//! Invariants: it says that it listens only when every listener accepts and every configured volume is open; the lease
//! of a volume is released last, after what clients were told is durable.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::catalogue::Catalogue;
use super::error::{Error, chain};
use super::exports::VolumeExports;
use super::handover::{Point, Predecessor, Successor};
use super::listeners::{Inherited, Listeners};
use super::open_volumes::{self, Next, OpenVolumes};
use super::process::{self, Asked, Signals};
use super::reload::{self, Running, Settings};
use super::settings::Options;
use super::size::Wanted;
use super::status::{GatewayStatus, Serving};
use super::{output, supervisor, volume, welcome};
use crate::admin::{self, Access, Admin, Gateway};
use crate::metrics::Metrics;
use crate::server::{Drained, Greeting, Listener, Server, Stream, Tls};
use crate::volume::catalog;
use crate::volume::{Environment, OpenError};

/// Serves until told to end.
pub(super) async fn serve(
    mut options: Options,
    mut settings: Settings,
    inherited: Inherited,
    metrics: Metrics,
) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    let mut predecessor = match &options.handover {
        Some(path) => Predecessor::at(path).await?,
        None => None,
    };
    let mut listeners = Listeners::open(&options.listeners, inherited, predecessor.as_mut()).await?;
    // Who inherited the sockets leaves them to a successor.
    options.hang_up |= listeners.inherited;
    let status = GatewayStatus::starting();
    let mut admin_socket = bind_admin(&options, listeners.admin.take(), predecessor.as_mut()).await?;
    let mut point = match &options.handover {
        Some(path) => {
            let heirs = listeners.heirs(admin_socket.as_ref()).map_err(cannot_share)?;
            Some(Point::at(path, predecessor.as_mut(), heirs).await?)
        }
        None => None,
    };
    // While a predecessor serves, so does its admin server.
    let mut admin = None;
    if predecessor.is_none() {
        admin = admin_socket.take().map(|socket| start_admin(&options, socket, &metrics, &status));
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), store = %options.location, "cairn starts");
    let succeeds = predecessor.is_some();
    let ready = async {
        let env = volume::environment(&options, &metrics).await?;
        if let Some(predecessor) = predecessor {
            let released = predecessor.succeed().await?;
            tracing::info!(released, "the gateway before this one has ended");
        }
        Ok::<_, Error>(env)
    };
    let env = tokio::select! {
        env = ready => env?,
        signal = signals.next() => {
            tracing::info!("{signal}: ends before it served");
            return Ok(());
        }
    };
    if let Some(socket) = admin_socket {
        admin = Some(start_admin(&options, socket, &metrics, &status));
    }
    // A predecessor has agreed to end: whatever it did not release protects nobody.
    options.takeover |= succeeds;
    let options = options;
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
            return close(&volumes, options.close_timeout, Next::Unknown, &mut signals).await;
        }
    };
    if let Err(error) = opened {
        // What was opened is given back; that this fails too would not change what there is to say.
        drop(close(&volumes, options.close_timeout, Next::Unknown, &mut signals).await);
        return Err(error);
    }

    let configured = options.configured();
    let catalogue = Arc::new(Catalogue::new(env.clone(), options.catalogue_age));
    let exports =
        Arc::new(VolumeExports::new(Arc::clone(&volumes), Arc::clone(&catalogue), reload::only(&configured)));
    let server = Arc::new(Server::new(Arc::clone(&exports) as _, options.server.clone(), metrics.server()));
    server.set_tls(options.tls.clone());
    let doors = listeners.nbd.into_iter();
    let addresses: Vec<_> =
        doors.map(|door| (server.listen(door.listener, door.greeting.clone()), door.greeting)).collect();
    let stream_ended = serve_stream(&server, listeners.stream);
    status.serves(Serving {
        env: env.clone(),
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
    supervisor::ready("serving");

    let running =
        Running { env: &env, volumes: &volumes, exports: &exports, server: &server, admin: admin.as_ref() };
    let end = tokio::select! {
        end = serve_on(&mut signals, &status, &mut settings, &running, point.as_mut(), &options) => end,
        () = stream_ended => {
            tracing::info!("the client has left");
            End::Told
        }
    };
    let next = match &end {
        End::Told if !options.hang_up => Next::Unknown,
        End::NothingLeft => Next::Unknown,
        End::Told | End::Succeeded(_) => Next::Waits,
    };
    let mut patience = options.close_timeout;
    if next == Next::Waits {
        patience -= checkpoint_ahead(&volumes, patience / 2, &mut signals).await;
    }
    status.ends();
    supervisor::stopping("answering what is in flight");
    let (result, successor) = match end {
        End::Told => (Ok(()), None),
        End::NothingLeft => (Err(Error::NothingLeft), None),
        End::Succeeded(by) => (Ok(()), Some(by)),
    };
    if successor.is_some()
        && let Some(admin) = admin.take()
    {
        // The successor answers from now on.
        admin.stop().await;
    }
    drain(&server, next == Next::Waits, &mut signals).await;
    supervisor::status("closing the volumes");
    let closed = close(&volumes, patience, next, &mut signals).await;
    if let Some(successor) = successor {
        successor.released().await;
    }
    server.closed().await;
    if let Some(admin) = admin {
        admin.stop().await;
    }
    result.and(closed)
}

/// Serves a connection that is there already, beside all others; returns when it has ended, without one never.
async fn serve_stream(server: &Server, stream: Option<Box<dyn Stream>>) {
    match stream {
        Some(stream) => server.serve_stream(stream, Greeting::Newstyle).await,
        None => std::future::pending().await,
    }
}

/// Why it ends.
enum End {
    /// Somebody said so.
    Told,
    /// No configured volume is served any more.
    NothingLeft,
    /// Another gateway takes over.
    Succeeded(Successor),
}

/// Serves, and reads the settings again when told, until there is a reason to end.
async fn serve_on(
    signals: &mut Signals,
    status: &GatewayStatus,
    settings: &mut Settings,
    running: &Running<'_>,
    point: Option<&mut Point>,
    options: &Options,
) -> End {
    let succeeded = async {
        match point {
            Some(point) => point.successor().await,
            None => std::future::pending().await,
        }
    };
    let end = async {
        tokio::select! {
            () = status.asked_to_end() => {
                tracing::info!("asked to end: finishing what is in flight");
                End::Told
            }
            () = lost(running.volumes, options.server.drain_timeout) => End::NothingLeft,
            successor = succeeded => {
                tracing::info!("a successor takes over: hanging up once what is in flight is answered");
                End::Succeeded(successor)
            }
            () = supervisor::say_alive() => unreachable!("it never ends"),
        }
    };
    tokio::pin!(end);
    loop {
        let asked = tokio::select! {
            end = &mut end => return end,
            asked = signals.asked() => asked,
        };
        let told = |signal| {
            tracing::info!("{signal}: finishing what is in flight");
            End::Told
        };
        match asked {
            Asked::End(signal) => return told(signal),
            Asked::Reload => {
                supervisor::reloading();
                tokio::select! {
                    end = &mut end => return end,
                    signal = signals.next() => return told(signal),
                    () = settings.reload(running) => {}
                }
                supervisor::ready("serving");
            }
        }
    }
}

/// Makes checkpoints while clients are still served, since those who connect again wait from the drain until the next
/// gateway has opened the volumes; gives how long that took, `patience` at most.
async fn checkpoint_ahead(volumes: &OpenVolumes, patience: Duration, signals: &mut Signals) -> Duration {
    supervisor::status("making checkpoints ahead of the end");
    let begun = Instant::now();
    tokio::select! {
        () = volumes.checkpoint_all() => tracing::info!(took = ?begun.elapsed(), "checkpoints made ahead of the end"),
        () = tokio::time::sleep(patience) => tracing::warn!("checkpoints ahead of the end take over {patience:?}"),
        () = supervisor::say_alive() => unreachable!("it never ends"),
        signal = signals.next() => give_up(signal),
    }
    begun.elapsed().min(patience)
}

/// How often the log says how many clients are still waited for.
const DRAIN_PROGRESS: Duration = Duration::from_secs(2);

/// Has every command in flight answered, unless a further signal says not to wait.
async fn drain(server: &Server, hang_up: bool, signals: &mut Signals) {
    let drain = async { if hang_up { server.hang_up().await } else { server.drain().await } };
    let progress = async {
        loop {
            tokio::time::sleep(DRAIN_PROGRESS).await;
            let connections = server.connections().len();
            tracing::info!(connections, "still answering what is in flight");
        }
    };
    tokio::select! {
        () = progress => unreachable!("it never ends"),
        drained = drain => match drained {
            Drained::Answered => tracing::info!("every command in flight is answered"),
            Drained::TimedOut { tasks } => {
                tracing::warn!(tasks, "commands in flight took too long and were dropped");
            }
        },
        signal = signals.next() => give_up(signal),
    }
}

fn cannot_share(source: std::io::Error) -> Error {
    Error::System { what: "cannot hand sockets over", source }
}

/// The admin server's socket: inherited, a predecessor's, or a new one. Where nobody asked for it and its address is
/// taken, by another gateway on this machine say, there is none.
async fn bind_admin(
    options: &Options,
    inherited: Option<Listener>,
    predecessor: Option<&mut Predecessor>,
) -> Result<Option<Listener>, Error> {
    let given = inherited.or_else(|| predecessor?.take(super::listeners::ADMIN));
    match (given, &options.admin) {
        (Some(listener), _) => Ok(Some(listener)),
        (None, None) => Ok(None),
        (None, Some(address)) => match Listener::bind(address).await {
            Err(error) if !options.admin_required => {
                tracing::warn!("no admin server: {}", chain(&error));
                Ok(None)
            }
            bound => Ok(Some(bound?)),
        },
    }
}

/// Starts the admin server, from the start, so that it can say that the gateway is not ready.
fn start_admin(
    options: &Options,
    listener: Listener,
    metrics: &Metrics,
    status: &Arc<GatewayStatus>,
) -> Admin {
    let address = listener.address();
    let access = Access::at(address, options.admin_token.clone());
    if access == Access::Closed {
        tracing::warn!(
            "{address} is not local and admin.token_file is not set: only metrics and health are served"
        );
    }
    let gateway: Arc<dyn Gateway> = Arc::<GatewayStatus>::clone(status);
    let bounds = admin::Options::default();
    Admin::start(listener, metrics.clone(), gateway, access, bounds)
}

/// Returns when no configured volume is left and their clients had time to learn why: their commands get ESHUTDOWN, which
/// tells them more than a connection that is cut.
async fn lost(volumes: &OpenVolumes, patience: Duration) {
    volumes.nothing_left().await;
    tracing::error!("no configured volume is left; ends when its clients leave, or in {patience:?}");
    if tokio::time::timeout(patience, volumes.unused()).await.is_err() {
        tracing::warn!("clients that did not leave are cut off");
    }
}

/// Makes the volumes that are absent, and opens all that are configured, at the same time.
pub(super) async fn open_configured(
    env: &Environment,
    options: &Options,
    volumes: &Arc<OpenVolumes>,
) -> Result<(), Error> {
    let of = |name: &str| {
        let name = name.to_owned();
        move |source| Error::Volume { name, source }
    };
    let names = options.configured();
    volumes.configure(&names);
    for wanted in &options.create {
        ensure(env, options, wanted).await.map_err(of(&wanted.name))?;
    }
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
async fn close(
    volumes: &OpenVolumes,
    patience: Duration,
    next: Next,
    signals: &mut Signals,
) -> Result<(), Error> {
    let failed = tokio::select! {
        failed = volumes.close_all(patience, next) => failed,
        signal = signals.next() => give_up(signal),
    };
    if failed.is_empty() { Ok(()) } else { Err(Error::Close(failed)) }
}

/// A second signal: ends at once. What FLUSH promised is durable all the same.
fn give_up(signal: &str) -> ! {
    tracing::warn!("{signal} again: ends at once, without a checkpoint and with the leases held");
    output::finish();
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
        assert!(options.admin_required);
        assert!(matches!(bind_admin(&options, None, None).await, Err(Error::Listen(_))));
        options.admin_required = false;
        assert!(matches!(bind_admin(&options, None, None).await, Ok(None)));
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
