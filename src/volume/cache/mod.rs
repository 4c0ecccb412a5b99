//! The page cache: clean, verified pieces of objects, shared by all volumes of the process.
//!
//! The cache is keyed by object and position in it, never by disk offset, so that a late fetch of an old
//! object cannot be mistaken for a new one. It must not know about changes: everything in it is also in the
//! store, so that eviction loses nothing. Invariants: every piece in the cache has passed its check.
//! Concurrent misses of one piece share one GET. A failed fetch leaves nothing in the cache.

pub(super) mod clean;
mod counts;
pub mod fetch;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use uuid::Uuid;

use self::clean::{Cached, Clean, HeldPages};
use self::fetch::{CacheKey, Check, Fetch};
use crate::metrics::VolumeMetrics;
use crate::mutant::{self, Mutant};
use crate::store::{self, ByteRange, Store};
use crate::task::Tasks;
use crate::volume::error::Error;
use crate::volume::format::chunk::FRAME_BYTES;
use crate::volume::format::map::MapPage;
use crate::volume::signal::Signal;
use crate::volume::state::piece::own;
use crate::volume::store_exact::{Doubt, Verdict, damaged_on_the_way, get_referenced};

/// Limit on concurrent GETs of the whole process for data that clients request ahead of time with CACHE.
pub const AHEAD_GETS: usize = 8;

/// Whether fetched pieces stay in the cache.
#[derive(Clone, Copy)]
enum Keep {
    Cached,
    Passing,
}

/// State of a piece while a set of pieces is being fetched.
enum Found {
    Loaded(Result<Bytes, Error>),
    Loading,
}

/// A load in flight. The value is its result, once that is known.
type Load = Signal<Option<Result<Bytes, Error>>>;

