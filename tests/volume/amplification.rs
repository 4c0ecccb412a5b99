//! What random writes upload and store, and what random reads fetch: the goals of docs/engine.md at 1/128 of their size.
//!
//! Disk, chunks, journal and cache are in the same proportion to one another as at full size. All counts are exact,
//! because nothing but this test uses the store.

use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::metrics::Metrics;
use cairn::metrics::labels::Tier;
use cairn::store::Operation;
use cairn::volume::{Environment, Options, PageCache, Volume, catalog};
use rand::rngs::SmallRng;
use rand::seq::{SliceRandom, index};
use rand::{Rng, SeedableRng};

use super::bench::{Bench, MIB, pattern, quiesce, read};

const DISK_BYTES: u64 = 64 * MIB;
const BLOCK_BYTES: u64 = 4096;
const BLOCKS: usize = 16_384;
/// Writes between two flushes.
const FLUSH_EVERY: usize = 64;
/// As much of the cache as 50,000 blocks take of the default of 256 MiB.
const CACHE_BYTES: u64 = 4 * MIB;
const HOT_BLOCKS: usize = 781;

/// A full disk, and what was written to it.
struct Disk {
    bench: Bench,
    volume: Arc<Volume>,
    /// The version of each block. It determines the bytes of the block.
    versions: Vec<u64>,
    rng: SmallRng,
}

/// What a load cost.
#[derive(Debug)]
struct Cost {
    uploaded_for_each_byte: f64,
    /// Stored bytes for each live byte, after the flush at which this was highest.
    most_stored_for_each_live_byte: f64,
    checkpoints: u64,
}

fn bytes_of(block: usize, version: u64) -> bytes::Bytes {
    pattern((block as u64) << 16 | version, 4096)
}

fn offset_of(block: usize) -> u64 {
    block as u64 * BLOCK_BYTES
}

impl Disk {
    /// Writes a disk from its first block to its last one, and folds it.
    async fn full() -> Self {
        let mut bench = Bench::with_chunks(DISK_BYTES, MIB).await;
        bench.options = Options {
            journal_max_bytes: 2 * MIB,
            deletion_grace: Duration::ZERO,
            holder_name: "first".to_owned(),
            ..Options::default()
        };
        let volume = bench.open().await;
        let mut disk = Self { bench, volume, versions: vec![0; BLOCKS], rng: SmallRng::seed_from_u64(1) };
        for block in 0..BLOCKS {
            disk.write(block).await;
        }
        disk.drain().await;
        disk
    }

    async fn write(&mut self, block: usize) {
        self.versions[block] += 1;
        let bytes = bytes_of(block, self.versions[block]);
        self.volume.write(offset_of(block), bytes, Volatile).await.unwrap();
    }

    /// Publishes a checkpoint, and waits until only the lease is renewed.
    async fn drain(&self) {
        self.volume.checkpoint().await.unwrap();
        let memory = &self.bench.memory;
        let requests = || {
            [Operation::Put, Operation::Get, Operation::Delete]
                .map(|operation| memory.tally(operation, |key| !key.ends_with("/head")).requests)
        };
        let mut before = requests();
        loop {
            tokio::time::sleep(Duration::from_secs(60)).await;
            let now = requests();
            if std::mem::replace(&mut before, now) == now {
                return;
            }
        }
    }

    fn stored_for_each_live_byte(&self) -> f64 {
        let stored: usize = self.bench.memory.objects().values().map(bytes::Bytes::len).sum();
        stored as f64 / DISK_BYTES as f64
    }

    /// Writes random blocks of the whole disk.
    async fn overwrite(&mut self, writes: usize) -> Cost {
        self.bench.memory.reset_tallies();
        let checkpoints = self.volume.usage().checkpoints;
        let mut most = 0.0_f64;
        for n in 1..=writes {
            let block = self.rng.random_range(0..BLOCKS);
            self.write(block).await;
            if n.is_multiple_of(FLUSH_EVERY) {
                self.volume.flush().await.unwrap();
                most = most.max(self.stored_for_each_live_byte());
            }
        }
        self.drain().await;
        let uploaded = self.bench.memory.tally(Operation::Put, |_| true).bytes;
        let cost = Cost {
            uploaded_for_each_byte: uploaded as f64 / (writes as f64 * BLOCK_BYTES as f64),
            most_stored_for_each_live_byte: most.max(self.stored_for_each_live_byte()),
            checkpoints: self.volume.usage().checkpoints - checkpoints,
        };
        println!("{cost:?}");
        cost
    }

    /// Reads a block, and compares it with what was written.
    async fn check(&self, block: usize) {
        let bytes = read(&self.volume, offset_of(block), BLOCK_BYTES).await;
        let is_right = bytes == bytes_of(block, self.versions[block]);
        assert!(is_right, "block {block}");
    }

    /// Closes the disk, and opens it by a gateway with an empty cache of `bytes` bytes.
    async fn reopen(&mut self, options: Options, bytes: u64) {
        self.volume.close().await.unwrap();
        self.bench = self.bench.beside();
        // What it holds must not depend on the time between uses.
        let env = Environment { cache: PageCache::eager(bytes, MIB), ..self.bench.env(bytes) };
        let id = catalog::resolve(&env, "disk").await.unwrap();
        self.volume = Volume::open(&env, options, id, true).await.unwrap();
        self.bench.memory.reset_tallies();
    }

