//! Concurrency and its bounds: "Replies need not be sent in the same order as requests".

use std::sync::Arc;

use cairn::server::{Export, Options};

use crate::support::memory_export::{MemoryExport, MemoryExports};
use crate::support::scripted_export::{Script, ScriptedExport};
use crate::support::wire::*;

fn held_disk() -> Arc<ScriptedExport> {
    ScriptedExport::new(MemoryExport::new("disk", 1 << 20), Script::Hold)
}

fn harness(export: &Arc<ScriptedExport>, options: Options) -> Harness {
    Harness::new(MemoryExports::new(vec![Arc::clone(export) as Arc<dyn Export>]), options)
}

#[tokio::test]
async fn a_later_request_may_be_answered_first() {
    let export = held_disk();
    let mut wire = harness(&export, Options::default()).simple().await;
    wire.send(request(0, READ, 1, 0, 1)).await;
    wire.send(request(0, READ, 2, 1, 1)).await;
    wire.expect([&simple_reply(0, 2)[..], b"\0"].concat()).await;
    export.release(1);
    wire.expect([&simple_reply(0, 1)[..], b"\0"].concat()).await;
}

#[tokio::test]
async fn at_the_bound_of_requests_nothing_more_is_started() {
    let export = held_disk();
    let options = Options { in_flight_requests: 3, ..Options::default() };
    let mut wire = harness(&export, options).simple().await;
    for cookie in 0..10 {
        wire.send(request(0, READ, cookie, 0, 1)).await;
    }
    export.wait_started(3).await;
    export.release(1);
    export.wait_started(4).await;
    // Three are out; a fifth can only have been started if the bound was passed.
    assert_eq!(export.started(), 4);
    export.release(9);
    for _ in 0..10 {
        let reply = wire.read(17).await;
        assert_eq!(reply[..8], simple_reply(0, 0)[..8]);
    }
}

#[tokio::test]
async fn at_the_bound_of_bytes_nothing_more_is_started() {
    let export = held_disk();
    let options = Options { in_flight_bytes: 1000, ..Options::default() };
    let mut wire = harness(&export, options).simple().await;
    for cookie in 0..4 {
        wire.send(request(0, READ, cookie, 0, 500)).await;
    }
    export.wait_started(2).await;
    export.release(1);
    export.wait_started(3).await;
    assert_eq!(export.started(), 3);
    export.release(3);
    wire.read(4 * 516).await;
}

#[tokio::test]
async fn a_request_larger_than_the_bound_of_bytes_is_let_through_alone() {
    let export = held_disk();
    let options = Options { in_flight_bytes: 1000, ..Options::default() };
    let mut wire = harness(&export, options).simple().await;
    wire.send(request(0, READ, 1, 1, 100_000)).await;
    wire.expect(simple_reply(0, 1)).await;
    wire.read(100_000).await;
    wire.is_alive_after(&export).await;
}

impl Wire {
    /// A FLUSH passes, once it is let through.
    async fn is_alive_after(&mut self, export: &ScriptedExport) {
        export.release(1);
        self.is_alive().await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_replies_is_not_read_from() {
    let export = ScriptedExport::new(MemoryExport::new("disk", 64 << 20), Script::Pass);
    let options = Options { in_flight_bytes: 1 << 20, ..Options::default() };
    let mut wire = harness(&export, options).simple().await;
    let requests: Vec<u8> = (0..64).flat_map(|cookie| request(0, READ, cookie, 0, 1 << 20)).collect();
    wire.send(requests).await;
    export.wait_started(1).await;
    for cookie in 0..64 {
        assert!(export.started() <= usize::try_from(cookie).unwrap() + 3);
        wire.expect(simple_reply(0, cookie)).await;
        wire.read(1 << 20).await;
    }
}

//= Request types: The server MUST handle all outstanding requests, shut down the TLS session (if one is
//# running), and close the TCP session.
#[tokio::test]
async fn disc_must_wait_for_all_outstanding_requests() {
    let export = held_disk();
    let mut wire = harness(&export, Options::default()).simple().await;
    wire.send([request(0, READ, 1, 0, 1), request(0, DISC, 2, 0, 0)].concat()).await;
    export.wait_started(1).await;
    export.release(1);
    wire.expect([&simple_reply(0, 1)[..], b"\0"].concat()).await;
    wire.expect_closed().await;
}

#[tokio::test]
async fn a_client_that_closes_its_side_still_gets_its_replies() {
    let export = held_disk();
    let mut wire = harness(&export, Options::default()).simple().await;
    wire.send(request(0, READ, 1, 0, 1)).await;
    wire.close_writing().await;
    export.wait_started(1).await;
    export.release(1);
    wire.expect([&simple_reply(0, 1)[..], b"\0"].concat()).await;
    wire.expect_closed().await;
}

#[tokio::test]
async fn when_a_client_leaves_nothing_of_it_is_left() {
    let export = held_disk();
    let harness = harness(&export, Options::default());
    let mut wire = harness.simple().await;
    wire.send(request(0, READ, 1, 0, 1)).await;
    export.wait_started(1).await;
    drop(wire);
    export.release(1);
    harness.tasks.join().await;
    assert_eq!(harness.server.free_connections(), Options::default().maximum_connections);
    assert_eq!(Arc::strong_count(&export), 2, "ours and that of the exports");
}

#[tokio::test]
async fn connections_past_the_cap_are_closed_and_the_others_are_not_affected() {
    let options = Options { maximum_connections: 2, ..Options::default() };
    let exports = MemoryExports::new(vec![Arc::new(MemoryExport::new("disk", 1 << 20))]);
    let harness = Harness::new(exports, options);
    let mut first = harness.simple().await;
    let second = harness.options().await;
    harness.connect().expect_closed().await;
    first.is_alive().await;
    drop(second);
    while harness.server.free_connections() == 0 {
        tokio::task::yield_now().await;
    }
    harness.simple().await.is_alive().await;
    first.is_alive().await;
}

#[tokio::test]
async fn what_is_in_flight_is_measured_and_falls_back() {
    let export = held_disk();
    let harness = harness(&export, Options::default());
    let mut wire = harness.simple().await;
    wire.send([request(0, READ, 1, 0, 500), request(0, READ, 2, 0, 100)].concat()).await;
    export.wait_started(2).await;
    let measured = harness.metrics.render();
    assert!(measured.contains("cairn_server_requests_in_flight 2"), "{measured}");
    assert!(measured.contains("cairn_server_bytes_in_flight 600"), "{measured}");
    export.release(2);
    wire.read(632).await;
    wire.send(request(0, DISC, 3, 0, 0)).await;
    wire.expect_closed().await;
    harness.tasks.join().await;
    let measured = harness.metrics.render();
    assert!(measured.contains("cairn_server_requests_in_flight 0"), "{measured}");
    assert!(measured.contains("cairn_server_bytes_in_flight 0"), "{measured}");
}
