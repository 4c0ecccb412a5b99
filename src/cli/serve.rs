//! `cairn serve`: from the options to a serving process, and from a signal to a clean exit.
//!
//! Owns the order of starting and stopping, and must not know how a layer works. Invariants: it reports that
//! it listens only when every listener accepts and every configured volume is open. The lease of a volume is
//! released last, when everything that clients were told is durable.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::admin::{AdminServers, AdminSockets};
use super::configured::{only, open_configured};
use super::environment::environment;
use super::error::Error;
use super::handover::{Point, Predecessor, Successor};
use super::listeners::{Inherited, Listeners, Oldstyle};
use super::process::{self, Asked, Signals};
use super::reload::{Running, Settings};
use super::settings::Options;
use super::{limits, output, supervisor, welcome};
use crate::gateway::{
    self, Catalogue, Census, GatewayStatus, Next, OpenSnapshots, OpenVolumes, Reaper, Scheduler, Serving,
    StoreCheck, VolumeExports,
};
use crate::metrics::{Metrics, Reload};
use crate::server::{Drained, Greeting, ListenAddress, Server, Stream, Tls};
use crate::store::{self, Setup};
use crate::volume::Environment;

/// Serves until there is a reason to end.
pub(super) async fn serve(
    mut options: Options,
    mut settings: Settings,
    inherited: Inherited,
    metrics: Metrics,
) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    // A store is only created for a volume that is created. Otherwise a missing store means that its URL is
    // wrong.
    options.store.setup = if options.create.is_empty() { Setup::InPlace } else { Setup::Make };
    let stdout_is_nbd = inherited.is_stdio();
    let sockets = Sockets::take(&mut options, inherited).await?;
    let Some(opened) = start(options, sockets, &metrics, &mut signals).await? else { return Ok(()) };
    let mut serving = listen(opened, &metrics, stdout_is_nbd);
    let end = run(&mut serving, &mut settings, &mut signals).await;
    finish(serving, end, &mut signals).await
}

/// The sockets of a gateway that is starting, and where they came from.
struct Sockets {
    predecessor: Option<Predecessor>,
    listeners: Listeners,
    oldstyle: Vec<Oldstyle>,
    admin: AdminSockets,
    point: Option<Point>,
}

impl Sockets {
    /// Opens the sockets, or takes them over from a predecessor.
    async fn take(options: &mut Options, inherited: Inherited) -> Result<Self, Error> {
        let mut predecessor = match &options.handover {
            Some(path) => Predecessor::at(path).await?,
            None => None,
        };
        let mut listeners = Listeners::open(&options.listeners, inherited, predecessor.as_mut()).await?;
        let oldstyle = listeners.oldstyle();
        Oldstyle::check(&oldstyle, options.tls.as_ref())?;
        // A gateway that inherited its sockets leaves them to a successor.
        options.hang_up |= listeners.inherited;
        let admin = AdminSockets::open(options, listeners.admin.take(), predecessor.as_mut()).await?;
        let point = match &options.handover {
            Some(path) => {
                let mut heirs = listeners.heirs().map_err(cannot_share)?;
                admin.bequeath(&mut heirs).map_err(cannot_share)?;
                Some(Point::at(path, predecessor.as_mut(), heirs).await?)
            }
            None => None,
        };
        Ok(Self { predecessor, listeners, oldstyle, admin, point })
    }
}

/// A gateway whose volumes are open but whose listeners do not accept yet.
struct Opened {
    options: Options,
    status: Arc<GatewayStatus>,
    env: Environment,
    store: store::Control,
    volumes: Arc<OpenVolumes>,
    admin: Option<AdminServers>,
    listeners: Listeners,
    oldstyle: Vec<Oldstyle>,
    point: Option<Point>,
}

