//! The task that takes and deletes snapshots by the schedule.
//!
//! Owns when the schedule is consulted, and must not know what it says. Only volumes that are open in this
//! gateway are looked after, because only their holder may change them. Invariants: nothing is deleted after
//! something could not be taken. A snapshot that clients of this gateway read, or that a clone needs, is left
//! for later. Whether a clone still exists may take long to find out, and holds up no other snapshot.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::failure::chain;
use super::open_snapshots::OpenSnapshots;
use super::open_volumes::OpenVolumes;
use super::schedule::{Action, Schedule};
use super::surface::OpenVolume;
use crate::metrics::{Metrics, VolumeMetrics};
use crate::task::Tasks;
use crate::volume::{self, Environment, SnapshotError, Volume};

/// How often the schedule is consulted. It costs no request unless something is due.
const TICK: Duration = Duration::from_secs(20);
/// How long a snapshot that clones keep is left alone before they are looked for again.
const KEPT: Duration = Duration::from_secs(3600);
/// How many volumes are looked after at the same time.
const CONCURRENT: usize = 8;

/// Takes and deletes snapshots by a schedule.
#[derive(Debug)]
pub(crate) struct Scheduler {
    env: Environment,
    volumes: Arc<OpenVolumes>,
    snapshots: Arc<OpenSnapshots>,
    metrics: Metrics,
    schedule: Mutex<Schedule>,
    /// The snapshots that clones kept when they were due, each with the time until which it is left alone.
    kept: Mutex<BTreeMap<(Uuid, String), Instant>>,
    changed: Notify,
    tasks: Tasks,
}

impl Scheduler {
    /// Starts the task.
    pub(crate) fn start(
        env: Environment,
        volumes: Arc<OpenVolumes>,
        snapshots: Arc<OpenSnapshots>,
        metrics: Metrics,
        schedule: Schedule,
    ) -> Arc<Self> {
        let this = Arc::new(Self {
            env,
            volumes,
            snapshots,
            metrics,
            schedule: Mutex::default(),
            kept: Mutex::default(),
            changed: Notify::new(),
            tasks: Tasks::new(),
        });
        this.set(schedule);
        let of_task = Arc::clone(&this);
        drop(this.tasks.spawn_until_cancelled(async move { of_task.run().await }));
        this
    }

    /// Changes the schedule.
    pub(crate) fn set(&self, schedule: Schedule) {
        self.metrics.gateway().set_snapshot_interval(schedule.interval());
        *self.schedule.lock() = schedule;
        self.changed.notify_one();
    }

    /// Stops the task.
    pub(crate) async fn stop(&self) {
        self.tasks.shutdown().await;
    }

    async fn run(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                () = self.changed.notified() => {}
            }
            let open = stream::iter(self.volumes.reports());
            open.for_each_concurrent(CONCURRENT, |open| async move { self.look_after(&open).await }).await;
        }
    }

    /// Does what is due for a volume.
    async fn look_after(&self, open: &OpenVolume) {
        let schedule = self.schedule.lock().clone();
        export(&open.volume, &open.metrics);
        let mut kept = Vec::new();
        for action in schedule.due((self.env.wall_clock)(), &open.volume.snapshots()) {
            // It may be about to be closed, or have stopped.
            if self.volumes.serving(&open.name).is_none_or(|now| now.id() != open.volume.id()) {
                return;
            }
            if let Action::Delete(name) = &action
                && open.volume.is_pinned(name)
            {
                kept.push(name.clone());
                continue;
            }
            match self.carry_out(open, &action).await {
                Ok(()) => {}
                // An earlier attempt took it, but it may not be durable yet: until it is, nothing is deleted.
                // Or the volume is being closed, or its loss is reported elsewhere.
                Err(SnapshotError::Exists(_) | SnapshotError::Volume(volume::Error::Stopped(_))) => break,
                Err(error) => {
                    open.metrics.snapshot_failures.inc();
                    let why = chain(&error);
                    tracing::warn!(volume = open.name, "the schedule of snapshots: {action:?} failed: {why}");
                    break;
                }
            }
        }
        self.delete_kept(open, kept);
        export(&open.volume, &open.metrics);
    }

    /// Deletes snapshots that clones keep, unless the clones exist. A task does it, which looks at each
    /// snapshot once in [`KEPT`].
    fn delete_kept(&self, open: &OpenVolume, mut names: Vec<String>) {
        {
            let (now, mut kept) = (Instant::now(), self.kept.lock());
            kept.retain(|_, until| *until > now);
            names.retain(|name| match kept.entry((open.volume.id(), name.clone())) {
                Entry::Occupied(_) => false,
                Entry::Vacant(entry) => *entry.insert(now + KEPT) > now,
            });
        }
        if names.is_empty() {
            return;
        }
        let (open, snapshots) = (open.clone(), Arc::clone(&self.snapshots));
        self.tasks.spawn_until_cancelled(async move {
            for name in names {
                if snapshots.clients(open.volume.id(), Some(&name)) > 0 {
                    continue;
                }
                match open.volume.delete_unpinned(&name).await {
                    Ok(_) | Err(SnapshotError::NoSuchSnapshot(_)) => {}
                    Err(SnapshotError::Volume(volume::Error::Stopped(_))) => return,
                    Err(error) => {
                        open.metrics.snapshot_failures.inc();
                        let why = chain(&error);
                        tracing::warn!(volume = open.name, name, "an old snapshot is not deleted: {why}");
                    }
                }
            }
        });
    }

    async fn carry_out(&self, open: &OpenVolume, action: &Action) -> Result<(), SnapshotError> {
        match action {
            Action::Take(name) => open.volume.snapshot(name).await.map(drop),
            Action::Delete(name) if self.snapshots.clients(open.volume.id(), Some(name)) > 0 => {
                tracing::debug!(
                    volume = open.name,
                    snapshot = name,
                    "clients read it, so it is deleted later"
                );
                Ok(())
            }
            Action::Delete(name) => match open.volume.delete_unpinned(name).await {
                // A clone was made of it just now, or somebody else has deleted it.
                Ok(_) | Err(SnapshotError::NoSuchSnapshot(_)) => Ok(()),
                Err(error) => Err(error),
            },
        }
    }
}

/// Exports how many snapshots a volume has, and when the last one was taken.
pub(super) fn export(volume: &Volume, metrics: &VolumeMetrics) {
    let snapshots = volume.snapshots();
    let last = snapshots.iter().map(|snapshot| snapshot.taken_at_seconds).max();
    metrics.set_snapshots(snapshots.len(), last.unwrap_or(0));
}

#[cfg(test)]
mod tests;
