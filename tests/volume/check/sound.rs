//! Volumes with which nothing is wrong, in every state that a volume can be in.

use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::effect::Zeroing;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::store::{MemoryStore, Operation};
use cairn::volume::check::{Depth, ObjectKind, Purpose, check};
use cairn::volume::{OpenError, catalog};

use super::super::bench::{Bench, pattern};
use super::super::stored::Stored;
use super::*;

#[tokio::test(start_paused = true)]
async fn a_sound_volume_is_sound_in_every_state() {
    let mut bench = Bench::with_chunks(SIZE, CHUNK).await;
    let report = assert_sound(&bench, "new").await;
    assert_eq!((report.orphans.objects, report.notes.len()), (0, 0));
    let written = fixture(&mut bench).await;
    let report = assert_sound(&bench, "after a crash, with a journal").await;
    assert_eq!((report.orphans.objects, report.notes.len()), (0, 0), "{report:?}");
    assert_eq!(report.epoch, Some(2));
    assert!(written.packed.len() == 4 && report.usage.of(ObjectKind::Pack, Purpose::Live).objects == 1);
    let volume = bench.open().await;
    assert_sound(&bench, "taken over").await;
    volume.checkpoint().await.unwrap();
    assert_sound(&bench, "after a checkpoint").await;
    volume.zero(0, CHUNK + 512, Zeroing::Deallocate, Volatile).await.unwrap();
    volume.zero(MAP_PAGE, SIZE - MAP_PAGE, Zeroing::Allocate, Volatile).await.unwrap();
    assert_sound(&bench, "with uncommitted changes").await;
    volume.flush().await.unwrap();
    assert_sound(&bench, "with discarded ranges in the journal").await;
    volume.checkpoint().await.unwrap();
    assert_sound(&bench, "with discarded ranges and a uniform map page").await;
    volume.consolidate().await.unwrap();
    assert_sound(&bench, "consolidated").await;
    tokio::time::sleep(SETTLED).await;
    let report = assert_sound(&bench, "consolidated and settled").await;
    let garbage = report.usage.sum(|_, purpose| purpose != Purpose::Live);
    assert_eq!((garbage.objects, report.orphans.objects), (0, 0), "{report:?}");
    volume.close().await.unwrap();
    assert_sound(&bench, "closed").await;
}

#[tokio::test(start_paused = true)]
async fn with_overlays_in_the_map_pages_and_small_packs_it_is_sound_too() {
    let mut bench = Bench::with_chunks(SIZE, CHUNK).await;
    bench.options.pack_bytes = 4 * BLOCK;
    bench.options.overlays = 2;
    bench.options.deletion_grace = Duration::ZERO;
    let volume = bench.open().await;
    for round in 0..12_u64 {
        for n in 0..6 {
            write(&volume, block((round * 5 + n * 3) % 40, (round + n) % 16), round * 10 + n).await;
        }
        if round % 4 == 3 {
            volume.zero(round * CHUNK + 512, 3 * CHUNK, Zeroing::Allocate, Volatile).await.unwrap();
        }
        volume.checkpoint().await.unwrap();
        assert_sound(&bench, &format!("round {round}")).await;
    }
}

/// The bytes that the report counts are those of the bucket, and what it calls live is what the root references.
#[tokio::test(start_paused = true)]
async fn usage_is_what_lies_in_the_bucket() {
    let (mut bench, _) = fixture_bench().await;
    bench.options.deletion_grace = Duration::from_secs(3600);
    let volume = bench.open().await;
    write(&volume, 0..3 * CHUNK, 300).await;
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(SETTLED).await;
    let report = checked(&bench, Depth::References).await;
    let objects = bench.memory.objects();
    let below = |part: &str| {
        let found = objects.iter().filter(|(key, _)| key.contains(part));
        found.map(|(_, bytes)| bytes.len() as u64).sum::<u64>()
    };
    for (kind, part) in [
        (ObjectKind::Chunk, "/chunk/"),
        (ObjectKind::Pack, "/pack/"),
        (ObjectKind::Overlay, "/overlay/"),
        (ObjectKind::MapPage, "/map/"),
        (ObjectKind::Root, "/root/"),
        (ObjectKind::Record, "/journal/"),
        (ObjectKind::Head, "/head"),
    ] {
        assert_eq!(report.usage.sum(|found, _| found == kind).bytes, below(part), "{kind:?}");
    }
    let stored = Stored::of(&bench);
    let live: u64 = stored.keys.iter().map(|key| objects[key].len() as u64).sum();
    let counted =
        [ObjectKind::Chunk, ObjectKind::Pack, ObjectKind::Overlay, ObjectKind::MapPage, ObjectKind::Root];
    let found = report.usage.sum(|kind, purpose| counted.contains(&kind) && purpose == Purpose::Live);
    assert_eq!((found.objects, found.bytes), (stored.keys.len() as u64, live));
    // Three chunk objects were replaced, and a root still references them.
    assert!(report.usage.of(ObjectKind::Chunk, Purpose::Waiting).objects >= 3, "{:?}", report.usage);
    assert_eq!(report.orphans.objects, 0);
    assert_eq!(report.usage.space, stored.root.space());
}

