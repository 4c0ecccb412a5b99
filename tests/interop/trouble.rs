//! Faults between the gateway and its store do not become faults of the disk: answers that are held, lost,
//! wrong or missing.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::blocks::{Writer, assert_blocks};
use crate::support::cairn::{Setup, Store};
use crate::support::process::{Process, command, finish, run};
use crate::support::proxy::{Action, Gate, Proxy};

fn nbdsh(uri: &str, script: &str) -> tokio::process::Command {
    let mut nbdsh = command(["nbdsh", "-u", uri, "-c", script]);
    nbdsh.env("PATH", "/usr/bin:/bin");
    nbdsh
}

/// No FLUSH is answered while the PUT of the commit is in flight, neither the FLUSH that started it nor one
/// without new dirty data.
async fn flushes_wait_for(hold: fn(Gate) -> Action) {
    let store = Store::minio().await;
    let proxy = store.proxy().await;
    let setup = Setup::new(&store).through(&proxy).create("disk", "1GiB").tcp();
    let gateway = setup.env("CAIRN_COMMIT__MAX_AGE", "1h").start().await;
    let gate = Gate::new();
    let held = gate.clone();
    proxy.rule(move |request| if request.puts("/journal/") { hold(held.clone()) } else { Action::Pass });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/held.py");
    let mut client =
        Process::spawn("held.py", &mut command(["/usr/bin/python3", script, &gateway.uri("disk")]));
    gate.reached().await;
    client.wait_for("the FLUSHes wait", |line| (line == "waiting").then_some(())).await;
    assert!(!client.output().contains("answered"), "{}", client.output());
    gate.open();
    client.wait_for("the FLUSHes are answered", |line| (line == "answered").then_some(())).await;
    assert!(client.exit().await.success(), "{}", client.output());
    proxy.stop().await;
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn no_flush_is_answered_before_the_store_has_the_commit() {
    flushes_wait_for(Action::HoldRequest).await;
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn no_flush_is_answered_before_the_store_has_answered() {
    flushes_wait_for(Action::HoldAnswer).await;
}

/// Commits that the store accepted without an answer are neither lost nor duplicated, and are not mistaken
/// for a takeover.
#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn commits_whose_answers_are_lost_are_resolved() {
    let store = Store::minio().await;
    let proxy = store.proxy().await;
    let mut gateway = Setup::new(&store).through(&proxy).create("disk", "1GiB").tcp().start().await;
    let seen = AtomicUsize::new(0);
    proxy.rule(move |request| {
        let turn = request.puts("/journal/") && seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(3);
        if turn { Action::LoseAnswer } else { Action::Pass }
    });
    let mut writer = Writer::start(&gateway.uri("disk"));
    writer.has_flushed(400).await;
    gateway.process.kill().await;
    let answers = writer.end().await;
    proxy.rule(|_| Action::Pass);
    let next = Setup::new(&store).through(&proxy).create("disk", "1GiB").tcp().takeover().start().await;
    assert_blocks(&next.uri("disk"), answers.flushed.expect("some were flushed")).await;
    proxy.stop().await;
}

/// The store is cut off, stalls, and loses its process. Writers wait, and continue when it is back.
#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn writers_survive_an_outage_of_the_store() {
    let mut store = Store::minio().await;
    let proxy = store.proxy().await;
    let gateway = Setup::new(&store).through(&proxy).create("disk", "1GiB").tcp().start().await;
    let mut writer = Writer::start(&gateway.uri("disk"));
    writer.has_flushed(50).await;
    proxy.cut();
    proxy.resume();
    writer.has_flushed(200).await;
    proxy.stall();
    proxy.resume();
    writer.has_flushed(300).await;
    let Store::Minio(minio) = &mut store else { unreachable!("MinIO was asked for") };
    minio.kill().await;
    minio.restart().await;
    let before = proxy.count(|request| request.puts("/journal/"));
    writer.has_flushed(800).await;
    assert!(
        proxy.count(|request| request.puts("/journal/")) > before,
        "nothing was committed after the restart"
    );
    drop(gateway);
    let answers = writer.end().await;
    let next = Setup::new(&store).create("disk", "1GiB").tcp().takeover().start().await;
    assert_blocks(&next.uri("disk"), answers.flushed.expect("some were flushed")).await;
    proxy.stop().await;
}

const READ: &str = "assert h.pread(8 << 20, 0) == bytes(range(256)) * (32 << 10)";

/// A wrong answer to a GET of data is EIO once, but not for ever: nothing of it is cached or written back.
async fn wrong_data_is_eio(damage: fn() -> Action) {
    let store = Store::minio().await;
    let proxy = store.proxy().await;
    let setup = || Setup::new(&store).through(&proxy).create("disk", "1GiB").tcp();
    let mut first = setup().start().await;
    run(&mut nbdsh(&first.uri("disk"), "h.pwrite(bytes(range(256)) * (32 << 10), 0)\nh.flush()")).await;
    first.process.signal(rustix::process::Signal::TERM);
    assert!(first.process.exit().await.success(), "{}", first.process.output());

    let second = setup().env("CAIRN_STORE__READ_DEADLINE", "2s").start().await;
    disturb(&proxy, damage);
    let said = finish(&mut nbdsh(&second.uri("disk"), READ)).await;
    assert!(!said.status.success() && said.stderr.contains("Input/output error"), "{said:?}");
    proxy.rule(|_| Action::Pass);
    run(&mut nbdsh(&second.uri("disk"), READ)).await;
    run(&mut nbdsh(&second.uri("disk"), "h.pwrite(b'x', 1)\nh.flush()\nassert h.pread(3, 0) == b'\\0x\\2'"))
        .await;
    proxy.stop().await;
}

fn disturb(proxy: &Proxy, damage: fn() -> Action) {
    proxy.rule(move |request| if request.gets("/chunk/") { damage() } else { Action::Pass });
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn a_flipped_bit_is_eio() {
    wrong_data_is_eio(|| Action::FlipBit).await;
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn a_short_body_is_eio() {
    wrong_data_is_eio(|| Action::ShortenAnswer).await;
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn a_failed_get_is_eio() {
    wrong_data_is_eio(|| Action::Refuse(500)).await;
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn a_lost_get_is_eio() {
    wrong_data_is_eio(|| Action::LoseAnswer).await;
}
