//! What clients see of volumes that are not open: names and sizes, read from the store and kept for a few
//! seconds.
//!
//! Takes no lease. Invariants: concurrent questions make one request; what is kept is bounded; an error is
//! not kept; what was asked before a volume was made or deleted here is not given afterwards, even if its
//! answer comes then. Names that anybody can make up cost a request each moment at most, and only so many at
//! a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use moka::future::Cache;
use tokio::sync::Semaphore;

use crate::volume::catalog::{self, CONCURRENT_LOOKUPS, Info};
use crate::volume::{Environment, OpenError};

/// Volumes whose description is kept.
const KEPT: u64 = 1024;

/// Names of which it is kept whether they stand.
const NAMES_KEPT: u64 = 4096;
/// How long that is kept at most: who makes a volume finds it soon.
const MOMENT: Duration = Duration::from_secs(1);
/// Names that nobody knows are looked up so many at a time, so that others find room in the store.
const LOOKUPS: usize = 16;

/// A short memory of the store's volumes.
#[derive(Debug)]
pub(crate) struct Catalogue {
    env: Environment,
    /// Part of each key: how often a volume was made or deleted here.
    changes: AtomicU64,
    /// Whether a name stands for a volume.
    standing: Cache<(u64, String), bool>,
    /// The same, of names that were asked for by those who may not know: what others ask is not felt by them.
    concealed: Cache<(u64, String), bool>,
    lookups: Semaphore,
    names: Cache<u64, Arc<Vec<String>>>,
    infos: Cache<(u64, String), Arc<Info>>,
}

impl Catalogue {
    /// A memory that is at most so old.
    pub(crate) fn new(env: Environment, age: Duration) -> Self {
        let names = || Cache::builder().max_capacity(NAMES_KEPT).time_to_live(age.min(MOMENT)).build();
        Self {
            env,
            changes: AtomicU64::new(0),
            standing: names(),
            concealed: names(),
            lookups: Semaphore::new(LOOKUPS),
            names: Cache::builder().max_capacity(1).time_to_live(age).build(),
            infos: Cache::builder().max_capacity(KEPT).time_to_live(age).build(),
        }
    }

    fn now(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// All names, in order.
    pub(crate) async fn names(&self) -> Result<Arc<Vec<String>>, Arc<OpenError>> {
        let load = async { catalog::list(&self.env).await.map(Arc::new) };
        self.names.try_get_with(self.now(), load).await
    }

    /// Looks up every name, some at a time, and returns what was found, in order of name.
    pub(super) async fn look_up_each<T, F>(
        &self,
        look_up: impl Fn(String) -> F,
    ) -> Result<Vec<T>, Arc<OpenError>>
    where
        F: Future<Output = Option<T>>,
    {
        let names = self.names().await?;
        let lookups = stream::iter(names.iter().cloned()).map(look_up);
        let found: Vec<Option<T>> = lookups.buffered(CONCURRENT_LOOKUPS).collect().await;
        Ok(found.into_iter().flatten().collect())
    }

    /// Forgets everything: a volume was made or deleted here.
    pub(crate) fn forget(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.names.invalidate_all();
        self.infos.invalidate_all();
        self.standing.invalidate_all();
        self.concealed.invalidate_all();
    }

    /// Succeeds if a volume of that name was there a moment ago.
    pub(crate) async fn find(&self, name: &str) -> Result<(), Arc<OpenError>> {
        let load = async {
            let _turn = match self.lookups.try_acquire() {
                Ok(turn) => Some(turn),
                // Among many who make names up, one that is listed need not wait.
                Err(_) if self.is_listed(name).await => None,
                Err(_) => Some(self.lookups.acquire().await.expect("it is never closed")),
            };
            self.look_up(name).await
        };
        found(name, self.standing.try_get_with((self.now(), name.to_owned()), load).await?)
    }

    /// Does what [`Catalogue::find`] does for a name that stands for nothing, whatever this one stands for.
    pub(crate) async fn conceal(&self, name: &str) -> Arc<OpenError> {
        let load = async {
            let _turn = match self.lookups.try_acquire() {
                Ok(turn) => turn,
                Err(_) => {
                    self.is_listed(name).await;
                    self.lookups.acquire().await.expect("it is never closed")
                }
            };
            self.look_up(name).await
        };
        let asked = self.concealed.try_get_with((self.now(), name.to_owned()), load).await;
        asked.err().unwrap_or_else(|| Arc::new(OpenError::NoSuchVolume(name.to_owned())))
    }

    async fn is_listed(&self, name: &str) -> bool {
        self.names().await.is_ok_and(|names| names.iter().any(|listed| listed == name))
    }

    async fn look_up(&self, name: &str) -> Result<bool, OpenError> {
        match catalog::resolve(&self.env, name).await {
            Ok(_) => Ok(true),
            Err(OpenError::NoSuchVolume(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A volume.
    pub(crate) async fn info(&self, name: &str) -> Result<Arc<Info>, Arc<OpenError>> {
        if let Some(info) = self.infos.get(&(self.now(), name.to_owned())).await {
            return Ok(info);
        }
        self.find(name).await?;
        let load = async { catalog::info(&self.env, name).await.map(Arc::new) };
        self.infos.try_get_with((self.now(), name.to_owned()), load).await
    }
}

fn found(name: &str, stands: bool) -> Result<(), Arc<OpenError>> {
    if stands { Ok(()) } else { Err(Arc::new(OpenError::NoSuchVolume(name.to_owned()))) }
}
