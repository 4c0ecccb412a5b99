//! The page cache: clean, verified blocks of objects, shared by all volumes of the process.
//!
//! The cache is keyed by object and position in it, never by disk offset, so that a late fetch of an old
//! object cannot be mistaken for a new one. It must not know about changes: everything in it is also in the
//! store, so that eviction loses nothing. Invariants: every block in the cache has passed its check.
//! Concurrent misses of one block share one GET. A block that failed its check is not in the cache.

mod ahead;
pub(super) mod clean;
mod counts;
pub mod fetch;
pub mod held;
pub mod index;
mod kept;
mod load;
pub mod moved;
pub mod read_load;
mod under_way;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::ready;
use futures::stream::{self, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use uuid::Uuid;

use self::clean::{Clean, HeldPieces};
use self::fetch::{CacheKey, Fetch};
use self::held::Held;
use self::index::{Index, MapView};
use self::load::{Begun, Keep, Load, Loading, load_alone};
use self::moved::{HeldBlock, Moved};
use self::read_load::ReadLoad;
use self::under_way::UnderWay;
use crate::metrics::VolumeMetrics;
use crate::mutant::{self, Mutant};
use crate::store::Store;
use crate::task::Tasks;
use crate::volume::error::Error;

/// Limit on concurrent GETs of the whole process for data that clients request ahead of time with CACHE.
pub const AHEAD_GETS: usize = 8;

/// Share of the capacity that the index may take: one part of this many.
const INDEX_SHARE: u64 = 2;
/// The capacity is divided between index and data in steps of one part of this many.
const BALANCE_STEPS: u64 = 16;

/// Share of the capacity that what was read ahead may take while there is no other room for it: one part of
/// this many.
const AHEAD_SHARE: u64 = 8;
/// How long that share stays free for the next sequential reader.
const AHEAD_IDLE: Duration = Duration::from_secs(60);

/// What a fetch returns.
#[derive(Debug)]
pub struct Fetched {
    /// The payload of each piece, in the order of the request.
    pub parts: Vec<Result<Bytes, Error>>,
    /// How many of them were not in memory.
    pub misses: usize,
}

/// What was loaded before anybody asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Brought {
    /// Bytes of the blocks and changes that were fetched. What was in memory or on its way already is not
    /// counted.
    pub bytes: u64,
    /// Number of GETs that fetched them, not counting those that were repeated.
    pub requests: u64,
}

