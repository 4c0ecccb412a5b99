//! The queue of encoded replies: slices of bytes, ready for vectored writes.
//!
//! Knows the layout of replies ([`crate::protocol`]); must not know the socket. The headers of successive
//! replies share a slice. Invariant: data is never copied, unless it is so short that a slice of its own
//! would cost more.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use super::execute::{Answer, Answered, ContextExtents};
use super::export::{ContextStatus, Segment};
use crate::protocol::request::HeaderStyle;
use crate::protocol::{BlockDescriptor, Chunk, Cookie, Error, Reply, ReplyFlags, WireString};

/// The source of the zeros that are sent.
static ZERO_PAGE: [u8; 64 << 10] = [0; 64 << 10];

/// Maximum length of data that is copied between the headers, in bytes.
const COPIED_BYTES: usize = 512;

/// Maximum length of the headers of a reply without a message, in bytes.
const HEADER_BYTES: usize = 64;
/// How many bytes are allocated for headers at a time.
const HEADERS_BYTES: usize = 4096;

/// Encoded replies in the order in which they are sent.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// Finished slices, none of them empty.
    slices: VecDeque<Bytes>,
    /// The slice that is being filled.
    tail: BytesMut,
    remaining: usize,
}

impl Outgoing {
    /// Appends the reply to a request. Takes the data of a READ out of `answered`.
    pub(super) fn push_reply(&mut self, answered: &mut Answered) {
        let &mut Answered { headers, cookie, offset, .. } = answered;
        let framing = Framing { headers, cookie, offset };
        match &mut answered.outcome {
            Ok(answer) => self.push_answer(framing, answer),
            Err(refusal) if headers == HeaderStyle::Simple => self.push_simple(cookie, Err(refusal.error)),
            //= Structured reply chunk message: MUST NOT use a simple reply for `NBD_CMD_READ` (even for the
            //# case of an early `NBD_EINVAL` due to bad flags)
            Err(refusal) => {
                let (error, message) = (refusal.error, WireString::truncated(&refusal.message));
                let chunk = match refusal.at {
                    Some(offset) => Chunk::ErrorOffset { error, message, offset },
                    None => Chunk::Error { error, message },
                };
                self.push_chunk(framing, true, &chunk, &mut []);
            }
        }
    }

    fn push_answer(&mut self, framing: Framing, answer: &mut Answer) {
        match (answer, framing.headers) {
            (Answer::Done, HeaderStyle::Simple | HeaderStyle::Structured) => {
                self.push_simple(framing.cookie, Ok(()));
            }
            //= Extended reply chunk message: all server replies MUST use an extended reply; the server MUST
            //# NOT use simple replies even when there is no payload
            (Answer::Done, HeaderStyle::Extended) => {
                self.push_chunk(framing, true, &Chunk::None, &mut []);
            }
            (Answer::Data { segments, .. }, HeaderStyle::Simple) => {
                self.push_simple(framing.cookie, Ok(()));
                segments.iter_mut().for_each(|segment| self.push_segment(segment));
            }
            (Answer::Data { segments, single_chunk }, _) => {
                self.push_content(framing, segments, *single_chunk);
            }
            (Answer::Extents(contexts), _) => {
                let mut left = contexts.len();
                for context in contexts {
                    left -= 1;
                    self.push_chunk(framing, left == 0, &status_chunk(framing.headers, context), &mut []);
                }
            }
        }
    }

    fn push_simple(&mut self, cookie: Cookie, result: Result<(), Error>) {
        self.encode(|tail| Reply::Simple { result, cookie }.encode(tail));
    }

    /// Appends the data of a READ: adjacent data as one data chunk, holes as hole chunks. With
    /// `single_chunk`, everything is one chunk; if it contains any data, holes are sent as zeros.
    fn push_content(&mut self, framing: Framing, segments: &mut [Segment], single_chunk: bool) {
        //= Request types: each chunk MUST describe at least one byte
        if segments.is_empty() {
            return self.push_chunk(framing, true, &Chunk::None, &mut []);
        }
        let is_hole = |segment: &Segment| matches!(segment, Segment::Zero(_));
        let whole_hole = segments.iter().all(is_hole);
        //= Request types: If this flag is set, the server MUST send at most one content chunk
        //= Request types: If the area being read contains both data and a hole, the server MUST use
        //# `NBD_REPLY_TYPE_OFFSET_DATA` with the zeroes explicitly present.
        let same_chunk = |a: &Segment, b: &Segment| (single_chunk && !whole_hole) || is_hole(a) == is_hole(b);
        let mut at = framing.offset;
        let mut left = segments.len();
        //= Request types: When no error is detected, the server MUST send enough data chunks to cover the
        //# entire region described by the offset and length of the client's request.
        for run in segments.chunk_by_mut(same_chunk) {
            let length = run.iter().map(Segment::length_bytes).sum::<u64>();
            left -= run.len();
            let hole_length = u32::try_from(length).ok().filter(|_| run.iter().all(is_hole));
            match hole_length {
                Some(length) => {
                    self.push_chunk(framing, left == 0, &Chunk::OffsetHole { offset: at, length }, &mut []);
                }
                None => {
                    let chunk = Chunk::OffsetData { offset: at, data: Bytes::new() };
                    //= Structured and extended header reply flags: MUST set this bit if this is the final
                    //# reply
                    self.push_chunk(framing, left == 0, &chunk, run);
                }
            }
            at += length;
        }
    }

