//! A bounded, short-lived cache of what the store said.
//!
//! Owns the one type of cache that this layer uses for everything: each type of moka's cache takes 200 KB of
//! the program. Must not know what is cached. Invariants: concurrent lookups of the same key share one
//! request. Errors are not cached.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;

/// A number and a text that say together what a fact is about.
pub(super) type Key = (u64, String);

type Held = Arc<dyn Any + Send + Sync>;

/// Facts of one kind. Clones of a fact are returned.
pub(crate) struct Facts<T> {
    cache: Cache<Key, Held>,
    kind: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Facts<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").field("count", &self.cache.entry_count()).finish_non_exhaustive()
    }
}

impl<T: Clone + Send + Sync + 'static> Facts<T> {
    /// Creates a cache for so many facts. They expire after `age`, if there is one.
    pub(super) fn new(most: u64, age: Option<Duration>) -> Self {
        let cache = Cache::builder().max_capacity(most);
        let cache = match age {
            Some(age) => cache.time_to_live(age).build(),
            None => cache.build(),
        };
        Self { cache, kind: PhantomData }
    }

    /// Returns a fact that is cached.
    pub(super) async fn get(&self, key: &Key) -> Option<T> {
        self.cache.get(key).await.as_ref().map(known)
    }

    /// Returns a fact. If it is not cached, `load` finds it out.
    ///
    /// # Errors
    /// If `load` fails. All who wait for it get the same error.
    pub(super) async fn try_get_with<E: Send + Sync + 'static>(
        &self,
        key: Key,
        load: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Arc<E>> {
        let load = async { load.await.map(|fact| Arc::new(fact) as Held) };
        self.cache.try_get_with(key, load).await.as_ref().map(known).map_err(Arc::clone)
    }

    /// Forgets everything.
    pub(super) fn forget(&self) {
        self.cache.invalidate_all();
    }
}

fn known<T: Clone + 'static>(held: &Held) -> T {
    held.downcast_ref::<T>().expect("a cache has facts of one kind").clone()
}
