//! The pieces in memory: what the page cache holds, within a bound that can change while it is used.
//!
//! Knows no store. Invariants: the pieces together weigh no more than the bound; each is counted when it comes and
//! counted off once when it goes, for whatever reason; of those who miss one map page at a time, one loads it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3Builder;

use super::cache::{CacheKey, Unit};
use super::cache_counts::Counts;
use super::error::Error;
use super::geometry::{ChunkIndex, PAGE_BYTES};
use super::keys::ObjectId;
use super::map::MapPage;
use super::page_set::PageSet;
use super::signal::Signal;

/// What an entry costs beside its bytes: the tables of the cache, and what the allocator loses on small pieces.
const ENTRY_BYTES: usize = 768;
/// Parts of a large cache, each with its own lock and its share of the bound.
const SHARDS: u64 = 8;
/// Least bound of a part: a map page of small chunks must fit.
const SHARD_BYTES: u64 = 1 << 20;
/// A cache of less is not divided.
const DIVIDED_BYTES: u64 = 64 << 20;

/// A piece as it is held.
#[derive(Clone)]
pub(super) enum Cached {
    /// Verified bytes.
    Bytes(Bytes),
    /// A map page, decoded.
    Map(Arc<MapPage>),
}

impl Cached {
    fn weight(&self) -> u64 {
        let bytes = match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Map(page) => page.memory_bytes(),
        };
        (bytes + ENTRY_BYTES) as u64
    }
}

#[derive(Clone)]
struct Bytewise;

impl Weighter<CacheKey, Cached> for Bytewise {
    fn weight(&self, _: &CacheKey, value: &Cached) -> u64 {
        value.weight()
    }
}

/// Counts off what goes.
#[derive(Clone)]
struct Leaving(Arc<Counts>);

impl Lifecycle<CacheKey, Cached> for Leaving {
    type RequestState = ();

    /// Only for want of room, not where another takes the place.
    fn before_evict(&self, (): &mut (), key: &CacheKey, _: &mut Cached) {
        self.0.evicted(key);
    }

    fn on_evict(&self, (): &mut (), key: CacheKey, value: Cached) {
        self.0.dropped(&key, value.weight());
    }
}

/// How a load of a map page stands.
#[derive(Clone)]
enum MapLoad {
    Running,
    Ended(Result<Arc<MapPage>, Error>),
    /// Whoever loaded it went away.
    GivenUp,
}

type MapLoads = Mutex<BTreeMap<CacheKey, Arc<Signal<MapLoad>>>>;

/// Clean pieces in memory.
pub(super) struct Clean {
    pieces: Cache<CacheKey, Cached, Bytewise, Xxh3Builder, Leaving>,
    pub(super) counts: Arc<Counts>,
    map_loads: MapLoads,
}

impl Clean {
    /// Holds at most `bytes` bytes.
    pub(super) fn new(bytes: u64) -> Self {
        let counts = Arc::new(Counts::default());
        let shards = if bytes < DIVIDED_BYTES { 1 } else { SHARDS };
        // Fewer would make fewer parts.
        let items = (bytes / PAGE_BYTES).max(32 * SHARDS);
        let options = OptionsBuilder::new()
            .shards(usize::try_from(shards).expect("a few"))
            .estimated_items_capacity(usize::try_from(items).unwrap_or(usize::MAX))
            .weight_capacity(bytes)
            .build()
            .expect("both capacities are given");
        let leaving = Leaving(Arc::clone(&counts));
        let pieces = Cache::with_options(options, Bytewise, Xxh3Builder::new(), leaving);
        Self { pieces, counts, map_loads: Mutex::default() }
    }

    /// Holds at most `bytes` bytes from now on, but what is asked of a part at least; what is used least goes at once.
    pub(super) fn resize(&self, bytes: u64) {
        let shards = self.pieces.num_shards() as u64;
        self.pieces.set_capacity(bytes.max(shards * SHARD_BYTES));
    }

