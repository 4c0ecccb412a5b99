//! Decides what a request makes an export do, or with which error it fails (NBD `doc/proto.md`, "Request
//! types", "Error values").
//!
//! A pure function of the request and of what was negotiated. It must not do I/O. Invariants of a [`Job`]:
//! its range lies within the export; its length is not 0, except for a READ; it does not write if the export
//! is read-only.

use std::sync::Arc;

use super::export::Alignment;
use crate::effect::{Durability, ZeroSpeed, Zeroing};
use crate::protocol::info::BlockSize;
use crate::protocol::meta_context::MAXIMUM_SELECTED;
use crate::protocol::negotiate_server::Session;
use crate::protocol::request::HeaderStyle;
use crate::protocol::{
    BlockStatusPayload, Command, CommandFlags, Error, MetaContext, Request, TransmissionFlags,
};

/// The work that a request causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Read `length` bytes, possibly none. With `single_chunk`, reply with a single content chunk.
    Read { offset: u64, length: u32, single_chunk: bool },
    /// Write the payload that follows the request.
    Write { offset: u64, durability: Durability },
    /// Make all completed writes durable.
    Flush,
    /// Discard the range (TRIM).
    Trim { offset: u64, length: u64, durability: Durability },
    /// Make the range read as zeros (WRITE_ZEROES).
    WriteZeroes { offset: u64, length: u64, zeroing: Zeroing, speed: ZeroSpeed, durability: Durability },
    /// Prefetch the range into the cache (CACHE).
    Cache { offset: u64, length: u64 },
    /// Report the status of the range in some of the selected metadata contexts. With `one`, report only the
    /// first extent in each.
    BlockStatus { offset: u64, length: u64, one: bool, contexts: Chosen },
    /// Do nothing: the range is empty.
    Nothing,
}

/// Some of the metadata contexts that a connection selected, by their place in [`Rules::contexts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chosen(u32);

const _: () = assert!(MAXIMUM_SELECTED <= 32, "every selected context has a bit");

impl Chosen {
    const ALL: Self = Self(u32::MAX);

    /// Returns the contexts with these ids. `None` if there is no id, or one that is unknown or repeated.
    fn by_ids(contexts: &[MetaContext], ids: &[u32]) -> Option<Self> {
        let mut chosen = 0_u32;
        for id in ids {
            let place = contexts.iter().position(|context| context.id == *id)?;
            let bit = 1_u32 << place;
            if chosen & bit != 0 {
                return None;
            }
            chosen |= bit;
        }
        (chosen != 0).then_some(Self(chosen))
    }

    /// Returns the chosen ones of these contexts, in their order.
    pub(crate) fn of(self, contexts: &[MetaContext]) -> impl Iterator<Item = &MetaContext> {
        let is_chosen = move |(place, _): &(u32, &MetaContext)| (self.0 >> *place) & 1 == 1;
        (0..u32::BITS).zip(contexts).filter(is_chosen).map(|(_, context)| context)
    }
}

impl Job {
    /// Limits a BLOCK_STATUS to some of the selected metadata contexts.
    pub(super) fn limited_to(self, chosen: Chosen) -> Self {
        match self {
            Self::BlockStatus { offset, length, one, .. } => {
                Self::BlockStatus { offset, length, one, contexts: chosen }
            }
            other => other,
        }
    }
}

/// A request that fails without being carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Error value for the reply.
    pub(crate) error: Error,
    /// Explanation for people, sent with structured replies and written to the log.
    pub(crate) message: &'static str,
}

const fn refused<T>(error: Error, message: &'static str) -> Result<T, Refused> {
    Err(Refused { error, message })
}

/// What a connection negotiated, as far as it decides which requests are valid.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) headers: HeaderStyle,
    size_bytes: u64,
    flags: TransmissionFlags,
    block_size: BlockSize,
    alignment: Alignment,
    /// The metadata contexts that the client selected.
    pub(crate) contexts: Arc<[MetaContext]>,
}

impl Rules {
    pub(crate) fn new(session: &Session, alignment: Alignment) -> Self {
        Self {
            headers: session.headers,
            size_bytes: session.export.disk.size_bytes,
            flags: session.export.disk.flags,
            block_size: session.export.block_size,
            alignment,
            contexts: session.contexts.iter().cloned().collect(),
        }
    }

    /// Maximum payload of one READ or WRITE in bytes.
    pub(crate) fn maximum_payload_bytes(&self) -> u32 {
        self.block_size.maximum
    }

    /// Whether the payload of this request is the list of contexts of a BLOCK_STATUS.
    pub(super) fn takes_contexts(&self, request: &Request) -> bool {
        self.headers == HeaderStyle::Extended
            && request.command == Command::BlockStatus
            && request.flags.contains(CommandFlags::PAYLOAD_LEN)
            && self.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
    }

