//! Objects that the store reports as missing, truncates or has lost: no single answer is believed, and a bad
//! object costs only its own range.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cairn::effect::Durability::{Durable, Volatile};
use cairn::effect::Zeroing;
use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Rule};
use cairn::volume::format::head::Head;
use cairn::volume::format::keys::{Keys, ObjectId};
use cairn::volume::format::pack;
use cairn::volume::format::root::{KeptRoot, RootTable};
use cairn::volume::format::snapshot::Snapshot;
use cairn::volume::{Error, Volume, catalog};

use super::bench::{Bench, MIB, bytes_of, pattern, read};

const CHUNK: usize = 4 << 20;

fn denial() -> Rule {
    Rule::new(Action::FailBefore(Failure::NotFound)).on(Operation::Get)
}

/// Opens, with an empty cache, a volume whose first `chunks` chunks are durable objects.
async fn stored(bench: &mut Bench, chunks: u64) -> Arc<Volume> {
    let volume = bench.open().await;
    for n in 0..chunks {
        volume.write(n * 4 * MIB, pattern(n + 1, CHUNK), Volatile).await.unwrap();
    }
    volume.close().await.unwrap();
    bench.open().await
}

#[tokio::test(start_paused = true)]
async fn sound_pages_that_the_store_denies_once_are_never_marked_as_lost() {
    for times in [1, 2, 4] {
        let mut bench = Bench::new(64 * MIB).await;
        let volume = stored(&mut bench, 1).await;
        // One sector in every other page, so that the checkpoint has to read the rest of the page.
        let mut expected = pattern(1, CHUNK).to_vec();
        for page in (0..64).step_by(2) {
            let at = page * 65_536 + 512;
            volume.write(at as u64, pattern(9, 512), Volatile).await.unwrap();
            expected[at..at + 512].copy_from_slice(&pattern(9, 512));
        }
        bench.fault.add(denial().containing("/chunk/").times(times));
        volume.checkpoint().await.unwrap();
        volume.close().await.unwrap();
        let volume = bench.open().await;
        assert!(read(&volume, 0, 4 * MIB).await == expected, "denied {times} times");
    }
}

/// A read may give up early. A checkpoint waits longer, because what it marks as lost is lost for good.
#[tokio::test(start_paused = true)]
async fn a_page_is_marked_as_lost_only_when_it_was_missing_for_long() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = stored(&mut bench, 1).await;
    let key = bench.keys("/chunk/").pop().expect("one chunk");
    let whole = bench.memory.remove(&key).expect("it exists");
    let error = volume.read(0, 4096).await.expect_err("the object is missing");
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    volume.write(512, pattern(2, 512), Durable).await.unwrap();
    let (memory, again) = (bench.memory.clone(), key.clone());
    let comes_back = async {
        tokio::time::sleep(Duration::from_secs(8)).await;
        memory.insert(&again, whole.clone());
    };
    let (checkpoint, ()) = tokio::join!(volume.checkpoint(), comes_back);
    checkpoint.unwrap();
    volume.close().await.unwrap();
    let volume = bench.open().await;
    assert_eq!(read(&volume, 65_536, 4096).await, pattern(1, CHUNK)[65_536..65_536 + 4096]);
    assert_eq!(read(&volume, 0, 512).await, pattern(1, CHUNK)[..512]);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_listed_is_not_gone() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = stored(&mut bench, 1).await;
    let rule = bench.fault.add(denial().containing("/chunk/"));
    let error = volume.read(0, 4096).await.expect_err("the object is denied again and again");
    assert!(matches!(error, Error::Store(_)), "denied and listed says nothing: {error}");
    bench.fault.remove(rule);
    assert_eq!(read(&volume, 0, 4096).await, pattern(1, CHUNK)[..4096]);
}

