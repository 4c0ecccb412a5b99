//! What checkpoints do with packs and overlays: bounds on their number and on the space that they take, what
//! each read of them costs, and that no failure or crash in between loses or leaves anything.

use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::effect::Zeroing;
use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::store::memory::Tally;
use cairn::volume::Volume;
use cairn::volume::format::frame::FRAME_BYTES;
use cairn::volume::format::{chunk, pack};

use super::bench::{Bench, MIB, pattern, quiesce, read};
use super::stored::Stored;

const KIB: u64 = 1 << 10;
const BLOCK: u64 = 4096;
/// Longer than the collector needs if there is no grace period.
const COLLECTED: Duration = Duration::from_secs(60);

/// A generator of numbers that is the same in each run.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What a part of the disk contains.
#[derive(Clone)]
pub(super) struct Model {
    pub(super) start: u64,
    pub(super) bytes: Vec<u8>,
}

impl Model {
    pub(super) fn new(start: u64, length: u64) -> Self {
        Self { start, bytes: vec![0; usize::try_from(length).unwrap()] }
    }

    fn part(&mut self, offset: u64, length: usize) -> &mut [u8] {
        let from = usize::try_from(offset - self.start).unwrap();
        &mut self.bytes[from..from + length]
    }

    pub(super) async fn write(&mut self, volume: &Volume, offset: u64, seed: u64, length: usize) {
        volume.write(offset, pattern(seed, length), Volatile).await.unwrap();
        self.part(offset, length).copy_from_slice(&pattern(seed, length));
    }

    pub(super) async fn zero(&mut self, volume: &Volume, offset: u64, length: usize, hole: bool) {
        let zeroing = if hole { Zeroing::Deallocate } else { Zeroing::Allocate };
        volume.zero(offset, length as u64, zeroing, Volatile).await.unwrap();
        self.part(offset, length).fill(0);
    }

    pub(super) async fn check(&self, volume: &Volume, when: &str) {
        assert!(read(volume, self.start, self.bytes.len() as u64).await == self.bytes, "{when}");
    }
}

