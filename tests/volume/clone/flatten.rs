//! A clone that is flattened has the same content and needs no other volume. Until then it keeps all that it needs.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn::effect::Durability::Volatile;
use cairn::metrics::Metrics;
use cairn::metrics::labels::Work;
use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::volume::format::head::Head;
use cairn::volume::format::keys::{Keys, Parsed};
use cairn::volume::format::root::{KeptRoot, RootTable};
use cairn::volume::{Environment, Flattened, OpenError, Options, SnapshotError, Volume, catalog};
use uuid::Uuid;

use super::super::bench::{Bench, MIB, pattern, read};
use super::super::engine::{Model, Numbers};
use super::super::stored::assert_exact_for_all;
use super::{BLOCK, COLLECTED, KIB, change, golden, open, process, root_of, small_bench};

/// The grace period of a clone that waits for its end.
const GRACE: Duration = Duration::from_secs(600);

/// A disk, and a clone of its snapshot `golden` that has changes of its own.
struct Family {
    bench: Bench,
    env: Environment,
    parent: Arc<Volume>,
    clone: Arc<Volume>,
    /// What the clone has.
    model: Model,
}

impl Family {
    async fn new() -> Self {
        let bench = small_bench().await;
        let env = process(&bench, 77);
        let (parent, mut model) = golden(&bench, &env).await;
        catalog::clone(&parent, "golden", "clone").await.unwrap();
        let clone = open(&env, &bench.options, "clone").await;
        change(&clone, &mut model, &mut Numbers(3)).await;
        clone.checkpoint().await.unwrap();
        change(&clone, &mut model, &mut Numbers(4)).await;
        clone.flush().await.unwrap();
        tokio::time::sleep(COLLECTED).await;
        Self { bench, env, parent, clone, model }
    }
}

/// A clone of which all data is its own. Its roots from before are in their grace period.
async fn waiting() -> (Bench, Arc<Volume>) {
    let Family { mut bench, env, parent, clone, .. } = Family::new().await;
    parent.close().await.unwrap();
    clone.close().await.unwrap();
    bench.options.deletion_grace = GRACE;
    let clone = open(&env, &bench.options, "clone").await;
    let flattened = clone.flatten().await.unwrap();
    assert!(matches!(flattened, Flattened::Waits { .. }), "{flattened:?}");
    (bench, clone)
}

/// Flattens a clone, as often as it takes.
async fn flatten(volume: &Volume, when: &str) {
    for _ in 0..5 {
        match volume.flatten().await.unwrap_or_else(|error| panic!("{when}: {error}")) {
            Flattened::Done | Flattened::NoClone => return,
            Flattened::Waits { .. } => tokio::time::sleep(COLLECTED).await,
            other => panic!("{when}: {other:?}"),
        }
    }
    panic!("{when}: it waits for ever");
}

