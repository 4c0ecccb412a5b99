//! What clients see of volumes that are not open: names and sizes, read from the store and kept for a few seconds.
//!
//! Takes no lease. Invariants: concurrent questions make one request; what is kept is bounded; an error is not kept; what
//! was asked before a volume was made or deleted here is not given afterwards, even if its answer comes then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::future::Cache;

use crate::volume::catalog::{self, Info};
use crate::volume::{Environment, OpenError};

/// Volumes whose description is kept.
const KEPT: u64 = 1024;

/// A short memory of the store's volumes.
#[derive(Debug)]
pub(super) struct Catalogue {
    env: Environment,
    /// Part of each key: how often a volume was made or deleted here.
    changes: AtomicU64,
    names: Cache<u64, Arc<Vec<String>>>,
    infos: Cache<(u64, String), Arc<Info>>,
}

impl Catalogue {
    /// A memory that is at most so old.
    pub(super) fn new(env: Environment, age: Duration) -> Self {
        Self {
            env,
            changes: AtomicU64::new(0),
            names: Cache::builder().max_capacity(1).time_to_live(age).build(),
            infos: Cache::builder().max_capacity(KEPT).time_to_live(age).build(),
        }
    }

    fn now(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// All names, in order.
    pub(super) async fn names(&self) -> Result<Arc<Vec<String>>, Arc<OpenError>> {
        let load = async { catalog::list(&self.env).await.map(Arc::new) };
        self.names.try_get_with(self.now(), load).await
    }

    /// Forgets everything: a volume was made or deleted here.
    pub(super) fn forget(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.names.invalidate_all();
        self.infos.invalidate_all();
    }

    /// A volume.
    pub(super) async fn info(&self, name: &str) -> Result<Arc<Info>, Arc<OpenError>> {
        let load = async { catalog::info(&self.env, name).await.map(Arc::new) };
        self.infos.try_get_with((self.now(), name.to_owned()), load).await
    }
}
