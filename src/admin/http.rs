//! HTTP/1.1 connections: accepts, bounds and ends them. Knows no route.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;

use super::Options;
use crate::server::Listener;
use crate::task::Tasks;

/// How long to wait after a failed accept: it may be for want of file descriptors, which others must give back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is dropped; the connections end with `connections`.
pub(super) async fn serve(listener: Listener, router: Router, options: Options, connections: Tasks) {
    let slots = Arc::new(Semaphore::new(options.maximum_connections));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept on {}: {error}", listener.address());
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(options.header_timeout);
        let service = TowerToHyperService::new(router.clone());
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        drop(connections.spawn_until_cancelled(async move {
            if let Err(error) = connection.await {
                tracing::debug!("admin connection ended: {error}");
            }
            drop(slot);
        }));
    }
}