    /// Bytes held.
    pub(super) fn held_bytes(&self) -> u64 {
        self.pieces.weight()
    }

    /// Puts a piece in.
    pub(super) fn put(&self, key: CacheKey, value: Cached) {
        self.counts.added(&key, value.weight());
        self.pieces.insert(key, value);
    }

    /// A piece of bytes; counts as a use.
    pub(super) fn bytes(&self, key: &CacheKey) -> Option<Bytes> {
        match self.pieces.get(key) {
            Some(Cached::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// Whether a piece is held; no use.
    pub(super) fn contains(&self, key: &CacheKey) -> bool {
        self.pieces.contains_key(key)
    }

    /// Drops a piece.
    pub(super) fn remove(&self, key: &CacheKey) {
        if let Some((key, value)) = self.pieces.remove(key) {
            self.counts.dropped(&key, value.weight());
        }
    }

    /// A map page, loaded by `load` unless it is held. Those who wait for another's load share what comes of it.
    pub(super) async fn map_page<F>(&self, key: CacheKey, load: F) -> Result<Arc<MapPage>, Error>
    where
        F: Future<Output = Result<Arc<MapPage>, Error>> + Send,
    {
        loop {
            if let Some(Cached::Map(page)) = self.pieces.get(&key) {
                return Ok(page);
            }
            let theirs = match self.join(key) {
                Ok(ours) => {
                    let loaded = load.await;
                    if let Ok(page) = &loaded {
                        self.put(key, Cached::Map(Arc::clone(page)));
                    }
                    ours.load.set(MapLoad::Ended(loaded.clone()));
                    return loaded;
                }
                Err(theirs) => theirs,
            };
            let ended = |load: &MapLoad| match load {
                MapLoad::Running => None,
                MapLoad::Ended(loaded) => Some(Some(loaded.clone())),
                MapLoad::GivenUp => Some(None),
            };
            if let Some(loaded) = theirs.wait(ended).await {
                return loaded;
            }
        }
    }

    /// The right to load a map page, or the load that is on its way.
    fn join(&self, key: CacheKey) -> Result<Turn<'_>, Arc<Signal<MapLoad>>> {
        let mut loads = self.map_loads.lock();
        if let Some(theirs) = loads.get(&key) {
            return Err(Arc::clone(theirs));
        }
        let load = Arc::new(Signal::new(MapLoad::Running));
        loads.insert(key, Arc::clone(&load));
        Ok(Turn { loads: &self.map_loads, key, load })
    }

    /// The pages of chunk objects and packs that are held, of all volumes.
    pub(super) fn pages(&self) -> HeldPages {
        let mut held = HeldPages::default();
        for (key, _) in self.pieces.iter() {
            match key.unit {
                Unit::Page(index, id, page) => {
                    held.chunks.entry((key.volume, index, id)).or_default().insert(page);
                }
                Unit::Packed(number, id, frame) => {
                    held.packed.insert((key.volume, number, id, frame));
                }
                Unit::Change(..) | Unit::Map(..) => {}
            }
        }
        held
    }
}

/// The right to load a map page; those who wait hear when it is given up.
struct Turn<'a> {
    loads: &'a MapLoads,
    key: CacheKey,
    load: Arc<Signal<MapLoad>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.loads.lock().remove(&self.key);
        self.load.update(|load| {
            if matches!(load, MapLoad::Running) {
                *load = MapLoad::GivenUp;
            }
        });
    }
}

/// Pages that were in memory at one time.
#[derive(Debug, Default)]
pub(super) struct HeldPages {
    chunks: BTreeMap<(Uuid, ChunkIndex, ObjectId), PageSet>,
    packed: BTreeSet<(Uuid, u32, ObjectId, u32)>,
}

impl HeldPages {
    /// Those of a chunk object.
    pub(super) fn of_chunk(&self, volume: Uuid, index: ChunkIndex, id: ObjectId) -> PageSet {
        self.chunks.get(&(volume, index, id)).copied().unwrap_or_default()
    }

