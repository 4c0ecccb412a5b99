//! The page cache: clean, verified pieces of objects, shared by all volumes of the process.
//!
//! Keyed by object and place within it, never by disk offset, so that a late fetch of an old object cannot pass for a
//! new one. Holds only what the store holds too: eviction loses nothing. Invariants: what is in the cache has passed
//! its check; concurrent misses of one piece share one GET; a failed fetch leaves nothing behind.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use uuid::Uuid;

use super::clean::{Cached, Clean, HeldPages};
use super::codec::Checksum;
use super::error::Error;
use super::frame::{Place, TAG_BYTES};
use super::geometry::ChunkIndex;
use super::keys::{ObjectId, Slot};
use super::map::MapPage;
use super::signal::Signal;
use super::store_exact::CHECKED_FETCHES;
use crate::metrics::VolumeMetrics;
use crate::mutant::{self, Mutant};
use crate::store::{self, ByteRange, Store};
use crate::task::Tasks;

/// A piece of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey {
    /// Whose object.
    pub volume: Uuid,
    /// Which piece.
    pub unit: Unit,
}

/// A piece of an object of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// A page of a chunk object.
    Page(ChunkIndex, ObjectId, u16),
    /// A frame of a pack.
    Packed(u32, ObjectId, u32),
    /// The data of a change of a record.
    Change(Slot, u32),
    /// A map page.
    Map(u32, ObjectId),
}

impl Unit {
    /// A page of a chunk object.
    #[must_use]
    pub fn page(index: ChunkIndex, id: ObjectId, page: u16) -> Self {
        match mutant::is(Mutant::CachedByOffset) {
            false => Self::Page(index, id, page),
            true => Self::Page(index, ObjectId { epoch: 0, k: 0 }, page),
        }
    }
}

/// How the bytes of a piece are verified.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// By the tag behind them.
    Frame(Place, u32),
    /// By a tag that is known.
    Tag(Place, u32, Checksum),
}

/// A piece to be fetched.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// What it is.
    pub key: CacheKey,
    /// Key of the object.
    pub object: Arc<str>,
    /// First byte in the object.
    pub at: u64,
    /// Bytes of payload.
    pub length: u32,
    /// How to verify it.
    pub check: Check,
}

impl Fetch {
    /// Bytes in the object: the payload, and its tag where that follows it.
    fn stored_bytes(&self) -> u64 {
        u64::from(self.length)
            + match self.check {
                Check::Frame(..) => TAG_BYTES,
                Check::Tag(..) => 0,
            }
    }

    fn verify(&self, stored: &[u8]) -> Option<Bytes> {
        let payload = match self.check {
            _ if mutant::is(Mutant::TagUnchecked) => stored.get(..self.length as usize)?,
            Check::Frame(place, number) => place.open(number, stored)?,
            Check::Tag(place, number, tag) => (place.tag(number, stored) == tag).then_some(stored)?,
        };
        // Copied, since a slice would keep the whole GET in memory.
        Some(Bytes::copy_from_slice(payload))
    }
}

/// Whether what is fetched stays in the cache.
#[derive(Clone, Copy)]
enum Keep {
    Cached,
    Passing,
}

/// A load on its way: what came of it, once that is known.
type Load = Signal<Option<Result<Bytes, Error>>>;

/// Clean pieces of objects in memory.
pub struct PageCache {
    clean: Arc<Clean>,
    loading: Arc<Mutex<Loading>>,
    get_bytes: u64,
    tasks: Tasks,
}

impl fmt::Debug for PageCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageCache").field("held_bytes", &self.held_bytes()).finish_non_exhaustive()
    }
}

