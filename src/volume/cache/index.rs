//! Map pages with their overlays, as the cache holds them: the index of what is stored.
//!
//! Must not know about stores. Every read needs the index, and an entry of a few bytes locates 4 KiB of
//! data. So the index has a cache of its own, without a filter for rarely used entries, and data gives way
//! to it. Invariant: concurrent misses of one map page share one load.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use xxhash_rust::xxh3::Xxh3Builder;

use super::counts::Counts;
use super::fetch::CacheKey;
use crate::volume::error::Error;
use crate::volume::format::keys::{Keys, ObjectId};
use crate::volume::format::map::{ChunkSet, MapPage};
use crate::volume::format::overlay::Overlay;

/// Memory that an entry takes in addition to its contents.
const ENTRY_BYTES: usize = 768;

/// An overlay of a loaded map page.
#[derive(Clone, Debug)]
pub struct LoadedOverlay {
    /// The overlay, or why it is lost.
    pub overlay: Result<Arc<Overlay>, Error>,
    /// Keys of the volume that owns the overlay.
    pub owner: Keys,
    /// Id of the overlay, or `None` if the map page contains it.
    pub id: Option<ObjectId>,
    /// The chunks that it applies to.
    pub chunks: ChunkSet,
}

/// A loaded map page with its overlays.
#[derive(Clone, Debug)]
pub struct MapView {
    /// The map page.
    pub page: MapPage,
    /// Its overlays, oldest first.
    pub overlays: Vec<LoadedOverlay>,
}

impl MapView {
    /// Whether an overlay is lost.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.overlays.iter().any(|overlay| overlay.overlay.is_err())
    }

    fn weight(&self) -> u32 {
        let overlays = self.overlays.iter().filter_map(|overlay| overlay.overlay.as_ref().ok());
        let overlays: usize = overlays.map(|overlay| overlay.memory_bytes()).sum();
        let bytes = self.page.memory_bytes() + overlays + ENTRY_BYTES;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

type Views = Cache<CacheKey, Arc<MapView>, Xxh3Builder>;

/// The outcome of a load, once that is known.
type Load = Arc<OnceCell<Result<Arc<MapView>, Error>>>;

/// The map pages in memory, and those that are being loaded.
pub(super) struct Index {
    views: ArcSwap<Views>,
    /// moka can share loads too, but the order in which it wakes those who wait depends on how long they
    /// waited, in real time.
    loading: Mutex<BTreeMap<CacheKey, Load>>,
    counts: Arc<Counts>,
}

/// A share in a load. The last one to leave removes the load, so that later readers start another.
struct Share<'a> {
    index: &'a Index,
    key: CacheKey,
    load: Load,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut loading = self.index.loading.lock();
        // One reference is in the map, and one is ours.
        let is_over = self.load.initialized() || Arc::strong_count(&self.load) == 2;
        if is_over && loading.get(&self.key).is_some_and(|load| Arc::ptr_eq(load, &self.load)) {
            loading.remove(&self.key);
        }
    }
}

fn views(bytes: u64, counts: &Arc<Counts>) -> Views {
    let dropped = Arc::clone(counts);
    Cache::builder()
        .max_capacity(bytes)
        .eviction_policy(EvictionPolicy::lru())
        .eviction_listener(move |key: Arc<CacheKey>, view: Arc<MapView>, cause| {
            dropped.dropped(&key, view.weight(), cause.was_evicted());
        })
        .weigher(|_: &CacheKey, view: &Arc<MapView>| view.weight())
        .build_with_hasher(Xxh3Builder::new())
}

impl Index {
    /// Creates an index of at most `bytes` bytes.
    pub(super) fn new(bytes: u64, counts: &Arc<Counts>) -> Self {
        Self {
            views: ArcSwap::from_pointee(views(bytes, counts)),
            loading: Mutex::default(),
            counts: Arc::clone(counts),
        }
    }

    /// Changes the bound to `bytes` bytes. The index starts empty.
    pub(super) async fn resize(&self, bytes: u64) {
        let old = self.views.swap(Arc::new(views(bytes, &self.counts)));
        old.invalidate_all();
        old.run_pending_tasks().await;
    }

    /// Bytes that the index takes.
    pub(super) fn held_bytes(&self) -> u64 {
        self.views.load().weighted_size()
    }

    /// Returns a map page, and whether it had to be loaded. A page of which an overlay is lost is not kept,
    /// since the overlay may exist after all.
    pub(super) async fn view<F>(&self, key: CacheKey, load: F) -> Result<(Arc<MapView>, bool), Error>
    where
        F: Future<Output = Result<Arc<MapView>, Error>> + Send,
    {
        if let Some(view) = self.held(&key).await {
            return Ok((view, false));
        }
        let share = {
            let load = Arc::clone(self.loading.lock().entry(key).or_default());
            Share { index: self, key, load }
        };
        let outcome = share.load.get_or_init(|| async {
            // It may have been inserted between the two lookups.
            if let Some(view) = self.held(&key).await {
                return Ok(view);
            }
            let view = load.await?;
            if !view.is_incomplete() {
                self.put(key, Arc::clone(&view)).await;
            }
            Ok(view)
        });
        Ok((outcome.await.clone()?, true))
    }

    /// Returns a map page if it is held.
    pub(super) async fn held(&self, key: &CacheKey) -> Option<Arc<MapView>> {
        self.views.load().get(key).await
    }

    /// Inserts a map page that is already durable.
    pub(super) async fn put(&self, key: CacheKey, view: Arc<MapView>) {
        let views = self.views.load_full();
        self.counts.added(&key, view.weight());
        views.insert(key, view).await;
        if !Arc::ptr_eq(&views, &self.views.load()) {
            views.invalidate(&key).await;
        }
        views.run_pending_tasks().await;
    }

    /// Removes a map page that nothing references any more.
    pub(super) async fn remove(&self, key: &CacheKey) {
        let views = self.views.load_full();
        views.invalidate(key).await;
        views.run_pending_tasks().await;
    }
}
