//! One backend with a separate concurrency limit for each class of requests, so that no class queues behind
//! another.
//!
//! Owns the classes and their limits. It must not know what a request is for: the caller chooses the class.
//! Invariant: a request waits only for other requests of its class.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::{Limit, Store};
use crate::metrics::{StoreClass, StoreMetrics};

/// Maximum number of concurrent GETs of the class [`Classes::ahead`].
const AHEAD: usize = 8;
/// Divisor of the request limit for background work, which gets a quarter.
const BULK: usize = 4;

/// The same objects, accessed by class of request. Used as a [`Store`] itself, it sends requests by way of
/// [`Classes::reads`].
#[derive(Clone)]
pub struct Classes {
    /// Reads of clients, and all requests without a class of their own.
    pub reads: Arc<dyn Store>,
    /// Journal records and heads. FLUSH and lease renewal wait for them.
    pub journal: Arc<dyn Store>,
    /// Chunk objects that a record is about to reference. FLUSH waits for them before it waits for the
    /// record.
    pub uploads: Arc<dyn Store>,
    /// Reads that prefetch into the cache at a client's request.
    pub ahead: Arc<dyn Store>,
    /// Folding, sweeping and deletion.
    pub bulk: Arc<dyn Store>,
}

impl fmt::Debug for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Classes").field(&self.reads).finish()
    }
}

impl Deref for Classes {
    type Target = Arc<dyn Store>;

    fn deref(&self) -> &Self::Target {
        &self.reads
    }
}

impl Classes {
    /// Uses one store for all classes, without a limit.
    #[must_use]
    pub fn one(store: Arc<dyn Store>) -> Self {
        Self {
            reads: Arc::clone(&store),
            journal: Arc::clone(&store),
            uploads: Arc::clone(&store),
            ahead: Arc::clone(&store),
            bulk: store,
        }
    }

    /// Limits each class to `requests` concurrent requests, and the background classes to fewer. `above`
    /// decorates the store of each class, whose limit it gets.
    ///
    /// # Panics
    /// If `requests` is 0.
    #[must_use]
    pub fn limited(
        store: &Arc<dyn Store>,
        requests: usize,
        metrics: &StoreMetrics,
        mut above: impl FnMut(StoreClass, Arc<Limit>) -> Arc<dyn Store>,
    ) -> Self {
        let mut class = |class, requests| {
            let limit = Limit::of_class(Arc::clone(store), requests, metrics.clone(), class);
            above(class, Arc::new(limit))
        };
        Self {
            reads: class(StoreClass::Reads, requests),
            journal: class(StoreClass::Journal, requests),
            uploads: class(StoreClass::Uploads, requests),
            ahead: class(StoreClass::Ahead, requests.min(AHEAD)),
            bulk: class(StoreClass::Bulk, requests.div_ceil(BULK)),
        }
    }
}
