//! Commands on a huge disk cost as much as on a small one.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::{Durable, Volatile};
use cairn::effect::Zeroing;
use cairn::metrics::Metrics;
use cairn::store::fault::{Action, Rule};
use cairn::store::{Classes, Operation};
use cairn::task::Tasks;
use cairn::volume::format::frame::FRAME_BYTES;
use cairn::volume::{Environment, Extent, Volume, catalog};
use tokio::time::Instant;

use super::bench::{Bench, MIB, pattern, quiesce, read};

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const PIB: u64 = 1 << 50;

const HOLE: (bool, bool) = (true, true);
const ZEROS: (bool, bool) = (false, true);
const DATA: (bool, bool) = (false, false);

/// The extents of the whole disk, from as many calls as needed: the end of each, whether it is a hole, and
/// whether it reads as zeros.
async fn allocation(volume: &Volume) -> Vec<(u64, (bool, bool))> {
    let mut extents: Vec<(u64, (bool, bool))> = Vec::new();
    let mut at = 0;
    while at < volume.size_bytes() {
        for Extent { length, hole, zero } in
            volume.allocation(at, volume.size_bytes() - at, 4096).await.unwrap()
        {
            at += length;
            match extents.last_mut() {
                Some((end, kind)) if *kind == (hole, zero) => *end = at,
                _ => extents.push((at, (hole, zero))),
            }
        }
    }
    extents
}

async fn zero(volume: &Volume, range: Range<u64>, zeroing: Zeroing) {
    volume.zero(range.start, range.end - range.start, zeroing, Volatile).await.unwrap();
}

/// Zeroing a range that stays allocated changes only the root, however many map pages the range covers. So
/// does a TRIM of it.
#[tokio::test(start_paused = true)]
async fn zeroing_a_pebibyte_writes_no_map_page() {
    let mut bench = Bench::new(PIB).await;
    let volume = bench.open().await;
    volume.write(5 * TIB, pattern(1, 4 << 20), Volatile).await.unwrap();
    volume.checkpoint().await.unwrap();
    bench.memory.reset_tallies();
    zero(&volume, 0..PIB, Zeroing::Allocate).await;
    volume.checkpoint().await.unwrap();
    assert_eq!(allocation(&volume).await, [(PIB, ZEROS)]);
    assert_eq!((bench.puts("/map/").requests, bench.puts("/chunk/").requests), (0, 0));
    assert!(bench.puts("").requests <= 8 && bench.puts("").bytes < MIB / 64, "{:?}", bench.puts(""));
    volume.write(3 * TIB + 4096, pattern(2, 4096), Volatile).await.unwrap();
    zero(&volume, TIB..2 * TIB + 512, Zeroing::Deallocate).await;
    // A block that is only partly a hole is not a hole.
    let (data, end) = (3 * TIB + 4096, 3 * TIB + 8192);
    let expected = [(TIB, ZEROS), (2 * TIB, HOLE), (data, ZEROS), (end, DATA), (PIB, ZEROS)];
    for _ in 0..2 {
        volume.checkpoint().await.unwrap();
        assert_eq!(allocation(&volume).await, expected);
    }
    assert_eq!(bench.puts("/map/").requests, 1, "zeros over zeros need no map page");
    volume.close().await.unwrap();
    let volume = bench.open().await;
    assert_eq!(
        read(&volume, 3 * TIB, 16_384).await,
        [&[0; 4096][..], &pattern(2, 4096), &[0; 8192]].concat()
    );
    assert_eq!(read(&volume, 5 * TIB, 4096).await, [0; 4096]);
    // Wait for the sweep that starts with the opening: it reads the first root's map, because a folded record
    // references a chunk.
    quiesce().await;
    bench.memory.reset_tallies();
    zero(&volume, 0..PIB, Zeroing::Deallocate).await;
    volume.checkpoint().await.unwrap();
    // The one map page is in memory. It is needed, because a pack is released with it.
    assert_eq!(bench.gets("/map/").requests, 0, "what is replaced whole is not read");
    assert_eq!(allocation(&volume).await, [(PIB, HOLE)]);
    volume.close().await.unwrap();
}

/// The largest possible disk.
#[tokio::test(start_paused = true)]
async fn eight_pebibytes_are_zeroed_and_trimmed_in_turn() {
    let mut bench = Bench::with_chunks(8 * PIB, 32 * MIB).await;
    let volume = bench.open().await;
    bench.memory.reset_tallies();
    for round in 0..4_u64 {
        let middle = (1 + round) * PIB + round * 4096;
        let (before, after) = match round % 2 {
            0 => (Zeroing::Allocate, Zeroing::Deallocate),
            _ => (Zeroing::Deallocate, Zeroing::Allocate),
        };
        zero(&volume, 0..8 * PIB, before).await;
        zero(&volume, middle..8 * PIB, after).await;
        volume.checkpoint().await.unwrap();
        volume.prefetch(0, 8 * PIB).await.unwrap();
        let picture = volume.picture(1024).await.unwrap();
        assert!(picture.cells.iter().all(|cell| cell.stored_bytes == 0), "zeros are stored nowhere");
        let kinds: Vec<_> = allocation(&volume).await.into_iter().map(|(_, kind)| kind).collect();
        assert_eq!(kinds, if round % 2 == 0 { [ZEROS, HOLE] } else { [HOLE, ZEROS] });
    }
    assert!(bench.puts("").requests < 50, "{:?}", bench.puts(""));
    assert!(bench.gets("").requests < 50, "{:?}", bench.gets(""));
    volume.close().await.unwrap();
}

