//! Chunk objects: the pages of one chunk as frames of equal size, so that a cold read is one ranged GET.
//!
//! `prologue | index (4) | id (12) | pages of a chunk (2) | codec, cipher (2) | stored pages |
//! frames | checksum (16)`.
//!
//! Must not know which chunks exist or where their objects are referenced. Invariant: the frame of page p
//! begins at [`frame_offset`] of the rank of p among the stored pages, so a map entry with these pages is
//! enough to find it.

use std::convert::Infallible;

use bytes::Bytes;
use uuid::Uuid;

use super::codec::{Checksum, DecodeError, Decoder, Encoder, Kind, invalid};
use super::frame::{Place, TAG_BYTES};
use super::geometry::{ChunkIndex, PAGE_BYTES};
use super::keys::ObjectId;
use super::page_set::PageSet;

/// Length of a frame in bytes: a page, uncompressed, and its tag.
pub const FRAME_BYTES: u64 = PAGE_BYTES + TAG_BYTES;

/// Returns the length of the header in bytes: the offset of the first frame.
#[must_use]
pub fn header_bytes(pages_per_chunk: u16) -> u64 {
    let fixed = Encoder::PROLOGUE_BYTES + 4 + 12 + 2 + 2;
    u64::try_from(fixed + PageSet::encoded_bytes(pages_per_chunk)).expect("a small number")
}

/// Returns the offset in the object of the frame with this rank, in bytes.
#[must_use]
pub fn frame_offset(pages_per_chunk: u16, rank: u32) -> u64 {
    header_bytes(pages_per_chunk) + u64::from(rank) * FRAME_BYTES
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
    pub fn new(volume: Uuid, index: ChunkIndex, id: ObjectId, pages_per_chunk: u16, pages: u32) -> Self {
        let capacity = object_bytes(pages_per_chunk, pages);
        let memory = Vec::with_capacity(usize::try_from(capacity).expect("at most 33 MiB"));
        Self::within(volume, index, id, pages_per_chunk, memory)
    }

    /// Starts the object `id` in a buffer that is reused. The old contents of `memory` are discarded.
    #[must_use]
    pub fn within(
        volume: Uuid,
        index: ChunkIndex,
        id: ObjectId,
        pages_per_chunk: u16,
        memory: Vec<u8>,
    ) -> Self {
        let mut to = Encoder::within(Kind::Chunk, volume, memory);
        to.u32(index.0);
        id.encode(&mut to);
        to.u16(pages_per_chunk);
        to.u8(0);
        to.u8(0);
        PageSet::EMPTY.encode(pages_per_chunk, &mut to);
        let place = Place::chunk(volume, index.0, id);
        Self { to, place, pages_per_chunk, stored: PageSet::EMPTY, next: 0 }
    }

    /// Appends a page. Pages must be appended in ascending order.
    ///
    /// # Panics
    /// Panics if `page` does not follow the pages so far, or if `payload` is not as long as a page.
    pub fn page(&mut self, page: u16, payload: &[u8]) {
        self.page_of(page, [payload]);
    }

    /// Appends a page whose bytes are the concatenation of `parts`.
    ///
    /// # Panics
    /// Panics like [`ChunkWriter::page`].
    pub fn page_of<'a>(&mut self, page: u16, parts: impl IntoIterator<Item = &'a [u8]>) {
        let append = |bytes: &mut Vec<u8>| -> Result<bool, Infallible> {
            parts.into_iter().for_each(|part| bytes.extend_from_slice(part));
            Ok(true)
        };
        let Ok(_) = self.compose(page, append);
    }

    /// Appends a page whose bytes `compose` appends to the buffer. If `compose` returns `false`,
    /// no page is appended.
    ///
    /// # Errors
    /// Returns the errors of `compose`. No page is appended then.
    ///
    /// # Panics
    /// Panics if `page` does not follow the pages so far, or if `compose` does not append exactly one page.
    pub fn compose<E>(
        &mut self,
        page: u16,
        compose: impl FnOnce(&mut Vec<u8>) -> Result<bool, E>,
    ) -> Result<bool, E> {
        assert!((self.next..self.pages_per_chunk).contains(&page), "page {page} is not behind the others");
        let bytes = self.to.bytes();
        let start = bytes.len();
        let composed = compose(bytes);
        if !matches!(composed, Ok(true)) {
            bytes.truncate(start);
            return composed;
        }
        assert_eq!((bytes.len() - start) as u64, PAGE_BYTES, "a page is whole");
        let tag = self.place.tag(u32::from(page), &bytes[start..]);
        self.to.raw(&tag.0);
        self.stored.insert(page);
        self.next = page + 1;
        Ok(true)
    }

    /// Returns the pages appended so far.
    #[must_use]
    pub fn stored(&self) -> PageSet {
        self.stored
    }

    /// Completes the object and returns its bytes.
    #[must_use]
    pub fn finish(mut self) -> Bytes {
        let end = usize::try_from(header_bytes(self.pages_per_chunk)).expect("a small number");
        let start = end - PageSet::encoded_bytes(self.pages_per_chunk);
        self.stored.write(&mut self.to.bytes()[start..end]);
        Bytes::from(self.to.finish())
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
    /// The payload of each stored page, in order of page.
    pub pages: Vec<&'a [u8]>,
}

