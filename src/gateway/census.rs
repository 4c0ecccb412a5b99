//! What the store holds, volume by volume, kept in memory for metrics and the status page.
//!
//! One task lists the store at a bounded rate, whatever its size: a LIST a second while it counts, and on
//! average one a minute at most, or one census in `store.census_interval` while this gateway writes nothing.
//! Names are looked up again only in that interval, when a volume was made or deleted here, or when the
//! volumes of the store are others. Invariant: whoever asks is answered from memory, so that neither a scrape
//! nor an open page costs a request to the store.

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

/// The pause after each LIST while it counts.
const LIST_PAUSE: Duration = Duration::from_secs(1);
/// The pause after a census, for each LIST that it took.
const REST: Duration = Duration::from_secs(60);
/// Volumes that have a time series and a line on the status page at most, besides those that are open.
const SHOWN: usize = 1024;

/// Why a census is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Somebody wants to know.
    Wanted,
    /// The time has come.
    ByTime,
}

/// The names of the store, and when they were looked up.
#[derive(Debug)]
struct Named {
    listed: Vec<Listed>,
    /// The volumes that the store had then, with a name or without.
    volumes: BTreeSet<Uuid>,
    at: Instant,
    at_seconds: u64,
}

/// The store as it was counted last.
#[derive(Debug)]
pub(crate) struct Census {
    env: Environment,
    volumes: Arc<OpenVolumes>,
    metrics: Metrics,
    known: Mutex<Option<Known>>,
    /// Somebody wants to know, for the first time or since a volume was made or deleted.
    wanted: Notify,
    tasks: Tasks,
}

impl Census {
    /// Counts from the first time that somebody asks, or in a minute; never without an interval.
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

    /// What is known; the first to ask is told nothing, and has it counted.
    pub(crate) fn known(&self) -> Option<Known> {
        let known = self.known.lock().clone();
        if known.is_none() {
            self.wanted.notify_one();
        }
        known
    }

    /// A volume was made or deleted here.
    pub(crate) fn has_changed(&self) {
        self.wanted.notify_one();
    }

    /// Ends it.
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

    /// Returns when the next census is due. What this gateway writes, but for heads, makes it due after
    /// `rest`.
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

    /// Bytes of objects put so far for the volumes that are open, but for heads, which only renew leases.
    fn written(&self) -> u64 {
        let of = |kind: &ObjectKind, open: &OpenVolume| match kind {
            ObjectKind::Head => 0,
            kind => open.metrics.put_bytes.of(*kind).get(),
        };
        let open = self.volumes.reports();
        open.iter().flat_map(|open| ObjectKind::ALL.iter().map(move |kind| of(kind, open))).sum()
    }

    /// Counts everything once; says how many LIST requests that took.
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
