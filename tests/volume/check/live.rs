//! A check beside a gateway that writes, makes checkpoints and deletes at once, and over a store that errs.

use std::time::Duration;

use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Rule};
use cairn::volume::check::{Depth, check};
use tokio::time::MissedTickBehavior;

use super::super::bench::Bench;
use super::*;

/// Writes, checkpoints and discards at random, until it is dropped. It makes a checkpoint in each interval of
/// the head at most, which is the pace that a gateway keeps on average.
async fn busy(bench: &mut Bench, seed: u64) {
    let mut state = seed | 1;
    let mut below = |end: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % end
    };
    let mut volume = bench.open().await;
    let mut pace = tokio::time::interval(bench.options.head_interval);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace.reset();
    for round in 0_u64.. {
        for _ in 0..1 + below(6) {
            let chunk = below(12) + if below(4) == 0 { 4096 } else { 0 };
            match below(8) {
                0 => write(&volume, chunk * CHUNK..(chunk + 1) * CHUNK, round).await,
                1 => {
                    let zeroing = cairn::effect::Zeroing::Deallocate;
                    volume.zero(chunk * CHUNK, CHUNK, zeroing, Volatile).await.unwrap();
                }
                _ => write(&volume, block(chunk, below(16)), round).await,
            }
        }
        let next = below(10);
        if (2..=6).contains(&next) {
            pace.tick().await;
        }
        match next {
            0 => {
                volume.close().await.unwrap();
                volume = bench.open().await;
                pace.reset();
            }
            1 => {
                drop(volume);
                volume = bench.open().await;
                pace.reset();
            }
            2 => volume.consolidate().await.unwrap(),
            3..=6 => volume.checkpoint().await.unwrap(),
            _ => volume.flush().await.unwrap(),
        }
        tokio::time::sleep(Duration::from_millis(below(200))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn beside_a_gateway_that_deletes_without_grace_it_never_reports_damage() {
    let (mut clean, mut unsteady) = (0, 0);
    for seed in 1..=6_u64 {
        let mut bench = Bench::with_chunks(SIZE, CHUNK).await;
        bench.options.deletion_grace = Duration::ZERO;
        bench.options.embed_bytes = if seed % 2 == 0 { 0 } else { 4096 };
        bench.options.pack_bytes = 4 * BLOCK;
        bench.options.overlays = 2;
        let beside = bench.beside();
        // Each request of the check takes a while, so that much happens between two of them.
        let slow = Duration::from_millis(if seed % 3 == 0 { 12 } else { 4 });
        beside.fault.add(Rule::new(Action::Delay(Duration::ZERO, slow)));
        let (env, changes) = env_of(&beside);
        let checks = async {
            for n in 0..25_u32 {
                let depth = [Depth::Data, Depth::Structure, Depth::References][n as usize % 3];
                let report = check(&env, "disk", depth).await.expect("it can be checked");
                assert!(!report.is_damaged() && report.omitted_findings == 0, "seed {seed}, {n}: {report:?}");
                match report.incomplete {
                    None => clean += 1,
                    Some(_) => unsteady += 1,
                }
                tokio::time::sleep(Duration::from_millis(u64::from(n) * 37 % 500)).await;
            }
        };
        tokio::select! {
            biased;
            () = checks => {}
            () = busy(&mut bench, seed * 7919) => unreachable!("it goes on"),
        }
        assert_eq!(changes.load(Ordering::Relaxed), 0);
    }
    assert!(clean > 90 && clean > 4 * unsteady, "{clean} checks ended, {unsteady} gave up");
}

/// An object that is lost is found beside a gateway that goes on, and only the lost object.
#[tokio::test(start_paused = true)]
async fn beside_a_busy_gateway_it_finds_what_is_lost() {
    for depth in [Depth::References, Depth::Structure] {
        let mut bench = Bench::with_chunks(SIZE, CHUNK).await;
        bench.options.deletion_grace = Duration::ZERO;
        let volume = bench.open().await;
        write(&volume, 100 * CHUNK..101 * CHUNK, 1).await;
        volume.checkpoint().await.unwrap();
        let lost = bench.keys("/chunk/");
        assert_eq!(lost.len(), 1);
        volume.close().await.unwrap();
        let beside = bench.beside();
        beside.fault.add(Rule::new(Action::Delay(Duration::ZERO, Duration::from_millis(8))));
        let (env, _) = env_of(&beside);
        let memory = bench.memory.clone();
        let found = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            memory.remove(&lost[0]).expect("it exists");
            check(&env, "disk", depth).await.expect("it can be checked")
        };
        tokio::select! {
            biased;
            report = found => {
                let findings: Vec<_> = report.findings.iter().map(|found| (&found.key, ranges(found))).collect();
                assert_eq!(findings, [(&lost[0], one_range(100 * CHUNK..101 * CHUNK))], "{report:?}");
            }
            () = busy(&mut bench, 5) => unreachable!("it goes on"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_errs_now_and_then_is_not_taken_for_a_damaged_volume() {
    let (bench, _) = fixture_bench().await;
    for round in 0..20 {
        for (action, operation) in [
            (Action::FailBefore(Failure::NotFound), Operation::Get),
            (Action::FlipBit, Operation::Get),
            (Action::FailAfter(Failure::Timeout), Operation::List),
        ] {
            bench.fault.add(Rule::new(action).on(operation).containing("volume/").probability(0.1));
        }
        let (env, _) = env_of(&bench);
        let report = check(&env, "disk", Depth::Data).await.expect("it can be checked");
        assert!(!report.is_damaged() && report.incomplete.is_none(), "round {round}: {report:?}");
        bench.fault.clear();
    }
}