/// Fills a disk from its start with a pattern, one MiB after the other, and puts it into chunk objects.
pub(super) async fn fill(volume: &Volume, model: &mut Model) {
    let mut at = 0;
    while at < model.bytes.len() {
        let length = (model.bytes.len() - at).min(1 << 20);
        model.write(volume, model.start + at as u64, 1000 + at as u64, length).await;
        at += length;
    }
    volume.checkpoint().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_map_page_never_has_more_overlays_than_the_limit() {
    for (most, embed_bytes) in [(1, 0), (3, 0), (8, 0), (3, 4096)] {
        let mut bench = Bench::new(16 * MIB).await;
        bench.options.overlays = most;
        bench.options.embed_bytes = embed_bytes;
        bench.options.deletion_grace = Duration::ZERO;
        let volume = bench.open().await;
        let mut model = Model::new(0, 16 * MIB);
        let mut numbers = Numbers(7);
        for round in 1..=30_u64 {
            // Blocks, parts of blocks and zeros, over and over in the same places.
            for _ in 0..5 {
                let at = numbers.below(64) * 16 * KIB;
                match numbers.below(4) {
                    0 => model.zero(&volume, at, 8192, round % 2 == 0).await,
                    1 => model.write(&volume, at + 512, round, 1024).await,
                    _ => model.write(&volume, at, round, 4096).await,
                }
            }
            volume.checkpoint().await.unwrap();
            let stored = Stored::of(&bench);
            stored.assert_counts();
            let expected = most.min(usize::try_from(round).unwrap());
            assert_eq!(stored.overlays[&0], expected, "round {round} of at most {most}");
            model.check(&volume, "what is open").await;
        }
        tokio::time::sleep(COLLECTED).await;
        Stored::of(&bench).assert_nothing_else(&bench);
        assert_eq!(bench.keys("/overlay/").len(), if embed_bytes == 0 { most } else { 0 });
        volume.close().await.unwrap();
        model.check(&*bench.open().await, "what is stored").await;
    }
}

/// Bytes of chunk objects and packs in the bucket.
fn data_bytes(bench: &Bench) -> u64 {
    let objects = bench.memory.objects();
    let data = objects.iter().filter(|(key, _)| key.contains("/chunk/") || key.contains("/pack/"));
    data.map(|(_, body)| body.len() as u64).sum()
}

#[tokio::test(start_paused = true)]
async fn a_pack_that_is_mostly_overwritten_is_rewritten_and_deleted() {
    let mut bench = Bench::new(128 * MIB).await;
    bench.options.deletion_grace = Duration::ZERO;
    let volume = bench.open().await;
    // So much that garbage in packs takes little of the space.
    volume.write(64 * MIB, pattern(1, 16 << 20), Volatile).await.unwrap();
    let mut model = Model::new(0, 64 * MIB);
    for n in 0..100_u64 {
        model.write(&volume, n * 512 * KIB, n + 1, 4096).await;
    }
    volume.checkpoint().await.unwrap();
    let first = bench.keys("/pack/");
    assert_eq!(first.len(), 1);
    // 69 of 100 leave 31%, which is more than the share at which a pack is rewritten.
    for (overwritten, is_kept) in [(0..69_u64, true), (69..70, true), (0..0, false)] {
        for n in overwritten {
            model.write(&volume, n * 512 * KIB, n + 1000, 4096).await;
        }
        model.write(&volume, MIB + 8192, 9, 4096).await;
        bench.memory.reset_tallies();
        volume.checkpoint().await.unwrap();
        tokio::time::sleep(COLLECTED).await;
        assert_eq!(bench.keys("/pack/").contains(&first[0]), is_kept);
        let stored = Stored::of(&bench);
        stored.assert_counts();
        stored.assert_nothing_else(&bench);
    }
    // The rewrite put the 30 blocks that were left beside the one that was written, and read each of them
    // once.
    assert_eq!(bench.puts("/pack/").bytes, pack::object_bytes(31));
    let gets = bench.gets(&first[0]).bytes;
    assert!((pack::index_bytes(100)..=pack::index_bytes(100) + 30 * FRAME_BYTES).contains(&gets), "{gets}");
    model.check(&volume, "moved").await;
    volume.close().await.unwrap();
    model.check(&*bench.open().await, "moved and stored").await;
}

/// Uniform overwrites of a full disk, a tenth of it between two checkpoints.
#[tokio::test(start_paused = true)]
async fn overwriting_at_random_never_stores_more_than_twice_what_is_in_use() {
    const SIZE: u64 = 32 * MIB;
    let mut bench = Bench::with_chunks(SIZE, 256 * KIB).await;
    bench.options.deletion_grace = Duration::ZERO;
    bench.options.pack_bytes = MIB;
    let volume = bench.open().await;
    let mut model = Model::new(0, SIZE);
    fill(&volume, &mut model).await;
    let (mut numbers, mut most, mut uploaded) = (Numbers(3), 0, 0);
    bench.memory.reset_tallies();
    for round in 0..50_u64 {
        for n in 0..SIZE / BLOCK / 10 {
            let at = numbers.below(SIZE / BLOCK) * BLOCK;
            model.write(&volume, at, round * 10_000 + n, 4096).await;
        }
        volume.checkpoint().await.unwrap();
        tokio::time::sleep(COLLECTED).await;
        let stored = Stored::of(&bench);
        stored.assert_counts();
        stored.assert_nothing_else(&bench);
        most = most.max(data_bytes(&bench));
        assert!(most <= 2 * SIZE, "{most} bytes of a disk of {SIZE}, round {round}");
        uploaded = bench.puts("").bytes;
    }
    model.check(&volume, "what is open").await;
    let written = 50 * (SIZE / BLOCK / 10) * BLOCK;
    assert!(
        uploaded <= 9 * written / 2,
        "{uploaded} bytes were sent for {written}, of a disk written five times"
    );
    volume.close().await.unwrap();
    model.check(&*bench.open().await, "what is stored").await;
}

/// Every other block of a disk of 16 MiB, alternately in two packs, lies over chunk objects.
async fn half_overwritten(bench: &mut Bench) -> (Arc<Volume>, Model) {
    // Not consolidated before it is wanted.
    bench.options.consolidate_percent = 90;
    bench.options.deletion_grace = Duration::ZERO;
    let volume = bench.open().await;
    let mut model = Model::new(0, 16 * MIB);
    fill(&volume, &mut model).await;
    for first in [0, 2] {
        for block in (first..16 * MIB / BLOCK).step_by(4) {
            model.write(&volume, block * BLOCK, block + 1, 4096).await;
        }
        volume.checkpoint().await.unwrap();
    }
    tokio::time::sleep(COLLECTED).await;
    assert_eq!((bench.keys("/chunk/").len(), bench.keys("/pack/").len()), (4, 2));
    volume.close().await.unwrap();
    let volume = bench.open().await;
    bench.memory.reset_tallies();
    (volume, model)
}

#[tokio::test(start_paused = true)]
async fn a_consolidation_leaves_no_pack_and_no_overlay() {
    for embed_bytes in [0, 4096] {
        let mut bench = Bench::new(16 * MIB).await;
        bench.options.embed_bytes = embed_bytes;
        let (volume, model) = half_overwritten(&mut bench).await;
        volume.consolidate().await.unwrap();
        let put = bench.puts("/chunk/");
        assert_eq!((put.requests, put.bytes), (4, 4 * chunk::object_bytes(64, 64)), "each chunk once");
        assert_eq!(bench.gets("/pack/").bytes, 2 * 1024 * FRAME_BYTES, "each block of a pack once");
        tokio::time::sleep(COLLECTED).await;
        assert_eq!((bench.keys("/pack/"), bench.keys("/overlay/")), (Vec::new(), Vec::new()));
        let stored = Stored::of(&bench);
        assert_eq!((stored.overlays[&0], stored.root.packs.len()), (0, 0));
        stored.assert_nothing_else(&bench);
        model.check(&volume, "what is open").await;
        bench.memory.reset_tallies();
        volume.consolidate().await.unwrap();
        assert_eq!(
            bench.puts("/chunk/").requests + bench.puts("/root/").requests,
            0,
            "nothing is left to do"
        );
        volume.close().await.unwrap();
        model.check(&*bench.open().await, "what is stored").await;
    }
}

/// Reads a disk of 16 MiB from its start to its end. Returns the requests and the bytes of packs and of
/// chunks.
async fn read_in_sequence(bench: &Bench, volume: &Volume, model: &Model) -> [Tally; 2] {
    bench.memory.reset_tallies();
    for at in (0..16 * MIB).step_by(64 << 10) {
        let place = usize::try_from(at).unwrap();
        assert!(read(volume, at, 64 * KIB).await == model.bytes[place..place + (64 << 10)], "{at}");
        quiesce().await;
    }
    [bench.gets("/pack/"), bench.gets("/chunk/")]
}

#[tokio::test(start_paused = true)]
async fn a_sequential_read_fetches_each_block_of_each_pack_once() {
    let mut bench = Bench::new(16 * MIB).await;
    let (volume, model) = half_overwritten(&mut bench).await;
    let [packs, chunks] = read_in_sequence(&bench, &volume, &model).await;
    assert_eq!(packs.bytes, 2 * 1024 * FRAME_BYTES, "1,024 blocks in each of two packs");
    // The blocks between those of the packs come along with others of their chunk: that is cheaper than a GET
    // for each.
    assert!(chunks.bytes <= 4 * 1024 * FRAME_BYTES, "no block twice: {chunks:?}");
    volume.consolidate().await.unwrap();
    volume.close().await.unwrap();
    let volume = bench.open().await;
    let [none, alone] = read_in_sequence(&bench, &volume, &model).await;
    assert_eq!((none.requests, alone.bytes), (0, 4 * 1024 * FRAME_BYTES));
    // Each read-ahead takes one more GET for each object that has a part of its range.
    assert!(packs.requests + chunks.requests <= 3 * alone.requests, "{packs:?} {chunks:?} {alone:?}");
}

#[tokio::test(start_paused = true)]
async fn a_trim_of_a_disk_with_packs_releases_all_of_them_and_reads_no_data() {
    for chunk_bytes in [64 * KIB, 4 * MIB] {
        let mut bench = Bench::with_chunks(600 * MIB, chunk_bytes).await;
        bench.options.embed_bytes = 0;
        bench.options.pack_bytes = 64 * KIB;
        let volume = bench.open().await;
        for n in 0..200_u64 {
            volume.write(n * 3 * MIB, pattern(n, 4096), Volatile).await.unwrap();
            volume.write(n * 3 * MIB + 8192, pattern(n, 512), Volatile).await.unwrap();
        }
        volume.write(4 * MIB, pattern(1, 4 << 20), Volatile).await.unwrap();
        volume.checkpoint().await.unwrap();
        // In one part, and in two that meet within a block.
        assert!(bench.keys("/pack/").len() > 20 && !bench.keys("/chunk/").is_empty());
        volume.close().await.unwrap();
        let volume = bench.open().await;
        bench.memory.reset_tallies();
        match chunk_bytes == 4 * MIB {
            true => volume.zero(0, 600 * MIB, Zeroing::Deallocate, Volatile).await.unwrap(),
            false => {
                volume.zero(0, 300 * MIB + 512, Zeroing::Deallocate, Volatile).await.unwrap();
                volume.zero(300 * MIB + 512, 300 * MIB - 512, Zeroing::Deallocate, Volatile).await.unwrap();
            }
        }
        volume.checkpoint().await.unwrap();
        let stored = Stored::of(&bench);
        assert!(stored.root.packs.is_empty() && stored.root.map_pages.is_empty(), "{:?}", stored.root);
        tokio::time::sleep(bench.options.deletion_grace + COLLECTED).await;
        stored.assert_nothing_else(&bench);
        let read = ["/pack/", "/chunk/"].map(|part| bench.gets(part).requests);
        assert_eq!(read, [0, 0]);
        volume.close().await.unwrap();
        let volume = bench.open().await;
        let extents = volume.allocation(0, 600 * MIB, 2).await.unwrap();
        assert!(extents.len() == 1 && extents[0].hole, "{extents:?}");
    }
}

/// A disk of two map pages whose next checkpoint does all that a checkpoint can do: it packs blocks of both
/// map pages into several packs, rewrites a chunk that changed and one that lies half in packs, rewrites a
/// pack, discards and zeroes chunks, merges overlays and replaces both map pages. All changes are flushed.
pub(super) async fn busy(bench: &mut Bench) -> (Arc<Volume>, [Model; 2]) {
    bench.options.pack_bytes = 4 * BLOCK;
    bench.options.overlays = 2;
    bench.options.embed_bytes = 0;
    bench.options.deletion_grace = Duration::ZERO;
    let volume = bench.open().await;
    let mut models = [Model::new(0, MIB), Model::new(256 * MIB, 256 * KIB)];
    for model in &mut models {
        fill(&volume, model).await;
    }
    let [low, high] = &mut models;
    let at = |chunk: u64, block: u64| chunk * 64 * KIB + block * BLOCK;
    for chunk in 0..8 {
        low.write(&volume, at(chunk, 3), 10 + chunk, 4096).await;
        low.write(&volume, at(chunk, 5), 20 + chunk, 4096).await;
    }
    high.write(&volume, 256 * MIB + at(1, 1), 30, 4096).await;
    volume.checkpoint().await.unwrap();
    for (chunk, block) in [(0, 3), (0, 5), (1, 3)] {
        low.write(&volume, at(chunk, block), 40 + chunk, 4096).await;
    }
    volume.checkpoint().await.unwrap();
    high.write(&volume, 256 * MIB + at(2, 1), 50, 4096).await;
    low.write(&volume, at(2, 7), 51, 6 * 4096).await;
    low.write(&volume, at(9, 0) + 512, 52, 512).await;
    low.write(&volume, at(10, 4), 53, 8 * 4096).await;
    low.zero(&volume, at(11, 0), 65_536, true).await;
    low.zero(&volume, at(12, 2), 16_384 + 512, false).await;
    low.zero(&volume, at(13, 0), 65_536, false).await;
    low.write(&volume, at(7, 3) + 1024, 54, 1024).await;
    high.zero(&volume, 256 * MIB + at(1, 1), 4096, true).await;
    volume.flush().await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    (volume, models)
}

async fn check_both(volume: &Volume, models: &[Model; 2], when: &str) {
    for model in models {
        model.check(volume, when).await;
    }
}

pub(super) async fn busy_bench() -> Bench {
    Bench::with_chunks(257 * MIB, 64 * KIB).await
}

/// Number of requests that the checkpoint of a busy disk makes, with the deletions that follow from it.
async fn requests_of_a_checkpoint() -> u32 {
    let mut bench = busy_bench().await;
    let (volume, models) = busy(&mut bench).await;
    let packs = bench.keys("/pack/");
    bench.memory.reset_tallies();
    volume.checkpoint().await.unwrap();
    let made = ["/pack/", "/chunk/", "/overlay/", "/map/", "/root/"].map(|part| bench.puts(part).requests);
    // Blocks: one of the second map page, three of chunks 0 to 8 that move or change, and two that are partly
    // zeroed or written.
    assert_eq!(made, [2, 2, 2, 2, 2], "it does all that there is");
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(packs.iter().any(|pack| !bench.keys("/pack/").contains(pack)), "a pack was rewritten");
    check_both(&volume, &models, "without a fault").await;
    let all = [Operation::Get, Operation::Put, Operation::Delete, Operation::List];
    let requests = all.map(|operation| bench.memory.tally(operation, |_| true).requests);
    u32::try_from(requests.iter().sum::<u64>()).unwrap()
}

/// Whether the request has no effect, or has its effect and the answer is lost.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_whose_requests_fail_in_turn_succeeds_and_leaves_nothing_behind() {
    let requests = requests_of_a_checkpoint().await;
    for action in [Action::FailBefore(Failure::Transient), Action::FailAfter(Failure::Timeout)] {
        for failing in 0..requests {
            let when = format!("request {failing}: {action:?}");
            let mut bench = busy_bench().await;
            let (volume, models) = busy(&mut bench).await;
            bench.fault.add(Rule::new(action.clone()).skip(failing).times(1));
            bench.memory.reset_tallies();
            volume.checkpoint().await.unwrap();
            let made = ["/pack/", "/chunk/"].map(|part| bench.puts(part).requests);
            assert!(made[0] + made[1] <= 5, "at most one is put again: {made:?}, {when}");
            check_both(&volume, &models, &when).await;
            tokio::time::sleep(COLLECTED).await;
            bench.fault.clear();
            let stored = Stored::of(&bench);
            stored.assert_counts();
            stored.assert_nothing_else(&bench);
            volume.close().await.unwrap();
            let volume = bench.open().await;
            check_both(&volume, &models, &when).await;
            tokio::time::sleep(COLLECTED).await;
            Stored::of(&bench).assert_nothing_else(&bench);
        }
    }
}

