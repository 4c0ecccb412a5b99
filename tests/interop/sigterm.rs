//! SIGTERM: commands in flight are answered and durable, the exit status is 0, and the next start has nothing
//! to replay.

use rustix::process::Signal;

use super::blocks::{Writer, assert_blocks};
use crate::support::cairn::{Setup, Store};
use crate::support::process::{Process, command};
use crate::support::proxy::{Action, Gate, Request};

/// Under the load of fio and of a client that remembers every answer. The lease lasts longer than the test,
/// so a successor that had to wait for it would never start to serve.
#[tokio::test]
#[ignore = "needs MinIO, fio, libnbd"]
async fn a_drained_gateway_leaves_nothing_to_replay_and_no_lease() {
    let store = Store::minio().await;
    let proxy = store.proxy().await;
    let setup = || Setup::new(&store).through(&proxy).tcp().env("CAIRN_LEASE__TTL", "1h");
    let mut gateway = setup().create("disk", "1GiB").create("load", "1GiB").start().await;

    let mut fio =
        command(["fio", "--name=load", "--ioengine=nbd", "--rw=randrw", "--bs=16k", "--iodepth=16"]);
    fio.args(["--size=1g", "--time_based", "--runtime=600", "--thread", "--status-interval=1"]);
    fio.arg(format!("--uri={}", gateway.uri("load")));
    let mut load = Process::spawn("fio", &mut fio);
    let mut writer = Writer::start(&gateway.uri("disk"));
    load.wait_for("fio writes", |line| (line.contains("WRITE: bw=")).then_some(())).await;
    writer.has_flushed(200).await;

    gateway.process.signal(Signal::TERM);
    let status = gateway.process.exit().await;
    assert!(status.success(), "{status}: {}", gateway.process.output());
    let answers = writer.end().await;
    load.kill().await;

    proxy.forget();
    let next = setup().create("disk", "1GiB").create("load", "1GiB").start().await;
    assert_nothing_replayed(&proxy.requests());
    assert_blocks(&next.uri("disk"), answers.written.expect("some were written")).await;
    proxy.stop().await;
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn the_log_reports_the_progress_of_a_drain() {
    let store = Store::minio().await;
    let proxy = store.proxy().await;
    let mut gateway = Setup::new(&store).through(&proxy).tcp().create("disk", "64MiB").start().await;
    let gate = Gate::new();
    let held = gate.clone();
    proxy.rule(move |request| match request.puts("/journal/") {
        true => Action::HoldRequest(held.clone()),
        false => Action::Pass,
    });
    let script = "h.pwrite(b'in time!' * 512, 0)\nh.flush()";
    let mut nbdsh = command(["nbdsh", "-u", &gateway.uri("disk"), "-c", script]);
    let mut client = Process::spawn("nbdsh", nbdsh.env("PATH", "/usr/bin:/bin"));
    gate.reached().await;
    gateway.process.signal(Signal::TERM);
    let told = |line: &str| {
        (line.contains("still answering commands in flight") && line.contains("connections=1")).then_some(())
    };
    gateway.process.wait_for("the log tells of the client", told).await;
    gate.open();
    assert!(client.exit().await.success(), "{}", client.output());
    assert!(gateway.process.exit().await.success(), "{}", gateway.process.output());
    proxy.stop().await;
}

/// Asserts that no record is read before the opening record of the new epoch. Later reads of old records only
/// serve their deletion.
fn assert_nothing_replayed(requests: &[Request]) {
    let opening = "/journal/0000000002/00000000000000000001";
    let opened: Vec<_> = requests.iter().enumerate().filter(|(_, request)| request.puts(opening)).collect();
    assert_eq!(opened.len(), 2, "both volumes are opened under their second epoch: {requests:#?}");
    for (index, opening) in opened {
        let journal =
            opening.key.split("/journal/").next().expect("a split has a first part").to_owned() + "/journal/";
        assert!(!requests[..index].iter().any(|request| request.gets(&journal)), "{requests:#?}");
    }
}
