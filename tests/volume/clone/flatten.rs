//! A clone that is flattened has the same content and needs no other volume. Until then it keeps all that it needs.

use std::sync::Arc;

use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::volume::{Environment, Flattened, SnapshotError, Volume, catalog};

use super::super::bench::Bench;
use super::super::engine::{Model, Numbers};
use super::super::stored::assert_exact_for_all;
use super::{COLLECTED, change, golden, open, process, root_of, small_bench};

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
        for nth in (0..60).step_by(3) {
            let Family { bench, parent, clone, model, .. } = Family::new().await;
            parent.close().await.unwrap();
            bench.fault.add(Rule::new(effect.clone()).skip(nth).times(1));
            // It may give up.
            drop(clone.flatten().await);
            bench.fault.clear();
            let when = format!("after {effect:?} of request {nth}");
            model.check(&clone, &when).await;
            flatten(&clone, &when).await;
            clone.close().await.unwrap();
            stands_alone(&bench, &model, &when).await;
        }
    }
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
        }
    }
    let clone = open(&process(&bench, 97), &bench.options, "clone").await;
    model.check(&clone, "it has its data").await;
    clone.close().await.unwrap();
    parent.close().await.unwrap();
}