/// Checks that a clone needs nothing: its parent is deleted, and what it has is still there.
async fn stands_alone(bench: &Bench, model: &Model, when: &str) {
    let env = process(bench, 91);
    let parent = open(&env, &bench.options, "disk").await;
    parent.delete_snapshot("golden").await.unwrap_or_else(|error| panic!("{when}: {error}"));
    parent.close().await.unwrap();
    let deleted = catalog::delete(&env, &bench.options, "disk", false).await;
    deleted.unwrap_or_else(|error| panic!("{when}: {error}"));
    let clone = open(&process(bench, 92), &bench.options, "clone").await;
    let id = clone.id().to_string();
    let others =
        bench.memory.objects().into_keys().filter(|key| !key.starts_with("name/") && !key.contains(&id));
    assert_eq!(others.collect::<Vec<_>>(), [""; 0], "{when}");
    model.check(&clone, when).await;
    clone.checkpoint().await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    assert_exact_for_all(bench);
    model.check(&clone, when).await;
    clone.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_is_flattened_keeps_its_content_and_needs_no_other_volume() {
    let Family { bench, env, parent, clone, mut model } = Family::new().await;
    let refused = parent.delete_snapshot("golden").await.unwrap_err();
    assert!(matches!(refused, SnapshotError::Pinned { .. }), "{refused}");
    assert_eq!(parent.flatten().await.unwrap(), Flattened::NoClone);
    flatten(&clone, "at first").await;
    assert!(root_of(&bench, clone.id()).1.origins.is_empty());
    assert_eq!(catalog::info(&env, "clone").await.unwrap().clone_of, None);
    model.check(&clone, "flattened").await;
    change(&clone, &mut model, &mut Numbers(5)).await;
    clone.close().await.unwrap();
    parent.close().await.unwrap();
    stands_alone(&bench, &model, "in the end").await;
}

/// Clients write while a clone is flattened, and take snapshots that can be restored.
#[tokio::test(start_paused = true)]
async fn a_clone_is_flattened_while_it_is_written() {
    let Family { bench, env, parent, clone, mut model } = Family::new().await;
    let flattening = flatten(&clone, "while it is written");
    let writing = async {
        for n in 0..6 {
            change(&clone, &mut model, &mut Numbers(20 + n)).await;
            clone.flush().await.unwrap();
            model.check(&clone, "while it is flattened").await;
        }
    };
    tokio::join!(flattening, writing);
    model.check(&clone, "flattened").await;
    clone.snapshot("mine").await.unwrap();
    let at_snapshot = model.clone();
    change(&clone, &mut model, &mut Numbers(30)).await;
    clone.restore("mine").await.unwrap();
    let clone = open(&env, &bench.options, "clone").await;
    assert!(root_of(&bench, clone.id()).1.origins.is_empty());
    at_snapshot.check(&clone, "restored").await;
    clone.delete_snapshot("mine").await.unwrap();
    clone.close().await.unwrap();
    parent.close().await.unwrap();
    stands_alone(&bench, &at_snapshot, "in the end").await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_from_before_keeps_the_tie_until_it_is_deleted() {
    let Family { bench, env, parent, clone, mut model } = Family::new().await;
    clone.snapshot("before").await.unwrap();
    let before = model.clone();
    change(&clone, &mut model, &mut Numbers(6)).await;
    let held = Flattened::Held { snapshots: vec!["before".to_owned()] };
    assert_eq!(clone.flatten().await.unwrap(), held);
    tokio::time::sleep(COLLECTED).await;
    assert_eq!(clone.flatten().await.unwrap(), held);
    clone.snapshot("after").await.unwrap();
    let refused = parent.delete_snapshot("golden").await.unwrap_err();
    assert!(matches!(refused, SnapshotError::Pinned { .. }), "{refused}");
    tokio::time::sleep(COLLECTED).await;
    clone.restore("before").await.unwrap();
    let clone = open(&env, &bench.options, "clone").await;
    before.check(&clone, "restored").await;
    clone.restore("after").await.unwrap();
    let clone = open(&env, &bench.options, "clone").await;
    model.check(&clone, "restored again").await;
    clone.delete_snapshot("before").await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    flatten(&clone, "without its snapshot").await;
    // This one was taken while the root still listed the parent, which it does not need.
    clone.restore("after").await.unwrap();
    let clone = open(&env, &bench.options, "clone").await;
    assert!(root_of(&bench, clone.id()).1.origins.is_empty());
    clone.delete_snapshot("after").await.unwrap();
    clone.close().await.unwrap();
    parent.close().await.unwrap();
    stands_alone(&bench, &model, "in the end").await;
}

/// A snapshot from before a clone was flattened may list the parent without a need for it. So may a clone of this
/// snapshot. They are not in the way of the parent's deletion, even if all volumes are asked.
#[tokio::test(start_paused = true)]
async fn what_was_cloned_from_a_clone_that_is_flattened_does_not_need_its_parent() {
    let Family { bench, env, parent, clone, model } = Family::new().await;
    clone.snapshot("shared").await.unwrap();
    assert_eq!(clone.flatten().await.unwrap(), Flattened::Held { snapshots: vec!["shared".to_owned()] });
    clone.snapshot("own").await.unwrap();
    let early = catalog::clone(&clone, "own", "early").await.unwrap().volume;
    clone.delete_snapshot("shared").await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    flatten(&clone, "with a clone of its own").await;
    let late = catalog::clone(&clone, "own", "late").await.unwrap().volume;
    assert_eq!(root_of(&bench, early).1.origins, [clone.id(), parent.id()]);
    assert_eq!(root_of(&bench, late).1.origins, [clone.id()]);
    let middle = Keys::new(clone.id()).head();
    clone.close().await.unwrap();
    parent.close().await.unwrap();

    let keys = Keys::new(parent.id());
    let head = Head::decode(parent.id(), &bench.memory.objects()[&keys.head()]).expect("a head");
    bench.memory.remove(&keys.root(head.root_table)).expect("it exists");
    // If the one in the middle cannot be read, nobody knows what its clone needs.
    let kept = bench.memory.remove(&middle).expect("it exists");
    let refused = catalog::delete(&env, &bench.options, "disk", true).await.unwrap_err();
    assert!(
        matches!(&refused, OpenError::HasClones { .. }) && refused.to_string().contains("early"),
        "{refused}"
    );
    bench.memory.insert(&middle, kept);
    catalog::delete(&env, &bench.options, "disk", true).await.unwrap();
    for name in ["clone", "early", "late"] {
        let volume = open(&env, &bench.options, name).await;
        model.check(&volume, name).await;
        volume.close().await.unwrap();
    }
}

/// A clone of a clone reads from both: the one in the middle keeps its tie for it.
#[tokio::test(start_paused = true)]
async fn a_clone_of_a_clone_keeps_the_tie_of_its_parent() {
    let Family { bench, env, parent, clone, model } = Family::new().await;
    clone.snapshot("mine").await.unwrap();
    catalog::clone(&clone, "mine", "leaf").await.unwrap();
    let held = Flattened::Held { snapshots: vec!["mine".to_owned()] };
    assert_eq!(clone.flatten().await.unwrap(), held);
    let leaf = open(&env, &bench.options, "leaf").await;
    flatten(&leaf, "the leaf").await;
    clone.delete_snapshot("mine").await.unwrap();
    flatten(&clone, "the one in the middle").await;
    clone.close().await.unwrap();
    parent.close().await.unwrap();
    model.check(&leaf, "the leaf").await;
    leaf.close().await.unwrap();
    catalog::delete(&env, &bench.options, "leaf", false).await.unwrap();
    stands_alone(&bench, &model, "in the end").await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_request_of_a_flattening_loses_nothing_and_it_can_be_repeated() {
    for last in 0.. {
        let Family { bench, parent, clone, model, .. } = Family::new().await;
        parent.close().await.unwrap();
        let gate = Gate::new();
        bench.fault.add(Rule::new(Action::HoldAnswer(gate.clone())).skip(last).times(1));
        let is_cut = tokio::select! {
            biased;
            () = flatten(&clone, "not cut") => false,
            () = gate.reached(1) => true,
        };
        clone.abandon().await;
        let when = format!("after a crash at request {last}");
        let beside = bench.beside();
        let clone = open(&process(&beside, 93), &beside.options, "clone").await;
        model.check(&clone, &when).await;
        flatten(&clone, &when).await;
        clone.close().await.unwrap();
        stands_alone(&beside, &model, &when).await;
        if !is_cut {
            assert!(last > 20, "a flattening takes more than {last} requests");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_costs_nothing_and_it_can_be_repeated() {
    for effect in [Action::FailBefore(Failure::Transient), Action::FailAfter(Failure::Transient)] {
        for nth in 0.. {
            let Family { bench, parent, clone, model, .. } = Family::new().await;
            parent.close().await.unwrap();
            // It is open, and counts the request that fails.
            let gate = Gate::new();
            gate.release();
            bench.fault.add(Rule::new(Action::Hold(gate.clone())).skip(nth).times(1));
            bench.fault.add(Rule::new(effect.clone()).skip(nth).times(1));
            // It may give up.
            drop(clone.flatten().await);
            bench.fault.clear();
            let has_failed = gate.count() > 0;
            let when = format!("after {effect:?} of request {nth}");
            model.check(&clone, &when).await;
            flatten(&clone, &when).await;
            clone.close().await.unwrap();
            stands_alone(&bench, &model, &when).await;
            if !has_failed {
                assert!(nth > 10, "a flattening takes more than {nth} requests");
                break;
            }
        }
    }
}

/// However often somebody asks meanwhile.
#[tokio::test(start_paused = true)]
async fn one_task_waits_for_the_end_of_the_grace_period_and_does_the_rest() {
    let (bench, clone) = waiting().await;
    let tasks = async || {
        // Whatever is short-lived has ended then.
        tokio::time::sleep(Duration::from_secs(1)).await;
        tokio::runtime::Handle::current().metrics().num_alive_tasks()
    };
    let before = tasks().await;
    for _ in 0..10 {
        let flattened = clone.flatten().await.unwrap();
        assert!(matches!(flattened, Flattened::Waits { .. }), "{flattened:?}");
    }
    assert_eq!(tasks().await, before);
    // By the clock of the bench, the grace period begins anew if it is asked for too early.
    tokio::time::sleep(2 * GRACE + COLLECTED).await;
    assert!(root_of(&bench, clone.id()).1.origins.is_empty());
    clone.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_done_in_the_end_although_the_store_fails_for_a_while() {
    let (bench, clone) = waiting().await;
    let failing = Rule::new(Action::FailBefore(Failure::Transient)).on(Operation::Get).containing("/root/");
    bench.fault.add(failing);
    tokio::time::sleep(GRACE + COLLECTED).await;
    assert!(!root_of(&bench, clone.id()).1.origins.is_empty());
    bench.fault.clear();
    tokio::time::sleep(2 * GRACE + COLLECTED).await;
    assert!(root_of(&bench, clone.id()).1.origins.is_empty());
    clone.close().await.unwrap();
}

/// Nothing else is folded during a step.
#[tokio::test(start_paused = true)]
async fn a_step_is_over_after_64_map_pages() {
    const PAGES: u64 = 65;
    let bench = Bench::with_chunks(PAGES * 256 * MIB, 64 * KIB).await;
    let env = process(&bench, 77);
    let parent = open(&env, &bench.options, "disk").await;
    for page in 0..PAGES {
        parent.write(page * 256 * MIB, pattern(page + 1, 4096), Volatile).await.unwrap();
    }
    parent.snapshot("golden").await.unwrap();
    catalog::clone(&parent, "golden", "clone").await.unwrap();
    let metrics = Metrics::new().volume("clone");
    let options = Options { metrics: Some(metrics.clone()), ..bench.options.clone() };
    let clone = open(&env, &options, "clone").await;
    let before = clone.usage().checkpoints;
    let second_step = Gate::new();
    let of_chunks = Rule::new(Action::Hold(second_step.clone())).on(Operation::Put).containing("/chunk/");
    bench.fault.add(of_chunks.skip(64).times(1));
    let mut flattening = pin!(clone.flatten());
    tokio::select! {
        biased;
        flattened = &mut flattening => panic!("{flattened:?} before the second step"),
        () = second_step.reached(1) => {}
    }
    assert_eq!(metrics.flatten_remaining_bytes.get(), 256 << 20, "the last map page is left");
    second_step.release();
    let flattened = flattening.await.unwrap();
    assert!(matches!(flattened, Flattened::Waits { .. }), "{flattened:?}");
    assert_eq!(clone.usage().checkpoints, before + 2, "each step makes a checkpoint");
    assert_eq!(metrics.flatten_remaining_bytes.get(), 0);
    let adopted = metrics.background_bytes.of(Work::Adopt).get();
    assert_eq!(adopted, PAGES * 64 * KIB, "one chunk of each map page");
    for page in 0..PAGES {
        assert!(read(&clone, page * 256 * MIB, BLOCK).await == pattern(page + 1, 4096), "map page {page}");
    }
    clone.close().await.unwrap();
    parent.close().await.unwrap();
}

/// What cannot be read may come back, so it is not recorded as lost.
#[tokio::test(start_paused = true)]
async fn what_the_parent_has_lost_is_left_as_it_is() {
    let Family { bench, parent, clone, model, .. } = Family::new().await;
    parent.close().await.unwrap();
    clone.close().await.unwrap();
    let of_parent = parent.id().to_string();
    let all = bench.keys("/chunk/").into_iter().chain(bench.keys("/map/")).chain(bench.keys("/overlay/"));
    let mut unreadable = 0;
    let keys: Vec<String> = all.filter(|key| key.contains(&of_parent)).collect();
    for (seed, key) in (1000..).step_by(2).zip(keys) {
        let lost = bench.memory.remove(&key).expect("it exists");
        let clone = open(&process(&bench, seed), &bench.options, "clone").await;
        match clone.flatten().await.unwrap() {
            Flattened::Unreadable { chunks } => unreadable += chunks,
            // The first round has made the rest its own, and the changes cover this one.
            Flattened::Waits { .. } | Flattened::Done | Flattened::NoClone => {}
            other => panic!("{key}: {other:?}"),
        }
        clone.close().await.unwrap();
        bench.memory.insert(&key, lost);
        let clone = open(&process(&bench, seed + 1), &bench.options, "clone").await;
        model.check(&clone, &key).await;
        clone.close().await.unwrap();
    }
    assert!(unreadable > 0, "some of it was needed");
    let clone = open(&process(&bench, 96), &bench.options, "clone").await;
    flatten(&clone, "when all is back").await;
    clone.close().await.unwrap();
    stands_alone(&bench, &model, "in the end").await;
}

/// A client has changed a block of what cannot be read, and no checkpoint was made since: the rest may come back.
#[tokio::test(start_paused = true)]
async fn a_change_of_a_chunk_that_the_parent_has_lost_does_not_give_up_the_rest() {
    let mut unreadable = 0;
    for is_damaged in [false, true] {
        for nth in 0.. {
            let Family { bench, parent, clone, mut model, .. } = Family::new().await;
            parent.close().await.unwrap();
            clone.close().await.unwrap();
            let of_parent = Keys::new(parent.id());
            let chunk = |key: String| match of_parent.parse(&key) {
                Some(Parsed::Chunk(index, _)) => Some((key, u64::from(index.0))),
                _ => None,
            };
            let Some((key, index)) = bench.keys("/chunk/").into_iter().filter_map(chunk).nth(nth) else {
                assert!(nth > 0, "the parent has chunks");
                break;
            };
            let whole = bench.memory.remove(&key).expect("it exists");
            if is_damaged {
                bench.memory.insert(&key, whole.iter().map(|byte| !byte).collect::<Bytes>());
            }
            let clone = open(&process(&bench, 94), &bench.options, "clone").await;
            model.write(&clone, index * 64 * KIB + 3 * BLOCK, 5, 4096).await;
            clone.flush().await.unwrap();
            match clone.flatten().await.unwrap() {
                Flattened::Unreadable { chunks } => unreadable += chunks,
                // The changes from before cover it.
                Flattened::Waits { .. } | Flattened::Done => {}
                other => panic!("{key}: {other:?}"),
            }
            // No further checkpoint is made.
            clone.abandon().await;
            bench.memory.insert(&key, whole);
            let clone = open(&process(&bench, 95), &bench.options, "clone").await;
            model.check(&clone, &key).await;
            flatten(&clone, &key).await;
            model.check(&clone, &key).await;
            clone.close().await.unwrap();
        }
    }
    assert!(unreadable > 0, "some of it was needed");
}

/// The clones that keep the snapshot `golden` of a disk, as its root table says.
fn pins(bench: &Bench, disk: Uuid) -> Vec<Uuid> {
    let (keys, objects) = (Keys::new(disk), bench.memory.objects());
    let id = Head::decode(disk, &objects[&keys.head()]).expect("a head").root_table;
    let table = RootTable::decode(keys.sealing(), id, &objects[&keys.root(id)]).expect("a root table");
    let is_golden =
        |kept: &KeptRoot| kept.snapshot.as_ref().is_some_and(|snapshot| snapshot.name == "golden");
    table.roots.into_iter().find(is_golden).expect("the snapshot").pins
}

/// What the store denies of a clone that is tied never frees the snapshot.
#[tokio::test(start_paused = true)]
async fn one_false_answer_about_a_clone_frees_no_snapshot() {
    let Family { bench, parent, clone, model, .. } = Family::new().await;
    clone.close().await.unwrap();
    let of_clone = clone.id().to_string();
    for failure in [Failure::NotFound, Failure::Rejected] {
        for nth in 0..6 {
            let denied = Rule::new(Action::FailBefore(failure)).on(Operation::Get).containing(&of_clone);
            bench.fault.add(denied.skip(nth).times(1));
            parent.delete_snapshot("golden").await.unwrap_err();
            bench.fault.clear();
            assert_eq!(pins(&bench, parent.id()), [clone.id()], "{failure:?} of GET {nth}");
        }
    }
    let clone = open(&process(&bench, 97), &bench.options, "clone").await;
    model.check(&clone, "it has its data").await;
    clone.close().await.unwrap();
    parent.close().await.unwrap();
}