impl PageCache {
    /// A cache of at most `bytes` bytes; one GET fetches at most `get_bytes`.
    #[must_use]
    pub fn new(bytes: u64, get_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            clean: Arc::new(Clean::new(bytes)),
            loading: Arc::new(Mutex::new(BTreeMap::new())),
            get_bytes,
            tasks: Tasks::new(),
        })
    }

    /// Makes it one of at most `bytes` bytes, though not of less than a few pages; what is used least goes at once.
    pub fn resize(&self, bytes: u64) {
        self.clean.resize(bytes);
    }

    /// Bytes held.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.clean.held_bytes()
    }

    /// Counts the pieces of a volume's objects there from now on.
    pub fn count_for(&self, volume: Uuid, metrics: VolumeMetrics) {
        self.clean.counts.volumes.lock().insert(volume, metrics);
    }

    /// Counts the pieces of a volume's objects no more.
    pub fn forget(&self, volume: Uuid) {
        self.clean.counts.volumes.lock().remove(&volume);
    }

    /// Puts a piece that is durable into the cache.
    pub fn insert(&self, key: CacheKey, bytes: Bytes) {
        self.clean.put(key, Cached::Bytes(bytes));
    }

    /// Drops pieces that nothing names any more.
    pub fn remove(&self, keys: impl IntoIterator<Item = CacheKey>) {
        for key in keys {
            self.clean.remove(&key);
        }
    }

    /// A piece, if it is in memory.
    #[must_use]
    pub fn peek(&self, key: &CacheKey) -> Option<Bytes> {
        self.clean.bytes(key)
    }

    /// Whether a piece is in memory, without counting as a use.
    #[must_use]
    pub fn contains(&self, key: &CacheKey) -> bool {
        self.clean.contains(key)
    }

    /// The pages in memory now, to be looked at.
    pub(super) fn pages(&self) -> HeldPages {
        self.clean.pages()
    }

    /// A map page, loaded by `load` unless it is in memory.
    ///
    /// # Errors
    /// Those of `load`.
    pub async fn map_page<F>(&self, key: CacheKey, load: F) -> Result<Arc<MapPage>, Error>
    where
        F: Future<Output = Result<Arc<MapPage>, Error>> + Send,
    {
        self.clean.map_page(key, load).await
    }

    /// Puts a map page that is durable into the cache.
    pub fn insert_map_page(&self, key: CacheKey, page: Arc<MapPage>) {
        self.clean.put(key, Cached::Map(page));
    }

    /// Gives every piece, fetched where it is not in memory; pieces that lie side by side share a GET.
    pub async fn fetch(&self, store: &Arc<dyn Store>, wanted: &[Fetch]) -> Vec<Result<Bytes, Error>> {
        self.fetch_and(store, wanted, Keep::Cached).await
    }

    /// As [`PageCache::fetch`], but leaves nothing in the cache that was not there: for what is read only once.
    pub async fn fetch_passing(&self, store: &Arc<dyn Store>, wanted: &[Fetch]) -> Vec<Result<Bytes, Error>> {
        self.fetch_and(store, wanted, Keep::Passing).await
    }

    async fn fetch_and(
        &self,
        store: &Arc<dyn Store>,
        wanted: &[Fetch],
        keep: Keep,
    ) -> Vec<Result<Bytes, Error>> {
        let mut results: Vec<Option<Result<Bytes, Error>>> = Vec::with_capacity(wanted.len());
        let mut missing = Vec::new();
        for (place, fetch) in wanted.iter().enumerate() {
            let hit = self.peek(&fetch.key);
            if hit.is_none() {
                missing.push(place);
            }
            results.push(hit.map(Ok));
        }
        self.clean.counts.asked(wanted, &missing);
        // Pieces of one object in order of place, whatever the order in which they are wanted.
        missing.sort_by(|a, b| (&wanted[*a].object, wanted[*a].at).cmp(&(&wanted[*b].object, wanted[*b].at)));
        let waits = self.start(store, wanted, &missing, keep);
        for (place, load) in missing.into_iter().zip(waits) {
            results[place] = Some(load.wait(Option::clone).await);
        }
        results.into_iter().map(|result| result.expect("hit or waited for")).collect()
    }

    /// Starts fetching what is neither in memory nor on its way, and waits for nothing.
    pub fn prefetch(&self, store: &Arc<dyn Store>, wanted: &[Fetch]) {
        let missing: Vec<usize> =
            (0..wanted.len()).filter(|place| !self.contains(&wanted[*place].key)).collect();
        self.clean.counts.read_ahead(wanted, &missing);
        drop(self.start(store, wanted, &missing, Keep::Cached));
    }

    /// Joins or begins the load of each of `missing`, a GET for each run of neighbours.
    fn start(
        &self,
        store: &Arc<dyn Store>,
        wanted: &[Fetch],
        missing: &[usize],
        keep: Keep,
    ) -> Vec<Arc<Load>> {
        let mut waits = Vec::with_capacity(missing.len());
        let mut run: Vec<(Fetch, Arc<Load>)> = Vec::new();
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
            let joins = run.last().is_some_and(|(last, _)| {
                last.object == fetch.object
                    && last.at + last.stored_bytes() == fetch.at
                    && fetch.at + fetch.stored_bytes() - run[0].0.at <= self.get_bytes
            });
            if !joins && !run.is_empty() {
                self.spawn_load(store, std::mem::take(&mut run), keep);
            }
            run.push((fetch.clone(), load));
        }
        if !run.is_empty() {
            self.spawn_load(store, run, keep);
        }
        waits
    }

    /// Loads a run of neighbours in a task, so that a reader that goes away does not take the others' load with it.
    fn spawn_load(&self, store: &Arc<dyn Store>, run: Vec<(Fetch, Arc<Load>)>, keep: Keep) {
        let begun = Begun { loading: Arc::clone(&self.loading), run };
        let (store, clean) = (Arc::clone(store), Arc::clone(&self.clean));
        self.tasks.spawn_until_cancelled(async move {
            let results = load(store.as_ref(), &begun.run).await;
            for ((fetch, _), result) in begun.run.iter().zip(&results) {
                if let (Ok(bytes), Keep::Cached) = (result, keep) {
                    clean.put(fetch.key, Cached::Bytes(bytes.clone()));
                }
            }
            begun.end(results);
        });
    }
}

