//! Carries out a [`Job`] on an [`Export`] and keeps the export to its contract.
//!
//! Knows no wire format. Invariant: whatever an export does, a client gets what the specification allows: a
//! READ of the right length, extents that cover the start of the range, an error value that fits the command.
//! A panic is EIO.

use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures::FutureExt as _;

use super::dispatch::{Job, Refused, Rules};
use super::export::{Allocation, Export, ExportError, Segment};
use super::in_flight::Charge;
use crate::mutant::{self, Mutant};
use crate::protocol::request::HeaderStyle;
use crate::protocol::{Cookie, Error, Request};

/// Most extents in one answer to BLOCK_STATUS.
pub(crate) const MAXIMUM_EXTENTS: usize = 4096;

/// The longest extent that 32 bits hold with any alignment.
const LONGEST_COMPACT_EXTENT: u64 = 0xffff_0000;

/// What a command gave.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Success, without data.
    Done,
    /// What a READ gave.
    Data { segments: Vec<Segment>, single_chunk: bool },
    /// What a BLOCK_STATUS gave.
    Extents { context_id: u32, extents: Vec<Allocation> },
}

/// A request's outcome on its way to the client.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) headers: HeaderStyle,
    pub(crate) cookie: Cookie,
    pub(crate) offset: u64,
    pub(crate) outcome: Result<Answer, ExportError>,
    /// The request's share of the bounds, given back once the reply is written.
    pub(crate) _charge: Charge,
}

impl From<Refused> for ExportError {
    fn from(refused: Refused) -> Self {
        Self::new(refused.error, refused.message)
    }
}

impl Job {
    /// Payload bytes that the request and its reply keep in memory, besides those of its headers.
    pub(crate) fn payload_bytes(&self, request: &Request) -> u32 {
        match self {
            Self::Read { length, .. } => *length,
            Self::Write { .. } => u32::try_from(request.length).unwrap_or(u32::MAX),
            Self::BlockStatus { .. } => u32::try_from(MAXIMUM_EXTENTS * 16).unwrap_or(u32::MAX),
            Self::Flush
            | Self::Trim { .. }
            | Self::WriteZeroes { .. }
            | Self::Cache { .. }
            | Self::Nothing => 0,
        }
    }
}

/// Carries out the job of a request. `payload` is that of a WRITE.
pub(crate) async fn execute(
    export: &dyn Export,
    rules: &Rules,
    request: &Request,
    job: Job,
    payload: Bytes,
) -> Result<Answer, ExportError> {
    let outcome = AssertUnwindSafe(run(export, rules, job, payload)).catch_unwind().await;
    let outcome = outcome.unwrap_or_else(|_| {
        tracing::error!(command = %request.command, offset = request.offset, "export panicked");
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
        Job::Flush => export.flush().await?,
        Job::Write { offset, fua } => {
            let fua = fua && !mutant::is(Mutant::FuaNotPassedOn);
            export.write(offset, payload, fua).await?;
        }
        Job::Trim { offset, length, fua } => export.trim(offset, length, fua).await?,
        Job::WriteZeroes { offset, length, no_hole, fast, fua } => {
            export.write_zeroes(offset, length, no_hole, fast, fua).await?;
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
                return Err(broken("READ gave another length than was asked for"));
            }
            return Ok(Answer::Data { segments, single_chunk });
        }
        Job::BlockStatus { offset, length, one } => {
            let limit = if one { 1 } else { MAXIMUM_EXTENTS };
            let mut extents = export.block_status(offset, length, limit).await?;
            let longest = match rules.headers {
                _ if one => length,
                HeaderStyle::Extended => u64::MAX,
                HeaderStyle::Simple | HeaderStyle::Structured => LONGEST_COMPACT_EXTENT,
            };
            clip(&mut extents, length, limit, longest);
            let context_id = rules.base_allocation.unwrap_or_default();
            if extents.is_empty() {
                return Err(broken("BLOCK_STATUS gave no extent"));
            }
            return Ok(Answer::Extents { context_id, extents });
        }
    }
    Ok(Answer::Done)
}

/// Ends the extents where the range is covered, where there are enough of them, or where one had to be cut.
fn clip(extents: &mut Vec<Allocation>, length: u64, limit: usize, longest: u64) {
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

/// Values that the specification does not list are EIO, those that it keeps for one command each are EINVAL
/// for any other, and the place of an error lies within the range of its command.
fn fitting(refusal: ExportError, job: Job, request: &Request) -> ExportError {
    let error = match (refusal.error, job) {
        (Error::NotSup, Job::WriteZeroes { fast: true, .. })
        | (Error::Overflow, Job::Read { single_chunk: true, .. }) => refusal.error,
        (Error::NotSup | Error::Overflow, _) => Error::Inval,
        // "the allowed values for the error field have been restricted to set of possibilities".
        (Error::Unknown(_), _) => Error::Io,
        _ => refusal.error,
    };
    let within = |at: &u64| *at >= request.offset && at - request.offset < request.length;
    ExportError { error, at: refusal.at.filter(within), ..refusal }
}

fn broken(message: &str) -> ExportError {
    tracing::error!("export broke its contract: {message}");
    ExportError::new(Error::Io, message)
}
