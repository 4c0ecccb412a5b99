//! The commands that a workload gave to a disk, given to a volume in a simulation that crashes at any time.
//!
//! The volume runs on a runtime whose clock is simulated, over a store in memory whose answers are late, lost, refused and
//! damaged as the seed draws it. It is asked what the workload asked, one command beside the other where the workload did
//! not wait. Every READ must give what it gave to the workload. At points that the seed picks the runtime stands still:
//! what the store holds then, with requests on their way, is what a crash would leave. A fresh gateway recovers from a
//! copy of it, in the same weather, and the image is checked as after any power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cairn::metrics::Metrics;
use cairn::store::fault::{Action, Failure, Rule};
use cairn::store::retry::{Patience, RetryOptions};
use cairn::store::{Fault, MemoryStore, Operation, Retry};
use cairn::task::Tasks;
use cairn::volume::read::concat;
use cairn::volume::{DirtyBudget, Entropy, Environment, PageCache, Segment, Volume, catalog};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::cell::{Cell, FileSystem, Place, Workload};
use super::recorded::{Command, Event, Recording, record};
use super::recovered::check_image;
use super::running::Round;
use super::{asked, seed};

/// Crashes of a run that nobody asked for more of.
const POINTS: u64 = 200;
const MIB: u64 = 1 << 20;
const CHUNK: u64 = 256 << 10;
/// Longest time between the event and the crash after it, in milliseconds.
const LINGER: u64 = 40;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A runtime whose clock goes on when there is nothing else to do.
fn simulated() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime without I/O")
}

/// A store in memory, and rough weather on the way to it.
fn weather(memory: &MemoryStore, seed: u64) -> Fault {
    let fault = Fault::new(Arc::new(memory.clone()), seed);
    let often = |action, share| fault.add(Rule::new(action).probability(share));
    often(Action::Delay(ms(0), ms(20)), 1.0);
    often(Action::DelayAnswer(ms(0), ms(20)), 1.0);
    often(Action::Delay(ms(100), ms(2000)), 0.01);
    often(Action::FailBefore(Failure::Transient), 0.03);
    often(Action::FailBefore(Failure::Throttled), 0.03);
    often(Action::FailAfter(Failure::Timeout), 0.03);
    for operation in [Operation::Put, Operation::Delete] {
        fault.add(Rule::new(Action::Late(Failure::Timeout, 20)).on(operation).probability(0.01));
    }
    for damage in [Action::FlipBit, Action::Short] {
        fault.add(Rule::new(damage).on(Operation::Get).probability(0.01));
    }
    fault
}

fn environment(memory: &MemoryStore, seed: u64) -> Environment {
    let patient = Patience { deadline: None, refusals: None };
    let retry =
        RetryOptions { base: ms(10), cap: ms(200), read: patient, write: patient, log_interval: ms(10_000) };
    let store = Retry::new(Arc::new(weather(memory, seed)), retry, Metrics::new().store(), seed);
    Environment {
        store: cairn::store::Classes::one(Arc::new(store)),
        cache: PageCache::new(4 * MIB, MIB),
        budget: DirtyBudget::new(16 * MIB),
        entropy: Entropy::seeded(seed),
        wall_clock: Arc::new(|| 1_800_000_000),
    }
}

/// A volume that commits, folds and deletes much more often than one would have it.
fn volume_options() -> cairn::volume::Options {
    cairn::volume::Options {
        commit_max_bytes: 512 << 10,
        journal_max_bytes: 4 * MIB,
        deletion_grace: Duration::ZERO,
        head_interval: ms(20),
        ..cairn::volume::Options::default()
    }
}

async fn open(env: &Environment) -> Arc<Volume> {
    let volume = catalog::resolve(env, "disk").await.expect("the volume is there");
    Volume::open(env, volume_options(), volume, true).await.expect("the volume opens")
}

