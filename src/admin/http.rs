//! HTTP/1.1 connections: accepts them, limits their number and duration, and closes them.
//!
//! Must not know any route. Invariant: a new client is always served, however many connections are open,
//! because the oldest connection without a request in progress is closed to make room.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::view::Problem;
use crate::server::Listener;
use crate::task::Tasks;

/// Pause after a failed accept. The cause may be a lack of file descriptors, which other connections have to
/// release first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Maximum length of a request body in bytes.
const BODY_BYTES: usize = 64 << 10;
/// Maximum length of a request head in bytes. Also limits what is read ahead while a request is being
/// answered.
const HEAD_BYTES: usize = 64 << 10;

/// The state of one connection that decides whether it may be closed.
#[derive(Debug, Default)]
struct Connection {
    /// Whether a complete request has arrived and its response is not ready yet.
    answers: AtomicBool,
    end: CancellationToken,
}

/// Accepts and serves connections until the future is dropped. The connections themselves end with
/// `connections`.
pub(super) async fn serve(listener: Listener, router: Router, options: Options, connections: Tasks) {
    let mut open: VecDeque<Arc<Connection>> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept on {}: {error}", listener.address());
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        open.retain(|connection| Arc::strong_count(connection) > 1);
        make_room(&mut open, options.maximum_connections);
        let ours = Arc::new(Connection::default());
        open.push_back(Arc::clone(&ours));
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(options.header_timeout).max_buf_size(HEAD_BYTES);
        let router = router
            .clone()
            .layer(from_fn_with_state(Arc::clone(&ours), note))
            .layer(from_fn_with_state(options.body_timeout, with_body));
        let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        drop(connections.spawn_until_cancelled(async move {
            tokio::select! {
                biased;
                () = ours.end.cancelled() => tracing::debug!("admin connection closed for a newer one"),
                ended = connection => if let Err(error) = ended {
                    tracing::debug!("admin connection ended: {error}");
                },
            }
        }));
    }
}

/// Closes connections until a new one fits: the oldest one that is not answering a request, or else the
/// oldest of all.
fn make_room(open: &mut VecDeque<Arc<Connection>>, maximum: usize) {
    while open.len() >= maximum.max(1) {
        let idle = open.iter().position(|connection| !connection.answers.load(Ordering::Relaxed));
        if let Some(ended) = open.remove(idle.unwrap_or(0)) {
            ended.end.cancel();
        }
    }
}

/// Middleware that marks the connection as busy while a complete request is being answered.
async fn note(State(connection): State<Arc<Connection>>, request: Request, next: Next) -> Response {
    connection.answers.store(true, Ordering::Relaxed);
    let response = next.run(request).await;
    connection.answers.store(false, Ordering::Relaxed);
    response
}

/// Middleware that reads the whole body before anything else happens. Bodies are short. The timeout keeps a
/// client from holding a request open.
async fn with_body(State(timeout): State<Duration>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let refuse = |status, why: String| Problem::new(status, why).into_response();
    match tokio::time::timeout(timeout, to_bytes(body, BODY_BYTES)).await {
        Ok(Ok(body)) => next.run(Request::from_parts(head, Body::from(body))).await,
        Ok(Err(_)) => {
            let why = format!("the body is incomplete, or longer than {BODY_BYTES} bytes");
            refuse(StatusCode::PAYLOAD_TOO_LARGE, why)
        }
        Err(_) => refuse(StatusCode::REQUEST_TIMEOUT, format!("the body took longer than {timeout:?}")),
    }
}
