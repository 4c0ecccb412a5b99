//! The open snapshots: each is open once, however many clients use it.
//!
//! Owns when snapshots are opened and closed, and must not know exports. A snapshot is opened for its first
//! client and closed after its last. It takes no lease, so other gateways may serve it at the same time, and
//! write its volume. Invariants: an open snapshot takes a place among the open volumes. Soon after a snapshot
//! was deleted, wherever that happened, the commands of its clients fail with ESHUTDOWN.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::facts::Facts;
use super::failure::{chain, open_error};
use super::open_volumes::{OpenVolumes, Place};
use crate::metrics::{Metrics, VolumeMetrics};
use crate::server::OpenError;
use crate::task::Tasks;
use crate::volume::format::snapshot::Snapshot;
use crate::volume::{self, Environment, SnapshotDisk};

/// Maximum number of snapshots whose size is cached.
const SIZES_KEPT: u64 = 4096;
/// A snapshot that is served is looked up at least this often.
const LOOK_AT_MOST: Duration = Duration::from_secs(60);
/// A snapshot that is served is looked up at most this often.
const LOOK_AT_LEAST: Duration = Duration::from_secs(5);
/// How often a snapshot is looked up within the time for which the objects of a deleted one remain.
const LOOKS_IN_GRACE: u32 = 4;

/// A snapshot of a volume in the store. Another snapshot that gets the same name later is another identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    pub(crate) volume: Uuid,
    pub(crate) snapshot: Snapshot,
}

/// A snapshot that is open or being opened.
#[derive(Debug)]
struct Slot {
    /// The name by which clients request it, `VOLUME@NAME`.
    name: String,
    opened: OnceCell<(Arc<SnapshotDisk>, VolumeMetrics)>,
    is_gone: AtomicBool,
    /// The task that asks whether the snapshot still exists.
    tasks: Tasks,
    _place: Place,
}

#[derive(Debug)]
struct Entry {
    slot: Arc<Slot>,
    users: usize,
}

/// The right to use an open snapshot. It ends on drop.
#[derive(Debug)]
pub(crate) struct SnapshotUse {
    /// The name by which clients request it, `VOLUME@NAME`.
    pub(crate) name: String,
    pub(crate) disk: Arc<SnapshotDisk>,
    pub(crate) metrics: VolumeMetrics,
    _seat: Seat,
}

impl Drop for SnapshotUse {
    fn drop(&mut self) {
        self.metrics.clients.dec();
    }
}

/// Counts one user of a slot. The slot is removed with its last user.
#[derive(Debug)]
struct Seat {
    of: Arc<OpenSnapshots>,
    identity: Identity,
    slot: Arc<Slot>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.of.open.lock();
        let entry = open.get_mut(&self.identity).expect("it has a user");
        entry.users -= 1;
        if entry.users == 0 {
            open.remove(&self.identity);
        }
    }
}

/// The open snapshots of a gateway.
#[derive(Debug)]
pub(crate) struct OpenSnapshots {
    env: Environment,
    options: volume::Options,
    metrics: Metrics,
    volumes: Arc<OpenVolumes>,
    open: Mutex<BTreeMap<Identity, Entry>>,
    /// Sizes for descriptions. A snapshot never changes its size.
    sizes: Facts<u64>,
}

impl OpenSnapshots {
    /// Creates the set without any open snapshot. The snapshots share their places with the open volumes.
    pub(crate) fn new(
        env: Environment,
        options: volume::Options,
        metrics: Metrics,
        volumes: Arc<OpenVolumes>,
    ) -> Arc<Self> {
        let sizes = Facts::new(SIZES_KEPT, None);
        Arc::new(Self { env, options, metrics, volumes, open: Mutex::default(), sizes })
    }

    /// Opens a snapshot for a client, or joins its other users. `name` is what the client requested.
    pub(crate) async fn open(
        self: &Arc<Self>,
        name: &str,
        identity: &Identity,
    ) -> Result<SnapshotUse, OpenError> {
        let seat = self.take_seat(name, identity)?;
        let slot = &seat.slot;
        let opened = slot.opened.get_or_try_init(|| self.open_disk(name, identity, slot)).await;
        let (disk, metrics) = opened.map_err(|error| open_error(name, &error))?.clone();
        if slot.is_gone.load(Ordering::Relaxed) {
            return Err(OpenError::Unknown(name.to_owned()));
        }
        metrics.clients.inc();
        Ok(SnapshotUse { name: name.to_owned(), disk, metrics, _seat: seat })
    }

