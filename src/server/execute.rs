//! Carries out a [`Job`] on an [`Export`], and enforces the export's contract.
//!
//! Must not know the wire format. Invariant: whatever an export returns, the client gets a reply that the
//! specification allows: the data of a READ has the right length, the extents of a BLOCK_STATUS cover the
//! start of the range, and the error value fits the command. If the export panics, the command fails with
//! EIO.

use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures::FutureExt as _;

use super::dispatch::{Chosen, Job, Refused, Rules};
use super::export::{ContextStatus, Export, ExportError, Segment};
use super::in_flight::Charge;
use crate::effect::{Durability, ZeroSpeed};
use crate::mutant::{self, Mutant};
use crate::protocol::meta_context::BASE_ALLOCATION;
use crate::protocol::request::HeaderStyle;
use crate::protocol::{Cookie, Error, MetaContext, Request};

/// Maximum number of extents in one reply to BLOCK_STATUS, in each context.
pub(super) const MAXIMUM_EXTENTS: usize = 4096;

/// The longest extent that a 32-bit length can hold at any alignment up to 65,536 bytes.
const LONGEST_COMPACT_EXTENT: u64 = 0xffff_0000;

/// The result of a successful command.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Success without data.
    Done,
    /// Data of a READ.
    Data { segments: Vec<Segment>, single_chunk: bool },
    /// Extents of a BLOCK_STATUS, in each of the contexts.
    Extents(Vec<ContextExtents>),
}

/// The extents of a range in one metadata context.
#[derive(Debug)]
pub(crate) struct ContextExtents {
    /// Id of the context.
    pub(crate) context_id: u32,
    /// The extents in order; at least one.
    pub(crate) extents: Vec<ContextStatus>,
}

/// The result of a request, with what is needed to encode the reply.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) headers: HeaderStyle,
    pub(crate) cookie: Cookie,
    pub(crate) offset: u64,
    pub(crate) outcome: Result<Answer, ExportError>,
    /// The request's share of the in-flight limits. Dropped once the reply is written.
    pub(crate) _charge: Charge,
}

impl From<Refused> for ExportError {
    fn from(refused: Refused) -> Self {
        Self::new(refused.error, refused.message)
    }
}

impl Job {
    /// Payload bytes that the request and its reply hold in memory, not counting headers.
    pub(crate) fn payload_bytes(&self, request: &Request, rules: &Rules) -> u32 {
        match self {
            Self::Read { length, .. } => *length,
            Self::Write { .. } => u32::try_from(request.length).unwrap_or(u32::MAX),
            Self::BlockStatus { contexts, .. } => {
                let extents = contexts.of(&rules.contexts).count() * MAXIMUM_EXTENTS;
                u32::try_from(extents * 16).unwrap_or(u32::MAX)
            }
            Self::Flush
            | Self::Trim { .. }
            | Self::WriteZeroes { .. }
            | Self::Cache { .. }
            | Self::Nothing => 0,
        }
    }
}

/// Carries out the job of a request. `payload` is the data of a WRITE, and empty otherwise.
pub(crate) async fn execute(
    export: &dyn Export,
    rules: &Rules,
    request: &Request,
    job: Job,
    payload: Bytes,
) -> Result<Answer, ExportError> {
    let outcome = AssertUnwindSafe(run(export, rules, job, payload)).catch_unwind().await;
    let outcome = outcome.unwrap_or_else(|_| {
        tracing::error!(command = %request.command, offset = request.offset, "the export panicked");
        Err(ExportError::new(Error::Io, "internal error"))
    });
    let &Request { command, offset, length, .. } = request;
    outcome.map_err(|refusal| fitting(refusal, job, request)).inspect_err(|refusal| {
        tracing::debug!(%command, offset, length, error = %refusal.error, "{}", refusal.message);
    })
}

