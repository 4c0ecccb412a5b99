//! Overlays and packs that are damaged or gone: what each costs, and what it does not.

use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::{Durable, Volatile};
use cairn::effect::Zeroing;
use cairn::volume::format::pack;
use cairn::volume::{Error, Volume, catalog};

use super::bench::{Bench, MIB, pattern, read};
use super::stored::Stored;

const KIB: u64 = 1 << 10;
const BLOCK: u64 = 4096;
/// Bytes of a chunk: 64 blocks in 4 pages.
const CHUNK: u64 = 256 * KIB;

/// How an object goes bad.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Gone,
    /// One bit is wrong at this byte.
    Flipped(usize),
    /// The second half is missing.
    Cut,
}

fn harm(bench: &Bench, key: &str, harm: Harm) {
    let whole = bench.memory.remove(key).expect("it exists");
    match harm {
        Harm::Gone => {}
        Harm::Flipped(at) => {
            let mut body = whole.to_vec();
            body[at] ^= 1;
            bench.memory.insert(key, body.into());
        }
        Harm::Cut => bench.memory.insert(key, whole.slice(..whole.len() / 2)),
    }
}

/// The one key that contains `part` and is not among `before`.
fn new_key(bench: &Bench, part: &str, before: &[String]) -> String {
    let new: Vec<String> = bench.keys(part).into_iter().filter(|key| !before.contains(key)).collect();
    assert_eq!(new.len(), 1, "{part}: {new:?}");
    new[0].clone()
}

/// Offset of a block of a chunk.
fn at(chunk: u64, block: u64) -> u64 {
    chunk * CHUNK + block * BLOCK
}

