//! Volumes as exports: names, commands, and the error values that clients see.
//!
//! Owns the translation between the server's trait [`Export`] and volumes, and must not know how a volume
//! works. Invariants: every error of a volume reaches clients as an error value of the protocol, and only a
//! volume that exists takes a place among the open ones.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;

use super::catalogue::Catalogue;
use super::failure::{chain, command_error, open_error};
use super::open_volumes::{OpenVolumes, Use};
use crate::effect::{Durability, ZeroSpeed, Zeroing};
use crate::metrics::{Command, Errno};
use crate::protocol::{self, Error, TransmissionFlags};
use crate::server::{
    Allocation, Export, ExportDescription, ExportError, Exports, ListEntry, OpenError, Segment,
};
use crate::volume;

/// Minimum block size in bytes: volumes accept any alignment.
const MINIMUM_BLOCK_BYTES: u32 = 1;
/// Preferred block size in bytes: the unit in which volumes track changes.
const PREFERRED_BLOCK_BYTES: u32 = 4096;
/// Maximum payload in bytes.
const MAXIMUM_BLOCK_BYTES: u32 = 64 << 20;

/// The features of every volume.
const FLAGS: TransmissionFlags = TransmissionFlags::HAS_FLAGS
    .union(TransmissionFlags::SEND_FLUSH)
    .union(TransmissionFlags::SEND_FUA)
    .union(TransmissionFlags::SEND_TRIM)
    .union(TransmissionFlags::SEND_WRITE_ZEROES)
    .union(TransmissionFlags::SEND_FAST_ZERO)
    .union(TransmissionFlags::SEND_CACHE)
    .union(TransmissionFlags::CAN_MULTI_CONN);

/// The volumes of a store as exports.
#[derive(Debug)]
pub(crate) struct VolumeExports {
    volumes: Arc<OpenVolumes>,
    catalogue: Arc<Catalogue>,
    /// The volume to which the empty name refers.
    default: RwLock<Option<String>>,
}

impl VolumeExports {
    /// Exports all volumes by name. The empty name also refers to `default`.
    pub(crate) fn new(volumes: Arc<OpenVolumes>, catalogue: Arc<Catalogue>, default: Option<String>) -> Self {
        Self { volumes, catalogue, default: RwLock::new(default) }
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
        let size_bytes = match self.volumes.size_bytes(name) {
            Some(size_bytes) => size_bytes,
            None => self.catalogue.info(name).await.map_err(|e| open_error(name, &e))?.size_bytes,
        };
        Ok(description(name, size_bytes))
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError> {
        let name = &*self.resolve(name)?;
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
            name => open_error(name, &*self.catalogue.conceal(name).await),
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

fn description(name: &str, size_bytes: u64) -> ExportDescription {
    ExportDescription {
        name: name.to_owned(),
        description: String::new(),
        size_bytes,
        flags: FLAGS,
        minimum_block_bytes: MINIMUM_BLOCK_BYTES,
        preferred_block_bytes: PREFERRED_BLOCK_BYTES,
        maximum_block_bytes: MAXIMUM_BLOCK_BYTES,
    }
}

/// A volume that a client uses.
#[derive(Debug)]
struct VolumeExport {
    of: Use,
}

impl VolumeExport {
    /// Waits for a command. The volume counts successful commands; this counts the failures that clients see.
    async fn count<T>(
        &self,
        command: Command,
        work: impl Future<Output = Result<T, volume::Error>> + Send,
    ) -> Result<T, ExportError> {
        let beyond = match command {
            Command::Write | Command::WriteZeroes => Error::NoSpc,
            _ => Error::Inval,
        };
        work.await.map_err(|error| {
            let failure = command_error(&error, beyond);
            self.of.metrics.failed(command, errno(failure.error));
            tracing::debug!(volume = self.of.name, ?command, "the command failed: {failure}");
            failure
        })
    }
}

/// Returns the command for metrics. `None` for commands that never reach an export.
fn counted(command: protocol::Command) -> Option<Command> {
    use protocol::Command as Asked;
    Some(match command {
        Asked::Read => Command::Read,
        Asked::Write => Command::Write,
        Asked::Flush => Command::Flush,
        Asked::Trim => Command::Trim,
        Asked::Cache => Command::Cache,
        Asked::WriteZeroes => Command::WriteZeroes,
        Asked::BlockStatus => Command::BlockStatus,
        Asked::Disc | Asked::Resize | Asked::Unknown(_) => return None,
    })
}

fn errno(error: Error) -> Errno {
    match error {
        Error::Perm => Errno::Perm,
        Error::Io => Errno::Io,
        Error::NoMem => Errno::NoMem,
        Error::Inval => Errno::Inval,
        Error::NoSpc => Errno::NoSpc,
        Error::Overflow => Errno::Overflow,
        Error::NotSup => Errno::NotSup,
        Error::Shutdown => Errno::Shutdown,
        Error::Unknown(_) => Errno::Other,
    }
}

#[async_trait]
impl Export for VolumeExport {
    fn description(&self) -> ExportDescription {
        description(&self.of.name, self.of.volume.size_bytes())
    }

    fn refused(&self, command: protocol::Command, error: Error) {
        if let Some(command) = counted(command) {
            self.of.metrics.failed(command, errno(error));
        }
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
        let length = u64::from(length);
        let read = self.of.volume.read(offset, length).await;
        let at = read.as_ref().err().and_then(volume::Error::offset);
        let failed = |failure| ExportError { at, ..failure };
        let segments = self.count(Command::Read, async { read }).await.map_err(failed)?;
        let zero = |length| Segment::Zero(u32::try_from(length).expect("a part of a READ of 32 bits"));
        let convert = |segment| match segment {
            volume::Segment::Data(data) => Segment::Data(data),
            volume::Segment::Zero(length) => zero(length),
        };
        Ok(segments.into_iter().map(convert).collect())
    }

    async fn write(&self, offset: u64, data: Bytes, durability: Durability) -> Result<(), ExportError> {
        self.count(Command::Write, self.of.volume.write(offset, data, durability)).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.count(Command::Flush, self.of.volume.flush()).await
    }

    async fn trim(&self, offset: u64, length: u64, durability: Durability) -> Result<(), ExportError> {
        let work = self.of.volume.zero(offset, length, Zeroing::Deallocate, durability);
        self.count(Command::Trim, work).await
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
        let work = self.of.volume.zero(offset, length, zeroing, durability);
        self.count(Command::WriteZeroes, work).await
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.count(Command::Cache, self.of.volume.prefetch(offset, length)).await
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        let work = self.of.volume.allocation(offset, length, limit);
        let extents = self.count(Command::BlockStatus, work).await?;
        let convert = |e: volume::Extent| Allocation { length_bytes: e.length, hole: e.hole, zero: e.zero };
        Ok(extents.into_iter().map(convert).collect())
    }
}
