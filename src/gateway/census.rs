//! What the store holds for each volume, kept in memory for metrics and the status page.
//!
//! Owns the task that counts, and must not know who asks. The task lists the store at a bounded rate,
//! whatever its size and whatever the interval: one LIST a second while it counts, and at most one a minute
//! on average, including those that look up names. While this gateway writes nothing, it counts once per
//! `store.census_interval`. It looks names up again only at that interval, or when the set of volumes in the
//! store has changed. Apart from that bound, names are looked up after each creation and deletion here, whose
//! own requests cost more. Whenever names are looked up, the reaper learns which volumes have none.
//! Invariant: queries are answered from memory, so neither a scrape nor an open page costs a request to the
//! store, except that the first query requests the first census.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use self::lists::Lists;
use super::failure::chain;
use super::open_volumes::OpenVolumes;
use super::reaper::Reaper;
use super::surface::{Known, OpenVolume};
use crate::metrics::{Label as _, Metrics, ObjectKind};
use crate::task::Tasks;
use crate::volume::catalog::{self, Listed};
use crate::volume::census;
use crate::volume::{Environment, OpenError};

mod lists;

/// Pause after each LIST of a census.
const LIST_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a census, for each LIST that it took.
const REST: Duration = Duration::from_secs(60);
/// Maximum number of volumes that have a time series and a row on the status page, not counting open ones.
const SHOWN: usize = 1024;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// A census.
    Count,
    /// The names: a volume was created or deleted here.
    Names,
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

/// The objects in the store, and when they were counted.
#[derive(Debug)]
struct Counted {
    bytes: BTreeMap<Uuid, u64>,
    at_seconds: u64,
}

/// What the task keeps from one census to the next.
#[derive(Debug, Default)]
struct Last {
    /// `None` if the names must be looked up again.
    named: Option<Named>,
    counted: Option<Counted>,
}

/// The pause before the next census. It is over after `most`; after `least`, if this gateway has written
/// anything.
#[derive(Debug)]
struct Pause {
    begun: Instant,
    least: Duration,
    most: Duration,
    /// The result of [`Census::written`] at the beginning.
    written: u64,
}

