//! A check of a clone verifies what the clone shares. Reading the clone shows which ranges are lost.

use std::collections::BTreeSet;
use std::ops::Range;

use cairn::volume::check::{Depth, Effect, Report, Trouble, check};

use super::*;

const DEPTHS: [Depth; 3] = [Depth::References, Depth::Structure, Depth::Data];

/// A clone that has changed, of a clone that has changed, of a disk; all of them closed.
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

/// The blocks of a volume that cannot be read, as ranges of bytes.
async fn unreadable(volume: &Volume) -> Vec<Range<u64>> {
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
    lost
}

/// The chunk objects, packs, overlays and map pages that a volume reads, of which volume they may be.
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
        for name in ["disk", "child", "grandchild"] {
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
        // Another process, which has nothing in its cache.
        let volume = open(&process(&bench.beside(), 90), &bench.options, "grandchild").await;
        let lost = unreadable(&volume).await;
        volume.abandon().await;
        for depth in [Depth::Structure, Depth::Data] {
            let report = checked(&env, "grandchild", depth).await;
            let found: Vec<Range<u64>> = report.ranges.iter().collect();
            assert_eq!(found, lost, "{key}: {report:?}");
            if lost.is_empty() {
                continue;
            }
            let [finding] = &report.findings[..] else { panic!("{key}: {report:?}") };
            assert_eq!(
                (&finding.key, finding.trouble, finding.effect),
                (&key, Trouble::Missing, Effect::Eio)
            );
        }
        if !lost.is_empty() {
            kinds.extend(
                ["/chunk/", "/pack/", "/overlay/", "/map/"].into_iter().filter(|kind| key.contains(kind)),
            );
            costly += 1;
        }
        bench.memory.insert(&key, kept);
    }
    assert_eq!(kinds.len(), 4, "{kinds:?}");
    assert!(costly > 8, "{costly}");
}

#[tokio::test(start_paused = true)]
async fn each_bit_that_a_clone_shares_is_verified() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let [parent, child, _] = family(&bench, &env).await;
    let mut found = 0;
    for key in shared(&bench, &[parent, child]) {
        let kept = bench.memory.objects()[&key].clone();
        // A byte of a frame, unless the object has none.
        let mut bytes = kept.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bench.memory.insert(&key, Bytes::from(bytes));
        let volume = open(&process(&bench.beside(), 90), &bench.options, "grandchild").await;
        let lost = unreadable(&volume).await;
        volume.abandon().await;
        let report = checked(&env, "grandchild", Depth::Data).await;
        assert_eq!(report.ranges.iter().collect::<Vec<_>>(), lost, "{key}: {report:?}");
        if !lost.is_empty() {
            assert!(report.findings.iter().all(|finding| finding.key == key), "{key}: {report:?}");
            found += 1;
        }
        // Only what the volume itself owns is another matter.
        bench.memory.insert(&key, kept);
    }
    assert!(found > 8, "{found}");
}
