//! Pieces that were read ahead of sequential readers: they have only the room that nothing else needs.
//!
//! Must not know how pieces are fetched, nor how much room there is. A disk that is read from begin to end
//! once must not displace what is in use. So these pieces are held here, and leave before anything else does:
//! first those that were read, then those that still wait for their reader. Invariant: the pieces take at
//! most the bound, whatever happens to them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::fetch::CacheKey;
use super::held::Held;

/// Pieces that were read ahead.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    pieces: Mutex<Pieces>,
    /// Whether there is any, so that most lookups need no lock.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct Pieces {
    pieces: BTreeMap<CacheKey, Piece>,
    /// The keys of the pieces that have to go, in this order: by whether somebody has yet to read them, then
    /// by the numbers that they have.
    order: BTreeMap<(bool, u64), CacheKey>,
    /// Number of the next piece that arrives, or has been read.
    next: u64,
    bytes: u64,
    unread_bytes: u64,
}

#[derive(Debug)]
struct Piece {
    number: u64,
    held: Held,
    /// The blocks that nobody has read yet.
    unread: u16,
}

/// What an insertion changes.
#[derive(Debug, Default)]
pub(super) struct Inserted {
    /// Weight of the piece now.
    pub(super) weight: u32,
    /// Weight of what was held of the piece before, if anything.
    pub(super) replaced: Option<u32>,
    /// The pieces that have to go.
    pub(super) gone: Vec<(CacheKey, Held)>,
}

/// What a read makes of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Some of its blocks have yet to be read, or are read for the first time.
    Waits,
    /// The last of its blocks is read now.
    IsRead,
    /// All that is wanted was read before.
    Again,
}

impl Pieces {
    fn add(&mut self, key: CacheKey, held: Held, unread: u16) {
        self.bytes += u64::from(held.weight());
        if unread != 0 {
            self.unread_bytes += u64::from(held.weight());
        }
        self.order.insert((unread != 0, self.next), key);
        self.pieces.insert(key, Piece { number: self.next, held, unread });
        self.next += 1;
    }

    fn remove(&mut self, key: &CacheKey) -> Option<Piece> {
        let piece = self.pieces.remove(key)?;
        self.order.remove(&(piece.unread != 0, piece.number));
        self.bytes -= u64::from(piece.held.weight());
        if piece.unread != 0 {
            self.unread_bytes -= u64::from(piece.held.weight());
        }
        Some(piece)
    }

    /// Removes pieces until at most `most` bytes are left.
    fn shorten(&mut self, most: u64) -> Vec<(CacheKey, Held)> {
        let mut gone = Vec::new();
        while self.bytes > most
            && let Some(first) = self.order.first_key_value().map(|(_, key)| *key)
        {
            gone.extend(self.remove(&first).map(|piece| (first, piece.held)));
        }
        gone
    }
}

impl Ahead {
    fn change<T>(&self, change: impl FnOnce(&mut Pieces) -> T) -> T {
        let mut pieces = self.pieces.lock();
        let result = change(&mut pieces);
        self.any.store(!pieces.pieces.is_empty(), Ordering::Release);
        result
    }

    /// Adds blocks of a piece, all of them unread. Pieces have to go if there would be more than `most`
    /// bytes.
    pub(super) fn put(&self, key: CacheKey, blocks: &Held, most: u64) -> Inserted {
        self.change(|pieces| {
            let before = pieces.remove(&key);
            let (held, unread) = match &before {
                Some(before) => (before.held.joined(blocks), before.unread | blocks.mask()),
                None => (blocks.clone(), blocks.mask()),
            };
            let (weight, replaced) = (held.weight(), before.map(|before| before.held.weight()));
            pieces.add(key, held, unread);
            Inserted { weight, replaced, gone: pieces.shorten(most) }
        })
    }

    /// Removes the pieces that have to go so that there are at most `most` bytes.
    pub(super) fn shorten(&self, most: u64) -> Vec<(CacheKey, Held)> {
        match self.any.load(Ordering::Acquire) {
            true => self.change(|pieces| pieces.shorten(most)),
            false => Vec::new(),
        }
    }

