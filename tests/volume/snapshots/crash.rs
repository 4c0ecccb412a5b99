//! A gateway that crashes, or a store that fails, at any request of a creation or a deletion leaves the whole
//! snapshot or none, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::volume::{Error, SnapshotError, Volume};

use super::super::bench::Bench;
use super::super::engine::{Model, busy, busy_bench};
use super::super::stored::Kept;
use super::{BLOCK, COLLECTED, KIB, expect, has};

/// What is done with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Take,
    Delete,
}

impl Step {
    /// The snapshot that is taken or deleted.
    fn name(self) -> &'static str {
        match self {
            Self::Take => "new",
            Self::Delete => "old",
        }
    }

    async fn run(self, volume: &Volume) -> Result<(), SnapshotError> {
        match self {
            Self::Take => volume.snapshot(self.name()).await.map(drop),
            Self::Delete => volume.delete_snapshot(self.name()).await,
        }
    }
}

/// An open disk, and what it contained at instants.
struct Prepared {
    volume: Arc<Volume>,
    /// What the snapshot `old` contains.
    old: [Model; 2],
    /// What the last FLUSH made durable.
    flushed: [Model; 2],
    /// What every answered write has.
    newest: [Model; 2],
}

impl Prepared {
    /// A disk of two map pages with a snapshot `old`, of which much has been overwritten since. Its next
    /// checkpoint does most of what a checkpoint can do. Some changes are not even flushed.
    async fn new(bench: &mut Bench) -> Self {
        let (volume, mut models) = busy(bench).await;
        volume.snapshot("old").await.unwrap();
        let old = models.clone();
        let at = |chunk: u64, block: u64| chunk * 64 * KIB + block * BLOCK;
        for (chunk, block) in [(0, 3), (0, 5), (1, 3), (1, 5), (2, 3), (3, 3), (4, 3), (5, 5)] {
            models[0].write(&volume, at(chunk, block), 70 + chunk, 4096).await;
        }
        models[0].write(&volume, at(14, 0), 80, 64 << 10).await;
        models[0].zero(&volume, at(10, 0), 65_536, true).await;
        volume.checkpoint().await.unwrap();
        tokio::time::sleep(COLLECTED).await;
        models[0].write(&volume, at(0, 3), 81, 4096).await;
        models[0].write(&volume, at(9, 1), 82, 3 * 4096).await;
        models[1].write(&volume, 256 * super::MIB + at(2, 1), 83, 4096).await;
        volume.flush().await.unwrap();
        let flushed = models.clone();
        models[0].write(&volume, at(0, 3), 84, 4096).await;
        models[0].zero(&volume, at(14, 3), 16_384 + 512, false).await;
        models[1].write(&volume, 256 * super::MIB + at(3, 0), 85, 64 << 10).await;
        Self { volume, old, flushed, newest: models }
    }

    fn content(&self, snapshot: &str) -> &[Model; 2] {
        if snapshot == "old" { &self.old } else { &self.newest }
    }
}

/// Number of requests that a step makes, with those of the collector.
async fn requests_of(step: Step) -> u32 {
    let mut bench = busy_bench().await;
    let prepared = Prepared::new(&mut bench).await;
    bench.memory.reset_tallies();
    step.run(&prepared.volume).await.unwrap();
    tokio::time::sleep(Duration::from_secs(9)).await;
    let all = [Operation::Get, Operation::Put, Operation::Delete, Operation::List];
    let requests = all.map(|operation| bench.memory.tally(operation, |_| true).requests);
    u32::try_from(requests.iter().sum::<u64>()).unwrap()
}

fn names(volume: &Volume) -> Vec<String> {
    volume.snapshots().into_iter().map(|snapshot| snapshot.name).collect()
}

/// Asserts that every snapshot that there is has its content.
async fn check_all(bench: &Bench, prepared: &Prepared, volume: &Volume, when: &str) {
    for name in names(volume) {
        expect(bench, &name, prepared.content(&name), when).await;
    }
}

