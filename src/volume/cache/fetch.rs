//! Pieces of objects: how the cache identifies them, where they are stored, and how they are verified.
//!
//! Must not know how pieces are fetched or held. Invariant: bytes that [`Fetch::open`] returns are exactly
//! the bytes that were written at that position of that object.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::held::{Held, mask_of};
use crate::mutant::{self, Mutant};
use crate::volume::format::chunk;
use crate::volume::format::codec::Checksum;
use crate::volume::format::frame::{FRAME_BYTES, FRAME_LEN, Place};
use crate::volume::format::geometry::{
    BLOCK_BYTES, BLOCK_LEN, BLOCKS_PER_PAGE, BlockIndex, ChunkIndex, PageIndex,
};
use crate::volume::format::keys::{Keys, ObjectId, Slot};
use crate::volume::format::pack;
use crate::volume::format::page_set::PageSet;
use crate::volume::format::sealing::Sealing;
use crate::volume::state::piece::{ChunkRef, RecordRef, are_blocks, part};

/// Identifies a piece of an object in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey {
    /// The volume that owns the object.
    pub volume: Uuid,
    /// Which piece of which of its objects.
    pub unit: Unit,
}

/// A piece of an object, within its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// The blocks of a page of a chunk object: chunk, object, page in the chunk.
    Page(ChunkIndex, ObjectId, PageIndex),
    /// 16 successive frames of a pack: pack, number of the first frame divided by 16.
    Packed(ObjectId, u16),
    /// The data of a run of changes of a record: slot, number of the run.
    Run(Slot, u32),
    /// Up to 16 blocks of successive changes of a record, or one change that does not consist of blocks:
    /// slot, number of the first change.
    Change(Slot, u32),
    /// A map page with its overlays: its number, its object.
    Map(u32, ObjectId),
    /// A map page without its overlays: its number, its object.
    Entries(u32, ObjectId),
}

impl Unit {
    /// Identifies a page of a chunk object.
    #[must_use]
    pub fn page(index: ChunkIndex, id: ObjectId, page: PageIndex) -> Self {
        let id = if mutant::is(Mutant::CachedByOffset) { ObjectId { epoch: 0, k: 0 } } else { id };
        Self::Page(index, id, page)
    }
}

/// An object of a volume that pieces are fetched from. Its key is built only when something is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A chunk object: chunk, object.
    Chunk(ChunkIndex, ObjectId),
    /// A pack.
    Pack(ObjectId),
    /// A record of the journal.
    Record(Slot),
}

/// How the bytes of a piece are verified.
#[derive(Clone, Debug)]
pub enum Check {
    /// By the tag that follows each block. Contains the number of the first frame; those of the others
    /// follow it.
    Frames(Place, u64),
    /// A change, by a tag that is already known. Contains the number of the change, which was hashed into the
    /// tag, and the number of its first block in the piece.
    Tag(Place, u64, Checksum, u32),
    /// A run of changes, each by its own tag. Contains the place of the record's data, and the number of the
    /// change that is wanted.
    Run(Place, Arc<RecordRef>, u32),
}

/// A piece to fetch: where it is stored and how it is verified.
///
/// Outside `format`, only the functions of this type decide where a frame lies in an object that is fetched.
/// All frames are equally long, so the offset of a frame follows from its number. In a compressed object it
/// would come from an index, which is part of the object and may have to be fetched first. Then
/// [`Fetch::chunk`] and [`Fetch::pack`] would be async, and look it up through the cache.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// Identifies the piece in the cache.
    pub key: CacheKey,
    /// The object that stores the piece.
    pub object: Source,
    /// Offset of the piece in the object, in bytes.
    pub at: u64,
    /// The first wanted block of the up to 16 that share the key. For runs, and for changes that do not
    /// consist of whole blocks, 0.
    pub first: u32,
    /// The number of wanted blocks. For runs, and for changes that do not consist of whole blocks, 1.
    pub count: u32,
    /// Length of the payload in bytes: of the wanted frames, or of the whole run or change.
    pub length: u32,
    /// How the piece is verified.
    pub check: Check,
}

impl Fetch {
    /// Returns the fetch for successive blocks of one page of a chunk object. `owner` is the sealing
    /// of the volume that owns the object, `stored` the pages that it stores. The blocks are counted from
    /// the start of the chunk.
    #[must_use]
    pub fn chunk(
        owner: Sealing,
        pages_per_chunk: u16,
        (index, id, stored): (ChunkIndex, ObjectId, &PageSet),
        blocks: Range<u32>,
    ) -> Self {
        let (first, count) = (blocks.start, blocks.end - blocks.start);
        let page = PageIndex::of_block(first);
        let within = first % BLOCKS_PER_PAGE;
        Self {
            key: CacheKey { volume: owner.volume(), unit: Unit::page(index, id, page) },
            object: Source::Chunk(index, id),
            at: chunk::frame_offset(pages_per_chunk, stored.rank(page), within),
            first: within,
            count,
            length: count * u32::try_from(BLOCK_LEN).expect("4 KiB"),
            check: Check::Frames(Place::chunk(owner, index.0, id), u64::from(first)),
        }
    }

