//! The metrics of the page cache, by volume.
//!
//! Must not know what the pieces contain. Invariant: a piece that was read ahead is counted at most once, as
//! used or as wasted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use uuid::Uuid;

use super::fetch::{CacheKey, Fetch};
use crate::metrics::VolumeMetrics;
use crate::metrics::labels::{ReadAhead, Tier};

/// Limit on the pieces read ahead that are tracked until they are read. Beyond it, the piece with the lowest
/// key is no longer tracked, and not counted.
const FOLLOWED: usize = 4096;

/// Counters of the page cache, and the pieces read ahead that nobody has read yet.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) volumes: Mutex<BTreeMap<Uuid, VolumeMetrics>>,
    /// Pieces that were read ahead and have not been read or dropped since.
    ahead: Mutex<BTreeSet<CacheKey>>,
    /// Bytes that were evicted so far, but for what was read ahead and for runs of changes.
    evicted_bytes: AtomicU64,
}

impl Counts {
    fn with(&self, volume: Uuid, count: impl FnOnce(&VolumeMetrics)) {
        if let Some(metrics) = self.volumes.lock().get(&volume) {
            count(metrics);
        }
    }

    /// Records that `weight` bytes were evicted to make room for others that are in use.
    pub(super) fn gave_way(&self, weight: u32) {
        self.evicted_bytes.fetch_add(u64::from(weight), Ordering::Relaxed);
    }

    /// Bytes that were evicted so far to make room for others that are in use.
    pub(super) fn evicted_bytes(&self) -> u64 {
        self.evicted_bytes.load(Ordering::Relaxed)
    }

    /// Counts a piece that was inserted. `weight` is in bytes.
    pub(super) fn added(&self, key: &CacheKey, weight: u32) {
        self.with(key.volume, |metrics| metrics.cache_bytes.of(Tier::Memory).add(i64::from(weight)));
    }

    /// Counts off a piece that moves to another place of the cache, where it is counted again. `weight` is in
    /// bytes.
    pub(super) fn moved(&self, key: &CacheKey, weight: u32) {
        self.with(key.volume, |metrics| metrics.cache_bytes.of(Tier::Memory).sub(i64::from(weight)));
    }

    /// Counts a piece that was removed, because it was evicted, dropped or replaced.
    pub(crate) fn dropped(&self, key: &CacheKey, weight: u32, evicted: bool) {
        let wasted = self.ahead.lock().remove(key);
        self.with(key.volume, |metrics| {
            metrics.cache_bytes.of(Tier::Memory).sub(i64::from(weight));
            if evicted {
                metrics.cache_evictions.of(Tier::Memory).inc();
            }
            if wasted {
                metrics.read_ahead_bytes.of(ReadAhead::Wasted).inc_by(u64::from(weight));
            }
        });
    }

    /// Counts requested pieces, `misses` of which were not in memory.
    pub(crate) fn asked(&self, wanted: &[Fetch], misses: usize) {
        let Some(first) = wanted.first() else { return };
        let used: u64 = {
            let mut ahead = self.ahead.lock();
            let used = wanted.iter().filter(|fetch| !ahead.is_empty() && ahead.remove(&fetch.key));
            used.map(|fetch| u64::from(fetch.length)).sum()
        };
        self.with(first.key.volume, |metrics| {
            metrics.cache_misses.of(Tier::Memory).inc_by(misses as u64);
            metrics.cache_hits.of(Tier::Memory).inc_by((wanted.len() - misses) as u64);
            metrics.read_ahead_bytes.of(ReadAhead::Used).inc_by(used);
        });
    }

    /// Tracks the pieces of `wanted` at the indexes `missing`, which are being read ahead.
    pub(super) fn read_ahead(&self, wanted: &[Fetch], missing: impl Iterator<Item = usize>) {
        let mut ahead = self.ahead.lock();
        for place in missing {
            if ahead.len() == FOLLOWED {
                ahead.pop_first();
            }
            ahead.insert(wanted[place].key);
        }
    }
}
