//! A gateway that crashes, or a store that fails, at any request of a new size leaves one size or the next, and
//! nothing else.

use std::sync::Arc;

use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::task::Tasks;
use cairn::volume::check::{self, Depth};
use cairn::volume::{Shrink, Volume, catalog};

use super::super::bench::{Bench, MIB, quiesce};
use super::super::stored::Kept;
use super::{BLOCK, CHUNK, COLLECTED, Lies, Model, bench_of, filled, length};

/// What happens while requests fail, or a gateway crashes.
async fn prepared(bench: &mut Bench) -> (Arc<Volume>, Model) {
    let volume = bench.open().await;
    let mut model = filled(&volume, 0, MIB, Lies::InPacks).await;
    model.write(&volume, MIB / 2, 5, CHUNK + BLOCK).await;
    volume.flush().await.unwrap();
    (volume, model)
}

const STEPS: [u64; 3] = [MIB / 2 + BLOCK + 512, MIB, 2 * MIB];

async fn requests_of_all_steps() -> u32 {
    let mut bench = bench_of(MIB).await;
    let (volume, mut model) = prepared(&mut bench).await;
    bench.memory.reset_tallies();
    for size in STEPS {
        model.resize(&volume, size).await;
    }
    let all = [Operation::Get, Operation::Put, Operation::Delete, Operation::List];
    let requests = all.map(|operation| bench.memory.tally(operation, |_| true).requests);
    u32::try_from(requests.iter().sum::<u64>()).unwrap()
}

/// Whether the request at which it ends takes effect or not.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_request_leaves_one_size_or_the_next() {
    let requests = requests_of_all_steps().await;
    assert!(requests > 10, "{requests}");
    for takes_effect in [false, true] {
        for last in 0..requests {
            let when = format!("crash at request {last}, which takes effect: {takes_effect}");
            let mut bench = bench_of(MIB).await;
            let (volume, model) = prepared(&mut bench).await;
            let gate = Gate::new();
            let hold = match takes_effect {
                false => Action::Hold(gate.clone()),
                true => Action::HoldAnswer(gate.clone()),
            };
            bench.fault.add(Rule::new(hold).skip(last));
            // What it was at last, and what it would have been next.
            let mut models = vec![model];
            let run = async {
                for size in STEPS {
                    let mut next = models.last().unwrap().clone();
                    next.bytes.resize(length(size), 0);
                    models.push(next);
                    volume.resize(size, Shrink::Discard).await.unwrap();
                }
                models.push(models.last().unwrap().clone());
                tokio::time::sleep(COLLECTED).await;
            };
            tokio::select! {
                biased;
                () = gate.reached(1) => {}
                () = run => {}
            }
            volume.abandon().await;
            bench.fault.clear();
            let volume = bench.open().await;
            let mut model = match models.iter().rev().take(2).find(|m| m.end() == volume.size_bytes()) {
                Some(model) => model.clone(),
                None => panic!("{when}: {} bytes", volume.size_bytes()),
            };
            model.check(&volume, &when).await;
            model.resize(&volume, 2 * MIB).await;
            model.check(&volume, &format!("{when}, grown")).await;
            volume.checkpoint().await.unwrap();
            tokio::time::sleep(COLLECTED).await;
            volume.checkpoint().await.unwrap();
            tokio::time::sleep(COLLECTED).await;
            model.check(&volume, &format!("{when}, folded")).await;
            Kept::of(&bench).assert_exact(&bench);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_fail_in_turn_are_sent_again() {
    let requests = requests_of_all_steps().await;
    for action in [Action::FailBefore(Failure::Transient), Action::FailAfter(Failure::Timeout)] {
        for failing in 0..requests {
            let when = format!("request {failing}: {action:?}");
            let mut bench = bench_of(MIB).await;
            let (volume, mut model) = prepared(&mut bench).await;
            bench.fault.add(Rule::new(action.clone()).skip(failing).times(1));
            for size in STEPS {
                model.resize(&volume, size).await;
            }
            bench.fault.clear();
            model.check(&volume, &when).await;
            volume.checkpoint().await.unwrap();
            tokio::time::sleep(COLLECTED).await;
            model.check(&volume, &when).await;
            Kept::of(&bench).assert_exact(&bench);
        }
    }
}

/// Sizes in a journal that no root has yet are found by a check, and by the next opening.
#[tokio::test(start_paused = true)]
async fn a_size_that_has_no_root_yet_is_replayed_checked_and_folded() {
    let mut bench = bench_of(MIB).await;
    let volume = bench.open().await;
    let mut model = Model::new(0, MIB);
    model.write(&volume, MIB - CHUNK, 1, CHUNK).await;
    let rule = Rule::new(Action::FailBefore(Failure::Transient)).on(Operation::Put).containing("/root/");
    bench.fault.add(rule);
    let tasks = Tasks::new();
    for size in [MIB - 512, 3 * MIB, 2 * MIB] {
        let volume = Arc::clone(&volume);
        drop(tasks.spawn(async move { volume.resize(size, Shrink::Discard).await }));
        quiesce().await;
    }
    model.bytes.truncate(length(MIB - 512));
    model.bytes.resize(length(2 * MIB), 0);
    model.write(&volume, 2 * MIB - BLOCK, 2, BLOCK).await;
    volume.flush().await.unwrap();
    model.check(&volume, "in the journal").await;
    volume.abandon().await;
    bench.fault.clear();
    let report = check::check(&bench.env(MIB), "disk", Depth::Data).await.unwrap();
    assert!(!report.is_damaged(), "{report:?}");
    assert_eq!(report.size_bytes, Some(2 * MIB));
    let volume = bench.open().await;
    model.check(&volume, "replayed").await;
    tokio::time::sleep(COLLECTED).await;
    assert_eq!(catalog::info(&bench.env(MIB), "disk").await.unwrap().size_bytes, 2 * MIB);
    model.check(&volume, "folded").await;
}