/// Map pages of 256 MiB each that are objects, with the given number of bytes of data at the start of each.
async fn scattered(bench: &mut Bench, pages: u64, length: usize) -> Arc<Volume> {
    let volume = bench.open().await;
    for n in 0..pages {
        volume.write(n * 256 * MIB, pattern(n, length), Volatile).await.unwrap();
    }
    volume.close().await.unwrap();
    let volume = bench.open().await;
    // The scan for leftovers reads the map pages of chunks that folded records reference.
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.memory.reset_tallies();
    volume
}

#[tokio::test(start_paused = true)]
async fn one_block_status_loads_a_bounded_number_of_map_pages() {
    let mut bench = Bench::with_chunks(40 * GIB, MIB / 16).await;
    let volume = scattered(&mut bench, 160, 4096).await;
    volume.allocation(0, 40 * GIB, 1).await.unwrap();
    assert_eq!(bench.gets("/map/").requests, 1, "one extent needs one map page");
    let extents = volume.allocation(0, 40 * GIB, usize::MAX).await.unwrap();
    let loaded = bench.gets("/map/").requests;
    assert!((1..=64).contains(&loaded), "{loaded} map pages");
    assert!(extents.len() > 64, "{} extents", extents.len());
    let parts = |n: u64| {
        let start = n * 256 * MIB;
        [(start + 4096, DATA), (start + 65_536, ZEROS), (start + 256 * MIB, HOLE)]
    };
    assert_eq!(allocation(&volume).await, (0..160).flat_map(parts).collect::<Vec<_>>());
    assert_eq!(bench.gets("/pack/").requests, 0, "it reads no data");
    volume.close().await.unwrap();
}

/// Whether the data is in chunk objects or in a pack.
#[tokio::test(start_paused = true)]
async fn one_cache_loads_a_bounded_number_of_map_pages() {
    for (length, part, other) in [(65_536, "/chunk/", "/pack/"), (4096, "/pack/", "/chunk/")] {
        let mut bench = Bench::with_chunks(40 * GIB, MIB / 16).await;
        let volume = scattered(&mut bench, 160, length).await;
        volume.prefetch(0, 40 * GIB).await.unwrap();
        let gets = |part: &str| bench.gets(part).requests;
        assert_eq!((gets("/map/"), gets(part), gets(other)), (64, 64, 0), "{part}");
        assert_eq!(bench.gets(part).bytes, 64 * length as u64 / 4096 * FRAME_BYTES, "{part}");
        volume.close().await.unwrap();
    }
}

/// A disk with the given amount of data in its chunks, opened by a gateway with a cache of the given size,
/// both in MiB.
async fn filled(bench: &mut Bench, mib: u64, cache_mib: u64, requests: usize) -> (Environment, Arc<Volume>) {
    let volume = bench.open().await;
    for n in 0..mib {
        volume.write(n * MIB, pattern(n, 1 << 20), Volatile).await.unwrap();
    }
    volume.close().await.unwrap();
    let plain = bench.env(cache_mib * MIB);
    let metrics = Metrics::new().store();
    let store = Classes::limited(&plain.store.reads, requests, &metrics, |_, limited| limited);
    let env = Environment { store, ..plain };
    let id = catalog::resolve(&env, "disk").await.unwrap();
    let volume = Volume::open(&env, bench.options.clone(), id, true).await.unwrap();
    bench.memory.reset_tallies();
    (env, volume)
}

#[tokio::test(start_paused = true)]
async fn a_cache_of_the_whole_disk_ends_where_the_clean_cache_does() {
    let mut bench = Bench::new(TIB).await;
    let (env, volume) = filled(&mut bench, 96, 32, 64).await;
    volume.prefetch(0, TIB).await.unwrap();
    let got = bench.gets("/chunk/").bytes;
    assert!((24 * MIB..=33 * MIB).contains(&got), "{got} bytes were fetched into a cache of 32 MiB");
    env.cache.settle().await;
    assert!(env.cache.held_bytes() <= 32 * MIB, "{} bytes are held", env.cache.held_bytes());
    volume.close().await.unwrap();
}