/// What a checkpoint leaves that was cut short: nothing is damaged, and what a later gateway has not swept yet are
/// orphans.
#[tokio::test(start_paused = true)]
async fn leftovers_of_a_crash_are_orphans_and_no_damage() {
    let mut orphans = 0;
    for last in 0..12 {
        let (mut bench, _) = fixture_bench().await;
        let volume = bench.open().await;
        for chunk in 0..3 {
            write(&volume, block(chunk, 7), 400 + chunk).await;
        }
        write(&volume, 3 * CHUNK..4 * CHUNK, 404).await;
        volume.flush().await.unwrap();
        let gate = Gate::new();
        bench.fault.add(Rule::new(Action::HoldAnswer(gate.clone())).skip(last));
        tokio::select! {
            biased;
            () = gate.reached(1) => {}
            _ = volume.checkpoint() => break,
        }
        drop(volume);
        bench.fault.clear();
        let when = format!("after a crash at request {last} of a checkpoint");
        let report = assert_sound(&bench, &when).await;
        assert_eq!(report.orphans.objects, 0, "whether that gateway still runs is unknown");
        // The next gateway cannot delete anything yet.
        bench.fault.add(Rule::new(Action::FailBefore(Failure::Transient)).on(Operation::Delete));
        let volume = bench.open().await;
        bench.fault.clear();
        bench.fault.add(Rule::new(Action::FailBefore(Failure::Transient)).on(Operation::Delete));
        tokio::time::sleep(SETTLED).await;
        let report = assert_sound(&bench, &format!("{when}, and another gateway")).await;
        orphans += report.orphans.objects;
        bench.fault.clear();
        tokio::time::sleep(SETTLED).await;
        let report = assert_sound(&bench, &format!("{when}, and a sweep")).await;
        assert_eq!(report.orphans.objects, 0, "{when}: {:?}", report.orphans);
        drop(volume);
    }
    assert!(orphans > 0, "some of these crashes left an object behind");
}

#[tokio::test(start_paused = true)]
async fn it_reads_no_data_unless_asked_and_lists_instead_of_asking_for_each_object() {
    let mut bench = Bench::with_chunks(SIZE, CHUNK).await;
    // Sorted listings in pages of 1,000.
    bench.memory = MemoryStore::new();
    bench.fault = cairn::store::Fault::new(Arc::new(bench.memory.clone()), 1);
    catalog::create(&bench.env(MIB), &bench.options, "disk", SIZE, catalog::ChunkBytes(CHUNK)).await.unwrap();
    let volume = bench.open().await;
    volume.write(0, pattern(1, 1 << 25), Volatile).await.unwrap();
    volume.close().await.unwrap();
    let chunks = bench.keys("/chunk/").len();
    assert_eq!(chunks, 512);
    bench.memory.reset_tallies();
    let report = assert_sound_structure(&bench).await;
    assert_eq!(bench.gets("/chunk/").requests, 0);
    assert!(report.requests < 20, "{report:?}");
    let told = bench.memory.tally(Operation::Get, |_| true).requests
        + bench.memory.tally(Operation::List, |_| true).requests;
    assert_eq!(report.requests, told);
    assert_eq!(report.read_bytes, bench.memory.tally(Operation::Get, |_| true).bytes);
    bench.memory.reset_tallies();
    checked(&bench, Depth::Data).await;
    let read = bench.gets("/chunk/");
    let stored: u64 = bench
        .memory
        .objects()
        .iter()
        .filter(|(key, _)| key.contains("/chunk/"))
        .map(|(_, b)| b.len() as u64)
        .sum();
    assert_eq!((read.requests, read.bytes), (512, stored), "each byte once");
}

async fn assert_sound_structure(bench: &Bench) -> cairn::volume::check::Report {
    let report = checked(bench, Depth::Structure).await;
    assert!(!report.is_damaged(), "{report:?}");
    report
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_checked_is_an_error_and_no_damage() {
    let (mut bench, _) = fixture_bench().await;
    let (env, _) = env_of(&bench);
    assert!(matches!(check(&env, "other", Depth::Structure).await, Err(OpenError::NoSuchVolume(_))));
    assert!(matches!(check(&env, "a/b", Depth::Structure).await, Err(OpenError::BadName(_))));
    for operation in [Operation::Get, Operation::List] {
        bench.fault.add(Rule::new(Action::FailBefore(Failure::Denied)).on(operation).skip(3));
        assert!(matches!(check(&env, "disk", Depth::Structure).await, Err(OpenError::Store(_))));
        bench.fault.clear();
    }
    let volume = bench.open().await;
    volume.close().await.unwrap();
    bench
        .fault
        .add(Rule::new(Action::FailBefore(Failure::Denied)).on(Operation::Delete).containing("/chunk/"));
    let env_of_deletion = bench.env(MIB);
    cairn::volume::catalog::delete(&env_of_deletion, &bench.options, "disk", false)
        .await
        .expect_err("denied");
    let told = check(&env, "disk", Depth::Structure).await;
    assert!(matches!(told, Err(OpenError::NoSuchVolume(_) | OpenError::Deleting)), "{told:?}");
}
