//! A test bench: a volume over a memory store with configurable faults, on a paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cairn::metrics::Metrics;
use cairn::store::retry::{Patience, RetryOptions};
use cairn::store::{Classes, Fault, MemoryStore, Operation, Retry};
use cairn::volume::{DirtyBudget, Entropy, Environment, Options, PageCache, Segment, Volume, catalog};

pub(crate) const MIB: u64 = 1 << 20;

/// A store with one volume named `disk`.
pub(crate) struct Bench {
    pub(crate) memory: MemoryStore,
    pub(crate) fault: Fault,
    pub(crate) options: Options,
    pub(crate) dirty_bytes: u64,
    /// Time of day in seconds since 1970.
    pub(crate) now_seconds: Arc<AtomicU64>,
    /// The stable holder name of each gateway; without one, every gateway has a different name.
    pub(crate) holder: Option<String>,
    seed: u64,
}

impl Bench {
    pub(crate) async fn new(size_bytes: u64) -> Self {
        Self::with_chunks(size_bytes, 4 * MIB).await
    }

    pub(crate) async fn with_chunks(size_bytes: u64, chunk_bytes: u64) -> Self {
        // Listings are unsorted, in small and sometimes empty pages: the store's contract promises no more.
        let memory = MemoryStore::unsorted(5);
        let fault = Fault::new(Arc::new(memory.clone()), 1);
        let options = Options { holder_name: "first".to_owned(), ..Options::default() };
        let now_seconds = Arc::new(AtomicU64::new(1_800_000_000));
        let bench =
            Self { memory, fault, options, dirty_bytes: 128 * MIB, now_seconds, holder: None, seed: 1 };
        let env = bench.env(64 * MIB);
        catalog::create(&env, &bench.options, "disk", size_bytes, catalog::ChunkBytes(chunk_bytes))
            .await
            .expect("created");
        bench
    }

    /// Another bench over the same store, without the faults.
    pub(crate) fn beside(&self) -> Self {
        let fault = Fault::new(Arc::new(self.memory.clone()), 2);
        Self {
            memory: self.memory.clone(),
            fault,
            options: self.options.clone(),
            dirty_bytes: self.dirty_bytes,
            now_seconds: Arc::clone(&self.now_seconds),
            holder: self.holder.clone(),
            seed: self.seed + 1000,
        }
    }

    /// The environment of a separate gateway, with an empty cache of the given size in bytes.
    pub(crate) fn env(&self, cache_bytes: u64) -> Environment {
        Environment {
            store: Classes::one(Arc::new(self.fault.clone())),
            cache: PageCache::new(cache_bytes, MIB),
            budget: DirtyBudget::new(self.dirty_bytes),
            entropy: Entropy::seeded(self.seed),
            wall_clock: {
                let now = Arc::clone(&self.now_seconds);
                Arc::new(move || now.load(Ordering::Relaxed))
            },
        }
    }

    /// As [`Bench::env`], with the retries of a gateway: an object that is too short is an answer then.
    pub(crate) fn env_with_retries(&self) -> Environment {
        let read = Patience { deadline: Some(Duration::from_secs(60)), refusals: Some(3) };
        let options = RetryOptions { read, ..RetryOptions::default() };
        let store = Retry::new(Arc::new(self.fault.clone()), options, Metrics::new().store(), 1);
        Environment { store: Classes::one(Arc::new(store)), ..self.env(64 * MIB) }
    }

    /// Opens the volume by a new gateway with an empty cache.
    pub(crate) async fn open(&mut self) -> Arc<Volume> {
        self.try_open(true).await.expect("opened")
    }

    pub(crate) async fn try_open(&mut self, takeover: bool) -> Result<Arc<Volume>, cairn::volume::OpenError> {
        self.seed += 1;
        let env = self.env(64 * MIB);
        let volume = catalog::resolve(&env, "disk").await?;
        let mut options = self.options.clone();
        options.holder_is_stable = self.holder.is_some();
        options.holder_name = self.holder.clone().unwrap_or_else(|| format!("gateway {}", self.seed));
        Volume::open(&env, options, volume, takeover).await
    }

    pub(crate) fn puts(&self, part: &str) -> cairn::store::memory::Tally {
        self.memory.tally(Operation::Put, |key| key.contains(part))
    }

    pub(crate) fn gets(&self, part: &str) -> cairn::store::memory::Tally {
        self.memory.tally(Operation::Get, |key| key.contains(part))
    }

    /// The keys in the store that contain `part`.
    pub(crate) fn keys(&self, part: &str) -> Vec<String> {
        self.memory.objects().into_keys().filter(|key| key.contains(part)).collect()
    }
}

/// Bytes that differ from sector to sector and from seed to seed.
pub(crate) fn pattern(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    Bytes::from(bytes)
}

pub(crate) async fn read(volume: &Volume, offset: u64, length: u64) -> Vec<u8> {
    bytes_of(&volume.read(offset, length).await.expect("read"))
}

pub(crate) fn bytes_of(segments: &[Segment]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments {
        match segment {
            Segment::Data(data) => bytes.extend_from_slice(data),
            Segment::Zero(length) => bytes.resize(bytes.len() + usize::try_from(*length).unwrap(), 0),
        }
    }
    bytes
}

/// Lets every task run until all of them wait, while the clock moves by only a millisecond.
pub(crate) async fn quiesce() {
    tokio::time::advance(Duration::from_millis(1)).await;
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}
