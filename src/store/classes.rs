//! One backend, with a bound of its own for each class of requests, so that none queues behind another's.
//!
//! Who sends a request chooses its class. Invariant: a request waits only for others of its class.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::{Limit, Store};
use crate::metrics::{StoreClass, StoreMetrics};

/// GETs of the class [`Classes::ahead`] at a time.
const AHEAD: usize = 8;
/// Of the bound on requests, the part that background work gets: a quarter.
const BULK: usize = 4;

/// The same objects, by class of request. Stands for [`Classes::reads`] where no class is named.
#[derive(Clone)]
pub struct Classes {
    /// Reads of clients, and all that has no class of its own.
    pub reads: Arc<dyn Store>,
    /// Records of the journal and the head: what a FLUSH and a lease wait for.
    pub journal: Arc<dyn Store>,
    /// Chunk objects that a record will name: what a FLUSH waits for before that.
    pub uploads: Arc<dyn Store>,
    /// What clients asked to have brought into the cache.
    pub ahead: Arc<dyn Store>,
    /// Folding, sweeping and deleting.
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
    /// One store for all of them, without a bound.
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

    /// Lets `requests` of each class through at a time, of the background ones less; each decorated by
    /// `above`.
    ///
    /// # Panics
    /// If `requests` is 0.
    #[must_use]
    pub fn limited(
        store: &Arc<dyn Store>,
        requests: usize,
        metrics: &StoreMetrics,
        mut above: impl FnMut(Arc<dyn Store>) -> Arc<dyn Store>,
    ) -> Self {
        let mut class = |class, requests| {
            above(Arc::new(Limit::of_class(Arc::clone(store), requests, metrics.clone(), class)))
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