/// Opens the store and every configured volume. Returns `None` if a signal arrives before that is done.
async fn start(
    mut options: Options,
    sockets: Sockets,
    metrics: &Metrics,
    signals: &mut Signals,
) -> Result<Option<Opened>, Error> {
    let Sockets { predecessor, listeners, oldstyle, admin: admin_sockets, point } = sockets;
    let status = GatewayStatus::starting();
    // As long as a predecessor serves, its admin servers respond.
    let start_admin = |sockets: AdminSockets| sockets.start(&options, metrics, &status);
    let (mut admin_sockets, mut admin) = (Some(admin_sockets), None);
    if predecessor.is_none() {
        admin = admin_sockets.take().map(&start_admin);
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), store = %options.location, "cairn is starting");
    let succeeds = predecessor.is_some();
    let ready = async {
        let opened = environment(&options, metrics).await?;
        if let Some(predecessor) = predecessor {
            let released = predecessor.succeed().await?;
            tracing::info!(released, "the predecessor has exited");
        }
        Ok::<_, Error>(opened)
    };
    let (env, store) = tokio::select! {
        opened = ready => opened?,
        signal = signals.next() => {
            tracing::info!("{signal}: exiting before any volume was served");
            return Ok(None);
        }
    };
    let admin = admin.or_else(|| admin_sockets.map(&start_admin));
    // The predecessor has agreed to exit, so a lease that it did not release protects nobody.
    options.takeover |= succeeds;
    let how = gateway::Options {
        volume: options.volume.clone(),
        idle_timeout: options.idle_timeout,
        maximum_open: options.maximum_open,
    };
    limits::export(metrics, &options);
    let volumes = OpenVolumes::new(env.clone(), how, metrics.clone());
    let opened = tokio::select! {
        opened = open_configured(&env, &options, &volumes) => opened,
        signal = signals.next() => {
            tracing::info!("{signal}: exiting before any volume was served");
            return close(&volumes, options.close_timeout, Next::Unknown, signals).await.map(|()| None);
        }
    };
    if let Err(error) = opened {
        // Close what was opened. A second failure would not change the error to report.
        drop(close(&volumes, options.close_timeout, Next::Unknown, signals).await);
        return Err(error);
    }
    Ok(Some(Opened { options, status, env, store, volumes, admin, listeners, oldstyle, point }))
}

/// A gateway that serves.
struct Served {
    options: Options,
    status: Arc<GatewayStatus>,
    env: Environment,
    store: store::Control,
    volumes: Arc<OpenVolumes>,
    exports: Arc<VolumeExports>,
    server: Arc<Server>,
    metrics: Metrics,
    census: Arc<Census>,
    reaper: Arc<Reaper>,
    scheduler: Arc<Scheduler>,
    admin: Option<AdminServers>,
    stream: Option<Box<dyn Stream>>,
    oldstyle: Vec<Oldstyle>,
    point: Option<Point>,
}

/// What the clients of a gateway see, and who takes its snapshots.
struct Shown {
    catalogue: Arc<Catalogue>,
    snapshots: Arc<OpenSnapshots>,
    exports: Arc<VolumeExports>,
    scheduler: Arc<Scheduler>,
}

/// Shows the volumes of the store and their snapshots as exports, and starts the schedule of snapshots.
fn show(env: &Environment, options: &Options, volumes: &Arc<OpenVolumes>, metrics: &Metrics) -> Shown {
    let volumes = || Arc::clone(volumes);
    let catalogue = Arc::new(Catalogue::new(env.clone(), options.catalogue_age));
    let snapshots = OpenSnapshots::new(env.clone(), options.volume.clone(), metrics.clone(), volumes());
    let default = only(&options.configured());
    let exports = VolumeExports::new(volumes(), Arc::clone(&snapshots), Arc::clone(&catalogue), default);
    let scheduler = Scheduler::start(
        env.clone(),
        volumes(),
        Arc::clone(&snapshots),
        metrics.clone(),
        options.snapshots.clone(),
    );
    Shown { catalogue, snapshots, exports: Arc::new(exports), scheduler }
}

