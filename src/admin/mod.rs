//! The admin HTTP server: metrics, health, the API and the status page.
//!
//! Asks the gateway through its trait [`Gateway`]. It must not know how volumes are opened or configured.
//! Invariant: what changes anything, or tells of volumes, is only for those whom [`Access`] lets in; metrics
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

use axum::Router;
use parking_lot::RwLock;

use crate::metrics::Metrics;
use crate::server::{ListenAddress, Listener};
use crate::task::Tasks;

pub use access::{Access, Token, TokenError};
pub use view::UnnamedView;

pub use crate::gateway::{Failure, Gateway, Known, OpenVolume, Stage};

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