type Loading = BTreeMap<CacheKey, Arc<Load>>;

/// Loads that have begun; when they end, however they do, those who wait hear, and new readers begin anew.
struct Begun {
    loading: Arc<Mutex<Loading>>,
    run: Vec<(Fetch, Arc<Load>)>,
}

impl Begun {
    fn end(mut self, results: Vec<Result<Bytes, Error>>) {
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

/// Fetches a run of neighbours.
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

/// Fetches a run of neighbours with one GET, and again while a check fails.
async fn fetch_run(store: &dyn Store, run: &[(Fetch, Arc<Load>)]) -> Vec<Result<Bytes, Error>> {
    let (first, last) = (&run[0].0, &run[run.len() - 1].0);
    let length = last.at + last.stored_bytes() - first.at;
    for attempt in 1.. {
        let body = match store.get(&first.object, ByteRange::Bounded { offset: first.at, length }).await {
            Ok(object) => object.body,
            Err(store::Error::NotFound { key }) => return vec![Err(Error::Lost { key }); run.len()],
            Err(error) => return vec![Err(Error::Store(error)); run.len()],
        };
        let results: Vec<Result<Bytes, Error>> = run
            .iter()
            .map(|(fetch, _)| {
                let start = usize::try_from(fetch.at - first.at).expect("within the GET");
                let end = start + usize::try_from(fetch.stored_bytes()).expect("a page");
                let stored = body.get(start..end);
                stored.and_then(|stored| fetch.verify(stored)).ok_or_else(|| Error::Damaged {
                    key: fetch.object.to_string(),
                    why: format!("the {} bytes at {} fail their check", fetch.length, fetch.at),
                })
            })
            .collect();
        if attempt == CHECKED_FETCHES || results.iter().all(Result::is_ok) {
            return results;
        }
        tracing::warn!(object = %first.object, attempt, "fetched bytes fail their check, fetching again");
    }
    unreachable!("the last attempt returns")
}
