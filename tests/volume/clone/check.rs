//! A check of a clone verifies what the clone shares. Reading the clone shows which ranges are lost.

use std::collections::BTreeSet;
use std::ops::Range;

use cairn::volume::check::{Depth, Effect, Report, Trouble, check};

use super::*;

const DEPTHS: [Depth; 3] = [Depth::References, Depth::Structure, Depth::Data];

/// A clone that has changed, and the clone `copy` that has not, of a clone that has changed, of a disk. All of them
/// are closed.
async fn family(bench: &Bench, env: &Environment) -> [Uuid; 3] {
    let (parent, model) = golden(bench, env).await;
    let child = catalog::clone(&parent, "golden", "child").await.unwrap().volume;
    let mut numbers = Numbers(11);
    change(&parent, &mut model.clone(), &mut numbers).await;
    parent.close().await.unwrap();
    let volume = open(env, &bench.options, "child").await;
    let mut model = model.clone();
    model.write(&volume, 5 * BLOCK, 1, 4096).await;
    model.write(&volume, 40 * BLOCK, 2, 4096).await;
    volume.snapshot("golden").await.unwrap();
    let grandchild = catalog::clone(&volume, "golden", "grandchild").await.unwrap().volume;
    catalog::clone(&volume, "golden", "copy").await.unwrap();
    volume.close().await.unwrap();
    let volume = open(env, &bench.options, "grandchild").await;
    model.write(&volume, 100 * BLOCK, 3, 4096).await;
    volume.close().await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    [parent.id(), child, grandchild]
}

async fn checked(env: &Environment, name: &str, depth: Depth) -> Report {
    let report = check(env, name, depth).await.unwrap();
    assert!(report.incomplete.is_none() && report.omitted_findings == 0, "{report:?}");
    report
}

/// The blocks of a volume that a process with an empty cache cannot read, as ranges of bytes.
async fn unreadable(bench: &Bench, name: &str) -> Vec<Range<u64>> {
    let volume = open(&process(&bench.beside(), 90), &bench.options, name).await;
    let mut lost: Vec<Range<u64>> = Vec::new();
    for block in (0..MIB).step_by(4096) {
        if volume.read(block, BLOCK).await.is_ok() {
            continue;
        }
        match lost.last_mut() {
            Some(last) if last.end == block => last.end += BLOCK,
            _ => lost.push(block..block + BLOCK),
        }
    }
    volume.abandon().await;
    lost
}

/// Clones of the same volume: one writes a map page of its own.
const CLONES: [&str; 2] = ["grandchild", "copy"];

/// The chunk objects, packs, overlays and map pages of some volumes.
fn shared(bench: &Bench, of: &[Uuid]) -> Vec<String> {
    let is_of = |key: &String| of.iter().any(|volume| key.contains(&volume.to_string()));
    data(bench).into_iter().filter(is_of).collect()
}

#[tokio::test(start_paused = true)]
async fn a_sound_clone_is_clean() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    family(&bench, &env).await;
    for depth in DEPTHS {
        for name in ["disk", "child", "grandchild", "copy"] {
            let report = checked(&env, name, depth).await;
            assert!(report.findings.is_empty() && report.orphans.objects == 0, "{name}: {report:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_object_that_a_clone_shares_is_missed_with_what_it_costs() {
    let mut bench = small_bench().await;
    bench.options.embed_bytes = 0;
    let env = process(&bench, 77);
    let [parent, child, _] = family(&bench, &env).await;
    let (mut kinds, mut costly) = (BTreeSet::new(), 0);
    for key in shared(&bench, &[parent, child]) {
        let kept = bench.memory.remove(&key).expect("it exists");
        for name in CLONES {
            let lost = unreadable(&bench, name).await;
            for depth in [Depth::Structure, Depth::Data] {
                let report = checked(&env, name, depth).await;
                let found: Vec<Range<u64>> = report.ranges.iter().collect();
                assert_eq!(found, lost, "{name}, {key}: {report:?}");
                if lost.is_empty() {
                    continue;
                }
                let [finding] = &report.findings[..] else { panic!("{name}, {key}: {report:?}") };
                let expected = (&key, Trouble::Missing, Effect::Eio);
                assert_eq!((&finding.key, finding.trouble, finding.effect), expected);
            }
            if !lost.is_empty() {
                let all = ["/chunk/", "/pack/", "/overlay/", "/map/"];
                kinds.extend(all.into_iter().filter(|kind| key.contains(kind)));
                costly += 1;
            }
        }
        bench.memory.insert(&key, kept);
    }
    assert_eq!(kinds.len(), 4, "{kinds:?}");
    assert!(costly > 16, "{costly}");
}

#[tokio::test(start_paused = true)]
async fn each_bit_that_a_clone_shares_is_verified() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let [parent, child, _] = family(&bench, &env).await;
    let mut found = 0;
    for key in shared(&bench, &[parent, child]) {
        let kept = bench.memory.objects()[&key].clone();
        let mut bytes = kept.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bench.memory.insert(&key, Bytes::from(bytes));
        for name in CLONES {
            let lost = unreadable(&bench, name).await;
            let report = checked(&env, name, Depth::Data).await;
            assert_eq!(report.ranges.iter().collect::<Vec<_>>(), lost, "{name}, {key}: {report:?}");
            if !lost.is_empty() {
                assert!(
                    report.findings.iter().all(|finding| finding.key == key),
                    "{name}, {key}: {report:?}"
                );
                found += 1;
            }
        }
        bench.memory.insert(&key, kept);
    }
    assert!(found > 16, "{found}");
}
