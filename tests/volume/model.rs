//! The volume against an array of bytes, by random commands.

use cairn::effect::Durability::{self, Durable, Volatile};
use cairn::effect::Zeroing;
use cairn::volume::Volume;
use proptest::prelude::*;

use super::bench::{Bench, pattern, read};

const SIZE: u64 = 1 << 20;
const CHUNK: u64 = 64 << 10;

#[derive(Clone, Debug)]
enum Command {
    Write { offset: u64, length: u64, durability: Durability },
    Zero { offset: u64, length: u64, zeroing: Zeroing },
    Flush,
    Checkpoint,
    Crash,
    Close,
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        // Whole chunks, whole blocks, whole sectors, and any range of bytes.
        (0..SIZE / CHUNK, 1_u64..4).prop_map(|(at, n)| (at * CHUNK, n * CHUNK)),
        (0..SIZE / 4096, 1_u64..8).prop_map(|(at, n)| (at * 4096, n * 4096)),
        (0..SIZE / 512, 1_u64..20).prop_map(|(at, n)| (at * 512, n * 512)),
        (0..SIZE, 1_u64..100_000),
    ]
    .prop_map(|(offset, length)| (offset, length.min(SIZE - offset)))
}

fn durability() -> impl Strategy<Value = Durability> {
    prop_oneof![Just(Volatile), Just(Durable)]
}

fn zeroing() -> impl Strategy<Value = Zeroing> {
    prop_oneof![Just(Zeroing::Allocate), Just(Zeroing::Deallocate)]
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        8 => (range(), durability())
            .prop_map(|((offset, length), durability)| Command::Write { offset, length, durability }),
        4 => (range(), zeroing())
            .prop_map(|((offset, length), zeroing)| Command::Zero { offset, length, zeroing }),
        2 => Just(Command::Flush),
        2 => Just(Command::Checkpoint),
        1 => Just(Command::Crash),
        1 => Just(Command::Close),
    ]
}

async fn check(volume: &Volume, model: &[u8]) {
    assert!(read(volume, 0, SIZE).await == model, "the whole volume");
    let mut at = 0;
    while at < SIZE {
        for extent in volume.allocation(at, SIZE - at, 5).await.expect("allocation") {
            let start = usize::try_from(at).unwrap();
            at += extent.length;
            if extent.zero {
                assert!(
                    model[start..usize::try_from(at).unwrap()].iter().all(|b| *b == 0),
                    "zeros at {start}"
                );
            }
            assert!(extent.zero || !extent.hole, "a hole reads as zeros");
        }
    }
    assert_eq!(at, SIZE);
}

async fn run(commands: Vec<Command>) {
    let mut bench = Bench::with_chunks(SIZE, CHUNK).await;
    let mut volume = bench.open().await;
    let mut model = vec![0_u8; usize::try_from(SIZE).unwrap()];
    for (seed, command) in (1..).zip(commands) {
        let within = |offset: u64, length: u64| {
            usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap()
        };
        match command {
            Command::Write { offset, length, durability } => {
                let data = pattern(seed, usize::try_from(length).unwrap());
                model[within(offset, length)].copy_from_slice(&data);
                volume.write(offset, data, durability).await.expect("write");
            }
            Command::Zero { offset, length, zeroing } => {
                model[within(offset, length)].fill(0);
                volume.zero(offset, length, zeroing, Volatile).await.expect("zero");
            }
            Command::Flush => volume.flush().await.expect("flush"),
            Command::Checkpoint => volume.checkpoint().await.expect("checkpoint"),
            Command::Crash => {
                volume.flush().await.expect("flush");
                volume.abandon().await;
                volume = bench.open().await;
                check(&volume, &model).await;
            }
            Command::Close => {
                volume.close().await.expect("close");
                volume = bench.open().await;
                check(&volume, &model).await;
            }
        }
    }
    check(&volume, &model).await;
    volume.close().await.expect("close");
    check(&*bench.open().await, &model).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn behaves_as_an_array_of_bytes(commands in prop::collection::vec(command(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(commands));
    }
}
