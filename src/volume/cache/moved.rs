//! Where blocks of changes are held once a checkpoint that is not published yet has put them into new objects.
//!
//! Until it is published, reads find these blocks under the names that the changes have. Their bytes are held
//! only under the new names, so that a checkpoint needs no memory for both. Must not know what is held.
//! Invariant: the block under a new name has the bytes of the change.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use uuid::Uuid;

use super::fetch::CacheKey;

/// A block of a piece: the key of the piece, and which of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBlock {
    /// The key of the piece.
    pub key: CacheKey,
    /// Number of the block in the piece.
    pub bit: u32,
}

/// The new names of blocks that have moved.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// For each piece, the blocks that have moved, each with its new name.
    pieces: Mutex<BTreeMap<CacheKey, Vec<(u32, HeldBlock)>>>,
    /// Whether any block has moved, so that most lookups need no lock.
    any: AtomicBool,
}

impl Moved {
    /// Records that a block has moved. Returns how many blocks of its piece have.
    pub(super) fn note(&self, from: HeldBlock, to: HeldBlock) -> usize {
        let mut pieces = self.pieces.lock();
        let blocks = pieces.entry(from.key).or_default();
        match blocks.iter_mut().find(|(bit, _)| *bit == from.bit) {
            Some((_, known)) => *known = to,
            None => blocks.push((from.bit, to)),
        }
        self.any.store(true, Ordering::Release);
        blocks.len()
    }

    /// Returns the blocks of a piece that have moved, of those in `mask`.
    pub(super) fn of(&self, key: &CacheKey, mask: u16) -> Vec<(u32, HeldBlock)> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let pieces = self.pieces.lock();
        let blocks = pieces.get(key).into_iter().flatten();
        blocks.filter(|(bit, _)| mask >> bit & 1 == 1).copied().collect()
    }

    /// Forgets the blocks of a piece: nobody looks for it any more.
    pub(super) fn remove(&self, key: &CacheKey) {
        if self.any.load(Ordering::Acquire) {
            self.retain(|pieces| drop(pieces.remove(key)));
        }
    }

    /// Forgets the blocks of all pieces of a volume.
    pub(super) fn forget(&self, volume: Uuid) {
        self.retain(|pieces| pieces.retain(|key, _| key.volume != volume));
    }

    fn retain(&self, change: impl FnOnce(&mut BTreeMap<CacheKey, Vec<(u32, HeldBlock)>>)) {
        let mut pieces = self.pieces.lock();
        change(&mut pieces);
        self.any.store(!pieces.is_empty(), Ordering::Release);
    }
}
