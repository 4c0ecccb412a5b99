//! FLUSH and FUA are real.

use std::time::Duration;

use cairn::effect::Durability::{Durable, Volatile};
use cairn::effect::Zeroing;
use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Rule};
use cairn::volume::Error;

use super::bench::{Bench, MIB, pattern, quiesce, read};

#[tokio::test(start_paused = true)]
async fn what_a_flush_answered_survives_the_loss_of_the_gateway() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    volume.write(4096, pattern(1, 8192), Volatile).await.unwrap();
    volume.write(5 * MIB + 512, pattern(2, 512), Volatile).await.unwrap();
    volume.write(3 * MIB + 7, pattern(3, 5), Volatile).await.unwrap();
    volume.flush().await.unwrap();
    volume.abandon().await;
    let volume = bench.open().await;
    assert_eq!(read(&volume, 4096, 8192).await, pattern(1, 8192));
    assert_eq!(read(&volume, 5 * MIB + 512, 512).await, pattern(2, 512));
    let mut around = vec![0; 512];
    around[7..12].copy_from_slice(&pattern(3, 5));
    assert_eq!(read(&volume, 3 * MIB, 512).await, around);
    assert_eq!(read(&volume, 0, 4096).await, vec![0; 4096]);
}

#[tokio::test(start_paused = true)]
async fn what_fua_answered_survives_the_loss_of_the_gateway() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    volume.write(0, pattern(1, 4096), Durable).await.unwrap();
    volume.write(4096, pattern(2, 4096), Durable).await.unwrap();
    volume.zero(0, 1024, Zeroing::Deallocate, Durable).await.unwrap();
    volume.abandon().await;
    let volume = bench.open().await;
    let mut expected = vec![0; 1024];
    expected.extend_from_slice(&pattern(1, 4096)[1024..]);
    expected.extend_from_slice(&pattern(2, 4096));
    assert_eq!(read(&volume, 0, 8192).await, expected);
}

#[tokio::test(start_paused = true)]
async fn no_flush_is_answered_while_the_record_is_on_its_way() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    let gate = bench.fault.hold(Operation::Put, "/journal/");
    volume.write(0, pattern(1, 4096), Volatile).await.unwrap();
    let mut first = tokio_test_spawn(volume.clone());
    gate.reached(1).await;
    let mut second = tokio_test_spawn(volume.clone());
    quiesce().await;
    assert!(!first.is_finished() && !second.is_finished(), "a flush with nothing new waits for what is out");
    gate.release();
    (&mut first).await.unwrap().unwrap();
    (&mut second).await.unwrap().unwrap();
    assert_eq!(gate.count(), 1, "both were answered by one record");
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_failed_leaves_its_data_dirty_until_all_of_it_is_durable() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.store_deadline = Some(Duration::from_secs(20));
    let volume = bench.open().await;
    let rule = bench
        .fault
        .add(Rule::new(Action::FailBefore(Failure::Transient)).on(Operation::Put).containing("/journal/"));
    volume.write(0, pattern(1, 4096), Volatile).await.unwrap();
    let first = tokio_test_spawn(volume.clone());
    let second = tokio_test_spawn(volume.clone());
    for flush in [first, second] {
        let error = flush.await.unwrap().expect_err("nothing is durable");
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
    }
    assert!(bench.keys("/journal/").iter().all(|key| !key.ends_with("0002")), "no record stands");
    assert_eq!(read(&volume, 0, 4096).await, pattern(1, 4096), "the data is kept");
    volume.write(8192, pattern(2, 4096), Volatile).await.unwrap();
    bench.fault.remove(rule);
    volume.flush().await.unwrap();
    volume.abandon().await;
    let volume = bench.open().await;
    assert_eq!(read(&volume, 0, 4096).await, pattern(1, 4096));
    assert_eq!(read(&volume, 8192, 4096).await, pattern(2, 4096));
}

#[tokio::test(start_paused = true)]
async fn commits_are_answered_in_order() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    let gate = bench.fault.hold(Operation::Put, "00000000000000000002");
    volume.write(0, pattern(1, 4096), Volatile).await.unwrap();
    let first = tokio_test_spawn(volume.clone());
    gate.reached(1).await;
    volume.write(4096, pattern(2, 4096), Volatile).await.unwrap();
    let second = tokio_test_spawn(volume.clone());
    quiesce().await;
    assert!(bench.keys("00000000000000000003").len() == 1, "the second record is durable");
    assert!(!second.is_finished(), "but not answered before the first");
    gate.release();
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_ones_own_success() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    bench.fault.add(
        Rule::new(Action::FailAfter(Failure::Timeout)).on(Operation::Put).containing("/journal/").times(1),
    );
    volume.write(0, pattern(1, 4096), Durable).await.unwrap();
    volume.write(4096, pattern(2, 4096), Durable).await.unwrap();
    volume.abandon().await;
    let volume = bench.open().await;
    assert_eq!(read(&volume, 0, 4096).await, pattern(1, 4096));
    assert_eq!(read(&volume, 4096, 4096).await, pattern(2, 4096));
}

#[tokio::test(start_paused = true)]
async fn dirty_data_is_committed_when_it_is_old() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    volume.write(0, pattern(1, 4096), Volatile).await.unwrap();
    tokio::time::sleep(bench.options.commit_max_age + Duration::from_secs(1)).await;
    volume.abandon().await;
    let volume = bench.open().await;
    assert_eq!(read(&volume, 0, 4096).await, pattern(1, 4096));
}

#[expect(clippy::disallowed_methods, reason = "a test's own client, joined by the test")]
fn tokio_test_spawn(
    volume: std::sync::Arc<cairn::volume::Volume>,
) -> tokio::task::JoinHandle<Result<(), Error>> {
    tokio::spawn(async move { volume.flush().await })
}