async fn run(export: &dyn Export, rules: &Rules, job: Job, payload: Bytes) -> Result<Answer, ExportError> {
    match job {
        Job::Nothing => {}
        Job::Flush if mutant::is(Mutant::FlushNotPassedOn) => {}
        //= Ordering of messages and writes: MUST be written to non-volatile storage prior to replying to
        //# that `NBD_CMD_FLUSH`
        Job::Flush => export.flush().await?,
        Job::Write { offset, .. } if mutant::is(Mutant::FuaNotPassedOn) => {
            export.write(offset, payload, Durability::Volatile).await?;
        }
        Job::Write { offset, durability } => export.write(offset, payload, durability).await?,
        Job::Trim { offset, length, durability } => export.trim(offset, length, durability).await?,
        Job::WriteZeroes { offset, length, zeroing, speed, durability } => {
            export.write_zeroes(offset, length, zeroing, speed, durability).await?;
        }
        Job::Cache { offset, length } => export.cache(offset, length).await?,
        Job::Read { length: 0, single_chunk, .. } => {
            return Ok(Answer::Data { segments: Vec::new(), single_chunk });
        }
        Job::Read { offset, length, single_chunk } => {
            let mut segments = match export.read(offset, length).await {
                Err(_) if mutant::is(Mutant::FailedReadIsZeros) => vec![Segment::Zero(length)],
                outcome => outcome?,
            };
            segments.retain(|segment| segment.length_bytes() != 0);
            if segments.iter().map(Segment::length_bytes).sum::<u64>() != u64::from(length) {
                return Err(broken("READ returned a different length than requested"));
            }
            return Ok(Answer::Data { segments, single_chunk });
        }
        Job::BlockStatus { offset, length, one, contexts } => {
            //= Command flags: If this flag is present, the server MUST NOT send metadata on more than one
            //# extent in the reply.
            let limit = if one { 1 } else { MAXIMUM_EXTENTS };
            let longest = match rules.headers {
                //= Structured reply types: that descriptor MUST NOT exceed the *length* of the original
                //# request
                _ if one => length,
                HeaderStyle::Extended => u64::MAX,
                HeaderStyle::Simple | HeaderStyle::Structured => LONGEST_COMPACT_EXTENT,
            };
            let wanted = Wanted { offset, length, limit, longest };
            return block_status(export, &wanted, &rules.contexts, contexts).await.map(Answer::Extents);
        }
    }
    Ok(Answer::Done)
}

/// What a BLOCK_STATUS asks of each context.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    offset: u64,
    length: u64,
    /// Maximum number of extents.
    limit: usize,
    /// Maximum length of an extent in bytes.
    longest: u64,
}

/// Returns the extents of a range in each of the chosen contexts. If one of them fails, the command fails.
async fn block_status(
    export: &dyn Export,
    wanted: &Wanted,
    contexts: &[MetaContext],
    chosen: Chosen,
) -> Result<Vec<ContextExtents>, ExportError> {
    let &Wanted { offset, length, limit, longest } = wanted;
    let mut answers = Vec::new();
    //= Metadata querying: the server MUST respond with one structured reply chunk of type
    //# `NBD_REPLY_TYPE_BLOCK_STATUS` per metadata context selected during negotiation
    let contexts: Vec<&MetaContext> = chosen.of(contexts).collect();
    for context in contexts {
        let mut extents: Vec<ContextStatus> = match context.name.as_str() {
            BASE_ALLOCATION => {
                let allocation = export.block_status(offset, length, limit).await?;
                allocation.into_iter().map(ContextStatus::from).collect()
            }
            name => export.context_status(name, offset, length, limit).await?,
        };
        clip(&mut extents, length, limit, longest);
        //= Request types: the server MUST return at least one status descriptor
        if extents.is_empty() {
            return Err(broken("BLOCK_STATUS returned no extent"));
        }
        answers.push(ContextExtents { context_id: context.id, extents });
    }
    Ok(answers)
}

/// Cuts off the extents after the end of the range, after `limit` extents, or after the first extent that had
/// to be shortened to `longest`.
fn clip(extents: &mut Vec<ContextStatus>, length: u64, limit: usize, longest: u64) {
    extents.retain(|extent| extent.length_bytes != 0);
    extents.truncate(limit);
    let mut covered = 0_u64;
    let mut kept = 0;
    for extent in extents.iter_mut() {
        kept += 1;
        let cut = extent.length_bytes > longest;
        extent.length_bytes = extent.length_bytes.min(longest);
        covered = covered.saturating_add(extent.length_bytes);
        if cut || covered >= length {
            break;
        }
    }
    extents.truncate(kept);
}

/// Makes an error fit its command. Values that the specification does not list become EIO. Values that it
/// reserves for one command become EINVAL for all others. An offset outside the range of the command is
/// dropped.
fn fitting(refusal: ExportError, job: Job, request: &Request) -> ExportError {
    let error = match (refusal.error, job) {
        (Error::NotSup, Job::WriteZeroes { speed: ZeroSpeed::Fast, .. })
        | (Error::Overflow, Job::Read { single_chunk: true, .. }) => refusal.error,
        //= Request types: then the server MUST NOT fail with `NBD_ENOTSUP`
        (Error::NotSup | Error::Overflow, _) => Error::Inval,
        // "the allowed values for the error field have been restricted to set of possibilities".
        (Error::Unknown(_), _) => Error::Io,
        _ => refusal.error,
    };
    //= Structured reply types: This reply represents that an error occurred at a given offset, which MUST
    //# lie within the original offset and length of the request
    let within = |at: &u64| *at >= request.offset && at - request.offset < request.length;
    ExportError { error, at: refusal.at.filter(within), ..refusal }
}

fn broken(message: &str) -> ExportError {
    tracing::error!("the export violated its contract: {message}");
    ExportError::new(Error::Io, message)
}
