//! The disk under test: a volume in a directory store, behind the decorators that count and delay.
//!
//! Owns the settings: the defaults of a gateway, but without a grace period before objects are deleted. At a smaller
//! scale, the caches and the limits of the journal are scaled too. Must not know what is measured.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use cairn::metrics::{Metrics, VolumeMetrics};
use cairn::store::{Classes, LocalStore, Store};
use cairn::volume::{
    DirtyBudget, Entropy, Environment, Options, PageCache, Segment, Volume, WallClock, catalog,
};

use crate::Failure;
use crate::counted::Counted;
use crate::delayed::Delayed;
use crate::experiment::{BLOCK_BYTES, CHUNK_BYTES};
use crate::plan::Run;
use crate::scale::Scale;

const MIB: u64 = 1 << 20;
/// The defaults of `cache.clean` and `cache.dirty`.
const CLEAN_BYTES: u64 = 256 * MIB;
const DIRTY_BYTES: u64 = 128 * MIB;
/// What a gateway may need beyond its caches: the rest of the bound of row 10.
const BEYOND_CACHES_BYTES: u64 = 96 * MIB;
/// Limit on concurrent requests of each class, the default of `store.concurrency`.
const CONCURRENCY: usize = 64;
/// Background work is over when the store has been idle for this long.
const IDLE: Duration = Duration::from_secs(3);
/// Limit on the time that the background work may take.
const LONGEST_DRAIN: Duration = Duration::from_secs(1800);
const NAME: &str = "disk";

/// A directory with the store of one disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) directory: PathBuf,
    pub(crate) scale: Scale,
}

/// A gateway: a store with counts, and what its volumes share.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) counted: Counted,
    pub(crate) metrics: VolumeMetrics,
    env: Environment,
    options: Options,
}

impl Disk {
    /// Capacity of the cache of clean pages.
    pub(crate) fn clean_bytes(&self) -> u64 {
        self.scale.bytes(CLEAN_BYTES, MIB)
    }

    /// Limit on dirty bytes. The chunks that are being filled must fit at any scale.
    fn dirty_bytes(&self) -> u64 {
        self.scale.bytes(DIRTY_BYTES, MIB).max(32 * MIB)
    }

    /// The bound on resident memory.
    pub(crate) fn memory_bound_bytes(&self) -> u64 {
        self.clean_bytes() + self.dirty_bytes() + BEYOND_CACHES_BYTES
    }

    /// Starts a gateway with an empty cache. Each of its requests takes at least `delay`.
    pub(crate) async fn gateway(&self, delay: Duration) -> Result<Gateway, Failure> {
        let directory = self.directory.join("store");
        let counted = Counted::new(Arc::new(LocalStore::open(&directory).await?)).await?;
        let all = Metrics::new();
        let delayed: Arc<dyn Store> = match delay.is_zero() {
            true => Arc::new(counted.clone()),
            false => Arc::new(Delayed::new(Arc::new(counted.clone()), delay)),
        };
        let (defaults, metrics) = (Options::default(), all.volume(NAME));
        let options = Options {
            metrics: Some(metrics.clone()),
            holder_name: "amplification".to_owned(),
            holder_is_stable: true,
            deletion_grace: Duration::ZERO,
            journal_max_bytes: self.scale.bytes(defaults.journal_max_bytes, MIB),
            journal_max_records: self.scale.count(defaults.journal_max_records).max(16),
            // As much is written between two checkpoints as at full size, in proportion.
            head_interval: Duration::from_millis(self.scale.count(1000)).min(defaults.head_interval),
            ..defaults
        };
        let env = Environment {
            store: Classes::limited(&delayed, CONCURRENCY, &all.store(), |_, limited| limited),
            cache: PageCache::new(self.clean_bytes(), options.get_bytes),
            budget: DirtyBudget::new(self.dirty_bytes()),
            // Object names need not be repeatable, but must differ between the gateways of one disk.
            entropy: Entropy::from_os(),
            wall_clock: wall_clock(),
        };
        Ok(Gateway { counted, metrics, env, options })
    }
}

impl Gateway {
    pub(crate) async fn create(&self, disk_bytes: u64) -> Result<(), Failure> {
        catalog::create(&self.env, &self.options, NAME, disk_bytes, catalog::ChunkBytes(CHUNK_BYTES)).await?;
        Ok(())
    }

    pub(crate) async fn open(&self) -> Result<Arc<Volume>, Failure> {
        Ok(catalog::open(&self.env, || self.options.clone(), NAME, true).await?)
    }

    /// Publishes a checkpoint, and waits until the background work is done. Calls `watch` while it waits.
    pub(crate) async fn drain(&self, volume: &Volume, mut watch: impl FnMut()) -> Result<(), Failure> {
        let begun = tokio::time::Instant::now();
        volume.checkpoint().await?;
        while self.counted.idle() < IDLE {
            if begun.elapsed() > LONGEST_DRAIN {
                return Err("the background work does not end".into());
            }
            watch();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        watch();
        Ok(())
    }

    /// Brings the data of the disk back into the order of the disk.
    pub(crate) async fn consolidate(&self, volume: &Volume) -> Result<(), Failure> {
        volume.consolidate().await?;
        self.drain(volume, || {}).await
    }
}

/// Reads a run of blocks.
pub(crate) async fn read(volume: &Volume, run: Run) -> Result<Bytes, Failure> {
    let segments = volume.read(run.block * BLOCK_BYTES, run.blocks * BLOCK_BYTES).await?;
    if let [Segment::Data(data)] = &segments[..] {
        return Ok(data.clone());
    }
    let mut bytes = Vec::new();
    for segment in segments {
        match segment {
            Segment::Data(data) => bytes.extend_from_slice(&data),
            Segment::Zero(length) => bytes.resize(bytes.len() + usize::try_from(length)?, 0),
        }
    }
    Ok(bytes.into())
}

/// Fails if the bytes that were read are not those that were written.
pub(crate) fn check(run: Run, read: &[u8], written: &[u8]) -> Result<(), Failure> {
    if read == written { Ok(()) } else { Err(format!("block {} reads wrong", run.block).into()) }
}

/// The size of the files below a directory, which the tally of the store must agree with.
pub(crate) fn size_of_files(directory: &Path) -> Result<u64, Failure> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { size_of_files(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

#[allow(clippy::disallowed_methods, reason = "the time of day comes in here")]
fn wall_clock() -> WallClock {
    Arc::new(|| std::time::SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
