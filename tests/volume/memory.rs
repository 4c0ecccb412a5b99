//! What stays in memory: what was written last, through its checkpoint, and nothing that was overwritten.

use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::volume::Volume;

use super::bench::{Bench, MIB, pattern, read};

const BLOCK: u64 = 4096;

/// A bench whose gateways fold only when they are asked to. Its caches have 64 MiB.
async fn bench() -> Bench {
    let mut bench = Bench::new(512 * MIB).await;
    bench.options.journal_max_bytes = 1 << 30;
    bench.options.journal_max_age = Duration::from_secs(24 * 3600);
    bench
}

/// Fills the first `bytes` bytes of the disk.
async fn fill(volume: &Volume, bytes: u64) {
    for at in (0..bytes).step_by(1 << 20) {
        volume.write(at, pattern(at, 1 << 20), Volatile).await.unwrap();
    }
    volume.flush().await.unwrap();
}

/// Some blocks, in an order in which neighbours are far apart. `count` must be a power of two.
fn scattered(count: u64, step: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |n| n * 7919 % count * step * BLOCK)
}

async fn overwrite(volume: &Volume, offsets: impl Iterator<Item = u64>, seed: u64) {
    for (n, at) in offsets.enumerate() {
        volume.write(at, pattern(seed + at, 4096), Volatile).await.unwrap();
        if n % 512 == 511 {
            volume.flush().await.unwrap();
        }
    }
    volume.flush().await.unwrap();
}

/// Reads blocks that were overwritten, and checks that no read needs the store.
async fn read_from_memory(bench: &Bench, volume: &Volume, offsets: impl Iterator<Item = u64>, seed: u64) {
    bench.memory.reset_tallies();
    for at in offsets {
        assert_eq!(read(volume, at, BLOCK).await, pattern(seed + at, 4096), "block at {at}");
    }
    assert_eq!(bench.gets("").requests, 0, "a block was not in memory");
}

#[tokio::test(start_paused = true)]
async fn blocks_stay_in_memory_when_a_checkpoint_rewrites_their_chunks() {
    let mut bench = bench().await;
    let volume = bench.open().await;
    fill(&volume, 32 * MIB).await;
    let blocks = || scattered(32 * MIB / BLOCK, 1);
    overwrite(&volume, blocks(), 1).await;
    read_from_memory(&bench, &volume, blocks(), 1).await;
    let before = bench.keys("/chunk/").len();
    volume.checkpoint().await.unwrap();
    assert_eq!(bench.gets("/journal/").bytes, 0, "the checkpoint took all of it from memory");
    assert!(bench.keys("/chunk/").len() > before, "chunks were rewritten");
    read_from_memory(&bench, &volume, blocks(), 1).await;
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn blocks_stay_in_memory_when_a_checkpoint_packs_them() {
    let mut bench = bench().await;
    let volume = bench.open().await;
    fill(&volume, 64 * MIB).await;
    // A block is packed only if a checkpoint has its chunk already.
    volume.close().await.unwrap();
    let volume = bench.open().await;
    let blocks = || scattered(64 * MIB / BLOCK / 4, 4);
    overwrite(&volume, blocks(), 1).await;
    read_from_memory(&bench, &volume, blocks(), 1).await;
    volume.checkpoint().await.unwrap();
    assert_eq!(bench.gets("/journal/").bytes, 0, "the checkpoint took all of it from memory");
    assert!(!bench.keys("/pack/").is_empty(), "blocks were packed");
    read_from_memory(&bench, &volume, blocks(), 1).await;
    volume.close().await.unwrap();
}

/// The cache holds the disk, but not the disk and what was overwritten of it.
async fn blocks_give_way_if(is_folded: bool) {
    let mut bench = bench().await;
    let volume = bench.open().await;
    let size = 40 * MIB;
    fill(&volume, size).await;
    if is_folded {
        volume.checkpoint().await.unwrap();
    }
    let is_changed = |at: &u64| at / BLOCK % 8 != 3;
    let changed = || scattered(64 * MIB / BLOCK, 1).filter(|at| *at < size && is_changed(at));
    let unchanged = || (0..size).step_by(4096).filter(|at| !is_changed(at));
    let read_all = async |bench: &Bench, volume: &Volume| {
        read_from_memory(bench, volume, changed(), 5).await;
        bench.memory.reset_tallies();
        for at in unchanged() {
            let start = usize::try_from(at % MIB).unwrap();
            assert_eq!(read(volume, at, BLOCK).await, pattern(at / MIB * MIB, 1 << 20)[start..start + 4096]);
        }
        assert_eq!(bench.gets("").requests, 0, "a block that was not overwritten was not in memory");
    };
    overwrite(&volume, changed(), 5).await;
    read_all(&bench, &volume).await;
    bench.memory.reset_tallies();
    volume.checkpoint().await.unwrap();
    assert_eq!(bench.gets("/journal/").bytes + bench.gets("/chunk/").bytes, 0, "all of it was in memory");
    read_all(&bench, &volume).await;
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn blocks_that_were_overwritten_give_way_to_those_that_were_not() {
    blocks_give_way_if(true).await;
}

#[tokio::test(start_paused = true)]
async fn blocks_of_large_writes_that_were_overwritten_give_way_before_the_first_checkpoint() {
    blocks_give_way_if(false).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_overwritten_again_and_again_takes_memory_once() {
    let mut bench = bench().await;
    let volume = bench.open().await;
    let others = || scattered(16 * MIB / BLOCK, 2);
    overwrite(&volume, others(), 7).await;
    let hot = || scattered(16 * MIB / BLOCK, 2).map(|at| 256 * MIB + at);
    for round in 0..10 {
        overwrite(&volume, hot(), round).await;
    }
    read_from_memory(&bench, &volume, others(), 7).await;
    read_from_memory(&bench, &volume, hot(), 9).await;
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn reading_a_disk_from_begin_to_end_displaces_little_of_what_is_in_use() {
    let mut bench = bench().await;
    let volume = bench.open().await;
    fill(&volume, 384 * MIB).await;
    let used = || scattered(16 * MIB / BLOCK, 2).map(|at| 448 * MIB + at);
    overwrite(&volume, used(), 3).await;
    volume.close().await.unwrap();
    let volume: Arc<Volume> = bench.open().await;
    for at in used() {
        read(&volume, at, BLOCK).await;
    }
    for at in (0..384 * MIB).step_by(1 << 20) {
        assert_eq!(read(&volume, at, MIB).await, pattern(at, 1 << 20));
        // Time passes once nothing else runs: the next part is being read ahead while the client is busy.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.memory.reset_tallies();
    for at in used() {
        assert_eq!(read(&volume, at, BLOCK).await, pattern(3 + at, 4096));
    }
    let missed = bench.gets("").requests;
    assert!(missed < 16 * MIB / BLOCK / 10, "{missed} blocks had to be fetched again");
    volume.close().await.unwrap();
}