    /// Returns the size of a snapshot in bytes, for a description. Reads the store if it is not known.
    pub(crate) async fn size_bytes(&self, name: &str, identity: &Identity) -> Result<u64, OpenError> {
        let load = async {
            let metrics = self.metrics.volume(name);
            self.load(identity, metrics).await.map(|disk| disk.size_bytes())
        };
        let Snapshot { name: called, taken_at_seconds } = &identity.snapshot;
        let key = (*taken_at_seconds, format!("{}@{called}", identity.volume));
        let size = self.sizes.try_get_with(key, load).await;
        size.map_err(|error: Arc<volume::OpenError>| open_error(name, &error))
    }

    /// Returns whether any snapshot is open here.
    pub(crate) fn has_any(&self) -> bool {
        !self.open.lock().is_empty()
    }

    /// Returns how many clients of this gateway use a snapshot. Without a name, counts those of all snapshots
    /// of the volume.
    pub(crate) fn clients(&self, volume: Uuid, name: Option<&str>) -> usize {
        let open = self.open.lock();
        let used = open.iter().filter(|(identity, _)| {
            identity.volume == volume && name.is_none_or(|name| identity.snapshot.name == name)
        });
        used.map(|(_, entry)| entry.users).sum()
    }

    fn take_seat(self: &Arc<Self>, name: &str, identity: &Identity) -> Result<Seat, OpenError> {
        let mut open = self.open.lock();
        let slot = match open.get_mut(identity) {
            Some(entry) => {
                entry.users += 1;
                Arc::clone(&entry.slot)
            }
            None => {
                let place = self.volumes.place().map_err(|unopened| unopened.for_client(name))?;
                let slot = Arc::new(Slot {
                    name: name.to_owned(),
                    opened: OnceCell::new(),
                    is_gone: AtomicBool::new(false),
                    tasks: Tasks::new(),
                    _place: place,
                });
                open.insert(identity.clone(), Entry { slot: Arc::clone(&slot), users: 1 });
                slot
            }
        };
        Ok(Seat { of: Arc::clone(self), identity: identity.clone(), slot })
    }

    /// Opens the disk of a slot, and starts to watch whether the snapshot still exists.
    async fn open_disk(
        &self,
        name: &str,
        identity: &Identity,
        slot: &Arc<Slot>,
    ) -> Result<(Arc<SnapshotDisk>, VolumeMetrics), volume::OpenError> {
        let metrics = self.metrics.volume(name);
        let disk = self.load(identity, metrics.clone()).await?;
        metrics.size_bytes.set(i64::try_from(disk.size_bytes()).unwrap_or(i64::MAX));
        tracing::info!(snapshot = name, volume = %identity.volume, "open for reading");
        let interval = look_interval(self.options.deletion_grace);
        drop(slot.tasks.spawn_until_cancelled(watch(Arc::downgrade(slot), interval)));
        Ok((disk, metrics))
    }

    /// Opens the disk. Fails if the name refers to another snapshot by now.
    async fn load(
        &self,
        identity: &Identity,
        metrics: VolumeMetrics,
    ) -> Result<Arc<SnapshotDisk>, volume::OpenError> {
        let options = volume::Options { metrics: Some(metrics), ..self.options.clone() };
        let name = &identity.snapshot.name;
        let disk = SnapshotDisk::open(&self.env, &options, identity.volume, name).await?;
        if *disk.snapshot() == identity.snapshot {
            Ok(disk)
        } else {
            Err(volume::OpenError::NoSuchSnapshot(name.clone()))
        }
    }
}

/// Time between two lookups of a snapshot that is served.
fn look_interval(deletion_grace: Duration) -> Duration {
    (deletion_grace / LOOKS_IN_GRACE).clamp(LOOK_AT_LEAST, LOOK_AT_MOST)
}

/// Asks from time to time whether a snapshot still exists, until it does not. From then on the disk refuses
/// all commands. Keeps the snapshot open only while it asks.
async fn watch(slot: Weak<Slot>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(slot) = slot.upgrade() else { return };
        let Some((disk, _)) = slot.opened.get() else { continue };
        match disk.is_kept().await {
            Ok(true) => {}
            Ok(false) => {
                slot.is_gone.store(true, Ordering::Relaxed);
                tracing::warn!(snapshot = slot.name, "the snapshot was deleted, so it is no longer served");
                return;
            }
            // Reads of objects that are gone fail, so nothing wrong is read meanwhile.
            Err(error) => {
                tracing::debug!(
                    snapshot = slot.name,
                    "cannot look up whether it still exists: {}",
                    chain(&error)
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
