//! What all connections together may hold, and clients that stop in the midst of what they send or receive.

use std::sync::Arc;
use std::time::Duration;

use cairn::server::{Export, Options};
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, sleep};

use crate::support::memory_export::{MemoryExport, MemoryExports};
use crate::support::scripted_export::{Script, ScriptedExport};
use crate::support::wire::*;

const MIB: u32 = 1 << 20;

/// Of 4 MiB, each of two connections has a share of 1 MiB, and 2 MiB are for who comes first.
fn two_connections() -> Options {
    Options { maximum_connections: 2, total_in_flight_bytes: 4 << 20, ..Options::default() }
}

fn harness(script: Script, options: Options) -> (Arc<ScriptedExport>, Harness) {
    let export = ScriptedExport::new(MemoryExport::new("disk", 64 << 20), script);
    let exports = MemoryExports::new(vec![Arc::clone(&export) as Arc<dyn Export>]);
    (export, Harness::new(exports, options))
}

/// The value of a metric, by its name and labels.
fn measured(harness: &Harness, metric: &str) -> u64 {
    let rendered = harness.metrics.render();
    let value = rendered.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    value.expect("it is measured").parse().expect("a number")
}

fn held(harness: &Harness) -> u64 {
    measured(harness, "cairn_server_bytes_in_flight")
}

fn stalled(harness: &Harness, direction: &str) -> u64 {
    measured(harness, &format!("cairn_connections_stalled_total{{direction=\"{direction}\"}}"))
}

/// The beginning of a WRITE at 0, whose payload is this long and does not all come.
fn half_a_write(length: u32) -> Vec<u8> {
    [request(0, WRITE, 7, 0, length), vec![7; 1000]].concat()
}

#[tokio::test]
async fn one_connection_may_hold_all_that_is_common_and_the_other_still_has_its_share() {
    let (export, harness) = harness(Script::Hold, two_connections());
    let mut greedy = harness.simple().await;
    let mut modest = harness.simple().await;
    // One of 2 MiB from what is common, one of 1 MiB from its share; for a third there is no room.
    for (cookie, length) in [(1, 2 * MIB), (2, MIB), (3, 1)] {
        greedy.send(request(0, READ, cookie, 0, length)).await;
    }
    export.wait_started(2).await;
    assert_eq!(held(&harness), 3 << 20);
    for cookie in 0..10 {
        modest.send(request(0, READ, cookie, 512, MIB)).await;
        modest.expect(simple_reply(0, cookie)).await;
        modest.read(1 << 20).await;
    }
    assert_eq!(export.started(), 12, "the third is not started");
    export.release(3);
    greedy.read(16 + (2 << 20) + 16 + (1 << 20) + 16 + 1).await;
}