/// Does what the workload did: says what is wrong with it.
async fn perform(volume: Arc<Volume>, command: Command, is_overlapped: bool) -> Result<(), String> {
    match command {
        Command::Read(offset, data) => {
            let segments = volume.read(offset, data.len() as u64).await.map_err(|why| why.to_string())?;
            if concat(&segments) != data[..] && !is_overlapped {
                return Err(format!("{} bytes at {offset} are read otherwise", data.len()));
            }
            Ok(())
        }
        Command::Write { offset, data, durability } => {
            volume.write(offset, data, durability).await.map_err(|why| why.to_string())
        }
        Command::Zero { offset, length, zeroing, durability } => {
            volume.zero(offset, length, zeroing, durability).await.map_err(|why| why.to_string())
        }
        Command::Flush => volume.flush().await.map_err(|why| why.to_string()),
    }
}

/// The volume at work.
struct Player<'a> {
    recording: &'a Recording,
    overlaps: Vec<bool>,
    volume: Arc<Volume>,
    tasks: Tasks,
    under_way: BTreeMap<usize, JoinHandle<Result<(), String>>>,
    random: SmallRng,
    /// Events that have happened.
    come: usize,
}

impl Player<'_> {
    /// Goes on until so many events have happened, and a little longer.
    async fn play(&mut self, until: usize) -> Result<(), String> {
        for event in &self.recording.events[self.come..until] {
            match event {
                Event::Asked(number) => {
                    let command = self.recording.commands[*number].clone();
                    let doing = perform(Arc::clone(&self.volume), command, self.overlaps[*number]);
                    self.under_way.insert(*number, self.tasks.spawn(doing));
                }
                Event::Answered(number) => {
                    let done = self.under_way.remove(number).expect("what is answered was asked");
                    done.await.expect("no task panics").map_err(|why| format!("command {number}: {why}"))?;
                }
            }
            if self.random.random_bool(0.02) {
                tokio::time::sleep(ms(self.random.random_range(0..500))).await;
            }
        }
        self.come = until;
        if self.random.random() {
            tokio::time::sleep(ms(self.random.random_range(0..LINGER))).await;
        } else {
            for _ in 0..self.random.random_range(0..24_u32) {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }
}

/// What a fresh gateway recovers from what stands in the store now, as an image.
async fn recover(left: MemoryStore, seed: u64, image: &Path) {
    let volume = open(&environment(&left, seed)).await;
    let file = std::fs::File::create(image).expect("the directory can be written");
    file.set_len(volume.size_bytes()).expect("files may have holes");
    for offset in (0..volume.size_bytes()).step_by(4 << 20) {
        let length = (4 * MIB).min(volume.size_bytes() - offset);
        let mut at = offset;
        for segment in volume.read(offset, length).await.expect("retries have no end") {
            match segment {
                Segment::Data(data) => {
                    std::os::unix::fs::FileExt::write_all_at(&file, &data, at)
                        .expect("the image can be written");
                    at += data.len() as u64;
                }
                Segment::Zero(length) => at += length,
            }
        }
    }
}

fn copy(store: &MemoryStore) -> MemoryStore {
    let copy = MemoryStore::new();
    for (key, body) in store.objects() {
        copy.insert(&key, body);
    }
    copy
}

/// Draws so many events to crash after, every other one a FLUSH that was just asked for.
fn points_of(recording: &Recording, points: u64, seed: u64) -> BTreeSet<usize> {
    let (first, events) = (recording.answers[0].0, recording.events.len());
    let is_flush = |event: &Event| match event {
        Event::Asked(number) => recording.commands[*number] == Command::Flush,
        Event::Answered(_) => false,
    };
    let flushes: Vec<usize> =
        (first..events).filter(|at| is_flush(&recording.events[*at])).map(|at| at + 1).collect();
    let mut random = SmallRng::seed_from_u64(seed);
    let mut chosen = BTreeSet::new();
    assert!(flushes.len() as u64 >= points / 2, "the workload asks for {} flushes", flushes.len());
    while (chosen.len() as u64) < points / 2 {
        chosen.insert(flushes[random.random_range(0..flushes.len())]);
    }
    while (chosen.len() as u64) < points {
        chosen.insert(random.random_range(first..=events));
    }
    chosen
}

/// Crashes at so many points of what a workload did; what was broken, if anything was.
fn replay(workload: Workload, points: u64, seed: u64) -> Result<(), String> {
    let cell = Cell { file_system: FileSystem::Ext4, workload, place: Place::Host };
    let round = Round { cell, number: 1, seed };
    let (size, count) = match workload {
        Workload::Postgres => (256 * MIB, 200),
        Workload::Sqlite | Workload::Fsx => (64 * MIB, 150),
        Workload::Fio => (64 * MIB, 16),
    };
    let real = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let recording = real.block_on(record(&round, size, count));
    let chosen = points_of(&recording, points, seed);
    let memory = MemoryStore::new();
    let runtime = simulated();
    let volume = runtime.block_on(async {
        let env = environment(&memory, seed);
        catalog::create(&env, &volume_options(), "disk", size, catalog::ChunkBytes(CHUNK))
            .await
            .expect("created");
        open(&env).await
    });
    let overlaps = recording.overlaps();
    let mut player = Player {
        recording: &recording,
        overlaps,
        volume,
        tasks: Tasks::new(),
        under_way: BTreeMap::new(),
        random: SmallRng::seed_from_u64(seed + 1),
        come: 0,
    };
    let mut under_way = 0;
    for &event in &chosen {
        let broken = |why: String| format!("{cell}: crash after event {event} of seed {seed}: {why}");
        runtime.block_on(player.play(event)).map_err(broken)?;
        under_way += player.under_way.values().filter(|doing| !doing.is_finished()).count();
        let files = tempfile::tempdir().expect("a directory for the image");
        let image = files.path().join("image");
        simulated().block_on(recover(copy(&memory), seed + 3 + event as u64, &image));
        let answered = recording.answers.iter().filter(|(at, _)| *at <= event);
        let answered: Vec<String> = answered.map(|(_, answer)| answer.clone()).collect();
        real.block_on(check_image(&round, files.path(), &image, &answered)).map_err(broken)?;
    }
    println!(
        "{cell}: {} crashes among {} commands with {under_way} of them under way, {count} answers",
        chosen.len(),
        recording.commands.len()
    );
    Ok(())
}

#[test]
#[ignore = "needs PostgreSQL, SQLite, e2fsprogs, fio, libnbd, util-linux"]
fn what_was_answered_survives_a_crash_at_any_time() {
    let all = [Workload::Sqlite, Workload::Fsx, Workload::Fio, Workload::Postgres];
    let (points, seed) = (asked("CAIRN_POWER_POINTS", POINTS), seed());
    let turn = usize::try_from(asked("CAIRN_POWER_TURN", 0)).expect("turns are few");
    let is_all = std::env::var("CAIRN_POWER_CELLS").is_ok_and(|names| names == "all");
    for workload in if is_all { &all[..] } else { std::slice::from_ref(&all[turn % all.len()]) } {
        replay(*workload, points, seed).unwrap_or_else(|why| panic!("{why}"));
    }
}

/// The replay, tested: commits that are answered before they are durable, and folds that lose an edge.
#[cfg(feature = "mutants")]
#[test]
#[ignore = "needs e2fsprogs, libnbd, util-linux"]
fn what_breaks_a_promise_is_caught() {
    use cairn::mutant::{Mutant, choose};
    for mutant in [Mutant::FlushAnsweredEarly, Mutant::FoldEdgeLost] {
        choose(Some(mutant));
        let why = replay(Workload::Fsx, POINTS, 1).expect_err("a promise was broken");
        choose(None);
        println!("{}: {why}", mutant.name());
    }
}
