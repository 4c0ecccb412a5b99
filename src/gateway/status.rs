//! The gateway's implementation of what the admin server may request.
//!
//! Owns the stage of the gateway, and must not know HTTP. Invariant: it answers from before the gateway
//! serves until after it has drained.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

use super::catalogue::{Catalogue, list_snapshots};
use super::census::Census;
use super::failure::chain;
use super::open_snapshots::OpenSnapshots;
use super::open_volumes::{OpenVolumes, Use};
use super::scheduler::export;
use super::store_check::StoreCheck;
use super::surface::{Failure, Fate, Gateway, IfHeld, Known, OpenVolume, Stage as Shown};
use crate::server::{Connection, Server};
use crate::volume::catalog::{self, ChunkBytes, Deleted, Info, Listed, Unnamed};
use crate::volume::diff::{self, Page};
use crate::volume::format::snapshot::Snapshot;
use crate::volume::gc::{self, Collected, Found};
use crate::volume::{self, Environment, Flattened, OpenError, Shrink, SnapshotError, Warm, Warmed};

/// What can be queried while the gateway serves.
pub(crate) struct Serving {
    pub(crate) env: Environment,
    pub(crate) volumes: Arc<OpenVolumes>,
    pub(crate) snapshots: Arc<OpenSnapshots>,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) store_check: StoreCheck,
    pub(crate) server: Arc<Server>,
    pub(crate) census: Arc<Census>,
    /// NBD URIs of a volume, with `{name}` in place of its name.
    pub(crate) connect: Vec<String>,
    /// Options for new volumes.
    pub(crate) options: volume::Options,
    /// Chunk size of new volumes in bytes, unless the request contains one.
    pub(crate) chunk_bytes: u64,
}

enum Stage {
    Starting,
    Serving(Arc<Serving>),
    Ending,
}

impl Serving {
    /// Opens a volume as for a client, but only if it exists: what does not exist takes no place among the
    /// open volumes.
    async fn join(&self, volume: &str) -> Result<Use, Failure> {
        if !self.volumes.has(volume) {
            self.catalogue.find(volume).await?;
        }
        Ok(self.volumes.join(volume).await?)
    }

    /// Fails if clients of this gateway read snapshots of a volume.
    fn check_unread(&self, volume: Uuid) -> Result<(), Failure> {
        match self.snapshots.clients(volume, None) {
            0 => Ok(()),
            clients => Err(Failure::InUse(format!(
                "connections to this gateway that read or compare snapshots of the volume: {clients}"
            ))),
        }
    }
}

/// The state of the gateway, from before it serves until its end.
pub(crate) struct GatewayStatus {
    stage: Mutex<Stage>,
    end: Notify,
}

impl GatewayStatus {
    /// Creates the state of a gateway that is starting.
    pub(crate) fn starting() -> Arc<Self> {
        Arc::new(Self { stage: Mutex::new(Stage::Starting), end: Notify::new() })
    }

    /// Notes that all listeners accept and all configured volumes are open.
    pub(crate) fn serves(&self, serving: Serving) {
        *self.stage.lock() = Stage::Serving(Arc::new(serving));
    }

    /// Notes that the gateway is draining.
    pub(crate) fn ends(&self) {
        *self.stage.lock() = Stage::Ending;
    }

    /// Waits until somebody has requested the end of the gateway.
    pub(crate) async fn asked_to_end(&self) {
        self.end.notified().await;
    }

    fn serving(&self) -> Result<Arc<Serving>, Failure> {
        match &*self.stage.lock() {
            Stage::Starting => {
                Err(Failure::NotServing("the gateway is starting: not every volume is open yet".to_owned()))
            }
            Stage::Serving(serving) => Ok(Arc::clone(serving)),
            Stage::Ending => Err(Failure::NotServing("the gateway is shutting down".to_owned())),
        }
    }
}

#[async_trait]
impl Gateway for GatewayStatus {
    async fn obstacles(&self) -> Vec<String> {
        let serving = match self.serving() {
            Ok(serving) => serving,
            Err(failure) => return vec![failure.to_string()],
        };
        let mut obstacles = serving.volumes.lost();
        if let Err(error) = serving.store_check.run().await {
            obstacles.push(format!("cannot read the store: {}", chain(&*error)));
        }
        obstacles
    }