/// Judges what a new gateway finds after a step that may have been answered.
async fn judge(bench: &mut Bench, step: Step, prepared: &Prepared, is_answered: bool, when: &str) {
    let volume = bench.open().await;
    volume.checkpoint().await.unwrap();
    let found = names(&volume);
    let exists = found.iter().any(|name| name == step.name());
    match step {
        Step::Take => {
            assert!(exists || !is_answered, "the snapshot was answered, {when}");
            assert_eq!(found[0], "old", "{when}");
            assert!(!exists || has(&volume, &prepared.newest).await, "the snapshot is durable, {when}");
        }
        Step::Delete => assert!(!(exists && is_answered), "the deletion was answered, {when}"),
    }
    let newest = has(&volume, &prepared.newest).await;
    assert!(newest || has(&volume, &prepared.flushed).await, "{when}");
    check_all(bench, prepared, &volume, when).await;
    tokio::time::sleep(COLLECTED).await;
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    Kept::of(bench).assert_exact(bench);
    check_all(bench, prepared, &volume, when).await;

    // What was found is what is told: the name is taken, or free.
    match (volume.snapshot(step.name()).await, exists) {
        (Err(SnapshotError::Exists(_)), true) | (Ok(_), false) => {}
        (other, _) => panic!("{other:?}, {when}"),
    }
    for name in names(&volume) {
        volume.delete_snapshot(&name).await.unwrap();
    }
    let model = if newest { &prepared.newest } else { &prepared.flushed };
    assert!(has(&volume, model).await, "without snapshots, {when}");
    tokio::time::sleep(COLLECTED).await;
    let kept = Kept::of(bench);
    assert!(kept.snapshots.is_empty(), "{when}");
    kept.assert_exact(bench);
    volume.close().await.unwrap();
}

/// Whether the request at which it ends takes effect or not, and all requests beside it.
async fn crash_at_every_request(step: Step) {
    let requests = requests_of(step).await;
    for takes_effect in [false, true] {
        for last in 0..requests {
            let when = format!("{step:?}, crash at request {last}, which takes effect: {takes_effect}");
            let mut bench = busy_bench().await;
            let prepared = Prepared::new(&mut bench).await;
            let gate = Gate::new();
            let hold = match takes_effect {
                false => Action::Hold(gate.clone()),
                true => Action::HoldAnswer(gate.clone()),
            };
            bench.fault.add(Rule::new(hold).skip(last));
            let mut is_answered = false;
            let run = async {
                step.run(&prepared.volume).await.unwrap();
                is_answered = true;
                tokio::time::sleep(COLLECTED).await;
            };
            tokio::select! {
                biased;
                () = gate.reached(1) => {}
                () = run => {}
            }
            prepared.volume.abandon().await;
            bench.fault.clear();
            judge(&mut bench, step, &prepared, is_answered, &when).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_request_of_a_creation_leaves_the_whole_snapshot_or_none() {
    crash_at_every_request(Step::Take).await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_request_of_a_deletion_leaves_the_whole_snapshot_or_none() {
    crash_at_every_request(Step::Delete).await;
}

/// Whether the request has no effect, or has its effect and the answer is lost.
async fn fail_every_request(step: Step) {
    let requests = requests_of(step).await;
    for action in [Action::FailBefore(Failure::Transient), Action::FailAfter(Failure::Timeout)] {
        for failing in 0..requests {
            let when = format!("{step:?}, request {failing}: {action:?}");
            let mut bench = busy_bench().await;
            let prepared = Prepared::new(&mut bench).await;
            let volume = &prepared.volume;
            bench.fault.add(Rule::new(action.clone()).skip(failing).times(1));
            let answer = step.run(volume).await;
            tokio::time::sleep(COLLECTED).await;
            bench.fault.clear();
            let exists = names(volume).iter().any(|name| name == step.name());
            match (step, &answer) {
                (Step::Take, Ok(())) => assert!(exists, "{when}"),
                (Step::Delete, Ok(())) => assert!(!exists, "{when}"),
                // Nothing was published, so the call can be repeated.
                (Step::Delete, Err(SnapshotError::Volume(_))) => assert!(exists, "{when}"),
                other => panic!("{other:?}, {when}"),
            }
            check_all(&bench, &prepared, volume, &when).await;
            assert!(has(volume, &prepared.newest).await, "{when}");
            if answer.is_err() {
                step.run(volume).await.unwrap();
            }
            // Until then the journal references objects too.
            volume.checkpoint().await.unwrap();
            tokio::time::sleep(COLLECTED).await;
            Kept::of(&bench).assert_exact(&bench);
            check_all(&bench, &prepared, volume, &when).await;
            volume.close().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_creation_whose_requests_fail_in_turn_succeeds_and_leaves_nothing_behind() {
    fail_every_request(Step::Take).await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_whose_requests_fail_in_turn_leaves_nothing_behind() {
    fail_every_request(Step::Delete).await;
}

/// A deposed gateway no longer knows which names are used.
#[tokio::test(start_paused = true)]
async fn a_volume_that_stopped_says_so_whatever_the_name() {
    let mut bench = busy_bench().await;
    let first = bench.open().await;
    first.snapshot("used").await.unwrap();
    let second = bench.open().await;
    first.stopped().await;
    for name in ["used", "free"] {
        let outcomes = [
            first.snapshot(name).await.map(drop),
            first.delete_snapshot(name).await,
            first.restore(name).await,
        ];
        for outcome in outcomes {
            assert!(matches!(&outcome, Err(SnapshotError::Volume(Error::Stopped(_)))), "{name}: {outcome:?}");
        }
    }
    assert_eq!(second.snapshots().len(), 1, "{:?}", second.snapshots());
}
