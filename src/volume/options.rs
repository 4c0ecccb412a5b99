//! What can be set of a volume, and what it takes from its surroundings: time of day and randomness.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use crate::metrics::VolumeMetrics;

/// Bounds and times of a volume.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the volume counts; `None`: nowhere that anybody sees.
    pub metrics: Option<VolumeMetrics>,
    /// Who we are, for people: written into the head.
    pub holder_name: String,
    /// Whether that name stands for the same gateway across its restarts, and for no other: a lease that
    /// carries it is our own from before, and not waited for.
    pub holder_is_stable: bool,
    /// Dirty data is committed when it is older.
    pub commit_max_age: Duration,
    /// How much longer an age cut may wait for a chunk that is filling in sequence.
    pub commit_chunk_wait: Duration,
    /// A commit is cut before its data passes this many bytes.
    pub commit_max_bytes: u64,
    /// Commits on their way at most.
    pub commits_in_flight: usize,
    /// A FLUSH or a write that waits longer fails; `None`: waits.
    pub store_deadline: Option<Duration>,
    /// The journal is folded when it passes this many bytes.
    pub journal_max_bytes: u64,
    /// The journal is folded when it passes this many records.
    pub journal_max_records: u64,
    /// The journal is folded when its oldest record is older.
    pub journal_max_age: Duration,
    /// Bytes of chunk objects that a fold holds in memory at once.
    pub fold_bytes: u64,
    /// How long a lease lasts after its renewal.
    pub lease_ttl: Duration,
    /// Whether the volume stops once its lease is over; else it serves on, and what must be durable waits.
    pub lease_strict: bool,
    /// The least time between two updates of the head.
    pub head_interval: Duration,
    /// How long what nothing names is kept.
    pub deletion_grace: Duration,
    /// Read ahead of a sequential stream at most, in bytes; 0 for none.
    pub read_ahead_bytes: u64,
    /// Bytes of one GET at most, where pages lie side by side.
    pub get_bytes: u64,
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
            lease_ttl: Duration::from_secs(30),
            lease_strict: false,
            head_interval: Duration::from_secs(1),
            deletion_grace: Duration::from_secs(3600),
            read_ahead_bytes: 8 << 20,
            get_bytes: 1 << 20,
        }
    }
}

/// Time of day in seconds since 1970; only for people and for the grace before deletion, never for
/// correctness.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A source of randomness: nonces, uuids.
#[derive(Clone, Debug)]
pub struct Entropy(Arc<Mutex<SmallRng>>);

impl Entropy {
    /// From a seed; the operating system's in production.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(SmallRng::seed_from_u64(seed))))
    }

    /// From the operating system: 256 bits of it.
    #[must_use]
    pub fn from_os() -> Self {
        Self(Arc::new(Mutex::new(SmallRng::from_os_rng())))
    }

    /// Eight random bytes.
    #[must_use]
    pub fn next_u64(&self) -> u64 {
        self.0.lock().random()
    }

    /// Sixteen random bytes.
    #[must_use]
    pub fn next_u128(&self) -> u128 {
        self.0.lock().random()
    }

    /// A random uuid (version 4).
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        uuid::Builder::from_random_bytes(self.next_u128().to_le_bytes()).into_uuid()
    }
}