#[tokio::test]
async fn what_all_connections_hold_together_stays_within_the_bound() {
    let options = Options { maximum_connections: 16, total_in_flight_bytes: 16 << 20, ..Options::default() };
    let (export, harness) = harness(Script::Hold, options);
    let mut wires = Vec::new();
    for _ in 0..16 {
        let mut wire = harness.simple().await;
        // Half a MiB is of its own; the next of 4 MiB come from the 8 MiB that are common.
        wire.send(request(0, READ, 1, 0, MIB / 2)).await;
        wire.send(request(0, READ, 2, 0, 4 * MIB)).await;
        wires.push(wire);
    }
    export.wait_started(18).await;
    assert_eq!(held(&harness), 16 << 20);
    // All are answered in the end, whoever waited for whom.
    export.release(32);
    let reading = wires.iter_mut().map(|wire| wire.read(16 + (1 << 19) + 16 + (4 << 20)));
    futures::future::join_all(reading).await;
    assert_eq!(export.started(), 32);
    drop(wires);
    harness.tasks.join().await;
    assert_eq!(held(&harness), 0);
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_stands_still_is_given_up_at_the_limit_and_no_sooner() {
    let (_, harness) = harness(Script::Pass, Options::default());
    let limit = Options::default().stall_timeout;
    let mut wire = harness.simple().await;
    wire.send(half_a_write(MIB)).await;
    let begun = Instant::now();
    assert!(wire.is_dropped().await);
    assert!(begun.elapsed() >= limit && begun.elapsed() < 2 * limit, "{:?}", begun.elapsed());
    harness.tasks.join().await;
    assert_eq!((held(&harness), stalled(&harness, "requests")), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn who_stops_within_a_request_or_within_a_payload_that_is_refused_is_given_up_too() {
    for stopped in [request(0, READ, 1, 0, 512)[..27].to_vec(), half_a_write(u32::MAX)] {
        let (_, harness) = harness(Script::Pass, Options::default());
        let mut wire = harness.simple().await;
        wire.send(stopped).await;
        assert!(wire.is_dropped().await);
        harness.tasks.join().await;
        assert_eq!((held(&harness), stalled(&harness, "requests")), (0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_payload_that_moves_is_waited_for() {
    let (_, harness) = harness(Script::Pass, Options::default());
    let mut wire = harness.simple().await;
    wire.send(request(0, WRITE, 1, 0, 20)).await;
    for _ in 0..20 {
        sleep(Options::default().stall_timeout - Duration::from_millis(1)).await;
        wire.send(b"x").await;
    }
    wire.expect(simple_reply(0, 1)).await;
    assert_eq!(stalled(&harness, "requests"), 0);
}

#[tokio::test(start_paused = true)]
async fn between_two_requests_a_client_may_rest() {
    let (_, harness) = harness(Script::Pass, Options::default());
    let mut wire = harness.simple().await;
    wire.is_alive().await;
    sleep(100 * Options::default().stall_timeout).await;
    wire.is_alive().await;
}

#[tokio::test(start_paused = true)]
async fn who_reads_no_replies_is_given_up_and_holds_no_more_than_its_bound() {
    let options = Options { in_flight_bytes: 2 << 20, ..Options::default() };
    let (export, harness) = harness(Script::Pass, options);
    let mut wire = harness.simple().await;
    let requests: Vec<u8> = (0..64).flat_map(|cookie| request(0, READ, cookie, 0, MIB)).collect();
    wire.send(requests).await;
    export.wait_started(2).await;
    let begun = Instant::now();
    while stalled(&harness, "replies") == 0 {
        assert!(held(&harness) <= 2 << 20, "{}", held(&harness));
        assert!(begun.elapsed() < 2 * Options::default().stall_timeout, "it is not given up");
        sleep(Duration::from_secs(1)).await;
    }
    harness.tasks.join().await;
    assert_eq!((held(&harness), stalled(&harness, "replies")), (0, 1));
    assert!(export.started() <= 4, "{}", export.started());
}

#[tokio::test(start_paused = true)]
async fn who_reads_replies_slowly_is_waited_for() {
    let (_, harness) = harness(Script::Pass, Options::default());
    let mut wire = harness.simple().await;
    wire.send(request(0, READ, 1, 0, MIB)).await;
    wire.expect(simple_reply(0, 1)).await;
    for _ in 0..16 {
        sleep(Options::default().stall_timeout - Duration::from_millis(1)).await;
        wire.read(1 << 16).await;
    }
    wire.is_alive().await;
    assert_eq!(stalled(&harness, "replies"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_stalled_client_held_goes_to_those_who_wait() {
    let (export, harness) = harness(Script::Pass, two_connections());
    let mut stalled = harness.simple().await;
    let mut waiting = harness.simple().await;
    stalled.send(half_a_write(2 * MIB)).await;
    waiting.send(request(0, READ, 1, 0, 2 * MIB)).await;
    waiting.expect(simple_reply(0, 1)).await;
    waiting.read(2 << 20).await;
    assert!(stalled.is_dropped().await);
    assert_eq!(export.started(), 1);
}

/// In the handshake it is the client's time for all of it that counts.
#[tokio::test(start_paused = true)]
async fn who_sends_options_for_ever_and_reads_no_answers_is_closed_at_the_handshake_timeout() {
    let (_, harness) = harness(Script::Pass, Options::default());
    for refused in [option(77, b""), option(LIST, b"x"), option(INFO, &info_request("nothing", &[]))] {
        let mut stream = harness.options().await.into_stream();
        let begun = Instant::now();
        // Until the answers fill the pipe, and the server waits for the client to read them.
        while stream.write_all(&refused).await.is_ok() {}
        assert!(begun.elapsed() <= Options::default().handshake_timeout, "{:?}", begun.elapsed());
    }
    harness.tasks.join().await;
}

#[tokio::test(start_paused = true)]
async fn who_rests_longer_than_the_idle_timeout_is_closed_but_not_while_a_command_is_in_flight() {
    let idle_timeout = Some(Duration::from_secs(100));
    let (export, harness) = harness(Script::Hold, Options { idle_timeout, ..Options::default() });
    let mut wire = harness.simple().await;
    let rested = Duration::from_secs(99);
    for _ in 0..3 {
        sleep(rested).await;
        wire.send(request(0, READ, 1, 0, 1)).await;
        export.wait_started(1).await;
        sleep(10 * rested).await;
        export.release(1);
        wire.expect([&simple_reply(0, 1)[..], b"\0"].concat()).await;
    }
    let begun = Instant::now();
    wire.expect_closed().await;
    assert_eq!(Some(begun.elapsed()), idle_timeout);
    harness.tasks.join().await;
    assert_eq!(harness.server.free_connections(), Options::default().maximum_connections);
}