    /// Returns the fetch for successive blocks of a chunk that a commit references.
    #[must_use]
    pub fn filled(sealing: Sealing, chunk: &ChunkRef, blocks: Range<u32>) -> Self {
        Self::chunk(sealing, chunk.pages_per_chunk, (chunk.index, chunk.id, &chunk.stored), blocks)
    }

    /// Returns the fetch for successive frames of a pack, all within the same 16. `block` is the block of the
    /// first frame.
    #[must_use]
    pub fn pack(owner: Sealing, id: ObjectId, frame: u16, count: u32, block: BlockIndex) -> Self {
        let group = frame / 16;
        Self {
            key: CacheKey { volume: owner.volume(), unit: Unit::Packed(id, group) },
            object: Source::Pack(id),
            at: pack::frame_offset(u32::from(frame)),
            first: u32::from(frame % 16),
            count,
            length: count * u32::try_from(BLOCK_LEN).expect("4 KiB"),
            check: Check::Frames(Place::pack(owner, id), block.0),
        }
    }

    /// Returns the fetch for a part of the data of a change of a record, and where in the fetched bytes the
    /// part begins.
    #[must_use]
    pub fn change(sealing: Sealing, record: &RecordRef, change: u32, part: Range<u64>) -> (Self, u64) {
        let place = Place::record(sealing, record.slot);
        let fetch = Self::whole_change(sealing.volume(), place, record, change);
        if !are_blocks(fetch.length) {
            return (fetch, part.start);
        }
        let block = |at: u64| fetch.first + u32::try_from(at).expect("a change is at most a page");
        let (first, end) = (block(part.start / BLOCK_BYTES), block(part.end.div_ceil(BLOCK_BYTES)));
        (Self { first, count: end - first, ..fetch }, part.start % BLOCK_BYTES)
    }

    fn whole_change(volume: Uuid, frames: Place, record: &RecordRef, change: u32) -> Self {
        let (place, (named, blocks)) = (record.place(change), record.held_as(change));
        Self {
            key: CacheKey { volume, unit: Unit::Change(record.slot, named) },
            object: Source::Record(record.slot),
            at: place.at,
            first: blocks.start,
            count: blocks.end - blocks.start,
            length: place.length,
            check: Check::Tag(frames, u64::from(change), place.tag, blocks.start),
        }
    }

    /// As [`Fetch::change`], but the whole run that contains the change is fetched and cached: for whoever
    /// will need the other changes of the run too.
    #[must_use]
    pub fn run(sealing: Sealing, record: &Arc<RecordRef>, change: u32) -> Self {
        let number = record.run_of(change);
        let run = record.run(number);
        Self {
            key: CacheKey { volume: sealing.volume(), unit: Unit::Run(record.slot, number) },
            object: Source::Record(record.slot),
            at: run.at,
            first: 0,
            count: 1,
            length: run.length,
            check: Check::Run(Place::record(sealing, record.slot), Arc::clone(record), change),
        }
    }

    /// Returns the key of the object.
    #[must_use]
    pub fn object_key(&self) -> String {
        let keys = Keys::new(self.key.volume);
        match self.object {
            Source::Chunk(index, id) => keys.chunk(index, id),
            Source::Pack(id) => keys.pack(id),
            Source::Record(slot) => keys.record(slot),
        }
    }

    /// The blocks, of the 16 that share the key, that are wanted: one bit for each.
    #[must_use]
    pub fn mask(&self) -> u16 {
        mask_of(&(self.first..self.first + self.count))
    }

    /// Returns the fetch of only those blocks, from the first to the last in `mask`, which must be some of
    /// the wanted blocks. Of a record, more is fetched: what one tag covers.
    #[must_use]
    pub fn narrowed(&self, mask: u16) -> Self {
        let (place, number) = match self.check {
            Check::Frames(place, number) => (place, number),
            // One tag covers all of it.
            Check::Tag(.., first) => {
                return Self { first, count: self.blocks().max(1), ..self.clone() };
            }
            Check::Run(..) => return self.clone(),
        };
        let first = mask.trailing_zeros();
        let count = 16 - mask.leading_zeros() - first;
        let skipped = first - self.first;
        Self {
            at: self.frame(skipped).start,
            first,
            count,
            length: count * u32::try_from(BLOCK_LEN).expect("4 KiB"),
            check: Check::Frames(place, number + u64::from(skipped)),
            ..self.clone()
        }
    }

    /// Returns the bytes of the object that a frame of the piece takes. `number` is counted from the first
    /// frame of the piece.
    #[must_use]
    pub fn frame(&self, number: u32) -> Range<u64> {
        let start = self.at + u64::from(number) * FRAME_BYTES;
        start..start + FRAME_BYTES
    }

