//! The traits that the server serves: [`Exports`] (the names) and [`Export`] (one disk).
//!
//! The server owns these traits; other layers implement them, for example for volumes, plain files and
//! mirrors. This file must not know what a volume is. Invariant: the server checks every request against
//! [`ExportDescription`] before it calls an [`Export`], so ranges lie within the size, lengths are not zero,
//! and a read-only export gets no writes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::effect::{Durability, ZeroSpeed, Zeroing};
use crate::protocol::{AllocationFlags, Command, Error, TransmissionFlags};

/// What clients learn about an export. It does not change while the export is open; only new connections see
/// a resize.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportDescription {
    /// Canonical name (`NBD_INFO_NAME`).
    pub name: String,
    /// Description for people (`NBD_INFO_DESCRIPTION`); empty if there is none.
    pub description: String,
    /// Size of the export in bytes.
    pub size_bytes: u64,
    /// What the export supports. The server adds the flags for what it implements itself (`SEND_DF`).
    pub flags: TransmissionFlags,
    /// Minimum block size in bytes, a power of two (`NBD_INFO_BLOCK_SIZE`).
    pub minimum_block_bytes: u32,
    /// Preferred block size in bytes, a power of two.
    pub preferred_block_bytes: u32,
    /// Maximum payload of one READ or WRITE in bytes.
    pub maximum_block_bytes: u32,
}

impl ExportDescription {
    /// Describes a disk that supports only READ and WRITE, at any byte offset, with payloads of up to 32 MiB.
    /// Set [`ExportDescription::flags`] to advertise more.
    #[must_use]
    pub fn new(name: impl Into<String>, size_bytes: u64) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            size_bytes,
            flags: TransmissionFlags::HAS_FLAGS,
            minimum_block_bytes: 1,
            preferred_block_bytes: 4096,
            maximum_block_bytes: 32 << 20,
        }
    }
}

/// A part of the result of a READ. Segments are in order and have no gaps between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes of the export.
    Data(Bytes),
    /// This many zero bytes, known to be zero without reading data.
    Zero(u32),
}

impl Segment {
    /// Number of bytes of the export that this segment covers.
    #[must_use]
    pub fn length_bytes(&self) -> u64 {
        match self {
            Self::Data(data) => u64::try_from(data.len()).expect("a usize fits 64 bits"),
            Self::Zero(length) => u64::from(*length),
        }
    }
}

/// An extent of BLOCK_STATUS (`base:allocation`). Extents are in order and have no gaps between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Length of the extent in bytes.
    pub length_bytes: u64,
    /// `NBD_STATE_HOLE`: no storage is allocated.
    pub hole: bool,
    /// `NBD_STATE_ZERO`: the extent reads as zeros.
    pub zero: bool,
}

/// An extent of BLOCK_STATUS in any metadata context. Extents are in order and have no gaps between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextStatus {
    /// Length of the extent in bytes.
    pub length_bytes: u64,
    /// The status flags, as the context defines them.
    pub status: u32,
}

impl From<Allocation> for ContextStatus {
    /// Returns the status of an extent in the context `base:allocation`.
    fn from(extent: Allocation) -> Self {
        let mut flags = AllocationFlags::empty();
        flags.set(AllocationFlags::HOLE, extent.hole);
        flags.set(AllocationFlags::ZERO, extent.zero);
        let status = u32::try_from(flags.bits()).expect("the flags are the two lowest bits");
        Self { length_bytes: extent.length_bytes, status }
    }
}

/// A metadata context that an export offers besides `base:allocation`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedContext {
    /// Name of the context: a namespace, a colon and a leaf-name.
    pub name: String,
    /// Name of another export, if the context reveals something about its content. Clients that may not use
    /// that export are not offered the context.
    pub about: Option<String>,
}

/// How the export handles a command whose range is not aligned to the minimum block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alignment {
    /// The command fails with EINVAL.
    Required,
    /// The export carries out the command, at the cost of reading and writing whole blocks.
    Preferred,
}

/// Why a command failed: the error value for the reply, and a message for the log and for structured error
/// chunks.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ExportError {
    /// Error value for the reply.
    pub error: Error,
    /// One line of explanation for people.
    pub message: String,
    /// Offset in the export of the first byte for which the command failed, if known.
    pub at: Option<u64>,
}

impl ExportError {
    /// Creates an error without a known offset.
    #[must_use]
    pub fn new(error: Error, message: impl Into<String>) -> Self {
        Self { error, message: message.into(), at: None }
    }
}

/// Why an export is not available.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No export has this name: `NBD_REP_ERR_UNKNOWN`.
    #[error("no export named {0:?}")]
    Unknown(String),
    /// The export exists but cannot be opened now, for example because another gateway holds it or access is
    /// forbidden: `NBD_REP_ERR_POLICY`.
    #[error("{0}")]
    Refused(String),
    /// The server is shutting down: `NBD_REP_ERR_SHUTDOWN`.
    #[error("the server is shutting down")]
    Shutdown,
    /// The store did not answer: `NBD_REP_ERR_PLATFORM`.
    #[error("{0}")]
    Failed(String),
}

