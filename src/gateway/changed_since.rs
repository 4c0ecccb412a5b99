//! The metadata contexts of a snapshot: what has changed since another snapshot of the same volume.
//!
//! Owns the names of these contexts, and the other snapshots for as long as a client compares with them. It
//! must not know how contents are compared. Invariant: a context means the snapshot that had its name when
//! the client opened the export, and no later one of the same name.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::open_snapshots::{Identity, OpenSnapshots, SnapshotUse};
use crate::protocol::Error;
use crate::protocol::meta_context::{CHANGED_SINCE_PREFIX, DIRTY_BITMAP_PREFIX};
use crate::server::{ExportError, OfferedContext, OpenError};
use crate::volume::SnapshotDisk;
use crate::volume::format::snapshot::Snapshot;

/// Returns the contexts of a snapshot: two for each other snapshot of the volume, those of the newest one
/// first. `snapshots` are all of the volume, in the order in which they were taken.
pub(super) fn contexts(volume: &str, snapshots: &[Snapshot], own: &str) -> Vec<OfferedContext> {
    let others = snapshots.iter().rev().filter(|snapshot| snapshot.name != own);
    let contexts = others.flat_map(|Snapshot { name, .. }| {
        [CHANGED_SINCE_PREFIX, DIRTY_BITMAP_PREFIX].map(|prefix| OfferedContext {
            name: format!("{prefix}{name}"),
            about: Some(export_of(volume, name)),
        })
    });
    contexts.collect()
}

/// Returns the name of the export of a snapshot.
fn export_of(volume: &str, snapshot: &str) -> String {
    format!("{volume}@{snapshot}")
}

/// Returns the name of the snapshot that a context is about.
fn snapshot_of(context: &str) -> Option<&str> {
    context.strip_prefix(CHANGED_SINCE_PREFIX).or_else(|| context.strip_prefix(DIRTY_BITMAP_PREFIX))
}

/// The other snapshots of a volume, for a client of one of its snapshots.
#[derive(Debug)]
pub(super) struct Others {
    open: Arc<OpenSnapshots>,
    /// The name of the volume.
    name: String,
    volume: Uuid,
    /// The snapshots of the volume when the client opened the export.
    snapshots: Arc<Vec<Snapshot>>,
    /// Those that the client compares with, by name. They are opened when it first does so.
    compared: Mutex<BTreeMap<String, Arc<OnceCell<SnapshotUse>>>>,
}

impl Others {
    pub(super) fn new(
        open: &Arc<OpenSnapshots>,
        name: &str,
        volume: Uuid,
        snapshots: Arc<Vec<Snapshot>>,
    ) -> Self {
        let (open, name) = (Arc::clone(open), name.to_owned());
        Self { open, name, volume, snapshots, compared: Mutex::default() }
    }

    /// Returns the contexts of the snapshot `own`.
    pub(super) fn contexts(&self, own: &str) -> Vec<OfferedContext> {
        contexts(&self.name, &self.snapshots, own)
    }

    /// Opens the snapshot that a context of the snapshot `own` is about. It stays open until the client
    /// leaves.
    pub(super) async fn open(
        &self,
        context: &str,
        own: &SnapshotDisk,
    ) -> Result<Arc<SnapshotDisk>, ExportError> {
        let name = snapshot_of(context);
        let found = self.snapshots.iter().find(|snapshot| Some(snapshot.name.as_str()) == name);
        let Some(snapshot) = found else {
            let message = format!("the snapshot of the metadata context {context} does not exist");
            return Err(ExportError::new(Error::Io, message));
        };
        let compared = Arc::clone(self.compared.lock().entry(snapshot.name.clone()).or_default());
        let identity = Identity { volume: self.volume, snapshot: snapshot.clone() };
        let name = export_of(&self.name, &snapshot.name);
        let used = compared.get_or_try_init(|| self.open.open(&name, &identity)).await;
        let disk = Arc::clone(&used.map_err(|error| unavailable(&error))?.disk);
        // One that was taken within the same second, after the one of this name was deleted, is not the one
        // that was listed before `own`.
        let place = |name: &str| self.snapshots.iter().position(|listed| listed.name == name);
        if place(&snapshot.name) < place(&own.snapshot().name) && !disk.precedes(own) {
            let message = format!("the snapshot of the metadata context {context} was replaced by another");
            return Err(ExportError::new(Error::Io, message));
        }
        Ok(disk)
    }
}

/// Converts the error of opening a snapshot to compare with. The client can go on with everything else,
/// unless the gateway ends.
fn unavailable(error: &OpenError) -> ExportError {
    let value = match error {
        OpenError::Shutdown => Error::Shutdown,
        OpenError::Unknown(_) | OpenError::Refused(_) | OpenError::Failed(_) => Error::Io,
    };
    ExportError::new(value, format!("cannot find out what has changed: {error}"))
}
