//! Replies on their way to the socket: a queue of slices that is written with vectored writes.
//!
//! Headers of successive replies share one slice; data is never copied, except where it is so short that a
//! slice of its own costs more. It knows layouts ([`crate::protocol`]) but no socket.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use super::execute::{Answer, Answered};
use super::export::{Allocation, Segment};
use crate::protocol::request::HeaderStyle;
use crate::protocol::{
    AllocationFlags, BlockDescriptor, Chunk, Cookie, Error, Reply, ReplyFlags, WireString,
};

/// What a run of zeros is sent from.
static ZERO_PAGE: [u8; 64 << 10] = [0; 64 << 10];

/// Data up to this length is copied in among the headers.
const COPIED_BYTES: usize = 512;

/// Bytes to send, in order.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// Sealed slices, none of them empty.
    slices: VecDeque<Bytes>,
    /// The slice that is being filled.
    tail: BytesMut,
    remaining: usize,
}

impl Outgoing {
    /// Appends the reply to a request.
    pub(crate) fn push_reply(&mut self, answered: &Answered) {
        let &Answered { headers, cookie, offset, .. } = answered;
        let framing = Framing { headers, cookie, offset };
        match &answered.outcome {
            Ok(answer) => self.push_answer(framing, answer),
            Err(refusal) if headers == HeaderStyle::Simple => self.push_simple(cookie, Err(refusal.error)),
            Err(refusal) => {
                let (error, message) = (refusal.error, WireString::truncated(&refusal.message));
                let chunk = match refusal.at {
                    Some(offset) => Chunk::ErrorOffset { error, message, offset },
                    None => Chunk::Error { error, message },
                };
                self.push_chunk(framing, true, &chunk, &[]);
            }
        }
    }

    fn push_answer(&mut self, framing: Framing, answer: &Answer) {
        match (answer, framing.headers) {
            (Answer::Done, HeaderStyle::Simple | HeaderStyle::Structured) => {
                self.push_simple(framing.cookie, Ok(()));
            }
            (Answer::Done, HeaderStyle::Extended) => self.push_chunk(framing, true, &Chunk::None, &[]),
            (Answer::Data { segments, .. }, HeaderStyle::Simple) => {
                self.push_simple(framing.cookie, Ok(()));
                segments.iter().for_each(|segment| self.push_segment(segment));
            }
            (Answer::Data { segments, single_chunk }, _) => {
                self.push_content(framing, segments, *single_chunk);
            }
            (Answer::Extents { context_id, extents }, headers) => {
                let descriptors = extents.iter().map(descriptor).collect();
                let context_id = *context_id;
                let chunk = if headers == HeaderStyle::Extended {
                    Chunk::BlockStatusExt { context_id, descriptors }
                } else {
                    Chunk::BlockStatus { context_id, descriptors }
                };
                self.push_chunk(framing, true, &chunk, &[]);
            }
        }
    }

    fn push_simple(&mut self, cookie: Cookie, result: Result<(), Error>) {
        self.encode(|tail| Reply::Simple { result, cookie }.encode(tail));
    }

    /// Data as data and holes as holes; adjacent data in one chunk. One chunk in all if told, holes as zeros
    /// then.
    fn push_content(&mut self, framing: Framing, segments: &[Segment], single_chunk: bool) {
        if segments.is_empty() {
            return self.push_chunk(framing, true, &Chunk::None, &[]);
        }
        let is_hole = |segment: &Segment| matches!(segment, Segment::Zero(_));
        let whole_hole = segments.iter().all(is_hole);
        let same_chunk = |a: &Segment, b: &Segment| (single_chunk && !whole_hole) || is_hole(a) == is_hole(b);
        let mut at = framing.offset;
        let mut left = segments.len();
        for run in segments.chunk_by(same_chunk) {
            let length = run.iter().map(Segment::length_bytes).sum::<u64>();
            left -= run.len();
            let hole_length = u32::try_from(length).ok().filter(|_| run.iter().all(is_hole));
            match hole_length {
                Some(length) => {
                    self.push_chunk(framing, left == 0, &Chunk::OffsetHole { offset: at, length }, &[]);
                }
                None => {
                    let chunk = Chunk::OffsetData { offset: at, data: Bytes::new() };
                    self.push_chunk(framing, left == 0, &chunk, run);
                }
            }
            at += length;
        }
    }

    /// A chunk, and the data that follows its payload.
    fn push_chunk(&mut self, framing: Framing, done: bool, chunk: &Chunk, data: &[Segment]) {
        let data_length = data.iter().map(Segment::length_bytes).sum::<u64>();
        self.encode(|tail| {
            framing.encode_header(chunk, done, tail);
            let payload = tail.len();
            chunk.encode_without_data(tail);
            let own_length = u64::try_from(tail.len() - payload).expect("a usize fits 64 bits");
            framing.set_length(own_length + data_length, &mut tail[..payload]);
        });
        data.iter().for_each(|segment| self.push_segment(segment));
    }

    fn push_segment(&mut self, segment: &Segment) {
        match segment {
            Segment::Data(data) if data.len() <= COPIED_BYTES => {
                self.encode(|tail| tail.extend_from_slice(data));
            }
            Segment::Data(data) => self.push_slice(data.clone()),
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
        let before = self.tail.len();
        append(&mut self.tail);
        self.remaining += self.tail.len() - before;
    }

    fn push_slice(&mut self, slice: Bytes) {
        self.seal();
        self.remaining += slice.len();
        self.slices.push_back(slice);
    }

    /// Ends the slice that is being filled: nothing of it changes any more.
    pub(crate) fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.slices.push_back(self.tail.split().freeze());
        }
    }
}

/// Only what is sealed can be read.
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

/// What every chunk of one reply has in its header.
#[derive(Clone, Copy)]
struct Framing {
    headers: HeaderStyle,
    cookie: Cookie,
    offset: u64,
}

impl Framing {
    /// Appends a header whose length is not known yet.
    fn encode_header(self, chunk: &Chunk, done: bool, out: &mut BytesMut) {
        let Self { headers, cookie, offset } = self;
        let flags = if done { ReplyFlags::DONE } else { ReplyFlags::empty() };
        let reply_type = chunk.reply_type();
        match headers {
            HeaderStyle::Extended => {
                Reply::Extended { flags, reply_type, cookie, offset, length: 0 }.encode(out)
            }
            _ => Reply::Structured { flags, reply_type, cookie, length: 0 }.encode(out),
        }
    }

    /// Sets the length, the last field of the header at the end of `out`.
    fn set_length(self, length: u64, out: &mut [u8]) {
        let bytes = length.to_be_bytes();
        let field = if self.headers == HeaderStyle::Extended { &bytes[..] } else { &bytes[4..] };
        let at = out.len() - field.len();
        out[at..].copy_from_slice(field);
    }
}

fn descriptor(extent: &Allocation) -> BlockDescriptor {
    let mut flags = AllocationFlags::empty();
    flags.set(AllocationFlags::HOLE, extent.hole);
    flags.set(AllocationFlags::ZERO, extent.zero);
    BlockDescriptor { length: extent.length_bytes, status: flags.bits() }
}
