//! Sizes: a disk that grows and shrinks while clients write it, by one gateway after the other, each of which
//! crashes anywhere.
//!
//! A run of its own for each seed, with a small disk, an array of numbers beside it, and a store whose answers
//! are late. It draws nothing from what the other runs draw. Invariants that it checks:
//!
//! * Every cell reads as what was written last, or as zeros if the disk ended before it since.
//! * A write that is answered lies within the disk. One that is refused lies beyond an end that the disk has
//!   or had meanwhile.
//! * A size that was answered lasts: an opener finds it, or a later one. So does everything that was written
//!   before it and answered.
//! * Once a size is answered, everyone sees it in the store.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn::effect::{Durability, Zeroing};
use cairn::store::fault::{Action, Rule};
use cairn::store::{Classes, Fault, MemoryStore, Operation};
use cairn::volume::read::concat;
use cairn::volume::{
    DirtyBudget, Entropy, Environment, Error, Options, PageCache, ResizeError, Shrink, Volume, catalog,
};
use futures::future::join_all;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::driver::volume_metrics;

/// The unit of writes and of sizes, in bytes.
const CELL: u64 = 512;
/// The largest disk, in cells: four chunks.
const MOST: u64 = 512;
const CHUNK: u64 = 64 << 10;
/// Gateways of a run, and what each does before it ends.
const LIVES: u32 = 5;
const ROUNDS: u32 = 12;
/// Limit on the duration of anything.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What a cell may contain.
#[derive(Clone, Debug, Default)]
struct Cell {
    /// What it contains while the gateway lives; 0 for zeros.
    now: u64,
    /// What else an opener may find: what it contained since the last answered commit.
    may: Vec<u64>,
}

impl Cell {
    fn set(&mut self, number: u64) {
        self.may.push(std::mem::replace(&mut self.now, number));
    }
}

/// A change of a client.
#[derive(Clone, Debug)]
struct Change {
    cells: Range<u64>,
    /// What is written; 0 to zero the cells.
    number: u64,
    durability: Durability,
    after: Duration,
}

/// The disk, and what is known of it.
struct Run {
    random: SmallRng,
    memory: MemoryStore,
    options: Options,
    budget_bytes: u64,
    seed: u64,
    cells: Vec<Cell>,
    /// Size in cells.
    size: u64,
    /// Sizes that an opener may find besides.
    sizes: Vec<u64>,
    numbers: u64,
    volume: Option<Arc<Volume>>,
}

/// Runs a seed. Returns what was broken.
pub(super) fn run(seed: u64) -> Option<String> {
    let panics = super::seeds::panics();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime without I/O");
    let ended = runtime.block_on(async {
        let lives = async { Run::new(seed).await.live().await };
        tokio::time::timeout(PATIENCE, lives).await.unwrap_or_else(|_| Err("it does not end".to_owned()))
    });
    drop(runtime);
    let is_panic = super::seeds::panics() > panics;
    let why = ended.err().or_else(|| is_panic.then(|| "a task panicked".to_owned()));
    why.map(|why| format!("sizes: {why}"))
}

fn pick(random: &mut SmallRng, from: &[u64]) -> u64 {
    *from.choose(random).expect("there are some")
}