/// Clean pieces of objects in memory, and the loads in flight.
pub struct PageCache {
    clean: Arc<Clean>,
    loading: Arc<Mutex<Loading>>,
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
        Arc::new(Self {
            clean: Arc::new(Clean::new(bytes, eager)),
            loading: Arc::new(Mutex::new(BTreeMap::new())),
            get_bytes,
            ahead: Arc::new(Semaphore::new(AHEAD_GETS)),
            tasks: Tasks::new(),
        })
    }

    /// Changes the capacity to `bytes` bytes. Pieces that no longer fit are evicted at once.
    pub async fn resize(&self, bytes: u64) {
        self.clean.resize(bytes).await;
    }

    /// Capacity in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.clean.capacity_bytes()
    }

    /// Bytes that the cache holds, including its overhead for each piece.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.clean.held_bytes()
    }

    /// Reports the pieces of a volume's objects to `metrics` from now on.
    pub fn count_for(&self, volume: Uuid, metrics: VolumeMetrics) {
        self.clean.counts.volumes.lock().insert(volume, metrics);
    }

    /// Stops counting the pieces of a volume's objects.
    pub fn forget(&self, volume: Uuid) {
        self.clean.counts.volumes.lock().remove(&volume);
    }

    /// Inserts a piece that is already durable.
    pub async fn insert(&self, key: CacheKey, bytes: Bytes) {
        self.clean.put(key, Cached::Bytes(bytes)).await;
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

    /// Returns a piece if it is in memory. Counts as a use.
    pub async fn peek(&self, key: &CacheKey) -> Option<Bytes> {
        self.clean.bytes(key).await
    }

    /// Whether a piece is in memory. Does not count as a use.
    #[must_use]
    pub fn contains(&self, key: &CacheKey) -> bool {
        self.clean.contains(key)
    }

    /// Returns which pages are in memory now.
    pub(super) fn pages(&self) -> HeldPages {
        self.clean.pages()
    }

    /// Returns a map page. If it is not in memory, `load` loads it.
    ///
    /// # Errors
    /// Returns the errors of `load`.
    pub async fn map_page<F>(&self, key: CacheKey, load: F) -> Result<Arc<MapPage>, Error>
    where
        F: Future<Output = Result<Arc<MapPage>, Error>> + Send,
    {
        self.clean.map_page(key, load).await
    }

    /// Inserts a map page that is already durable.
    pub async fn insert_map_page(&self, key: CacheKey, page: Arc<MapPage>) {
        self.clean.put(key, Cached::Map(page)).await;
    }

    /// Returns every piece, in the order of `wanted`. Pieces that are not in memory are fetched; adjacent
    /// pieces share a GET.
    pub async fn fetch(&self, store: &Arc<dyn Store>, wanted: &[Fetch]) -> Vec<Result<Bytes, Error>> {
        self.fetch_and(store, wanted, Keep::Cached).await
    }

    /// As [`PageCache::fetch`], but does not keep fetched pages in the cache: for data that is read only
    /// once. Runs of changes are kept, because other chunks need parts of them.
    pub async fn fetch_passing(&self, store: &Arc<dyn Store>, wanted: &[Fetch]) -> Vec<Result<Bytes, Error>> {
        self.fetch_and(store, wanted, Keep::Passing).await
    }

    async fn fetch_and(
        &self,
        store: &Arc<dyn Store>,
        wanted: &[Fetch],
        keep: Keep,
    ) -> Vec<Result<Bytes, Error>> {
        if let [fetch] = wanted
            && let Some(payload) = self.peek(&fetch.key).await
        {
            self.clean.counts.asked(wanted, 0);
            return vec![Ok(fetch.wanted(&payload))];
        }
        let mut loaded: BTreeMap<CacheKey, Found> = BTreeMap::new();
        let mut missing = Vec::new();
        let mut misses = 0;
        for (place, fetch) in wanted.iter().enumerate() {
            match loaded.get(&fetch.key) {
                Some(Found::Loading) => misses += 1,
                Some(Found::Loaded(_)) => {}
                None => {
                    let found = self.peek(&fetch.key).await;
                    if found.is_none() {
                        missing.push(place);
                        misses += 1;
                    }
                    loaded.insert(fetch.key, found.map_or(Found::Loading, |bytes| Found::Loaded(Ok(bytes))));
                }
            }
        }
        self.clean.counts.asked(wanted, misses);
        // Adjacent pieces of one object share a GET, whatever the order in which they are requested.
        missing.sort_by_key(|place| (wanted[*place].object, wanted[*place].at));
        let (waits, runs) = self.begin(wanted, &missing);
        for begun in runs {
            let mut load = Box::pin(begun.load(Arc::clone(store), Arc::clone(&self.clean), keep));
            // A load that completes at once needs no task. Any other load runs in a task of its own, so that
            // it continues if the reader is cancelled.
            if futures::poll!(load.as_mut()).is_pending() {
                drop(self.tasks.spawn_until_cancelled(load));
            }
        }
        for (place, load) in missing.into_iter().zip(waits) {
            loaded.insert(wanted[place].key, Found::Loaded(load.wait(Option::clone).await));
        }
        let mut results = Vec::with_capacity(wanted.len());
        for fetch in wanted {
            let Some(Found::Loaded(found)) = loaded.get(&fetch.key) else {
                unreachable!("in memory or waited for");
            };
            results.push(match found {
                Ok(payload) => Ok(fetch.wanted(payload)),
                Err(error) => match (error, fetch.alone()) {
                    (Error::Damaged { .. }, Some(alone)) => Box::pin(load_alone(store.as_ref(), alone)).await,
                    _ => Err(error.clone()),
                },
            });
        }
        results
    }

    /// Starts to fetch pieces that are neither in memory nor in flight. Does not wait for them.
    pub fn prefetch(&self, store: &Arc<dyn Store>, wanted: &[Fetch]) {
        let missing: Vec<usize> =
            (0..wanted.len()).filter(|place| !self.contains(&wanted[*place].key)).collect();
        self.clean.counts.read_ahead(wanted, &missing);
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
        let mut missing: Vec<usize> =
            (0..wanted.len()).filter(|place| !self.contains(&wanted[*place].key)).collect();
        self.clean.counts.read_ahead(wanted, &missing);
        missing.sort_by_key(|place| (wanted[*place].object, wanted[*place].at));
        let follows = |before: &usize, next: &usize| wanted[*next].lies_behind(&wanted[*before]);
        let most = usize::try_from(self.get_bytes / FRAME_BYTES).unwrap_or(usize::MAX).max(1);
        let mut turns = Vec::new();
        for get in missing.chunk_by(follows).flat_map(|run| run.chunks(most)) {
            turns.push(self.fetch_at_turn(store, wanted, get));
        }
        stream::iter(turns).buffer_unordered(AHEAD_GETS).collect::<()>().await;
    }

    async fn fetch_at_turn(&self, store: &Arc<dyn Store>, wanted: &[Fetch], places: &[usize]) {
        let turn = Arc::clone(&self.ahead).acquire_owned().await.expect("the semaphore is never closed");
        let turn = Arc::new(turn);
        let (waits, runs) = self.begin(wanted, places);
        for begun in runs {
            let load = begun.load(Arc::clone(store), Arc::clone(&self.clean), Keep::Cached);
            let turn = Arc::clone(&turn);
            drop(self.tasks.spawn_until_cancelled(async move {
                load.await;
                drop(turn);
            }));
        }
        for load in waits {
            load.wait(|loaded| loaded.is_some().then_some(())).await;
        }
    }

    /// Joins or starts the load of each piece in `missing`. Returns the loads to wait for, and one GET for
    /// each run of adjacent pieces.
    fn begin(&self, wanted: &[Fetch], missing: &[usize]) -> (Vec<Arc<Load>>, Vec<Begun>) {
        let mut waits = Vec::with_capacity(missing.len());
        let mut runs: Vec<Begun> = Vec::new();
        let mut loading = self.loading.lock();
        for &place in missing {
            let fetch = &wanted[place];
            if let Some(load) = loading.get(&fetch.key) {
                waits.push(Arc::clone(load));
                continue;
            }
            let load = Arc::new(Load::new(None));
            loading.insert(fetch.key, Arc::clone(&load));
            waits.push(Arc::clone(&load));
            match runs.last_mut() {
                Some(begun) if begun.is_followed_by(fetch, self.get_bytes) => {
                    begun.run.push((fetch.clone(), load))
                }
                _ => {
                    let run = vec![(fetch.clone(), load)];
                    runs.push(Begun { loading: Arc::clone(&self.loading), run });
                }
            }
        }
        (waits, runs)
    }
}