/// An export's name and description, as LIST returns them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// Name to use with GO.
    pub name: String,
    /// Description for people; empty if there is none.
    pub description: String,
}

/// The exports of a server, found by name. The empty name selects the default export, if one exists.
///
/// The future of a call may be dropped at any await point. This happens when the server starts to drain and
/// answers the client itself.
#[async_trait]
pub trait Exports: Send + Sync + 'static {
    /// Lists all exports in order of name.
    async fn list(&self) -> Result<Vec<ListEntry>, OpenError>;
    /// Describes an export for INFO. Does not open it and takes no lease.
    async fn describe(&self, name: &str) -> Result<ExportDescription, OpenError>;
    /// Returns the metadata contexts that an export offers besides `base:allocation`, each of them once, in
    /// the order in which clients see them. Does not open the export. The server calls it after
    /// [`Exports::describe`] has succeeded. [`Export::context_status`] is called for what a client selects.
    /// By default, there are none.
    async fn meta_contexts(&self, _name: &str) -> Result<Vec<OfferedContext>, OpenError> {
        Ok(Vec::new())
    }
    /// Returns the refusal for an export that must stay hidden from a client. It must be what
    /// [`Exports::describe`] and [`Exports::open`] return for a name that does not exist, after the same
    /// work, so that a client can tell the two apart neither by the answer nor by its timing.
    async fn conceal(&self, name: &str) -> OpenError {
        OpenError::Unknown(name.to_owned())
    }
    /// Opens an export for GO or EXPORT_NAME. It is in use until the last clone of the `Arc` is dropped.
    async fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError>;
}

/// One disk. Commands run concurrently. Each takes effect at one instant between its call and its return.
///
/// The server calls only methods that [`ExportDescription::flags`] advertises, so an export implements the
/// methods for the flags that it sets. The others fail with EINVAL.
#[async_trait]
pub trait Export: Send + Sync + 'static {
    /// What clients learn about the export.
    fn description(&self) -> ExportDescription;

    /// How the export handles commands whose range is not aligned to the minimum block size. The default
    /// follows the specification: "The server SHOULD report an `NBD_EINVAL` error".
    fn alignment(&self) -> Alignment {
        Alignment::Required
    }

    /// Called when the server refuses a command without starting it, because its range or flags are invalid
    /// or because the server is shutting down.
    fn refused(&self, _command: Command, _error: Error) {}

    /// Reads `length` bytes at `offset`.
    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError>;

    /// Writes `data` at `offset`.
    async fn write(&self, offset: u64, data: Bytes, durability: Durability) -> Result<(), ExportError>;

    /// Returns when every write that was answered before the call is durable.
    //= Transmission flags: the effects of `NBD_CMD_FLUSH` and `NBD_CMD_FLAG_FUA` MUST be visible across all
    //# connections
    async fn flush(&self) -> Result<(), ExportError>;

    /// Discards the range. Afterwards it may read as anything; Cairn's volumes return zeros.
    async fn trim(&self, _offset: u64, _length: u64, _durability: Durability) -> Result<(), ExportError> {
        Err(unsupported(Command::Trim))
    }

    /// Makes the range read as zeros.
    //= Request types: it MUST ensure that the data reads back as zero
    async fn write_zeroes(
        &self,
        _offset: u64,
        _length: u64,
        _zeroing: Zeroing,
        _speed: ZeroSpeed,
        _durability: Durability,
    ) -> Result<(), ExportError> {
        Err(unsupported(Command::WriteZeroes))
    }

    /// Loads the range into the cache (`NBD_CMD_CACHE`), or as much of it as fits. The future may be dropped
    /// at any await point.
    async fn cache(&self, _offset: u64, _length: u64) -> Result<(), ExportError> {
        Err(unsupported(Command::Cache))
    }

    /// Reports the allocation of the range as at most `limit` extents, the first of which starts at `offset`.
    /// Equal neighbours are merged. The result may end before the range does, but is never empty. By default,
    /// everything is reported as data.
    async fn block_status(
        &self,
        _offset: u64,
        length: u64,
        _limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        Ok(vec![Allocation { length_bytes: length, hole: false, zero: false }])
    }

    /// The metadata contexts that the export offers besides `base:allocation`, as
    /// [`SingleExport`](super::SingleExport) passes them on. Other [`Exports`] may know them without
    /// opening the export; see [`Exports::meta_contexts`].
    fn meta_contexts(&self) -> Vec<OfferedContext> {
        Vec::new()
    }

    /// Reports the status of the range in one of the metadata contexts that the client selected, as at most
    /// `limit` extents, the first of which starts at `offset`. Equal neighbours are merged. The result may
    /// end before the range does, but is never empty.
    ///
    /// # Errors
    /// If the status cannot be found out. A client takes a status of 0 for an answer, so it must be true. By
    /// default, the command fails with EINVAL.
    async fn context_status(
        &self,
        _context: &str,
        _offset: u64,
        _length: u64,
        _limit: usize,
    ) -> Result<Vec<ContextStatus>, ExportError> {
        Err(unsupported(Command::BlockStatus))
    }
}

fn unsupported(command: Command) -> ExportError {
    ExportError::new(Error::Inval, format!("the export does not implement {command}"))
}
