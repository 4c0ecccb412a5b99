//! Packs: changed blocks of any chunks of a volume, as frames of one block each, in order of offset.
//!
//! `prologue | id (12) | codec, cipher (2) | count (4) | frames | index: the block of each frame (8 each) |
//! tag of the index (16) | checksum (16)`.
//!
//! Must not know which of the blocks are in use. Invariants: the frames directly follow a header of fixed
//! length, so the offset of a frame depends only on its number. A frame's tag covers the block's place on the
//! volume, so a map that locates a block in the wrong frame is noticed.

use std::ops::Range;

use super::chunk::check_codec;
use super::codec::{Checksum, DecodeError, Decoder, Encoder, Kind, invalid};
use super::frame::{FRAME_BYTES, FRAME_LEN, Place};
use super::geometry::{BLOCK_LEN, BlockIndex};
use super::keys::ObjectId;
use super::sealing::Sealing;

/// Length in bytes of the header, which ends where the first frame begins.
pub const HEADER_BYTES: u64 = (Encoder::PROLOGUE_BYTES + 12 + 2 + 4) as u64;
/// Limit on the frames of a pack.
pub const MAX_FRAMES: u32 = 65_535;
/// The number of blocks of the largest volume: a block of a pack lies before it.
pub const MAX_BLOCKS: u64 = 1 << 41;
/// The number under which the index has its tag.
const INDEX: u64 = u64::MAX;

/// Returns the offset in the object of a frame, in bytes.
#[must_use]
pub fn frame_offset(frame: u32) -> u64 {
    HEADER_BYTES + u64::from(frame) * FRAME_BYTES
}

/// Returns the length in bytes of the index of a pack of `frames` frames, with its tag.
#[must_use]
pub fn index_bytes(frames: u32) -> u64 {
    u64::from(frames) * 8 + Checksum::BYTES as u64
}

/// Returns the bytes of a pack of `frames` frames that are its index, with its tag.
#[must_use]
pub fn index_range(frames: u32) -> Range<u64> {
    let start = frame_offset(frames);
    start..start + index_bytes(frames)
}

/// Returns the length in bytes of a pack of `frames` frames.
#[must_use]
pub fn object_bytes(frames: u32) -> u64 {
    index_range(frames).end + Checksum::BYTES as u64
}

/// Writes a pack, block by block.
#[derive(Debug)]
pub struct PackWriter {
    to: Encoder,
    place: Place,
    blocks: Vec<BlockIndex>,
}

impl PackWriter {
    /// Starts the pack `id`, with capacity for `frames` frames.
    #[must_use]
    pub fn new(sealing: Sealing, id: ObjectId, frames: u32) -> Self {
        let capacity = usize::try_from(object_bytes(frames)).expect("at most 257 MiB");
        Self::within(sealing, id, Vec::with_capacity(capacity))
    }

    /// Starts the pack `id` in a buffer that is reused. The old contents of `memory` are discarded.
    #[must_use]
    pub fn within(sealing: Sealing, id: ObjectId, memory: Vec<u8>) -> Self {
        let mut to = Encoder::within(Kind::Pack, sealing.volume(), memory);
        id.encode(&mut to);
        to.u8(0);
        to.u8(0);
        to.u32(0);
        Self { to, place: Place::pack(sealing, id), blocks: Vec::new() }
    }

    /// Appends a block of the volume. Blocks must be appended in ascending order.
    ///
    /// # Panics
    /// Panics if the block does not follow those so far, if `payload` is not as long as a block, or if the
    /// pack has [`MAX_FRAMES`] frames already.
    pub fn block(&mut self, block: BlockIndex, payload: &[u8]) {
        assert!(
            self.blocks.last().is_none_or(|last| *last < block),
            "block {} is not behind the others",
            block.0
        );
        assert_eq!(payload.len(), BLOCK_LEN, "a block is whole");
        assert!(self.frames() < MAX_FRAMES, "a pack has at most {MAX_FRAMES} frames");
        self.to.raw(payload);
        self.to.raw(&self.place.tag(block.0, payload).0);
        self.blocks.push(block);
    }

    /// Returns the number of frames so far.
    #[must_use]
    pub fn frames(&self) -> u32 {
        u32::try_from(self.blocks.len()).expect("at most 65,535")
    }

    /// Completes the object and returns its bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let count = self.frames().to_le_bytes();
        let end = usize::try_from(HEADER_BYTES).expect("a small number");
        self.to.bytes()[end - 4..end].copy_from_slice(&count);
        let start = self.to.position();
        for block in &self.blocks {
            self.to.u64(block.0);
        }
        let tag = self.place.tag(INDEX, &self.to.written()[start..]);
        self.to.raw(&tag.0);
        self.to.finish()
    }
}

