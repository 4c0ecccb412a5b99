//! Trouble in the store: never wrong data, never given up early.

use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::{Durable, Volatile};
use cairn::effect::Zeroing;
use cairn::metrics::Metrics;
use cairn::store::fault::{Action, Failure, Rule};
use cairn::store::retry::RetryOptions;
use cairn::store::{Classes, Operation, Retry, Store};
use cairn::volume::format::{chunk, pack};
use cairn::volume::{Environment, Error, Volume, catalog};

use super::bench::{Bench, MIB, bytes_of, pattern, read};

async fn stored(bench: &mut Bench) -> Arc<Volume> {
    let volume = bench.open().await;
    volume.write(0, pattern(1, 4 << 20), Volatile).await.unwrap();
    volume.close().await.unwrap();
    bench.open().await
}

#[tokio::test(start_paused = true)]
async fn flipped_bits_are_an_error_and_never_cached() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = stored(&mut bench).await;
    read(&volume, 65_536, 4096).await;
    let rule = bench.fault.add(Rule::new(Action::FlipBit).on(Operation::Get).containing("/chunk/"));
    let error = volume.read(0, 4096).await.expect_err("the page fails its check");
    assert!(matches!(error, Error::Store(_)), "every reading differs, so the object may be whole: {error}");
    bench.fault.remove(rule);
    let key = bench.keys("/chunk/").pop().expect("one chunk");
    let whole = bench.memory.remove(&key).expect("stands");
    let mut flipped = whole.to_vec();
    flipped[1000] ^= 0x10;
    bench.memory.insert(&key, flipped.into());
    let error = volume.read(0, 4096).await.expect_err("the page fails its check");
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    bench.memory.insert(&key, whole);
    assert_eq!(read(&volume, 0, 4096).await, pattern(1, 4 << 20)[..4096]);
}

/// A checkpoint reads many blocks, whose requests wait for each other. Behind a slow store that takes longer than a
/// single read may take.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_ends_however_slow_the_store_is() {
    let mut bench = Bench::new(64 * MIB).await;
    stored(&mut bench).await.abandon().await;
    let metrics = Metrics::new().store();
    let base: Arc<dyn Store> = Arc::new(bench.fault.clone());
    let store = Classes::limited(&base, 4, &metrics, |class, limited| {
        let retry = Retry::new(limited, RetryOptions::default(), metrics.clone(), 1).of_class(class);
        retry.wait_out_refusals();
        Arc::new(retry)
    });
    let env = Environment { store, ..bench.env(0) };
    let id = catalog::resolve(&env, "disk").await.unwrap();
    let volume = Volume::open(&env, bench.options.clone(), id, true).await.unwrap();
    let slow = Duration::from_secs(30);
    bench.fault.add(Rule::new(Action::DelayAnswer(slow, slow)).on(Operation::Get).containing("/chunk/"));
    for n in 0..200_u64 {
        volume.write(n * 16_384, pattern(n, 512), Volatile).await.unwrap();
    }
    let begun = tokio::time::Instant::now();
    let hours = Duration::from_secs(10 * 3600);
    tokio::time::timeout(hours, volume.checkpoint()).await.expect("it ends").unwrap();
    assert!(begun.elapsed() > RetryOptions::default().read.deadline.expect("a minute"));
    bench.fault.clear();
    assert_eq!(read(&volume, 199 * 16_384, 512).await, pattern(199, 512));
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_gone_is_an_error_not_zeros() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = stored(&mut bench).await;
    let key = bench.keys("/chunk/").pop().expect("one chunk");
    let body = bench.memory.remove(&key).expect("stands");
    let error = volume.read(0, 4096).await.expect_err("the page is gone");
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    assert!(error.offset().is_some(), "{error}");
    bench.memory.insert(&key, body);
    assert_eq!(read(&volume, 0, 4096).await, pattern(1, 4 << 20)[..4096]);
}