impl Run {
    async fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed ^ 0x5eed_0000_0000_000d);
        let ms = Duration::from_millis;
        let options = Options {
            commit_max_age: ms(pick(&mut random, &[5, 50, 5000])),
            commit_chunk_wait: ms(pick(&mut random, &[0, 100])),
            commit_max_bytes: pick(&mut random, &[8, 32, 1024]) << 10,
            commits_in_flight: usize::try_from(pick(&mut random, &[1, 2, 8])).expect("few"),
            journal_max_bytes: pick(&mut random, &[32, 512]) << 10,
            journal_max_records: pick(&mut random, &[3, 100]),
            deletion_grace: ms(pick(&mut random, &[0, 3000])),
            pack_bytes: pick(&mut random, &[1, 3, 64]) * 4096,
            overlays: usize::try_from(pick(&mut random, &[1, 3])).expect("few"),
            embed_bytes: pick(&mut random, &[0, 4096]),
            holder_name: "sizes".to_owned(),
            metrics: Some(volume_metrics()),
            ..Options::default()
        };
        let memory = MemoryStore::unsorted(7);
        let size = random.random_range(1..=MOST);
        let budget_bytes = pick(&mut random, &[2, 8, 4096]) * 4096;
        let cells = vec![Cell::default(); usize::try_from(MOST).expect("few")];
        let (sizes, numbers, volume) = (Vec::new(), 0, None);
        let run = Self { random, memory, options, budget_bytes, seed, cells, size, sizes, numbers, volume };
        let made =
            catalog::create(&run.env(None), &run.options, "disk", size * CELL, catalog::ChunkBytes(CHUNK))
                .await;
        made.expect("an empty store takes a volume");
        run
    }

    /// The environment of a gateway whose requests take so long, or none.
    fn env(&self, delay: Option<Duration>) -> Environment {
        let fault = Fault::new(Arc::new(self.memory.clone()), self.seed);
        if let Some(delay) = delay {
            fault.add(Rule::new(Action::Delay(Duration::ZERO, delay)));
            fault.add(Rule::new(Action::DelayAnswer(Duration::ZERO, 4 * delay)).on(Operation::Put));
        }
        Environment {
            store: Classes::one(Arc::new(fault)),
            cache: PageCache::new(128 << 10, 1 << 20),
            budget: DirtyBudget::new(self.budget_bytes),
            entropy: Entropy::seeded(self.seed ^ self.numbers),
            wall_clock: Arc::new(|| 1_800_000_000),
        }
    }

    async fn live(&mut self) -> Result<(), String> {
        for _ in 0..LIVES {
            self.open().await?;
            for _ in 0..self.random.random_range(1..ROUNDS) {
                self.round().await?;
            }
            let volume = self.volume();
            match self.random.random_range(0..4) {
                0 => volume.close().await.map_err(|error| format!("it cannot be closed: {error}"))?,
                1 => volume.abandon().await,
                _ => self.crash().await,
            }
            if matches!(volume.status(), cairn::volume::Status::Stopped(why) if why.contains("closed")) {
                self.settle();
            }
        }
        self.open().await
    }

    fn volume(&self) -> Arc<Volume> {
        Arc::clone(self.volume.as_ref().expect("it was opened"))
    }

    /// Everything that was answered is durable.
    fn settle(&mut self) {
        self.cells.iter_mut().for_each(|cell| cell.may.clear());
        self.sizes.clear();
    }

    /// Opens the disk by a new gateway, and reads all of it.
    async fn open(&mut self) -> Result<(), String> {
        let delay = Duration::from_millis(pick(&mut self.random, &[0, 3, 30]));
        self.numbers += 1;
        let env = self.env((!delay.is_zero()).then_some(delay));
        let id = catalog::resolve(&env, "disk").await.map_err(|error| format!("no name: {error}"))?;
        let opened = Volume::open(&env, self.options.clone(), id, true).await;
        let volume = opened.map_err(|error| format!("it cannot be opened: {error}"))?;
        let found = volume.size_bytes() / CELL;
        if found != self.size && !self.sizes.contains(&found) {
            return Err(format!("{found} cells, not {} or one of {:?}", self.size, self.sizes));
        }
        // What was beyond the end that is found may have been cut off again, or be back.
        self.size = found;
        self.volume = Some(volume);
        let numbers = self.read().await?;
        for (number, cell) in numbers.into_iter().zip(&mut self.cells) {
            if number != cell.now && !cell.may.contains(&number) {
                return Err(format!("an opener finds {number}, not {cell:?}"));
            }
            cell.now = number;
        }
        let end = usize::try_from(self.size).expect("few");
        self.cells[end..].iter_mut().for_each(|cell| cell.now = 0);
        self.settle();
        Ok(())
    }

    /// The number in each cell.
    async fn read(&self) -> Result<Vec<u64>, String> {
        let read = self.volume().read(0, self.size * CELL).await;
        let bytes = concat(&read.map_err(|error| format!("it cannot be read: {error}"))?);
        let number = |cell: &[u8]| {
            let number = u64::from_le_bytes(cell[..8].try_into().expect("eight bytes"));
            let is_whole = cell.chunks(8).all(|part| part == number.to_le_bytes());
            is_whole.then_some(number).ok_or_else(|| "a cell is torn".to_owned())
        };
        bytes.chunks(usize::try_from(CELL).expect("small")).map(number).collect()
    }

    fn draw(&mut self) -> Change {
        self.numbers += 1;
        let random = &mut self.random;
        let (start, most) = match random.random_range(0..4) {
            0 => (random.random_range(0..4) * 128, 128),
            1 => (random.random_range(0..64) * 8, 16),
            // Around the end.
            _ => (self.size.saturating_sub(random.random_range(0..20)).min(MOST - 1), 24),
        };
        let end = (start + random.random_range(1..=most)).min(MOST);
        let number = if random.random_range(0..5) == 0 { 0 } else { self.numbers };
        let durability = if random.random() { Durability::Durable } else { Durability::Volatile };
        let after = Duration::from_millis(pick(random, &[0, 0, 1, 10, 100]));
        Change { cells: start..end, number, durability, after }
    }

    /// Some changes of different cells, often with a new size at the same time.
    async fn round(&mut self) -> Result<(), String> {
        let mut changes: Vec<Change> = Vec::new();
        for _ in 0..self.random.random_range(0..6) {
            let change = self.draw();
            let overlaps =
                |other: &Change| other.cells.start < change.cells.end && change.cells.start < other.cells.end;
            if !changes.iter().any(overlaps) {
                changes.push(change);
            }
        }
        let near = self.size + self.random.random_range(0..40);
        let anywhere = self.random.random_range(1..=MOST);
        let size = *[near.saturating_sub(20).clamp(1, MOST), anywhere].choose(&mut self.random).expect("two");
        let size = if self.random.random_range(0..3) == 0 { self.size } else { size };
        let after = Duration::from_millis(pick(&mut self.random, &[0, 1, 10]));
        let crashes_after = match self.random.random_range(0..12) {
            0 => Duration::from_millis(self.random.random_range(0..200)),
            _ => PATIENCE,
        };
        let volume = self.volume();
        let all = async {
            let resized = async {
                tokio::time::sleep(after).await;
                volume.resize(size * CELL, Shrink::Discard).await
            };
            tokio::join!(resized, join_all(changes.iter().map(|change| make(&volume, change))))
        };
        match tokio::time::timeout(crashes_after, all).await {
            Ok((resized, outcomes)) => self.judge(size, resized, &changes, outcomes).await,
            Err(_) => {
                self.cut_short(size, &changes);
                volume.abandon().await;
                self.open().await
            }
        }
    }

    async fn judge(
        &mut self,
        size: u64,
        resized: Result<(), ResizeError>,
        changes: &[Change],
        outcomes: Vec<Result<(), Error>>,
    ) -> Result<(), String> {
        resized.map_err(|error| format!("no size of {size} cells: {error}"))?;
        let is_changed = self.size != size;
        if is_changed {
            // What was answered before the call is durable with it.
            self.settle();
        }
        let smaller = self.size.min(size);
        let larger = self.size.max(size);
        for (change, outcome) in changes.iter().zip(outcomes) {
            match outcome {
                Ok(()) if change.cells.end > larger => {
                    return Err(format!("{change:?} is beyond {larger} cells, and is answered"));
                }
                Ok(()) => self.change(change, size),
                Err(Error::OutOfRange { .. }) if change.cells.end > smaller => {}
                Err(error) => return Err(format!("{change:?} of {smaller} to {larger} cells: {error}")),
            }
        }
        self.cut(size);
        self.size = size;
        if is_changed {
            let info = catalog::info(&self.env(None), "disk").await;
            let seen = info.map_err(|error| format!("no description: {error}"))?.size_bytes;
            if seen != size * CELL {
                return Err(format!("{size} cells are answered, and everyone sees {seen} bytes"));
            }
        }
        if self.random.random_range(0..4) == 0 {
            let flushed = self.volume().flush().await;
            flushed.map_err(|error| format!("no flush: {error}"))?;
            self.settle();
        }
        let found = self.read().await?;
        let mut pairs = found.iter().zip(&self.cells).enumerate();
        match pairs.find(|(_, (number, cell))| **number != cell.now) {
            Some((at, (number, cell))) => Err(format!("cell {at} of {size} reads as {number}, not {cell:?}")),
            None => Ok(()),
        }
    }

    /// A change was made.
    fn change(&mut self, change: &Change, size: u64) {
        for cell in change.cells.clone() {
            let at = usize::try_from(cell).expect("few");
            self.cells[at].set(change.number);
            if change.durability == Durability::Durable && cell < size {
                self.cells[at].may.clear();
            }
        }
    }

    /// The disk ends here from now on, or grows from here.
    fn cut(&mut self, size: u64) {
        let end = usize::try_from(size).expect("few");
        for cell in &mut self.cells[end..] {
            cell.set(0);
        }
    }

    /// Any of these may have been made, in any order.
    fn cut_short(&mut self, size: u64, changes: &[Change]) {
        self.sizes.push(size);
        for change in changes {
            for cell in change.cells.clone() {
                self.cells[usize::try_from(cell).expect("few")].may.extend([change.number, 0]);
            }
        }
        let end = usize::try_from(size).expect("few");
        self.cells[end..].iter_mut().for_each(|cell| cell.may.push(0));
    }

    /// Ends a gateway in the middle of changes that nobody waits for.
    async fn crash(&mut self) {
        let changes: Vec<Change> = (0..3).map(|_| self.draw()).collect();
        let size = self.random.random_range(1..=MOST);
        let lasts = Duration::from_millis(self.random.random_range(0..100));
        let volume = self.volume();
        let all = async {
            tokio::join!(
                volume.resize(size * CELL, Shrink::Discard),
                join_all(changes.iter().map(|change| make(&volume, change)))
            )
        };
        // Whether it ends in time or not, nobody heard of it.
        if tokio::time::timeout(lasts, all).await.is_err() {
            tokio::task::yield_now().await;
        }
        self.cut_short(size, &changes);
        volume.abandon().await;
    }
}

async fn make(volume: &Volume, change: &Change) -> Result<(), Error> {
    tokio::time::sleep(change.after).await;
    let (offset, length) = (change.cells.start * CELL, (change.cells.end - change.cells.start) * CELL);
    if change.number == 0 {
        return volume.zero(offset, length, Zeroing::Deallocate, change.durability).await;
    }
    let words = usize::try_from(length / 8).expect("small");
    let data = change.number.to_le_bytes().repeat(words);
    volume.write(offset, Bytes::from(data), change.durability).await
}

#[test]
fn a_disk_that_grows_and_shrinks_keeps_what_is_within_it() {
    for seed in 0..40 {
        if let Some(why) = run(seed) {
            panic!("seed {seed}: {why}");
        }
    }
}
