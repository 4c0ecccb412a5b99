//! The [`Server`]: accepts connections from listeners, limits their number, and drains them.
//!
//! Must not know the protocol. Invariants: no connection outlives the server; a failure in one connection
//! does not affect another.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tracing::Instrument as _;

use super::admission::{Admission, Place};
use super::connection::{self, Greeting};
use super::connections::{Connection, Connections, Seat};
use super::drain::{Drain, Farewell};
use super::export::Exports;
use super::in_flight::Budget;
use super::listener::{ListenAddress, Listener, Peer};
use super::metrics::{HandshakeFailure, Metrics};
use super::options::Options;
use super::shared::Shared;
use super::tls::Tls;
use super::transmission::IDLE_PAYLOAD_BYTES;
use super::transport::{Stream, Transport};
use crate::buffers::Buffers;
use crate::task::Tasks;

/// Pause after a failed accept. The cause may be a lack of file descriptors, which other connections have to
/// release first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An NBD server. Dropping it drops every connection; [`Server::drain`] shuts it down in an orderly way.
pub struct Server {
    shared: Arc<Shared>,
    admission: Admission,
    next_connection: Arc<AtomicU64>,
}

/// The result of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every command in flight was answered.
    Answered,
    /// The drain timeout passed while tasks (connections and their commands) were still busy. They were
    /// dropped.
    TimedOut {
        /// Number of tasks that were dropped.
        tasks: usize,
    },
}

impl Server {
    /// Creates a server for these exports that does not listen anywhere yet. It reports what it does to
    /// `metrics`; pass [`NoMetrics`] to count nothing.
    ///
    /// [`NoMetrics`]: super::NoMetrics
    #[must_use]
    pub fn new(exports: Arc<dyn Exports>, options: Options, metrics: impl Metrics) -> Self {
        let metrics: Arc<dyn Metrics> = Arc::new(metrics);
        let admission = Admission::new(&options);
        let (tasks, drain) = (Arc::new(Tasks::new()), Drain::default());
        let connections = Connections::default();
        let (budget, tls) = (Budget::new(&options), RwLock::new(None));
        let lingering = tasks.child();
        let payloads = Buffers::new(IDLE_PAYLOAD_BYTES);
        let shared =
            Shared { exports, options, budget, tasks, lingering, drain, metrics, tls, connections, payloads };
        Self { shared: Arc::new(shared), admission, next_connection: Arc::new(AtomicU64::new(1)) }
    }

    /// Enables TLS for new connections, or requires it if `tls` says so.
    #[must_use]
    pub fn with_tls(self, tls: Tls) -> Self {
        self.set_tls(Some(tls));
        self
    }

    /// Replaces the TLS configuration for new connections. `None` disables TLS.
    pub fn set_tls(&self, tls: Option<Tls>) {
        *self.shared.tls.write() = tls;
    }

    /// Accepts connections from a listener until the server drains. Returns the address that it listens on.
    pub fn listen(&self, listener: Listener, greeting: Greeting) -> ListenAddress {
        let address = listener.address().clone();
        let acceptor = Acceptor {
            shared: Arc::clone(&self.shared),
            admission: self.admission.clone(),
            next_connection: Arc::clone(&self.next_connection),
            greeting,
        };
        drop(self.shared.tasks.spawn_until_cancelled(acceptor.run(listener)));
        address
    }

    /// Serves one connection over any stream, such as an inherited socket, standard input and output, or an
    /// in-memory pipe. Returns when the connection has ended.
    pub async fn serve_stream(&self, stream: impl Stream, greeting: Greeting) {
        let acceptor = Acceptor {
            shared: Arc::clone(&self.shared),
            admission: self.admission.clone(),
            next_connection: Arc::clone(&self.next_connection),
            greeting,
        };
        if let Some(connection) = acceptor.admit(Transport::Other(Box::new(stream)), Peer::Other) {
            // A cancelled task ends by itself, and a panic in it only ends this connection.
            drop(connection.await);
        }
    }

    /// Returns how many more connections the server can accept.
    #[must_use]
    pub fn free_connections(&self) -> usize {
        self.admission.free()
    }

    /// Lists the open connections in the order in which they were accepted.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        self.shared.connections.list()
    }

    /// Shuts the server down in an orderly way. It accepts no more connections, refuses new options and
    /// commands with an error that says why, answers the commands in flight, and then closes the connections.
    /// Takes at most the drain timeout.
    pub async fn drain(&self) -> Drained {
        self.end(Farewell::Refuse).await
    }

    /// Shuts the server down in favour of a successor. Works like [`Server::drain`], but leaves new options
    /// and commands unread instead of refusing them, so no command fails. A client that reconnects, as many
    /// do automatically, sends them to the successor.
    ///
    /// Returns when all commands are answered. Clients may not have closed their side yet; see
    /// [`Server::closed`].
    pub async fn hang_up(&self) -> Drained {
        self.end(Farewell::HangUp).await
    }

    /// Returns when every client whose connection was drained has closed its side, or has had time to.
    pub async fn closed(&self) {
        self.shared.lingering.join().await;
    }

    async fn end(&self, farewell: Farewell) -> Drained {
        let Shared { tasks, lingering, drain, options, .. } = &*self.shared;
        drain.begin(farewell);
        let ended = async {
            tasks.join().await;
            if farewell == Farewell::Refuse {
                lingering.join().await;
            }
        };
        match tokio::time::timeout(options.drain_timeout, ended).await {
            Ok(()) => Drained::Answered,
            Err(_) => {
                let left = tasks.len() + lingering.len();
                tasks.shutdown().await;
                lingering.shutdown().await;
                Drained::TimedOut { tasks: left }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.tasks.token().cancel();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// Accepts connections and greets all of them in the same way.
struct Acceptor {
    shared: Arc<Shared>,
    admission: Admission,
    next_connection: Arc<AtomicU64>,
    greeting: Greeting,
}

impl Acceptor {
    async fn run(self, listener: Listener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shared.drain.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((transport, peer)) => drop(self.admit(transport, peer)),
                // The client left while its connection was waiting to be accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!("cannot accept on {}: {error}", listener.address());
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Starts to serve a connection. If a limit is reached, closes it at once and returns `None`.
    fn admit(&self, transport: Transport, peer: Peer) -> Option<tokio::task::JoinHandle<Option<()>>> {
        let place = match self.admission.admit(peer) {
            Ok(place) => place,
            Err(full) => {
                self.shared.metrics.handshake_failed(transport.kind(), HandshakeFailure::Limit);
                tracing::warn!(%peer, "connection refused: {full}");
                return None;
            }
        };
        let id = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let span = tracing::info_span!("connection", id, %peer);
        let seat = self.shared.connections.seat(id, peer.to_string());
        let serve = serve_in_place(Arc::clone(&self.shared), transport, self.greeting.clone(), place, seat);
        Some(self.shared.tasks.spawn_until_cancelled(serve.instrument(span)))
    }
}

async fn serve_in_place(
    shared: Arc<Shared>,
    transport: Transport,
    greeting: Greeting,
    place: Place,
    seat: Seat,
) {
    connection::serve(&shared, transport, &greeting, &seat).await;
    drop(seat);
    drop(place);
}