    /// Whether a frame of a pack is among them.
    pub(super) fn has_packed(&self, volume: Uuid, map_page: u32, id: ObjectId, frame: u32) -> bool {
        !self.packed.is_empty() && self.packed.contains(&(volume, map_page, id, frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> CacheKey {
        let id = ObjectId { epoch: 1, k: u64::from(n) };
        CacheKey { volume: Uuid::from_u128(7), unit: Unit::Page(ChunkIndex(n), id, 0) }
    }

    fn page() -> Cached {
        Cached::Bytes(Bytes::from(vec![7; 65_536]))
    }

    fn held(clean: &Clean, keys: std::ops::Range<u32>) -> usize {
        keys.filter(|n| clean.contains(&key(*n))).count()
    }

    #[test]
    fn a_smaller_bound_drops_at_once_what_is_not_used_and_keeps_what_is() {
        let clean = Clean::new(64 << 20);
        for n in 0..960 {
            clean.put(key(n), page());
        }
        let before = clean.held_bytes();
        assert!(before > 56 << 20 && before <= 64 << 20, "{before}");
        for _ in 0..2 {
            for n in 400..480 {
                assert!(clean.bytes(&key(n)).is_some(), "{n}");
            }
        }
        clean.resize(16 << 20);
        let now = clean.held_bytes();
        assert!(now > 12 << 20 && now <= 16 << 20, "{now}");
        assert_eq!(held(&clean, 400..480), 80, "what is used stays");
        clean.resize(128 << 20);
        for n in 1000..2600 {
            clean.put(key(n), page());
        }
        let grown = clean.held_bytes();
        assert!(grown > 100 << 20 && grown <= 128 << 20, "{grown}");
    }

    #[test]
    fn no_bound_is_so_small_that_a_piece_does_not_fit() {
        let clean = Clean::new(256 << 20);
        clean.resize(1);
        clean.put(key(1), page());
        assert!(clean.contains(&key(1)));
        let small = Clean::new(1 << 20);
        small.put(key(1), page());
        assert!(small.contains(&key(1)));
    }

    #[test]
    fn what_goes_is_counted_off_and_as_evicted_only_for_want_of_room() {
        use crate::metrics::{Metrics, Tier};

        let metrics = Metrics::new().volume("disk");
        let clean = Clean::new(4 << 20);
        clean.counts.volumes.lock().insert(Uuid::from_u128(7), metrics.clone());
        let counted =
            || (metrics.cache_bytes.of(Tier::Memory).get(), metrics.cache_evictions.of(Tier::Memory).get());
        clean.put(key(1), page());
        clean.put(key(1), page());
        let one = i64::try_from(page().weight()).unwrap();
        assert_eq!(counted(), (one, 0));
        clean.remove(&key(1));
        assert_eq!(counted(), (0, 0));
        for n in 0..200 {
            clean.put(key(n), page());
        }
        let (bytes, evicted) = counted();
        assert_eq!(u64::try_from(bytes).unwrap(), clean.held_bytes());
        assert_eq!(i64::try_from(evicted).unwrap(), 200 - bytes / one);
    }

    #[tokio::test]
    async fn who_waits_for_a_load_that_is_given_up_loads_for_itself() {
        let clean = Clean::new(1 << 20);
        let mut first = Box::pin(clean.map_page(key(1), std::future::pending()));
        assert!(futures::poll!(first.as_mut()).is_pending());
        let failure = || Err(Error::Lost { key: "map".to_owned() });
        let mut second = Box::pin(clean.map_page(key(1), std::future::ready(failure())));
        assert!(futures::poll!(second.as_mut()).is_pending(), "one loads");
        drop(first);
        assert!(matches!(second.await, Err(Error::Lost { .. })));
        assert!(clean.map_loads.lock().is_empty());
    }
}
