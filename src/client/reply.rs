//! Assembles replies: combines the chunks of one request into its result.
//!
//! Knows requests and chunks; must not do I/O. Invariant: an accepted reply covers exactly the requested
//! range, and each byte once.

use bytes::{Bytes, BytesMut};

use super::error::Error;
use crate::protocol::{
    BlockDescriptor, Chunk, Command, DecodeError, Error as CommandError, MetaContext, Request,
};

/// A part of the result of a READ. Segments are in order and have no gaps between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes of the export.
    Data(Bytes),
    /// This many zero bytes, which the server sent as a hole.
    Hole(u64),
}

/// The extents of a range in one metadata context. They start at the beginning of the range and have no gaps
/// between them. They may end before or after the end of the range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextExtents {
    /// The metadata context that the extents belong to.
    pub context: MetaContext,
    /// The extents in order; never empty.
    pub extents: Vec<BlockDescriptor>,
}

/// The result of a successful command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Read(Vec<Segment>),
    Extents(Vec<ContextExtents>),
}

/// A reply that is not complete yet.
#[derive(Debug)]
pub(crate) struct Gathering {
    request: Request,
    /// The content of a READ, with the offset of each segment, in order of arrival.
    content: Vec<(u64, Segment)>,
    content_bytes: u64,
    extents: Vec<ContextExtents>,
    /// The first error in the reply.
    error: Option<Error>,
}

impl Gathering {
    pub(crate) fn new(request: Request) -> Self {
        Self { request, content: Vec::new(), content_bytes: 0, extents: Vec::new(), error: None }
    }

    /// The request that this reply belongs to.
    pub(crate) fn request(&self) -> &Request {
        &self.request
    }

    /// Completes the reply with a simple reply. `data` is what follows the header if a READ succeeded.
    pub(super) fn finish_simple(
        self,
        result: Result<(), CommandError>,
        data: Bytes,
    ) -> Result<Outcome, Error> {
        result.map_err(|error| Error::Command { error, message: String::new() })?;
        if self.request.command != Command::Read {
            return Ok(Outcome::Done);
        }
        Ok(Outcome::Read(if data.is_empty() { Vec::new() } else { vec![Segment::Data(data)] }))
    }

    /// Adds a chunk. Returns an error if the server violated the protocol.
    pub(crate) fn add(&mut self, chunk: Chunk, contexts: &[MetaContext]) -> Result<(), DecodeError> {
        match chunk {
            Chunk::None => Ok(()),
            Chunk::OffsetData { offset, data } => {
                let length = u64::try_from(data.len()).expect("a usize fits 64 bits");
                self.add_content(offset, length, Segment::Data(data))
            }
            Chunk::OffsetHole { offset, length } => {
                self.add_content(offset, u64::from(length), Segment::Hole(u64::from(length)))
            }
            Chunk::BlockStatus { context_id, descriptors }
            | Chunk::BlockStatusExt { context_id, descriptors } => {
                self.add_extents(context_id, descriptors, contexts)
            }
            Chunk::Error { error, message }
            | Chunk::ErrorOffset { error, message, .. }
            | Chunk::UnknownError { error, message, .. } => {
                let message = message.into();
                self.error.get_or_insert(Error::Command { error, message });
                Ok(())
            }
        }
    }

    fn add_content(&mut self, offset: u64, length: u64, segment: Segment) -> Result<(), DecodeError> {
        if self.request.command != Command::Read {
            return Err(invalid("content in reply to something else than READ"));
        }
        // The end of the request cannot overflow, because the client checks its range before sending it.
        let end = offset.checked_add(length).ok_or(invalid("content beyond 64 bits"))?;
        if offset < self.request.offset || end > self.request.offset + self.request.length {
            return Err(invalid("content outside the range of the READ"));
        }
        if self.content.len() > MAXIMUM_PARTS {
            return Err(invalid("READ answered in too many chunks"));
        }
        // Overlaps are detected at the end. Until then this check limits the memory to the requested length.
        self.content_bytes += length;
        if self.content_bytes > self.request.length {
            return Err(invalid("content of a READ overlaps"));
        }
        self.content.push((offset, segment));
        Ok(())
    }

    fn add_extents(
        &mut self,
        id: u32,
        extents: Vec<BlockDescriptor>,
        contexts: &[MetaContext],
    ) -> Result<(), DecodeError> {
        if self.request.command != Command::BlockStatus {
            return Err(invalid("extents in reply to something else than BLOCK_STATUS"));
        }
        let context = contexts.iter().find(|context| context.id == id);
        let context = context.ok_or(invalid("extents of a context that was not selected"))?;
        if self.extents.iter().any(|earlier| earlier.context.id == id) {
            return Err(invalid("extents of a context twice"));
        }
        self.extents.push(ContextExtents { context: context.clone(), extents });
        Ok(())
    }

