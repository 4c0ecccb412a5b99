//! The commands that a workload gave to a disk, given to a volume that crashes between them.
//!
//! A disk in memory puts down every change and flush, and how many answers the workload had by then. A volume over a
//! store in memory is given the same; at points that the seed picks, what the store holds is what a crash would leave:
//! a fresh gateway recovers from a copy of it, and the image is checked as after any power cut.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use cairn::metrics::Metrics;
use cairn::protocol::TransmissionFlags;
use cairn::server::{
    Allocation, Export, ExportDescription, ExportError, Greeting, Listener, Options, Segment, Server,
};
use cairn::store::MemoryStore;
use cairn::volume::{DirtyBudget, Entropy, Environment, PageCache, Volume, catalog};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Mutex;

use super::asked;
use super::cell::{Cell, FileSystem, Place, Workload};
use super::recovered::{check_image, make};
use super::running::{Round, Running};
use crate::support::memory_export::{MemoryExport, MemoryExports};

/// Crashes of a run that nobody asked for more of.
const POINTS: u64 = 200;
const MIB: u64 = 1 << 20;

/// What a disk was told to do.
enum Change {
    Write(u64, Bytes, bool),
    Zero { offset: u64, length: u64, hole: bool, fua: bool },
    Flush,
}

/// A disk in memory that remembers what it was told, in the order in which it did it.
struct Recorder {
    inner: MemoryExport,
    trace: Mutex<Vec<Change>>,
}

#[async_trait]
impl Export for Recorder {
    fn description(&self) -> ExportDescription {
        let inner = self.inner.description();
        ExportDescription { flags: inner.flags - TransmissionFlags::CAN_MULTI_CONN, ..inner }
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
        self.inner.read(offset, length).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), ExportError> {
        let mut trace = self.trace.lock().await;
        // A copy: what came off the wire is part of a larger buffer.
        trace.push(Change::Write(offset, Bytes::copy_from_slice(&data), fua));
        self.inner.write(offset, data, fua).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        let mut trace = self.trace.lock().await;
        trace.push(Change::Flush);
        self.inner.flush().await
    }

    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), ExportError> {
        self.write_zeroes(offset, length, false, false, fua).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        no_hole: bool,
        fast: bool,
        fua: bool,
    ) -> Result<(), ExportError> {
        let mut trace = self.trace.lock().await;
        trace.push(Change::Zero { offset, length, hole: !no_hole, fua });
        self.inner.write_zeroes(offset, length, no_hole, fast, fua).await
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.inner.cache(offset, length).await
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        self.inner.block_status(offset, length, limit).await
    }
}

/// What was recorded: the changes, and after how many of them each answer was heard of.
struct Recording {
    changes: Vec<Change>,
    answers: Vec<(usize, String)>,
}

/// Runs a workload on a disk in memory until it has had so many answers.
async fn record(round: &Round, size: u64, count: usize) -> Recording {
    let recorder = Arc::new(Recorder { inner: MemoryExport::new("disk", size), trace: Mutex::default() });
    let exports = MemoryExports::new(vec![Arc::clone(&recorder) as _]);
    let server = Server::new(Arc::new(exports), Options::default(), Metrics::new().server());
    let address = "127.0.0.1:0".parse().expect("an address");
    let listener = Listener::bind(&address).await.expect("loopback has free ports");
    let uri = format!("nbd://{}/disk", server.listen(listener, Greeting::Newstyle));
    make(round.cell.file_system, &uri, size).await;
    let mut running = Running::start(round, &uri).await;
    let mut answers = Vec::new();
    while answers.len() < count {
        running.answers(answers.len() + 1).await;
        let changes = recorder.trace.lock().await.len();
        answers.extend(running.told().drain(answers.len()..).map(|answer| (changes, answer)));
    }
    running.cut().await;
    server.hang_up().await;
    let changes = std::mem::take(&mut *recorder.trace.lock().await);
    Recording { changes, answers }
}

fn environment(store: &MemoryStore, seed: u64) -> Environment {
    Environment {
        store: Arc::new(store.clone()),
        cache: PageCache::new(64 * MIB, MIB),
        budget: DirtyBudget::new(64 * MIB),
        entropy: Entropy::seeded(seed),
        wall_clock: Arc::new(|| 1_800_000_000),
    }
}

