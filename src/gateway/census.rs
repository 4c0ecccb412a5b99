//! What the store holds for each volume, kept in memory for metrics and the status page.
//!
//! Owns the task that counts, and must not know who asks. The task lists the store at a bounded rate,
//! whatever its size: one LIST a second while it counts, and at most one a minute on average. While this
//! gateway writes nothing, it counts once per `store.census_interval`. It looks names up again only at that
//! interval, or when a volume was created or deleted here, or when the set of volumes in the store has
//! changed. Invariant: queries are answered from memory, so neither a scrape nor an open page costs a request
//! to the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::failure::chain;
use super::open_volumes::OpenVolumes;
use super::surface::{Known, OpenVolume};
use crate::metrics::{Label as _, Metrics, ObjectKind};
use crate::task::Tasks;
use crate::volume::catalog::{self, Listed};
use crate::volume::census;
use crate::volume::{Environment, OpenError};

/// Pause after each LIST of a census.
const LIST_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a census, for each LIST that it took.
const REST: Duration = Duration::from_secs(60);
/// Maximum number of volumes that have a time series and a row on the status page, not counting open ones.
const SHOWN: usize = 1024;

/// Why a census is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// It was requested.
    Wanted,
    /// The pause or the interval is over.
    ByTime,
}

/// The names in the store, and when they were looked up.
#[derive(Debug)]
struct Named {
    listed: Vec<Listed>,
    /// The volumes in the store at that time, with or without a name.
    volumes: BTreeSet<Uuid>,
    at: Instant,
    at_seconds: u64,
}

/// The last census of the store.
#[derive(Debug)]
pub(crate) struct Census {
    env: Environment,
    volumes: Arc<OpenVolumes>,
    metrics: Metrics,
    known: Mutex<Option<Known>>,
    /// Signals a request: the first query, or a volume was created or deleted here.
    wanted: Notify,
    tasks: Tasks,
}

impl Census {
    /// Starts the task. The first census begins on request, or after [`REST`]. Without an interval, nothing
    /// is counted.
    pub(crate) fn start(
        env: Environment,
        volumes: Arc<OpenVolumes>,
        metrics: Metrics,
        interval: Option<Duration>,
    ) -> Arc<Self> {
        let (known, wanted, tasks) = (Mutex::default(), Notify::new(), Tasks::new());
        let this = Arc::new(Self { env, volumes, metrics, known, wanted, tasks });
        if let Some(interval) = interval {
            let census = Arc::clone(&this);
            drop(this.tasks.spawn_until_cancelled(async move { census.run(interval).await }));
        }
        this
    }

    /// Returns the last census. If there is none yet, requests one and returns `None`.
    pub(crate) fn known(&self) -> Option<Known> {
        let known = self.known.lock().clone();
        if known.is_none() {
            self.wanted.notify_one();
        }
        known
    }

    /// Notes that a volume was created or deleted here.
    pub(crate) fn has_changed(&self) {
        self.wanted.notify_one();
    }

    /// Stops the task.
    pub(crate) async fn stop(&self) {
        self.tasks.shutdown().await;
    }

    async fn run(&self, interval: Duration) {
        let (mut rest, mut named) = (REST, None);
        loop {
            if self.rest(rest, interval).await == Due::Wanted {
                named = None;
            }
            match self.count(&mut named, interval).await {
                Ok(lists) => rest = REST.saturating_mul(lists),
                Err(error) => {
                    tracing::debug!("the store's objects were not counted: {}", chain(&error));
                    rest = REST;
                }
            }
        }
    }

    /// Waits until the next census is due: after `rest` if this gateway has written anything but heads, and
    /// otherwise after `interval`.
    async fn rest(&self, rest: Duration, interval: Duration) -> Due {
        let (written, begun) = (self.written(), Instant::now());
        tokio::select! {
            () = self.wanted.notified() => return Due::Wanted,
            () = tokio::time::sleep(rest) => {}
        }
        while begun.elapsed() < interval && self.written() == written && self.known.lock().is_some() {
            tokio::select! {
                () = self.wanted.notified() => return Due::Wanted,
                () = tokio::time::sleep(REST) => {}
            }
        }
        Due::ByTime
    }

    /// Returns how many bytes were put for the open volumes, without heads, which only renew leases.
    fn written(&self) -> u64 {
        let of = |kind: &ObjectKind, open: &OpenVolume| match kind {
            ObjectKind::Head => 0,
            kind => open.metrics.put_bytes.of(*kind).get(),
        };
        let open = self.volumes.reports();
        open.iter().flat_map(|open| ObjectKind::ALL.iter().map(move |kind| of(kind, open))).sum()
    }

    /// Takes a census. Returns how many LIST requests it took.
    async fn count(&self, named: &mut Option<Named>, interval: Duration) -> Result<u32, OpenError> {
        let counted =
            census::take(self.env.store.bulk.as_ref(), LIST_PAUSE).await.map_err(OpenError::Store)?;
        let volumes: BTreeSet<Uuid> = counted.stored_bytes.keys().copied().collect();
        let is_current = |named: &Named| named.at.elapsed() < interval && named.volumes == volumes;
        let Named { listed, at_seconds, .. } = match named.take().filter(is_current) {
            Some(current) => named.insert(current),
            None => named.insert(self.look_up(volumes).await?),
        };
        let (listed, at_seconds) = (listed.clone(), *at_seconds);
        let bytes_of = |listed: &Listed| {
            let info = listed.found.as_ref().ok()?;
            Some((info.name.clone(), *counted.stored_bytes.get(&info.volume)?))
        };
        let mut stored: BTreeMap<String, u64> = listed.iter().filter_map(bytes_of).collect();
        for open in self.volumes.reports() {
            if let Some(bytes) = counted.stored_bytes.get(&open.volume.id()) {
                stored.insert(open.name, *bytes);
            }
        }
        let now = (self.env.wall_clock)();
        self.metrics.gateway().set_stored(stored, now);
        *self.known.lock() = Some(Known { listed, at_seconds });
        Ok(counted.pages)
    }

    async fn look_up(&self, volumes: BTreeSet<Uuid>) -> Result<Named, OpenError> {
        let (at, at_seconds) = (Instant::now(), (self.env.wall_clock)());
        let mut listed = catalog::volumes(&self.env).await?;
        listed.truncate(SHOWN);
        Ok(Named { listed, volumes, at, at_seconds })
    }
}

#[cfg(test)]
mod tests;
