//! A gateway that crashes at any request of the creation or the deletion of a clone leaves the whole clone or
//! none, its parent as it was, and nothing that is not found.

use std::sync::Arc;

use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::volume::{SnapshotError, Volume, catalog};

use super::super::bench::Bench;
use super::super::engine::{Model, Numbers};
use super::super::stored::assert_exact_for_all;
use super::{COLLECTED, change, golden, open, process, small_bench};

/// What is done with a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    /// The gateway that holds its parent has nothing to do with it.
    Delete,
}

/// A disk with a snapshot, and in one case a clone of that.
struct Prepared {
    bench: Bench,
    parent: Arc<Volume>,
    /// What the snapshot has.
    golden: Model,
    /// What the parent has now, which is durable.
    newest: Model,
}

impl Prepared {
    async fn new(step: Step) -> Self {
        let bench = small_bench().await;
        let env = process(&bench, 77);
        let (parent, golden) = golden(&bench, &env).await;
        if step == Step::Delete {
            catalog::clone(&parent, "golden", "clone").await.unwrap();
            let clone = open(&env, &bench.options, "clone").await;
            change(&clone, &mut golden.clone(), &mut Numbers(3)).await;
            clone.close().await.unwrap();
        }
        let mut newest = golden.clone();
        change(&parent, &mut newest, &mut Numbers(4)).await;
        parent.checkpoint().await.unwrap();
        tokio::time::sleep(COLLECTED).await;
        Self { bench, parent, golden, newest }
    }

    async fn run(&self, step: Step) -> Result<(), String> {
        let env = process(&self.bench, 78);
        let options = &self.bench.options;
        match step {
            Step::Create => {
                let made = catalog::clone(&self.parent, "golden", "clone").await;
                made.map(drop).map_err(|error| error.to_string())
            }
            Step::Delete => {
                let deleted = catalog::delete(&env, options, "clone", false).await;
                deleted.map_err(|error| error.to_string())
            }
        }
    }

    /// Judges what others find after a step that may have been answered.
    async fn judge(&self, step: Step, is_answered: bool, when: &str) {
        let (env, options) = (process(&self.bench.beside(), 79), &self.bench.options);
        let parent = open(&env, options, "disk").await;
        self.newest.check(&parent, when).await;
        let exists = catalog::list(&env).await.unwrap().contains(&"clone".to_owned());
        match step {
            Step::Create => assert!(exists || !is_answered, "it was answered, {when}"),
            Step::Delete => assert!(!exists || !is_answered, "it was answered, {when}"),
        }
        let is_deleted_in_part = exists && catalog::info(&env, "clone").await.is_err();
        assert!(!is_deleted_in_part || step == Step::Delete, "{when}");
        if exists && !is_deleted_in_part {
            let refused = parent.delete_snapshot("golden").await.unwrap_err();
            assert!(matches!(refused, SnapshotError::Pinned { .. }), "{refused}, {when}");
            let clone = open(&env, options, "clone").await;
            if step == Step::Create {
                self.golden.check(&clone, when).await;
            }
            clone.close().await.unwrap();
        }
        if exists {
            catalog::delete(&env, options, "clone", false).await.unwrap();
        }
        for unnamed in catalog::unnamed(&env).await.unwrap() {
            catalog::delete_by_id(&env, options, unnamed.volume, false).await.unwrap();
        }
        parent.delete_snapshot("golden").await.unwrap();
        parent.checkpoint().await.unwrap();
        tokio::time::sleep(COLLECTED).await;
        assert_exact_for_all(&self.bench);
        assert_eq!((self.bench.keys("identity/").len(), self.bench.keys("/head").len()), (1, 1), "{when}");
        self.newest.check(&parent, when).await;
        parent.close().await.unwrap();
    }
}

/// Number of requests that a step makes.
async fn requests_of(step: Step) -> u32 {
    let prepared = Prepared::new(step).await;
    prepared.bench.memory.reset_tallies();
    prepared.run(step).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(9)).await;
    let all = [Operation::Get, Operation::Put, Operation::Delete, Operation::List];
    let requests = all.map(|operation| prepared.bench.memory.tally(operation, |_| true).requests);
    u32::try_from(requests.iter().sum::<u64>()).unwrap()
}

/// Whether the request at which it ends takes effect or not, and all requests beside it.
async fn crash_at_every_request(step: Step) {
    let requests = requests_of(step).await;
    assert!(requests > 10, "{requests} requests");
    for takes_effect in [false, true] {
        for last in 0..requests {
            let when = format!("{step:?}, crash at request {last}, which takes effect: {takes_effect}");
            let prepared = Prepared::new(step).await;
            let gate = Gate::new();
            let hold = match takes_effect {
                false => Action::Hold(gate.clone()),
                true => Action::HoldAnswer(gate.clone()),
            };
            prepared.bench.fault.add(Rule::new(hold).skip(last));
            let mut is_answered = false;
            let run = async {
                prepared.run(step).await.unwrap();
                is_answered = true;
                tokio::time::sleep(COLLECTED).await;
            };
            tokio::select! {
                biased;
                () = gate.reached(1) => {}
                () = run => {}
            }
            prepared.parent.abandon().await;
            prepared.bench.fault.clear();
            prepared.judge(step, is_answered, &when).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_request_of_a_creation_leaves_the_whole_clone_or_none() {
    crash_at_every_request(Step::Create).await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_request_of_a_deletion_leaves_what_is_found_and_removed() {
    crash_at_every_request(Step::Delete).await;
}

/// Whether the request has no effect, or has its effect and the answer is lost.
async fn fail_every_request(step: Step) {
    let requests = requests_of(step).await;
    for action in [Action::FailBefore(Failure::Transient), Action::FailAfter(Failure::Timeout)] {
        for failing in 0..requests {
            let when = format!("{step:?}, request {failing}: {action:?}");
            let prepared = Prepared::new(step).await;
            prepared.bench.fault.add(Rule::new(action.clone()).skip(failing).times(1));
            let answer = prepared.run(step).await;
            tokio::time::sleep(COLLECTED).await;
            prepared.bench.fault.clear();
            prepared.newest.check(&prepared.parent, &when).await;
            prepared.parent.close().await.unwrap();
            prepared.judge(step, answer.is_ok(), &when).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_creation_whose_requests_fail_in_turn_leaves_the_whole_clone_or_none() {
    fail_every_request(Step::Create).await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_whose_requests_fail_in_turn_leaves_what_is_found_and_removed() {
    fail_every_request(Step::Delete).await;
}
