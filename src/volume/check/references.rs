//! Which objects the roots and the journal reference, for comparison with a listing.
//!
//! Must not know how anything is read. Invariant: at most [`LIMIT`] references are in memory, or few more.
//! A listing has no order that could be relied on, so a large volume is divided into shares by key, and
//! each share is compared with a listing of its own.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::report::Purpose;
use crate::volume::format::geometry::ChunkIndex;
use crate::volume::format::keys::{Keys, ObjectId, shard};

/// Limit on the references in memory at a time; some 64 MiB. A volume with more is divided into shares.
pub(super) const LIMIT: usize = 1 << 20;
/// Limit on the number of shares: the keys of chunk objects begin with one of 256 shards.
pub(super) const MOST_SHARES: u32 = 256;

/// A share of the objects of a volume, by key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Number of the share, from 0.
    pub(super) number: u32,
    /// Number of shares: a power of two, at most [`MOST_SHARES`].
    pub(super) of: u32,
}

impl Share {
    /// Whether it contains the objects of a chunk.
    fn has_chunk(self, index: ChunkIndex) -> bool {
        u32::from(shard(&index.0.to_le_bytes())) % self.of == self.number
    }

    /// Whether it contains a map page and its overlays.
    fn has_page(self, number: u32) -> bool {
        number % self.of == self.number
    }

    /// The prefixes that a listing of the share consists of.
    pub(super) fn prefixes(self, keys: Keys) -> Vec<String> {
        if self.of == 1 {
            return vec![keys.prefix()];
        }
        let mut prefixes = vec![keys.map_pages(), keys.overlays()];
        if self.number == 0 {
            prefixes.extend([keys.head(), keys.first_reads(), keys.roots(), keys.packs()]);
        }
        prefixes.extend(self.chunk_prefixes(keys));
        prefixes
    }

    /// The prefixes that a listing of the chunk objects of the share consists of.
    pub(super) fn chunk_prefixes(self, keys: Keys) -> Vec<String> {
        if self.of == 1 {
            return vec![keys.chunks()];
        }
        let shards = (self.number..MOST_SHARES).step_by(usize::try_from(self.of).expect("at most 256"));
        shards.map(|shard| format!("{}{shard:02x}/", keys.chunks())).collect()
    }
}

/// A reference to an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reference {
    pub(super) purpose: Purpose,
    /// The length in bytes that the object must have.
    pub(super) bytes: u64,
    pub(super) is_listed: bool,
}

/// There are too many references for one share.
#[derive(Debug)]
pub(super) struct Full;

/// The references to the objects of a share.
#[derive(Debug)]
pub(super) struct References {
    pub(super) share: Share,
    pub(super) chunks: BTreeMap<(ChunkIndex, ObjectId), Reference>,
    pub(super) packs: BTreeMap<ObjectId, Reference>,
    pub(super) roots: BTreeMap<ObjectId, Purpose>,
    pub(super) map_pages: BTreeMap<(u32, ObjectId), Purpose>,
    pub(super) overlays: BTreeMap<(u32, ObjectId), Purpose>,
    /// Map pages of which an object cannot be read, so that it is unknown what it references.
    pub(super) unknown_pages: BTreeSet<u32>,
    /// Whether a whole root cannot be read.
    pub(super) is_root_unknown: bool,
    /// The references of the current root to chunk objects of other volumes, by owner.
    pub(super) shared: BTreeMap<Uuid, References>,
}

impl References {
    pub(super) fn new(share: Share) -> Self {
        Self {
            share,
            chunks: BTreeMap::new(),
            packs: BTreeMap::new(),
            roots: BTreeMap::new(),
            map_pages: BTreeMap::new(),
            overlays: BTreeMap::new(),
            unknown_pages: BTreeSet::new(),
            is_root_unknown: false,
            shared: BTreeMap::new(),
        }
    }

    /// Adds a chunk object, unless it was added before. References of the current root are added first.
    pub(super) fn chunk(&mut self, index: ChunkIndex, id: ObjectId, bytes: u64, purpose: Purpose) {
        if self.share.has_chunk(index) {
            self.chunks.entry((index, id)).or_insert(Reference { purpose, bytes, is_listed: false });
        }
    }

    /// Adds a chunk object of another volume.
    pub(super) fn shared_chunk(&mut self, owner: Uuid, index: ChunkIndex, id: ObjectId, bytes: u64) {
        let share = self.share;
        self.shared.entry(owner).or_insert_with(|| Self::new(share)).chunk(index, id, bytes, Purpose::Live);
    }

    /// Adds a pack, unless it was added before.
    pub(super) fn pack(&mut self, id: ObjectId, bytes: u64, purpose: Purpose) {
        self.packs.entry(id).or_insert(Reference { purpose, bytes, is_listed: false });
    }

    /// Adds a map page, unless it was added before. Returns whether it is new.
    pub(super) fn map_page(&mut self, number: u32, id: ObjectId, purpose: Purpose) -> bool {
        let is_new = !self.map_pages.contains_key(&(number, id));
        self.map_pages.entry((number, id)).or_insert(purpose);
        is_new
    }

    /// Adds an overlay, unless it was added before.
    pub(super) fn overlay(&mut self, number: u32, id: ObjectId, purpose: Purpose) {
        if self.share.has_page(number) {
            self.overlays.entry((number, id)).or_insert(purpose);
        }
    }

    /// Returns an error if the volume must be divided into more shares.
    pub(super) fn check_room(&self, limit: usize) -> Result<(), Full> {
        let shared: usize = self.shared.values().map(|shared| shared.chunks.len()).sum();
        let count = self.chunks.len() + self.overlays.len() + shared;
        if count > limit && self.share.of < MOST_SHARES { Err(Full) } else { Ok(()) }
    }

    /// Whether the share has what a key below one of its prefixes identifies.
    pub(super) fn has(&self, object: crate::volume::format::keys::Parsed) -> bool {
        use crate::volume::format::keys::Parsed;
        match object {
            Parsed::Chunk(index, _) => self.share.has_chunk(index),
            Parsed::MapPage(number, _) | Parsed::Overlay(number, _) => self.share.has_page(number),
            Parsed::Head | Parsed::FirstReads | Parsed::Record(_) | Parsed::Root(_) | Parsed::Pack(_) => {
                self.share.number == 0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_in_exactly_one_share_and_below_one_of_its_prefixes() {
        let keys = Keys::new(Uuid::from_u128(3));
        let id = ObjectId { epoch: 1, k: 2 };
        for of in [1, 2, 64, MOST_SHARES] {
            let shares: Vec<Share> = (0..of).map(|number| Share { number, of }).collect();
            for n in 0..500 {
                let index = ChunkIndex(n * 7919);
                let having: Vec<&Share> = shares.iter().filter(|share| share.has_chunk(index)).collect();
                assert_eq!(having.len(), 1, "chunk {n} of {of} shares");
                let key = keys.chunk(index, id);
                let below =
                    |share: &Share| share.prefixes(keys).iter().filter(|p| key.starts_with(*p)).count();
                assert_eq!(below(having[0]), 1, "{key}");
                assert_eq!(shares.iter().map(below).sum::<usize>(), 1, "{key}");
                assert_eq!(shares.iter().filter(|share| share.has_page(n)).count(), 1);
            }
        }
    }
}
