//! A snapshot, or a volume that no gateway holds, as a disk that is read from the store.
//!
//! Owns the opening and closing, and must not know where the content goes. Invariant: the content does not
//! change while the disk is open: a snapshot never does, and a volume is held.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::endpoint::Exported;
use super::environment::for_reading;
use super::error::Error;
use super::opened;
use super::settings::Options;
use crate::effect::Durability;
use crate::gateway::chain;
use crate::metrics::Metrics;
use crate::protocol::{Error as CommandError, TransmissionFlags};
use crate::server::{Allocation, Export, ExportDescription, ExportError, Segment};
use crate::volume::{self, Extent, Side, SnapshotDisk, Volume, catalog};

/// An open disk.
#[derive(Clone, Debug)]
pub(super) enum StoredDisk {
    Volume(String, Arc<Volume>),
    Snapshot(Arc<SnapshotDisk>),
}

impl StoredDisk {
    pub(super) async fn open(of: &Exported, options: Options) -> Result<Self, Error> {
        match of {
            Exported::Volume(name) => match opened::open(options, name).await {
                Ok(volume) => Ok(Self::Volume(name.clone(), volume)),
                Err(Error::HeldElsewhere { name, holder }) => Err(Error::ExportHeld { name, holder }),
                Err(error) => Err(error),
            },
            Exported::Snapshot(of) => {
                let volume = options.volume.clone();
                let env = for_reading(options, &Metrics::new()).await?;
                let failed = |source| Error::Volume { name: of.volume.clone(), source };
                let id = catalog::resolve(&env, &of.volume).await.map_err(failed)?;
                let disk = SnapshotDisk::open(&env, &volume, id, &of.name).await.map_err(failed)?;
                Ok(Self::Snapshot(disk))
            }
        }
    }

    /// Size of the disk in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Self::Volume(_, volume) => volume.size_bytes(),
            Self::Snapshot(disk) => disk.size_bytes(),
        }
    }

    /// Returns what identifies the content, also for another run. A volume may have another one then.
    pub(super) fn identity(&self) -> Option<String> {
        match self {
            Self::Volume(..) => None,
            Self::Snapshot(disk) => Some(disk.identity()),
        }
    }

    /// Returns the content for a comparison by the maps.
    pub(super) async fn side(&self) -> Result<Side, volume::Error> {
        match self {
            Self::Volume(_, volume) => Side::of_volume(volume).await,
            Self::Snapshot(disk) => Ok(Side::of_snapshot(disk)),
        }
    }

    /// Closes a volume, so that a gateway can open it at once.
    pub(super) async fn close(&self) -> Result<(), Error> {
        match self {
            Self::Volume(name, volume) => opened::close(volume, name).await,
            Self::Snapshot(_) => Ok(()),
        }
    }
}

fn failed(error: &volume::Error) -> ExportError {
    ExportError::new(CommandError::Io, chain(error))
}

fn segment(segment: volume::Segment) -> Segment {
    match segment {
        volume::Segment::Data(data) => Segment::Data(data),
        volume::Segment::Zero(length) => {
            Segment::Zero(u32::try_from(length).expect("a part of a READ of 32 bits"))
        }
    }
}

fn allocation(extent: Extent) -> Allocation {
    Allocation { length_bytes: extent.length, hole: extent.hole, zero: extent.zero }
}

#[async_trait]
impl Export for StoredDisk {
    fn description(&self) -> ExportDescription {
        let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
        ExportDescription { flags, ..ExportDescription::new("", self.size_bytes()) }
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
        let length = u64::from(length);
        let read = match self {
            Self::Volume(_, volume) => volume.read(offset, length).await,
            Self::Snapshot(disk) => disk.read(offset, length).await,
        };
        Ok(read.map_err(|error| failed(&error))?.into_iter().map(segment).collect())
    }

    async fn write(&self, _offset: u64, _data: Bytes, _durability: Durability) -> Result<(), ExportError> {
        Err(ExportError::new(CommandError::Perm, "the disk is read-only"))
    }

    async fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        let extents = match self {
            Self::Volume(_, volume) => volume.allocation(offset, length, limit).await,
            Self::Snapshot(disk) => disk.allocation(offset, length, limit).await,
        };
        Ok(extents.map_err(|error| failed(&error))?.into_iter().map(allocation).collect())
    }
}
