//! Metrics and health, for scrapers and probes: open to whoever reaches the socket (on loopback, but for pages of other
//! sites), and without names of volumes in health beyond what metrics tell.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};

use super::Context;
use super::view::Ready;

pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
}

async fn metrics(State(context): State<Context>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], context.metrics.render()).into_response()
}

/// That it answers is the answer.
async fn live() -> Response {
    ([(CACHE_CONTROL, "no-store")], "live\n").into_response()
}

async fn ready(State(context): State<Context>) -> Response {
    let asked = tokio::time::timeout(context.ready_timeout, context.gateway.obstacles());
    let reasons = match asked.await {
        Ok(reasons) => reasons,
        Err(_) => vec![format!("the store did not answer within {:?}", context.ready_timeout)],
    };
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Json(Ready { ready: reasons.is_empty(), reasons });
    (status, [(CACHE_CONTROL, "no-store")], body).into_response()
}