/// Accepts clients, and reports the addresses.
fn listen(opened: Opened, metrics: &Metrics, stdout_is_nbd: bool) -> Served {
    let Opened { options, status, env, store, volumes, admin, listeners, oldstyle, point } = opened;
    // From now on clients rely on the disks.
    store.wait_out_refusals();
    let configured = options.configured();
    let Shown { catalogue, snapshots, exports, scheduler } = show(&env, &options, &volumes, metrics);
    let server = Arc::new(Server::new(Arc::clone(&exports) as _, options.server.clone(), metrics.server()));
    server.set_tls(options.tls.clone());
    let doors = listeners.nbd.into_iter();
    let addresses: Vec<_> =
        doors.map(|door| (server.listen(door.listener, door.greeting.clone()), door.greeting)).collect();
    metrics.gateway().reloaded(Reload::Applied, (env.wall_clock)());
    let reaper = Reaper::new(env.clone(), options.volume.clone());
    let (of_census, interval) = (Arc::clone(&reaper), options.census_interval);
    let census = Census::start(env.clone(), Arc::clone(&volumes), metrics.clone(), of_census, interval);
    status.serves(Serving {
        census: Arc::clone(&census),
        connect: addresses.iter().filter_map(|(at, greeting)| connect(at, greeting, &options)).collect(),
        env: env.clone(),
        volumes: Arc::clone(&volumes),
        snapshots,
        catalogue,
        store_check: StoreCheck::new(Arc::clone(&env.store.reads), options.catalogue_age),
        server: Arc::clone(&server),
        options: options.volume.clone(),
        chunk_bytes: options.chunk_bytes,
    });
    let welcome = welcome::Welcome {
        addresses: &addresses,
        encrypted: options.tls.as_ref().is_some_and(Tls::is_required),
        volumes: &configured,
        metrics: admin.as_ref().and_then(AdminServers::address),
        admin_socket: admin.as_ref().and_then(AdminServers::socket),
    };
    if stdout_is_nbd {
        welcome.log()
    } else {
        welcome.print()
    }
    supervisor::ready("serving");
    let (stream, metrics) = (listeners.stream, metrics.clone());
    Served {
        options,
        status,
        env,
        store,
        volumes,
        exports,
        server,
        metrics,
        census,
        reaper,
        scheduler,
        admin,
        stream,
        oldstyle,
        point,
    }
}

/// Serves until there is a reason to end.
async fn run(served: &mut Served, settings: &mut Settings, signals: &mut Signals) -> End {
    let stream_ended = serve_stream(&served.server, served.stream.take());
    let running = Running {
        env: &served.env,
        metrics: &served.metrics,
        store: &served.store,
        volumes: &served.volumes,
        exports: &served.exports,
        scheduler: &served.scheduler,
        server: &served.server,
        admin: served.admin.as_ref(),
        oldstyle: &served.oldstyle,
    };
    let point = served.point.as_mut();
    tokio::select! {
        end = serve_on(signals, &served.status, settings, &running, point, &served.options) => end,
        () = stream_ended => {
            tracing::info!("the client has disconnected");
            End::Told
        }
    }
}

/// Ends the gateway: checkpoints first, then the drain, the volumes, and the admin servers last.
async fn finish(served: Served, end: End, signals: &mut Signals) -> Result<(), Error> {
    // The handover point must live until the end.
    let Served { options, status, volumes, server, mut admin, point: _point, .. } = served;
    let next = match &end {
        End::Told if !options.hang_up => Next::Unknown,
        End::NothingLeft => Next::Unknown,
        End::Told | End::Succeeded(_) => Next::Waits,
    };
    let mut patience = options.close_timeout;
    if next == Next::Waits {
        patience -= checkpoint_ahead(&volumes, patience / 2, signals).await;
    }
    status.ends();
    served.census.stop().await;
    served.reaper.stop().await;
    served.scheduler.stop().await;
    supervisor::stopping("answering commands in flight");
    let (result, successor) = match end {
        End::Told => (Ok(()), None),
        End::NothingLeft if volumes.is_fenced() => (Err(Error::Fenced), None),
        End::NothingLeft => (Err(Error::NothingLeft), None),
        End::Succeeded(by) => (Ok(()), Some(by)),
    };
    if successor.is_some()
        && let Some(admin) = admin.take()
    {
        // From now on the successor responds.
        admin.stop().await;
    }
    drain(&server, next == Next::Waits, signals).await;
    supervisor::status("closing volumes");
    let closed = close(&volumes, patience, next, signals).await;
    if let Some(successor) = successor {
        successor.released().await;
    }
    server.closed().await;
    if let Some(admin) = admin {
        admin.stop().await;
    }
    result.and(closed)
}

/// Returns the URI of a volume at a listener, with `{name}` in place of its name. `None` for a listener that
/// serves a single export.
fn connect(address: &ListenAddress, greeting: &Greeting, options: &Options) -> Option<String> {
    /// A placeholder that no address contains, and that needs no encoding.
    const NAME: &str = "cairn-name-of-the-volume";
    let encrypted = options.tls.as_ref().is_some_and(Tls::is_required);
    let uri = welcome::uri(address, NAME, encrypted).to_string();
    (*greeting == Greeting::Newstyle).then(|| uri.replace(NAME, "{name}"))
}