impl<'a> ChunkObject<'a> {
    /// Decodes a whole object and verifies every frame.
    ///
    /// # Errors
    /// Returns an error if the object is damaged, or belongs to another volume.
    pub fn decode(volume: Uuid, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut from = Decoder::object_of(Kind::Chunk, volume, bytes)?;
        let index = ChunkIndex(from.u32()?);
        let id = ObjectId::decode(&mut from)?;
        let pages_per_chunk = from.u16()?;
        if !pages_per_chunk.is_power_of_two() || pages_per_chunk > super::geometry::MAX_PAGES_PER_CHUNK {
            return Err(invalid(
                "pages of a chunk",
                format!("{pages_per_chunk} is no power of two up to 512"),
            ));
        }
        let (codec, cipher) = (from.u8()?, from.u8()?);
        if (codec, cipher) != (0, 0) {
            return Err(invalid("codec and cipher", format!("{codec} and {cipher} are unknown")));
        }
        let stored = PageSet::decode(pages_per_chunk, &mut from)?;
        let place = Place::chunk(volume, index.0, id);
        let frame_bytes = usize::try_from(FRAME_BYTES).expect("64 KiB and a tag");
        let mut pages = Vec::new();
        for page in stored.iter() {
            pages.push(place.open(u32::from(page), from.raw(frame_bytes)?).ok_or(DecodeError::Checksum)?);
        }
        from.finish()?;
        Ok(Self { index, id, stored, pages })
    }
}

/// Returns the length in bytes of a chunk object with `stored` stored pages.
#[must_use]
pub fn object_bytes(pages_per_chunk: u16, stored: u32) -> u64 {
    frame_offset(pages_per_chunk, stored) + Checksum::BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_frame_lies_where_the_bitmap_says() {
        let volume = Uuid::from_u128(1);
        let id = ObjectId { epoch: 1, k: 2 };
        let mut stored = PageSet::EMPTY;
        [1, 5, 63].into_iter().for_each(|p| stored.insert(p));
        let mut writer = ChunkWriter::new(volume, ChunkIndex(3), id, 64, stored.len());
        for page in stored.iter() {
            writer.page(page, &vec![u8::try_from(page).unwrap(); 65_536]);
        }
        let bytes = writer.finish();
        assert_eq!(bytes.len() as u64, object_bytes(64, 3));
        for page in stored.iter() {
            let at = usize::try_from(frame_offset(64, stored.rank(page))).unwrap();
            let frame = &bytes[at..at + usize::try_from(FRAME_BYTES).unwrap()];
            let payload = Place::chunk(volume, 3, id).open(u32::from(page), frame).expect("the tag fits");
            assert!(payload.iter().all(|b| u16::from(*b) == page));
        }
        let object = ChunkObject::decode(volume, &bytes).unwrap();
        assert_eq!(
            (object.index, object.id, object.stored, object.pages.len()),
            (ChunkIndex(3), id, stored, 3)
        );
    }
}