    /// Appends a chunk, followed by `data`.
    fn push_chunk(&mut self, framing: Framing, done: bool, chunk: &Chunk, data: &mut [Segment]) {
        let data_length = data.iter().map(Segment::length_bytes).sum::<u64>();
        self.encode(|tail| {
            framing.encode_header(chunk, done, tail);
            let payload = tail.len();
            chunk.encode_without_data(tail);
            let own_length = u64::try_from(tail.len() - payload).expect("a usize fits 64 bits");
            framing.set_length(own_length + data_length, &mut tail[..payload]);
        });
        data.iter_mut().for_each(|segment| self.push_segment(segment));
    }

    fn push_segment(&mut self, segment: &mut Segment) {
        match segment {
            Segment::Data(data) if data.len() <= COPIED_BYTES => {
                self.encode(|tail| tail.extend_from_slice(data));
            }
            Segment::Data(data) => self.push_slice(std::mem::take(data)),
            Segment::Zero(length) => {
                let mut left = usize::try_from(*length).expect("32 bits fit a usize");
                while left > 0 {
                    let run = left.min(ZERO_PAGE.len());
                    self.push_slice(Bytes::from_static(&ZERO_PAGE[..run]));
                    left -= run;
                }
            }
        }
    }

    fn encode(&mut self, append: impl FnOnce(&mut BytesMut)) {
        // Many short slices share one allocation.
        if self.tail.capacity() - self.tail.len() < HEADER_BYTES {
            self.tail.reserve(HEADERS_BYTES);
        }
        let before = self.tail.len();
        append(&mut self.tail);
        self.remaining += self.tail.len() - before;
    }

    fn push_slice(&mut self, slice: Bytes) {
        self.seal();
        self.remaining += slice.len();
        self.slices.push_back(slice);
    }

    /// Finishes the slice that is being filled, so that it can be sent. Later replies start a new slice.
    pub(crate) fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.slices.push_back(self.tail.split().freeze());
        }
    }
}

/// Reads only finished slices; see [`Outgoing::seal`].
impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        self.remaining - self.tail.len()
    }

    fn chunk(&self) -> &[u8] {
        self.slices.front().map_or(&[], |slice| slice)
    }

    fn advance(&mut self, mut count: usize) {
        self.remaining -= count;
        while let Some(front) = self.slices.front_mut() {
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.slices.pop_front();
        }
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let count = out.len().min(self.slices.len());
        for (place, slice) in out.iter_mut().zip(&self.slices) {
            *place = IoSlice::new(slice);
        }
        count
    }
}

/// The header fields that all chunks of one reply share.
#[derive(Clone, Copy)]
struct Framing {
    headers: HeaderStyle,
    cookie: Cookie,
    offset: u64,
}

impl Framing {
    /// Appends a header with a length of 0. [`Framing::set_length`] fills in the length.
    fn encode_header(self, chunk: &Chunk, done: bool, out: &mut BytesMut) {
        let Self { headers, cookie, offset } = self;
        let flags = if done { ReplyFlags::DONE } else { ReplyFlags::empty() };
        let reply_type = chunk.reply_type();
        match headers {
            HeaderStyle::Extended => {
                //= Extended reply chunk message: The extended reply has an additional field *offset* which
                //# MUST match the *offset* of the client's request
                Reply::Extended { flags, reply_type, cookie, offset, length: 0 }.encode(out)
            }
            _ => Reply::Structured { flags, reply_type, cookie, length: 0 }.encode(out),
        }
    }

    /// Sets the length, which is the last field of the header at the end of `out`.
    fn set_length(self, length: u64, out: &mut [u8]) {
        let bytes = length.to_be_bytes();
        let field = if self.headers == HeaderStyle::Extended { &bytes[..] } else { &bytes[4..] };
        let at = out.len() - field.len();
        out[at..].copy_from_slice(field);
    }
}

/// Makes the chunk with the extents of one context.
fn status_chunk(headers: HeaderStyle, context: &ContextExtents) -> Chunk {
    let descriptor = |extent: &ContextStatus| BlockDescriptor {
        length: extent.length_bytes,
        status: u64::from(extent.status),
    };
    let (context_id, descriptors) = (context.context_id, context.extents.iter().map(descriptor).collect());
    match headers {
        HeaderStyle::Extended => Chunk::BlockStatusExt { context_id, descriptors },
        HeaderStyle::Simple | HeaderStyle::Structured => Chunk::BlockStatus { context_id, descriptors },
    }
}
