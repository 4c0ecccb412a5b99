//! Serves disks in memory: how to put an [`Export`] of your own behind Cairn's NBD server.
//!
//! ```text
//! cargo run --example memory_server -- 127.0.0.1:10809 unix:/tmp/nbd.sock
//! nbdinfo nbd://127.0.0.1:10809/disk
//! ```
//!
//! [`Export`]: cairn::server::Export

#[path = "../tests/support/memory_export.rs"]
mod memory_export;

use std::error::Error;
use std::sync::Arc;

use cairn::server::{Greeting, ListenAddress, Listener, NoMetrics, Options, Server};
use memory_export::{MemoryExport, MemoryExports};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let exports = MemoryExports::new(vec![
        Arc::new(MemoryExport::new("disk", 1 << 30)),
        Arc::new(MemoryExport::new("large", 1 << 40)),
    ]);
    let server = Server::new(Arc::new(exports), Options::default(), NoMetrics);
    for address in std::env::args().skip(1) {
        let listener = Listener::bind(&address.parse::<ListenAddress>()?).await?;
        println!("listening on {}", server.listen(listener, Greeting::Newstyle));
    }
    signal(SignalKind::terminate())?.recv().await;
    println!("drained: {:?}", server.drain().await);
    Ok(())
}
