//! How many requests a volume makes: the numbers that docs/cost.md multiplies by prices.

use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::store::Operation;

use super::bench::{Bench, MIB, pattern, quiesce};

const HOUR: Duration = Duration::from_secs(3600);

/// The numbers of PUT, GET and LIST requests since the tallies were reset.
fn requests(bench: &Bench) -> [u64; 3] {
    [Operation::Put, Operation::Get, Operation::List]
        .map(|operation| bench.memory.tally(operation, |_| true).requests)
}

#[tokio::test(start_paused = true)]
async fn an_open_volume_that_nobody_uses_costs_six_puts_a_minute() {
    let mut bench = Bench::new(10 << 30).await;
    let volume = bench.open().await;
    quiesce().await;
    bench.memory.reset_tallies();
    tokio::time::sleep(HOUR).await;
    quiesce().await;
    let [puts, gets, lists] = requests(&bench);
    assert!((359..=360).contains(&puts), "{puts} PUTs in an hour: one for each third of a lease of 30 s");
    assert_eq!((gets, lists), (0, 0));
    assert_eq!(bench.puts("/head").requests, puts, "the lease is all that is renewed");
    drop(volume);
}

#[tokio::test(start_paused = true)]
async fn a_block_written_and_flushed_each_second_costs_a_put_each_second() {
    let mut bench = Bench::new(256 * MIB).await;
    let volume = bench.open().await;
    quiesce().await;
    bench.memory.reset_tallies();
    for n in 0..3600_u64 {
        volume.write(n % 4 * 4096, pattern(n, 4096), Volatile).await.unwrap();
        volume.flush().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    quiesce().await;
    let [puts, _, lists] = requests(&bench);
    let folds = bench.puts("/chunk/").requests;
    assert_eq!((bench.puts("/journal/").requests, lists), (3600, 0));
    // A checkpoint every five minutes writes the chunk, a map page, a root, a root table and the head.
    assert!((11..=12).contains(&folds), "{folds} checkpoints in an hour");
    assert!(puts <= 3600 + 360 + 12 * 5, "{puts} PUTs");
    drop(volume);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_rewrites_each_chunk_that_changed_and_reads_it_in_five_parts() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.commit_max_age = HOUR * 10;
    let volume = bench.open().await;
    for n in 0..64_u64 {
        volume.write(n * MIB, pattern(n, 1 << 20), Volatile).await.unwrap();
    }
    volume.flush().await.unwrap();
    volume.checkpoint().await.unwrap();
    volume.close().await.unwrap();
    // A new gateway, whose cache is empty.
    let volume = bench.open().await;
    bench.memory.reset_tallies();
    for chunk in 0..16_u64 {
        volume.write(chunk * 4 * MIB + MIB / 2, pattern(chunk, 4096), Volatile).await.unwrap();
    }
    volume.flush().await.unwrap();
    volume.checkpoint().await.unwrap();
    let (puts, gets) = (bench.puts("/chunk/"), bench.gets("/chunk/"));
    assert_eq!((puts.requests, puts.bytes / MIB), (16, 64), "16 blocks of 4 KiB, 16 chunks of 4 MiB");
    assert_eq!(gets.requests, 80, "5 GETs of at most a MiB for a full chunk");
    drop(volume);
}

#[tokio::test(start_paused = true)]
async fn bulk_data_costs_a_put_for_each_chunk() {
    let mut bench = Bench::new(256 * MIB).await;
    let volume = bench.open().await;
    quiesce().await;
    bench.memory.reset_tallies();
    for n in 0..1024_u64 {
        volume.write(n * MIB / 4, pattern(n, 1 << 18), Volatile).await.unwrap();
    }
    volume.flush().await.unwrap();
    volume.checkpoint().await.unwrap();
    let (chunks, all) = (bench.puts("/chunk/").requests, bench.puts("").requests);
    assert_eq!(chunks, 64, "256 MiB in chunks of 4 MiB");
    assert!(all <= 64 + 16, "{all} PUTs");
    drop(volume);
}

#[tokio::test(start_paused = true)]
async fn to_open_and_close_a_volume_costs_some_fifteen_requests() {
    let mut bench = Bench::new(10 << 30).await;
    bench.open().await.close().await.unwrap();
    bench.memory.reset_tallies();
    let volume = bench.open().await;
    quiesce().await;
    volume.close().await.unwrap();
    let [puts, gets, lists] = requests(&bench);
    assert!(puts + gets + lists <= 20, "{puts} PUTs, {gets} GETs, {lists} LISTs");
}
