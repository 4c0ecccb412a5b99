//! Pieces that were read ahead of a sequential reader, until it has read them.
//!
//! Must not know how pieces are fetched. A full cache would make room for these pieces by evicting those that
//! were used, and then keep them after they are read. So they wait here, in order of arrival.
//! Invariant: the pieces take at most the bound, whatever happens to them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::fetch::CacheKey;
use super::held::Held;

/// Pieces that wait for their reader.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    waiting: Mutex<Waiting>,
    /// Whether any piece waits, so that most lookups need no lock.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    pieces: BTreeMap<CacheKey, Piece>,
    /// The keys of the pieces, by their numbers.
    order: BTreeMap<u64, CacheKey>,
    /// Number of the next piece that arrives.
    next: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Piece {
    number: u64,
    held: Held,
    /// The blocks that nobody has read yet.
    unread: u16,
}

/// What an insertion changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Inserted {
    /// Weight of the piece now.
    pub(super) weight: u32,
    /// Weight of what waited of the piece before, if anything.
    pub(super) replaced: Option<u32>,
    /// The pieces that have to go.
    pub(super) gone: Vec<(CacheKey, Held)>,
}

impl Waiting {
    fn add(&mut self, key: CacheKey, held: Held, unread: u16) {
        self.bytes += u64::from(held.weight());
        self.order.insert(self.next, key);
        self.pieces.insert(key, Piece { number: self.next, held, unread });
        self.next += 1;
    }

    fn remove(&mut self, key: &CacheKey) -> Option<Piece> {
        let piece = self.pieces.remove(key)?;
        self.order.remove(&piece.number);
        self.bytes -= u64::from(piece.held.weight());
        Some(piece)
    }

    /// Removes the pieces that arrived first until at most `most` bytes wait.
    fn shorten(&mut self, most: u64) -> Vec<(CacheKey, Held)> {
        let mut gone = Vec::new();
        while self.bytes > most
            && let Some(oldest) = self.order.first_key_value().map(|(_, key)| *key)
        {
            gone.extend(self.remove(&oldest).map(|piece| (oldest, piece.held)));
        }
        gone
    }
}

impl Ahead {
    /// Adds blocks of a piece, all of them unread. The pieces that arrived first have to go if more than
    /// `most` bytes would wait.
    pub(super) fn put(&self, key: CacheKey, blocks: &Held, most: u64) -> Inserted {
        let mut waiting = self.waiting.lock();
        let before = waiting.remove(&key);
        let (held, unread) = match &before {
            Some(before) => (before.held.joined(blocks), before.unread | blocks.mask),
            None => (blocks.clone(), blocks.mask),
        };
        let (weight, replaced) = (held.weight(), before.map(|before| before.held.weight()));
        waiting.add(key, held, unread);
        let gone = waiting.shorten(most);
        self.any.store(!waiting.pieces.is_empty(), Ordering::Release);
        Inserted { weight, replaced, gone }
    }

    /// Removes the pieces that have to go so that at most `most` bytes wait.
    pub(super) fn shorten(&self, most: u64) -> Vec<(CacheKey, Held)> {
        let mut waiting = self.waiting.lock();
        let gone = waiting.shorten(most);
        self.any.store(!waiting.pieces.is_empty(), Ordering::Release);
        gone
    }

    /// Returns what is held of a piece, of which the blocks in `mask` are read now. Also returns whether the
    /// piece leaves, because all of it has been read.
    pub(super) fn read(&self, key: &CacheKey, mask: u16) -> Option<(Held, bool)> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut waiting = self.waiting.lock();
        let piece = waiting.pieces.get_mut(key)?;
        piece.unread &= !mask;
        if piece.unread != 0 {
            return Some((piece.held.clone(), false));
        }
        let piece = waiting.remove(key)?;
        self.any.store(!waiting.pieces.is_empty(), Ordering::Release);
        Some((piece.held, true))
    }

    /// Removes a piece.
    pub(super) fn remove(&self, key: &CacheKey) -> Option<Held> {
        self.read(key, u16::MAX).map(|(held, _)| held)
    }

    /// Returns which blocks of a piece wait.
    pub(super) fn mask(&self, key: &CacheKey) -> u16 {
        match self.any.load(Ordering::Acquire) {
            true => self.waiting.lock().pieces.get(key).map_or(0, |piece| piece.held.mask),
            false => 0,
        }
    }

    /// Bytes that the pieces take, including the overhead of each.
    pub(super) fn held_bytes(&self) -> u64 {
        self.waiting.lock().bytes
    }

    /// All pieces, with the blocks that wait.
    pub(super) fn all(&self) -> Vec<(CacheKey, u16)> {
        self.waiting.lock().pieces.iter().map(|(key, piece)| (*key, piece.held.mask)).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::super::fetch::Unit;
    use super::*;
    use crate::volume::format::keys::ObjectId;

    fn key(group: u16) -> CacheKey {
        let unit = Unit::Packed(ObjectId { epoch: 1, k: 1 }, group);
        CacheKey { volume: Uuid::nil(), unit }
    }

    fn block(bit: u32) -> Held {
        Held { mask: 1 << bit, data: Bytes::from(vec![7; 4096]) }
    }

    fn most(pieces: u64) -> u64 {
        pieces * u64::from(block(0).weight())
    }

    #[test]
    fn the_oldest_pieces_leave_first_and_those_that_were_read() {
        let ahead = Ahead::default();
        let put = |group, bit, most| ahead.put(key(group), &block(bit), most).gone;
        for group in 0..4 {
            assert_eq!(put(group, 0, most(4)), []);
        }
        assert_eq!(put(4, 0, most(4)), [(key(0), block(0))]);
        assert_eq!(ahead.read(&key(1), 0b10), Some((block(0), false)), "another block was read");
        assert_eq!(ahead.read(&key(1), 0b11), Some((block(0), true)));
        assert_eq!(ahead.read(&key(1), 1), None);
        let both = block(0).joined(&block(3)).weight();
        let inserted = Inserted { weight: both, replaced: Some(block(0).weight()), gone: Vec::new() };
        assert_eq!(ahead.put(key(2), &block(3), most(5)), inserted, "both blocks are held now");
        assert_eq!((ahead.mask(&key(2)), ahead.all().len()), (0b1001, 3));
        assert_eq!(ahead.read(&key(2), 1).map(|(_, leaves)| leaves), Some(false));
        let gone = put(9, 0, most(1));
        assert_eq!(gone.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key(3), key(4), key(2)]);
        assert_eq!(ahead.held_bytes(), most(1));
        assert_eq!(ahead.shorten(most(1)), []);
        assert_eq!(put(9, 1, 0).len(), 1, "no room at all");
        assert_eq!((ahead.held_bytes(), ahead.mask(&key(9))), (0, 0));
    }
}