#[tokio::test(start_paused = true)]
async fn what_a_checkpoint_moves_meanwhile_is_looked_up_again() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.deletion_grace = Duration::ZERO;
    stored(&mut bench).await.close().await.unwrap();
    bench.options.holder_name = "without a cache".to_owned();
    let env = bench.env(0);
    let id = cairn::volume::catalog::resolve(&env, "disk").await.unwrap();
    let volume = cairn::volume::Volume::open(&env, bench.options.clone(), id, true).await.unwrap();
    let map = bench.keys("/map/").pop().expect("one map page");
    // The dirty data leaves gaps, and each of them requests the map page again. The checkpoint shares the
    // first of these requests; the second one reaches the store when the page is gone.
    for gap in [1, 3] {
        volume.write(gap * 4096, pattern(2, 4096), Volatile).await.unwrap();
    }
    for (skip, seconds) in [(0, 1), (1, 100)] {
        let delay = Action::Delay(Duration::from_secs(seconds), Duration::from_secs(seconds));
        bench.fault.add(Rule::new(delay).on(Operation::Get).containing(&map).skip(skip).times(1));
    }
    let (extents, checkpoint) =
        tokio::join!(volume.allocation(0, 65_536, 8), async { volume.checkpoint().await });
    checkpoint.unwrap();
    assert!(!bench.keys("/map/").contains(&map), "the map page was replaced and deleted meanwhile");
    let extents = extents.unwrap();
    assert_eq!(extents.len(), 1, "one extent of data");
    assert!(!extents[0].hole && !extents[0].zero);
}

/// The read waits for the second of two map pages while all blocks of the first one are moved. What it then
/// fetches is gone.
#[tokio::test(start_paused = true)]
async fn what_a_consolidation_moves_during_a_read_is_looked_up_again() {
    const END: u64 = 256 * MIB;
    for (overwritten, part) in [(END - 8192, "/chunk/"), (END - 4096, "/pack/")] {
        let mut bench = Bench::with_chunks(2 * END, 65_536).await;
        bench.options.deletion_grace = Duration::ZERO;
        let volume = bench.open().await;
        volume.write(END - 65_536, pattern(1, 131_072), Volatile).await.unwrap();
        volume.checkpoint().await.unwrap();
        volume.write(overwritten, pattern(2, 4096), Durable).await.unwrap();
        volume.checkpoint().await.unwrap();
        // Until no record is left, so that the next opening has nothing to scan.
        tokio::time::sleep(Duration::from_secs(60)).await;
        volume.close().await.unwrap();
        let volume = bench.open().await;
        let is_wanted = |key: &String| part == "/pack/" || key.contains("/4095-");
        let key = bench.keys(part).into_iter().find(is_wanted).expect("one object");
        let gate = bench.fault.hold(Operation::Get, "/map/1-");
        let consolidated = async {
            gate.reached(1).await;
            volume.consolidate().await.unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert!(!bench.keys(part).contains(&key), "it was replaced and deleted meanwhile");
            bench.memory.reset_tallies();
            gate.release();
        };
        let (bytes, ()) = tokio::join!(read(&volume, END - 4096, 8192), consolidated);
        let mut expected = pattern(1, 131_072)[61_440..69_632].to_vec();
        if part == "/pack/" {
            expected[..4096].copy_from_slice(&pattern(2, 4096));
        }
        assert!(bench.gets(&key).requests > 1, "it was looked for");
        assert_eq!(bytes, expected, "{part}");
    }
}

/// Damages the frame that begins at byte `at` of the only object whose key contains `part`.
fn damage(bench: &Bench, part: &str, at: u64) {
    let key = bench.keys(part).pop().expect("one object");
    let mut body = bench.memory.objects()[&key].to_vec();
    body[usize::try_from(at).unwrap() + 100] ^= 1;
    bench.memory.insert(&key, body.into());
}

