//! The interface between the admin server and a gateway.
//!
//! Owns the requests and their results, and must not know HTTP. Invariant: a call only changes what its
//! description says.

use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use crate::metrics::VolumeMetrics;
use crate::server::Connection;
use crate::volume::catalog::{Deleted, Info, Listed, Unnamed};
use crate::volume::diff::Page;
use crate::volume::format::snapshot::Snapshot;
use crate::volume::gc::{Collected, Found};
use crate::volume::{
    CloneError, CollectError, DiffError, Flattened, OpenError, ResizeError, Shrink, SnapshotError, Volume,
    Warm, Warmed,
};

/// A volume that is open in this gateway.
#[derive(Clone, Debug)]
pub struct OpenVolume {
    /// Its name in the store.
    pub name: String,
    /// The volume itself.
    pub volume: Arc<Volume>,
    /// The metrics of the volume.
    pub metrics: VolumeMetrics,
    /// Number of NBD connections that use it.
    pub clients: usize,
    /// Whether it stays open without clients, because the configuration names it.
    pub is_configured: bool,
}

/// The stage of the gateway's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not every configured volume is open yet.
    Starting,
    /// All listeners accept connections.
    Serving,
    /// The gateway drains and closes its volumes.
    Ending,
}

/// The contents of the store at the last census.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its volumes by name. If there are very many, only the first ones.
    pub listed: Vec<Listed>,
    /// When the names were looked up, in seconds since 1970.
    pub at_seconds: u64,
}

/// What to do with a volume that another gateway holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfHeld {
    /// Refuse, and name that gateway.
    Refuse,
    /// Take the volume over.
    TakeOver,
}

/// What becomes of a volume that is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It can be brought back, for the configured time.
    Kept,
    /// It is gone for good.
    Gone,
}

/// Why the gateway cannot do what was requested.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// It is starting or ending, or it has as many volumes open as it may have.
    #[error("{0}")]
    NotServing(String),
    /// Clients or the configuration of this gateway use what should be deleted or renamed.
    #[error("{0}")]
    InUse(String),
    /// An operation on a volume failed.
    #[error(transparent)]
    Volume(#[from] Arc<OpenError>),
    /// A snapshot cannot be taken or deleted.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A snapshot cannot be cloned.
    #[error(transparent)]
    Clone(#[from] CloneError),
    /// The size of a volume cannot be changed.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// The garbage of a volume cannot be collected.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// Two snapshots cannot be compared.
    #[error(transparent)]
    Compare(#[from] DiffError),
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::Volume(Arc::new(error))
    }
}

/// What the admin server can request of the process around it. A call may be dropped at any await point.
#[async_trait]
pub trait Gateway: Send + Sync + 'static {
    /// Returns what prevents the gateway from serving, one line each. Empty if the store answers and every
    /// configured volume is open.
    async fn obstacles(&self) -> Vec<String>;
    /// Returns every name in the store, in order, with its volume.
    async fn volumes(&self) -> Result<Vec<Listed>, Failure>;
    /// Returns the volumes that have no name.
    async fn unnamed(&self) -> Result<Vec<Unnamed>, Failure>;
    /// Returns one volume.
    async fn volume(&self, name: &str) -> Result<Info, Failure>;
    /// Creates a volume that reads as zeros. Without `chunk_bytes`, it has the configured chunk size.
    async fn create(&self, name: &str, size_bytes: u64, chunk_bytes: Option<u64>) -> Result<Info, Failure>;
    /// Changes the size of a volume, which is opened for it if necessary. Returns the volume.
    async fn resize(&self, name: &str, size_bytes: u64, shrink: Shrink) -> Result<Info, Failure>;
    /// Returns the id of the volume that a name refers to now.
    async fn resolve(&self, name: &str) -> Result<Uuid, Failure>;
    /// Gives another name to a volume that is not open here and not configured. Returns the volume.
    async fn rename(&self, name: &str, to: &str) -> Result<Info, Failure>;
    /// Deletes a volume that is not open here.
    async fn delete(&self, name: &str, if_held: IfHeld, fate: Fate) -> Result<(), Failure>;
    /// Deletes a volume for good by its id, so that it need not have a name.
    async fn delete_by_id(&self, volume: Uuid, if_held: IfHeld) -> Result<(), Failure>;
    /// Returns the deleted volumes that can be brought back.
    async fn deleted(&self) -> Result<Vec<Deleted>, Failure>;
    /// Deletes a volume for good that can be brought back. If it was brought back, it stays.
    async fn delete_kept(&self, volume: Uuid) -> Result<(), Failure>;
    /// Brings a deleted volume back, under its old name or another one. Returns the volume.
    async fn undelete(&self, volume: Uuid, to: Option<&str>) -> Result<Info, Failure>;
    /// Returns the snapshots of a volume, in the order in which they were taken.
    async fn snapshots(&self, volume: &str) -> Result<Vec<Snapshot>, Failure>;
    /// Returns what differs between two snapshots of a volume, from an offset on: at most `most` ranges.
    async fn compare(
        &self,
        volume: &str,
        snapshots: (&str, &str),
        offset: u64,
        most: usize,
    ) -> Result<Page, Failure>;
    /// Takes a snapshot of a volume, which is opened for it if necessary.
    async fn take_snapshot(&self, volume: &str, snapshot: &str) -> Result<Snapshot, Failure>;
    /// Deletes a snapshot that no client of this gateway uses. The volume is opened for it if necessary.
    async fn delete_snapshot(&self, volume: &str, snapshot: &str) -> Result<(), Failure>;
    /// Creates a volume that begins with the content of a snapshot. The volume of the snapshot is opened for
    /// it if necessary.
    async fn clone_snapshot(&self, volume: &str, snapshot: &str, name: &str) -> Result<Info, Failure>;
    /// Finds what nothing references of a volume, without opening it.
    async fn look_for_garbage(&self, name: &str) -> Result<Found, Failure>;
    /// Deletes what nothing references of a volume, which is opened for it if necessary.
    async fn collect_garbage(&self, name: &str) -> Result<Collected, Failure>;
    /// Makes a clone independent of other volumes, as far as possible. It is opened for it if necessary.
    async fn flatten(&self, name: &str) -> Result<Flattened, Failure>;
    /// Loads blocks of a volume into the cache. It is opened for it if necessary. Returns `None` if nothing
    /// says which blocks.
    async fn warm(&self, name: &str, what: Warm) -> Result<Option<Warmed>, Failure>;
    /// Returns the stage of the gateway.
    fn stage(&self) -> Stage;
    /// Returns the contents of the store at the last census, without a request to the store.
    fn known(&self) -> Option<Known>;
    /// Returns NBD URIs of a volume, one for each listener, with `{name}` in place of its name.
    fn connect(&self) -> Vec<String>;
    /// Returns the volumes that are open here, in order of name.
    fn open_volumes(&self) -> Vec<OpenVolume>;
    /// Returns the NBD connections.
    fn connections(&self) -> Vec<Connection>;
    /// Starts to end the gateway, as SIGTERM does.
    fn drain(&self);
}