type Loading = BTreeMap<CacheKey, Arc<Load>>;

/// Loads that have been registered and are fetched with one GET. When they end, even by cancellation, all
/// waiting readers get a result, and later readers start a load of their own.
struct Begun {
    loading: Arc<Mutex<Loading>>,
    run: Vec<(Fetch, Arc<Load>)>,
}

impl Begun {
    /// Whether a piece directly follows the others, and one GET can fetch them all.
    fn is_followed_by(&self, fetch: &Fetch, get_bytes: u64) -> bool {
        let (first, last) = (&self.run[0].0, &self.run[self.run.len() - 1].0);
        fetch.lies_behind(last) && fetch.at + fetch.stored_bytes() - first.at <= get_bytes
    }

    /// Loads the run and inserts its pieces into the cache.
    async fn load(mut self, store: Arc<dyn Store>, clean: Arc<Clean>, keep: Keep) {
        let mut results = load(store.as_ref(), &self.run).await;
        for ((fetch, _), result) in self.run.iter().zip(&mut results) {
            let stays = matches!(keep, Keep::Cached) || matches!(fetch.check, Check::Run(..));
            if let (Ok(bytes), true) = (result, stays) {
                *bytes = own(std::mem::take(bytes));
                clean.put(fetch.key, Cached::Bytes(bytes.clone())).await;
            }
        }
        self.hand_over(results);
    }