/// Decodes the header of the pack `id`, which is not verified. Returns the number of frames.
///
/// # Errors
/// Returns an error if it is the header of no pack, or of another.
pub fn decode_header(sealing: Sealing, id: ObjectId, bytes: &[u8]) -> Result<u32, DecodeError> {
    let mut to = Encoder::new(Kind::Pack, sealing.volume(), 64);
    id.encode(&mut to);
    to.u8(0);
    to.u8(0);
    let expected = to.written();
    let frames =
        bytes.strip_prefix(expected).and_then(|rest| Some(u32::from_le_bytes(rest.try_into().ok()?)));
    match frames {
        Some(frames) if (1..=MAX_FRAMES).contains(&frames) => Ok(frames),
        Some(frames) => Err(invalid("frames", format!("{frames} are not 1 to {MAX_FRAMES}"))),
        None => Err(invalid("pack", "has the header of another object".to_owned())),
    }
}

/// A decoded and verified pack.
#[derive(Debug, PartialEq, Eq)]
pub struct Pack<'a> {
    /// Id of the pack.
    pub id: ObjectId,
    /// Each frame: the block on the volume, and its payload.
    pub blocks: Vec<(BlockIndex, &'a [u8])>,
}

impl<'a> Pack<'a> {
    /// Decodes a whole pack and verifies every frame.
    ///
    /// # Errors
    /// Returns an error if the object is damaged, or belongs to another volume.
    pub fn decode(sealing: Sealing, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut from = Decoder::object_of(Kind::Pack, sealing.volume(), bytes)?;
        let id = ObjectId::decode(&mut from)?;
        check_codec(&mut from)?;
        let count = from.count(FRAME_LEN + 8)?;
        let frames = u32::try_from(count).ok().filter(|frames| (1..=MAX_FRAMES).contains(frames));
        let Some(frames) = frames else {
            return Err(invalid("frames", format!("{count} are not 1 to {MAX_FRAMES}")));
        };
        let all = from.raw(count * FRAME_LEN)?;
        let index = decode_index(sealing, id, frames, from.raw(from.remaining())?)?;
        let place = Place::pack(sealing, id);
        let mut blocks = Vec::with_capacity(count);
        for (block, frame) in index.into_iter().zip(all.chunks(FRAME_LEN)) {
            blocks.push((block, place.open(block.0, frame).ok_or(DecodeError::Checksum)?));
        }
        Ok(Self { id, blocks })
    }
}

/// Decodes and verifies the index of a pack alone, with the tag that follows it: the block of each frame.
///
/// # Errors
/// Returns an error if the bytes are not the index of the pack `id` with `frames` frames.
pub fn decode_index(
    sealing: Sealing,
    id: ObjectId,
    frames: u32,
    bytes: &[u8],
) -> Result<Vec<BlockIndex>, DecodeError> {
    if bytes.len() as u64 != index_bytes(frames) {
        return Err(invalid("index", format!("{} bytes for {frames} frames", bytes.len())));
    }
    let index = Place::pack(sealing, id).open(INDEX, bytes).ok_or(DecodeError::Checksum)?;
    let blocks: Vec<BlockIndex> = index
        .chunks_exact(8)
        .map(|block| BlockIndex(u64::from_le_bytes(block.try_into().expect("eight bytes"))))
        .collect();
    if !blocks.is_sorted_by(|a, b| a < b) || blocks.last().is_some_and(|last| last.0 >= MAX_BLOCKS) {
        return Err(invalid("index", "the blocks are not in ascending order, or beyond the largest volume"));
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn each_frame_lies_where_its_number_says_and_is_bound_to_its_block() {
        let (sealing, id) = (Sealing::new(Uuid::from_u128(1)), ObjectId { epoch: 1, k: 2 });
        let mut writer = PackWriter::new(sealing, id, 3);
        let blocks = [(3, 7), (4, 8), (1 << 40, 9)];
        for (block, fill) in blocks {
            writer.block(BlockIndex(block), &[fill; BLOCK_LEN]);
        }
        let bytes = writer.finish();
        assert_eq!(bytes.len() as u64, object_bytes(3));
        for (frame, (block, fill)) in (0..).zip(blocks) {
            let at = usize::try_from(frame_offset(frame)).unwrap();
            let stored = &bytes[at..at + FRAME_LEN];
            assert_eq!(Place::pack(sealing, id).open(block, stored), Some(&[fill; BLOCK_LEN][..]));
            assert_eq!(Place::pack(sealing, id).open(block + 1, stored), None);
        }
        let at = usize::try_from(frame_offset(3)).unwrap();
        let index = &bytes[at..at + usize::try_from(index_bytes(3)).unwrap()];
        assert_eq!(decode_index(sealing, id, 3, index).unwrap(), [3, 4, 1 << 40].map(BlockIndex));
        decode_index(sealing, id, 2, index).expect_err("it has three frames");
        decode_index(sealing, ObjectId { epoch: 1, k: 3 }, 3, index).expect_err("another pack");
        let pack = Pack::decode(sealing, &bytes).unwrap();
        assert_eq!(pack.blocks.iter().map(|(block, data)| (block.0, data[0])).collect::<Vec<_>>(), blocks);
    }
}
