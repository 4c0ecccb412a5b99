//! The server's shutdown: "SHOULD wait for inflight requests", `NBD_REP_ERR_SHUTDOWN`, `NBD_ESHUTDOWN`.

use std::sync::Arc;

use async_trait::async_trait;
use cairn::server::{Drained, Export, ExportDescription, Exports, ListEntry, OpenError, Options};
use tokio::sync::Notify;

use crate::support::memory_export::{MemoryExport, MemoryExports};
use crate::support::scripted_export::{Script, ScriptedExport};
use crate::support::wire::*;

fn drain(harness: &Harness) -> tokio::task::JoinHandle<Drained> {
    let server = Arc::clone(&harness.server);
    harness.tasks.spawn(async move { server.drain().await })
}

//= Terminating the transmission phase: any subsequently received requests SHOULD be `NBD_ESHUTDOWN`
#[tokio::test]
async fn commands_in_flight_are_answered_and_new_ones_get_eshutdown() {
    let export = ScriptedExport::new(MemoryExport::new("disk", 1 << 20), Script::Hold);
    let harness = Harness::of(Arc::clone(&export) as _);
    let mut wire = harness.structured().await;
    wire.send([&request(0, WRITE, 1, 0, 4)[..], b"data"].concat()).await;
    export.wait_started(1).await;
    let drained = drain(&harness);
    wire.fails([&request(0, WRITE, 2, 512, 4)[..], b"data"].concat(), ESHUTDOWN).await;
    wire.fails(request(0, READ, 3, 512, 4), ESHUTDOWN).await;
    export.release(1);
    wire.expect(simple_reply(0, 1)).await;
    wire.expect_closed().await;
    drop(wire);
    assert_eq!(drained.await.unwrap(), Drained::Answered);
    assert_eq!(export.started(), 1);
}

/// A CACHE is a hint that may take hours: it is given up, and its reply is a success like that of any other.
#[tokio::test]
async fn a_cache_does_not_keep_the_server_from_going() {
    let export = ScriptedExport::new(MemoryExport::new("disk", 1 << 20), Script::Hold);
    let harness = Harness::of(Arc::clone(&export) as _);
    let mut wire = harness.structured().await;
    wire.send(request(0, CACHE, 1, 0, 1 << 20)).await;
    export.wait_started(1).await;
    let drained = drain(&harness);
    wire.expect(simple_reply(0, 1)).await;
    wire.expect_closed().await;
    drop(wire);
    assert_eq!(drained.await.unwrap(), Drained::Answered);
}

#[tokio::test]
async fn a_cache_ends_when_its_client_leaves() {
    let export = ScriptedExport::new(MemoryExport::new("disk", 1 << 20), Script::Hold);
    let harness = Harness::of(Arc::clone(&export) as _);
    let mut wire = harness.structured().await;
    wire.send(request(0, CACHE, 1, 0, 1 << 20)).await;
    export.wait_started(1).await;
    drop(wire);
    // Nobody releases the command, and yet its connection ends.
    while !harness.server.connections().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let harness = Harness::disk();
    let mut idle = harness.simple().await;
    idle.is_alive().await;
    let drained = drain(&harness);
    idle.expect_closed().await;
    drop(idle);
    assert_eq!(drained.await.unwrap(), Drained::Answered);
}

/// Exports that take for ever to open.
struct Stuck(MemoryExports, Arc<Notify>);

#[async_trait]
impl Exports for Stuck {
    async fn list(&self) -> Result<Vec<ListEntry>, OpenError> {
        self.0.list().await
    }

    async fn describe(&self, name: &str) -> Result<ExportDescription, OpenError> {
        self.0.describe(name).await
    }

    async fn open(&self, _name: &str) -> Result<Arc<dyn Export>, OpenError> {
        self.1.notify_one();
        std::future::pending().await
    }
}

