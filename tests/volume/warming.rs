//! What clients read first after an opening is recorded, and loaded at the next one. The record is a hint.

use std::time::Duration;

use bytes::Bytes;
use cairn::effect::Durability::Volatile;
use cairn::metrics::{Metrics, Tier, VolumeMetrics};
use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Rule};
use cairn::volume::check::{Depth, ObjectKind, Purpose, check};
use cairn::volume::format::first_reads::{FirstReads, MAX_RANGES};
use cairn::volume::format::frame::FRAME_BYTES;
use cairn::volume::format::geometry::BlockIndex;
use cairn::volume::format::keys::Keys;
use cairn::volume::{Brought, Entropy, Environment, Volume, Warm, Warmed, catalog};

use super::bench::{Bench, MIB, pattern, read};

const BLOCK: u64 = 4096;
const MINUTE: Duration = Duration::from_secs(60);
/// Longer than whatever a task does that waits for nothing.
const SETTLED: Duration = Duration::from_secs(1);

/// The boot of [`boot`]: so many reads of so many bytes, of one in each place.
const READS: u64 = 192;
const READ_BYTES: u64 = 2 * BLOCK;
const PLACE_BYTES: u64 = 4 * BLOCK;

fn content() -> Bytes {
    pattern(1, 16 << 20)
}

/// A disk of 16 MiB whose chunks are all stored. The next openings record what is read in the first minute.
async fn stored() -> Bench {
    let mut bench = Bench::new(16 * MIB).await;
    let volume = bench.open().await;
    volume.write(0, content(), Volatile).await.unwrap();
    volume.close().await.unwrap();
    assert_eq!(bench.keys("/reads"), Vec::<String>::new(), "only if it is switched on");
    bench.options.record_reads = MINUTE;
    bench.options.read_ahead_bytes = 0;
    bench.memory.reset_tallies();
    bench
}

/// The first byte of a read.
fn place(n: u64) -> u64 {
    n * 751 % READS * PLACE_BYTES
}

/// Reads 1.5 MiB of the first 3 MiB here and there, as a machine does that boots.
async fn boot(volume: &Volume) {
    let content = content();
    for n in 0..READS {
        let at = usize::try_from(place(n)).unwrap();
        let bytes = read(volume, place(n), READ_BYTES).await;
        assert!(bytes == content[at..at + bytes.len()], "read {n}");
    }
}

/// A disk that has booted once.
async fn recorded() -> Bench {
    let mut bench = stored().await;
    let volume = bench.open().await;
    boot(&volume).await;
    volume.close().await.unwrap();
    assert_eq!(bench.keys("/reads").len(), 1);
    bench.memory.reset_tallies();
    bench
}

fn metrics(bench: &mut Bench) -> VolumeMetrics {
    let metrics = Metrics::new().volume("disk");
    bench.options.metrics = Some(metrics.clone());
    metrics
}

