//! What each command costs at the store.

use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::{Durable, Volatile};
use cairn::effect::Zeroing;
use cairn::store::Operation;
use cairn::volume::Volume;
use cairn::volume::format::frame::FRAME_BYTES;

use super::bench::{Bench, MIB, pattern, quiesce, read};

#[tokio::test(start_paused = true)]
async fn a_thousand_scattered_writes_and_a_flush_are_one_put() {
    let mut bench = Bench::new(10 << 30).await;
    bench.options.commit_max_age = Duration::from_secs(3600);
    let volume = bench.open().await;
    bench.memory.reset_tallies();
    for n in 0..1000_u64 {
        volume.write(n * 7919 % 2_621_440 * 4096, pattern(n, 4096), Volatile).await.unwrap();
    }
    assert_eq!(bench.memory.tally(Operation::Get, |_| true).requests, 0, "no write needs a fetch");
    volume.flush().await.unwrap();
    let all = bench.puts("");
    assert_eq!((all.requests, bench.puts("/journal/").requests, bench.puts("/chunk/").requests), (1, 1, 0));
    assert!(all.bytes <= 1000 * 4096 * 11 / 10, "{} bytes for 1,000 blocks", all.bytes);
    for n in 0..1000_u64 {
        assert_eq!(read(&volume, n * 7919 % 2_621_440 * 4096, 4096).await, pattern(n, 4096));
    }
}

#[tokio::test(start_paused = true)]
async fn bulk_data_is_sent_once() {
    let mut bench = Bench::new(256 * MIB).await;
    let volume = bench.open().await;
    bench.memory.reset_tallies();
    for n in 0..64 * 16_u64 {
        volume.write(n * MIB / 4, pattern(n, usize::try_from(MIB / 4).unwrap()), Volatile).await.unwrap();
        if n % 64 == 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    volume.flush().await.unwrap();
    volume.checkpoint().await.unwrap();
    let put = bench.puts("").bytes;
    assert!(put <= 256 * MIB * 105 / 100, "{put} bytes for 256 MiB");
    volume.abandon().await;
    let volume = bench.open().await;
    for n in 0..64 * 16_u64 {
        let bytes = read(&volume, n * MIB / 4, MIB / 4).await;
        assert_eq!(bytes, pattern(n, usize::try_from(MIB / 4).unwrap()));
    }
}

/// A chunk at 8 MiB, and 64 blocks at 16 MiB that lie in a pack, opened by a gateway with an empty cache.
async fn in_both(bench: &mut Bench) -> Arc<Volume> {
    let volume = bench.open().await;
    volume.write(8 * MIB, pattern(1, 4 << 20), Volatile).await.unwrap();
    volume.write(16 * MIB, pattern(1, 4 << 16), Volatile).await.unwrap();
    volume.close().await.unwrap();
    assert_eq!((bench.keys("/chunk/").len(), bench.keys("/pack/").len()), (1, 1));
    bench.open().await
}

#[tokio::test(start_paused = true)]
async fn a_cold_read_is_one_get_of_the_blocks_that_it_needs() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = in_both(&mut bench).await;
    let expected = pattern(1, 4 << 20);
    // The map page is read first.
    read(&volume, 12 * MIB - 4096, 4096).await;
    for at in [8 * MIB, 16 * MIB] {
        // A block, two that a read overlaps in part, and 17 blocks that lie in two pages.
        for (offset, length, blocks) in [(36_864, 4096, 1), (102_912, 4096, 2), (135_168, 69_632, 17)] {
            bench.memory.reset_tallies();
            let bytes = read(&volume, at + offset, length).await;
            let place = usize::try_from(offset).unwrap();
            assert!(bytes == expected[place..place + bytes.len()], "at {at} + {offset}");
            let gets = bench.gets("");
            assert_eq!((gets.requests, gets.bytes), (1, blocks * FRAME_BYTES), "at {at} + {offset}");
            assert_eq!(read(&volume, at + offset, length).await.len() as u64, length);
            assert_eq!(bench.gets("").requests, 1, "the second time from memory");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fresh_volume_of_10_tib_is_a_handful_of_objects() {
    let mut bench = Bench::new(10 << 40).await;
    let volume = bench.open().await;
    assert_eq!(read(&volume, (10 << 40) - 4096, 4096).await, vec![0; 4096]);
    volume.zero(0, 10 << 40, Zeroing::Deallocate, Durable).await.unwrap();
    volume.close().await.unwrap();
    assert!(bench.memory.objects().len() < 16, "{:?}", bench.memory.objects().keys());
}

/// A read of more than that fetches only what is not on its way.
#[tokio::test(start_paused = true)]
async fn concurrent_misses_of_a_block_share_a_get() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = in_both(&mut bench).await;
    for (at, part) in [(8 * MIB, "/chunk/"), (16 * MIB, "/pack/")] {
        bench.memory.reset_tallies();
        let gate = bench.fault.hold(Operation::Get, part);
        let reads = futures::future::join_all((0..16).map(|n| read(&volume, at + n % 4 * 512, 512)));
        let page = read(&volume, at, 65_536);
        let (bytes, page, ()) = tokio::join!(reads, page, async {
            gate.reached(2).await;
            quiesce().await;
            gate.release();
        });
        assert_eq!(bytes.concat(), pattern(1, 2048).repeat(4));
        assert_eq!(page, pattern(1, 65_536));
        let gets = bench.gets(part);
        assert_eq!((gets.requests, gets.bytes), (2, 16 * FRAME_BYTES), "the block, and the other 15");
    }
}
