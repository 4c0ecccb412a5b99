//! What clients can learn about volumes that are not open: names, sizes and snapshots, read from the store
//! and cached for a few seconds.
//!
//! Owns these caches, and must not know exports or take a lease. Invariants: concurrent lookups of the same
//! thing share one request. The caches are bounded, and errors are not cached. An answer that was requested
//! before a volume was created or deleted here is not returned afterwards, even if it arrives later. Clients
//! can make up any number of names: each name costs at most one request per [`MOMENT`], and only [`LOOKUPS`]
//! of these requests run at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::facts::Facts;
use crate::store;
use crate::volume::catalog::{self, CONCURRENT_LOOKUPS, Info};
use crate::volume::format::snapshot::Snapshot;
use crate::volume::{Environment, OpenError, snapshot};

/// Maximum number of volumes whose description is cached.
const KEPT: u64 = 1024;

/// Maximum number of names for which it is cached whether they exist.
const NAMES_KEPT: u64 = 4096;
/// How long that is cached at most, so that a new volume is found soon.
const MOMENT: Duration = Duration::from_secs(1);
/// Maximum number of concurrent lookups of unknown names, so that other requests are not held up in the
/// store.
const LOOKUPS: usize = 16;

/// The snapshots of a volume in the store.
#[derive(Clone, Debug)]
pub(super) struct Snapshots {
    pub(super) volume: Uuid,
    /// In the order in which they were taken.
    pub(super) snapshots: Arc<Vec<Snapshot>>,
}

/// A short-lived cache of the volumes in the store.
#[derive(Debug)]
pub(crate) struct Catalogue {
    env: Environment,
    /// How often a volume or a snapshot was created or deleted here. It is part of each key, so that older
    /// answers are never found.
    changes: AtomicU64,
    /// Whether a name refers to a volume.
    standing: Facts<bool>,
    /// The same for names that a client may not know about. Kept apart, so that such a client cannot notice
    /// by the response time whether others use the name.
    concealed: Facts<bool>,
    lookups: Semaphore,
    names: Facts<Arc<Vec<String>>>,
    infos: Facts<Arc<Info>>,
    /// The snapshots of a volume, by its name. They are cached as briefly as names.
    snapshots: Facts<Snapshots>,
}

impl Catalogue {
    /// Creates a cache whose entries expire after `age`.
    pub(crate) fn new(env: Environment, age: Duration) -> Self {
        let names = || Facts::new(NAMES_KEPT, Some(age.min(MOMENT)));
        Self {
            env,
            changes: AtomicU64::new(0),
            standing: names(),
            concealed: names(),
            lookups: Semaphore::new(LOOKUPS),
            names: Facts::new(1, Some(age)),
            infos: Facts::new(KEPT, Some(age)),
            snapshots: Facts::new(KEPT, Some(age.min(MOMENT))),
        }
    }

    fn now(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Returns all names, in order.
    pub(crate) async fn names(&self) -> Result<Arc<Vec<String>>, Arc<OpenError>> {
        let load = async { catalog::list(&self.env).await.map(Arc::new) };
        self.names.try_get_with((self.now(), String::new()), load).await
    }

    /// Looks up every name, some at a time, and returns the results in order of name.
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

    /// Empties the caches, because a volume or a snapshot was created or deleted here.
    pub(crate) fn forget(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.names.forget();
        self.infos.forget();
        self.snapshots.forget();
        self.standing.forget();
        self.concealed.forget();
    }

    /// Succeeds if a volume of this name existed at the last lookup.
    pub(crate) async fn find(&self, name: &str) -> Result<(), Arc<OpenError>> {
        let load = async {
            let _turn = match self.lookups.try_acquire() {
                Ok(turn) => Some(turn),
                // A name from the list need not wait behind clients that make up names.
                Err(_) if self.is_listed(name).await => None,
                Err(_) => Some(self.lookups.acquire().await.expect("it is never closed")),
            };
            self.look_up(name).await
        };
        found(name, self.standing.try_get_with((self.now(), name.to_owned()), load).await?)
    }

    /// Does the work that [`Catalogue::find`] does for a name that does not exist, whether or not this name
    /// exists.
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

    /// Returns the description of a volume.
    pub(crate) async fn info(&self, name: &str) -> Result<Arc<Info>, Arc<OpenError>> {
        if let Some(info) = self.infos.get(&(self.now(), name.to_owned())).await {
            return Ok(info);
        }
        self.find(name).await?;
        let load = async { catalog::info(&self.env, name).await.map(Arc::new) };
        self.infos.try_get_with((self.now(), name.to_owned()), load).await
    }

    /// Returns the snapshots of a volume. However many names of snapshots clients make up, they are read once
    /// in a moment.
    pub(super) async fn snapshots(&self, name: &str) -> Result<Snapshots, Arc<OpenError>> {
        self.find(name).await?;
        let load = list_snapshots(&self.env, name);
        self.snapshots.try_get_with((self.now(), name.to_owned()), load).await
    }
}

/// Reads the snapshots of a volume from the store.
pub(super) async fn list_snapshots(env: &Environment, name: &str) -> Result<Snapshots, OpenError> {
    let volume = catalog::resolve(env, name).await?;
    match snapshot::list(env, volume).await {
        Ok(snapshots) => Ok(Snapshots { volume, snapshots: Arc::new(snapshots) }),
        Err(OpenError::Store(store::Error::NotFound { key })) => Err(OpenError::Incomplete { key }),
        Err(error) => Err(error),
    }
}

fn found(name: &str, stands: bool) -> Result<(), Arc<OpenError>> {
    if stands { Ok(()) } else { Err(Arc::new(OpenError::NoSuchVolume(name.to_owned()))) }
}
