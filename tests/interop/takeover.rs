//! Two gateways and one volume: the lease, the takeover, and what a killed gateway leaves behind.

use serde_json::Value;

use super::blocks::{Writer, assert_blocks};
use crate::support::cairn::{Setup, Store};
use crate::support::process::run;

/// While the first gateway is alive, the second is refused with an error that names the holder.
#[tokio::test]
#[ignore = "needs MinIO"]
async fn a_second_gateway_is_refused_while_the_lease_lives() {
    let store = Store::minio().await;
    let first = Setup::new(&store).create("disk", "1GiB").tcp().start().await;
    let info = run(&mut store.cairn(["volume", "info", "disk", "--store", &store.url(), "--json"])).await;
    let info: Value = serde_json::from_str(&info).expect("volume info --json prints JSON");
    let holder = info["holder"].as_str().expect("a leased volume has a holder");
    assert!(!holder.is_empty());

    let (status, said) = Setup::new(&store).create("disk", "1GiB").tcp().refused().await;
    assert!(!status.success(), "{said}");
    assert!(said.contains(holder), "the error does not name the holder {holder}: {said}");
    drop(first);
}

/// A takeover under load: the second gateway gets the volume. The first fails every command on that volume,
/// says why, and continues to serve its other volume. No flushed data is missing.
#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn a_takeover_fences_the_first_gateway_and_loses_no_flushed_write() {
    let store = Store::minio().await;
    let setup = Setup::new(&store).create("disk", "1GiB").create("other", "1GiB").tcp();
    let mut first = setup.start().await;
    let mut writer = Writer::start(&first.uri("disk"));
    writer.has_flushed(300).await;
    let second = Setup::new(&store).create("disk", "1GiB").tcp().takeover().start().await;
    let answers = writer.end().await;

    assert_eq!(
        answers.failures.len(),
        5,
        "the first failure and READ, WRITE, FLUSH, TRIM after it: {}",
        answers.said
    );
    for failure in &answers.failures {
        assert!(failure.ends_with(" ESHUTDOWN"), "{}", answers.said);
    }
    assert_blocks(&second.uri("disk"), answers.flushed.expect("some were flushed")).await;
    first.process.wait_for("it says why it stopped", says_why).await;

    let mut other = Writer::start(&first.uri("other"));
    other.has_flushed(100).await;
}

/// A gateway with nothing left to serve exits with an error, so that its supervisor notices.
#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn a_gateway_that_lost_its_only_volume_ends_and_says_why() {
    let store = Store::minio().await;
    let mut first = Setup::new(&store).create("disk", "1GiB").tcp().start().await;
    let mut writer = Writer::start(&first.uri("disk"));
    writer.has_flushed(100).await;
    let second = Setup::new(&store).create("disk", "1GiB").tcp().takeover().start().await;
    let answers = writer.end().await;
    assert!(answers.failures[0].ends_with(" ESHUTDOWN"), "{}", answers.said);
    assert!(!first.process.exit().await.success(), "{}", first.process.output());
    assert!(
        first.process.output().lines().any(|line| says_why(line).is_some()),
        "{}",
        first.process.output()
    );
    assert_blocks(&second.uri("disk"), answers.flushed.expect("some were flushed")).await;
}

/// A gateway to which nobody writes notices the takeover when it renews its lease, and names the holder that
/// `volume info` shows.
#[tokio::test]
#[ignore = "needs MinIO"]
async fn an_idle_gateway_learns_of_a_takeover_when_it_renews_its_lease() {
    let store = Store::minio().await;
    let setup = Setup::new(&store).create("disk", "1GiB").tcp();
    let mut first = setup.env("CAIRN_LEASE__TTL", "1s").start().await;
    let second = Setup::new(&store).create("disk", "1GiB").tcp().takeover().start().await;
    let info = run(&mut store.cairn(["volume", "info", "disk", "--store", &store.url(), "--json"])).await;
    let info: Value = serde_json::from_str(&info).expect("volume info --json prints JSON");
    let holder = info["holder"].as_str().expect("a leased volume has a holder");
    let why = format!("the volume was taken over by epoch 2 of {holder}");
    assert!(!first.process.exit().await.success(), "{}", first.process.output());
    assert!(first.process.output().contains(&why), "not said: {why}\n{}", first.process.output());
    drop(second);
}

/// Returns whether a line says why the gateway stopped: its commit found a record of the new epoch, or its
/// update of the head found the new head. Either may happen first; both messages name the epoch.
fn says_why(line: &str) -> Option<()> {
    let by_commit =
        line.contains("another gateway took the volume over: ") && line.contains(" of epoch 2 stands at ");
    let by_head = line.contains("the volume was taken over by epoch 2 of ");
    (by_commit || by_head).then_some(())
}

async fn killed_gateways_lose_nothing(store: Store) {
    let mut gateway = Setup::new(&store).create("disk", "1GiB").tcp().start().await;
    for flushed in [16, 200, 700] {
        let mut writer = Writer::start(&gateway.uri("disk"));
        writer.has_flushed(flushed).await;
        gateway.process.kill().await;
        let answers = writer.end().await;
        gateway = Setup::new(&store).create("disk", "1GiB").tcp().takeover().start().await;
        assert_blocks(&gateway.uri("disk"), answers.flushed.expect("some were flushed")).await;
    }
}

/// SIGKILL under load, several times on one volume. Each successor has everything that was flushed, and no
/// half-written block.
#[tokio::test]
#[ignore = "needs libnbd"]
async fn a_killed_gateway_loses_no_flushed_write_on_a_directory() {
    killed_gateways_lose_nothing(Store::directory()).await;
}

/// The same test with a bucket.
#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn a_killed_gateway_loses_no_flushed_write_on_minio() {
    killed_gateways_lose_nothing(Store::minio().await).await;
}
