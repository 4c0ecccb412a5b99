//! Comparisons of snapshots against arrays of bytes, by random commands.

use std::collections::BTreeSet;
use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::effect::Zeroing;
use cairn::volume::{Change, Diff, Shrink, Side};
use proptest::prelude::*;

use super::super::bench::{Bench, MIB, pattern};
use super::super::stored::Kept;
use super::{BLOCK, CHUNK, all, side};

#[derive(Clone, Debug)]
enum Command {
    Write { offset: u64, length: u64 },
    Zero { offset: u64, length: u64, zeroing: Zeroing },
    Resize(u64),
    Snapshot,
    Restore(usize),
    Checkpoint,
    Consolidate,
    Crash,
    Close,
}

fn command() -> impl Strategy<Value = Command> {
    let range = prop_oneof![
        (0..16_u64, 1..4_u64).prop_map(|(at, n)| (at * CHUNK, n * CHUNK)),
        (0..256_u64, 1..8_u64).prop_map(|(at, n)| (at * BLOCK, n * BLOCK)),
        (0..MIB, 1..20_000_u64),
    ];
    let size = prop_oneof![
        (1..=24_u64).prop_map(|n| n * CHUNK),
        (1..=384_u64).prop_map(|n| n * BLOCK),
        (1..=3072_u64).prop_map(|n| n * 512),
    ];
    let zeroing = prop_oneof![Just(Zeroing::Allocate), Just(Zeroing::Deallocate)];
    prop_oneof![
        10 => range.clone().prop_map(|(offset, length)| Command::Write { offset, length }),
        4 => (range, zeroing).prop_map(|((offset, length), zeroing)| Command::Zero { offset, length, zeroing }),
        2 => size.prop_map(Command::Resize),
        4 => Just(Command::Snapshot),
        1 => (0..8_usize).prop_map(Command::Restore),
        3 => Just(Command::Checkpoint),
        1 => Just(Command::Consolidate),
        1 => Just(Command::Crash),
        1 => Just(Command::Close),
    ]
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

/// Asserts that the ranges cover each byte that differs, and no block that lies in the same place.
fn judge(changes: &[Change], before: &[u8], after: &[u8], alike: &BTreeSet<u64>, when: &str) {
    let size = after.len() as u64;
    let mut at = 0;
    let old = |at: usize| before.get(at).copied().unwrap_or(0);
    let first_differing = |from: u64, to: u64| (length(from)..length(to)).find(|at| old(*at) != after[*at]);
    for Change { range, zero } in changes {
        assert!(range.start.is_multiple_of(BLOCK) && range.end <= size, "{when}: {range:?}");
        assert!(range.end.is_multiple_of(BLOCK) || range.end == size, "{when}: {range:?}");
        assert_eq!(first_differing(at, range.start), None, "{when}: a byte that differs is not listed");
        at = range.end;
        let bytes = &after[length(range.start)..length(range.end)];
        assert!(!zero || bytes.iter().all(|byte| *byte == 0), "{when}: {range:?} is no zeros");
        let needless = (range.start / BLOCK..range.end.div_ceil(BLOCK)).find(|block| alike.contains(block));
        assert_eq!(needless, None, "{when}: a block that lies in the same place is listed");
    }
    assert_eq!(first_differing(at, size), None, "{when}: a byte that differs is not listed");
}

/// Compares each snapshot with each other one.
async fn compare_all(bench: &Bench, contents: &[(String, Vec<u8>)]) {
    let kept = Kept::of(bench);
    let places = |name: &str| {
        let found = kept.snapshots.iter().find(|(snapshot, _)| snapshot.name == name);
        &found.expect("it is kept").1.places
    };
    for (one, before) in contents {
        for (other, after) in contents {
            let (old, new) = (places(one), places(other));
            let blocks = 0..(after.len() as u64).div_ceil(BLOCK);
            let alike = blocks.filter(|block| old.get(block) == new.get(block)).collect();
            let changes = all(Diff::between(side(bench, one).await, side(bench, other).await)).await;
            judge(&changes, before, after, &alike, &format!("{one} and {other}"));
        }
    }
}

async fn run(commands: Vec<Command>) {
    let mut bench = Bench::with_chunks(MIB, CHUNK).await;
    bench.options.pack_bytes = 4 * BLOCK;
    bench.options.overlays = 2;
    bench.options.embed_bytes = 128;
    bench.options.deletion_grace = Duration::ZERO;
    let mut volume = bench.open().await;
    let mut model = vec![0; length(MIB)];
    let mut contents: Vec<(String, Vec<u8>)> = Vec::new();
    for (n, command) in (1..).zip(commands) {
        // Beyond the end of the disk there is nothing to change.
        let size = model.len() as u64;
        let within = |offset: u64, bytes: u64| (offset < size).then(|| (offset, bytes.min(size - offset)));
        let mut is_closed = false;
        match command {
            Command::Write { offset, length: bytes } => {
                let Some((offset, bytes)) = within(offset, bytes) else { continue };
                let data = pattern(n, length(bytes));
                model[length(offset)..length(offset + bytes)].copy_from_slice(&data);
                volume.write(offset, data, Volatile).await.unwrap();
            }
            Command::Zero { offset, length: bytes, zeroing } => {
                let Some((offset, bytes)) = within(offset, bytes) else { continue };
                model[length(offset)..length(offset + bytes)].fill(0);
                volume.zero(offset, bytes, zeroing, Volatile).await.unwrap();
            }
            Command::Resize(size) => {
                volume.resize(size, Shrink::Discard).await.unwrap();
                model.resize(length(size), 0);
            }
            Command::Snapshot => {
                let name = format!("s{n}");
                volume.snapshot(&name).await.unwrap();
                contents.push((name, model.clone()));
            }
            Command::Restore(number) => {
                let Some((name, content)) = contents.get(number % contents.len().max(1)) else { continue };
                volume.restore(name).await.unwrap();
                model.clone_from(content);
                is_closed = true;
            }
            Command::Checkpoint => volume.checkpoint().await.unwrap(),
            Command::Consolidate => volume.consolidate().await.unwrap(),
            Command::Crash => {
                volume.flush().await.unwrap();
                volume.abandon().await;
                is_closed = true;
            }
            Command::Close => {
                volume.close().await.unwrap();
                is_closed = true;
            }
        }
        if is_closed {
            volume = bench.open().await;
        }
    }
    // What the volume has now counts too.
    if let Some((name, before)) = contents.last() {
        let now = Side::of_volume(&volume).await.unwrap();
        let changes = all(Diff::between(side(&bench, name).await, now)).await;
        judge(&changes, before, &model, &BTreeSet::new(), &format!("{name} and now"));
    }
    volume.close().await.unwrap();
    compare_all(&bench, &contents).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_byte_that_differs_is_listed_and_no_block_in_the_same_place(
        commands in prop::collection::vec(command(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(commands));
    }
}
