//! What clients see of volumes that are not open: names and sizes, read from the store and kept for a few seconds.
//!
//! Takes no lease. Invariants: concurrent questions make one request; what is kept is bounded; an error is not kept.

use std::sync::Arc;
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
    names: Cache<(), Arc<Vec<String>>>,
    infos: Cache<String, Arc<Info>>,
}

impl Catalogue {
    /// A memory that is at most so old.
    pub(super) fn new(env: Environment, age: Duration) -> Self {
        Self {
            env,
            names: Cache::builder().max_capacity(1).time_to_live(age).build(),
            infos: Cache::builder().max_capacity(KEPT).time_to_live(age).build(),
        }
    }

    /// All names, in order.
    pub(super) async fn names(&self) -> Result<Arc<Vec<String>>, Arc<OpenError>> {
        let load = async { catalog::list(&self.env).await.map(Arc::new) };
        self.names.try_get_with((), load).await
    }

    /// Forgets a volume that was made or deleted here, and the names.
    pub(super) async fn forget(&self, name: &str) {
        self.infos.invalidate(name).await;
        self.names.invalidate(&()).await;
    }

    /// A volume.
    pub(super) async fn info(&self, name: &str) -> Result<Arc<Info>, Arc<OpenError>> {
        let load = async { catalog::info(&self.env, name).await.map(Arc::new) };
        self.infos.try_get_with_by_ref(name, load).await
    }
}
