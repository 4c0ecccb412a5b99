//! Pieces of objects: what they are called in the cache, where they lie, and how they are verified.
//!
//! Invariant: what [`Fetch::verify`] lets pass is, byte for byte, what was written at that place of that
//! object.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::mutant::{self, Mutant};
use crate::volume::format::codec::Checksum;
use crate::volume::format::frame::{Place, TAG_BYTES};
use crate::volume::format::geometry::ChunkIndex;
use crate::volume::format::keys::{Keys, ObjectId, Slot};
use crate::volume::state::piece::{RecordRef, part};

/// A piece of an object, as the cache calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey {
    /// Whose object.
    pub volume: Uuid,
    /// Which piece.
    pub unit: Unit,
}

/// A piece of an object of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// A page of a chunk object.
    Page(ChunkIndex, ObjectId, u16),
    /// A frame of a pack.
    Packed(u32, ObjectId, u32),
    /// The data of a run of changes of a record.
    Run(Slot, u32),
    /// The data of one change of a record.
    Change(Slot, u32),
    /// A map page.
    Map(u32, ObjectId),
}

impl Unit {
    /// A page of a chunk object.
    #[must_use]
    pub fn page(index: ChunkIndex, id: ObjectId, page: u16) -> Self {
        match mutant::is(Mutant::CachedByOffset) {
            false => Self::Page(index, id, page),
            true => Self::Page(index, ObjectId { epoch: 0, k: 0 }, page),
        }
    }
}

/// An object of a volume that pieces are fetched from. Its key is made only where there is something to
/// fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A chunk object.
    Chunk(ChunkIndex, ObjectId),
    /// The pack of a map page.
    Pack(u32, ObjectId),
    /// A record.
    Record(Slot),
}

/// How the bytes of a piece are verified.
#[derive(Clone, Debug)]
pub enum Check {
    /// By the tag behind them.
    Frame(Place, u32),
    /// By a tag that is known.
    Tag(Place, u32, Checksum),
    /// A run of changes, each by its tag; of which one change is wanted.
    Run(Arc<RecordRef>, u32),
}

/// A piece to be fetched.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// What it is.
    pub key: CacheKey,
    /// The object.
    pub object: Source,
    /// First byte in the object.
    pub at: u64,
    /// Bytes of payload.
    pub length: u32,
    /// How to verify it.
    pub check: Check,
}

impl Fetch {
    /// The data of a change of a record, which is cached and fetched with that of its neighbours.
    #[must_use]
    pub fn change(volume: Uuid, record: &Arc<RecordRef>, change: u32) -> Self {
        let number = record.run_of(change);
        let run = record.run(number);
        Self {
            key: CacheKey { volume, unit: Unit::Run(record.slot, number) },
            object: Source::Record(record.slot),
            at: run.at,
            length: run.length,
            check: Check::Run(Arc::clone(record), change),
        }
    }

    /// Key of the object.
    #[must_use]
    pub fn object_key(&self) -> String {
        let keys = Keys::new(self.key.volume);
        match self.object {
            Source::Chunk(index, id) => keys.chunk(index, id),
            Source::Pack(map_page, id) => keys.pack(map_page, id),
            Source::Record(slot) => keys.record(slot),
        }
    }

    /// Bytes in the object: the payload, and its tag where that follows it.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        u64::from(self.length)
            + match self.check {
                Check::Frame(..) => TAG_BYTES,
                Check::Tag(..) | Check::Run(..) => 0,
            }
    }

    /// Whether it lies right behind another in the same object.
    #[must_use]
    pub fn lies_behind(&self, other: &Self) -> bool {
        other.object == self.object
            && other.key.volume == self.key.volume
            && other.at + other.stored_bytes() == self.at
    }

    /// Whether the payload, and what follows it, is what was written.
    #[must_use]
    pub fn verify(&self, stored: &[u8]) -> bool {
        if mutant::is(Mutant::TagUnchecked) {
            return true;
        }
        match &self.check {
            Check::Frame(place, number) => place.open(*number, stored).is_some(),
            Check::Tag(place, number, tag) => place.tag(*number, stored) == *tag,
            Check::Run(record, change) => record.verify_run(self.key.volume, record.run_of(*change), stored),
        }
    }

    /// What is wanted of a payload.
    #[must_use]
    pub fn wanted(&self, payload: &Bytes) -> Bytes {
        match &self.check {
            Check::Frame(..) | Check::Tag(..) => payload.clone(),
            Check::Run(record, change) => part(payload, self.within(record, *change)),
        }
    }

    /// A fetch of the wanted part alone: of a run that is damaged, most changes may be whole.
    #[must_use]
    pub fn alone(&self) -> Option<Self> {
        let Check::Run(record, change) = &self.check else { return None };
        let place = record.place(*change);
        Some(Self {
            key: CacheKey { unit: Unit::Change(record.slot, *change), ..self.key },
            object: self.object,
            at: place.at,
            length: place.length,
            check: Check::Tag(Place::record(self.key.volume, record.slot), *change, place.tag),
        })
    }

    fn within(&self, record: &RecordRef, change: u32) -> Range<usize> {
        let place = record.place(change);
        let start = usize::try_from(place.at - self.at).expect("within the run");
        start..start + usize::try_from(place.length).expect("at most a page")
    }
}