    /// Completes a reply that consists of chunks. The inner error is the failure of the command. The outer
    /// error means that the server violated the protocol.
    pub(crate) fn finish(mut self, contexts: &[MetaContext]) -> Result<Result<Outcome, Error>, DecodeError> {
        if let Some(error) = self.error {
            return Ok(Err(error));
        }
        match self.request.command {
            Command::Read => {
                self.content.sort_by_key(|(offset, _)| *offset);
                let mut at = self.request.offset;
                for (offset, segment) in &self.content {
                    if *offset != at {
                        return Err(invalid("content of a READ overlaps or is missing"));
                    }
                    at += segment.length();
                }
                if at != self.request.offset + self.request.length {
                    return Err(invalid("content of a READ is missing"));
                }
                let segments = self.content.into_iter().map(|(_, segment)| segment).collect();
                Ok(Ok(Outcome::Read(segments)))
            }
            Command::BlockStatus if self.extents.len() != contexts.len() => {
                Err(invalid("BLOCK_STATUS without the extents of every context"))
            }
            Command::BlockStatus => Ok(Ok(Outcome::Extents(self.extents))),
            _ => Ok(Ok(Outcome::Done)),
        }
    }
}

/// Maximum number of content chunks of one READ, more than any reasonable server sends.
const MAXIMUM_PARTS: usize = 1 << 16;

impl Segment {
    /// Number of bytes of the export that this segment covers.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Data(data) => u64::try_from(data.len()).expect("a usize fits 64 bits"),
            Self::Hole(length) => *length,
        }
    }
}

/// Joins the segments of a READ into one buffer, with holes as zeros.
pub(super) fn concatenate(mut segments: Vec<Segment>) -> Bytes {
    if let [Segment::Data(_)] = segments[..]
        && let Some(Segment::Data(data)) = segments.pop()
    {
        return data;
    }
    let length: u64 = segments.iter().map(Segment::length).sum();
    let mut bytes = BytesMut::with_capacity(usize::try_from(length).unwrap_or_default());
    for segment in segments {
        match segment {
            Segment::Data(data) => bytes.extend_from_slice(&data),
            Segment::Hole(length) => {
                bytes.resize(bytes.len() + usize::try_from(length).expect("a READ fits memory"), 0);
            }
        }
    }
    bytes.freeze()
}

const fn invalid(message: &'static str) -> DecodeError {
    DecodeError::Invalid(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{CommandFlags, Cookie, WireString};

    fn asked(command: Command) -> Gathering {
        let (flags, cookie) = (CommandFlags::empty(), Cookie(1));
        Gathering::new(Request { flags, command, cookie, offset: 100, length: 10 })
    }

    fn data(offset: u64, bytes: &'static [u8]) -> Chunk {
        Chunk::OffsetData { offset, data: Bytes::from_static(bytes) }
    }

    #[test]
    fn chunks_in_any_order_are_put_in_order() {
        let mut read = asked(Command::Read);
        read.add(data(107, b"xyz"), &[]).unwrap();
        read.add(Chunk::OffsetHole { offset: 102, length: 5 }, &[]).unwrap();
        read.add(data(100, b"ab"), &[]).unwrap();
        let Ok(Ok(Outcome::Read(segments))) = read.finish(&[]) else { panic!("it is complete") };
        assert_eq!(&concatenate(segments)[..], b"ab\0\0\0\0\0xyz");
    }

    #[test]
    fn content_that_is_missing_overlaps_or_lies_outside_is_a_violation() {
        let mut missing = asked(Command::Read);
        missing.add(data(100, b"abcdefgh"), &[]).unwrap();
        assert!(missing.finish(&[]).is_err());
        let mut overlapping = asked(Command::Read);
        overlapping.add(data(100, b"abcdef"), &[]).unwrap();
        overlapping.add(data(105, b"abcd"), &[]).unwrap();
        assert!(overlapping.finish(&[]).is_err());
        let mut repeated = asked(Command::Read);
        repeated.add(data(100, b"abcdefgh"), &[]).unwrap();
        assert!(repeated.add(data(100, b"abcdefgh"), &[]).is_err(), "no more is kept than was asked for");
        assert!(asked(Command::Read).add(data(99, b"a"), &[]).is_err());
        assert!(asked(Command::Read).add(data(109, b"ab"), &[]).is_err());
        assert!(asked(Command::Read).add(data(u64::MAX, b"ab"), &[]).is_err());
        assert!(asked(Command::Write).add(data(100, b"a"), &[]).is_err());
    }

    #[test]
    fn an_error_chunk_fails_the_command_whatever_else_came() {
        let mut read = asked(Command::Read);
        read.add(data(100, b"0123456789"), &[]).unwrap();
        let message = WireString::try_from("bad sector").unwrap();
        read.add(Chunk::ErrorOffset { error: CommandError::Io, message, offset: 105 }, &[]).unwrap();
        let failed = read.finish(&[]).unwrap().unwrap_err();
        assert!(
            matches!(failed, Error::Command { error: CommandError::Io, message } if message == "bad sector")
        );
    }

    #[test]
    fn block_status_has_every_context_once() {
        let context = MetaContext { id: 3, name: WireString::try_from("base:allocation").unwrap() };
        let contexts = [context.clone()];
        let extents = vec![BlockDescriptor { length: 10, status: 0 }];
        let chunk = |id| Chunk::BlockStatus { context_id: id, descriptors: extents.clone() };
        let mut status = asked(Command::BlockStatus);
        assert!(status.add(chunk(4), &contexts).is_err());
        status.add(chunk(3), &contexts).unwrap();
        assert!(status.add(chunk(3), &contexts).is_err());
        let finished = status.finish(&contexts).unwrap().unwrap();
        assert_eq!(finished, Outcome::Extents(vec![ContextExtents { context, extents }]));
        assert!(asked(Command::BlockStatus).finish(&contexts).is_err());
    }
}