/// The last census of the store.
#[derive(Debug)]
pub(crate) struct Census {
    env: Environment,
    volumes: Arc<OpenVolumes>,
    metrics: Metrics,
    /// Learns which volumes have no name.
    reaper: Arc<Reaper>,
    known: Mutex<Option<Known>>,
    /// Whether anybody has asked for the result of a census.
    is_asked: AtomicBool,
    /// Signals the first query, or that a volume was created or deleted here.
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
        reaper: Arc<Reaper>,
        interval: Option<Duration>,
    ) -> Arc<Self> {
        let (known, is_asked) = (Mutex::default(), AtomicBool::new(false));
        let (wanted, tasks) = (Notify::new(), Tasks::new());
        let this = Arc::new(Self { env, volumes, metrics, reaper, known, is_asked, wanted, tasks });
        if let Some(interval) = interval {
            let census = Arc::clone(&this);
            drop(this.tasks.spawn_until_cancelled(async move { census.run(interval).await }));
        }
        this
    }

    /// Returns the last census. The first query requests one, if there is none yet.
    pub(crate) fn known(&self) -> Option<Known> {
        let known = self.known.lock().clone();
        if !self.is_asked.swap(true, Ordering::Relaxed) && known.is_none() {
            self.wanted.notify_one();
        }
        known
    }

    /// Notes that a volume was created or deleted here.
    pub(super) fn has_changed(&self) {
        self.wanted.notify_one();
    }

    /// Stops the task.
    pub(crate) async fn stop(&self) {
        self.tasks.shutdown().await;
    }

    async fn run(&self, interval: Duration) {
        let mut last = Last::default();
        let mut pause = self.pause(REST, REST);
        loop {
            let due = self.rest(&pause).await;
            let lists = Lists::default();
            let env = lists.counted(&self.env);
            // Without a count, names have nothing to be published with.
            let is_count = due == Due::Count || last.counted.is_none();
            let done = if is_count {
                self.count(&env, &mut last, interval).await
            } else {
                last.named = None;
                self.name(&env, &mut last, interval).await
            };
            if let Err(error) = &done {
                tracing::debug!("the store's objects were not counted: {}", chain(error));
            }
            let least = REST.saturating_mul(lists.sent().max(1));
            match done {
                Ok(()) if is_count => pause = self.pause(least, interval),
                Ok(()) => {}
                Err(_) if is_count => pause = self.pause(least, least),
                Err(_) => pause.most = pause.begun.elapsed().saturating_add(REST),
            }
        }
    }

    fn pause(&self, least: Duration, most: Duration) -> Pause {
        Pause { begun: Instant::now(), least, most, written: self.written() }
    }

    /// Waits until something is due.
    async fn rest(&self, pause: &Pause) -> Due {
        loop {
            let elapsed = pause.begun.elapsed();
            let left = if elapsed < pause.least {
                pause.least.saturating_sub(elapsed)
            } else if elapsed < pause.most && self.written() == pause.written {
                REST.min(pause.most.saturating_sub(elapsed))
            } else {
                return Due::Count;
            };
            tokio::select! {
                () = self.wanted.notified() => return Due::Names,
                () = tokio::time::sleep(left) => {}
            }
        }
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

    /// Counts the objects. Then looks the names up, if that is due too, and publishes both.
    async fn count(&self, env: &Environment, last: &mut Last, interval: Duration) -> Result<(), OpenError> {
        let bytes = census::take(env.store.bulk.as_ref(), LIST_PAUSE).await.map_err(OpenError::Store)?;
        let (bytes, at_seconds) = (bytes.stored_bytes, (self.env.wall_clock)());
        last.counted = Some(Counted { bytes, at_seconds });
        self.name(env, last, interval).await
    }

    /// Looks the names up, unless they are current, and publishes them with the bytes that were counted.
    async fn name(&self, env: &Environment, last: &mut Last, interval: Duration) -> Result<(), OpenError> {
        let Some(counted) = &last.counted else { return Ok(()) };
        let volumes: BTreeSet<Uuid> = counted.bytes.keys().copied().collect();
        let is_current = |named: &Named| named.at.elapsed() < interval && named.volumes == volumes;
        let named = match last.named.take().filter(is_current) {
            Some(current) => last.named.insert(current),
            None => last.named.insert(self.look_up(env, volumes).await?),
        };
        self.publish(named, counted);
        Ok(())
    }

    async fn look_up(&self, env: &Environment, volumes: BTreeSet<Uuid>) -> Result<Named, OpenError> {
        let (at, at_seconds) = (Instant::now(), (self.env.wall_clock)());
        let mut listed = catalog::volumes(env).await?;
        let named = listed.iter().filter_map(|listed| Some(listed.found.as_ref().ok()?.volume));
        let named: BTreeSet<Uuid> = named.collect();
        self.reaper.look(volumes.difference(&named).copied().collect());
        listed.truncate(SHOWN);
        Ok(Named { listed, volumes, at, at_seconds })
    }

    fn publish(&self, named: &Named, counted: &Counted) {
        let bytes_of = |listed: &Listed| {
            let info = listed.found.as_ref().ok()?;
            Some((info.name.clone(), *counted.bytes.get(&info.volume)?))
        };
        let mut stored: BTreeMap<String, u64> = named.listed.iter().filter_map(bytes_of).collect();
        for open in self.volumes.reports() {
            if let Some(bytes) = counted.bytes.get(&open.volume.id()) {
                stored.insert(open.name, *bytes);
            }
        }
        self.metrics.gateway().set_stored(stored, counted.at_seconds);
        *self.known.lock() = Some(Known { listed: named.listed.clone(), at_seconds: named.at_seconds });
    }
}

#[cfg(test)]
mod tests;