#[tokio::test(start_paused = true)]
async fn a_read_waits_while_the_store_denies_an_object_for_a_second() {
    for part in ["/chunk/", "/map/"] {
        let mut bench = Bench::new(64 * MIB).await;
        let volume = stored(&mut bench, 1).await;
        bench.fault.add(denial().containing(part).times(4));
        assert_eq!(read(&volume, 0, 4096).await, pattern(1, CHUNK)[..4096], "{part}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_opening_survives_one_denial_of_any_object() {
    for part in ["/volume", "/head", "/root/", "/journal/", "/map/"] {
        for skip in 0..6 {
            let mut bench = Bench::new(64 * MIB).await;
            let volume = stored(&mut bench, 2).await;
            volume.write(512, pattern(3, 512), Durable).await.unwrap();
            volume.abandon().await;
            bench.fault.add(denial().containing(part).skip(skip).times(1));
            let volume = bench.open().await;
            assert_eq!(read(&volume, 512, 512).await, pattern(3, 512), "{part} {skip}");
            assert_eq!(read(&volume, 4 * MIB, 4096).await, pattern(2, CHUNK)[..4096], "{part} {skip}");
        }
    }
}

/// A single false answer must not make a referenced object look like garbage.
#[tokio::test(start_paused = true)]
async fn a_root_that_the_store_denies_once_costs_no_chunk() {
    for part in ["/root/", "/map/", "/head", "/journal/"] {
        for skip in 0..8 {
            let mut bench = Bench::new(64 * MIB).await;
            bench.options.deletion_grace = Duration::ZERO;
            let volume = stored(&mut bench, 8).await;
            volume.write(60 * MIB, pattern(9, 4096), Durable).await.unwrap();
            // The volume is not closed, so that the next opening sweeps.
            volume.abandon().await;
            let chunks = bench.keys("/chunk/");
            assert_eq!(chunks.len(), 8);
            bench.fault.add(denial().containing(part).skip(skip).times(1));
            let volume = bench.open().await;
            tokio::time::sleep(Duration::from_secs(600)).await;
            let left = bench.keys("/chunk/");
            assert!(
                chunks.iter().all(|key| left.contains(key)),
                "one denial of {part} after {skip}: {left:?}"
            );
            for n in 0..8 {
                assert!(read(&volume, n * 4 * MIB, 4 * MIB).await == pattern(n + 1, CHUNK), "chunk {n}");
            }
        }
    }
}

/// A head that is missing for a moment is no reason to stop and give up dirty data.
#[tokio::test(start_paused = true)]
async fn a_head_that_the_store_denies_once_stops_nothing() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = stored(&mut bench, 1).await;
    let lost = Rule::new(Action::FailBefore(Failure::PreconditionFailed)).on(Operation::Put);
    bench.fault.add(lost.containing("/head").times(1));
    bench.fault.add(denial().containing("/head").times(2));
    volume.write(512, pattern(2, 512), Volatile).await.unwrap();
    volume.checkpoint().await.unwrap();
    volume.flush().await.unwrap();
    assert_eq!(read(&volume, 512, 512).await, pattern(2, 512));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_was_cut_short_costs_what_was_cut_alone() {
    let mut bench = Bench::new(64 * MIB).await;
    stored(&mut bench, 2).await.close().await.unwrap();
    let first = bench.keys("/chunk/").into_iter().find(|key| key.contains("/0-")).expect("chunk 0");
    let whole = bench.memory.remove(&first).expect("it exists");
    bench.memory.insert(&first, whole.slice(..whole.len() / 2));
    let env = bench.env_with_retries();
    let id = catalog::resolve(&env, "disk").await.unwrap();
    let volume = Volume::open(&env, bench.options.clone(), id, true).await.unwrap();
    let begun = tokio::time::Instant::now();
    let error = volume.read(4 * MIB - 4096, 4096).await.expect_err("the end of the object is gone");
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "an object that is short is not asked for a minute");
    // Commit by commit: each checkpoint folds some of the changes to the bad object's range.
    for n in 0..5_u64 {
        volume.write(n * 65_536 + 512, pattern(20 + n, 512), Durable).await.unwrap();
        volume.write(4 * MIB + n * 65_536, pattern(30 + n, 512), Durable).await.unwrap();
        volume.checkpoint().await.unwrap();
    }
    volume.close().await.unwrap();
    let volume = bench.open().await;
    let before = pattern(1, CHUNK);
    for n in 0..5_u64 {
        assert_eq!(read(&volume, n * 65_536 + 512, 512).await, pattern(20 + n, 512));
        assert_eq!(read(&volume, 4 * MIB + n * 65_536, 512).await, pattern(30 + n, 512));
    }
    assert_eq!(
        read(&volume, MIB, 4096).await,
        before[1 << 20..(1 << 20) + 4096],
        "before the cut all is good"
    );
    volume.read(4 * MIB - 4096, 4096).await.expect_err("what was cut is never zeros");
    assert_eq!(read(&volume, 5 * MIB, 4096).await, pattern(2, CHUNK)[1 << 20..(1 << 20) + 4096]);
}

/// A map page that is damaged or missing costs only those parts of its range that were not written since. It
/// must not stop checkpoints, because then all writes would wait as soon as the journal is full.
#[tokio::test(start_paused = true)]
async fn a_lost_map_page_costs_what_it_located_and_stops_no_checkpoint() {
    const PAGE: u64 = 65_536;
    for is_gone in [true, false] {
        // With chunks of 64 KiB, a map page covers 256 MiB, so this disk has two of them.
        let mut bench = Bench::with_chunks(512 * MIB, PAGE).await;
        bench.options.deletion_grace = Duration::from_secs(60);
        let volume = bench.open().await;
        for at in [0, PAGE, 256 * MIB] {
            volume.write(at, pattern(at + 1, 65_536), Volatile).await.unwrap();
        }
        volume.close().await.unwrap();
        let first = bench.keys("/map/0-").pop().expect("the map page of the first 256 MiB");
        let whole = bench.memory.remove(&first).expect("it exists");
        if !is_gone {
            bench.memory.insert(&first, whole.slice(..whole.len() - 1));
        }
        let volume = bench.open().await;
        volume.read(0, 4096).await.expect_err("nobody knows where the bytes are");
        let extents = volume.allocation(0, 512 * MIB, 16).await.unwrap();
        assert!(!extents[0].hole && !extents[0].zero && extents[0].length == 256 * MIB + PAGE, "{extents:?}");
        volume.picture(64).await.unwrap();

        // Part of a page, a whole page, and part of a page that the other map page covers.
        volume.write(512, pattern(7, 512), Volatile).await.unwrap();
        volume.write(PAGE, pattern(8, 65_536), Volatile).await.unwrap();
        volume.write(256 * MIB + 512, pattern(9, 512), Volatile).await.unwrap();
        volume.zero(4 * PAGE, PAGE, Zeroing::Deallocate, Volatile).await.unwrap();
        volume.checkpoint().await.unwrap();
        volume.write(1024, pattern(10, 512), Volatile).await.unwrap();
        volume.checkpoint().await.unwrap();
        // The sweep handles the root that lost its map page, and deletes later roots.
        tokio::time::sleep(Duration::from_secs(600)).await;
        volume.abandon().await;
        assert_eq!(bench.keys("/map/0-").iter().filter(|key| **key == first).count(), 0, "it is garbage");
        assert!(bench.keys("/root/").len() <= 4, "{:?}", bench.keys("/root/"));

        let volume = bench.open().await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(read(&volume, 512, 512).await, pattern(7, 512));
        assert_eq!(read(&volume, 1024, 512).await, pattern(10, 512));
        assert_eq!(read(&volume, PAGE, PAGE).await, pattern(8, 65_536));
        assert_eq!(read(&volume, 4 * PAGE, PAGE).await, vec![0; 65_536]);
        let other = read(&volume, 256 * MIB, PAGE).await;
        assert_eq!(other[512..1024], pattern(9, 512));
        assert_eq!(other[1024..], pattern(256 * MIB + 1, 65_536)[1024..]);
        for lost in [0, 1536, 2 * PAGE, 5 * PAGE, 256 * MIB - 512] {
            let error = volume.read(lost, 512).await.expect_err("lost, never zeros");
            assert!(matches!(error, Error::Damaged { .. }), "{lost}: {error}");
            assert_eq!(error.offset(), Some(lost), "{error}");
        }
        // A TRIM makes the range readable again and removes the mark of the loss.
        volume.zero(0, 256 * MIB, Zeroing::Deallocate, Volatile).await.unwrap();
        volume.checkpoint().await.unwrap();
        assert_eq!(read(&volume, 2 * PAGE, 512).await, vec![0; 512]);
        volume.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_cut_on_its_way_is_no_damage() {
    let mut bench = Bench::new(64 * MIB).await;
    stored(&mut bench, 1).await.close().await.unwrap();
    let env = bench.env_with_retries();
    let id = catalog::resolve(&env, "disk").await.unwrap();
    let volume = Volume::open(&env, bench.options.clone(), id, true).await.unwrap();
    bench.fault.add(Rule::new(Action::Short).on(Operation::Get).containing("/chunk/").times(20));
    assert_eq!(bytes_of(&volume.read(0, 4096).await.unwrap()), pattern(1, CHUNK)[..4096]);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_fails_keeps_what_it_finished_and_tries_ever_less_often() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.pack_bytes = 4 * 4096;
    bench.options.embed_bytes = 0;
    let volume = stored(&mut bench, 8).await;
    // A part of a block in each of six chunks, and half of each of two others.
    for n in 0..6_u64 {
        volume.write(n * 4 * MIB + 512, pattern(n + 40, 512), Volatile).await.unwrap();
    }
    for n in 6..8_u64 {
        volume.write(n * 4 * MIB + MIB, pattern(n + 40, 2 << 20), Volatile).await.unwrap();
    }
    volume.flush().await.unwrap();
    bench.memory.reset_tallies();
    let rule = bench
        .fault
        .add(Rule::new(Action::FailBefore(Failure::Transient)).on(Operation::Put).containing("/map/"));
    let checkpoint = volume.checkpoint();
    tokio::pin!(checkpoint);
    let ten_minutes = tokio::time::timeout(Duration::from_secs(600), checkpoint.as_mut());
    ten_minutes.await.expect_err("no map page can be put");
    let put = |bench: &Bench| (bench.puts("/pack/").requests, bench.puts("/chunk/").requests);
    // Blocks of six chunks make one whole pack of four. The other two wait for those of further map pages.
    assert_eq!(put(&bench), (1, 2), "each pack and chunk is put once");
    let attempts = bench.memory.tally(Operation::Delete, |key| key.contains("/map/")).requests;
    assert!((40..140).contains(&attempts), "{attempts} attempts in ten minutes");
    // Each attempt makes an overlay of its own, which is of no use to the next one.
    let overlays = bench.puts("/overlay/").requests;
    assert!(overlays.abs_diff(attempts) <= 1, "{overlays} overlays in {attempts} attempts");
    assert!(bench.keys("/overlay/").len() <= 1, "{:?}", bench.keys("/overlay/"));
    bench.fault.remove(rule);
    checkpoint.await.unwrap();
    assert_eq!(put(&bench), (2, 2), "what was finished is used");
    assert_eq!(bench.puts("/pack/").bytes, pack::object_bytes(4) + pack::object_bytes(2));
    volume.close().await.unwrap();
    assert_eq!(bench.keys("/overlay/").len(), 1, "that of the last attempt");
    let volume = bench.open().await;
    for n in 0..6_u64 {
        assert_eq!(read(&volume, n * 4 * MIB + 512, 512).await, pattern(n + 40, 512));
        assert_eq!(read(&volume, n * 4 * MIB + 1024, 512).await, pattern(n + 1, CHUNK)[1024..1536]);
    }
    for n in 6..8_u64 {
        assert!(read(&volume, n * 4 * MIB + MIB, 2 * MIB).await == pattern(n + 40, 2 << 20), "{n}");
        assert!(read(&volume, n * 4 * MIB, MIB).await == pattern(n + 1, CHUNK)[..1 << 20], "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_root_table_is_noticed_before_anything_is_uploaded() {
    let mut bench = Bench::new(64 * MIB).await;
    stored(&mut bench, 1).await.close().await.unwrap();
    let env = bench.env(0);
    let id = catalog::resolve(&env, "disk").await.unwrap();
    let keys = Keys::new(id);
    let head = Head::decode(id, &bench.memory.objects()[&keys.head()]).unwrap();
    let table_key = keys.root(head.root_table);
    let mut table =
        RootTable::decode(keys.sealing(), head.root_table, &bench.memory.objects()[&table_key]).unwrap();
    let current = table.roots.pop().expect("a current root");
    // Snapshots keep all other roots alive.
    let kept = |k| KeptRoot {
        root: ObjectId { epoch: 0, k },
        parent: None,
        snapshot: Some(Snapshot { name: format!("daily-{k}"), taken_at_seconds: k }),
        retired_at_seconds: 0,
        pins: Vec::new(),
        commit: current.commit,
    };
    table.roots = (1000..1000 + 4095).map(kept).collect();
    table.roots.push(current.clone());
    bench.memory.insert(&table_key, table.encode(keys.sealing()).into());
    let volume = bench.open().await;
    volume.write(512, pattern(2, 512), Durable).await.unwrap();
    bench.memory.reset_tallies();
    let checkpoint = tokio::time::timeout(Duration::from_secs(600), volume.checkpoint());
    checkpoint.await.expect_err("the table has no room");
    let made = ["/chunk/", "/pack/", "/overlay/", "/map/", "/root/"].map(|part| bench.puts(part).requests);
    assert_eq!(made, [0; 5]);
    assert_eq!(read(&volume, 512, 512).await, pattern(2, 512));
}

/// A volume that is opened on demand is closed after a minute, but the deletion grace is an hour.
#[tokio::test(start_paused = true)]
async fn sessions_shorter_than_the_grace_leave_nothing_for_ever() {
    let mut bench = Bench::new(64 * MIB).await;
    let mut most = 0;
    for session in 0..300_u64 {
        let volume = bench.open().await;
        volume.write(512, pattern(session, 512), Durable).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        // Every third session ends without a clean close.
        if session % 3 == 0 {
            volume.abandon().await
        } else {
            volume.close().await.unwrap()
        }
        bench.now_seconds.fetch_add(60, Ordering::Relaxed);
        let objects = bench.memory.objects().into_keys();
        let all = objects.filter(|key| !key.contains("/journal/")).count();
        if session < 100 {
            most = most.max(all);
        } else {
            assert!(all <= most + 10, "{all} objects in session {session}, {most} in the first hundred");
        }
    }
    let id = catalog::resolve(&bench.env(0), "disk").await.unwrap();
    let seals =
        |key: &&String| key.starts_with(&Keys::new(id).journal()) && !key.ends_with("00000000000000000001");
    let records = bench.keys("/journal/");
    let others = records.iter().filter(|key| !seals(key)).count();
    assert!(others < 400, "{others} records besides the seals");
}
