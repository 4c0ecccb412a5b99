//! Whoever needs to know which clones are gone asks until that is certain, asks for all of them at the same time, and
//! keeps what was found.

use bytes::Bytes;
use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Rule};
use cairn::volume::format::root::RootTable;
use tokio::time::Instant;

use super::*;

/// How long it takes until all clones are known to be gone.
const CERTAIN: std::ops::Range<Duration> = Duration::from_secs(15)..Duration::from_secs(20);
/// Long enough for a look without a pause.
const AT_ONCE: Duration = Duration::from_secs(1);

fn table_of(bench: &Bench, volume: Uuid) -> (Keys, RootTable) {
    let (keys, objects) = (Keys::new(volume), bench.memory.objects());
    let head = Head::decode(volume, &objects[&keys.head()]).expect("a head");
    let table = RootTable::decode(keys.sealing(), head.root_table, &objects[&keys.root(head.root_table)]);
    (keys, table.expect("a root table"))
}

/// The clones that keep a snapshot of a volume, by its table in the store.
fn pins(bench: &Bench, volume: Uuid) -> Vec<Uuid> {
    table_of(bench, volume).1.roots.into_iter().flat_map(|kept| kept.pins).collect()
}

/// Pins the snapshot `golden` of a closed volume for as many clones, none of which exists.
fn pin_gone(bench: &Bench, volume: Uuid, count: usize) {
    let (keys, mut table) = table_of(bench, volume);
    let kept = table.roots.iter_mut().find(|kept| kept.snapshot.is_some()).expect("a snapshot");
    kept.pins.extend((1..=count as u128).map(Uuid::from_u128));
    bench.memory.insert(&keys.root(table.id), Bytes::from(table.encode(keys.sealing())));
}

/// A disk with a snapshot that is kept for clones of which none exists.
async fn with_gone(bench: &Bench, env: &Environment, count: usize) -> Arc<Volume> {
    let (parent, _) = golden(bench, env).await;
    let id = parent.id();
    parent.close().await.unwrap();
    pin_gone(bench, id, count);
    let parent = open(env, &bench.options, "disk").await;
    tokio::time::sleep(COLLECTED).await;
    bench.memory.reset_tallies();
    parent
}

