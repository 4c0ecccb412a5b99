//! The pieces in memory: the contents of the page cache, within a bound that can change at run time.
//!
//! Must not know about stores. The bound of a moka cache is fixed, so a new bound takes a new cache, to which
//! the pieces move. Invariants: each piece is counted once when it is inserted and once when it is removed,
//! whatever the reason. No piece stays in a cache that was replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use moka::future::Cache;
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3Builder;

use super::counts::Counts;
use super::fetch::{CacheKey, Unit};
use crate::volume::error::Error;
use crate::volume::format::geometry::ChunkIndex;
use crate::volume::format::keys::ObjectId;
use crate::volume::format::map::MapPage;
use crate::volume::format::page_set::PageSet;

/// Memory that an entry takes in addition to its bytes: keys, counters and lists of the cache, and
/// what the allocator wastes on small entries. With 320, a cache of 256 MiB full of blocks took the
/// process to 411 MiB.
const ENTRY_BYTES: usize = 768;

/// Limit on the bytes that are inserted before pending evictions run.
const UNSETTLED_BYTES: u64 = 1 << 20;

/// A piece as the cache stores it.
#[derive(Clone)]
pub(super) enum Cached {
    /// The verified bytes of a page, or of changes of a record.
    Bytes(Bytes),
    /// A decoded map page.
    Map(Arc<MapPage>),
}

impl Cached {
    fn weight(&self) -> u32 {
        let bytes = match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Map(page) => page.memory_bytes(),
        };
        u32::try_from(bytes + ENTRY_BYTES).unwrap_or(u32::MAX)
    }
}

type Pieces = Cache<CacheKey, Cached, Xxh3Builder>;

/// The clean pieces in memory, with their counts.
pub(crate) struct Clean {
    pieces: ArcSwap<Pieces>,
    pub(crate) counts: Arc<Counts>,
    /// Bytes that were inserted since evictions last ran. At `most_unsettled_bytes` they run again.
    unsettled_bytes: AtomicU64,
    most_unsettled_bytes: u64,
}

fn pieces(bytes: u64, counts: &Arc<Counts>) -> Pieces {
    let counts = Arc::clone(counts);
    Cache::builder()
        .max_capacity(bytes)
        .eviction_listener(move |key: Arc<CacheKey>, value: Cached, cause| {
            counts.dropped(&key, value.weight(), cause.was_evicted());
        })
        .weigher(|_: &CacheKey, value: &Cached| value.weight())
        .build_with_hasher(Xxh3Builder::new())
}

impl Clean {
    /// Creates a cache of at most `bytes` bytes. If `eager`, evictions run with each insertion.
    pub(crate) fn new(bytes: u64, eager: bool) -> Self {
        let counts = Arc::new(Counts::default());
        Self {
            pieces: ArcSwap::from_pointee(pieces(bytes, &counts)),
            counts,
            unsettled_bytes: AtomicU64::new(0),
            most_unsettled_bytes: if eager { 0 } else { UNSETTLED_BYTES },
        }
    }

    /// Changes the bound to `bytes` bytes. If the pieces exceed it, which of them are evicted does not depend
    /// on how they were used.
    pub(crate) async fn resize(&self, bytes: u64) {
        let new = Arc::new(pieces(bytes, &self.counts));
        let old = self.pieces.swap(Arc::clone(&new));
        for (key, value) in old.iter() {
            old.invalidate(&*key).await;
            if !new.contains_key(&*key) {
                self.counts.added(&key, value.weight());
                new.insert(*key, value).await;
            }
        }
        old.run_pending_tasks().await;
        new.run_pending_tasks().await;
    }

