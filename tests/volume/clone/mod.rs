//! Clones: each begins with what the snapshot has, shares its objects, and keeps them.

mod check;
mod crash;
mod flatten;
mod gone;
mod hundred;
mod lost;
mod model;
mod space;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn::effect::Durability::Volatile;
use cairn::store::Operation;
use cairn::store::fault::{Action, Gate, Rule};
use cairn::volume::catalog::ChunkBytes;
use cairn::volume::format::head::Head;
use cairn::volume::format::keys::Keys;
use cairn::volume::format::root::{MAX_ORIGINS, Root};
use cairn::volume::{CloneError, Entropy, Environment, OpenError, Options, SnapshotError, Volume, catalog};
use uuid::Uuid;

use super::bench::{Bench, MIB, pattern};
use super::engine::{Model, Numbers, fill};
use super::stored::assert_exact_for_all;

const KIB: u64 = 1 << 10;
const BLOCK: u64 = 4096;
/// Longer than the collector needs if there is no grace period.
const COLLECTED: Duration = Duration::from_secs(60);

/// A disk of 1 MiB in chunks of 64 KiB, whose checkpoints pack, consolidate, relocate and merge all the time.
async fn small_bench() -> Bench {
    let mut bench = Bench::with_chunks(MIB, 64 * KIB).await;
    bench.options.pack_bytes = 8 * BLOCK;
    bench.options.overlays = 2;
    bench.options.embed_bytes = 128;
    bench.options.deletion_grace = Duration::ZERO;
    bench
}

/// A process that uses several volumes of a bench. Its numbers are those of no other process with another
/// seed.
fn process(bench: &Bench, seed: u64) -> Environment {
    Environment { entropy: Entropy::seeded(seed), ..bench.env(64 * MIB) }
}

async fn open(env: &Environment, options: &Options, name: &str) -> Arc<Volume> {
    let id = catalog::resolve(env, name).await.expect("it has a name");
    Volume::open(env, options.clone(), id, true).await.expect("opened")
}

/// Changes a disk of 1 MiB in some places.
async fn change(volume: &Volume, model: &mut Model, numbers: &mut Numbers) {
    for _ in 0..12 {
        let seed = numbers.below(1 << 40);
        let block = numbers.below(MIB / BLOCK - 16) * BLOCK;
        match numbers.below(8) {
            0 => model.zero(volume, block, 8192, seed.is_multiple_of(2)).await,
            1 => model.write(volume, block / (64 * KIB) * 64 * KIB, seed, 64 << 10).await,
            2 => model.write(volume, block + 512, seed, 1536).await,
            3 => model.write(volume, block, seed, 5 * 4096).await,
            _ => model.write(volume, block, seed, 4096).await,
        }
    }
}

/// A disk with packs and chunk objects, and a snapshot `golden` of it.
async fn golden(bench: &Bench, env: &Environment) -> (Arc<Volume>, Model) {
    let volume = open(env, &bench.options, "disk").await;
    let (mut model, mut numbers) = (Model::new(0, MIB), Numbers(5));
    fill(&volume, &mut model).await;
    change(&volume, &mut model, &mut numbers).await;
    volume.checkpoint().await.unwrap();
    change(&volume, &mut model, &mut numbers).await;
    volume.snapshot("golden").await.unwrap();
    (volume, model)
}

fn root_of(bench: &Bench, volume: Uuid) -> (Keys, Root) {
    let (keys, objects) = (Keys::new(volume), bench.memory.objects());
    let head = Head::decode(volume, &objects[&keys.head()]).expect("a head");
    let root = Root::decode(keys.sealing(), head.root, &objects[&keys.root(head.root)]).expect("a root");
    (keys, root)
}

