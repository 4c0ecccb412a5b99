//! Volumes and their snapshots as exports: names, commands, and the error values that clients see.
//!
//! Owns the names of exports, and the translation between the server's trait [`Export`] and volumes. It must
//! not know how a volume works. Invariants: every error of a volume reaches clients as an error value of the
//! protocol, and only what exists takes a place among the open volumes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;

use super::catalogue::Catalogue;
use super::changed_since::{self, Others};
use super::failure::{chain, command_error, open_error};
use super::open_snapshots::{Identity, OpenSnapshots};
use super::open_volumes::{OpenVolumes, Use};
use super::snapshot_export::{self, SnapshotExport};
use super::translation::{allocations, counted, description, errno, segments};
use crate::effect::{Durability, ZeroSpeed, Zeroing};
use crate::metrics::Command;
use crate::protocol::{self, Error, TransmissionFlags};
use crate::server::{
    Allocation, Export, ExportDescription, ExportError, Exports, ListEntry, OfferedContext, OpenError,
    Segment,
};
use crate::volume;
use crate::volume::format::snapshot::Snapshot;

/// The features of every volume.
const FLAGS: TransmissionFlags = TransmissionFlags::HAS_FLAGS
    .union(TransmissionFlags::SEND_FLUSH)
    .union(TransmissionFlags::SEND_FUA)
    .union(TransmissionFlags::SEND_TRIM)
    .union(TransmissionFlags::SEND_WRITE_ZEROES)
    .union(TransmissionFlags::SEND_FAST_ZERO)
    .union(TransmissionFlags::SEND_CACHE)
    .union(TransmissionFlags::CAN_MULTI_CONN);

/// Separates the name of a volume from that of its snapshot in the name of an export. No name of a volume
/// contains it.
const AT: char = '@';

/// A snapshot that a client requests.
struct Found {
    identity: Identity,
    /// All snapshots of the volume, in the order in which they were taken.
    snapshots: Arc<Vec<Snapshot>>,
}

/// The volumes of a store as exports, and their snapshots. A list contains the volumes only.
#[derive(Debug)]
pub(crate) struct VolumeExports {
    volumes: Arc<OpenVolumes>,
    snapshots: Arc<OpenSnapshots>,
    catalogue: Arc<Catalogue>,
    /// The volume to which the empty name refers.
    default: RwLock<Option<String>>,
}

impl VolumeExports {
    /// Exports all volumes by name, and their snapshots as `VOLUME@NAME`. The empty name also refers to
    /// `default`.
    pub(crate) fn new(
        volumes: Arc<OpenVolumes>,
        snapshots: Arc<OpenSnapshots>,
        catalogue: Arc<Catalogue>,
        default: Option<String>,
    ) -> Self {
        Self { volumes, snapshots, catalogue, default: RwLock::new(default) }
    }

    /// Changes the volume to which the empty name refers. `None` removes it.
    pub(crate) fn set_default(&self, default: Option<String>) {
        *self.default.write() = default;
    }

    fn resolve(&self, name: &str) -> Result<String, OpenError> {
        match name {
            "" => self.default.read().clone().ok_or_else(|| OpenError::Unknown(String::new())),
            name => Ok(name.to_owned()),
        }
    }

    /// Finds the snapshot to which the name of an export refers.
    async fn find_snapshot(&self, name: &str, volume: &str, snapshot: &str) -> Result<Found, OpenError> {
        let (id, snapshots) = match self.volumes.serving(volume) {
            Some(open) => (open.id(), Arc::new(open.snapshots())),
            None => {
                let listed = self.catalogue.snapshots(volume).await.map_err(|e| open_error(name, &e))?;
                (listed.volume, Arc::clone(&listed.snapshots))
            }
        };
        let found = snapshots.iter().find(|found| found.name == snapshot).cloned();
        let found = found.ok_or_else(|| OpenError::Unknown(name.to_owned()))?;
        Ok(Found { identity: Identity { volume: id, snapshot: found }, snapshots })
    }
}

#[async_trait]
impl Exports for VolumeExports {
    async fn list(&self) -> Result<Vec<ListEntry>, OpenError> {
        let look_up = |name: String| async move {
            let listed = match self.volumes.size_bytes(&name) {
                Some(_) => true,
                None => match self.catalogue.info(&name).await {
                    Ok(_) => true,
                    Err(error) => lists_without_description(&name, &error),
                },
            };
            listed.then_some(ListEntry { name, description: String::new() })
        };
        self.catalogue.look_up_each(look_up).await.map_err(|e| open_error("", &e))
    }

    async fn describe(&self, name: &str) -> Result<ExportDescription, OpenError> {
        let name = &*self.resolve(name)?;
        if let Some((volume, snapshot)) = name.split_once(AT) {
            let found = self.find_snapshot(name, volume, snapshot).await?;
            let size_bytes = self.snapshots.size_bytes(name, &found.identity).await?;
            return Ok(snapshot_export::describe(name, size_bytes));
        }
        let size_bytes = match self.volumes.size_bytes(name) {
            Some(size_bytes) => size_bytes,
            None => self.catalogue.info(name).await.map_err(|e| open_error(name, &e))?.size_bytes,
        };
        Ok(description(name, size_bytes, FLAGS))
    }

