//! What the server serves: the traits [`Exports`] (names) and [`Export`] (one disk).
//!
//! Owned by the server, implemented above it (for volumes, plain files, mirrors). It must not know what a
//! volume is. The server checks every request against [`ExportDescription`] before it calls an [`Export`]:
//! ranges lie within the size, lengths are not zero, and a read-only export sees no write.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::protocol::{Command, Error, TransmissionFlags};

/// What a client is told of an export. Fixed while it is open; a resize is seen by new connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportDescription {
    /// Canonical name (`NBD_INFO_NAME`).
    pub name: String,
    /// For people (`NBD_INFO_DESCRIPTION`); empty for none.
    pub description: String,
    /// Bytes.
    pub size_bytes: u64,
    /// What the export can do; the server adds what it does by itself (`SEND_DF`).
    pub flags: TransmissionFlags,
    /// Minimum block size in bytes, a power of two (`NBD_INFO_BLOCK_SIZE`).
    pub minimum_block_bytes: u32,
    /// Preferred block size in bytes, a power of two.
    pub preferred_block_bytes: u32,
    /// Maximum payload in bytes of one READ or WRITE.
    pub maximum_block_bytes: u32,
}

/// A part of what a READ gives, in order and without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes.
    Data(Bytes),
    /// So many zeros, known to be zeros without looking at data.
    Zero(u32),
}

impl Segment {
    /// How many bytes of the READ it stands for.
    #[must_use]
    pub fn length_bytes(&self) -> u64 {
        match self {
            Self::Data(data) => u64::try_from(data.len()).expect("a usize fits 64 bits"),
            Self::Zero(length) => u64::from(*length),
        }
    }
}

/// An extent of BLOCK_STATUS (`base:allocation`), in order and without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Bytes.
    pub length_bytes: u64,
    /// `NBD_STATE_HOLE`: nothing is allocated.
    pub hole: bool,
    /// `NBD_STATE_ZERO`: reads as zeros.
    pub zero: bool,
}

/// What becomes of a command whose range is not aligned to the minimum block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alignment {
    /// It is refused with EINVAL.
    Required,
    /// The export carries it out, at the cost of reading and writing whole blocks.
    Preferred,
}

/// Why a command failed: the error value for the wire, and a message for the log and for structured error
/// chunks.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ExportError {
    /// Value for the wire.
    pub error: Error,
    /// For people, one line.
    pub message: String,
    /// Where in the range of the command it failed, if that is known. What lies before could have been had.
    pub at: Option<u64>,
}

impl ExportError {
    /// A failure of which nobody knows where in the range it is.
    #[must_use]
    pub fn new(error: Error, message: impl Into<String>) -> Self {
        Self { error, message: message.into(), at: None }
    }
}

/// Why an export cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none of that name: `NBD_REP_ERR_UNKNOWN`.
    #[error("no export named {0:?}")]
    Unknown(String),
    /// It stands but may not be opened now (held by another gateway, or forbidden): `NBD_REP_ERR_POLICY`.
    #[error("{0}")]
    Refused(String),
    /// The server is going down: `NBD_REP_ERR_SHUTDOWN`.
    #[error("the server is shutting down")]
    Shutdown,
    /// The store did not answer: `NBD_REP_ERR_PLATFORM`.
    #[error("{0}")]
    Failed(String),
}

/// An export's name and description, as LIST gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// Name for GO.
    pub name: String,
    /// For people; empty for none.
    pub description: String,
}

/// The exports of a server by name. The empty name stands for the default export, if there is one.
///
/// A call may be dropped at any await point: when the server drains it answers in its place.
#[async_trait]
pub trait Exports: Send + Sync + 'static {
    /// All exports, in order of name.
    async fn list(&self) -> Result<Vec<ListEntry>, OpenError>;
    /// What INFO says; opens nothing and takes no lease.
    async fn describe(&self, name: &str) -> Result<ExportDescription, OpenError>;
    /// What a client is told that may not know of an export: what [`Exports::describe`] and [`Exports::open`]
    /// say of a name that does not exist, after the same work, so that neither the answer nor its time tells
    /// one from the other.
    async fn conceal(&self, name: &str) -> OpenError {
        OpenError::Unknown(name.to_owned())
    }
    /// Opens for GO or EXPORT_NAME. The export is in use until the last clone of the `Arc` is dropped.
    async fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError>;
}

/// One disk. Commands run concurrently; each takes effect at one instant between its call and its return.
#[async_trait]
pub trait Export: Send + Sync + 'static {
    /// What clients are told.
    fn description(&self) -> ExportDescription;

    /// What becomes of a command whose range is not aligned to the minimum block size. "The server SHOULD
    /// report an `NBD_EINVAL` error", and does so unless an export does better.
    fn alignment(&self) -> Alignment {
        Alignment::Required
    }

    /// A command was answered with an error without having been started: its range, flags or time are wrong.
    fn refused(&self, _command: Command, _error: Error) {}

    /// Reads `length` bytes at `offset`.
    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError>;

    /// Writes `data` at `offset`; with `fua`, returns when it is durable.
    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), ExportError>;

    /// Returns when every write that was answered before the call is durable.
    async fn flush(&self) -> Result<(), ExportError>;

    /// Discards the range, which may then read as anything; Cairn's volumes read it as zeros.
    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), ExportError>;

    /// Zeroes the range; `no_hole` keeps it allocated; `fast` fails with ENOTSUP where zeroing is no faster
    /// than writing.
    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        no_hole: bool,
        fast: bool,
        fua: bool,
    ) -> Result<(), ExportError>;

    /// Brings the range into the cache (`NBD_CMD_CACHE`), or as much of it as that holds. May be dropped at
    /// any await point.
    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError>;

    /// Allocation of the range: at most `limit` extents, the first at `offset`, adjacent ones alike merged.
    /// May end before the range does; never empty.
    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError>;
}
