//! The admin HTTP server: metrics, health, the API and the status page.
//!
//! Owns the trait [`Gateway`], what it asks of the process around it. It must not know how volumes are opened or
//! configured. Invariant: what changes anything, or tells of volumes, is only for those whom [`Access`] lets in; metrics
//! and health are for everybody but pages of other sites, so that probes and scrapers need no secret.

mod access;
mod api;
mod health;
mod http;
mod status;
mod view;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use parking_lot::RwLock;
use uuid::Uuid;

use crate::metrics::{Metrics, VolumeMetrics};
use crate::server::{Connection, ListenAddress, Listener};
use crate::task::Tasks;
use crate::volume::catalog::{Info, Listed, Unnamed};
use crate::volume::{OpenError, Volume};

pub use access::{Access, Token, TokenError};

/// Bounds of the admin server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Connections at a time; beyond, the oldest that has no request in hand makes room.
    pub maximum_connections: usize,
    /// How long a client may take to send the head of a request.
    pub header_timeout: Duration,
    /// How long a client may take to send the body of a request.
    pub body_timeout: Duration,
    /// How long readiness may take to find out.
    pub ready_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            maximum_connections: 64,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
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

/// How far the gateway has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not every configured volume is open yet.
    Starting,
    /// It serves.
    Serving,
    /// It drains and closes its volumes.
    Ending,
}

/// The store as it was read last, to be told without asking it.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its volumes by name; of very many, the first.
    pub listed: Vec<Listed>,
    /// When it was read, in seconds since 1970.
    pub at_seconds: u64,
}

/// Why the gateway cannot do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// It starts or ends.
    #[error("{0}")]
    NotServing(String),
    /// What the volume's layer says.
    #[error(transparent)]
    Volume(#[from] Arc<OpenError>),
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::Volume(Arc::new(error))
    }
}

/// What the admin server asks of the process around it. A call may be dropped at any await point.
#[async_trait]
pub trait Gateway: Send + Sync + 'static {
    /// What keeps it from serving, one line each; empty where the store answers and every configured volume is open.
    async fn obstacles(&self) -> Vec<String>;
    /// Every name of the store, in order, and the volume that it stands for.
    async fn volumes(&self) -> Result<Vec<Listed>, Failure>;
    /// The volumes for which no name stands.
    async fn unnamed(&self) -> Result<Vec<Unnamed>, Failure>;
    /// One volume.
    async fn volume(&self, name: &str) -> Result<Info, Failure>;
    /// Makes a volume of holes; without `chunk_bytes`, with chunks as configured.
    async fn create(&self, name: &str, size_bytes: u64, chunk_bytes: Option<u64>) -> Result<Info, Failure>;
    /// Deletes a volume that is not open here; with `takeover` although another gateway holds it.
    async fn delete(&self, name: &str, takeover: bool) -> Result<(), Failure>;
    /// Deletes a volume by its id, so that it need not have a name; with `takeover` although another gateway holds it.
    async fn delete_by_id(&self, volume: Uuid, takeover: bool) -> Result<(), Failure>;
    /// How far it has come.
    fn stage(&self) -> Stage;
    /// The store as it was read last; asks it nothing.
    fn known(&self) -> Option<Known>;
    /// URIs of a volume for NBD clients, with `{name}` for its name, one for each listener.
    fn connect(&self) -> Vec<String>;
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
fn router(context: Context, access: Arc<RwLock<Access>>) -> Router {
    let public = axum::middleware::from_fn_with_state(Arc::clone(&access), access::check_public);
    api::routes()
        .layer(axum::middleware::from_fn_with_state(access, access::check))
        .merge(health::routes().layer(public))
        .merge(status::routes())
        .with_state(context)
}

/// The admin server. Dropping it drops every connection.
pub struct Admin {
    address: ListenAddress,
    access: Arc<RwLock<Access>>,
    tasks: Tasks,
}

impl Admin {
    /// Serves on a listener.
    #[must_use]
    pub fn start(
        listener: Listener,
        metrics: Metrics,
        gateway: Arc<dyn Gateway>,
        access: Access,
        options: Options,
    ) -> Self {
        let address = listener.address().clone();
        let tasks = Tasks::new();
        let connections = tasks.child();
        let access = Arc::new(RwLock::new(access));
        let context = Context { gateway, metrics, ready_timeout: options.ready_timeout };
        let router = router(context, Arc::clone(&access));
        drop(tasks.spawn_until_cancelled(http::serve(listener, router, options, connections)));
        Self { address, access, tasks }
    }

    /// Where it listens; for port 0, the port that was chosen.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Lets others in, or out, from the next request on.
    pub fn set_access(&self, access: Access) {
        *self.access.write() = access;
    }

    /// Ends it, and every connection.
    pub async fn stop(self) {
        self.tasks.shutdown().await;
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("address", &self.address).finish_non_exhaustive()
    }
}
