//! The size of a disk: it grows and shrinks while clients use it, in order with their writes, and what was
//! beyond its end never comes back.

mod crash;
mod model;

use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::{Durable, Volatile};
use cairn::effect::Zeroing;
use cairn::store::Operation;
use cairn::task::Tasks;
use cairn::volume::{Error, ResizeError, Shrink, SnapshotDisk, Volume, catalog};

use super::bench::{Bench, MIB, bytes_of, pattern, quiesce, read};
use super::stored::{Kept, Stored};

const KIB: u64 = 1 << 10;
const BLOCK: u64 = 4096;
const PAGE: u64 = 64 * KIB;
/// Bytes of two pages.
const CHUNK: u64 = 2 * PAGE;
const MAP_PAGE: u64 = 4096 * CHUNK;
/// Longer than the collector needs if there is no grace period.
const COLLECTED: Duration = Duration::from_secs(60);

/// A disk in chunks of two pages, with small packs and few overlays. Nothing waits for a grace period.
async fn bench_of(size_bytes: u64) -> Bench {
    let mut bench = Bench::with_chunks(size_bytes, CHUNK).await;
    bench.options.pack_bytes = 8 * BLOCK;
    bench.options.overlays = 2;
    bench.options.embed_bytes = 0;
    bench.options.deletion_grace = Duration::ZERO;
    bench
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

/// What a disk contains around a place, as an array of bytes. Beyond the end of the disk there is nothing.
#[derive(Clone)]
struct Model {
    start: u64,
    bytes: Vec<u8>,
}

impl Model {
    /// A part of a disk of zeros that ends at `end`.
    fn new(start: u64, end: u64) -> Self {
        Self { start, bytes: vec![0; length(end - start)] }
    }

    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    async fn write(&mut self, volume: &Volume, offset: u64, seed: u64, bytes: u64) {
        let data = pattern(seed, length(bytes));
        let at = length(offset - self.start);
        self.bytes[at..at + data.len()].copy_from_slice(&data);
        volume.write(offset, data, Volatile).await.unwrap();
    }

    /// Changes the size of the disk and of the array.
    async fn resize(&mut self, volume: &Volume, size_bytes: u64) {
        volume.resize(size_bytes, Shrink::Discard).await.unwrap();
        self.bytes.resize(length(size_bytes - self.start), 0);
    }

    async fn check(&self, volume: &Volume, when: &str) {
        assert_eq!(volume.size_bytes(), self.end(), "{when}");
        let found = read(volume, self.start, self.bytes.len() as u64).await;
        let wrong = found.iter().zip(&self.bytes).position(|(found, wanted)| found != wanted);
        assert_eq!(wrong.map(|at| self.start + at as u64), None, "{when}: the first wrong byte");
        let error = volume.read(self.end() - 512, 513).await.expect_err("beyond the end");
        assert!(matches!(error, Error::OutOfRange { .. }), "{when}: {error}");
    }
}

/// Where what a disk contains lies when its size changes.
#[derive(Clone, Copy, Debug)]
enum Lies {
    Dirty,
    InTheJournal,
    InChunks,
    InPacks,
}

/// Fills the end of a disk, and brings it to where it shall lie.
async fn filled(volume: &Volume, start: u64, end: u64, lies: Lies) -> Model {
    let mut model = Model::new(start, end);
    let whole = (end - start) / CHUNK * CHUNK;
    match lies {
        Lies::InPacks => {
            // Blocks and parts of blocks of a page; half of a chunk would be rewritten whole.
            for (n, at) in (start..end).step_by(length(3 * BLOCK)).enumerate() {
                model.write(volume, at, n as u64 + 1, (2 * BLOCK - 512).min(end - at)).await;
                if n % 4 == 3 {
                    volume.checkpoint().await.unwrap();
                }
            }
        }
        _ => {
            model.write(volume, start, 1, whole).await;
            model.write(volume, start + whole, 2, end - start - whole).await;
        }
    }
    match lies {
        Lies::Dirty => {}
        Lies::InTheJournal => volume.flush().await.unwrap(),
        Lies::InChunks | Lies::InPacks => volume.checkpoint().await.unwrap(),
    }
    model
}

/// The ends that a disk is cut to: within and at the edges of a sector's neighbours, blocks, pages and chunks.
fn ends(start: u64) -> Vec<u64> {
    let within =
        [512, BLOCK, BLOCK + 1536, PAGE - 512, PAGE, PAGE + BLOCK, CHUNK - BLOCK, CHUNK, CHUNK + 512];
    within.into_iter().chain([2 * CHUNK, 2 * CHUNK + PAGE + 512]).map(|at| start + at).collect()
}

/// A disk that was cut and grows again has what was before the cut, and zeros behind it: at once, after a
/// checkpoint in between, and for whoever opens it after a crash in between or at the end.
async fn cut_and_grown(start: u64, lies: Lies, folded: bool, crashes: bool) {
    let size = start + 3 * CHUNK + PAGE + BLOCK + 512;
    for end in ends(start) {
        let when = format!("{lies:?} to {end} of {size}, folded: {folded}, crashes: {crashes}");
        let mut bench = bench_of(size).await;
        let mut volume = bench.open().await;
        let mut model = filled(&volume, start, size, lies).await;
        model.resize(&volume, end).await;
        model.check(&volume, &when).await;
        if folded {
            // The pages around the new end get another layer.
            model.write(&volume, end - 512, 7, 512).await;
            volume.checkpoint().await.unwrap();
        }
        if crashes {
            volume.abandon().await;
            volume = bench.open().await;
            model.check(&volume, &when).await;
        }
        for grown in [end + 512, size, size + 2 * CHUNK] {
            model.resize(&volume, grown.max(model.end())).await;
            model.check(&volume, &format!("{when}, grown to {grown}")).await;
        }
        model.write(&volume, size - 1536, 9, CHUNK).await;
        volume.flush().await.unwrap();
        volume.abandon().await;
        let volume = bench.open().await;
        model.check(&volume, &format!("{when}, opened")).await;
        volume.close().await.unwrap();
        Stored::of(&bench).assert_counts();
        let volume = bench.open().await;
        tokio::time::sleep(COLLECTED).await;
        model.check(&volume, &format!("{when}, closed")).await;
        Kept::of(&bench).assert_exact(&bench);
    }
}

async fn cut_everywhere(start: u64) {
    for lies in [Lies::Dirty, Lies::InTheJournal, Lies::InChunks, Lies::InPacks] {
        for (folded, crashes) in [(false, false), (false, true), (true, false), (true, true)] {
            cut_and_grown(start, lies, folded, crashes).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_beyond_the_end_is_zeros_when_the_disk_grows_again() {
    cut_everywhere(0).await;
}

/// As above, where the end of a map page is among the cuts.
#[tokio::test(start_paused = true)]
async fn what_was_beyond_the_end_is_zeros_across_map_pages() {
    cut_everywhere(MAP_PAGE - CHUNK - BLOCK).await;
}

#[tokio::test(start_paused = true)]
async fn a_size_that_was_answered_survives_a_crash_and_everyone_sees_it() {
    let mut bench = bench_of(MIB).await;
    for (size, shrink) in [(3 * MIB, Shrink::Refuse), (MIB + 512, Shrink::Discard), (5 * MIB, Shrink::Refuse)]
    {
        let volume = bench.open().await;
        volume.resize(size, shrink).await.unwrap();
        assert_eq!(volume.info("disk").size_bytes, size);
        let env = bench.env(MIB);
        assert_eq!(catalog::info(&env, "disk").await.unwrap().size_bytes, size, "in the store");
        volume.abandon().await;
        assert_eq!(bench.open().await.size_bytes(), size, "after a crash");
    }
}

#[tokio::test(start_paused = true)]
async fn a_size_is_answered_when_its_commit_is_durable_and_has_a_root() {
    let mut bench = bench_of(MIB).await;
    for (part, found) in [("/journal/", MIB), ("/root/", 2 * MIB)] {
        let volume = bench.open().await;
        let gate = bench.fault.hold(Operation::Put, part);
        let tasks = Tasks::new();
        let resized = tasks.spawn({
            let volume = Arc::clone(&volume);
            async move { volume.resize(2 * MIB, Shrink::Refuse).await }
        });
        gate.reached(1).await;
        quiesce().await;
        assert!(!resized.is_finished(), "{part}");
        // Clients do not wait.
        volume.write(0, pattern(1, 4096), Volatile).await.unwrap();
        assert_eq!(read(&volume, 0, BLOCK).await, pattern(1, 4096));
        volume.abandon().await;
        bench.fault.clear();
        resized.await.unwrap().expect_err("the gateway is gone");
        let volume = bench.open().await;
        assert_eq!(volume.size_bytes(), found, "{part}");
        volume.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_valid_size_is_taken_and_a_smaller_one_only_if_it_may_be() {
    let mut bench = bench_of(MIB).await;
    let volume = bench.open().await;
    let mut model = Model::new(0, MIB);
    model.write(&volume, MIB - CHUNK, 1, CHUNK).await;
    for size in [0, 1, 511, 513, MIB + 1, MAP_PAGE * 65_536 + 512, u64::MAX] {
        for shrink in [Shrink::Refuse, Shrink::Discard] {
            let error = volume.resize(size, shrink).await.expect_err("no size");
            assert!(matches!(error, ResizeError::Geometry(_)), "{size}: {error}");
        }
    }
    for size in [512, MIB - 512] {
        let error = volume.resize(size, Shrink::Refuse).await.expect_err("smaller");
        assert!(matches!(error, ResizeError::Smaller { size: MIB, wanted } if wanted == size), "{error}");
    }
    bench.memory.reset_tallies();
    volume.resize(MIB, Shrink::Refuse).await.unwrap();
    volume.resize(MIB, Shrink::Discard).await.unwrap();
    for part in ["/journal/", "/root/", "/head"] {
        assert_eq!(bench.puts(part).requests, 0, "the size that it has costs nothing");
    }
    model.check(&volume, "nothing has changed").await;
    volume.close().await.unwrap();
    let error = volume.resize(2 * MIB, Shrink::Refuse).await.expect_err("it is closed");
    assert!(matches!(error, ResizeError::Volume(Error::Stopped(_))), "{error}");
}

/// A write that waited while the disk became smaller is later than the new size, and one that was answered
/// before is earlier.
#[tokio::test(start_paused = true)]
async fn a_write_that_waits_while_the_disk_shrinks_is_beyond_the_end() {
    let mut bench = bench_of(MIB).await;
    bench.dirty_bytes = 2 * BLOCK;
    let volume = bench.open().await;
    let mut model = Model::new(0, MIB);
    let gate = bench.fault.hold(Operation::Put, "/journal/");
    model.write(&volume, 0, 1, BLOCK).await;
    model.write(&volume, MIB - BLOCK, 2, BLOCK).await;
    let tasks = Tasks::new();
    let writes: Vec<_> = [MIB / 2 - BLOCK, MIB / 2 - 512, MIB / 2, MIB - BLOCK]
        .into_iter()
        .map(|offset| {
            let volume = Arc::clone(&volume);
            (offset, tasks.spawn(async move { volume.write(offset, pattern(3, 4096), Durable).await }))
        })
        .collect();
    quiesce().await;
    let resized = tasks.spawn({
        let volume = Arc::clone(&volume);
        async move { volume.resize(MIB / 2, Shrink::Discard).await }
    });
    quiesce().await;
    assert_eq!(volume.size_bytes(), MIB / 2, "from now on");
    bench.fault.clear();
    gate.release();
    resized.await.unwrap().unwrap();
    model.bytes.truncate(length(MIB / 2));
    for (offset, write) in writes {
        let outcome = write.await.unwrap();
        if offset + BLOCK <= MIB / 2 {
            outcome.unwrap();
            model.bytes[length(offset)..].copy_from_slice(&pattern(3, 4096));
        } else {
            let error = outcome.expect_err("beyond the end");
            assert!(matches!(error, Error::OutOfRange { size, .. } if size == MIB / 2), "{offset}: {error}");
        }
    }
    model.check(&volume, "after the shrink").await;
    volume.abandon().await;
    let volume = bench.open().await;
    model.check(&volume, "opened").await;
    model.resize(&volume, MIB).await;
    model.check(&volume, "grown").await;
}

/// A chunk that was filled and is still on its way is cut, or goes, with the end of the disk.
#[tokio::test(start_paused = true)]
async fn a_chunk_on_its_way_is_cut_with_the_disk() {
    for end in [CHUNK, CHUNK + BLOCK, 2 * CHUNK - 512] {
        let mut bench = bench_of(2 * CHUNK).await;
        let volume = bench.open().await;
        let mut model = Model::new(0, 2 * CHUNK);
        let gate = bench.fault.hold(Operation::Put, "/chunk/");
        model.write(&volume, 0, 1, 2 * CHUNK).await;
        let tasks = Tasks::new();
        let resized = tasks.spawn({
            let volume = Arc::clone(&volume);
            async move { volume.resize(end, Shrink::Discard).await }
        });
        quiesce().await;
        assert_eq!(volume.size_bytes(), end);
        bench.fault.clear();
        gate.release();
        resized.await.unwrap().unwrap();
        model.bytes.truncate(length(end));
        model.check(&volume, "cut").await;
        model.resize(&volume, 2 * CHUNK).await;
        model.check(&volume, "grown").await;
        volume.abandon().await;
        let volume = bench.open().await;
        model.check(&volume, "opened").await;
        volume.close().await.unwrap();
        let volume = bench.open().await;
        tokio::time::sleep(COLLECTED).await;
        model.check(&volume, "closed").await;
        Kept::of(&bench).assert_exact(&bench);
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_has_the_size_of_its_instant() {
    let mut bench = bench_of(MIB).await;
    let volume = bench.open().await;
    let mut model = Model::new(0, MIB);
    model.write(&volume, MIB - CHUNK, 1, CHUNK).await;
    let mut taken = Vec::new();
    for (n, size) in [(1_u64, MIB), (2, 3 * MIB), (3, MIB / 2 + 512), (4, 2 * MIB)] {
        model.resize(&volume, size).await;
        model.write(&volume, size - CHUNK, n, CHUNK).await;
        volume.snapshot(&format!("s{n}")).await.unwrap();
        taken.push((format!("s{n}"), model.clone()));
    }
    let env = bench.env(16 * MIB);
    for (name, model) in &taken {
        let disk = SnapshotDisk::open(&env, &bench.options, volume.id(), name).await.unwrap();
        assert_eq!(disk.size_bytes(), model.end(), "{name}");
        let found = disk.read(0, model.end()).await.unwrap();
        assert!(bytes_of(&found) == model.bytes, "{name}");
    }
    // A disk that goes back to a snapshot has its size again.
    volume.restore("s2").await.unwrap();
    let volume = bench.open().await;
    taken[1].1.check(&volume, "restored").await;
    for (name, _) in &taken {
        volume.delete_snapshot(name).await.unwrap();
    }
    tokio::time::sleep(COLLECTED).await;
    taken[1].1.check(&volume, "without snapshots").await;
    Kept::of(&bench).assert_exact(&bench);
}

/// Whatever the size, a new one costs a few small objects, and a smaller one frees what was beyond it.
#[tokio::test(start_paused = true)]
async fn a_new_size_costs_a_few_objects_and_a_smaller_one_frees_the_rest() {
    let mut bench = bench_of(MIB).await;
    let volume = bench.open().await;
    let most = MAP_PAGE * 65_536;
    let mut model = Model::new(0, MIB);
    model.write(&volume, 0, 1, MIB).await;
    volume.checkpoint().await.unwrap();
    bench.memory.reset_tallies();
    volume.resize(most, Shrink::Refuse).await.unwrap();
    assert!(bench.puts("").requests <= 8, "{} requests", bench.puts("").requests);
    assert!(bench.puts("").bytes <= 64 * KIB, "{} bytes", bench.puts("").bytes);
    for at in (0..64).map(|n| most / 64 * n + 2 * MIB) {
        volume.write(at, pattern(at, 4096), Volatile).await.unwrap();
    }
    volume.zero(most / 2, most / 4, Zeroing::Allocate, Volatile).await.unwrap();
    volume.checkpoint().await.unwrap();
    assert!(Stored::of(&bench).root.map_pages.len() > 40);
    bench.memory.reset_tallies();
    volume.resize(MIB, Shrink::Discard).await.unwrap();
    assert!(bench.puts("").requests <= 8, "{} requests", bench.puts("").requests);
    tokio::time::sleep(COLLECTED).await;
    let root = Stored::of(&bench).root;
    assert_eq!((root.map_pages.len(), root.zeroed.len(), root.packs.len()), (1, 0, 0));
    Kept::of(&bench).assert_exact(&bench);
    model.check(&volume, "as it was").await;
    model.bytes.truncate(length(512));
    volume.resize(512, Shrink::Discard).await.unwrap();
    model.check(&volume, "a sector").await;
}
