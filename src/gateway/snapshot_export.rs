//! A snapshot as an export that can only be read.
//!
//! Owns the translation between the server's trait [`Export`] and a snapshot, and must not know how a
//! snapshot is found or kept open. Invariant: no command changes anything.

use async_trait::async_trait;
use bytes::Bytes;

use super::changed_since::Others;
use super::failure::{chain, command_error};
use super::open_snapshots::SnapshotUse;
use super::translation::{allocations, counted, description, dirtiness, errno, segments};
use crate::effect::Durability;
use crate::metrics::Command;
use crate::protocol::{self, Error, TransmissionFlags};
use crate::server::{
    Allocation, ContextStatus, Export, ExportDescription, ExportError, OfferedContext, Segment,
};
use crate::volume::{self, DiffError, diff};

/// The features of every snapshot. Connections need nothing to agree on, because nothing changes.
const FLAGS: TransmissionFlags = TransmissionFlags::HAS_FLAGS
    .union(TransmissionFlags::READ_ONLY)
    .union(TransmissionFlags::SEND_FLUSH)
    .union(TransmissionFlags::SEND_CACHE)
    .union(TransmissionFlags::CAN_MULTI_CONN);

/// Describes a snapshot to clients.
pub(super) fn describe(name: &str, size_bytes: u64) -> ExportDescription {
    description(name, size_bytes, FLAGS)
}

/// A snapshot that a client uses.
#[derive(Debug)]
pub(super) struct SnapshotExport {
    of: SnapshotUse,
    others: Others,
}

impl SnapshotExport {
    /// `others` are the snapshots of the same volume.
    pub(super) fn new(of: SnapshotUse, others: Others) -> Self {
        Self { of, others }
    }

    /// Counts a failed command, and returns the error that the client sees. The disk counts the commands that
    /// succeed.
    fn failed(&self, command: Command, error: &volume::Error) -> ExportError {
        self.note(command, command_error(error, Error::Inval))
    }

    fn note(&self, command: Command, failure: ExportError) -> ExportError {
        self.of.metrics.failed(command, errno(failure.error));
        tracing::debug!(snapshot = self.of.name, ?command, "the command failed: {failure}");
        failure
    }

    /// Converts the error of a comparison. If only the other snapshot was deleted, this is no reason for the
    /// client to leave, which ESHUTDOWN would be.
    fn not_compared(&self, error: &DiffError) -> ExportError {
        match error {
            DiffError::Volume(volume::Error::Stopped(_)) if !self.of.disk.is_deleted() => {
                ExportError::new(Error::Io, chain(error))
            }
            DiffError::Volume(error) => command_error(error, Error::Inval),
            DiffError::Open(_) | DiffError::Unrelated => ExportError::new(Error::Io, chain(error)),
        }
    }

    async fn changed(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<ContextStatus>, ExportError> {
        let before = self.others.open(context, &self.of.disk).await?;
        let compared = diff::portions((&before, &self.of.disk), offset, length, limit).await;
        compared.map(dirtiness).map_err(|error| self.not_compared(&error))
    }
}

#[async_trait]
impl Export for SnapshotExport {
    fn description(&self) -> ExportDescription {
        describe(&self.of.name, self.of.disk.size_bytes())
    }

    fn refused(&self, command: protocol::Command, error: Error) {
        if let Some(command) = counted(command) {
            self.of.metrics.failed(command, errno(error));
        }
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
        match self.of.disk.read(offset, u64::from(length)).await {
            Ok(read) => Ok(segments(read)),
            Err(error) => Err(ExportError { at: error.offset(), ..self.failed(Command::Read, &error) }),
        }
    }

    async fn write(&self, _offset: u64, _data: Bytes, _durability: Durability) -> Result<(), ExportError> {
        Err(ExportError::new(Error::Perm, "the export is read-only"))
    }

    /// Everything is durable since before the snapshot existed.
    async fn flush(&self) -> Result<(), ExportError> {
        self.of.metrics.succeeded(Command::Flush, 0);
        Ok(())
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let cached = self.of.disk.prefetch(offset, length).await;
        cached.map_err(|error| self.failed(Command::Cache, &error))
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        let extents = self.of.disk.allocation(offset, length, limit).await;
        extents.map(allocations).map_err(|error| self.failed(Command::BlockStatus, &error))
    }

    fn meta_contexts(&self) -> Vec<OfferedContext> {
        self.others.contexts(&self.of.disk.snapshot().name)
    }

    async fn context_status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<ContextStatus>, ExportError> {
        let changed = self.changed(context, offset, length, limit).await;
        let extents = changed.map_err(|failure| self.note(Command::BlockStatus, failure))?;
        let told = extents.iter().map(|extent| extent.length_bytes).sum();
        self.of.metrics.succeeded(Command::BlockStatus, told);
        Ok(extents)
    }
}
