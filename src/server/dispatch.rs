//! What a request asks an export to do, or the error it earns (NBD `doc/proto.md`, "Request types", "Error
//! values").
//!
//! A pure function of the request and of what was negotiated: it does no I/O. Invariant: a [`Job`] lies
//! within the export, its length is not 0 (except for a READ's), and a read-only export gets no job that
//! writes.

use super::export::Alignment;
use crate::protocol::info::BlockSize;
use crate::protocol::negotiate_server::Session;
use crate::protocol::request::HeaderStyle;
use crate::protocol::{BlockStatusPayload, Command, CommandFlags, Error, Request, TransmissionFlags};

/// What is to be done for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Read so many bytes, maybe none; with `single_chunk`, answer in one content chunk.
    Read { offset: u64, length: u32, single_chunk: bool },
    /// Write the payload that follows the request.
    Write { offset: u64, fua: bool },
    /// Make durable what was written.
    Flush,
    /// Discard.
    Trim { offset: u64, length: u64, fua: bool },
    /// Zero.
    WriteZeroes { offset: u64, length: u64, no_hole: bool, fast: bool, fua: bool },
    /// Prefetch.
    Cache { offset: u64, length: u64 },
    /// Tell what is allocated; with `one`, one extent only.
    BlockStatus { offset: u64, length: u64, one: bool },
    /// Nothing: a range of no bytes.
    Nothing,
}

/// Why a request is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Value for the wire.
    pub(crate) error: Error,
    /// For people.
    pub(crate) message: &'static str,
}

const fn refused<T>(error: Error, message: &'static str) -> Result<T, Refused> {
    Err(Refused { error, message })
}

/// What requests of a connection are judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) headers: HeaderStyle,
    size_bytes: u64,
    flags: TransmissionFlags,
    block_size: BlockSize,
    alignment: Alignment,
    pub(crate) base_allocation: Option<u32>,
}

impl Rules {
    pub(crate) fn new(session: &Session, alignment: Alignment) -> Self {
        Self {
            headers: session.headers,
            size_bytes: session.export.disk.size_bytes,
            flags: session.export.disk.flags,
            block_size: session.export.block_size,
            alignment,
            base_allocation: session.base_allocation,
        }
    }

    /// Largest payload of one READ or WRITE in bytes.
    pub(crate) fn maximum_payload_bytes(&self) -> u32 {
        self.block_size.maximum
    }

    /// Whether the payload of this request is the list of contexts of a BLOCK_STATUS.
    pub(crate) fn takes_contexts(&self, request: &Request) -> bool {
        self.headers == HeaderStyle::Extended
            && request.command == Command::BlockStatus
            && request.flags.contains(CommandFlags::PAYLOAD_LEN)
            && self.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
    }

    /// Puts the payload of such a BLOCK_STATUS in its place: the request that is left has none.
    pub(crate) fn with_contexts(&self, request: Request, payload: &[u8]) -> Result<Request, Refused> {
        let Ok(payload) = BlockStatusPayload::decode(payload) else {
            return refused(Error::Inval, "malformed payload of BLOCK_STATUS");
        };
        // One context can be selected, so no other list is free of unknown and repeated numbers.
        if self.base_allocation.is_none_or(|id| payload.context_ids != [id]) {
            return refused(Error::Inval, "BLOCK_STATUS for contexts that were not selected");
        }
        let flags = request.flags - CommandFlags::PAYLOAD_LEN;
        Ok(Request { flags, length: payload.effect_length, ..request })
    }

