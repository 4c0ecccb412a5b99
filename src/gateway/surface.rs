//! What the admin server may ask of a gateway, and what it is told.
//!
//! It must not know HTTP. A call changes nothing but what it says.

use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use crate::metrics::VolumeMetrics;
use crate::server::Connection;
use crate::volume::catalog::{Info, Listed, Unnamed};
use crate::volume::{OpenError, Volume};

/// A volume that is open here.
#[derive(Clone, Debug)]
pub struct OpenVolume {
    /// Its name.
    pub name: String,
    /// The volume.
    pub volume: Arc<Volume>,
    /// Where it counts.
    pub metrics: VolumeMetrics,
    /// NBD connections that use it.
    pub clients: usize,
}

/// How far the gateway has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not every configured volume is open yet.
    Starting,
    /// It serves.
    Serving,
    /// It drains and closes its volumes.
    Ending,
}

/// The store as it was read last.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its volumes by name; of very many, the first.
    pub listed: Vec<Listed>,
    /// When it was read, in seconds since 1970.
    pub at_seconds: u64,
}

/// Why the gateway cannot do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// It starts or ends.
    #[error("{0}")]
    NotServing(String),
    /// What the volume's layer says.
    #[error(transparent)]
    Volume(#[from] Arc<OpenError>),
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::Volume(Arc::new(error))
    }
}

/// What the admin server asks of the process around it. A call may be dropped at any await point.
#[async_trait]
pub trait Gateway: Send + Sync + 'static {
    /// What keeps it from serving, one line each; empty where the store answers and every configured volume
    /// is open.
    async fn obstacles(&self) -> Vec<String>;
    /// Every name of the store, in order, and the volume that it stands for.
    async fn volumes(&self) -> Result<Vec<Listed>, Failure>;
    /// The volumes for which no name stands.
    async fn unnamed(&self) -> Result<Vec<Unnamed>, Failure>;
    /// One volume.
    async fn volume(&self, name: &str) -> Result<Info, Failure>;
    /// Makes a volume of holes; without `chunk_bytes`, with chunks as configured.
    async fn create(&self, name: &str, size_bytes: u64, chunk_bytes: Option<u64>) -> Result<Info, Failure>;
    /// Deletes a volume that is not open here; with `takeover` although another gateway holds it.
    async fn delete(&self, name: &str, takeover: bool) -> Result<(), Failure>;
    /// Deletes a volume by its id, so that it need not have a name; with `takeover` although another gateway
    /// holds it.
    async fn delete_by_id(&self, volume: Uuid, takeover: bool) -> Result<(), Failure>;
    /// How far it has come.
    fn stage(&self) -> Stage;
    /// The store as it was read last; asks it nothing.
    fn known(&self) -> Option<Known>;
    /// URIs of a volume for NBD clients, with `{name}` for its name, one for each listener.
    fn connect(&self) -> Vec<String>;
    /// The volumes that are open here, in order of name.
    fn open_volumes(&self) -> Vec<OpenVolume>;
    /// The NBD connections.
    fn connections(&self) -> Vec<Connection>;
    /// Begins to end, as on SIGTERM.
    fn drain(&self);
}
