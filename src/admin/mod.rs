//! The admin server: metrics, health and volumes over HTTP.
//!
//! Knows what it shows only through [`Gateway`]. Invariants: metrics and health need no token, all else is open only
//! to those who may see it ([`Access`]); connections are bounded in number and in idle time.

mod connections;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::server::{ListenAddress, Listener};
use crate::task::Tasks;

/// How long requests under way may take once it is to end.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// What the admin server shows, told by who runs the gateway.
#[async_trait]
pub trait Gateway: Send + Sync + 'static {
    /// What keeps it from being ready, a line each; none if it is.
    async fn obstacles(&self) -> Vec<String>;
    /// All volumes of the store, in order of name; an error says why they cannot be had.
    async fn volumes(&self) -> Result<Vec<VolumeReport>, String>;
}

/// A volume, as `/api/v1/volumes` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeReport {
    /// Name.
    pub name: String,
    /// Uuid.
    pub id: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Chunk size in bytes.
    pub chunk_bytes: u64,
    /// When it was made (RFC 3339).
    pub created_at: String,
    /// Generation of its last writer.
    pub epoch: u32,
    /// Who claims it, if anybody.
    pub holder: Option<String>,
    /// Its state here; `None` where it is not open here.
    pub open: Option<OpenReport>,
}

/// A volume that is open here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpenReport {
    /// Why it is no longer served; `None` while it is.
    pub stopped: Option<String>,
    /// Whether it stays open without clients.
    pub configured: bool,
    /// Connections that use it.
    pub connections: usize,
    /// Changed bytes that are in no commit yet.
    pub dirty_bytes: u64,
    /// Commits on their way to the store.
    pub commits_in_flight: usize,
    /// Bytes of the journal that no checkpoint has.
    pub journal_bytes: u64,
    /// Records of the journal that no checkpoint has.
    pub journal_records: u64,
    /// Checkpoints since the opening.
    pub checkpoints: u64,
}

/// Who may ask for more than metrics and health.
#[derive(Clone, PartialEq, Eq)]
pub enum Access {
    /// Whoever can connect.
    Open,
    /// Who shows this bearer token.
    Token(String),
    /// Nobody.
    Closed,
}

impl Access {
    /// Who may where: with a token its bearers, without one whoever is on this machine.
    #[must_use]
    pub fn at(address: &ListenAddress, token: Option<String>) -> Self {
        let local = match address {
            ListenAddress::Unix(_) => true,
            ListenAddress::Tcp(address) => {
                address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
            }
        };
        match token {
            Some(token) => Self::Token(token),
            None if local => Self::Open,
            None => Self::Closed,
        }
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "Open",
            Self::Token(_) => "Token",
            Self::Closed => "Closed",
        })
    }
}

#[derive(Clone)]
struct Shown {
    metrics: Metrics,
    gateway: Arc<dyn Gateway>,
}

/// A running admin server. Dropping it ends it.
#[derive(Debug)]
pub struct Admin {
    tasks: Tasks,
}

impl Admin {
    /// Serves on a listener.
    #[must_use]
    pub fn start(listener: Listener, metrics: Metrics, gateway: Arc<dyn Gateway>, access: Access) -> Self {
        let tasks = Tasks::new();
        let router = router(Shown { metrics, gateway }, access);
        let serve = run(listener, router, tasks.token().clone());
        drop(tasks.spawn(serve));
        Self { tasks }
    }

    /// Ends it; requests under way get a moment to be answered.
    pub async fn stop(self) {
        if tokio::time::timeout(STOP_PATIENCE, self.tasks.shutdown()).await.is_err() {
            tracing::debug!("requests to the admin server are cut off");
        }
    }
}

async fn run(listener: Listener, router: Router, end: CancellationToken) {
    let listener = connections::Bounded::new(listener);
    let serve = axum::serve(listener, router).with_graceful_shutdown(end.cancelled_owned());
    if let Err(error) = serve.await {
        tracing::error!("the admin server failed: {error}");
    }
}

fn router(shown: Shown, access: Access) -> Router {
    let api =
        Router::new().route("/volumes", get(volumes)).layer(middleware::from_fn_with_state(access, admit));
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .nest("/api/v1", api)
        .with_state(shown)
}

/// Lets those in who may.
async fn admit(State(access): State<Access>, request: Request, next: Next) -> Response {
    let refused = |status: StatusCode, why: &str| (status, Json(json!({ "error": why }))).into_response();
    match access {
        Access::Open => next.run(request).await,
        Access::Closed => refused(
            StatusCode::FORBIDDEN,
            "this address is not local: set admin.token_file, and show its token",
        ),
        Access::Token(token) => {
            let shown = request.headers().get(header::AUTHORIZATION).map_or(&b""[..], |v| v.as_bytes());
            if shown.strip_prefix(b"Bearer ").is_some_and(|shown| same(shown, token.as_bytes())) {
                next.run(request).await
            } else {
                let mut response = refused(StatusCode::UNAUTHORIZED, "a bearer token is needed");
                let challenge = header::HeaderValue::from_static("Bearer");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
                response
            }
        }
    }
}

/// Compares in a time that does not tell where two texts differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shown.metrics.render())
}

async fn live() -> &'static str {
    "ok\n"
}

async fn ready(State(shown): State<Shown>) -> (StatusCode, String) {
    let obstacles = shown.gateway.obstacles().await;
    if obstacles.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, obstacles.join("\n") + "\n")
    }
}

async fn volumes(State(shown): State<Shown>) -> Response {
    match shown.gateway.volumes().await {
        Ok(volumes) => Json(json!({ "volumes": volumes })).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error }))).into_response(),
    }
}

#[cfg(test)]
mod tests;