    async fn volumes(&self) -> Result<Vec<Listed>, Failure> {
        let serving = self.serving()?;
        let catalogue = &serving.catalogue;
        let look_up = |name: String| async move {
            let found = catalogue.info(&name).await.map(|info| (*info).clone());
            Some(Listed { name, found }).filter(Listed::stands)
        };
        Ok(catalogue.look_up_each(look_up).await?)
    }

    async fn unnamed(&self) -> Result<Vec<Unnamed>, Failure> {
        Ok(catalog::unnamed(&self.serving()?.env).await?)
    }

    async fn volume(&self, name: &str) -> Result<Info, Failure> {
        let info = self.serving()?.catalogue.info(name).await?;
        Ok((*info).clone())
    }

    async fn create(&self, name: &str, size_bytes: u64, chunk_bytes: Option<u64>) -> Result<Info, Failure> {
        let serving = self.serving()?;
        let chunk = ChunkBytes(chunk_bytes.unwrap_or(serving.chunk_bytes));
        let made = catalog::create(&serving.env, &serving.options, name, size_bytes, chunk).await?;
        serving.catalogue.forget();
        serving.census.has_changed();
        Ok(made)
    }

    async fn resize(&self, name: &str, size_bytes: u64, shrink: Shrink) -> Result<Info, Failure> {
        let serving = self.serving()?;
        let of = serving.join(name).await?;
        let resized = of.volume.resize(size_bytes, shrink).await;
        serving.catalogue.forget();
        serving.census.has_changed();
        resized?;
        Ok(of.volume.info(name))
    }

    async fn resolve(&self, name: &str) -> Result<Uuid, Failure> {
        Ok(catalog::resolve(&self.serving()?.env, name).await?)
    }

    async fn rename(&self, name: &str, to: &str) -> Result<Info, Failure> {
        let serving = self.serving()?;
        if serving.volumes.is_configured(name) {
            return Err(Failure::InUse(format!(
                "{name} is in the configuration of this gateway, which would miss it or create it anew: \
                 remove it from volumes.create and volumes.open and reload, and add the new name after the \
                 renaming"
            )));
        }
        serving.check_unread(catalog::resolve(&serving.env, name).await?)?;
        // Under a stable name, it would take the volume from this gateway if a client opens it just now.
        let options = volume::Options { holder_is_stable: false, ..serving.options.clone() };
        let renamed = catalog::rename(&serving.env, &options, name, to, false).await;
        serving.catalogue.forget();
        serving.census.has_changed();
        match renamed {
            Err(OpenError::Held { holder }) => Err(Failure::InUse(format!(
                "{name} is in use by {holder}: a volume can be renamed only while no gateway has it open"
            ))),
            renamed => Ok(renamed?),
        }
    }

    async fn delete(&self, name: &str, if_held: IfHeld, fate: Fate) -> Result<(), Failure> {
        let serving = self.serving()?;
        if serving.snapshots.has_any() {
            serving.check_unread(catalog::resolve(&serving.env, name).await?)?;
        }
        let (env, options, takeover) = (&serving.env, &serving.options, if_held == IfHeld::TakeOver);
        let deleted = match fate {
            Fate::Kept => catalog::set_aside(env, options, name, takeover).await.map(drop),
            Fate::Gone => catalog::delete(env, options, name, takeover).await,
        };
        serving.catalogue.forget();
        serving.census.has_changed();
        Ok(deleted?)
    }

    async fn delete_by_id(&self, volume: Uuid, if_held: IfHeld) -> Result<(), Failure> {
        let serving = self.serving()?;
        serving.check_unread(volume)?;
        let deleted =
            catalog::delete_by_id(&serving.env, &serving.options, volume, if_held == IfHeld::TakeOver).await;
        serving.catalogue.forget();
        serving.census.has_changed();
        Ok(deleted?)
    }

    async fn deleted(&self) -> Result<Vec<Deleted>, Failure> {
        Ok(catalog::deleted(&self.serving()?.env).await?)
    }

    async fn delete_kept(&self, volume: Uuid) -> Result<(), Failure> {
        let serving = self.serving()?;
        serving.check_unread(volume)?;
        let deleted = catalog::delete_kept(&serving.env, &serving.options, volume).await;
        serving.catalogue.forget();
        serving.census.has_changed();
        Ok(deleted?)
    }