    /// Bytes that the piece takes in the object: the payload, and the tags if they follow each block.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        match self.check {
            Check::Frames(..) => u64::from(self.count) * FRAME_BYTES,
            Check::Tag(..) | Check::Run(..) => u64::from(self.length),
        }
    }

    /// Whether the piece follows another in the same object, after at most `gap` bytes.
    #[must_use]
    pub fn lies_behind(&self, other: &Self, gap: u64) -> bool {
        let end = other.at + other.stored_bytes();
        other.object == self.object
            && other.key.volume == self.key.volume
            && (end..=end + gap).contains(&self.at)
    }

    /// Verifies `stored`, the bytes of the object at this place, which may be too few. Returns what is as
    /// it was written, and whether that is all of it.
    #[must_use]
    pub fn open(&self, stored: &Bytes) -> (Held, bool) {
        match &self.check {
            Check::Frames(place, number) => self.open_frames(place, *number, stored),
            Check::Tag(place, number, tag, _) => self.held_if(place.tag(*number, stored) == *tag, stored),
            Check::Run(place, record, change) => {
                let number = record.run_of(*change);
                self.held_if(record.verify_run(place, number, stored), stored)
            }
        }
    }

    fn held_if(&self, is_right: bool, stored: &Bytes) -> (Held, bool) {
        (if is_right { self.held(stored.clone()) } else { Held::default() }, is_right)
    }

    /// Holds all of the piece. `payload` is what was written there.
    pub(super) fn held(&self, payload: Bytes) -> Held {
        match self.check {
            Check::Frames(..) => Held::new(self.mask(), payload),
            Check::Tag(.., first) if are_blocks(self.length) => {
                Held::new(mask_of(&(first..first + self.blocks())), payload)
            }
            Check::Tag(..) | Check::Run(..) => Held::whole(payload),
        }
    }

    /// Number of blocks that the payload consists of.
    fn blocks(&self) -> u32 {
        self.length / u32::try_from(BLOCK_LEN).expect("4 KiB")
    }

    fn open_frames(&self, place: &Place, number: u64, stored: &Bytes) -> (Held, bool) {
        let is_good = |frame: &[u8], offset: u64| {
            let is_of = |number: u64| place.open(number, frame).is_some();
            let number = number + offset;
            frame.len() == FRAME_LEN
                && (is_of(number)
                    || mutant::is(Mutant::TagUnchecked)
                    || (mutant::is(Mutant::TagUnbound)
                        && (is_of(number + 1) || is_of(number.wrapping_sub(1)))))
        };
        if self.count == 1 {
            return match is_good(stored, 0) {
                true => (self.held(stored.slice(..BLOCK_LEN)), true),
                false => (Held::default(), false),
            };
        }
        let (mut mask, mut data) = (0, Vec::with_capacity(self.length as usize));
        for (offset, frame) in (0..u64::from(self.count)).zip(stored.chunks(FRAME_LEN)) {
            if is_good(frame, offset) {
                mask |= 1 << (u64::from(self.first) + offset);
                data.extend_from_slice(&frame[..BLOCK_LEN]);
            }
        }
        (Held::new(mask, Bytes::from(data)), mask == self.mask())
    }

    /// Extracts the wanted part of what is held of the piece, or `None` if it is not all there.
    #[must_use]
    pub fn wanted(&self, held: &Held) -> Option<Bytes> {
        match &self.check {
            Check::Frames(..) => held.blocks(self.first..self.first + self.count),
            Check::Tag(..) if !are_blocks(self.length) => held.as_whole().cloned(),
            Check::Tag(..) => held.blocks(self.first..self.first + self.count),
            Check::Run(_, record, change) => {
                held.as_whole().map(|data| part(data, self.within(record, *change)))
            }
        }
    }

    /// As [`Fetch::wanted`]. If `is_most`, the same reader wants most of what is held, so the result may
    /// share its memory.
    pub(super) fn wanted_of(&self, held: &Held, is_most: bool) -> Option<Bytes> {
        match &self.check {
            Check::Run(_, record, change) if is_most => {
                held.as_whole().map(|data| data.slice(self.within(record, *change)))
            }
            _ => self.wanted(held),
        }
    }

    /// Bytes of the piece that are wanted.
    pub(super) fn wanted_bytes(&self) -> usize {
        match &self.check {
            Check::Run(_, record, change) => self.within(record, *change).len(),
            Check::Frames(..) | Check::Tag(..) => usize::try_from(self.length).expect("a page"),
        }
    }

    /// Whether each block of the piece has a tag of its own, so that it can be fetched alone.
    #[must_use]
    pub fn has_blocks(&self) -> bool {
        matches!(self.check, Check::Frames(..)) && self.count > 1
    }

    /// Returns a fetch of the wanted change alone, if this is a run. If a run is damaged, most of its changes
    /// may be intact.
    #[must_use]
    pub fn alone(&self) -> Option<Self> {
        let Check::Run(place, record, change) = &self.check else { return None };
        Some(Self::whole_change(self.key.volume, *place, record, *change))
    }

    fn within(&self, record: &RecordRef, change: u32) -> Range<usize> {
        let place = record.place(change);
        let start = usize::try_from(place.at - self.at).expect("within the run");
        start..start + usize::try_from(place.length).expect("at most a page")
    }
}