fn requests(bench: &Bench) -> u64 {
    let is_of_clone = |key: &str| key.contains("00000000-0000-");
    let of = |operation| bench.memory.tally(operation, is_of_clone).requests;
    of(Operation::Get) + of(Operation::List)
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_the_store_denies_once_is_not_gone() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let (parent, model) = golden(&bench, &env).await;
    let clone = catalog::clone(&parent, "golden", "clone").await.unwrap().volume;
    for key in [Keys::new(clone).head(), Keys::new(clone).identity()] {
        let denied = Rule::new(Action::FailBefore(Failure::NotFound)).on(Operation::Get).prefix(&key);
        bench.fault.add(denied.times(1));
    }
    let refused = parent.delete_snapshot("golden").await.unwrap_err();
    let is_named = |clones: &[String]| clones == ["clone"];
    assert!(matches!(&refused, SnapshotError::Pinned { clones, .. } if is_named(&clones.names)), "{refused}");
    assert_eq!(pins(&bench, parent.id()), [clone]);
    tokio::time::sleep(COLLECTED).await;
    let clone = open(&env, &bench.options, "clone").await;
    model.check(&clone, "it has its data").await;
    clone.close().await.unwrap();
    parent.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_thousand_clones_that_are_gone_take_one_wait() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let parent = with_gone(&bench, &env, 1000).await;
    let begun = Instant::now();
    parent.delete_snapshot("golden").await.unwrap();
    assert!(CERTAIN.contains(&begun.elapsed()), "{:?}", begun.elapsed());
    // Five answers about each of two objects, and their listings.
    assert!(requests(&bench) <= 1000 * (2 * 5 + 3), "{} requests", requests(&bench));
    parent.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_clone_that_exists_is_enough_to_refuse_at_once() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let parent = with_gone(&bench, &env, 900).await;
    for n in 0..9 {
        catalog::clone(&parent, "golden", &format!("clone-{n}")).await.unwrap();
    }
    bench.memory.reset_tallies();
    let begun = Instant::now();
    let refused = parent.delete_snapshot("golden").await.unwrap_err();
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert!(refused.to_string().contains("its clones clone-0, clone-1, "), "{refused}");
    assert!(refused.to_string().contains(", clone-7 and 1 more: delete clones first"), "{refused}");
    assert!(requests(&bench) <= 900 * 2, "{} requests", requests(&bench));
    let names = bench.gets("name/").requests;
    assert!(names <= 8, "only the names that are shown are looked up, not {names}");
    let begun = Instant::now();
    parent.close().await.unwrap();
    let refused = catalog::delete(&env, &bench.options, "disk", false).await.unwrap_err();
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert!(refused.to_string().contains(" and 1 more"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_with_the_most_clones_has_room_for_another_once_some_are_gone() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let parent = with_gone(&bench, &env, MAX_ORIGINS).await;
    let begun = Instant::now();
    let made = catalog::clone(&parent, "golden", "clone").await.unwrap();
    assert!(CERTAIN.contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(pins(&bench, parent.id()), [made.volume]);
    parent.close().await.unwrap();

    let rest = MAX_ORIGINS - 1;
    pin_gone(&bench, parent.id(), rest);
    // Their creators may still be at work.
    for clone in (1..=rest as u128).map(Uuid::from_u128) {
        bench.memory.insert(&Keys::new(clone).identity(), Bytes::new());
    }
    let parent = open(&env, &bench.options, "disk").await;
    let begun = Instant::now();
    let refused = catalog::clone(&parent, "golden", "other").await.unwrap_err();
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    let is_full = |count: usize| count == MAX_ORIGINS;
    assert!(
        matches!(refused, CloneError::Snapshot(SnapshotError::TooManyClones { count, .. }) if is_full(count)),
        "{refused}"
    );
    parent.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_found_is_kept_although_nobody_waits_for_it() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let parent = with_gone(&bench, &env, 30).await;
    let impatient = tokio::time::timeout(AT_ONCE, parent.delete_snapshot("golden")).await;
    impatient.expect_err("it takes longer");
    assert_eq!(pins(&bench, parent.id()).len(), 30);
    tokio::time::sleep(CERTAIN.end).await;
    assert!(pins(&bench, parent.id()).is_empty());
    assert_eq!(parent.snapshots().len(), 1, "the request was withdrawn");
    let begun = Instant::now();
    parent.delete_snapshot("golden").await.unwrap();
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    tokio::time::sleep(COLLECTED).await;
    assert_exact_for_all(&bench);
    parent.close().await.unwrap();
}

/// Several requests wait for one look.
#[tokio::test(start_paused = true)]
async fn requests_at_the_same_time_ask_once() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let parent = with_gone(&bench, &env, 100).await;
    let begun = Instant::now();
    let all = futures::future::join_all((0..20).map(|_| parent.delete_snapshot("golden"))).await;
    assert!(CERTAIN.contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(all.iter().filter(|deleted| deleted.is_ok()).count(), 1);
    let is_missing = |error: &SnapshotError| matches!(error, SnapshotError::NoSuchSnapshot(_));
    assert!(all.iter().filter_map(|deleted| deleted.as_ref().err()).all(is_missing), "{all:?}");
    assert!(requests(&bench) <= 100 * 13, "{} requests", requests(&bench));
    parent.close().await.unwrap();
}

/// The holder renews its head more often than a look for clones takes.
#[tokio::test(start_paused = true)]
async fn a_volume_whose_clones_are_gone_is_deleted_under_its_holder() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let parent = with_gone(&bench, &env, 20).await;
    let (begun, other) = (Instant::now(), process(&bench, 78));
    catalog::delete(&other, &bench.options, "disk", true).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(requests(&bench) <= 20 * 13, "{} requests", requests(&bench));
    parent.abandon().await;
    let left = bench.memory.objects().into_keys().filter(|key| key.contains(&parent.id().to_string()));
    assert_eq!(left.collect::<Vec<_>>(), [""; 0]);
}
