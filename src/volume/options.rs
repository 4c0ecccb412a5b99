//! The settings of a volume, and the inputs that make it differ from run to run: time of day and randomness.
//!
//! Must not know where the settings come from. Invariant: a volume takes time of day and randomness only from
//! here, so that a simulation can repeat a run.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use crate::metrics::VolumeMetrics;

/// Limits and times of a volume.
#[derive(Clone, Debug)]
pub struct Options {
    /// The metrics that the volume updates. If `None`, it updates metrics that nobody sees.
    pub metrics: Option<VolumeMetrics>,
    /// Name of this gateway, for people. It is written into the head.
    pub holder_name: String,
    /// Whether `holder_name` identifies the same gateway across restarts, and no other. If so, a lease under
    /// this name is our own from before a restart, and opening does not wait for it.
    pub holder_is_stable: bool,
    /// Dirty data is committed when it reaches this age.
    pub commit_max_age: Duration,
    /// How much longer a commit that is due by age may wait for a chunk that is being filled sequentially.
    pub commit_chunk_wait: Duration,
    /// A commit is cut before its data exceeds this many bytes.
    pub commit_max_bytes: u64,
    /// Limit on the commits in flight.
    pub commits_in_flight: usize,
    /// A FLUSH or a write that waits longer than this fails. If `None`, it waits without a limit.
    pub store_deadline: Option<Duration>,
    /// The journal is folded when its records exceed this many bytes.
    pub journal_max_bytes: u64,
    /// The journal is folded when it has more than this many records.
    pub journal_max_records: u64,
    /// The journal is folded when its oldest record reaches this age.
    pub journal_max_age: Duration,
    /// Limit on the bytes of chunk objects that a fold holds in memory at once.
    pub fold_bytes: u64,
    /// Bytes of blocks at which a pack is complete.
    pub pack_bytes: u64,
    /// Limit on the overlays of a map page: 1 to 8. When there would be more, overlays are merged.
    pub overlays: usize,
    /// An overlay of at most this many bytes becomes part of its map page instead of an object of its own.
    pub embed_bytes: u64,
    /// A chunk is rewritten whole when overlays decide about this share of its blocks, in percent.
    pub consolidate_percent: u64,
    /// A pack is rewritten when at most this share of its blocks is in use, in percent.
    pub relocate_percent: u64,
    /// Limit on the bytes that checkpoints rewrite in addition to what clients write, in percent of that.
    /// It is exceeded when garbage would take too much space.
    pub background_percent: u64,
    /// How long a lease lasts after its renewal.
    pub lease_ttl: Duration,
    /// Whether the volume stops when its lease expires. Otherwise it continues to serve, and whatever must
    /// become durable waits.
    pub lease_strict: bool,
    /// Time between two updates of the head, on average. Up to four may follow each other at once.
    pub head_interval: Duration,
    /// How long objects are kept after nothing references them any more.
    pub deletion_grace: Duration,
    /// How long a deleted volume is kept, so that it can be brought back. If zero, it is deleted for good at
    /// once.
    pub undelete: Duration,
    /// Limit on the bytes that are read ahead of a sequential stream. 0 disables read-ahead.
    pub read_ahead_bytes: u64,
    /// Limit on the bytes of one GET that fetches adjacent pages.
    pub get_bytes: u64,
    /// For how long after the opening the reads of clients are recorded, so that the next opening loads the
    /// same blocks at once. If zero, nothing is recorded, and an opening loads nothing.
    pub record_reads: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            metrics: None,
            holder_name: String::new(),
            holder_is_stable: false,
            commit_max_age: Duration::from_secs(5),
            commit_chunk_wait: Duration::from_secs(3),
            commit_max_bytes: 16 << 20,
            commits_in_flight: 8,
            store_deadline: None,
            journal_max_bytes: 256 << 20,
            journal_max_records: 4096,
            journal_max_age: Duration::from_secs(300),
            fold_bytes: 32 << 20,
            pack_bytes: 16 << 20,
            overlays: 8,
            embed_bytes: 4096,
            consolidate_percent: 50,
            relocate_percent: 30,
            background_percent: 125,
            lease_ttl: Duration::from_secs(30),
            lease_strict: false,
            head_interval: Duration::from_secs(1),
            deletion_grace: Duration::from_secs(3600),
            undelete: Duration::from_secs(24 * 3600),
            read_ahead_bytes: 16 << 20,
            get_bytes: 4 << 20,
            record_reads: Duration::ZERO,
        }
    }
}

/// Returns the time of day in seconds since 1970. It is shown to people and used for the grace period before
/// deletion, but correctness never depends on it.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A source of randomness for nonces and uuids. Clones share one generator.
#[derive(Clone, Debug)]
pub struct Entropy(Arc<Mutex<SmallRng>>);

impl Entropy {
    /// Creates a source from a seed, for runs that can be repeated.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(SmallRng::seed_from_u64(seed))))
    }

    /// Creates a source from 256 random bits of the operating system.
    #[must_use]
    pub fn from_os() -> Self {
        Self(Arc::new(Mutex::new(SmallRng::from_os_rng())))
    }

    /// Returns eight random bytes.
    #[must_use]
    pub fn next_u64(&self) -> u64 {
        self.0.lock().random()
    }

    /// Returns sixteen random bytes.
    #[must_use]
    pub fn next_u128(&self) -> u128 {
        self.0.lock().random()
    }

    /// Returns a random uuid (version 4).
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        uuid::Builder::from_random_bytes(self.next_u128().to_le_bytes()).into_uuid()
    }
}