async fn put(volume: &Volume, places: &[(u64, u64)], seed: u64) {
    for (chunk, block) in places {
        volume.write(at(*chunk, *block), pattern(seed + chunk * 100 + block, 4096), Volatile).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
}

async fn expect_block(volume: &Volume, chunk: u64, block: u64, seed: u64, when: &str) {
    let expected = pattern(seed + chunk * 100 + block, 4096);
    assert_eq!(read(volume, at(chunk, block), BLOCK).await, expected, "{chunk}/{block}: {when}");
}

/// A block whose bytes cannot be read back.
async fn expect_lost(volume: &Volume, chunk: u64, block: u64, when: &str) {
    for sector in [0, 3584] {
        let offset = at(chunk, block) + sector;
        let error = volume.read(offset, 512).await.expect_err("lost, never zeros");
        assert!(
            matches!(error, Error::Lost { .. } | Error::Damaged { .. }),
            "{chunk}/{block}: {error}, {when}"
        );
        assert_eq!(error.offset(), Some(offset), "{when}");
    }
}

/// The content of a block of a chunk as `layers` wrote it first.
async fn expect_base(volume: &Volume, chunk: u64, blocks: std::ops::Range<u64>, when: &str) {
    let whole = pattern(chunk + 1, 256 << 10);
    let place = |block: u64| usize::try_from(block * BLOCK).unwrap();
    let expected = &whole[place(blocks.start)..place(blocks.end)];
    let length = (blocks.end - blocks.start) * BLOCK;
    assert!(read(volume, at(chunk, blocks.start), length).await == expected, "{chunk}/{blocks:?}: {when}");
}

/// Seeds of the blocks of the three layers.
const OLDEST: u64 = 10_000;
const MIDDLE: u64 = 20_000;
const NEWEST: u64 = 30_000;

/// Eight chunks in objects, and over them three packs with an overlay each. Returns the keys of the overlay
/// and the pack in the middle. Nothing is open.
async fn layers(bench: &mut Bench) -> [String; 2] {
    bench.options.embed_bytes = 0;
    bench.options.deletion_grace = Duration::ZERO;
    let volume = bench.open().await;
    for chunk in 0..8 {
        volume.write(chunk * CHUNK, pattern(chunk + 1, 256 << 10), Volatile).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
    put(&volume, &[(0, 1), (0, 40), (2, 1), (3, 1)], OLDEST).await;
    let before = [bench.keys("/overlay/"), bench.keys("/pack/")];
    put(&volume, &[(0, 5), (0, 6), (0, 40), (1, 20)], MIDDLE).await;
    let middle = [new_key(bench, "/overlay/", &before[0]), new_key(bench, "/pack/", &before[1])];
    put(&volume, &[(0, 6), (0, 7), (1, 0), (3, 2)], NEWEST).await;
    volume.close().await.unwrap();
    middle
}

/// Chunks that the overlay did not apply to, and blocks that newer overlays have.
async fn expect_spared(volume: &Volume, when: &str) {
    for (chunk, block) in [(0, 6), (0, 7), (1, 0), (3, 2)] {
        expect_block(volume, chunk, block, NEWEST, when).await;
    }
    for (chunk, block) in [(2, 1), (3, 1)] {
        expect_block(volume, chunk, block, OLDEST, when).await;
    }
    expect_base(volume, 2, 2..64, when).await;
    expect_base(volume, 3, 3..64, when).await;
    for chunk in 4..8 {
        expect_base(volume, chunk, 0..64, when).await;
    }
}

/// What the overlay had of its two chunks is unknown, so all of them is lost that no newer overlay has.
async fn expect_lost_with_the_overlay(volume: &Volume, but: &[(u64, u64)], when: &str) {
    for (chunk, block) in [(0, 0), (0, 1), (0, 5), (0, 40), (0, 63), (1, 1), (1, 20), (1, 63)] {
        if !but.contains(&(chunk, block)) {
            expect_lost(volume, chunk, block, when).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_overlay_costs_the_chunks_that_it_applied_to_and_stops_no_checkpoint() {
    for how in [Harm::Gone, Harm::Flipped(60), Harm::Cut] {
        let when = format!("{how:?}");
        let mut bench = Bench::with_chunks(16 * MIB, CHUNK).await;
        let [overlay, _] = layers(&mut bench).await;
        harm(&bench, &overlay, how);
        let volume = bench.open().await;
        expect_spared(&volume, &when).await;
        expect_lost_with_the_overlay(&volume, &[], &when).await;
        let extents = volume.allocation(0, 2 * CHUNK, 16).await.unwrap();
        assert!(extents.iter().all(|extent| !extent.zero && !extent.hole), "{when}: {extents:?}");
        volume.picture(16).await.unwrap();

        // Another chunk changes first, then parts of those that are lost.
        put(&volume, &[(5, 9)], NEWEST).await;
        expect_block(&volume, 5, 9, NEWEST, &when).await;
        put(&volume, &[(0, 5), (1, 63)], NEWEST).await;
        volume.write(at(0, 0) + 512, pattern(1, 512), Volatile).await.unwrap();
        volume.checkpoint().await.unwrap();
        volume.close().await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let volume = bench.open().await;
        for again in 0..2 {
            let when = format!("{when}, {again}");
            expect_block(&volume, 0, 5, NEWEST, &when).await;
            expect_block(&volume, 1, 63, NEWEST, &when).await;
            assert_eq!(read(&volume, at(0, 0) + 512, 512).await, pattern(1, 512), "{when}");
            for lost in [0, 1024, 4096] {
                volume.read(at(0, 0) + lost, 512).await.expect_err("lost, never zeros");
            }
            expect_lost_with_the_overlay(&volume, &[(0, 0), (0, 5), (1, 63)], &when).await;
            if again == 0 {
                volume
                    .write(at(5, 9), pattern(5 + 1, 256 << 10).slice(9 * 4096..10 * 4096), Durable)
                    .await
                    .unwrap();
                expect_spared(&volume, &when).await;
                // From packs into chunk objects, with what was lost.
                volume.consolidate().await.unwrap();
            }
        }
        expect_spared(&volume, &when).await;
        // What is written or discarded as a whole is readable again.
        volume.write(0, pattern(1, 256 << 10), Volatile).await.unwrap();
        volume.zero(CHUNK, CHUNK, Zeroing::Deallocate, Volatile).await.unwrap();
        volume.checkpoint().await.unwrap();
        expect_base(&volume, 0, 0..64, &when).await;
        assert_eq!(read(&volume, CHUNK, CHUNK).await, vec![0; 256 << 10]);
        volume.close().await.unwrap();
        let volume = bench.open().await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        expect_base(&volume, 0, 0..64, &when).await;
        assert!(!bench.keys("/overlay/").contains(&overlay), "{when}: it is garbage");
        Stored::of(&bench);
    }
}

/// A write goes on although the overlay is gone, also where it does not touch its chunks: the map page is
/// replaced.
#[tokio::test(start_paused = true)]
async fn an_overlay_that_was_missing_for_a_moment_costs_nothing() {
    let mut bench = Bench::with_chunks(16 * MIB, CHUNK).await;
    let [overlay, _] = layers(&mut bench).await;
    let whole = bench.memory.remove(&overlay).expect("it exists");
    let volume = bench.open().await;
    expect_lost(&volume, 1, 20, "while it is missing").await;
    volume.write(at(1, 20) + 512, pattern(1, 512), Durable).await.unwrap();
    let comes_back = async {
        tokio::time::sleep(Duration::from_secs(8)).await;
        bench.memory.insert(&overlay, whole.clone());
    };
    let (checkpoint, ()) = tokio::join!(volume.checkpoint(), comes_back);
    checkpoint.unwrap();
    volume.close().await.unwrap();
    let volume = bench.open().await;
    expect_spared(&volume, "it is back").await;
    expect_block(&volume, 0, 5, MIDDLE, "it is back").await;
    let mut expected = pattern(MIDDLE + 120, 4096).to_vec();
    expected[512..1024].copy_from_slice(&pattern(1, 512));
    assert_eq!(read(&volume, at(1, 20), BLOCK).await, expected);
}

/// The blocks of the middle pack that are in use: block 6 of chunk 0 is not.
const IN_PACK: [(u64, u64); 3] = [(0, 5), (0, 40), (1, 20)];

/// Everything besides the given blocks of the middle pack.
async fn expect_all_but(volume: &Volume, lost: &[(u64, u64)], when: &str) {
    expect_spared(volume, when).await;
    expect_block(volume, 0, 1, OLDEST, when).await;
    expect_base(volume, 0, 0..1, when).await;
    expect_base(volume, 0, 2..5, when).await;
    expect_base(volume, 0, 8..40, when).await;
    expect_base(volume, 0, 41..64, when).await;
    expect_base(volume, 1, 1..20, when).await;
    expect_base(volume, 1, 21..64, when).await;
    for (chunk, block) in IN_PACK {
        match lost.contains(&(chunk, block)) {
            true => expect_lost(volume, chunk, block, when).await,
            false => expect_block(volume, chunk, block, MIDDLE, when).await,
        }
    }
}

/// Opens the volume by a gateway with retries.
async fn open(bench: &mut Bench) -> Arc<Volume> {
    let env = bench.env_with_retries();
    let id = catalog::resolve(&env, "disk").await.unwrap();
    Volume::open(&env, bench.options.clone(), id, true).await.unwrap()
}

/// Opens the volume, and lets several checkpoints run that have reasons to move the blocks of the middle
/// pack.
async fn folded_often(bench: &mut Bench, lost: &[(u64, u64)], when: &str) -> Arc<Volume> {
    // Each pack is a candidate for a rewrite.
    bench.options.relocate_percent = 100;
    let volume = open(bench).await;
    expect_all_but(&volume, lost, when).await;
    for round in 0..4 {
        let when = format!("{when}, checkpoint {round}");
        volume.write(12 * MIB + round * BLOCK, pattern(round, 4096), Durable).await.unwrap();
        let done = tokio::time::timeout(Duration::from_secs(120), volume.checkpoint());
        done.await.expect("no checkpoint waits for what is lost").unwrap();
        expect_all_but(&volume, lost, &when).await;
    }
    volume
}

#[tokio::test(start_paused = true)]
async fn a_lost_pack_costs_its_blocks_alone_and_stops_no_checkpoint() {
    let index = usize::try_from(pack::frame_offset(4)).unwrap() + 3;
    let frame = usize::try_from(pack::frame_offset(0)).unwrap() + 77;
    for (how, lost) in [
        (Harm::Gone, &IN_PACK[..]),
        // Block 5 of chunk 0 is in the first frame, and the index is behind the frames.
        (Harm::Flipped(frame), &IN_PACK[..1]),
        (Harm::Flipped(index), &[]),
        (Harm::Cut, &IN_PACK[1..]),
    ] {
        let when = format!("{how:?}");
        let mut bench = Bench::with_chunks(16 * MIB, CHUNK).await;
        let [_, pack] = layers(&mut bench).await;
        harm(&bench, &pack, how);
        let volume = folded_often(&mut bench, lost, &when).await;
        // A part of a block, then all of it.
        for (chunk, block) in lost {
            volume.write(at(*chunk, *block) + 512, pattern(1, 512), Durable).await.unwrap();
        }
        volume.checkpoint().await.unwrap();
        volume.close().await.unwrap();
        let volume = open(&mut bench).await;
        for again in 0..2 {
            let when = format!("{when}, in part, {again}");
            expect_all_but(&volume, lost, &when).await;
            for (chunk, block) in lost {
                let found = read(&volume, at(*chunk, *block) + 512, 512).await;
                assert_eq!(found, pattern(1, 512), "{when}");
                volume.read(at(*chunk, *block) + 1024, 512).await.expect_err("its neighbour stays lost");
            }
            volume.consolidate().await.unwrap();
        }
        put(&volume, lost, MIDDLE).await;
        expect_all_but(&volume, &[], &when).await;
        volume.consolidate().await.unwrap();
        volume.close().await.unwrap();
        let volume = open(&mut bench).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        expect_all_but(&volume, &[], &when).await;
        assert_eq!(bench.keys("/pack/"), Vec::<String>::new(), "{when}: no block is in a pack any more");
        let stored = Stored::of(&bench);
        stored.assert_counts();
        stored.assert_nothing_else(&bench);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pack_that_was_missing_for_a_moment_costs_nothing() {
    let mut bench = Bench::with_chunks(16 * MIB, CHUNK).await;
    let [_, pack] = layers(&mut bench).await;
    let whole = bench.memory.remove(&pack).expect("it exists");
    let volume = bench.open().await;
    let error = volume.read(at(1, 20), BLOCK).await.expect_err("the pack is missing");
    assert!(matches!(&error, Error::Lost { key, .. } if *key == pack), "{error}");
    volume.write(at(1, 20) + 512, pattern(1, 512), Durable).await.unwrap();
    let comes_back = async {
        tokio::time::sleep(Duration::from_secs(8)).await;
        bench.memory.insert(&pack, whole.clone());
    };
    let (checkpoint, ()) = tokio::join!(volume.checkpoint(), comes_back);
    checkpoint.unwrap();
    volume.close().await.unwrap();
    let volume = bench.open().await;
    let mut expected = pattern(MIDDLE + 120, 4096).to_vec();
    expected[512..1024].copy_from_slice(&pattern(1, 512));
    assert_eq!(read(&volume, at(1, 20), BLOCK).await, expected);
    expect_block(&volume, 0, 40, MIDDLE, "it is back").await;
}