/// A volume that commits, folds and deletes much more often than one would have it.
async fn open(store: &MemoryStore, seed: u64) -> Arc<Volume> {
    let env = environment(store, seed);
    let volume = catalog::resolve(&env, "disk").await.expect("the volume is there");
    Volume::open(&env, volume_options(), volume, true).await.expect("the volume opens")
}

fn volume_options() -> cairn::volume::Options {
    cairn::volume::Options {
        commit_max_bytes: 512 << 10,
        journal_max_bytes: 4 * MIB,
        deletion_grace: std::time::Duration::ZERO,
        head_interval: std::time::Duration::from_millis(20),
        ..cairn::volume::Options::default()
    }
}

async fn apply(volume: &Volume, change: &Change) {
    let done = match change {
        Change::Write(offset, data, fua) => volume.write(*offset, data.clone(), *fua).await,
        Change::Zero { offset, length, hole, fua } => volume.zero(*offset, *length, *hole, *fua).await,
        Change::Flush => volume.flush().await,
    };
    done.expect("a store in memory does not fail");
}

/// What a fresh gateway recovers from what stands in the store now, as an image.
async fn recover(store: &MemoryStore, seed: u64, image: &std::path::Path) {
    let left = MemoryStore::new();
    for (key, body) in store.objects() {
        left.insert(&key, body);
    }
    let volume = open(&left, seed).await;
    let file = std::fs::File::create(image).expect("the directory can be written");
    file.set_len(volume.size_bytes()).expect("files may have holes");
    for offset in (0..volume.size_bytes()).step_by(4 << 20) {
        let length = (4 * MIB).min(volume.size_bytes() - offset);
        let mut at = offset;
        for segment in volume.read(offset, length).await.expect("a store in memory does not fail") {
            match segment {
                cairn::volume::Segment::Data(data) => {
                    std::os::unix::fs::FileExt::write_all_at(&file, &data, at)
                        .expect("the image can be written");
                    at += data.len() as u64;
                }
                cairn::volume::Segment::Zero(length) => at += length,
            }
        }
    }
    volume.abandon().await;
}

/// Crashes at so many points of what a workload did.
async fn replay(workload: Workload, points: u64, seed: u64) {
    let cell = Cell { file_system: FileSystem::Ext4, workload, place: Place::Host };
    let round = Round { cell, number: 1, seed };
    let (size, count) = match workload {
        Workload::Postgres => (256 * MIB, 200),
        Workload::Sqlite | Workload::Fsx => (64 * MIB, 150),
        Workload::Fio => (64 * MIB, 16),
    };
    let recording = record(&round, size, count).await;
    let changes = recording.changes.len();
    let first = recording.answers[0].0;
    let mut random = SmallRng::seed_from_u64(seed);
    let mut chosen: BTreeSet<usize> = BTreeSet::new();
    while (chosen.len() as u64) < points.min((changes - first) as u64) {
        chosen.insert(random.random_range(first..changes));
    }

    let store = MemoryStore::new();
    catalog::create(&environment(&store, 1), &volume_options(), "disk", size, 256 << 10)
        .await
        .expect("created");
    let volume = open(&store, 2).await;
    for (number, change) in recording.changes.iter().enumerate() {
        if chosen.contains(&number) {
            let files = tempfile::tempdir().expect("a directory for the image");
            let image = files.path().join("image");
            recover(&store, number as u64 + 3, &image).await;
            let answered =
                recording.answers.iter().filter(|(at, _)| *at <= number).map(|(_, answer)| answer.clone());
            let checked = check_image(&round, files.path(), &image, &answered.collect::<Vec<_>>()).await;
            checked
                .unwrap_or_else(|why| panic!("{cell}: crash before change {number} of seed {seed}: {why}"));
        }
        apply(&volume, change).await;
    }
    volume.abandon().await;
    println!("{cell}: {} crashes between {changes} changes, {count} answers", chosen.len());
}

#[tokio::test]
async fn what_was_answered_survives_a_crash_between_any_two_commands() {
    let all = [Workload::Sqlite, Workload::Fsx, Workload::Fio, Workload::Postgres];
    let (points, seed) = (asked("CAIRN_POWER_POINTS", POINTS), asked("CAIRN_POWER_SEED", 1));
    let turn = usize::try_from(asked("CAIRN_POWER_TURN", 0)).expect("turns are few");
    let is_all = std::env::var("CAIRN_POWER_CELLS").is_ok_and(|names| names == "all");
    for workload in if is_all { &all[..] } else { std::slice::from_ref(&all[turn % all.len()]) } {
        replay(*workload, points, seed).await;
    }
}