/// Page 0 lies in a chunk object, page 1 in a pack. In each of them block 2 is damaged.
#[tokio::test(start_paused = true)]
async fn a_damaged_block_stays_damaged_until_it_is_overwritten_and_costs_no_other() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = stored(&mut bench).await;
    volume.write(65_536, pattern(4, 65_536), Durable).await.unwrap();
    volume.close().await.unwrap();
    damage(&bench, "/chunk/", chunk::frame_offset(64, 0, 2));
    damage(&bench, "/pack/", pack::frame_offset(2));
    let volume = bench.open().await;
    for (page, seed) in [(0, 1), (65_536, 4)] {
        let bad = page + 8192;
        volume.read(bad, 512).await.expect_err("it fails its check");
        volume.write(bad + 1024, pattern(2, 1024), Durable).await.unwrap();
        volume.checkpoint().await.unwrap();
        let before = pattern(seed, 65_536);
        for again in 0..3 {
            let at = format!("page at {page}, {again}");
            assert_eq!(read(&volume, bad + 1024, 1024).await, pattern(2, 1024), "overwritten: {at}");
            assert_eq!(read(&volume, page, 8192).await, before[..8192], "before it: {at}");
            assert_eq!(read(&volume, bad + 4096, 53_248).await, before[12_288..], "after it: {at}");
            for lost in [bad, bad + 512, bad + 2048, bad + 3584] {
                let error = volume.read(lost, 512).await.expect_err("a sector that was lost is never zeros");
                assert!(matches!(error, Error::Damaged { .. }), "{at}: {error}");
            }
            match again {
                // From then on it lies in a chunk object, with its damage.
                0 => volume.consolidate().await.unwrap(),
                _ => volume.checkpoint().await.unwrap(),
            }
        }
        volume.write(bad, pattern(3, 4096), Durable).await.unwrap();
        assert_eq!(read(&volume, bad, 4096).await, pattern(3, 4096));
    }
    volume.close().await.unwrap();
    let volume = bench.open().await;
    for (page, seed) in [(0, 1), (65_536, 4)] {
        let mut expected = pattern(seed, 65_536).to_vec();
        expected[8192..12_288].copy_from_slice(&pattern(3, 4096));
        assert_eq!(read(&volume, page, 65_536).await, expected);
    }
}

/// Adjacent changes in a record are fetched and cached together, but a damaged one does not spoil the others.
#[tokio::test(start_paused = true)]
async fn a_damaged_change_takes_none_of_its_neighbours_with_it() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    for n in 0..8_u64 {
        volume.write(n * MIB, pattern(n, 4096), Volatile).await.unwrap();
    }
    volume.flush().await.unwrap();
    volume.abandon().await;
    let volume = bench.open().await;
    let objects = bench.memory.objects();
    let key = objects.keys().find(|key| key.contains("/journal/") && objects[*key].len() > 8 * 4096);
    let key = key.expect("all went into one record");
    let mut record = objects[key].to_vec();
    let fourth = record.len() - 16 - 5 * 4096;
    record[fourth + 7] ^= 1;
    bench.memory.insert(key, record.into());
    for folded in [false, true] {
        if folded {
            volume.checkpoint().await.unwrap();
        }
        for n in 0..8_u64 {
            match volume.read(n * MIB, 4096).await {
                Ok(segments) => {
                    assert_ne!(n, 3, "what was lost is never given");
                    assert_eq!(bytes_of(&segments), pattern(n, 4096));
                }
                Err(error) => assert!(n == 3 && matches!(error, Error::Damaged { .. }), "{n}: {error}"),
            }
        }
    }
    volume.write(3 * MIB, pattern(9, 4096), Durable).await.unwrap();
    assert_eq!(read(&volume, 3 * MIB, 4096).await, pattern(9, 4096));
}

#[tokio::test(start_paused = true)]
async fn writes_and_flushes_wait_for_the_store_and_go_on_when_it_is_back() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    volume.write(0, pattern(1, 4096), Durable).await.unwrap();
    let rule = bench.fault.add(Rule::new(Action::FailBefore(Failure::Transient)));
    volume.write(4096, pattern(2, 4096), Volatile).await.unwrap();
    let flush = volume.flush();
    tokio::pin!(flush);
    assert!(tokio::time::timeout(Duration::from_secs(300), &mut flush).await.is_err(), "it waits");
    assert_eq!(read(&volume, 0, 8192).await, [pattern(1, 4096), pattern(2, 4096)].concat(), "from memory");
    bench.fault.remove(rule);
    flush.await.unwrap();
    volume.abandon().await;
    let volume = bench.open().await;
    assert_eq!(read(&volume, 0, 8192).await, [pattern(1, 4096), pattern(2, 4096)].concat());
}

