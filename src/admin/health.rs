//! Metrics and health, for scrapers and probes.
//!
//! Everybody who reaches the socket may read them, except pages of other sites on loopback. Must not know who
//! asks; access control has decided that before. Invariant: health names no volume that metrics do not name.

use std::io::Write as _;

use axum::extract::State;
use axum::http::header::{ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::Context;
use super::view::Ready;

pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
}

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns the metrics in the format that the scraper accepts, compressed if it accepts gzip.
async fn metrics(State(context): State<Context>, headers: HeaderMap) -> Response {
    let (kind, text) = match accepts(&headers, &ACCEPT, "application/openmetrics-text") {
        true => (OPEN_METRICS, context.metrics.render_open_metrics()),
        false => (TEXT, context.metrics.render()),
    };
    let vary = (VARY, "accept, accept-encoding");
    if accepts(&headers, &ACCEPT_ENCODING, "gzip")
        && let Ok(compressed) = gzip(text.as_bytes())
    {
        return ([(CONTENT_TYPE, kind), vary, (CONTENT_ENCODING, "gzip")], compressed).into_response();
    }
    ([(CONTENT_TYPE, kind), vary], text).into_response()
}

/// Whether a list of preferences (RFC 9110, section 12.4) contains this choice by name with a weight other
/// than 0.
fn accepts(headers: &HeaderMap, list: &HeaderName, choice: &str) -> bool {
    let lists = headers.get_all(list).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|item| {
        let mut parts = item.split(';').map(str::trim);
        let is_named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(choice));
        let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
        is_named && weight.is_none_or(|weight| weight > 0.0)
    })
}

fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Liveness: any answer at all shows that the process is alive.
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
