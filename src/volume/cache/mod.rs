//! The page cache: clean, verified blocks of objects, shared by all volumes of the process.
//!
//! The cache is keyed by object and position in it, never by disk offset, so that a late fetch of an old
//! object cannot be mistaken for a new one. It must not know about changes: everything in it is also in the
//! store, so that eviction loses nothing. Invariants: every block in the cache has passed its check.
//! Concurrent misses of one block share one GET. A block that failed its check is not in the cache.

pub(super) mod clean;
mod counts;
pub mod fetch;
pub mod held;
pub mod index;
mod load;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use tokio::sync::Semaphore;
use uuid::Uuid;

use self::clean::{Clean, HeldPieces};
use self::fetch::{CacheKey, Fetch};
use self::held::Held;
use self::index::{Index, MapView};
use self::load::{Begun, Keep, Load, Loading, load_alone};
use crate::metrics::VolumeMetrics;
use crate::store::Store;
use crate::task::Tasks;
use crate::volume::error::Error;

/// Limit on concurrent GETs of the whole process for data that clients request ahead of time with CACHE.
pub const AHEAD_GETS: usize = 8;

/// Share of the capacity that the index may take: one part of this many.
const INDEX_SHARE: u64 = 2;
/// The capacity is divided between index and data in steps of one part of this many.
const BALANCE_STEPS: u64 = 16;

/// What a fetch returns.
#[derive(Debug)]
pub struct Fetched {
    /// The payload of each piece, in the order of the request.
    pub parts: Vec<Result<Bytes, Error>>,
    /// How many of them were not in memory.
    pub misses: usize,
}

/// A piece that is not in memory, or not all of it.
struct Missing {
    /// Its index in the request.
    place: usize,
    /// What is in memory of it.
    held: Held,
    /// The blocks that are missing.
    mask: u16,
}

/// Clean pieces of objects in memory, and the loads in flight.
pub struct PageCache {
    clean: Arc<Clean>,
    index: Index,
    capacity_bytes: AtomicU64,
    /// Bytes of the capacity that data leaves to the index. The lock is held while data is moved.
    reserved_bytes: tokio::sync::Mutex<u64>,
    loading: Arc<Loading>,
    /// Limit on the bytes of one GET.
    get_bytes: u64,
    /// One permit for each GET of [`PageCache::fetch_ahead`].
    ahead: Arc<Semaphore>,
    tasks: Tasks,
}

impl fmt::Debug for PageCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageCache").field("held_bytes", &self.held_bytes()).finish_non_exhaustive()
    }
}

impl PageCache {
    /// Creates a cache of at most `bytes` bytes. One GET fetches at most `get_bytes` bytes.
    #[must_use]
    pub fn new(bytes: u64, get_bytes: u64) -> Arc<Self> {
        Self::with(bytes, get_bytes, false)
    }

    /// As [`PageCache::new`], but evicts with each insertion. This is slower, but what the cache holds
    /// depends only on the order of uses, not on the time between them.
    #[must_use]
    pub fn eager(bytes: u64, get_bytes: u64) -> Arc<Self> {
        Self::with(bytes, get_bytes, true)
    }

    fn with(bytes: u64, get_bytes: u64, eager: bool) -> Arc<Self> {
        let reserved = reserved_bytes(bytes, 0);
        let clean = Clean::new(bytes - reserved, eager);
        let index = Index::new(bytes / INDEX_SHARE, &clean.counts);
        Arc::new(Self {
            clean: Arc::new(clean),
            index,
            capacity_bytes: AtomicU64::new(bytes),
            reserved_bytes: tokio::sync::Mutex::new(reserved),
            loading: Arc::default(),
            get_bytes,
            ahead: Arc::new(Semaphore::new(AHEAD_GETS)),
            tasks: Tasks::new(),
        })
    }

    /// Changes the capacity to `bytes` bytes. Pieces that no longer fit are evicted at once.
    pub async fn resize(&self, bytes: u64) {
        self.capacity_bytes.store(bytes, Ordering::Relaxed);
        self.index.resize(bytes / INDEX_SHARE).await;
        self.divide(true).await;
    }

