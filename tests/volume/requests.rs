//! What each command costs at the store.

use std::time::Duration;

use cairn::effect::Durability::{Durable, Volatile};
use cairn::effect::Zeroing;
use cairn::store::Operation;

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

#[tokio::test(start_paused = true)]
async fn a_cold_read_is_one_get() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    volume.write(8 * MIB, pattern(1, 4 << 20), Volatile).await.unwrap();
    volume.close().await.unwrap();
    let volume = bench.open().await;
    assert_eq!(
        read(&volume, 8 * MIB + 65_536 * 3, 4096).await,
        pattern(1, 4 << 20)[65_536 * 3..65_536 * 3 + 4096]
    );
    bench.memory.reset_tallies();
    assert_eq!(
        read(&volume, 8 * MIB + 65_536 * 9 + 512, 4096).await,
        pattern(1, 4 << 20)[65_536 * 9 + 512..65_536 * 9 + 512 + 4096]
    );
    let gets = bench.gets("");
    assert_eq!((gets.requests, gets.bytes), (1, 65_536 + 16), "one page and its tag");
    assert_eq!(read(&volume, 8 * MIB + 65_536 * 9 + 512, 4096).await.len(), 4096);
    assert_eq!(bench.gets("").requests, 1, "the second time from memory");
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

#[tokio::test(start_paused = true)]
async fn concurrent_misses_of_a_page_share_a_get() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    volume.write(0, pattern(1, 4 << 20), Volatile).await.unwrap();
    volume.close().await.unwrap();
    let volume = bench.open().await;
    bench.memory.reset_tallies();
    let gate = bench.fault.hold(Operation::Get, "/chunk/");
    let reads = futures::future::join_all((0..16).map(|n| read(&volume, n * 4096, 4096)));
    let (bytes, ()) = tokio::join!(reads, async {
        gate.reached(1).await;
        quiesce().await;
        gate.release();
    });
    assert_eq!(bytes.concat(), pattern(1, 4 << 20)[..65_536]);
    assert_eq!(bench.gets("/chunk/").requests, 1);
}
