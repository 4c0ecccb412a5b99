//! The commands that concern snapshots, and the last look at all of them.
//!
//! Owns how the commands are drawn and executed. What their answers must be is in the ledger.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use cairn::volume::format::snapshot::Snapshot;
use cairn::volume::read::concat;
use cairn::volume::{Environment, Error, Options, SnapshotDisk, SnapshotError, Volume, snapshot};
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::super::driver::volume_metrics;
use super::super::plan::Plan;
use super::super::world::{Inner, World};

/// Number of snapshots beyond which clients only delete some.
const MOST: usize = 6;
/// Size in bytes of a read in the final check.
const READ: u64 = 256 << 10;

/// A command.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    Take(String),
    Delete(String),
    List,
    Read { name: String, ranges: Vec<Range<u64>>, pause: Duration },
}

impl Command {
    /// Draws a command. In a run without snapshots, nothing is drawn.
    pub(crate) fn draw(
        inner: &mut Inner,
        random: &mut SmallRng,
        range: impl Fn(&Plan, &mut SmallRng) -> Range<u64>,
    ) -> Option<Self> {
        let often = inner.plan.snapshots;
        if often == 0 || random.random_range(0..10_000) >= often {
            return None;
        }
        inner.snapshots.names += 1;
        let fresh = format!("s{}", inner.snapshots.names);
        let used = inner.snapshots.used();
        let any = used.choose(random).map_or_else(|| fresh.clone(), |name| (*name).to_owned());
        Some(match random.random_range(0..100) {
            0..40 if used.len() < MOST => Self::Take(fresh),
            40..46 if used.len() < MOST => Self::Take(any),
            0..68 => Self::Delete(any),
            68..78 => Self::List,
            _ => {
                let ranges = (0..random.random_range(1..4)).map(|_| range(&inner.plan, random)).collect();
                let pause = Duration::from_millis(random.random_range(0..4000));
                Self::Read { name: any, ranges, pause }
            }
        })
    }

    /// Whether the command succeeds only while the volume serves.
    pub(crate) fn needs_volume(&self) -> bool {
        matches!(self, Self::Take(_) | Self::Delete(_))
    }

    /// Executes the command on a volume, or on the store behind it.
    pub(crate) async fn execute(
        self,
        world: &World,
        env: &Environment,
        volume: &Arc<Volume>,
    ) -> Result<(), Error> {
        match self {
            Self::Take(name) => take(world, volume, &name).await,
            Self::Delete(name) => delete(world, volume, &name).await,
            Self::List => {
                let issued = {
                    let mut inner = world.lock();
                    let now = inner.history.tick();
                    if !inner.is_superseded(volume.epoch()) {
                        inner.check_list(&volume.snapshots(), now);
                    }
                    now
                };
                match snapshot::list(env, volume.id()).await {
                    Ok(found) => world.lock().check_list(&found, issued),
                    Err(error) => world.lock().opening_snapshot_failed(None, issued, &error),
                }
                Ok(())
            }
            Self::Read { name, ranges, pause } => {
                let issued = world.lock().history.tick();
                let options = options(world);
                let disk = match SnapshotDisk::open(env, &options, volume.id(), &name).await {
                    Ok(disk) => disk,
                    Err(error) => {
                        world.lock().opening_snapshot_failed(Some(&name), issued, &error);
                        return Ok(());
                    }
                };
                for range in ranges {
                    read(world, &disk, &range).await;
                    tokio::time::sleep(pause).await;
                }
                Ok(())
            }
        }
    }
}

fn options(world: &World) -> Options {
    Options { metrics: Some(volume_metrics()), ..world.lock().plan.options.clone() }
}

async fn take(world: &World, volume: &Volume, name: &str) -> Result<(), Error> {
    let creation = world.lock().snapshot_issued(volume.epoch(), name);
    let outcome = volume.snapshot(name).await;
    let mut inner = world.lock();
    match outcome {
        Ok(snapshot) => inner.snapshot_answered(creation, snapshot),
        Err(SnapshotError::Exists(_)) => inner.snapshot_refused(creation),
        Err(SnapshotError::Volume(error)) => return Err(error),
        Err(error) => inner.broken(format!("no snapshot {name}: {error}")),
    }
    Ok(())
}

async fn delete(world: &World, volume: &Volume, name: &str) -> Result<(), Error> {
    let deletion = world.lock().deletion_issued(name);
    let outcome = volume.delete_snapshot(name).await;
    let mut inner = world.lock();
    match outcome {
        Ok(()) => inner.deletion_answered(deletion),
        Err(SnapshotError::NoSuchSnapshot(_)) => inner.deletion_refused(deletion, volume.epoch()),
        Err(SnapshotError::Volume(error)) => return Err(error),
        Err(error) => inner.broken(format!("snapshot {name} is not deleted: {error}")),
    }
    Ok(())
}

async fn read(world: &World, disk: &Arc<SnapshotDisk>, range: &Range<u64>) {
    let found = disk.read(range.start, range.end - range.start).await;
    let mut inner = world.lock();
    match found {
        Ok(segments) => inner.check_snapshot(disk.snapshot(), range, &concat(&segments)),
        Err(error) => inner.reading_snapshot_failed(&disk.snapshot().name, &error),
    }
}

/// Reads every snapshot that there is, whole, and deletes some of them if `random` says which.
/// All of it must succeed.
pub(crate) async fn look(
    world: &World,
    env: &Environment,
    volume: &Volume,
    random: Option<&mut SmallRng>,
) -> Result<(), String> {
    let issued = world.lock().history.tick();
    let found = snapshot::list(env, volume.id()).await;
    let found = found.map_err(|error| format!("the snapshots cannot be listed: {error}"))?;
    let (options, windows) = {
        let mut inner = world.lock();
        inner.check_list(&found, issued);
        (inner.plan.options.clone(), inner.plan.layout.windows.clone())
    };
    for Snapshot { name, .. } in &found {
        let disk = SnapshotDisk::open(env, &options, volume.id(), name).await;
        let disk = disk.map_err(|error| format!("snapshot {name} cannot be opened: {error}"))?;
        for window in &windows {
            for at in (window.start..window.end).step_by(usize::try_from(READ).expect("small")) {
                let range = at..window.end.min(at + READ);
                let segments = disk.read(range.start, range.end - range.start).await;
                let segments = segments.map_err(|error| format!("snapshot {name}, {range:?}: {error}"))?;
                world.lock().check_snapshot(disk.snapshot(), &range, &concat(&segments));
            }
        }
    }
    let Some(random) = random else { return Ok(()) };
    for Snapshot { name, .. } in found {
        if random.random_bool(0.5) {
            let deleted = delete(world, volume, &name).await;
            deleted.map_err(|error| format!("snapshot {name} cannot be deleted: {error}"))?;
        }
    }
    Ok(())
}
