//! How many requests a volume makes: the numbers that docs/cost.md multiplies by prices.

use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::{Durable, Volatile};
use cairn::store::Operation;
use cairn::store::memory::Tally;
use cairn::volume::Volume;
use cairn::volume::format::frame::FRAME_BYTES;
use cairn::volume::format::{chunk, pack};

use super::bench::{Bench, MIB, pattern, quiesce, read};

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
    assert_eq!((bench.puts("/journal/").requests, lists), (3600, 0));
    // A checkpoint every five minutes: a pack, a map page with its overlay, a root, a root table and the
    // head.
    let folds = bench.puts("/pack/").requests;
    assert!((11..=12).contains(&folds), "{folds} checkpoints in an hour");
    let made = ["/map/", "/root/", "/chunk/", "/overlay/"].map(|part| bench.puts(part).requests);
    assert_eq!(made, [folds, 2 * folds, 0, 0]);
    assert_eq!(bench.puts("/pack/").bytes, folds * pack::object_bytes(4), "four blocks each");
    let heads = bench.puts("/head").requests;
    assert_eq!(puts, 3600 + 4 * folds + heads);
    assert!(heads <= 360 + 12, "{heads} updates of the head");
    drop(volume);
}

/// A volume of 64 MiB whose 16 chunks are all stored, opened by a gateway with an empty cache.
async fn full(bench: &mut Bench) -> Arc<Volume> {
    bench.options.commit_max_age = HOUR * 10;
    let volume = bench.open().await;
    for n in 0..64_u64 {
        volume.write(n * MIB, pattern(n, 1 << 20), Volatile).await.unwrap();
    }
    volume.close().await.unwrap();
    let volume = bench.open().await;
    bench.memory.reset_tallies();
    volume
}

/// The PUTs of packs and of chunks, and the GETs of both.
fn data_requests(bench: &Bench) -> [Tally; 4] {
    [bench.puts("/pack/"), bench.puts("/chunk/"), bench.gets("/pack/"), bench.gets("/chunk/")]
}

fn tally(requests: u64, bytes: u64) -> Tally {
    Tally { requests, bytes }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_puts_changed_blocks_into_one_pack_and_reads_no_data() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = full(&mut bench).await;
    for chunk in 0..16_u64 {
        volume.write(chunk * 4 * MIB + MIB / 2, pattern(chunk, 4096), Volatile).await.unwrap();
    }
    volume.flush().await.unwrap();
    volume.checkpoint().await.unwrap();
    let none = tally(0, 0);
    assert_eq!(data_requests(&bench), [tally(1, pack::object_bytes(16)), none, none, none]);
    let index = ["/map/", "/overlay/", "/root/"].map(|part| bench.puts(part).requests);
    assert_eq!(index, [1, 0, 2], "the overlay is part of the map page");
    // A part of a block takes a read of the block, wherever it is.
    bench.memory.reset_tallies();
    volume.write(MIB + 512, pattern(1, 512), Durable).await.unwrap();
    volume.checkpoint().await.unwrap();
    let block = tally(1, FRAME_BYTES);
    assert_eq!(data_requests(&bench), [tally(1, pack::object_bytes(1)), none, none, block]);
    volume.close().await.unwrap();
    let volume = bench.open().await;
    bench.memory.reset_tallies();
    volume.write(MIB / 2 + 512, pattern(1, 512), Durable).await.unwrap();
    volume.checkpoint().await.unwrap();
    assert_eq!(data_requests(&bench), [tally(1, pack::object_bytes(1)), none, block, none]);
}

#[tokio::test(start_paused = true)]
async fn a_chunk_half_of_which_changed_is_rewritten_and_read_in_four_parts() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = full(&mut bench).await;
    // Every other block.
    for n in 0..512_u64 {
        volume.write(4 * MIB + n * 8192, pattern(n, 4096), Volatile).await.unwrap();
    }
    volume.flush().await.unwrap();
    volume.checkpoint().await.unwrap();
    let (chunk, none) = (chunk::object_bytes(64, 64), tally(0, 0));
    // GETs of at most a MiB, not counting tags. Each ends before the changed block that is the last of its MiB.
    assert_eq!(data_requests(&bench), [none, tally(1, chunk), none, tally(4, (1024 - 4) * FRAME_BYTES)]);
}

/// The second quarter makes it half: the first one is read from its pack, the rest from the chunk object.
#[tokio::test(start_paused = true)]
async fn a_chunk_half_of_which_lies_in_packs_is_rewritten_and_each_block_is_read_once() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = full(&mut bench).await;
    volume.write(4 * MIB, pattern(100, 1 << 20), Durable).await.unwrap();
    volume.checkpoint().await.unwrap();
    let none = tally(0, 0);
    assert_eq!(data_requests(&bench), [tally(1, pack::object_bytes(256)), none, none, none]);
    volume.close().await.unwrap();
    let volume = bench.open().await;
    bench.memory.reset_tallies();
    volume.write(6 * MIB, pattern(102, 1 << 20), Durable).await.unwrap();
    volume.checkpoint().await.unwrap();
    let quarter = 256 * FRAME_BYTES;
    let chunk = chunk::object_bytes(64, 64);
    assert_eq!(data_requests(&bench), [none, tally(1, chunk), tally(1, quarter), tally(2, 2 * quarter)]);
    volume.close().await.unwrap();
    let volume = bench.open().await;
    for (n, seed) in [100, 5, 102, 7].into_iter().enumerate() {
        assert!(read(&volume, 4 * MIB + n as u64 * MIB, MIB).await == pattern(seed, 1 << 20), "{n}");
    }
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