#[tokio::test(start_paused = true)]
async fn at_the_dirty_bound_writes_are_slowed_not_refused() {
    let mut bench = Bench::new(1 << 30).await;
    let volume = bench.open().await;
    let rule = bench.fault.add(Rule::new(Action::FailBefore(Failure::Transient)).on(Operation::Put));
    let mut written = 0_u64;
    while tokio::time::timeout(
        Duration::from_secs(30),
        volume.write(written * MIB, pattern(written, 1 << 20), Volatile),
    )
    .await
    .is_ok_and(|write| write.is_ok())
    {
        written += 1;
        assert!(written <= 128, "the bound is 128 MiB");
    }
    assert_eq!(written, 128, "all of the bound is used");
    bench.fault.remove(rule);
    volume.write(written * MIB, pattern(written, 1 << 20), Durable).await.unwrap();
    for n in 0..=written {
        assert_eq!(read(&volume, n * MIB, MIB).await, pattern(n, 1 << 20));
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_dirty_bound_trims_are_slowed_too() {
    let mut bench = Bench::new(1 << 30).await;
    bench.dirty_bytes = MIB;
    let volume = bench.open().await;
    bench.fault.add(Rule::new(Action::FailBefore(Failure::Transient)).on(Operation::Put));
    let mut trimmed = 0_u64;
    while tokio::time::timeout(
        Duration::from_secs(30),
        volume.zero(trimmed * 1024, 512, Zeroing::Deallocate, Volatile),
    )
    .await
    .is_ok_and(|trim| trim.is_ok())
    {
        trimmed += 1;
        assert!(trimmed <= 256 * 64, "the bound is 256 blocks, and 64 ranges weigh as much as one");
    }
}

/// Cuts a volume off from its head for ten lease times. Returns why it stopped, if it did, and whether a read
/// succeeds afterwards.
async fn without_renewal(strict: bool) -> (Option<String>, bool) {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.lease_strict = strict;
    let volume = bench.open().await;
    volume.write(0, pattern(1, 4096), Durable).await.unwrap();
    let cut_off = tokio::time::Instant::now();
    bench.fault.add(Rule::new(Action::FailBefore(Failure::Transient)).containing("/head"));
    let stopped = tokio::time::timeout(bench.options.lease_ttl * 10, volume.stopped()).await.ok();
    if stopped.is_some() {
        assert!(cut_off.elapsed() <= bench.options.lease_ttl, "not served beyond the lease");
    }
    (stopped, volume.read(0, 4096).await.is_ok())
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_cannot_renew_its_lease_serves_on() {
    assert_eq!(without_renewal(false).await, (None, true));
}

#[tokio::test(start_paused = true)]
async fn with_a_strict_lease_it_stops_when_the_lease_is_over() {
    let (stopped, reads) = without_renewal(true).await;
    assert!(stopped.is_some_and(|why| why.contains("lease.strict")));
    assert!(!reads);
}

/// A checkpoint needs the block of which a part changes, from a chunk object or a pack, and what locates it.
#[tokio::test(start_paused = true)]
async fn what_is_damaged_on_the_way_is_never_marked_as_lost() {
    for (at, part) in
        [(0, "/chunk/"), (65_536, "/pack/"), (0, "/map/"), (0, "/overlay/"), (65_536, "/overlay/")]
    {
        let mut bench = Bench::new(64 * MIB).await;
        bench.options.embed_bytes = 0;
        let volume = stored(&mut bench).await;
        volume.write(65_536, pattern(3, 65_536), Durable).await.unwrap();
        volume.close().await.unwrap();
        let volume = bench.open().await;
        volume.write(at + 4608, pattern(2, 1024), Durable).await.unwrap();
        let rule = bench.fault.add(Rule::new(Action::FlipBit).on(Operation::Get).containing(part));
        bench.memory.reset_tallies();
        let folds = tokio::time::timeout(Duration::from_secs(60), volume.checkpoint()).await;
        assert!(folds.is_err(), "nothing can be folded while every reading is damaged: {folds:?}");
        assert!(bench.gets(part).requests > 10, "it was tried: {part}");
        bench.fault.remove(rule);
        volume.checkpoint().await.unwrap();
        let mut expected = [&pattern(1, 65_536)[..], &pattern(3, 65_536)].concat();
        let place = usize::try_from(at).unwrap() + 4608;
        expected[place..place + 1024].copy_from_slice(&pattern(2, 1024));
        assert_eq!(read(&volume, 0, 131_072).await, expected, "{part}");
        volume.close().await.unwrap();
        let volume = bench.open().await;
        assert_eq!(read(&volume, 0, 131_072).await, expected, "{part}");
    }
}