    /// Judges a request; its payload, if any, plays no part. DISC is the caller's matter.
    pub(crate) fn judge(&self, request: &Request) -> Result<Job, Refused> {
        let &Request { command, offset, length, .. } = request;
        self.check_command(command)?;
        self.check_flags(request)?;
        if command == Command::Flush {
            return match (offset, length) {
                (0, 0) => Ok(Job::Flush),
                _ => refused(Error::Inval, "FLUSH with an offset or a length"),
            };
        }
        self.check_range(command, offset, length)?;
        if length == 0 {
            return match command {
                Command::Read => Ok(Job::Read { offset, length: 0, single_chunk: false }),
                Command::BlockStatus => refused(Error::Inval, "BLOCK_STATUS of no bytes"),
                _ => Ok(Job::Nothing),
            };
        }
        let has = |flag| request.flags.contains(flag);
        let fua = has(CommandFlags::FUA);
        match command {
            Command::Read => match u32::try_from(length) {
                Ok(length) if length <= self.block_size.maximum => {
                    Ok(Job::Read { offset, length, single_chunk: has(CommandFlags::DF) })
                }
                _ => refused(Error::Inval, "READ is longer than the maximum block size"),
            },
            Command::Write if length > u64::from(self.block_size.maximum) => {
                refused(Error::Inval, "WRITE is longer than the maximum block size")
            }
            Command::Write => Ok(Job::Write { offset, fua }),
            Command::Trim => Ok(Job::Trim { offset, length, fua }),
            Command::WriteZeroes => Ok(Job::WriteZeroes {
                offset,
                length,
                no_hole: has(CommandFlags::NO_HOLE),
                fast: has(CommandFlags::FAST_ZERO),
                fua,
            }),
            Command::Cache => Ok(Job::Cache { offset, length }),
            Command::BlockStatus => Ok(Job::BlockStatus { offset, length, one: has(CommandFlags::REQ_ONE) }),
            Command::Flush | Command::Disc | Command::Resize | Command::Unknown(_) => {
                refused(Error::Inval, "unknown command")
            }
        }
    }

    /// Whether the command may be used at all: a read-only export first, then what was advertised.
    fn check_command(&self, command: Command) -> Result<(), Refused> {
        let writes = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
        if writes && self.flags.contains(TransmissionFlags::READ_ONLY) {
            return refused(Error::Perm, "the export is read-only");
        }
        let exposed_by = match command {
            Command::Read | Command::Write => return Ok(()),
            Command::Flush => TransmissionFlags::SEND_FLUSH,
            Command::Trim => TransmissionFlags::SEND_TRIM,
            Command::WriteZeroes => TransmissionFlags::SEND_WRITE_ZEROES,
            Command::Cache => TransmissionFlags::SEND_CACHE,
            Command::BlockStatus if self.base_allocation.is_some() => return Ok(()),
            Command::BlockStatus => {
                return refused(Error::Inval, "BLOCK_STATUS without a selected metadata context");
            }
            Command::Disc | Command::Resize | Command::Unknown(_) => {
                return refused(Error::Inval, "unknown command");
            }
        };
        if self.flags.contains(exposed_by) {
            Ok(())
        } else {
            refused(Error::Inval, "the export does not support this command")
        }
    }

    fn check_flags(&self, request: &Request) -> Result<(), Refused> {
        let mut allowed = request.command.documented_flags();
        for (flag, exposed_by) in [
            (CommandFlags::FUA, TransmissionFlags::SEND_FUA),
            (CommandFlags::DF, TransmissionFlags::SEND_DF),
            (CommandFlags::FAST_ZERO, TransmissionFlags::SEND_FAST_ZERO),
        ] {
            if !self.flags.contains(exposed_by) {
                allowed.remove(flag);
            }
        }
        if self.headers == HeaderStyle::Extended && request.command == Command::Write {
            allowed.insert(CommandFlags::PAYLOAD_LEN);
        }
        if request.flags.bits() & !allowed.bits() == 0 {
            Ok(())
        } else {
            refused(Error::Inval, "command flags that do not apply")
        }
    }

    fn check_range(&self, command: Command, offset: u64, length: u64) -> Result<(), Refused> {
        let end = offset.checked_add(length);
        if end.is_none_or(|end| end > self.size_bytes) {
            let error = match command {
                Command::Write | Command::WriteZeroes => Error::NoSpc,
                _ => Error::Inval,
            };
            return refused(error, "range ends beyond the export");
        }
        let unit = match self.alignment {
            Alignment::Required => u64::from(self.block_size.minimum),
            Alignment::Preferred => 1,
        };
        if offset.is_multiple_of(unit) && length.is_multiple_of(unit) {
            Ok(())
        } else {
            refused(Error::Inval, "range is not aligned to the minimum block size")
        }
    }
}
