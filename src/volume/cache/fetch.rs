//! Pieces of objects: how the cache identifies them, where they are stored, and how they are verified.
//!
//! Must not know how pieces are fetched or held. Invariant: bytes that [`Fetch::verify`] accepts are exactly
//! the bytes that were written at that position of that object.

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
    /// A page of a chunk object: chunk, object, page in the chunk.
    Page(ChunkIndex, ObjectId, u16),
    /// A frame of a pack: map page, pack, frame.
    Packed(u32, ObjectId, u32),
    /// The data of a run of changes of a record: slot, number of the run.
    Run(Slot, u32),
    /// The data of one change of a record: slot, number of the change.
    Change(Slot, u32),
    /// A map page: its number, its object.
    Map(u32, ObjectId),
}

impl Unit {
    /// Identifies a page of a chunk object.
    #[must_use]
    pub fn page(index: ChunkIndex, id: ObjectId, page: u16) -> Self {
        match mutant::is(Mutant::CachedByOffset) {
            false => Self::Page(index, id, page),
            true => Self::Page(index, ObjectId { epoch: 0, k: 0 }, page),
        }
    }
}

/// An object of a volume that pieces are fetched from. Its key is built only when something is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A chunk object: chunk, object.
    Chunk(ChunkIndex, ObjectId),
    /// A pack: map page, object.
    Pack(u32, ObjectId),
    /// A record of the journal.
    Record(Slot),
}

/// How the bytes of a piece are verified.
#[derive(Clone, Debug)]
pub enum Check {
    /// By the tag that follows the payload. Contains the number of the frame.
    Frame(Place, u32),
    /// By a tag that is already known. Contains the number that was hashed into the tag.
    Tag(Place, u32, Checksum),
    /// A run of changes, each by its own tag. Contains the number of the change that is wanted.
    Run(Arc<RecordRef>, u32),
}

/// A piece to fetch: where it is stored and how it is verified.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// Identifies the piece in the cache.
    pub key: CacheKey,
    /// The object that stores the piece.
    pub object: Source,
    /// Offset of the piece in the object, in bytes.
    pub at: u64,
    /// Length of the payload in bytes.
    pub length: u32,
    /// How the piece is verified.
    pub check: Check,
}

impl Fetch {
    /// Returns the fetch for the data of a change of a record. The whole run that contains the change is
    /// fetched and cached.
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

    /// Returns the key of the object.
    #[must_use]
    pub fn object_key(&self) -> String {
        let keys = Keys::new(self.key.volume);
        match self.object {
            Source::Chunk(index, id) => keys.chunk(index, id),
            Source::Pack(map_page, id) => keys.pack(map_page, id),
            Source::Record(slot) => keys.record(slot),
        }
    }

    /// Bytes that the piece takes in the object: the payload, and its tag if it follows the payload.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        u64::from(self.length)
            + match self.check {
                Check::Frame(..) => TAG_BYTES,
                Check::Tag(..) | Check::Run(..) => 0,
            }
    }

    /// Whether the piece directly follows another in the same object.
    #[must_use]
    pub fn lies_behind(&self, other: &Self) -> bool {
        other.object == self.object
            && other.key.volume == self.key.volume
            && other.at + other.stored_bytes() == self.at
    }

    /// Whether `stored`, the payload with its tag if that follows, is what was written.
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

    /// Extracts the wanted part of a payload.
    #[must_use]
    pub fn wanted(&self, payload: &Bytes) -> Bytes {
        match &self.check {
            Check::Frame(..) | Check::Tag(..) => payload.clone(),
            Check::Run(record, change) => part(payload, self.within(record, *change)),
        }
    }

    /// Returns a fetch of the wanted change alone, if this is a run. If a run is damaged, most of its changes
    /// may be intact.
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