    /// A volume has none: what was written last is in memory and in the journal, which no comparison reads.
    async fn meta_contexts(&self, name: &str) -> Result<Vec<OfferedContext>, OpenError> {
        let name = &*self.resolve(name)?;
        let Some((volume, snapshot)) = name.split_once(AT) else { return Ok(Vec::new()) };
        let found = self.find_snapshot(name, volume, snapshot).await?;
        Ok(changed_since::contexts(volume, &found.snapshots, snapshot))
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError> {
        let name = &*self.resolve(name)?;
        if let Some((volume, snapshot)) = name.split_once(AT) {
            let found = self.find_snapshot(name, volume, snapshot).await?;
            let of = self.snapshots.open(name, &found.identity).await?;
            let others = Others::new(&self.snapshots, volume, found.identity.volume, found.snapshots);
            return Ok(Arc::new(SnapshotExport::new(of, others)));
        }
        // Only a volume that exists may count towards the limit of open volumes.
        if !self.volumes.has(name) {
            self.catalogue.find(name).await.map_err(|e| open_error(name, &e))?;
        }
        let of = self.volumes.open(name).await?;
        Ok(Arc::new(VolumeExport { of }))
    }

    async fn conceal(&self, name: &str) -> OpenError {
        match name {
            // Without a default there is nothing to look up.
            "" => OpenError::Unknown(String::new()),
            // Whether a snapshot exists is looked up only if its volume does.
            name => {
                let volume = name.split_once(AT).map_or(name, |(volume, _)| volume);
                open_error(name, &*self.catalogue.conceal(volume).await)
            }
        }
    }
}

/// Returns whether an export is listed although it cannot be described now. Clients request a description of
/// each listed export, and some give up on the whole list if one has none. An export that cannot be opened is
/// therefore only shown by `cairn volume list` and the API.
fn lists_without_description(name: &str, error: &volume::OpenError) -> bool {
    let itself = matches!(
        error,
        volume::OpenError::NoSuchVolume(_)
            | volume::OpenError::Deleting
            | volume::OpenError::Incomplete { .. }
            | volume::OpenError::Damaged { .. }
            | volume::OpenError::BrokenJournal { .. }
    );
    tracing::debug!(volume = name, "cannot describe the export: {}", chain(error));
    !itself
}

/// A volume that a client uses.
#[derive(Debug)]
struct VolumeExport {
    of: Use,
}

impl VolumeExport {
    /// Counts a failed command, and returns the error that the client sees. The volume counts the commands
    /// that succeed.
    fn failed(&self, command: Command, error: &volume::Error) -> ExportError {
        let beyond = match command {
            Command::Write | Command::WriteZeroes => Error::NoSpc,
            _ => Error::Inval,
        };
        let failure = command_error(error, beyond);
        self.of.metrics.failed(command, errno(failure.error));
        tracing::debug!(volume = self.of.name, ?command, "the command failed: {failure}");
        failure
    }
}

#[async_trait]
impl Export for VolumeExport {
    fn description(&self) -> ExportDescription {
        description(&self.of.name, self.of.volume.size_bytes(), FLAGS)
    }

    fn refused(&self, command: protocol::Command, error: Error) {
        if let Some(command) = counted(command) {
            self.of.metrics.failed(command, errno(error));
        }
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
        match self.of.volume.read(offset, u64::from(length)).await {
            Ok(read) => Ok(segments(read)),
            Err(error) => Err(ExportError { at: error.offset(), ..self.failed(Command::Read, &error) }),
        }
    }

    async fn write(&self, offset: u64, data: Bytes, durability: Durability) -> Result<(), ExportError> {
        let written = self.of.volume.write(offset, data, durability).await;
        written.map_err(|error| self.failed(Command::Write, &error))
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.of.volume.flush().await.map_err(|error| self.failed(Command::Flush, &error))
    }

    async fn trim(&self, offset: u64, length: u64, durability: Durability) -> Result<(), ExportError> {
        let zeroed = self.of.volume.zero(offset, length, Zeroing::Deallocate, durability).await;
        zeroed.map_err(|error| self.failed(Command::Trim, &error))
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        zeroing: Zeroing,
        _speed: ZeroSpeed,
        durability: Durability,
    ) -> Result<(), ExportError> {
        // Zeroing is always fast.
        let zeroed = self.of.volume.zero(offset, length, zeroing, durability).await;
        zeroed.map_err(|error| self.failed(Command::WriteZeroes, &error))
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let cached = self.of.volume.prefetch(offset, length).await;
        cached.map_err(|error| self.failed(Command::Cache, &error))
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        let extents = self.of.volume.allocation(offset, length, limit).await;
        extents.map(allocations).map_err(|error| self.failed(Command::BlockStatus, &error))
    }
}