/// Serves an existing connection until it ends. Waits forever if there is none.
async fn serve_stream(server: &Server, stream: Option<Box<dyn Stream>>) {
    match stream {
        Some(stream) => server.serve_stream(stream, Greeting::Newstyle).await,
        None => std::future::pending().await,
    }
}

/// Why the gateway ends.
enum End {
    /// A signal, or a request to the admin server.
    Told,
    /// No configured volume is served any more.
    NothingLeft,
    /// Another gateway takes over.
    Succeeded(Successor),
}

/// Serves and reloads the settings on request, until there is a reason to end.
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
                tracing::info!("shutdown requested: finishing the commands in flight");
                End::Told
            }
            () = lost(running.volumes, options.server.drain_timeout) => End::NothingLeft,
            successor = succeeded => {
                tracing::info!(
                    "a successor is taking over: closing connections once their commands are answered"
                );
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
            tracing::info!("{signal}: finishing the commands in flight");
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

/// Makes checkpoints while clients are still served. Clients that reconnect have to wait from the drain until
/// the next gateway has opened the volumes, so this shortens their wait. Returns how long it took, at most
/// `patience`.
async fn checkpoint_ahead(volumes: &OpenVolumes, patience: Duration, signals: &mut Signals) -> Duration {
    supervisor::status("making checkpoints before the shutdown");
    let begun = Instant::now();
    tokio::select! {
        () = volumes.checkpoint_all() => {
            tracing::info!(took = ?begun.elapsed(), "made checkpoints before the shutdown");
        }
        () = tokio::time::sleep(patience) => {
            tracing::warn!("checkpoints before the shutdown take longer than {patience:?}");
        }
        () = supervisor::say_alive() => unreachable!("it never ends"),
        signal = signals.next() => give_up(signal),
    }
    begun.elapsed().min(patience)
}

/// Time between two log lines about commands that are still in flight.
const DRAIN_PROGRESS: Duration = Duration::from_secs(2);

/// Waits until every command in flight is answered, unless another signal arrives.
async fn drain(server: &Server, hang_up: bool, signals: &mut Signals) {
    let drain = async { if hang_up { server.hang_up().await } else { server.drain().await } };
    let progress = async {
        loop {
            tokio::time::sleep(DRAIN_PROGRESS).await;
            let connections = server.connections().len();
            tracing::info!(connections, "still answering commands in flight");
        }
    };
    tokio::select! {
        () = progress => unreachable!("it never ends"),
        drained = drain => match drained {
            Drained::Answered => tracing::info!("all commands in flight are answered"),
            Drained::TimedOut { tasks } => {
                tracing::warn!(tasks, "commands in flight took too long and were abandoned");
            }
        },
        signal = signals.next() => give_up(signal),
    }
}

fn cannot_share(source: std::io::Error) -> Error {
    Error::System { what: "cannot hand over the sockets", source }
}

/// Waits until no configured volume is left and the clients have had time to learn why. Their commands fail
/// with ESHUTDOWN, which says more than a closed connection.
async fn lost(volumes: &OpenVolumes, patience: Duration) {
    volumes.nothing_left().await;
    tracing::error!(
        "no configured volume is left; exiting when all clients have disconnected, or after {patience:?}"
    );
    if tokio::time::timeout(patience, volumes.unused()).await.is_err() {
        tracing::warn!("closing the connections of clients that did not disconnect");
    }
}

/// Closes all volumes, unless another signal arrives.
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

/// Exits at once after a second signal. Data that a FLUSH has confirmed is durable regardless.
fn give_up(signal: &str) -> ! {
    tracing::warn!("second {signal}: exiting at once, without a checkpoint and without releasing the leases");
    output::finish();
    std::process::exit(process::GIVEN_UP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Gateway as _;

    #[tokio::test]
    async fn it_is_ready_only_while_it_serves() {
        let status = GatewayStatus::starting();
        assert!(status.obstacles().await[0].contains("starting"));
        assert!(status.volumes().await.is_err());
        status.ends();
        assert_eq!(status.obstacles().await, ["the gateway is shutting down"]);
    }
}
