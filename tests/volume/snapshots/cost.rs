//! What a snapshot costs: a few small objects, however large the disk is.

use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::store::Operation;
use cairn::volume::format::record::EMPTY_RECORD_BYTES;

use super::super::bench::{Bench, MIB, bytes_of, pattern, quiesce};
use super::disk;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// A disk of 1 TiB with a block in every so many bytes, all of them in a root.
async fn scattered(every: u64) -> (Bench, std::sync::Arc<cairn::volume::Volume>) {
    let mut bench = Bench::new(TIB).await;
    bench.options.commit_max_age = Duration::from_secs(3600);
    let volume = bench.open().await;
    for at in (0..TIB).step_by(usize::try_from(every).unwrap()) {
        volume.write(at, pattern(at / GIB, 4096), Volatile).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
    quiesce().await;
    bench.memory.reset_tallies();
    (bench, volume)
}

/// The objects that were put: records, roots with root tables, heads, map pages, packs, and all.
fn puts(bench: &Bench) -> [u64; 6] {
    ["/journal/", "/root/", "/head", "/map/", "/pack/", ""].map(|part| bench.puts(part).requests)
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_one_record_and_what_makes_a_root_however_large_the_disk_is() {
    for every in [TIB, 4 * GIB, 512 * MIB] {
        let (bench, volume) = scattered(every).await;
        volume.snapshot("idle").await.unwrap();
        assert_eq!(puts(&bench), [1, 2, 1, 0, 0, 4], "a block every {every} bytes");
        // The kind of the change, the length of the name, the name and the time.
        assert_eq!(bench.puts("/journal/").bytes, EMPTY_RECORD_BYTES + 1 + 1 + 4 + 8);
        assert!(bench.puts("").bytes < 2 * MIB, "{:?}", bench.puts(""));
        let others = [Operation::Get, Operation::List, Operation::Delete];
        assert_eq!(others.map(|other| bench.memory.tally(other, |_| true).requests), [0; 3]);

        // With one block that is not durable yet.
        quiesce().await;
        bench.memory.reset_tallies();
        volume.write(TIB / 2, pattern(7, 4096), Volatile).await.unwrap();
        volume.snapshot("busy").await.unwrap();
        assert_eq!(puts(&bench), [1, 2, 1, 1, 1, 6], "a block every {every} bytes");
        assert!(bench.puts("").bytes < 2 * MIB, "{:?}", bench.puts(""));

        let (idle, busy) = (disk(&bench, "idle").await, disk(&bench, "busy").await);
        for at in [0, every, TIB - every] {
            let expected = if at < TIB { pattern(at / GIB, 4096).to_vec() } else { Vec::new() };
            let length = expected.len() as u64;
            assert_eq!(bytes_of(&idle.read(at.min(TIB), length).await.unwrap()), expected);
        }
        let expected = if every == TIB { vec![0; 4096] } else { pattern(512, 4096).to_vec() };
        assert_eq!(bytes_of(&idle.read(TIB / 2, 4096).await.unwrap()), expected);
        assert_eq!(bytes_of(&busy.read(TIB / 2, 4096).await.unwrap()), pattern(7, 4096));

        quiesce().await;
        bench.memory.reset_tallies();
        volume.delete_snapshot("idle").await.unwrap();
        assert_eq!(puts(&bench), [0, 1, 1, 0, 0, 2], "a root table and the head");
        volume.close().await.unwrap();
    }
}