    fn hand_over(&mut self, results: Vec<Result<Bytes, Error>>) {
        let run = std::mem::take(&mut self.run);
        {
            let mut loading = self.loading.lock();
            for (fetch, _) in &run {
                loading.remove(&fetch.key);
            }
        }
        for ((_, load), result) in run.into_iter().zip(results) {
            load.set(Some(result));
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let stopped = Err(Error::Stopped("the cache is shut down".to_owned()));
        self.hand_over(vec![stopped; self.run.len()]);
    }
}

/// Fetches a single piece outside the cache. The load is not shared.
async fn load_alone(store: &dyn Store, fetch: Fetch) -> Result<Bytes, Error> {
    let run = [(fetch, Arc::new(Load::new(None)))];
    load(store, &run).await.pop().expect("one for each")
}

/// Fetches a run of adjacent pieces. The results are in the order of the run.
async fn load(store: &dyn Store, run: &[(Fetch, Arc<Load>)]) -> Vec<Result<Bytes, Error>> {
    let mut results = fetch_run(store, run).await;
    for ((fetch, _), result) in run.iter().zip(&mut results) {
        let is_committed = match result {
            Err(Error::Lost { .. }) => mutant::is(Mutant::MissingIsZeros),
            Err(_) => mutant::is(Mutant::FailureIsZeros),
            Ok(_) => false,
        };
        if is_committed {
            *result = Ok(Bytes::from(vec![0; fetch.length as usize]));
        }
    }
    results
}

/// Fetches a run of adjacent pieces with one GET. Repeats it while a failed check may be due
/// to damage in transit.
async fn fetch_run(store: &dyn Store, run: &[(Fetch, Arc<Load>)]) -> Vec<Result<Bytes, Error>> {
    let (first, last) = (&run[0].0, &run[run.len() - 1].0);
    let object = first.object_key();
    let length = last.at + last.stored_bytes() - first.at;
    let mut doubt = Doubt::default();
    loop {
        let got = get_referenced(store, &object, ByteRange::Bounded { offset: first.at, length }).await;
        let (reading, results) = match got {
            Ok(object) => {
                let results = run.iter().map(|(fetch, _)| cut(fetch, first.at, &object.body)).collect();
                (object.body, results)
            }
            // An object that is too short is damaged, like one with wrong bytes.
            Err(error @ store::Error::CutShort { .. }) => {
                let why = format!("is too short: {error}");
                let damaged = Error::damaged(object.clone(), why.clone());
                (Bytes::from(why), vec![Err(damaged); run.len()])
            }
            Err(store::Error::NotFound { key }) => return vec![Err(Error::lost(key)); run.len()],
            Err(error) => return vec![Err(Error::Store(error)); run.len()],
        };
        let results: Vec<Result<Bytes, Error>> = results;
        if results.iter().all(Result::is_ok) {
            return results;
        }
        match doubt.note(&object, &reading) {
            Verdict::Again => {}
            // The pieces before the damage can still be read, each with a GET of its own.
            Verdict::AtRest if run.len() > 1 && results.iter().all(Result::is_err) => {
                return one_by_one(store, run).await;
            }
            Verdict::AtRest => return results,
            Verdict::OnTheWay => return vec![Err(Error::Store(damaged_on_the_way(&object))); run.len()],
        }
    }
}

/// Fetches each piece of a run with a GET of its own.
async fn one_by_one(store: &dyn Store, run: &[(Fetch, Arc<Load>)]) -> Vec<Result<Bytes, Error>> {
    let mut results = Vec::with_capacity(run.len());
    for piece in run {
        results.extend(Box::pin(fetch_run(store, std::slice::from_ref(piece))).await);
    }
    results
}

/// Extracts the payload of a piece from the body of a GET that began at byte `from`, and checks it.
fn cut(fetch: &Fetch, from: u64, body: &Bytes) -> Result<Bytes, Error> {
    let start = usize::try_from(fetch.at - from).expect("within the GET");
    let end = start + usize::try_from(fetch.stored_bytes()).expect("a page");
    if body.get(start..end).is_none_or(|stored| !fetch.verify(stored)) {
        let why = format!("the {} bytes at {} fail their check", fetch.length, fetch.at);
        return Err(Error::damaged(fetch.object_key(), why));
    }
    Ok(body.slice(start..start + usize::try_from(fetch.length).expect("a page")))
}
