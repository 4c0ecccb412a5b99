//! The [`Server`]: accepts connections on its listeners, bounds their number, and drains them.
//!
//! Knows no protocol. Invariant: no connection outlives the server; what happens in one is not felt in
//! another.

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
use super::options::Options;
use super::shared::Shared;
use super::tls::Tls;
use super::transport::{Stream, Transport};
use crate::metrics::{HandshakeFailure, ServerMetrics};
use crate::task::Tasks;

/// How long to wait after a failed accept: it may be for want of file descriptors, which others must give
/// back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An NBD server. Dropping it drops every connection; [`Server::drain`] ends them in order.
pub struct Server {
    shared: Arc<Shared>,
    admission: Admission,
    next_connection: Arc<AtomicU64>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every command in flight was answered.
    Answered,
    /// The time was over with so many tasks (connections and their commands) still busy; they were dropped.
    TimedOut {
        /// How many.
        tasks: usize,
    },
}

impl Server {
    /// A server of these exports, which listens nowhere yet.
    #[must_use]
    pub fn new(exports: Arc<dyn Exports>, options: Options, metrics: ServerMetrics) -> Self {
        let admission = Admission::new(&options);
        let (tasks, drain) = (Arc::new(Tasks::new()), Drain::default());
        let connections = Connections::default();
        let (budget, tls) = (Budget::new(&options), RwLock::new(None));
        let lingering = tasks.child();
        let shared = Shared { exports, options, budget, tasks, lingering, drain, metrics, tls, connections };
        Self { shared: Arc::new(shared), admission, next_connection: Arc::new(AtomicU64::new(1)) }
    }

    /// Lets clients use TLS, or makes them; for connections that come after.
    #[must_use]
    pub fn with_tls(self, tls: Tls) -> Self {
        self.set_tls(Some(tls));
        self
    }

    /// Replaces what TLS there is; for connections that come after.
    pub fn set_tls(&self, tls: Option<Tls>) {
        *self.shared.tls.write() = tls;
    }

    /// Takes connections from a listener until the server drains; gives back where that is.
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

    /// Serves one connection over any stream: an inherited socket, standard input and output, a pipe in
    /// memory. Returns when it has ended.
    pub async fn serve_stream(&self, stream: impl Stream, greeting: Greeting) {
        let acceptor = Acceptor {
            shared: Arc::clone(&self.shared),
            admission: self.admission.clone(),
            next_connection: Arc::clone(&self.next_connection),
            greeting,
        };
        if let Some(connection) = acceptor.admit(Transport::Other(Box::new(stream)), Peer::Other) {
            // The task ends by itself when it is cancelled, and a panic in it is the connection's end.
            drop(connection.await);
        }
    }

    /// How many connections may still be taken.
    #[must_use]
    pub fn free_connections(&self) -> usize {
        self.admission.free()
    }

    /// The connections that are open, in the order in which they came.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        self.shared.connections.list()
    }

    /// Ends service in order: no connection is taken any more, options and new commands get errors that say
    /// why, commands in flight are answered, then connections are closed. Takes at most the drain timeout.
    pub async fn drain(&self) -> Drained {
        self.end(Farewell::Refuse).await
    }

    /// Ends service in order for a successor: as [`Server::drain`], but new options and commands are left
    /// unread, so that no command fails: a client that connects again, as many do by themselves, sends them
    /// to whoever listens then.
    ///
    /// Returns when all is answered; clients may not have closed their side yet, see [`Server::closed`].
    pub async fn hang_up(&self) -> Drained {
        self.end(Farewell::HangUp).await
    }

    /// Returns when every client that was told of the end has closed its side, or had the time to.
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

/// Takes connections with one greeting.
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
                // Of a client that left before its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!("cannot accept on {}: {error}", listener.address());
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Starts serving a connection, unless there are too many; then it is closed at once.
    fn admit(&self, transport: Transport, peer: Peer) -> Option<tokio::task::JoinHandle<Option<()>>> {
        let place = match self.admission.admit(peer) {
            Ok(place) => place,
            Err(full) => {
                self.shared.metrics.handshake_failed(transport.label(), HandshakeFailure::Limit);
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
