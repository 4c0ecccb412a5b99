//! The admin HTTP server: metrics, health, the API and the status page.
//!
//! It reaches the gateway through the trait [`Gateway`]. It must not know how volumes are opened or
//! configured. Invariant: [`Access`] guards every request that changes something or shows volumes. Metrics
//! and health are open to everybody, except to pages of other sites on loopback, so that probes and scrapers
//! need no secret.

mod access;
mod api;
mod body;
mod changes_view;
mod flatten_view;
mod garbage_view;
mod health;
mod http;
mod status;
mod view;
mod warm_view;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use parking_lot::RwLock;

use crate::metrics::Metrics;
use crate::server::{ListenAddress, Listener};
use crate::task::Tasks;

pub use access::{Access, Token, TokenError};
pub use flatten_view::FlattenView;
pub use garbage_view::{GarbageView, TallyView};
pub use view::{DeletedView, SnapshotView, UnnamedView};
pub use warm_view::WarmView;

pub use crate::gateway::{Failure, Gateway, Known, OpenVolume, Stage};

/// The limits of the admin server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Maximum number of open connections. Beyond that, the oldest one without a request in progress is
    /// closed.
    pub maximum_connections: usize,
    /// How long a client may take to send the head of a request.
    pub header_timeout: Duration,
    /// How long a client may take to send the body of a request.
    pub body_timeout: Duration,
    /// How long the readiness check may take.
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

/// What all request handlers share.
#[derive(Clone)]
struct Context {
    gateway: Arc<dyn Gateway>,
    metrics: Metrics,
    ready_timeout: Duration,
}

/// Builds the router with all routes and their access control.
fn router(context: Context, access: Arc<RwLock<Access>>) -> Router {
    let public = axum::middleware::from_fn_with_state(Arc::clone(&access), access::check_public);
    api::routes()
        .layer(axum::middleware::from_fn_with_state(access, access::check))
        .merge(health::routes().layer(public))
        .merge(status::routes())
        .with_state(context)
}

/// A running admin server. Dropping it drops every connection.
pub struct Admin {
    address: ListenAddress,
    access: Arc<RwLock<Access>>,
    tasks: Tasks,
}

impl Admin {
    /// Starts to serve on a listener.
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

    /// The address that the server listens on. If port 0 was requested, it contains the port that the system
    /// chose.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Replaces the access rules, starting with the next request.
    pub fn set_access(&self, access: Access) {
        *self.access.write() = access;
    }

    /// Stops the server and closes every connection.
    pub async fn stop(self) {
        self.tasks.shutdown().await;
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("address", &self.address).finish_non_exhaustive()
    }
}