    /// Capacity in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that the cache holds, including its overhead for each piece.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.clean.held_bytes() + self.index.held_bytes()
    }

    /// Divides the capacity between index and data, if their shares are no longer right or `always`.
    async fn divide(&self, always: bool) {
        let mut reserved = self.reserved_bytes.lock().await;
        let needed = reserved_bytes(self.capacity_bytes(), self.index.held_bytes());
        // The index shrinks and grows with each checkpoint. Data takes back only what was free for long.
        let is_right = needed <= *reserved && *reserved <= 2 * needed;
        if always || !is_right {
            *reserved = needed;
            self.clean.resize(self.capacity_bytes() - needed).await;
        }
    }

    /// Reports the pieces of a volume's objects to `metrics` from now on.
    pub fn count_for(&self, volume: Uuid, metrics: VolumeMetrics) {
        self.clean.counts.volumes.lock().insert(volume, metrics);
    }

    /// Stops counting the pieces of a volume's objects.
    pub fn forget(&self, volume: Uuid) {
        self.clean.counts.volumes.lock().remove(&volume);
    }

    /// Inserts blocks of a piece that is already durable.
    pub async fn insert(&self, key: CacheKey, blocks: Held) {
        self.clean.put(key, blocks).await;
    }

    /// Removes pieces that are no longer referenced.
    pub async fn remove(&self, keys: impl IntoIterator<Item = CacheKey>) {
        for key in keys {
            self.clean.remove(&key).await;
        }
        self.settle().await;
    }

    /// Runs pending evictions, so that the cache stays within its bound during bursts of insertions.
    pub async fn settle(&self) {
        self.clean.settle().await;
    }

    /// Whether all wanted blocks of a piece are in memory.
    #[must_use]
    pub fn contains(&self, fetch: &Fetch) -> bool {
        self.clean.contains(fetch)
    }

    /// Returns which pieces are in memory now.
    pub(super) fn held(&self) -> HeldPieces {
        self.clean.all()
    }

    /// Returns a map page with its overlays. If it is not in memory, `load` loads it.
    ///
    /// # Errors
    /// Returns the errors of `load`.
    pub async fn map_view<F>(&self, key: CacheKey, load: F) -> Result<Arc<MapView>, Error>
    where
        F: Future<Output = Result<Arc<MapView>, Error>> + Send,
    {
        let (view, was_loaded) = self.index.view(key, load).await?;
        if was_loaded {
            self.divide(false).await;
        }
        Ok(view)
    }

    /// Returns a map page if it is in memory.
    pub(super) async fn held_map_view(&self, key: &CacheKey) -> Option<Arc<MapView>> {
        self.index.held(key).await
    }

    /// Inserts a map page that is already durable.
    pub async fn insert_map_view(&self, key: CacheKey, view: Arc<MapView>) {
        self.index.put(key, view).await;
        self.divide(false).await;
    }

    /// Removes a map page that no read needs any more.
    pub async fn remove_map_view(&self, key: &CacheKey) {
        self.index.remove(key).await;
    }

    /// Returns every piece, in the order of `wanted`. Blocks that are not in memory are fetched; those that
    /// lie close together in an object share a GET.
    pub async fn fetch(&self, store: &Arc<dyn Store>, wanted: &[Fetch]) -> Fetched {
        self.fetch_and(store, wanted, Keep::Cached).await
    }

    /// As [`PageCache::fetch`], but does not keep fetched blocks in the cache: for data that is read only
    /// once. Runs of changes are kept, because other chunks need parts of them.
    pub async fn fetch_passing(&self, store: &Arc<dyn Store>, wanted: &[Fetch]) -> Vec<Result<Bytes, Error>> {
        self.fetch_and(store, wanted, Keep::Passing).await.parts
    }

    async fn fetch_and(&self, store: &Arc<dyn Store>, wanted: &[Fetch], keep: Keep) -> Fetched {
        let mut parts: Vec<Option<Result<Bytes, Error>>> = Vec::with_capacity(wanted.len());
        let mut missing = Vec::new();
        for (place, fetch) in wanted.iter().enumerate() {
            let held = self.clean.get(&fetch.key).await.unwrap_or_default();
            let found = fetch.wanted(&held);
            if found.is_none() {
                let mask = fetch.mask() & !held.mask;
                missing.push(Missing { place, held, mask: if mask == 0 { fetch.mask() } else { mask } });
            }
            parts.push(found.map(Ok));
        }
        let misses = missing.len();
        self.clean.counts.asked(wanted, misses);
        if !missing.is_empty() {
            self.fetch_missing(store, wanted, keep, missing, &mut parts).await;
        }
        let parts = parts.into_iter().map(|part| part.expect("in memory, or waited for")).collect();
        Fetched { parts, misses }
    }

    async fn fetch_missing(
        &self,
        store: &Arc<dyn Store>,
        wanted: &[Fetch],
        keep: Keep,
        mut missing: Vec<Missing>,
        parts: &mut [Option<Result<Bytes, Error>>],
    ) {
        // Neighbours in one object share a GET, whatever the order in which they are requested.
        missing.sort_by_key(|missing| (wanted[missing.place].object, wanted[missing.place].at));
        let (waits, runs) = self.begin(wanted, &missing);
        for begun in runs {
            let mut load = Box::pin(begun.load(Arc::clone(store), Arc::clone(&self.clean), keep));
            // A load that completes at once needs no task. Any other load runs in a task of its own, so that
            // it continues if the reader is cancelled.
            if futures::poll!(load.as_mut()).is_pending() {
                drop(self.tasks.spawn_until_cancelled(load));
            }
        }
        for (missing, loads) in missing.into_iter().zip(waits) {
            let fetch = &wanted[missing.place];
            let (mut held, mut failed) = (missing.held, None);
            for load in loads {
                let (loaded, error) = load.wait(Option::clone).await;
                held = held.joined(&loaded);
                failed = failed.or(error);
            }
            let part = match (fetch.wanted(&held), failed, fetch.alone()) {
                (Some(bytes), ..) => Ok(bytes),
                (None, Some(Error::Damaged { .. }), Some(alone)) => {
                    Box::pin(load_alone(store.as_ref(), alone)).await
                }
                (None, Some(error), _) => Err(error),
                (None, None, _) => unreachable!("what was loaded is there, or it failed"),
            };
            parts[missing.place] = Some(part);
        }
    }

    /// Returns the pieces of which blocks are missing, in the order of `wanted`.
    fn missing(&self, wanted: &[Fetch]) -> Vec<Missing> {
        let is_missing = |(place, fetch): (usize, &Fetch)| {
            let mask = fetch.mask();
            (!self.contains(fetch)).then(|| Missing { place, held: Held::default(), mask })
        };
        let missing: Vec<Missing> = wanted.iter().enumerate().filter_map(is_missing).collect();
        self.clean.counts.read_ahead(wanted, missing.iter().map(|missing| missing.place));
        missing
    }

    /// Starts to fetch pieces that are neither in memory nor in flight. Does not wait for them.
    pub fn prefetch(&self, store: &Arc<dyn Store>, wanted: &[Fetch]) {
        let mut missing = self.missing(wanted);
        missing.sort_by_key(|missing| (wanted[missing.place].object, wanted[missing.place].at));
        for begun in self.begin(wanted, &missing).1 {
            drop(self.tasks.spawn_until_cancelled(begun.load(
                Arc::clone(store),
                Arc::clone(&self.clean),
                Keep::Cached,
            )));
        }
    }

    /// Fetches pieces that are neither in memory nor in flight, and waits for them. At most [`AHEAD_GETS`]
    /// GETs are in flight at once in the whole process. A load is registered only when it has a permit, so
    /// that a reader that joins it never waits for the loads before it.
    pub async fn fetch_ahead(&self, store: &Arc<dyn Store>, wanted: &[Fetch]) {
        let mut missing = self.missing(wanted);
        missing.sort_by_key(|missing| (wanted[missing.place].object, wanted[missing.place].at));
        let mut turns = Vec::new();
        let mut left = missing.as_slice();
        while let Some(first) = left.first() {
            let shares = |next: &Missing, last: &Missing| {
                let (first, last) = (&wanted[first.place], &wanted[last.place]);
                load::share_a_get(first, last, &wanted[next.place], self.get_bytes)
            };
            let more = left.windows(2).take_while(|pair| shares(&pair[1], &pair[0])).count();
            let (get, rest) = left.split_at(1 + more);
            turns.push(self.fetch_at_turn(store, wanted, get));
            left = rest;
        }
        stream::iter(turns).buffer_unordered(AHEAD_GETS).collect::<()>().await;
    }

    async fn fetch_at_turn(&self, store: &Arc<dyn Store>, wanted: &[Fetch], missing: &[Missing]) {
        let turn = Arc::clone(&self.ahead).acquire_owned().await.expect("the semaphore is never closed");
        let turn = Arc::new(turn);
        let (waits, runs) = self.begin(wanted, missing);
        for begun in runs {
            let load = begun.load(Arc::clone(store), Arc::clone(&self.clean), Keep::Cached);
            let turn = Arc::clone(&turn);
            drop(self.tasks.spawn_until_cancelled(async move {
                load.await;
                drop(turn);
            }));
        }
        for load in waits.into_iter().flatten() {
            load.wait(|loaded| loaded.is_some().then_some(())).await;
        }
    }

    /// Joins or starts the loads of the missing blocks. Returns the loads to wait for, by missing piece,
    /// and one GET for each run of neighbours.
    fn begin(&self, wanted: &[Fetch], missing: &[Missing]) -> (Vec<Vec<Arc<Load>>>, Vec<Begun>) {
        let mut waits = Vec::with_capacity(missing.len());
        let mut runs: Vec<Begun> = Vec::new();
        let mut loading = self.loading.lock();
        for missing in missing {
            let fetch = &wanted[missing.place];
            let loads = loading.entry(fetch.key).or_default();
            let mut left = missing.mask;
            let mut joined: Vec<Arc<Load>> = Vec::with_capacity(1);
            for (mask, load) in loads.iter() {
                if mask & left != 0 {
                    left &= !mask;
                    joined.push(Arc::clone(load));
                }
            }
            if left != 0 {
                let (fetch, load) = (fetch.narrowed(left), Arc::new(Load::new(None)));
                loads.push((fetch.mask(), Arc::clone(&load)));
                joined.push(Arc::clone(&load));
                match runs.last_mut() {
                    Some(begun) if begun.is_followed_by(&fetch, self.get_bytes) => begun.push(fetch, load),
                    _ => runs.push(Begun::new(&self.loading, fetch, load)),
                }
            }
            waits.push(joined);
        }
        (waits, runs)
    }
}

/// Bytes of a capacity that data leaves to an index of `held` bytes.
fn reserved_bytes(capacity: u64, held: u64) -> u64 {
    let step = (capacity / BALANCE_STEPS).max(1);
    (held.div_ceil(step).max(1) * step).min(capacity / INDEX_SHARE).min(capacity)
}
