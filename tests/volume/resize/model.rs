//! A disk against an array of bytes, by random commands.

use cairn::effect::Durability::Volatile;
use cairn::effect::Zeroing;
use proptest::prelude::*;

use super::super::bench::MIB;
use super::super::stored::Stored;
use super::{BLOCK, CHUNK, Model, bench_of, length};

#[derive(Clone, Debug)]
enum Command {
    Write { offset: u64, length: u64 },
    Zero { offset: u64, length: u64, zeroing: Zeroing },
    Resize(u64),
    Snapshot,
    Checkpoint,
    Crash,
    Close,
}

fn command() -> impl Strategy<Value = Command> {
    let range = prop_oneof![
        (0..16_u64, 1..4_u64).prop_map(|(at, n)| (at * CHUNK, n * CHUNK)),
        (0..512_u64, 1..8_u64).prop_map(|(at, n)| (at * BLOCK, n * BLOCK)),
        (0..2 * MIB, 1..100_000_u64),
    ];
    let size = prop_oneof![
        (1..=16_u64).prop_map(|n| n * CHUNK),
        (1..=512_u64).prop_map(|n| n * BLOCK),
        (1..=4096_u64).prop_map(|n| n * 512),
    ];
    let zeroing = prop_oneof![Just(Zeroing::Allocate), Just(Zeroing::Deallocate)];
    prop_oneof![
        8 => range.clone().prop_map(|(offset, length)| Command::Write { offset, length }),
        3 => (range, zeroing).prop_map(|((offset, length), zeroing)| Command::Zero { offset, length, zeroing }),
        5 => size.prop_map(Command::Resize),
        1 => Just(Command::Snapshot),
        2 => Just(Command::Checkpoint),
        1 => Just(Command::Crash),
        1 => Just(Command::Close),
    ]
}

async fn run(commands: Vec<Command>) {
    let mut bench = bench_of(MIB).await;
    let mut volume = bench.open().await;
    let mut model = Model::new(0, MIB);
    for (n, command) in (1..).zip(commands) {
        // Beyond the end of the disk there is nothing to change.
        let within = |offset: u64, bytes: u64| {
            let end = model.end();
            (offset < end).then(|| (offset, bytes.min(end - offset)))
        };
        let is_opened = matches!(command, Command::Crash | Command::Close);
        match command {
            Command::Write { offset, length } => {
                let Some((offset, bytes)) = within(offset, length) else { continue };
                model.write(&volume, offset, n, bytes).await;
            }
            Command::Zero { offset, length: bytes, zeroing } => {
                let Some((offset, bytes)) = within(offset, bytes) else { continue };
                volume.zero(offset, bytes, zeroing, Volatile).await.unwrap();
                model.bytes[length(offset)..length(offset + bytes)].fill(0);
            }
            Command::Resize(size) => model.resize(&volume, size).await,
            Command::Snapshot => drop(volume.snapshot(&format!("s{n}")).await.unwrap()),
            Command::Checkpoint => volume.checkpoint().await.unwrap(),
            Command::Crash => {
                volume.flush().await.unwrap();
                volume.abandon().await;
            }
            Command::Close => volume.close().await.unwrap(),
        }
        if is_opened {
            volume = bench.open().await;
            model.check(&volume, "opened").await;
        }
    }
    model.check(&volume, "at the end").await;
    volume.close().await.unwrap();
    Stored::of(&bench).assert_counts();
    model.check(&*bench.open().await, "closed").await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn behaves_as_an_array_of_bytes_that_grows_and_shrinks(commands in prop::collection::vec(command(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(commands));
    }
}
