//! Where blocks of changes are held once a checkpoint that is not published yet has put them into new
//! objects.
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
    /// Records that a block has moved.
    pub(super) fn note(&self, from: HeldBlock, to: HeldBlock) {
        let mut pieces = self.pieces.lock();
        let blocks = pieces.entry(from.key).or_default();
        match blocks.iter_mut().find(|(bit, _)| *bit == from.bit) {
            Some((_, known)) => *known = to,
            None => blocks.push((from.bit, to)),
        }
        self.any.store(true, Ordering::Release);
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::PageCache;
    use super::super::fetch::Unit;
    use super::super::held::Held;
    use super::*;
    use crate::volume::format::geometry::BLOCK_LEN;
    use crate::volume::format::keys::{ObjectId, Slot};

    const VOLUME: Uuid = Uuid::from_u128(7);

    fn key(unit: Unit) -> CacheKey {
        CacheKey { volume: VOLUME, unit }
    }

    fn bytes(blocks: &[u8]) -> Bytes {
        blocks.iter().flat_map(|block| [*block; BLOCK_LEN]).collect()
    }

    #[tokio::test]
    async fn blocks_that_have_moved_are_found_under_both_names_and_take_memory_once() {
        let cache = PageCache::eager(1 << 20, 1 << 20);
        let change = key(Unit::Change(Slot { epoch: 1, n: 2 }, 3));
        let pack = key(Unit::Packed(ObjectId { epoch: 1, k: 4 }, 0));
        cache.insert(change, Held::new(0b11, bytes(&[7, 8]))).await;
        cache.insert(pack, Held::new(0b1010, bytes(&[8, 7]))).await;
        let moves = async |from, to| {
            cache.moved(HeldBlock { key: change, bit: from }, HeldBlock { key: pack, bit: to }).await;
        };
        moves(0, 3).await;
        moves(0, 3).await;
        assert_eq!(cache.clean.mask(&change), 0b10, "the other block has not moved");
        moves(1, 1).await;
        assert_eq!(cache.clean.mask(&change), 0, "its memory is free");
        let found = async || cache.held_of(&change, 0b11).await.blocks(0..2);
        assert_eq!(found().await, Some(bytes(&[7, 8])));
        assert_eq!(cache.held_of(&change, 0b10).await.blocks(1..2), Some(bytes(&[8])));
        cache.remove([pack]).await;
        assert_eq!(found().await, None, "nobody holds it now");
        cache.insert(pack, Held::new(0b1010, bytes(&[8, 7]))).await;
        assert_eq!(found().await, Some(bytes(&[7, 8])));
        cache.remove([change]).await;
        assert_eq!(found().await, None, "nobody looks for it now");
        moves(0, 3).await;
        cache.forget(VOLUME);
        assert_eq!(cache.held_of(&change, 0b11).await.mask(), 0);
    }
}