/// Whether the request at which it ends takes effect or not, and all requests beside it.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_request_of_a_checkpoint_loses_nothing_and_leaves_nothing_behind() {
    let requests = requests_of_a_checkpoint().await;
    for takes_effect in [false, true] {
        for last in 0..requests {
            let when = format!("crash at request {last}, which takes effect: {takes_effect}");
            let mut bench = busy_bench().await;
            let (volume, models) = busy(&mut bench).await;
            let gate = Gate::new();
            let hold = match takes_effect {
                false => Action::Hold(gate.clone()),
                true => Action::HoldAnswer(gate.clone()),
            };
            bench.fault.add(Rule::new(hold).skip(last));
            let checkpoint = async {
                volume.checkpoint().await.unwrap();
                tokio::time::sleep(COLLECTED).await;
            };
            tokio::select! {
                biased;
                () = gate.reached(1) => {}
                () = checkpoint => {}
            }
            drop(volume);
            bench.fault.clear();
            let volume = bench.open().await;
            check_both(&volume, &models, &when).await;
            tokio::time::sleep(COLLECTED).await;
            volume.checkpoint().await.unwrap();
            tokio::time::sleep(COLLECTED).await;
            check_both(&volume, &models, &when).await;
            let stored = Stored::of(&bench);
            stored.assert_counts();
            stored.assert_nothing_else(&bench);
            volume.close().await.unwrap();
            check_both(&*bench.open().await, &models, &when).await;
        }
    }
}

