//! What a checkpoint costs while it is made: requests for the journal, and the time of clients that read.

use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::store::Operation;
use cairn::store::fault::{Action, Rule};
use cairn::task::Tasks;
use cairn::volume::Volume;
use tokio::time::Instant;

use super::bench::{Bench, MIB, pattern, read};

const BLOCK: u64 = 4096;

/// Overwrites single blocks all over the disk, and makes them durable in records of `each` blocks.
async fn overwrite(volume: &Volume, offsets: impl Iterator<Item = u64>, each: usize) {
    for (n, at) in offsets.enumerate() {
        volume.write(at, pattern(at, 4096), Volatile).await.unwrap();
        if n % each == each - 1 {
            volume.flush().await.unwrap();
        }
    }
    volume.flush().await.unwrap();
}

/// A fold reads each record from begin to end, although it needs its changes one by one. So it fetches much at
/// a time.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_fetches_the_journal_in_few_requests() {
    let mut bench = Bench::new(128 * MIB).await;
    bench.options.journal_max_bytes = 1 << 30;
    bench.options.journal_max_age = Duration::from_secs(24 * 3600);
    let volume = bench.open().await;
    let count = 128 * MIB / BLOCK;
    // Records of 16 MiB. The cache holds less than half of all blocks.
    overwrite(&volume, (0..count).map(|n| n * 7919 % count * BLOCK), 4000).await;
    bench.memory.reset_tallies();
    volume.checkpoint().await.unwrap();
    let fetched = bench.gets("/journal/");
    assert!(fetched.bytes > 48 * MIB, "more than the cache holds has to be fetched: {fetched:?}");
    assert!(fetched.bytes < 160 * MIB, "nothing is fetched again and again: {fetched:?}");
    // A run has at most 64 KiB.
    assert!(fetched.bytes / fetched.requests > 128 << 10, "{fetched:?}");
    for at in (0..count).step_by(1021).map(|block| block * BLOCK) {
        assert_eq!(read(&volume, at, BLOCK).await, pattern(at, 4096), "block at {at}");
    }
    volume.close().await.unwrap();
}

/// Who needs the store during a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nobody,
    /// A client whose read does not end.
    Reader,
    /// The same, and two seconds later somebody who waits for the checkpoint.
    ReaderAndRequest,
}

/// Returns how long the checkpoint takes that the age of the journal causes. It makes 8 packs, each of which
/// takes 100 ms to send.
async fn time_of_checkpoint(beside: Beside) -> Duration {
    let age = Duration::from_secs(100);
    let mut bench = Bench::new(128 * MIB).await;
    bench.options.pack_bytes = MIB;
    bench.options.lease_ttl = Duration::from_secs(3600);
    let volume = bench.open().await;
    volume.write(127 * MIB, pattern(1, 4096), Volatile).await.unwrap();
    volume.close().await.unwrap();
    bench.options.journal_max_age = age;
    let volume = bench.open().await;
    overwrite(&volume, (0..8 * MIB / BLOCK).map(|n| n * 15 * BLOCK), usize::MAX).await;
    let written = Instant::now();
    let each = Duration::from_millis(100);
    bench.fault.add(Rule::new(Action::Delay(each, each)).on(Operation::Put).containing("/pack/"));
    let (roots, packs) =
        (bench.fault.hold(Operation::Put, "/root/"), bench.fault.hold(Operation::Get, "/pack/"));
    let tasks = Tasks::new();
    if beside != Beside::Nobody {
        let volume = Arc::clone(&volume);
        drop(tasks.spawn(async move {
            assert_eq!(read(&volume, 127 * MIB, BLOCK).await, pattern(1, 4096));
        }));
        packs.reached(1).await;
    }
    if beside == Beside::ReaderAndRequest {
        let volume = Arc::clone(&volume);
        drop(tasks.spawn(async move {
            tokio::time::sleep_until(written + age + Duration::from_secs(2)).await;
            volume.checkpoint().await.unwrap();
        }));
    }
    roots.reached(1).await;
    let took = written.elapsed() - age;
    roots.release();
    packs.release();
    tasks.join().await;
    volume.close().await.unwrap();
    took
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_lets_reads_go_first_but_nobody_wait_for_it() {
    let alone = time_of_checkpoint(Beside::Nobody).await;
    let patient = time_of_checkpoint(Beside::Reader).await;
    let asked_for = time_of_checkpoint(Beside::ReaderAndRequest).await;
    assert!(alone < Duration::from_secs(1), "{alone:?}");
    assert!((5 * alone..=9 * alone).contains(&patient), "{patient:?} instead of {alone:?}");
    assert!(asked_for < Duration::from_secs(2) + alone, "{asked_for:?} instead of {patient:?}");
}
