//! Chunk objects: the pages of one chunk as frames of one block each, so that a cold read of a block or of
//! many is one ranged GET.
//!
//! `prologue | index (4) | id (12) | pages of a chunk (2) | codec, cipher (2) | stored pages |
//! frames | checksum (16)`.
//!
//! Must not know which chunks exist or where their objects are referenced. Invariant: the frame of a block
//! begins at [`frame_offset`] of the rank of its page among the stored pages, so a map entry with these pages
//! is enough to find it.

use super::codec::{Checksum, DecodeError, Decoder, Encoder, Kind, invalid};
use super::frame::{FRAME_BYTES, FRAME_LEN, Place};
use super::geometry::{BLOCK_LEN, BLOCKS_PER_PAGE, ChunkIndex, MAX_PAGES_PER_CHUNK, PAGE_LEN, PageIndex};
use super::keys::ObjectId;
use super::page_set::PageSet;
use super::sealing::Sealing;

/// Returns the length of the header in bytes: the offset of the first frame.
#[must_use]
pub fn header_bytes(pages_per_chunk: u16) -> u64 {
    let fixed = Encoder::PROLOGUE_BYTES + 4 + 12 + 2 + 2;
    u64::try_from(fixed + PageSet::encoded_bytes(pages_per_chunk)).expect("a small number")
}

/// Returns the offset in the object, in bytes, of the frame of block `block` (0 to 15) of the stored page
/// with this rank.
#[must_use]
pub fn frame_offset(pages_per_chunk: u16, rank: u32, block: u32) -> u64 {
    header_bytes(pages_per_chunk) + u64::from(rank * BLOCKS_PER_PAGE + block) * FRAME_BYTES
}

/// Returns the length in bytes of a chunk object with `stored` stored pages.
#[must_use]
pub fn object_bytes(pages_per_chunk: u16, stored: u32) -> u64 {
    frame_offset(pages_per_chunk, stored, 0) + Checksum::BYTES as u64
}

/// Returns the payload of block `block` (0 to 15) of the stored page with this rank, from a whole object. It
/// is not verified.
///
/// # Panics
/// Panics if the object ends before the payload does.
#[must_use]
pub fn payload(object: &[u8], pages_per_chunk: u16, rank: u32, block: u32) -> &[u8] {
    let at = usize::try_from(frame_offset(pages_per_chunk, rank, block)).expect("at most 33 MiB");
    &object[at..at + BLOCK_LEN]
}

/// Writes a chunk object, page by page.
#[derive(Debug)]
pub struct ChunkWriter {
    to: Encoder,
    place: Place,
    pages_per_chunk: u16,
    stored: PageSet,
    next: u16,
}

impl ChunkWriter {
    /// Starts the object `id`, with capacity for `pages` pages.
    #[must_use]
    pub fn new(sealing: Sealing, index: ChunkIndex, id: ObjectId, pages_per_chunk: u16, pages: u32) -> Self {
        let capacity = object_bytes(pages_per_chunk, pages);
        let memory = Vec::with_capacity(usize::try_from(capacity).expect("at most 33 MiB"));
        Self::within(sealing, index, id, pages_per_chunk, memory)
    }

    /// Starts the object `id` in a buffer that is reused. The old contents of `memory` are discarded.
    #[must_use]
    pub fn within(
        sealing: Sealing,
        index: ChunkIndex,
        id: ObjectId,
        pages_per_chunk: u16,
        memory: Vec<u8>,
    ) -> Self {
        let mut to = Encoder::within(Kind::Chunk, sealing.volume(), memory);
        to.u32(index.0);
        id.encode(&mut to);
        to.u16(pages_per_chunk);
        to.u8(0);
        to.u8(0);
        PageSet::EMPTY.encode(pages_per_chunk, &mut to);
        let place = Place::chunk(sealing, index.0, id);
        Self { to, place, pages_per_chunk, stored: PageSet::EMPTY, next: 0 }
    }

    /// Appends a page. Pages must be appended in ascending order.
    ///
    /// # Panics
    /// Panics if `page` does not follow the pages so far, or if `payload` is not as long as a page.
    pub fn page(&mut self, page: PageIndex, payload: &[u8]) {
        assert_eq!(payload.len(), PAGE_LEN, "a page is whole");
        self.page_of(page, payload.chunks(BLOCK_LEN));
    }