//= Termination of the session during option haggling: In the server's case it MUST (save where set out
//# above) simply error inbound options until the client gets the hint that it is unwelcome
#[tokio::test]
async fn options_in_flight_and_further_ones_get_err_shutdown_except_abort() {
    let asked = Arc::new(Notify::new());
    let exports = MemoryExports::new(vec![Arc::new(MemoryExport::new("disk", 1 << 20))]);
    let harness = Harness::new(Stuck(exports, Arc::clone(&asked)), Options::default());
    let mut wire = harness.options().await;
    let go = option(GO, &info_request("disk", &[]));
    wire.send([&go[..], &option(LIST, b""), &option(99, b"data"), &option(ABORT, b"")].concat()).await;
    asked.notified().await;
    let drained = drain(&harness);
    wire.expect_reply(GO, REP_ERR_SHUTDOWN).await;
    wire.expect_reply(LIST, REP_ERR_SHUTDOWN).await;
    wire.expect_reply(99, REP_ERR_SHUTDOWN).await;
    wire.expect_reply(ABORT, REP_ACK).await;
    wire.expect_closed().await;
    drop(wire);
    assert_eq!(drained.await.unwrap(), Drained::Answered);
}

#[tokio::test]
async fn an_export_name_in_flight_is_closed() {
    let asked = Arc::new(Notify::new());
    let exports = MemoryExports::new(vec![Arc::new(MemoryExport::new("disk", 1 << 20))]);
    let harness = Harness::new(Stuck(exports, Arc::clone(&asked)), Options::default());
    let mut wire = harness.options().await;
    wire.send(option(EXPORT_NAME, b"disk")).await;
    asked.notified().await;
    let drained = drain(&harness);
    wire.expect_closed().await;
    drop(wire);
    assert_eq!(drained.await.unwrap(), Drained::Answered);
}

#[tokio::test(start_paused = true)]
async fn a_drain_takes_bounded_time_whatever_is_in_flight() {
    let export = ScriptedExport::new(MemoryExport::new("disk", 1 << 20), Script::Hold);
    let harness = Harness::of(Arc::clone(&export) as _);
    let mut wire = harness.simple().await;
    wire.send(request(0, READ, 1, 0, 4)).await;
    export.wait_started(1).await;
    let drained = drain(&harness).await.unwrap();
    assert!(matches!(drained, Drained::TimedOut { tasks: 1.. }), "{drained:?}");
    wire.expect_closed().await;
    assert_eq!(Arc::strong_count(&export), 2, "ours and that of the exports");
}

#[tokio::test(start_paused = true)]
async fn no_connection_outlives_the_server() {
    let harness = Harness::disk();
    let mut wire = harness.simple().await;
    wire.is_alive().await;
    harness.server.drain().await;
    harness.tasks.join().await;
    wire.expect_closed().await;
}

/// What a client sends after that is left to whoever it connects to next.
#[tokio::test]
async fn for_a_successor_commands_in_flight_are_answered_and_new_ones_left_unread() {
    let export = ScriptedExport::new(MemoryExport::new("disk", 1 << 20), Script::Hold);
    let harness = Harness::of(Arc::clone(&export) as _);
    let (mut wire, mut idle) = (harness.structured().await, harness.options().await);
    wire.send([&request(0, WRITE, 1, 0, 4)[..], b"data"].concat()).await;
    export.wait_started(1).await;
    let hang_up = harness.server.hang_up();
    tokio::pin!(hang_up);
    assert!(futures::poll!(hang_up.as_mut()).is_pending());
    // Once this one is told, so is the other.
    idle.expect_closed().await;
    wire.send([&request(0, WRITE, 2, 512, 4)[..], b"data"].concat()).await;
    export.release(1);
    let client = async {
        wire.expect(simple_reply(0, 1)).await;
        wire.expect_closed().await;
        drop((wire, idle));
    };
    let (drained, ()) = tokio::join!(hang_up, client);
    assert_eq!(drained, Drained::Answered);
    assert_eq!(export.started(), 1);
}

/// The export can be closed, and opened by the successor, while the client takes its time.
#[tokio::test]
async fn a_hang_up_does_not_wait_for_the_client_to_close_but_the_end_does() {
    let harness = Harness::disk();
    let mut wire = harness.simple().await;
    wire.is_alive().await;
    assert_eq!(harness.server.hang_up().await, Drained::Answered);
    let closed = harness.server.closed();
    tokio::pin!(closed);
    assert!(futures::poll!(closed.as_mut()).is_pending(), "the client has not closed");
    wire.expect_closed().await;
    drop(wire);
    closed.await;
}
