//! The status page, which shows the answers of the API to people.
//!
//! It consists of four static files. They contain nothing about this gateway, so everybody may load them; the
//! page fetches the API as any other client does. Must not know what the API returns. Invariant: the page
//! loads nothing from other servers, and its content security policy forbids it.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::Context;

/// Allows only our own files, and no inline code, frames or forms.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes() -> Router<Context> {
    let file = |kind, text| get(move || async move { file(kind, text) });
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("status.html")))
        .route("/status.css", file("text/css; charset=utf-8", include_str!("status.css")))
        .route("/status.js", file("text/javascript; charset=utf-8", include_str!("status.js")))
        .route("/volume.js", file("text/javascript; charset=utf-8", include_str!("volume.js")))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}