/// The last block, page and chunk are only partly on the disk.
#[tokio::test(start_paused = true)]
async fn a_disk_that_ends_within_a_block_reads_as_it_was_written() {
    for size in [5 * 64 * KIB + 3 * BLOCK + 1536, 512, BLOCK + 512, 64 * KIB + 512, 128 * KIB - 512] {
        let mut bench = Bench::with_chunks(size, 64 * KIB).await;
        bench.options.pack_bytes = 8 * BLOCK;
        bench.options.overlays = 2;
        bench.options.embed_bytes = 64;
        bench.options.deletion_grace = Duration::ZERO;
        let mut volume = bench.open().await;
        let mut model = Model::new(0, size);
        let mut numbers = Numbers(size);
        for round in 0..300_u64 {
            let sectors = size / 512;
            // Half of them reach the end of the disk.
            let start = numbers.below(sectors.min(200)) * if round % 3 == 0 { 1 } else { sectors / 200 + 1 };
            let start = start.min(sectors - 1);
            let end = match numbers.below(2) {
                0 => sectors,
                _ => (start + 1 + numbers.below(24)).min(sectors),
            };
            let start = if end == sectors { sectors - 1 - numbers.below(sectors.min(150)) } else { start };
            let length = usize::try_from((end - start) * 512).unwrap();
            match numbers.below(4) {
                0 => model.zero(&volume, start * 512, length, round % 2 == 0).await,
                _ => model.write(&volume, start * 512, round + 1, length).await,
            }
            match numbers.below(12) {
                0 => volume.consolidate().await.unwrap(),
                1..=3 => volume.checkpoint().await.unwrap(),
                4 => {
                    volume.close().await.unwrap();
                    volume = bench.open().await;
                }
                _ => {}
            }
            model.check(&volume, &format!("round {round} of a disk of {size}")).await;
        }
        volume.checkpoint().await.unwrap();
        let stored = Stored::of(&bench);
        stored.assert_counts();
        volume.read(size - 512, 513).await.expect_err("beyond the end");
        volume.zero(0, size, Zeroing::Deallocate, Volatile).await.unwrap();
        volume.checkpoint().await.unwrap();
        let stored = Stored::of(&bench);
        assert!(stored.root.packs.is_empty() && stored.root.map_pages.is_empty(), "{:?}", stored.root);
        tokio::time::sleep(COLLECTED).await;
        stored.assert_nothing_else(&bench);
    }
}