    /// Checks the list of contexts of a BLOCK_STATUS. Returns the equivalent request without a payload, and
    /// the contexts.
    pub(super) fn with_contexts(
        &self,
        request: Request,
        payload: &[u8],
    ) -> Result<(Request, Chosen), Refused> {
        let Ok(payload) = BlockStatusPayload::decode(payload) else {
            return refused(Error::Inval, "malformed payload of BLOCK_STATUS");
        };
        //= Request types: the server MUST gracefully consume the client's payload before failing with
        //# `NBD_EINVAL`
        let Some(chosen) = Chosen::by_ids(&self.contexts, &payload.context_ids) else {
            return refused(Error::Inval, "BLOCK_STATUS for contexts that were not selected");
        };
        let flags = request.flags - CommandFlags::PAYLOAD_LEN;
        Ok((Request { flags, length: payload.effect_length, ..request }, chosen))
    }

    /// Checks a request and returns the work it causes. The payload is not examined. The caller must handle
    /// DISC.
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
                //= Request types: a status length of 0; the behavior of a server on such a request is
                //# unspecified although the server SHOULD NOT disconnect
                Command::BlockStatus => refused(Error::Inval, "BLOCK_STATUS of no bytes"),
                _ => Ok(Job::Nothing),
            };
        }
        let has = |flag| request.flags.contains(flag);
        let durability = if has(CommandFlags::FUA) { Durability::Durable } else { Durability::Volatile };
        match command {
            Command::Read => match u32::try_from(length) {
                //= Request types: the server MUST support unfragmented reads in which the client's request
                //# length does not exceed 65,536 bytes
                Ok(length) if length <= self.block_size.maximum => {
                    Ok(Job::Read { offset, length, single_chunk: has(CommandFlags::DF) })
                }
                _ => refused(Error::Inval, "READ is longer than the maximum block size"),
            },
            Command::Write if length > u64::from(self.block_size.maximum) => {
                refused(Error::Inval, "WRITE is longer than the maximum block size")
            }
            Command::Write => Ok(Job::Write { offset, durability }),
            Command::Trim => Ok(Job::Trim { offset, length, durability }),
            Command::WriteZeroes => Ok(Job::WriteZeroes {
                offset,
                length,
                //= Command flags: The server MUST support the use of this flag if it advertises
                //# `NBD_FLAG_SEND_WRITE_ZEROES`.
                zeroing: if has(CommandFlags::NO_HOLE) { Zeroing::Allocate } else { Zeroing::Deallocate },
                speed: if has(CommandFlags::FAST_ZERO) { ZeroSpeed::Fast } else { ZeroSpeed::Any },
                durability,
            }),
            Command::Cache => Ok(Job::Cache { offset, length }),
            Command::BlockStatus => {
                let one = has(CommandFlags::REQ_ONE);
                Ok(Job::BlockStatus { offset, length, one, contexts: Chosen::ALL })
            }
            Command::Flush | Command::Disc | Command::Resize | Command::Unknown(_) => {
                refused(Error::Inval, "unknown command")
            }
        }
    }

    /// Checks that the command is available. A read-only export is reported before a command that was not
    /// advertised.
    fn check_command(&self, command: Command) -> Result<(), Refused> {
        let writes = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
        //= Transmission flags: If this flag is set, the server MUST error subsequent write operations to
        //# the export.
        if writes && self.flags.contains(TransmissionFlags::READ_ONLY) {
            return refused(Error::Perm, "the export is read-only");
        }
        let exposed_by = match command {
            Command::Read | Command::Write => return Ok(()),
            Command::Flush => TransmissionFlags::SEND_FLUSH,
            Command::Trim => TransmissionFlags::SEND_TRIM,
            Command::WriteZeroes => TransmissionFlags::SEND_WRITE_ZEROES,
            Command::Cache => TransmissionFlags::SEND_CACHE,
            Command::BlockStatus if !self.contexts.is_empty() => return Ok(()),
            Command::BlockStatus => {
                //= Request types: A client MUST NOT send `NBD_CMD_BLOCK_STATUS` unless within the
                //# negotiation phase it sent `NBD_OPT_SET_META_CONTEXT` at least once
                return refused(Error::Inval, "BLOCK_STATUS without a selected metadata context");
            }
            Command::Disc | Command::Resize | Command::Unknown(_) => {
                return refused(Error::Inval, "unknown command");
            }
        };
        //= Transmission flags: The client MUST NOT use a feature documented as 'exposed' by a flag unless
        //# that flag was set.
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
            //= Command flags: for other commands, the flag will trigger an `NBD_EINVAL` error unless the
            //# command documents an optional payload form for the command and the server has implemented
            //# that form
            allowed.insert(CommandFlags::PAYLOAD_LEN);
        }
        //= Command flags: Clients MUST NOT set a command flag bit that is not documented for the particular
        //# command
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