/// Keys of everything that stores data.
fn data(bench: &Bench) -> Vec<String> {
    let kinds = ["/chunk/", "/pack/", "/overlay/", "/map/"];
    bench.memory.objects().into_keys().filter(|key| kinds.iter().any(|kind| key.contains(kind))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_golden_image_and_a_hundred_clones_of_it_cost_a_hundred_and_one_heads() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let (parent, model) = golden(&bench, &env).await;
    tokio::time::sleep(COLLECTED).await;
    let before = data(&bench);
    for n in 0..100 {
        let name = format!("clone-{n}");
        let info = catalog::clone(&parent, "golden", &name).await.unwrap();
        assert_eq!((info.size_bytes, info.chunk_bytes), (MIB, 64 * KIB));
        assert_eq!(info.clone_of, Some(parent.id()));
        assert_eq!(catalog::info(&env, &name).await.unwrap(), info, "what is told is what is found");
    }
    tokio::time::sleep(COLLECTED).await;
    assert_eq!(data(&bench), before, "everything is shared");
    assert_eq!(bench.keys("/head").len(), 101);
    assert_eq!(bench.keys("/root/").len(), 2 + 100 * 2, "each has a root and a root table");
    assert_exact_for_all(&bench);
    for n in [0, 50, 99] {
        let clone = open(&env, &bench.options, &format!("clone-{n}")).await;
        model.check(&clone, "it has what the snapshot has").await;
        assert_eq!(clone.info("x").clone_of, Some(parent.id()));
        clone.close().await.unwrap();
    }
    assert_eq!(catalog::info(&env, "disk").await.unwrap().clone_of, None);
    parent.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_clone_and_its_parent_change_without_each_other() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let (parent, mut of_parent) = golden(&bench, &env).await;
    catalog::clone(&parent, "golden", "clone").await.unwrap();
    let clone = open(&env, &bench.options, "clone").await;
    let (mut of_clone, mut numbers) = (of_parent.clone(), Numbers(9));
    for round in 0..8 {
        change(&clone, &mut of_clone, &mut numbers).await;
        change(&parent, &mut of_parent, &mut numbers).await;
        clone.checkpoint().await.unwrap();
        parent.checkpoint().await.unwrap();
        tokio::time::sleep(COLLECTED).await;
        of_clone.check(&clone, &format!("round {round}")).await;
        of_parent.check(&parent, &format!("round {round}")).await;
    }
    assert_exact_for_all(&bench);
    let (keys, root) = root_of(&bench, clone.id());
    assert_eq!(root.origins, [parent.id()]);
    clone.close().await.unwrap();
    let again = open(&env, &bench.options, "clone").await;
    assert_eq!(again.id(), keys.volume());
    of_clone.check(&again, "opened again").await;
    again.close().await.unwrap();
    parent.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_clone_needs_is_not_deleted_until_the_clone_is() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let options = &bench.options;
    let (parent, model) = golden(&bench, &env).await;
    catalog::clone(&parent, "golden", "first").await.unwrap();
    let first = open(&env, options, "first").await;
    first.snapshot("mine").await.unwrap();
    catalog::clone(&first, "mine", "second").await.unwrap();
    first.close().await.unwrap();

    let refused = parent.delete_snapshot("golden").await.unwrap_err();
    assert!(
        matches!(&refused, SnapshotError::Pinned { clones, .. } if clones.names == ["first"]),
        "{refused}"
    );
    assert!(refused.to_string().contains("its clone first:"), "{refused}");
    parent.close().await.unwrap();
    for takeover in [false, true] {
        for (name, clone) in [("disk", "first"), ("first", "second")] {
            let refused = catalog::delete(&env, options, name, takeover).await.unwrap_err();
            let is_named = |clones: &[String]| clones == [clone];
            assert!(
                matches!(&refused, OpenError::HasClones { clones } if is_named(&clones.names)),
                "{refused}"
            );
        }
    }
    let second = open(&env, options, "second").await;
    model.check(&second, "a clone of a clone").await;
    assert_eq!(root_of(&bench, second.id()).1.origins, [first.id(), parent.id()]);
    second.close().await.unwrap();

    // Deleted while nobody holds its parent, and the parent of that.
    catalog::delete(&env, options, "second", false).await.unwrap();
    catalog::delete(&env, options, "first", false).await.unwrap();
    let parent = open(&env, options, "disk").await;
    model.check(&parent, "the parent").await;
    parent.delete_snapshot("golden").await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    assert_exact_for_all(&bench);
    model.check(&parent, "without its snapshot").await;
    parent.close().await.unwrap();
    catalog::delete(&env, options, "disk", false).await.unwrap();
    let left = bench.memory.objects().into_keys().filter(|key| !key.starts_with("name/"));
    assert_eq!(left.collect::<Vec<_>>(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_cannot_be_made_leaves_nothing() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let options = &bench.options;
    let (parent, _) = golden(&bench, &env).await;
    catalog::create(&env, options, "taken", MIB, ChunkBytes(64 * KIB)).await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    let before = bench.memory.objects().into_keys().collect::<Vec<_>>();
    let refused = catalog::clone(&parent, "no", "new").await.unwrap_err();
    assert!(matches!(refused, CloneError::Snapshot(SnapshotError::NoSuchSnapshot(_))), "{refused}");
    let refused = catalog::clone(&parent, "golden", "taken").await.unwrap_err();
    assert!(matches!(refused, CloneError::Volume(OpenError::Exists(_))), "{refused}");
    let refused = catalog::clone(&parent, "golden", ".no").await.unwrap_err();
    assert!(matches!(refused, CloneError::Volume(OpenError::BadName(_))), "{refused}");
    tokio::time::sleep(COLLECTED).await;
    assert_eq!(bench.memory.objects().into_keys().collect::<Vec<_>>(), before);
    parent.close().await.unwrap();
    let refused = catalog::clone(&parent, "golden", "new").await.unwrap_err();
    assert!(matches!(refused, CloneError::Snapshot(SnapshotError::Volume(_))), "{refused}");
}

/// A root lists at most 1,024 origins.
#[tokio::test(start_paused = true)]
async fn a_clone_that_would_need_the_objects_of_too_many_volumes_is_refused() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let id = catalog::resolve(&env, "disk").await.unwrap();
    for (origins, fits) in [(MAX_ORIGINS - 1, true), (MAX_ORIGINS, false)] {
        let (keys, mut root) = root_of(&bench, id);
        root.origins = (1..=origins as u128).map(Uuid::from_u128).collect();
        bench.memory.insert(&keys.root(root.id), Bytes::from(root.encode(keys.sealing())));
        let parent = open(&env, &bench.options, "disk").await;
        parent.snapshot(&format!("with-{origins}")).await.unwrap();
        let name = format!("of-{origins}");
        let made = catalog::clone(&parent, &format!("with-{origins}"), &name).await;
        match made {
            Ok(info) if fits => {
                assert_eq!(root_of(&bench, info.volume).1.origins.len(), MAX_ORIGINS);
                open(&env, &bench.options, &name).await.close().await.unwrap();
            }
            Err(CloneError::TooDeep(1025)) if !fits => {}
            other => panic!("{origins} origins: {other:?}"),
        }
        parent.write(0, pattern(1, 4096), Volatile).await.unwrap();
        parent.checkpoint().await.unwrap();
        parent.close().await.unwrap();
    }
    // The disk needs no other volume any more. Its snapshot still lists them, and does not need them either.
    let (keys, mut root) = root_of(&bench, id);
    root.origins.clear();
    bench.memory.insert(&keys.root(root.id), Bytes::from(root.encode(keys.sealing())));
    let parent = open(&env, &bench.options, "disk").await;
    let made = catalog::clone(&parent, &format!("with-{MAX_ORIGINS}"), "new").await.unwrap();
    assert_eq!(root_of(&bench, made.volume).1.origins, [id]);
    assert!(catalog::unnamed(&env).await.unwrap().is_empty(), "nothing is left of those that were refused");
    parent.close().await.unwrap();
}

/// Holds a creator before it makes the object that `part` is in.
#[expect(clippy::disallowed_methods, reason = "a test's own task, joined by the test")]
async fn held_at(bench: &Bench, part: &str) -> (Arc<Volume>, Gate, tokio::task::JoinHandle<bool>) {
    let env = process(bench, 77);
    let (parent, _) = golden(bench, &env).await;
    let gate = Gate::new();
    let rule = Rule::new(Action::Hold(gate.clone())).on(Operation::Put).containing(part);
    bench.fault.add(rule.times(1));
    let of = Arc::clone(&parent);
    let creator = tokio::spawn(async move { catalog::clone(&of, "golden", "clone").await.is_ok() });
    gate.reached(1).await;
    (parent, gate, creator)
}

/// Between the pin and the head nobody but the creator knows of the clone.
#[tokio::test(start_paused = true)]
async fn the_snapshot_stays_while_its_clone_is_being_made() {
    let bench = small_bench().await;
    let (parent, gate, creator) = held_at(&bench, "/root/0-1").await;
    let refused = parent.delete_snapshot("golden").await.unwrap_err();
    let [unnamed] = &catalog::unnamed(&bench.env(MIB)).await.unwrap()[..] else { panic!("one volume") };
    let is_named = |clones: &[String]| clones == [unnamed.volume.to_string()];
    assert!(matches!(&refused, SnapshotError::Pinned { clones, .. } if is_named(&clones.names)), "{refused}");
    gate.release();
    assert!(creator.await.unwrap(), "it is made");
    tokio::time::sleep(COLLECTED).await;
    assert_exact_for_all(&bench);
    parent.close().await.unwrap();
}

/// Whoever deletes what a creator left need not know whether the creator still runs.
#[tokio::test(start_paused = true)]
async fn a_creator_that_comes_after_the_deletion_of_its_clone_makes_none() {
    for part in ["/root/0-1", "/root/0-2"] {
        let bench = small_bench().await;
        let (parent, gate, creator) = held_at(&bench, part).await;
        let env = bench.env(MIB);
        let [unnamed] = &catalog::unnamed(&env).await.unwrap()[..] else { panic!("one volume") };
        catalog::delete_by_id(&env, &bench.options, unnamed.volume, false).await.unwrap();
        parent.delete_snapshot("golden").await.unwrap();
        gate.release();
        // The snapshot is gone, so a second attempt fails too.
        assert!(!creator.await.unwrap(), "at {part}");
        assert!(catalog::unnamed(&env).await.unwrap().is_empty(), "at {part}");
        parent.checkpoint().await.unwrap();
        tokio::time::sleep(COLLECTED).await;
        assert_exact_for_all(&bench);
        assert_eq!(bench.keys("/head").len(), 1, "at {part}");
        parent.close().await.unwrap();
    }
}
