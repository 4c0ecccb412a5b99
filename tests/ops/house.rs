//! A gateway over a store in memory, for the tests of the admin server. It serves no clients.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cairn::gateway::{Failure, Fate, Gateway, IfHeld, Known, OpenVolume, Stage};
use cairn::metrics::Metrics;
use cairn::server::Connection;
use cairn::store::MemoryStore;
use cairn::volume::catalog::{self, Deleted, Info, Listed, Unnamed};
use cairn::volume::diff::{self, Page};
use cairn::volume::format::snapshot::Snapshot;
use cairn::volume::gc::{self, Collected, Found};
use cairn::volume::{
    DirtyBudget, Entropy, Environment, Flattened, Options as VolumeOptions, PageCache, Shrink, SnapshotError,
    Volume, Warm, Warmed,
};
use parking_lot::Mutex;
use uuid::Uuid;

pub(super) const MIB: u64 = 1 << 20;

/// The name of snapshots that clients of the gateway read.
pub(super) const READ: &str = "read";

/// A gateway over a store in memory.
pub(super) struct House {
    pub(super) env: Environment,
    pub(super) options: VolumeOptions,
    pub(super) open: Mutex<Vec<OpenVolume>>,
    pub(super) obstacles: Mutex<Vec<String>>,
    pub(super) drained: Mutex<bool>,
    pub(super) known: Mutex<Option<Known>>,
}

impl House {
    pub(super) fn new() -> Arc<Self> {
        let env = Environment {
            store: cairn::store::Classes::one(Arc::new(MemoryStore::new())),
            cache: PageCache::new(16 * MIB, MIB),
            budget: DirtyBudget::new(16 * MIB),
            entropy: Entropy::seeded(1),
            wall_clock: Arc::new(|| 1_800_000_000),
        };
        let options = VolumeOptions {
            holder_name: "here".to_owned(),
            head_interval: Duration::from_millis(10),
            ..VolumeOptions::default()
        };
        let (open, obstacles, drained, known) =
            (Mutex::default(), Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { env, options, open, obstacles, drained, known })
    }

    /// Makes a volume and opens it.
    pub(super) async fn opened(self: &Arc<Self>, metrics: &Metrics, name: &str) -> Arc<Volume> {
        let info = catalog::create(&self.env, &self.options, name, 64 * MIB, catalog::ChunkBytes(4 * MIB))
            .await
            .unwrap();
        let metrics = metrics.volume(name);
        let options = VolumeOptions { metrics: Some(metrics.clone()), ..self.options.clone() };
        let volume = Volume::open(&self.env, options, info.volume, false).await.unwrap();
        let (name, clients) = (name.to_owned(), 1);
        let open = OpenVolume { name, volume: Arc::clone(&volume), metrics, clients, is_configured: false };
        self.open.lock().push(open);
        volume
    }

    /// Makes the volume `disk` with a snapshot `monday`, and opens it.
    pub(super) async fn snapshotted(self: &Arc<Self>, metrics: &Metrics) {
        self.opened(metrics, "disk").await.snapshot("monday").await.unwrap();
    }
}

#[async_trait]
impl Gateway for House {
    async fn obstacles(&self) -> Vec<String> {
        self.obstacles.lock().clone()
    }

    async fn volumes(&self) -> Result<Vec<Listed>, Failure> {
        Ok(catalog::volumes(&self.env).await?)
    }

    async fn unnamed(&self) -> Result<Vec<Unnamed>, Failure> {
        Ok(catalog::unnamed(&self.env).await?)
    }

    async fn volume(&self, name: &str) -> Result<Info, Failure> {
        Ok(catalog::info(&self.env, name).await?)
    }

    async fn create(&self, name: &str, size: u64, chunk: Option<u64>) -> Result<Info, Failure> {
        Ok(catalog::create(
            &self.env,
            &self.options,
            name,
            size,
            catalog::ChunkBytes(chunk.unwrap_or(4 * MIB)),
        )
        .await?)
    }

    async fn resize(&self, name: &str, size_bytes: u64, shrink: Shrink) -> Result<Info, Failure> {
        catalog::resolve(&self.env, name).await?;
        let open = self.open_volumes().into_iter().find(|open| open.name == name);
        let open = open.ok_or_else(|| Failure::NotServing("the house is full".to_owned()))?;
        open.volume.resize(size_bytes, shrink).await?;
        Ok(open.volume.info(name))
    }

    async fn resolve(&self, name: &str) -> Result<Uuid, Failure> {
        Ok(catalog::resolve(&self.env, name).await?)
    }

    async fn rename(&self, name: &str, to: &str) -> Result<Info, Failure> {
        Ok(catalog::rename(&self.env, &self.options, name, to, false).await?)
    }