    /// Reads the disk from its first block to its last one with a cache of a quarter of its size. If the
    /// cache is `used`, it is full of blocks that were read three times.
    async fn fetched_for_each_byte_in_order(&mut self, used: bool) -> f64 {
        self.reopen(self.bench.options.clone(), DISK_BYTES / 4).await;
        if used {
            for block in index::sample(&mut self.rng.clone(), BLOCKS, BLOCKS / 3) {
                for _ in 0..3 {
                    self.check(block).await;
                }
            }
            self.bench.memory.reset_tallies();
        }
        for offset in (0..DISK_BYTES).step_by(64 << 10) {
            let bytes = read(&self.volume, offset, 64 << 10).await;
            let block = usize::try_from(offset / BLOCK_BYTES).unwrap();
            assert!(bytes[..4096] == bytes_of(block, self.versions[block]), "block {block}");
            // What is read ahead arrives before the next read.
            quiesce().await;
        }
        self.fetched().bytes as f64 / DISK_BYTES as f64
    }

    fn fetched(&self) -> cairn::store::memory::Tally {
        self.bench.memory.tally(Operation::Get, |_| true)
    }
}

#[tokio::test(start_paused = true)]
async fn overwriting_a_quarter_of_a_disk_at_random_uploads_at_most_four_times_as_much() {
    let mut disk = Disk::full().await;
    let cost = disk.overwrite(BLOCKS / 4).await;
    assert!(cost.checkpoints >= 4, "{cost:?}");
    assert!(cost.uploaded_for_each_byte <= 4.0, "{cost:?}");
    for block in (0..BLOCKS).step_by(7) {
        disk.check(block).await;
    }
}

#[tokio::test(start_paused = true)]
async fn overwriting_a_disk_twice_at_random_never_stores_more_than_twice_its_data() {
    let mut disk = Disk::full().await;
    let cost = disk.overwrite(BLOCKS * 2).await;
    assert!(cost.most_stored_for_each_live_byte <= 2.0, "{cost:?}");
    assert!(cost.uploaded_for_each_byte <= 4.5, "{cost:?}");
    for block in (0..BLOCKS).step_by(7) {
        disk.check(block).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cold_random_read_after_random_writes_costs_one_get_of_at_most_two_blocks() {
    let mut disk = Disk::full().await;
    disk.overwrite(BLOCKS / 4).await;
    disk.reopen(disk.bench.options.clone(), 64 * MIB).await;
    let reads = 2000;
    for block in index::sample(&mut disk.rng.clone(), BLOCKS, reads) {
        disk.check(block).await;
    }
    let fetched = disk.fetched();
    let (requests, bytes) = (fetched.requests as f64 / reads as f64, fetched.bytes as f64 / reads as f64);
    assert!(requests <= 1.05 && bytes <= 8192.0, "a read costs {requests} GETs and {bytes} bytes");
}

#[tokio::test(start_paused = true)]
async fn a_cold_read_in_order_fetches_each_byte_once_although_the_cache_is_smaller_than_the_disk() {
    let mut disk = Disk::full().await;
    for used in [false, true] {
        let fresh = disk.fetched_for_each_byte_in_order(used).await;
        println!("used {used}: fresh {fresh}");
        assert!(fresh <= 1.02, "{fresh} bytes are fetched for each byte that is read; used: {used}");
    }
    disk.overwrite(BLOCKS / 4).await;
    for used in [false, true] {
        let overwritten = disk.fetched_for_each_byte_in_order(used).await;
        println!("used {used}: overwritten {overwritten}");
        // A fifth of the blocks lie elsewhere, and their old versions among the others may be fetched with
        // these.
        assert!(overwritten <= 1.3, "{overwritten} bytes are fetched for each byte; used: {used}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_holds_a_hot_set_of_random_blocks_that_is_three_quarters_of_its_size() {
    let mut disk = Disk::full().await;
    let mut hot = index::sample(&mut disk.rng, BLOCKS, HOT_BLOCKS).into_vec();
    // Half of them lie where they were written first, half were written again.
    for block in hot.iter().copied().step_by(2) {
        disk.write(block).await;
    }
    disk.drain().await;
    let metrics = Metrics::new().volume("disk");
    let options = Options { metrics: Some(metrics.clone()), ..disk.bench.options.clone() };
    disk.reopen(options, CACHE_BYTES).await;
    let lookups = || (metrics.cache_hits.of(Tier::Memory).get(), metrics.cache_misses.of(Tier::Memory).get());
    let mut before = (0, 0);
    for _pass in 0..2 {
        hot.shuffle(&mut disk.rng);
        disk.bench.memory.reset_tallies();
        before = lookups();
        for &block in &hot {
            disk.check(block).await;
        }
    }
    let (hits, misses) = (lookups().0 - before.0, lookups().1 - before.1);
    let (gets, most) = (disk.fetched().requests, HOT_BLOCKS as u64 / 20);
    println!("second pass: {hits} hits, {misses} misses, {gets} GETs");
    assert!(hits + misses >= HOT_BLOCKS as u64, "{hits} hits, {misses} misses: every read asks the cache");
    assert!(misses * 19 <= hits, "{hits} hits, {misses} misses: 95% are hits");
    assert!(gets <= most, "{gets} GETs for {HOT_BLOCKS} reads");
}
