//! What the admin server is told of this gateway.

use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use std::sync::Arc;

use super::catalogue::Catalogue;
use super::error::chain;
use super::open_volumes::OpenVolumes;
use super::volume::time;
use crate::admin::{Gateway, VolumeReport};
use crate::volume::OpenError;

/// How long the store may take to show that it is there.
const STORE_PATIENCE: Duration = Duration::from_secs(5);
/// Volumes looked up at a time.
const CONCURRENT_LOOKUPS: usize = 16;

/// What there is to ask, once it serves.
#[derive(Clone)]
struct Serving {
    volumes: Arc<OpenVolumes>,
    catalogue: Arc<Catalogue>,
}

enum Stage {
    Starting,
    Serving(Serving),
    Ending,
}

/// The gateway, from before it serves to its end.
pub(super) struct GatewayStatus(Mutex<Stage>);

impl GatewayStatus {
    /// It starts.
    pub(super) fn starting() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Stage::Starting)))
    }

    /// All listeners accept, all configured volumes are open.
    pub(super) fn serves(&self, volumes: Arc<OpenVolumes>, catalogue: Arc<Catalogue>) {
        *self.0.lock() = Stage::Serving(Serving { volumes, catalogue });
    }

    /// It drains.
    pub(super) fn ends(&self) {
        *self.0.lock() = Stage::Ending;
    }

    fn serving(&self) -> Result<Serving, String> {
        match &*self.0.lock() {
            Stage::Starting => Err("starting: not every volume is open yet".to_owned()),
            Stage::Serving(serving) => Ok(serving.clone()),
            Stage::Ending => Err("shutting down".to_owned()),
        }
    }
}

#[async_trait]
impl Gateway for GatewayStatus {
    async fn obstacles(&self) -> Vec<String> {
        let Serving { volumes, catalogue } = match self.serving() {
            Ok(serving) => serving,
            Err(why) => return vec![why],
        };
        let mut obstacles = volumes.lost();
        match tokio::time::timeout(STORE_PATIENCE, catalogue.names()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => obstacles.push(format!("the store cannot be read: {}", chain(&*error))),
            Err(_) => obstacles.push(format!("the store did not answer within {STORE_PATIENCE:?}")),
        }
        obstacles
    }

    async fn volumes(&self) -> Result<Vec<VolumeReport>, String> {
        let Serving { volumes, catalogue } = self.serving()?;
        let names = catalogue.names().await.map_err(|e| chain(&*e))?;
        let (volumes, catalogue) = (&volumes, &catalogue);
        let reports = stream::iter(names.iter().cloned()).map(|name| async move {
            let info = match catalogue.info(&name).await {
                Ok(info) => info,
                // Deleted since it was listed.
                Err(error) if matches!(*error, OpenError::NoSuchVolume(_) | OpenError::Deleting) => {
                    return Ok(None);
                }
                Err(error) => return Err(format!("{name}: {}", chain(&*error))),
            };
            Ok(Some(VolumeReport {
                id: info.volume.to_string(),
                size_bytes: info.size_bytes,
                chunk_bytes: info.chunk_bytes,
                created_at: time(info.created_at_seconds),
                epoch: info.epoch,
                holder: info.holder.clone(),
                open: volumes.report(&name),
                name,
            }))
        });
        let found: Vec<Option<VolumeReport>> = reports.buffered(CONCURRENT_LOOKUPS).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }
}
