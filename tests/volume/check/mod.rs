//! `check`: what it finds, what it says that this costs, and that it finds nothing where nothing is wrong.

mod damage;
mod live;
mod sound;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cairn::effect::Durability::Volatile;
use cairn::metrics::Metrics;
use cairn::store::retry::{Patience, RetryOptions};
use cairn::store::{ByteRange, Classes, Condition, ETag, Error, ListFrom, Listing, Object, Retry, Store};
use cairn::volume::check::{Depth, Finding, Report, check};
use cairn::volume::{Environment, Volume};

use super::bench::{Bench, MIB, pattern};

const KIB: u64 = 1024;
/// Size of a chunk, and of a page.
const CHUNK: u64 = 64 * KIB;
const BLOCK: u64 = 4096;
/// How many bytes of the volume one map page covers.
const MAP_PAGE: u64 = 4096 * CHUNK;
/// Size of the volume: it has two map pages, and the last one is not whole.
const SIZE: u64 = MAP_PAGE + 8 * MIB;
/// Longer than whatever a gateway does by itself with a grace period of 0.
const SETTLED: Duration = Duration::from_secs(60);

/// A list of one range.
fn one_range(range: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(range).collect()
}

/// Passes reads on, and counts the changes that somebody tries to make.
#[derive(Debug)]
struct Guarded {
    inner: Arc<dyn Store>,
    changes: Arc<AtomicU64>,
}

#[async_trait]
impl Store for Guarded {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        self.inner.get(key, range).await
    }

    async fn put(&self, key: &str, _: Bytes, _: Condition) -> Result<ETag, Error> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        Err(Error::PreconditionFailed { key: key.to_owned() })
    }

    async fn delete(&self, _: &[String]) -> Result<(), Error> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        self.inner.list(prefix, from).await
    }
}

/// The environment of a check, over the faults of a bench and with the retries of the program. Counts changes.
fn env_of(bench: &Bench) -> (Environment, Arc<AtomicU64>) {
    let changes = Arc::new(AtomicU64::new(0));
    let guarded = Guarded { inner: Arc::new(bench.fault.clone()), changes: Arc::clone(&changes) };
    let read = Patience { deadline: Some(Duration::from_secs(600)), refusals: Some(3) };
    let options = RetryOptions { read, ..RetryOptions::default() };
    let store = Retry::new(Arc::new(guarded), options, Metrics::new().store(), 1);
    (Environment { store: Classes::one(Arc::new(store)), ..bench.env(MIB) }, changes)
}

/// Checks the volume of a bench, which must not change anything.
async fn checked(bench: &Bench, depth: Depth) -> Report {
    let (env, changes) = env_of(bench);
    let report = check(&env, "disk", depth).await.expect("it can be checked");
    assert_eq!(changes.load(Ordering::Relaxed), 0, "it tried to change something");
    report
}

/// Checks a volume at every depth. Nothing must be found but orphans.
async fn assert_sound(bench: &Bench, when: &str) -> Report {
    for depth in [Depth::References, Depth::Structure] {
        let report = checked(bench, depth).await;
        assert!(!report.is_damaged() && report.incomplete.is_none(), "{when}: {report:?}");
    }
    let report = checked(bench, Depth::Data).await;
    assert!(!report.is_damaged() && report.incomplete.is_none(), "{when}: {report:?}");
    assert!(report.ranges.is_empty() && report.omitted_findings == 0, "{when}: {report:?}");
    assert_eq!(report.size_bytes, Some(SIZE), "{when}");
    report
}

fn ranges(finding: &Finding) -> Vec<Range<u64>> {
    finding.ranges.iter().collect()
}

/// Returns a range without some others, which are sorted.
fn without(range: Range<u64>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut rest = Vec::new();
    let mut at = range.start;
    for other in others.iter().filter(|other| other.start < range.end && range.start < other.end) {
        if other.start > at {
            rest.push(at..other.start);
        }
        at = at.max(other.end);
    }
    if at < range.end {
        rest.push(at..range.end);
    }
    rest
}

fn block(chunk: u64, block: u64) -> Range<u64> {
    let start = chunk * CHUNK + block * BLOCK;
    start..start + BLOCK
}

async fn write(volume: &Volume, range: Range<u64>, seed: u64) {
    let length = usize::try_from(range.end - range.start).unwrap();
    volume.write(range.start, pattern(seed, length), Volatile).await.unwrap();
}

/// What `fixture` wrote, by where it lies.
struct Written {
    /// Numbers of the chunks with a chunk object.
    chunks: Vec<u64>,
    /// Blocks in packs, each over a chunk object, in the map page 0.
    packed: Vec<Range<u64>>,
    /// Ranges that records of the journal change.
    journal: Vec<Range<u64>>,
    /// The ranges of the second commit of the journal.
    second: Vec<Range<u64>>,
}

/// A volume with objects of every kind. A gateway wrote it and died, and another one opened it and died.
///
/// Chunks 0 to 5 and chunk 4,096, in the second map page, have objects. Block 3 of chunks 0 to 3 lies in a pack.
/// The journal changes blocks 3 and 4 of chunk 2, and writes chunk 5 anew.
async fn fixture(bench: &mut Bench) -> Written {
    bench.options.embed_bytes = 0;
    bench.options.consolidate_percent = 90;
    bench.options.deletion_grace = Duration::ZERO;
    let volume = bench.open().await;
    let chunks = [0, 1, 2, 3, 4, 5, 4096];
    for chunk in chunks {
        write(&volume, chunk * CHUNK..(chunk + 1) * CHUNK, chunk + 1).await;
    }
    volume.checkpoint().await.unwrap();
    for chunk in 0..4 {
        write(&volume, block(chunk, 3), 100 + chunk).await;
    }
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(SETTLED).await;
    write(&volume, block(2, 3), 200).await;
    volume.flush().await.unwrap();
    write(&volume, block(2, 4), 201).await;
    volume.flush().await.unwrap();
    write(&volume, 5 * CHUNK..6 * CHUNK, 202).await;
    volume.flush().await.unwrap();
    drop(volume);
    let volume = bench.open().await;
    tokio::time::sleep(SETTLED).await;
    drop(volume);
    let second = vec![block(2, 4)];
    let journal = vec![block(2, 3).start..block(2, 4).end, 5 * CHUNK..6 * CHUNK];
    Written {
        chunks: chunks.to_vec(),
        packed: (0..4).map(|chunk| block(chunk, 3)).collect(),
        journal,
        second,
    }
}

async fn fixture_bench() -> (Bench, Written) {
    let mut bench = Bench::with_chunks(SIZE, CHUNK).await;
    let written = fixture(&mut bench).await;
    (bench, written)
}

/// The blocks of a range that cannot be read, merged.
async fn unreadable(volume: &Volume, range: Range<u64>) -> Vec<Range<u64>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    for at in range.step_by(usize::try_from(BLOCK).unwrap()) {
        if volume.read(at, BLOCK).await.is_err() {
            match found.last_mut().filter(|last| last.end == at) {
                Some(last) => last.end = at + BLOCK,
                None => found.push(at..at + BLOCK),
            }
        }
    }
    found
}

/// Keys of all objects of the volume, with those of its name and identity.
fn all_keys(bench: &Bench) -> BTreeSet<String> {
    bench.memory.objects().into_keys().filter(|key| !key.starts_with("probe/")).collect()
}