    /// The bound in bytes.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.pieces.load().policy().max_capacity().unwrap_or(u64::MAX)
    }

    /// Bytes that the pieces take, including the overhead of each.
    pub(super) fn held_bytes(&self) -> u64 {
        self.pieces.load().weighted_size()
    }

    /// Inserts a piece, or replaces it.
    pub(super) async fn put(&self, key: CacheKey, value: Cached) {
        let pieces = self.pieces.load_full();
        self.added(&key, &value);
        pieces.insert(key, value).await;
        self.leave_if_replaced(&pieces, &key).await;
        self.settle_when_due().await;
    }

    /// Removes a piece from a cache that was replaced during the insertion: the move to the new cache may
    /// have missed it.
    async fn leave_if_replaced(&self, pieces: &Arc<Pieces>, key: &CacheKey) {
        if !Arc::ptr_eq(pieces, &self.pieces.load()) {
            pieces.invalidate(key).await;
        }
    }

    /// Returns the bytes of a piece that is held. Counts as a use.
    pub(crate) async fn bytes(&self, key: &CacheKey) -> Option<Bytes> {
        match self.pieces.load().get(key).await {
            Some(Cached::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// Whether a piece is held. Does not count as a use.
    pub(crate) fn contains(&self, key: &CacheKey) -> bool {
        self.pieces.load().contains_key(key)
    }

    /// Removes a piece.
    pub(crate) async fn remove(&self, key: &CacheKey) {
        self.pieces.load().invalidate(key).await;
    }

    /// Runs pending evictions.
    pub(crate) async fn settle(&self) {
        self.pieces.load().run_pending_tasks().await;
    }

    fn added(&self, key: &CacheKey, value: &Cached) {
        let weight = value.weight();
        self.counts.added(key, weight);
        self.unsettled_bytes.fetch_add(u64::from(weight), Ordering::Relaxed);
    }

    /// Runs evictions if enough bytes were inserted. moka runs them after a number of insertions, whatever
    /// their size, so pages would take the cache far beyond its bound.
    async fn settle_when_due(&self) {
        if self.unsettled_bytes.load(Ordering::Relaxed) >= self.most_unsettled_bytes {
            self.unsettled_bytes.store(0, Ordering::Relaxed);
            self.settle().await;
        }
    }

    /// Returns a map page. If it is not held, `load` loads it; concurrent misses share one load.
    pub(crate) async fn map_page<F>(&self, key: CacheKey, load: F) -> Result<Arc<MapPage>, Error>
    where
        F: Future<Output = Result<Arc<MapPage>, Error>> + Send,
    {
        let load = async {
            let page = load.await.map(Cached::Map)?;
            self.added(&key, &page);
            Ok(page)
        };
        let pieces = self.pieces.load_full();
        let loaded = pieces.try_get_with(key, load).await;
        self.leave_if_replaced(&pieces, &key).await;
        self.settle_when_due().await;
        match loaded {
            Ok(Cached::Map(page)) => Ok(page),
            Ok(Cached::Bytes(_)) => unreachable!("a map page's key never maps to bytes"),
            Err(error) => Err(Error::clone(&error)),
        }
    }

    /// Returns which pages of chunk objects and packs are held, for all volumes.
    pub(crate) fn pages(&self) -> HeldPages {
        let mut held = HeldPages::default();
        for (key, _) in self.pieces.load().iter() {
            match key.unit {
                Unit::Page(index, id, page) => {
                    held.chunks.entry((key.volume, index, id)).or_default().insert(page);
                }
                Unit::Packed(number, id, frame) => {
                    held.packed.insert((key.volume, number, id, frame));
                }
                Unit::Run(..) | Unit::Change(..) | Unit::Map(..) => {}
            }
        }
        held
    }
}

/// The pages that were in memory at one moment.
#[derive(Debug, Default)]
pub(crate) struct HeldPages {
    chunks: BTreeMap<(Uuid, ChunkIndex, ObjectId), PageSet>,
    packed: BTreeSet<(Uuid, u32, ObjectId, u32)>,
}

impl HeldPages {
    /// Returns the pages of a chunk object that were held.
    pub(crate) fn of_chunk(&self, volume: Uuid, index: ChunkIndex, id: ObjectId) -> PageSet {
        self.chunks.get(&(volume, index, id)).copied().unwrap_or_default()
    }

    /// Whether a frame of a pack was held.
    pub(crate) fn has_packed(&self, volume: Uuid, map_page: u32, id: ObjectId, frame: u32) -> bool {
        !self.packed.is_empty() && self.packed.contains(&(volume, map_page, id, frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, Tier, VolumeMetrics};
    use crate::volume::format::geometry::Geometry;

    fn key(n: u32) -> CacheKey {
        let id = ObjectId { epoch: 1, k: u64::from(n) };
        CacheKey { volume: Uuid::from_u128(7), unit: Unit::Page(ChunkIndex(n), id, 0) }
    }

    fn page() -> Cached {
        Cached::Bytes(Bytes::from(vec![7; 65_536]))
    }

    fn clean(bytes: u64) -> (Clean, VolumeMetrics) {
        let metrics = Metrics::new().volume("disk");
        let clean = Clean::new(bytes, true);
        clean.counts.volumes.lock().insert(Uuid::from_u128(7), metrics.clone());
        (clean, metrics)
    }

    fn counted(metrics: &VolumeMetrics) -> (u64, u64) {
        let bytes = metrics.cache_bytes.of(Tier::Memory).get();
        (u64::try_from(bytes).unwrap(), metrics.cache_evictions.of(Tier::Memory).get())
    }

    #[tokio::test]
    async fn a_bound_that_changes_takes_effect_at_once_and_keeps_what_fits() {
        let (clean, metrics) = clean(32 << 20);
        for n in 0..480 {
            clean.put(key(n), page()).await;
        }
        let before = clean.held_bytes();
        assert!(before > 28 << 20 && before <= 32 << 20, "{before}");
        clean.resize(8 << 20).await;
        let now = clean.held_bytes();
        assert!(now > 7 << 20 && now <= 8 << 20, "{now}");
        assert_eq!(counted(&metrics).0, now, "what went is counted off");
        clean.resize(64 << 20).await;
        assert_eq!(clean.held_bytes(), now, "all that was there is there");
        for n in 1000..1700 {
            clean.put(key(n), page()).await;
        }
        let grown = clean.held_bytes();
        assert!(grown > 40 << 20 && grown <= 64 << 20, "{grown}");
        assert_eq!(counted(&metrics).0, grown);
    }

    #[tokio::test]
    async fn what_is_loaded_while_the_bound_changes_stays_nowhere_else() {
        let (clean, metrics) = clean(32 << 20);
        let geometry = Geometry::new(4 << 20).unwrap();
        let map_page = MapPage::new(0, geometry, Vec::new(), &BTreeMap::new());
        let (give, given) = tokio::sync::oneshot::channel();
        let mut loading = Box::pin(clean.map_page(key(1), async { given.await.expect("it is given") }));
        assert!(futures::poll!(loading.as_mut()).is_pending());
        clean.resize(16 << 20).await;
        give.send(Ok(Arc::new(map_page))).expect("it waits");
        loading.await.unwrap();
        assert_eq!((counted(&metrics).0, clean.held_bytes()), (0, 0));
    }

    #[tokio::test]
    async fn what_goes_is_counted_off_and_as_evicted_only_for_want_of_room() {
        let (clean, metrics) = clean(4 << 20);
        clean.put(key(1), page()).await;
        clean.put(key(1), page()).await;
        let one = u64::from(page().weight());
        assert_eq!(counted(&metrics), (one, 0));
        clean.remove(&key(1)).await;
        clean.settle().await;
        assert_eq!(counted(&metrics), (0, 0));
        for n in 0..200 {
            clean.put(key(n), page()).await;
        }
        let (bytes, evicted) = counted(&metrics);
        assert_eq!(bytes, clean.held_bytes());
        assert_eq!(evicted, 200 - bytes / one);
    }
}