    /// Appends a page that consists of these blocks.
    ///
    /// # Panics
    /// Panics if `page` does not follow the pages so far, or if `blocks` are not 16 whole blocks.
    pub fn page_of<'a>(&mut self, page: PageIndex, blocks: impl IntoIterator<Item = &'a [u8]>) {
        let follows = (self.next..self.pages_per_chunk).contains(&page.0);
        assert!(follows, "page {} is not behind the others", page.0);
        let first = u64::from(page.first_block());
        let mut count = 0;
        for block in blocks {
            assert_eq!(block.len(), BLOCK_LEN, "a block is whole");
            self.to.raw(block);
            self.to.raw(&self.place.tag(first + count, block).0);
            count += 1;
        }
        assert_eq!(count, u64::from(BLOCKS_PER_PAGE), "a page has all its blocks");
        self.stored.insert(page);
        self.next = page.0 + 1;
    }

    /// Returns the pages appended so far.
    #[must_use]
    pub fn stored(&self) -> PageSet {
        self.stored
    }

    /// Completes the object and returns its bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let end = usize::try_from(header_bytes(self.pages_per_chunk)).expect("a small number");
        let start = end - PageSet::encoded_bytes(self.pages_per_chunk);
        self.stored.write(&mut self.to.bytes()[start..end]);
        self.to.finish()
    }
}

/// A decoded and verified chunk object.
#[derive(Debug, PartialEq, Eq)]
pub struct ChunkObject<'a> {
    /// Index of the chunk in the volume.
    pub index: ChunkIndex,
    /// Id of this object.
    pub id: ObjectId,
    /// The pages that the object stores.
    pub stored: PageSet,
    /// The payload of each block of the stored pages, in order.
    pub blocks: Vec<&'a [u8]>,
}

impl<'a> ChunkObject<'a> {
    /// Decodes a whole object and verifies every frame.
    ///
    /// # Errors
    /// Returns an error if the object is damaged, or belongs to another volume.
    pub fn decode(sealing: Sealing, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut from = Decoder::object_of(Kind::Chunk, sealing.volume(), bytes)?;
        let index = ChunkIndex(from.u32()?);
        let id = ObjectId::decode(&mut from)?;
        let pages_per_chunk = from.u16()?;
        if !pages_per_chunk.is_power_of_two() || pages_per_chunk > MAX_PAGES_PER_CHUNK {
            return Err(invalid(
                "pages of a chunk",
                format!("{pages_per_chunk} is no power of two up to 512"),
            ));
        }
        check_codec(&mut from)?;
        let stored = PageSet::decode(pages_per_chunk, &mut from)?;
        let place = Place::chunk(sealing, index.0, id);
        let mut blocks = Vec::new();
        for page in stored.iter() {
            for block in 0..BLOCKS_PER_PAGE {
                let number = u64::from(page.first_block() + block);
                blocks.push(place.open(number, from.raw(FRAME_LEN)?).ok_or(DecodeError::Checksum)?);
            }
        }
        from.finish()?;
        Ok(Self { index, id, stored, blocks })
    }
}

/// Reads the codec and the cipher of an object, which must be 0.
pub(super) fn check_codec(from: &mut Decoder<'_>) -> Result<(), DecodeError> {
    match (from.u8()?, from.u8()?) {
        (0, 0) => Ok(()),
        (codec, cipher) => Err(invalid("codec and cipher", format!("{codec} and {cipher} are unknown"))),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn each_frame_lies_where_the_bitmap_says() {
        let sealing = Sealing::new(Uuid::from_u128(1));
        let id = ObjectId { epoch: 1, k: 2 };
        let mut stored = PageSet::EMPTY;
        [1, 5, 63].into_iter().for_each(|page| stored.insert(PageIndex(page)));
        let mut writer = ChunkWriter::new(sealing, ChunkIndex(3), id, 64, stored.len());
        let fill = |page: PageIndex, block: u32| u8::try_from(u32::from(page.0) + block).unwrap();
        for page in stored.iter() {
            let blocks: Vec<Vec<u8>> = (0..16).map(|block| vec![fill(page, block); BLOCK_LEN]).collect();
            writer.page_of(page, blocks.iter().map(|block| &block[..]));
        }
        let bytes = writer.finish();
        assert_eq!(bytes.len() as u64, object_bytes(64, 3));
        for page in stored.iter() {
            for block in 0..BLOCKS_PER_PAGE {
                let at = usize::try_from(frame_offset(64, stored.rank(page), block)).unwrap();
                let number = u64::from(page.first_block() + block);
                let opened = Place::chunk(sealing, 3, id).open(number, &bytes[at..at + FRAME_LEN]);
                assert_eq!(opened, Some(&vec![fill(page, block); BLOCK_LEN][..]));
                assert_eq!(opened, Some(payload(&bytes, 64, stored.rank(page), block)));
            }
        }
        let object = ChunkObject::decode(sealing, &bytes).unwrap();
        assert_eq!(
            (object.index, object.id, object.stored, object.blocks.len()),
            (ChunkIndex(3), id, stored, 48)
        );
    }
}