impl Brought {
    /// Adds what another fetch brought.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, requests: self.requests + other.requests }
    }
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
    /// Bytes of the capacity that data leaves to the index and to what was read ahead. The lock is held while
    /// data is moved.
    reserved_bytes: tokio::sync::Mutex<u64>,
    /// Memory in bytes that locates what is in the journal, by volume.
    journal_index: Mutex<BTreeMap<Uuid, u64>>,
    /// When there was last no other room for what was read ahead.
    ahead_used: Mutex<Option<Instant>>,
    loading: Arc<Loading>,
    moved: Moved,
    /// Limit on the bytes of one GET.
    get_bytes: u64,
    reads: ReadLoad,
    under_way: UnderWay,
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
            journal_index: Mutex::default(),
            ahead_used: Mutex::new(None),
            loading: Arc::default(),
            moved: Moved::default(),
            reads: ReadLoad::default(),
            under_way: UnderWay::default(),
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

    /// Whether `bytes` bytes of data fit without an eviction.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.clean.has_room(bytes)
    }

    /// Limit on the bytes of runs of changes that are held at once.
    pub(super) fn most_run_bytes(&self) -> u64 {
        self.clean.most_run_bytes()
    }

    /// Limit on the bytes that should be read ahead of one stream, so that they are read before they have to
    /// go.
    #[must_use]
    pub fn most_ahead_bytes(&self) -> u64 {
        self.capacity_bytes() / AHEAD_SHARE / 2
    }

    /// Divides the capacity between data, index, and what was read ahead, if their shares are no longer right
    /// or `always`.
    async fn divide(&self, always: bool) {
        let mut reserved = self.reserved_bytes.lock().await;
        let capacity = self.capacity_bytes();
        let is_ahead = self.ahead_used.lock().is_some_and(|used| used.elapsed() < AHEAD_IDLE);
        let ahead = if is_ahead { capacity / AHEAD_SHARE } else { 0 };
        if !is_ahead {
            // What nobody came to read must not stay in room that the index may take.
            self.clean.limit_ahead(0);
        }
        let index = self.index.held_bytes() + self.journal_index.lock().values().sum::<u64>();
        let needed = reserved_bytes(capacity, index) + ahead;
        // The index shrinks and grows with each checkpoint. Data takes back only what was free for long.
        let is_right = needed <= *reserved && *reserved <= 2 * needed;
        if always || !is_right {
            *reserved = needed;
            // What gives room away does so before the other takes it.
            self.clean.limit_ahead(ahead.min(self.clean.most_ahead_bytes()));
            self.clean.resize(capacity - needed).await;
        }
        self.clean.limit_ahead(ahead);
    }

    /// Reports the pieces of a volume's objects to `metrics` from now on.
    pub fn count_for(&self, volume: Uuid, metrics: VolumeMetrics) {
        self.clean.counts.volumes.lock().insert(volume, metrics);
    }

    /// Says how many bytes of memory locate what is in the journal of a volume. Data leaves as much of the
    /// capacity free, within the share of the index.
    pub(super) fn set_journal_index(&self, volume: Uuid, bytes: u64) {
        self.journal_index.lock().insert(volume, bytes);
    }

    /// Stops counting the pieces of a volume's objects.
    pub fn forget(&self, volume: Uuid) {
        self.journal_index.lock().remove(&volume);
        self.moved.forget(volume);
        self.clean.counts.volumes.lock().remove(&volume);
    }

    /// Inserts blocks of a piece that is already durable.
    pub async fn insert(&self, key: CacheKey, blocks: Held) {
        self.clean.put(key, blocks).await;
    }

    /// Records that a block of a change is held under a new name. The block is let go, and reads find it
    /// under its new name.
    pub async fn moved(&self, from: HeldBlock, to: HeldBlock) {
        let to = if mutant::is(Mutant::MovedAstray) { HeldBlock { bit: to.bit ^ 1, ..to } } else { to };
        self.moved.note(from, to);
        self.clean.let_go(&from.key, 1 << from.bit).await;
    }

    /// Lets go of blocks that no read will need any more: each piece with a mask of its blocks.
    pub async fn let_go(&self, pieces: impl IntoIterator<Item = (CacheKey, u16)>) {
        for (key, mask) in pieces {
            self.clean.let_go(&key, mask).await;
        }
    }

    /// Returns what is held of a piece, of which the blocks in `mask` are read now. Counts as a use.
    async fn held_of(&self, key: &CacheKey, mask: u16) -> Held {
        let mut held = self.clean.get(key, mask).await;
        if mask & !held.mask() != 0 {
            for (bit, to) in self.moved.of(key, mask & !held.mask()) {
                let found = self.clean.get(&to.key, 1 << to.bit).await;
                if let Some(data) = found.blocks(to.bit..to.bit + 1) {
                    held = held.joined(&Held::new(1 << bit, data));
                }
            }
        }
        held
    }

    /// Removes pieces that are no longer referenced.
    pub async fn remove(&self, keys: impl IntoIterator<Item = CacheKey>) {
        for key in keys {
            self.clean.remove(&key).await;
            self.moved.remove(&key);
        }
    }

    /// Runs pending evictions, so that the cache stays within its bound during bursts of insertions.
    pub async fn settle(&self) {
        self.clean.settle().await;
    }

    /// Returns how much the reads of clients occupy the store and the processors.
    pub(super) fn reads(&self) -> &ReadLoad {
        &self.reads
    }

    /// Whether all wanted blocks of a piece are in memory.
    #[must_use]
    pub fn contains(&self, fetch: &Fetch) -> bool {
        let held = self.clean.mask(&fetch.key);
        let missing = fetch.mask() & !held;
        let moved = if missing == 0 { Vec::new() } else { self.moved.of(&fetch.key, missing) };
        let moved = moved.iter().filter(|(_, to)| self.clean.mask(&to.key) >> to.bit & 1 == 1);
        missing & !moved.fold(0, |mask, (bit, _)| mask | 1 << bit) == 0
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
        // Parts of one piece are neighbours, and share a lookup.
        for same in wanted.chunk_by(|one, next| one.key == next.key) {
            let held = self.held_of(&same[0].key, same.iter().fold(0, |all, fetch| all | fetch.mask())).await;
            let bytes: usize = same.iter().map(Fetch::wanted_bytes).sum();
            let is_most = bytes * 2 > held.bytes();
            for fetch in same {
                let found = fetch.wanted_of(&held, is_most);
                if found.is_none() {
                    let (place, mask) = (parts.len(), fetch.mask() & !held.mask());
                    let mask = if mask == 0 { fetch.mask() } else { mask };
                    missing.push(Missing { place, held: held.clone(), mask });
                }
                parts.push(found.map(Ok));
            }
        }
        let misses = missing.len();
        self.clean.counts.asked(wanted, misses);
        if !missing.is_empty() {
            let _waits = matches!(keep, Keep::Cached).then(|| self.reads.wait());
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
        wanted.iter().enumerate().filter_map(is_missing).collect()
    }

    /// As [`PageCache::missing`], for pieces that are counted as read ahead.
    fn missing_ahead(&self, wanted: &[Fetch]) -> Vec<Missing> {
        let missing = self.missing(wanted);
        self.clean.counts.read_ahead(wanted, missing.iter().map(|missing| missing.place));
        missing
    }

    /// Starts to fetch pieces that are neither in memory nor in flight, ahead of a sequential reader. Does
    /// not wait for them. They have only the room that nothing else needs, and a share of the capacity while
    /// there is none.
    pub async fn prefetch(&self, store: &Arc<dyn Store>, wanted: &[Fetch]) {
        let wanted = self.under_way.fitting(wanted, self.capacity_bytes());
        let mut missing = self.missing_ahead(wanted);
        self.make_room_ahead(wanted.iter().map(|fetch| u64::from(fetch.length)).sum()).await;
        missing.sort_by_key(|missing| (wanted[missing.place].object, wanted[missing.place].at));
        for begun in self.begin(wanted, &missing).1 {
            let bytes = begun.bytes();
            let load = begun.load(Arc::clone(store), Arc::clone(&self.clean), Keep::Ahead);
            drop(self.tasks.spawn_until_cancelled(self.under_way.during(bytes, load)));
        }
    }

    /// Makes room for `bytes` bytes that are read ahead: data leaves a share of the capacity to them if it
    /// does not leave enough anyway.
    async fn make_room_ahead(&self, bytes: u64) {
        if !self.clean.has_room_ahead(bytes) {
            *self.ahead_used.lock() = Some(Instant::now());
            self.divide(false).await;
        }
    }

    /// Fetches pieces that are neither in memory nor in flight, and waits for them. At most [`AHEAD_GETS`]
    /// GETs are in flight at once in the whole process. A load is registered only when it has a permit, so
    /// that a reader that joins it never waits for the loads before it.
    pub async fn fetch_ahead(&self, store: &Arc<dyn Store>, wanted: &[Fetch]) {
        self.fetch_in_turns(store, wanted, self.missing_ahead(wanted)).await;
    }

    /// As [`PageCache::fetch_ahead`], but for pieces that are not counted as read ahead: whether a reader
    /// comes for all of them says nothing about read-ahead. Returns what was fetched.
    pub async fn warm(&self, store: &Arc<dyn Store>, wanted: &[Fetch]) -> Brought {
        self.fetch_in_turns(store, wanted, self.missing(wanted)).await
    }

    async fn fetch_in_turns(
        &self,
        store: &Arc<dyn Store>,
        wanted: &[Fetch],
        mut missing: Vec<Missing>,
    ) -> Brought {
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
        let fetched = stream::iter(turns).buffer_unordered(AHEAD_GETS);
        fetched.fold(Brought::default(), |all, one| ready(all.and(one))).await
    }

    async fn fetch_at_turn(&self, store: &Arc<dyn Store>, wanted: &[Fetch], missing: &[Missing]) -> Brought {
        let turn = Arc::clone(&self.ahead).acquire_owned().await.expect("the semaphore is never closed");
        let turn = Arc::new(turn);
        let (waits, runs) = self.begin(wanted, missing);
        let ours: Vec<Arc<Load>> = runs.iter().flat_map(Begun::loads).collect();
        let mut brought = Brought { bytes: 0, requests: runs.len() as u64 };
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
        for load in ours {
            let bytes = load.wait(|loaded| loaded.as_ref().map(|(held, _)| held.bytes())).await;
            brought.bytes += bytes as u64;
        }
        brought
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

#[cfg(test)]
mod tests {
    use super::fetch::Unit;
    use super::*;
    use crate::volume::format::geometry::{ChunkIndex, PageIndex};
    use crate::volume::format::keys::ObjectId;

    const MIB: u64 = 1 << 20;

    #[tokio::test]
    async fn data_gives_way_to_what_locates_the_journal() {
        let (cache, volume) = (PageCache::new(64 * MIB, MIB), Uuid::from_u128(7));
        let fill = async || {
            for n in 0..1100 {
                let unit = Unit::Page(ChunkIndex(n), ObjectId { epoch: 1, k: 1 }, PageIndex(0));
                let data = Bytes::from(vec![7; 65_536]);
                cache.insert(CacheKey { volume, unit }, Held::new(u16::MAX, data)).await;
            }
            cache.settle().await;
        };
        fill().await;
        let full = cache.held_bytes();
        assert!((50 * MIB..=60 * MIB).contains(&full), "{full}");
        cache.set_journal_index(volume, 18 * MIB);
        cache.divide(false).await;
        fill().await;
        let less = cache.held_bytes();
        assert!((34 * MIB..=44 * MIB).contains(&less), "{less}");
        // Never more than the share of the index.
        cache.set_journal_index(volume, 1 << 40);
        cache.divide(false).await;
        fill().await;
        let least = cache.held_bytes();
        assert!((24 * MIB..=32 * MIB).contains(&least), "{least}");
        cache.forget(volume);
        cache.divide(false).await;
        fill().await;
        let again = cache.held_bytes();
        assert!((50 * MIB..=60 * MIB).contains(&again), "{again}");
    }
}