    async fn delete(&self, name: &str, if_held: IfHeld, fate: Fate) -> Result<(), Failure> {
        let takeover = if_held == IfHeld::TakeOver;
        match fate {
            Fate::Kept => catalog::set_aside(&self.env, &self.options, name, takeover).await.map(drop)?,
            Fate::Gone => catalog::delete(&self.env, &self.options, name, takeover).await?,
        }
        Ok(())
    }

    async fn delete_by_id(&self, volume: Uuid, if_held: IfHeld) -> Result<(), Failure> {
        Ok(catalog::delete_by_id(&self.env, &self.options, volume, if_held == IfHeld::TakeOver).await?)
    }

    async fn deleted(&self) -> Result<Vec<Deleted>, Failure> {
        Ok(catalog::deleted(&self.env).await?)
    }

    async fn delete_kept(&self, volume: Uuid) -> Result<(), Failure> {
        Ok(catalog::delete_kept(&self.env, &self.options, volume).await?)
    }

    async fn undelete(&self, volume: Uuid, to: Option<&str>) -> Result<Info, Failure> {
        Ok(catalog::undelete(&self.env, volume, to).await?)
    }

    async fn snapshots(&self, volume: &str) -> Result<Vec<Snapshot>, Failure> {
        let volume = catalog::resolve(&self.env, volume).await?;
        Ok(cairn::volume::snapshot::list(&self.env, volume).await?)
    }

    async fn compare(
        &self,
        volume: &str,
        snapshots: (&str, &str),
        offset: u64,
        most: usize,
    ) -> Result<Page, Failure> {
        let volume = catalog::resolve(&self.env, volume).await?;
        Ok(diff::page(&self.env, &self.options, volume, snapshots, offset, most).await?)
    }

    async fn take_snapshot(&self, volume: &str, snapshot: &str) -> Result<Snapshot, Failure> {
        catalog::resolve(&self.env, volume).await?;
        let open = self.open_volumes().into_iter().find(|open| open.name == volume);
        let open = open.ok_or_else(|| Failure::NotServing("the house is full".to_owned()))?;
        Ok(open.volume.snapshot(snapshot).await?)
    }

    async fn delete_snapshot(&self, volume: &str, snapshot: &str) -> Result<(), Failure> {
        catalog::resolve(&self.env, volume).await?;
        if snapshot == READ {
            return Err(Failure::InUse(format!("2 connections read {volume}@{snapshot}")));
        }
        let open = self.open_volumes().into_iter().find(|open| open.name == volume);
        let open = open.ok_or_else(|| Failure::NotServing("the house is full".to_owned()))?;
        Ok(open.volume.delete_snapshot(snapshot).await?)
    }

    async fn clone_snapshot(&self, volume: &str, snapshot: &str, name: &str) -> Result<Info, Failure> {
        catalog::resolve(&self.env, volume).await?;
        let open = self.open_volumes().into_iter().find(|open| open.name == volume);
        let open = open.ok_or_else(|| Failure::NotServing("the house is full".to_owned()))?;
        Ok(catalog::clone(&open.volume, snapshot, name).await?)
    }

    async fn look_for_garbage(&self, name: &str) -> Result<Found, Failure> {
        Ok(gc::look(&self.env, name).await?)
    }

    async fn collect_garbage(&self, name: &str) -> Result<Collected, Failure> {
        catalog::resolve(&self.env, name).await?;
        let open = self.open_volumes().into_iter().find(|open| open.name == name);
        let open = open.ok_or_else(|| Failure::NotServing("the house is full".to_owned()))?;
        Ok(gc::collect(&open.volume, None).await?)
    }

    async fn flatten(&self, name: &str) -> Result<Flattened, Failure> {
        catalog::resolve(&self.env, name).await?;
        let open = self.open_volumes().into_iter().find(|open| open.name == name);
        let open = open.ok_or_else(|| Failure::NotServing("the house is full".to_owned()))?;
        Ok(open.volume.flatten().await.map_err(SnapshotError::Volume)?)
    }

    async fn warm(&self, name: &str, what: Warm) -> Result<Option<Warmed>, Failure> {
        catalog::resolve(&self.env, name).await?;
        let open = self.open_volumes().into_iter().find(|open| open.name == name);
        let open = open.ok_or_else(|| Failure::NotServing("the house is full".to_owned()))?;
        Ok(open.volume.warm(what).await.map_err(SnapshotError::Volume)?)
    }

    fn stage(&self) -> Stage {
        Stage::Serving
    }

    fn known(&self) -> Option<Known> {
        self.known.lock().clone()
    }

    fn connect(&self) -> Vec<String> {
        vec!["nbd://127.0.0.1:10809/{name}".to_owned()]
    }

    fn open_volumes(&self) -> Vec<OpenVolume> {
        self.open.lock().clone()
    }

    fn connections(&self) -> Vec<Connection> {
        vec![Connection { id: 7, peer: "127.0.0.1:4711".to_owned(), export: Some("disk".to_owned()) }]
    }

    fn drain(&self) {
        *self.drained.lock() = true;
    }
}
