//! What volumes and snapshots have in common as exports: descriptions, and the types of results.
//!
//! Owns the conversions between the types of the volume layer and those of the server, and must not know
//! which export they are for. Invariant: nothing is lost or added in a conversion.

use crate::metrics::{Command, Errno};
use crate::protocol::meta_context::STATE_DIRTY;
use crate::protocol::{self, Error, TransmissionFlags};
use crate::server::{Allocation, ContextStatus, ExportDescription, Segment};
use crate::volume;

/// Minimum block size in bytes: volumes accept any alignment.
const MINIMUM_BLOCK_BYTES: u32 = 1;
/// Preferred block size in bytes: the unit in which volumes track changes.
const PREFERRED_BLOCK_BYTES: u32 = 4096;
/// Maximum payload in bytes.
const MAXIMUM_BLOCK_BYTES: u32 = 64 << 20;

/// Describes an export.
pub(super) fn description(name: &str, size_bytes: u64, flags: TransmissionFlags) -> ExportDescription {
    ExportDescription {
        name: name.to_owned(),
        description: String::new(),
        size_bytes,
        flags,
        minimum_block_bytes: MINIMUM_BLOCK_BYTES,
        preferred_block_bytes: PREFERRED_BLOCK_BYTES,
        maximum_block_bytes: MAXIMUM_BLOCK_BYTES,
    }
}

/// Converts the result of a READ.
pub(super) fn segments(of: Vec<volume::Segment>) -> Vec<Segment> {
    let zero = |length| Segment::Zero(u32::try_from(length).expect("a part of a READ of 32 bits"));
    let convert = |segment| match segment {
        volume::Segment::Data(data) => Segment::Data(data),
        volume::Segment::Zero(length) => zero(length),
    };
    of.into_iter().map(convert).collect()
}

/// Converts the result of a BLOCK_STATUS.
pub(super) fn allocations(of: Vec<volume::Extent>) -> Vec<Allocation> {
    let convert = |e: volume::Extent| Allocation { length_bytes: e.length, hole: e.hole, zero: e.zero };
    of.into_iter().map(convert).collect()
}

/// Converts the result of a BLOCK_STATUS that compares.
pub(super) fn dirtiness(of: Vec<volume::Portion>) -> Vec<ContextStatus> {
    let convert = |portion: volume::Portion| ContextStatus {
        length_bytes: portion.length,
        status: if portion.may_differ { STATE_DIRTY } else { 0 },
    };
    of.into_iter().map(convert).collect()
}

/// Returns the command for metrics. `None` for commands that never reach an export.
pub(super) fn counted(command: protocol::Command) -> Option<Command> {
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

/// Returns the error value for metrics.
pub(super) fn errno(error: Error) -> Errno {
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