#[tokio::test(start_paused = true)]
async fn what_a_boot_reads_is_loaded_in_few_gets_at_the_next_opening() {
    let mut bench = stored().await;
    let volume = bench.open().await;
    boot(&volume).await;
    assert_eq!(bench.gets("/chunk/").requests, READS, "the first boot waits for each read");
    assert_eq!(bench.puts("/reads").requests, 0, "the time is not over");
    tokio::time::sleep(MINUTE + SETTLED).await;
    assert_eq!(bench.puts("/reads").requests, 1);
    read(&volume, 8 * MIB, 4 * MIB).await;
    volume.close().await.unwrap();
    assert_eq!(bench.puts("/reads").requests, 1, "once for an opening");
    let key = bench.keys("/reads").remove(0);
    let keys = Keys::new(volume.id());
    assert_eq!(key, keys.first_reads());
    let list = FirstReads::decode(keys.sealing(), &bench.memory.objects()[&key]).unwrap();
    let expected = (0..READS).map(|n| BlockIndex::touched_by(&(place(n)..place(n) + READ_BYTES)));
    assert_eq!(list.ranges, expected.collect::<Vec<_>>(), "in the order of the reads");

    let metrics = metrics(&mut bench);
    bench.memory.reset_tallies();
    let volume = bench.open().await;
    tokio::time::sleep(SETTLED).await;
    let gets = bench.gets("/chunk/");
    assert!(gets.requests <= 4, "{gets:?}: 3 MiB in GETs of a MiB");
    assert!(gets.bytes <= gets.requests * MIB / BLOCK * FRAME_BYTES, "{gets:?}");
    assert_eq!(metrics.warmed_bytes.get(), READS * READ_BYTES);
    assert_eq!(metrics.warm_requests.get(), gets.requests);
    boot(&volume).await;
    assert_eq!(bench.gets("/chunk/"), gets, "the second boot waits for none");
    let asked = [&metrics.cache_hits, &metrics.cache_misses].map(|counts| counts.of(Tier::Memory).get());
    assert_eq!(asked, [READS, 0], "loading counts as no read");
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_is_closed_before_the_time_is_over_is_recorded_too() {
    let mut bench = recorded().await;
    let before = bench.memory.objects();
    // Who only looks at the disk replaces no record, and neither does who reads zeros.
    let volume = bench.open().await;
    read(&volume, 0, MIB - BLOCK).await;
    volume.close().await.unwrap();
    assert_eq!(bench.puts("/reads").requests, 0);
    let volume = bench.open().await;
    read(&volume, 12 * MIB, MIB).await;
    volume.close().await.unwrap();
    let key = bench.keys("/reads").remove(0);
    assert!(bench.puts("/reads").requests == 1 && bench.memory.objects()[&key] != before[&key], "replaced");
    // Without a time, nothing is read or written.
    bench.options.record_reads = Duration::ZERO;
    bench.memory.reset_tallies();
    let volume = bench.open().await;
    boot(&volume).await;
    tokio::time::sleep(MINUTE + SETTLED).await;
    volume.close().await.unwrap();
    assert_eq!((bench.gets("/reads").requests, bench.puts("/reads").requests), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_first_boot_of_a_clone_has_the_record_of_its_parent() {
    let mut bench = recorded().await;
    let parent = bench.open().await;
    parent.snapshot("golden").await.unwrap();
    catalog::clone(&parent, "golden", "clone").await.unwrap();
    parent.close().await.unwrap();
    for owners in [1, 2] {
        assert_eq!(bench.keys("/reads").len(), owners);
        let env = Environment { entropy: Entropy::seeded(98 + owners as u64), ..bench.env(64 * MIB) };
        let id = catalog::resolve(&env, "clone").await.unwrap();
        let clone = Volume::open(&env, bench.options.clone(), id, true).await.unwrap();
        tokio::time::sleep(SETTLED).await;
        bench.memory.reset_tallies();
        boot(&clone).await;
        assert_eq!(bench.gets("/chunk/").requests, 0, "everything was loaded");
        clone.close().await.unwrap();
    }
}

/// Objects that are no record of a volume.
fn alien(bench: &Bench, key: &str, volume: &Volume) -> Vec<(&'static str, Bytes)> {
    let record = bench.memory.objects()[key].clone();
    let list = FirstReads::decode(Keys::new(volume.id()).sealing(), &record).unwrap();
    let mut flipped = record.to_vec();
    flipped[40] ^= 1;
    let of_another = list.encode(Keys::new(uuid::Uuid::from_u128(7)).sealing());
    let long = (0..=MAX_RANGES as u64).map(|n| BlockIndex(n)..BlockIndex(n + 1));
    let too_long = FirstReads { ranges: long.collect() }.encode(Keys::new(volume.id()).sealing());
    vec![
        ("empty", Bytes::new()),
        ("short", Bytes::from_static(b"CAIRNRDS")),
        ("cut off", record.slice(..record.len() - 1)),
        ("flipped", Bytes::from(flipped)),
        ("another volume's", Bytes::from(of_another)),
        ("too long", Bytes::from(too_long)),
        ("another object", bench.memory.objects()[&Keys::new(volume.id()).head()].clone()),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_damaged_costs_nothing_but_time() {
    let mut bench = recorded().await;
    let volume = bench.open().await;
    volume.close().await.unwrap();
    let key = bench.keys("/reads").remove(0);
    let record = bench.memory.objects()[&key].clone();
    for (what, body) in alien(&bench, &key, &volume) {
        bench.memory.insert(&key, body);
        bench.memory.reset_tallies();
        let volume = bench.open().await;
        tokio::time::sleep(SETTLED).await;
        assert_eq!(bench.gets("/chunk/").requests, 0, "{what}");
        boot(&volume).await;
        volume.close().await.unwrap();
        assert_eq!(bench.memory.objects()[&key], record, "{what}: the next one is right again");
    }
    // The store has none of it.
    bench.fault.add(Rule::new(Action::FailBefore(Failure::Denied)).containing("/reads"));
    let volume = bench.open().await;
    boot(&volume).await;
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn half_of_the_cache_is_loaded_at_most_and_only_free_room() {
    let mut bench = stored().await;
    let volume = bench.open().await;
    read(&volume, 0, 16 * MIB).await;
    volume.close().await.unwrap();
    for (cache, most) in [(4 * MIB, 2 * MIB), (12 * MIB, 6 * MIB), (MIB, MIB / 2)] {
        let env = Environment { entropy: Entropy::seeded(cache), ..bench.env(cache) };
        let id = catalog::resolve(&env, "disk").await.unwrap();
        let metrics = metrics(&mut bench);
        let volume = Volume::open(&env, bench.options.clone(), id, true).await.unwrap();
        tokio::time::sleep(SETTLED).await;
        let warmed = metrics.warmed_bytes.get();
        assert!((most / 2..=most).contains(&warmed), "{warmed} bytes of a cache of {cache}");
        assert!(env.cache.held_bytes() <= cache);
        // The rest of the cache is used up by a reader. What it has is not pushed out.
        read(&volume, 0, 16 * MIB).await;
        let warmed = volume.warm(Warm::Everything).await.unwrap().unwrap();
        assert!(warmed.is_full && warmed.brought == Brought::default(), "{warmed:?}");
        volume.abandon().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_warmed_on_request() {
    let mut bench = stored().await;
    bench.options.record_reads = Duration::ZERO;
    let volume = bench.open().await;
    assert_eq!(volume.warm(Warm::FirstReads).await.unwrap(), None, "no record yet");
    let brought = Brought { bytes: 16 * MIB, requests: 16 };
    let everything = volume.warm(Warm::Everything).await.unwrap();
    assert_eq!(everything, Some(Warmed { brought, is_full: false }));
    let gets = bench.gets("/chunk/");
    assert_eq!(gets.requests, 16);
    assert!(read(&volume, 0, 16 * MIB).await == content());
    assert_eq!(bench.gets("/chunk/"), gets);
    let again = volume.warm(Warm::Everything).await.unwrap().unwrap();
    assert_eq!(again.brought, Brought::default(), "all of it is in the cache");
    volume.close().await.unwrap();

    let mut bench = recorded().await;
    bench.options.record_reads = Duration::ZERO;
    let volume = bench.open().await;
    tokio::time::sleep(SETTLED).await;
    assert_eq!(bench.gets("/chunk/").requests, 0, "not at the opening");
    let warmed = volume.warm(Warm::FirstReads).await.unwrap().unwrap();
    assert_eq!((warmed.brought.bytes, warmed.is_full), (READS * READ_BYTES, false));
    assert_eq!(warmed.brought.requests, bench.gets("/chunk/").requests);
    volume.abandon().await;
    assert!(volume.warm(Warm::FirstReads).await.is_err(), "it has stopped");
}

#[tokio::test(start_paused = true)]
async fn a_closing_does_not_wait_for_what_is_being_loaded() {
    let mut bench = recorded().await;
    let gate = bench.fault.hold(Operation::Get, "/chunk/");
    let volume = bench.open().await;
    gate.reached(1).await;
    volume.close().await.unwrap();
    gate.release();
    let volume = bench.open().await;
    boot(&volume).await;
}

#[tokio::test(start_paused = true)]
async fn the_record_is_no_orphan_and_goes_with_its_volume() {
    let mut bench = recorded().await;
    let env = Environment { entropy: Entropy::seeded(99), ..bench.env(64 * MIB) };
    let report = check(&env, "disk", Depth::Data).await.unwrap();
    let bytes = bench.memory.objects()[&bench.keys("/reads")[0]].len() as u64;
    let count = report.usage.of(ObjectKind::FirstReads, Purpose::Live);
    assert_eq!((count.objects, count.bytes, report.orphans.objects), (1, bytes, 0));
    assert!(!report.is_damaged());
    // A sweep leaves it alone too.
    bench.open().await.abandon().await;
    let volume = bench.open().await;
    tokio::time::sleep(2 * MINUTE).await;
    volume.close().await.unwrap();
    assert_eq!(bench.keys("/reads").len(), 1);
    catalog::delete(&env, &bench.options, "disk", false).await.unwrap();
    assert_eq!(bench.keys("volume/"), Vec::<String>::new());
}
