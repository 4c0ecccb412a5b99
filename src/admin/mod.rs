//! The admin HTTP server: metrics, health, the API and the status page.
//!
//! Owns the trait [`Gateway`], what it asks of the process around it. It must not know how volumes are opened or
//! configured. Invariant: what changes anything, or tells of volumes, is behind the [guard](guard); metrics and health
//! are not, so that probes and scrapers need no secret.

mod api;
mod guard;
mod health;
mod http;
mod status;
mod view;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::DefaultBodyLimit;

use crate::metrics::{Metrics, VolumeMetrics};
use crate::server::{Connection, ListenAddress, ListenError, Listener};
use crate::task::Tasks;
use crate::volume::catalog::Info;
use crate::volume::{OpenError, Volume};

pub use guard::{Token, TokenError};

/// Longest body of a request.
const BODY_BYTES: usize = 64 << 10;

/// Where the admin server listens, and its bounds.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where.
    pub listen: ListenAddress,
    /// What a client must present; without it the API answers only on loopback and Unix sockets.
    pub token: Option<Token>,
    /// Connections at a time; further ones wait.
    pub maximum_connections: usize,
    /// How long a client may take to send the head of a request.
    pub header_timeout: Duration,
    /// How long readiness may take to find out.
    pub ready_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: ListenAddress::Tcp("127.0.0.1:9180".to_owned()),
            token: None,
            maximum_connections: 64,
            header_timeout: Duration::from_secs(10),
            ready_timeout: Duration::from_secs(5),
        }
    }
}

/// A volume that is open here.
#[derive(Clone, Debug)]
pub struct OpenVolume {
    /// Its name.
    pub name: String,
    /// The volume.
    pub volume: Arc<Volume>,
    /// Where it counts.
    pub metrics: VolumeMetrics,
    /// NBD connections that use it.
    pub clients: usize,
}

/// What the admin server asks of the process around it. A call may be dropped at any await point.
#[async_trait]
pub trait Gateway: Send + Sync + 'static {
    /// What keeps it from serving, one line each; empty where the store answers and every configured volume is open.
    async fn obstacles(&self) -> Vec<String>;
    /// Every volume of the store, in order of name.
    async fn volumes(&self) -> Result<Vec<Info>, Arc<OpenError>>;
    /// One volume.
    async fn volume(&self, name: &str) -> Result<Info, Arc<OpenError>>;
    /// Makes a volume of holes; without `chunk_bytes`, with chunks as configured.
    async fn create(
        &self,
        name: &str,
        size_bytes: u64,
        chunk_bytes: Option<u64>,
    ) -> Result<Info, Arc<OpenError>>;
    /// Deletes a volume that is not open here; with `takeover` although another gateway holds it.
    async fn delete(&self, name: &str, takeover: bool) -> Result<(), Arc<OpenError>>;
    /// The volumes that are open here, in order of name.
    fn open_volumes(&self) -> Vec<OpenVolume>;
    /// The NBD connections.
    fn connections(&self) -> Vec<Connection>;
    /// Begins to end, as on SIGTERM.
    fn drain(&self);
}

/// What all requests share.
#[derive(Clone)]
struct Context {
    gateway: Arc<dyn Gateway>,
    metrics: Metrics,
    ready_timeout: Duration,
}

/// All routes.
fn router(context: Context, guard: guard::Guard) -> Router {
    api::routes()
        .layer(axum::middleware::from_fn_with_state(Arc::new(guard), guard::check))
        .merge(health::routes())
        .merge(status::routes())
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(context)
}

/// The admin server. Dropping it drops every connection.
pub struct Admin {
    address: ListenAddress,
    tasks: Tasks,
}

impl Admin {
    /// Listens and serves.
    ///
    /// # Errors
    /// If it cannot listen there.
    pub async fn start(
        options: Options,
        gateway: Arc<dyn Gateway>,
        metrics: Metrics,
    ) -> Result<Self, ListenError> {
        let listener = Listener::bind(&options.listen).await?;
        let address = listener.address().clone();
        let guard = guard::Guard::of(&address, options.token.clone());
        if guard.is_closed() {
            tracing::warn!(
                "{address} is reachable from elsewhere and there is no token: only metrics and health are served"
            );
        }
        let context = Context { gateway, metrics, ready_timeout: options.ready_timeout };
        let tasks = Tasks::new();
        let connections = tasks.child();
        let router = router(context, guard);
        drop(tasks.spawn_until_cancelled(http::serve(listener, router, options, connections)));
        Ok(Self { address, tasks })
    }

    /// Where it listens; for port 0, the port that was chosen.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Ends every connection.
    pub async fn shutdown(&self) {
        self.tasks.shutdown().await;
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("address", &self.address).finish_non_exhaustive()
    }
}
