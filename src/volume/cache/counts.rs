//! What the page cache counts, by volume.
//!
//! Invariant: a piece that was read ahead counts once, as used or as wasted.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use uuid::Uuid;

use super::fetch::{CacheKey, Fetch};
use crate::metrics::VolumeMetrics;
use crate::metrics::labels::{ReadAhead, Tier};

/// Pieces followed at most until they are read; beyond, the first in order of key is forgotten uncounted.
const FOLLOWED: usize = 4096;

/// Counts of the page cache.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) volumes: Mutex<BTreeMap<Uuid, VolumeMetrics>>,
    ahead: Mutex<BTreeSet<CacheKey>>,
}

impl Counts {
    fn with(&self, volume: Uuid, count: impl FnOnce(&VolumeMetrics)) {
        if let Some(metrics) = self.volumes.lock().get(&volume) {
            count(metrics);
        }
    }

    /// A piece was put in.
    pub(super) fn added(&self, key: &CacheKey, weight: u32) {
        self.with(key.volume, |metrics| metrics.cache_bytes.of(Tier::Memory).add(i64::from(weight)));
    }

    /// A piece went, by eviction or since another took its place.
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

    /// Pieces were asked for, so many of them not in memory.
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

    /// Pieces are being read ahead.
    pub(crate) fn read_ahead(&self, wanted: &[Fetch], missing: &[usize]) {
        let mut ahead = self.ahead.lock();
        for &place in missing {
            if ahead.len() == FOLLOWED {
                ahead.pop_first();
            }
            ahead.insert(wanted[place].key);
        }
    }
}