    /// Returns what is held of a piece, of which the blocks in `mask` are read now, and what that makes of
    /// it.
    pub(super) fn read(&self, key: &CacheKey, mask: u16) -> Option<(Held, Use)> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut pieces = self.pieces.lock();
        let piece = pieces.pieces.get_mut(key)?;
        let wanted = mask & piece.held.mask();
        if wanted == 0 {
            return None;
        }
        let held = piece.held.clone();
        if wanted & piece.unread == 0 {
            return Some((held, Use::Again));
        }
        if piece.unread & !wanted != 0 {
            piece.unread &= !wanted;
            return Some((held, Use::Waits));
        }
        let piece = pieces.remove(key)?;
        pieces.add(*key, piece.held, 0);
        Some((held, Use::IsRead))
    }

    /// Removes a piece.
    pub(super) fn remove(&self, key: &CacheKey) -> Option<Held> {
        match self.any.load(Ordering::Acquire) {
            true => self.change(|pieces| pieces.remove(key)).map(|piece| piece.held),
            false => None,
        }
    }

    /// Returns which blocks of a piece are held.
    pub(super) fn mask(&self, key: &CacheKey) -> u16 {
        match self.any.load(Ordering::Acquire) {
            true => self.pieces.lock().pieces.get(key).map_or(0, |piece| piece.held.mask()),
            false => 0,
        }
    }

    /// Bytes that the pieces take, including the overhead of each.
    pub(super) fn held_bytes(&self) -> u64 {
        self.pieces.lock().bytes
    }

    /// Bytes of the pieces that somebody has yet to read.
    pub(super) fn unread_bytes(&self) -> u64 {
        self.pieces.lock().unread_bytes
    }

    /// All pieces, with the blocks that are held.
    pub(super) fn all(&self) -> Vec<(CacheKey, u16)> {
        self.pieces.lock().pieces.iter().map(|(key, piece)| (*key, piece.held.mask())).collect()
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
        Held::new(1 << bit, Bytes::from(vec![7; 4096]))
    }

    fn most(pieces: u64) -> u64 {
        pieces * u64::from(block(0).weight())
    }

    fn keys(gone: &[(CacheKey, Held)]) -> Vec<CacheKey> {
        gone.iter().map(|(key, _)| *key).collect()
    }

    #[test]
    fn what_was_read_leaves_first_and_then_what_waits_longest() {
        let ahead = Ahead::default();
        let put = |group, bit, most| keys(&ahead.put(key(group), &block(bit), most).gone);
        let read = |group, mask| ahead.read(&key(group), mask).map(|(held, used)| (held.mask(), used));
        for group in 0..4 {
            assert_eq!(put(group, 0, most(4)), []);
        }
        assert_eq!(put(4, 0, most(4)), [key(0)]);
        assert_eq!(read(2, 0b10), None, "another block is wanted");
        assert_eq!(read(2, 0b11), Some((1, Use::IsRead)));
        assert_eq!((ahead.held_bytes(), ahead.unread_bytes()), (most(4), most(3)));
        assert_eq!(read(2, 1), Some((1, Use::Again)));
        assert_eq!(put(5, 0, most(4)), [key(2)]);
        assert_eq!(put(6, 0, most(4)), [key(1)]);
        assert_eq!(keys(&ahead.shorten(most(1))), [key(3), key(4), key(5)]);
        assert_eq!((ahead.held_bytes(), ahead.unread_bytes()), (most(1), most(1)));
        assert_eq!(put(9, 1, 0), [key(6), key(9)], "no room at all");
        assert_eq!((ahead.held_bytes(), ahead.unread_bytes(), ahead.mask(&key(9))), (0, 0, 0));
    }

    #[test]
    fn a_piece_waits_until_all_of_its_blocks_are_read() {
        let ahead = Ahead::default();
        let read = |mask| ahead.read(&key(1), mask).map(|(held, used)| (held.mask(), used));
        ahead.put(key(1), &block(0), most(9));
        assert_eq!(read(0b1), Some((0b1, Use::IsRead)));
        let both = block(0).joined(&block(3)).weight();
        let inserted = ahead.put(key(1), &block(3), most(9));
        assert_eq!(
            (inserted.weight, inserted.replaced),
            (both, Some(block(0).weight())),
            "both are held now"
        );
        assert_eq!((ahead.mask(&key(1)), ahead.all()), (0b1001, vec![(key(1), 0b1001)]));
        assert_eq!(read(0b0001), Some((0b1001, Use::Again)));
        assert_eq!(read(0b1001), Some((0b1001, Use::IsRead)));
        ahead.put(key(2), &block(0).joined(&block(1)), most(9));
        assert_eq!(ahead.read(&key(2), 1).map(|(_, used)| used), Some(Use::Waits));
        assert!(ahead.remove(&key(1)).is_some() && ahead.remove(&key(1)).is_none());
    }
}