    async fn undelete(&self, volume: Uuid, to: Option<&str>) -> Result<Info, Failure> {
        let serving = self.serving()?;
        let info = catalog::undelete(&serving.env, volume, to).await;
        serving.catalogue.forget();
        serving.census.has_changed();
        Ok(info?)
    }

    async fn snapshots(&self, volume: &str) -> Result<Vec<Snapshot>, Failure> {
        let serving = self.serving()?;
        match serving.volumes.serving(volume) {
            Some(open) => Ok(open.snapshots()),
            None => Ok(list_snapshots(&serving.env, volume).await?.snapshots.to_vec()),
        }
    }

    async fn compare(
        &self,
        volume: &str,
        snapshots: (&str, &str),
        offset: u64,
        most: usize,
    ) -> Result<Page, Failure> {
        let serving = self.serving()?;
        let id = catalog::resolve(&serving.env, volume).await?;
        Ok(diff::page(&serving.env, &serving.options, id, snapshots, offset, most).await?)
    }

    async fn take_snapshot(&self, volume: &str, snapshot: &str) -> Result<Snapshot, Failure> {
        let serving = self.serving()?;
        let of = serving.join(volume).await?;
        let taken = of.volume.snapshot(snapshot).await;
        export(&of.volume, &of.metrics);
        serving.catalogue.forget();
        Ok(taken?)
    }

    async fn delete_snapshot(&self, volume: &str, snapshot: &str) -> Result<(), Failure> {
        let serving = self.serving()?;
        let of = serving.join(volume).await?;
        let clients = serving.snapshots.clients(of.volume.id(), Some(snapshot));
        if clients > 0 {
            return Err(Failure::InUse(format!(
                "connections to this gateway that read {volume}@{snapshot} or compare with it: {clients}"
            )));
        }
        let deleted = of.volume.delete_snapshot(snapshot).await;
        export(&of.volume, &of.metrics);
        serving.catalogue.forget();
        Ok(deleted?)
    }

    async fn clone_snapshot(&self, volume: &str, snapshot: &str, name: &str) -> Result<Info, Failure> {
        let serving = self.serving()?;
        let of = serving.join(volume).await?;
        let made = catalog::clone(&of.volume, snapshot, name).await;
        serving.catalogue.forget();
        serving.census.has_changed();
        Ok(made?)
    }

    async fn look_for_garbage(&self, name: &str) -> Result<Found, Failure> {
        Ok(gc::look(&self.serving()?.env, name).await?)
    }

    async fn collect_garbage(&self, name: &str) -> Result<Collected, Failure> {
        let of = self.serving()?.join(name).await?;
        Ok(gc::collect(&of.volume, None).await?)
    }

    async fn flatten(&self, name: &str) -> Result<Flattened, Failure> {
        let serving = self.serving()?;
        let of = serving.join(name).await?;
        let flattened = serving.volumes.flatten(of).await;
        serving.catalogue.forget();
        Ok(flattened.map_err(SnapshotError::Volume)?)
    }

    async fn warm(&self, name: &str, what: Warm) -> Result<Option<Warmed>, Failure> {
        let of = self.serving()?.join(name).await?;
        Ok(of.volume.warm(what).await.map_err(SnapshotError::Volume)?)
    }

    fn stage(&self) -> Shown {
        match &*self.stage.lock() {
            Stage::Starting => Shown::Starting,
            Stage::Serving(_) => Shown::Serving,
            Stage::Ending => Shown::Ending,
        }
    }

    fn known(&self) -> Option<Known> {
        self.serving().ok()?.census.known()
    }

    fn connect(&self) -> Vec<String> {
        self.serving().map(|serving| serving.connect.clone()).unwrap_or_default()
    }

    fn open_volumes(&self) -> Vec<OpenVolume> {
        self.serving().map(|serving| serving.volumes.reports()).unwrap_or_default()
    }

    fn connections(&self) -> Vec<Connection> {
        self.serving().map(|serving| serving.server.connections()).unwrap_or_default()
    }

    fn drain(&self) {
        self.end.notify_one();
    }
}