/// Only a limited number of its GETs are in flight, and they end when the caller drops the command.
#[tokio::test(start_paused = true)]
async fn a_cache_that_nobody_waits_for_ends() {
    let tasks = Tasks::new();
    let mut bench = Bench::new(TIB).await;
    let (_env, volume) = filled(&mut bench, 96, 256, 64).await;
    let gate = bench.fault.hold(Operation::Get, "/chunk/");
    let command = tasks.spawn({
        let volume = Arc::clone(&volume);
        async move { volume.prefetch(0, TIB).await }
    });
    quiesce().await;
    assert_eq!(gate.count(), 8, "GETs of a CACHE at a time");
    command.abort();
    gate.release();
    quiesce().await;
    assert_eq!(bench.gets("/chunk/").requests, 8, "no more begin");
    volume.close().await.unwrap();
}

/// The longest that a request to the store takes.
const LATENCY: Duration = Duration::from_millis(40);
/// How long a GET of a chunk takes, which is much longer.
const BULK_LATENCY: Duration = Duration::from_secs(5);

fn slow(bench: &Bench) {
    bench.fault.add(Rule::new(Action::Delay(LATENCY, LATENCY)).on(Operation::Put));
    bench
        .fault
        .add(Rule::new(Action::Delay(BULK_LATENCY, BULK_LATENCY)).on(Operation::Get).containing("/chunk/"));
}

/// Only four requests run at a time, and a CACHE could take them all. Still, a FUA takes only the time of its
/// PUT, the lease is renewed, and the read of another client takes only the time of its GET.
#[tokio::test(start_paused = true)]
async fn nothing_waits_behind_a_cache_of_much() {
    let tasks = Tasks::new();
    let mut bench = Bench::new(TIB).await;
    bench.options.lease_ttl = Duration::from_secs(3);
    let (_env, volume) = filled(&mut bench, 128, 512, 4).await;
    slow(&bench);
    let command = tasks.spawn({
        let volume = Arc::clone(&volume);
        async move { volume.prefetch(0, 120 * MIB).await }
    });
    quiesce().await;
    let begun = Instant::now();
    volume.write(TIB / 2, pattern(1, 4096), Durable).await.unwrap();
    assert!(begun.elapsed() <= LATENCY * 3 / 2, "FUA took {:?}", begun.elapsed());
    let heads = bench.puts("/head").requests;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(bench.puts("/head").requests > heads, "the lease was renewed");
    let begun = Instant::now();
    assert_eq!(read(&volume, 125 * MIB, 4096).await, pattern(125, 4096));
    assert!(begun.elapsed() <= BULK_LATENCY * 3 / 2, "the read took {:?}", begun.elapsed());
    assert!(!command.is_finished(), "the CACHE was under way all the time");
    command.abort();
    volume.abandon().await;
}

/// A read of a range that a CACHE will fetch later does not wait until the CACHE gets there.
#[tokio::test(start_paused = true)]
async fn a_read_overtakes_the_cache_that_wants_the_same() {
    let tasks = Tasks::new();
    let mut bench = Bench::new(TIB).await;
    let (_env, volume) = filled(&mut bench, 128, 512, 4).await;
    slow(&bench);
    let command = tasks.spawn({
        let volume = Arc::clone(&volume);
        async move { volume.prefetch(0, 128 * MIB).await }
    });
    quiesce().await;
    let begun = Instant::now();
    assert_eq!(read(&volume, 100 * MIB, 4096).await, pattern(100, 4096));
    assert!(begun.elapsed() <= BULK_LATENCY * 3 / 2, "the read took {:?}", begun.elapsed());
    assert!(!command.is_finished());
    command.abort();
    volume.abandon().await;
}

/// A fold that writes many packs or chunks holds no FLUSH back.
#[tokio::test(start_paused = true)]
async fn no_flush_waits_behind_a_fold() {
    for (part, length, count) in [("/pack/", 4096, 64), ("/chunk/", 2 << 20, 16)] {
        let tasks = Tasks::new();
        let mut bench = Bench::new(TIB).await;
        bench.options.pack_bytes = 4096;
        let (_env, volume) = filled(&mut bench, 16, 64, 4).await;
        for n in 0..count {
            volume.write(GIB + n * 4 * MIB, pattern(n, length), Volatile).await.unwrap();
        }
        volume.flush().await.unwrap();
        let gate = bench.fault.hold(Operation::Put, part);
        bench
            .fault
            .add(Rule::new(Action::Delay(LATENCY, LATENCY)).on(Operation::Put).containing("/journal/"));
        let folding = tasks.spawn({
            let volume = Arc::clone(&volume);
            async move { volume.checkpoint().await }
        });
        gate.reached(1).await;
        quiesce().await;
        let begun = Instant::now();
        volume.write(TIB / 2, pattern(1, 4096), Durable).await.unwrap();
        assert!(begun.elapsed() <= LATENCY * 3 / 2, "FUA took {:?}", begun.elapsed());
        assert!(!folding.is_finished());
        bench.fault.clear();
        gate.release();
        folding.await.unwrap().unwrap();
        assert_eq!(bench.puts(part).requests, count, "{part}");
        volume.close().await.unwrap();
    }
}
