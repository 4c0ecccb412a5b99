//! Pieces that were read ahead of a sequential reader and that nobody has read yet.
//!
//! Must not know how pieces are fetched. The cache admits a new piece only if it is used more often than those that
//! would have to go, and nobody has used these yet. So they wait here, in order of arrival, until they are read.
//! Invariant: the pieces take at most the bound, whatever happens to them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::fetch::CacheKey;
use super::held::Held;

/// Pieces that wait for their reader.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    waiting: Mutex<Waiting>,
    /// Whether any piece may wait, so that most lookups need no lock.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    pieces: BTreeMap<CacheKey, Held>,
    /// The keys in order of arrival. Keys of pieces that were taken stay until their turn.
    order: VecDeque<CacheKey>,
    bytes: u64,
}

impl Ahead {
    /// Adds blocks of a piece. Returns what has to go, so that at most `most` bytes wait. `weight` returns the bytes
    /// that a piece takes.
    pub(super) fn put(
        &self,
        key: CacheKey,
        blocks: &Held,
        most: u64,
        weight: impl Fn(&Held) -> u32,
    ) -> Vec<(CacheKey, Held)> {
        let mut waiting = self.waiting.lock();
        let before = waiting.pieces.get(&key).cloned();
        let joined = before.as_ref().map_or_else(|| blocks.clone(), |held| held.joined(blocks));
        waiting.bytes += u64::from(weight(&joined));
        match &before {
            Some(before) => waiting.bytes -= u64::from(weight(before)),
            None => waiting.order.push_back(key),
        }
        waiting.pieces.insert(key, joined);
        let mut gone: Vec<(CacheKey, Held)> = before.map(|before| (key, before)).into_iter().collect();
        while waiting.bytes > most
            && let Some(oldest) = waiting.order.pop_front()
        {
            if let Some(piece) = waiting.pieces.remove(&oldest) {
                waiting.bytes -= u64::from(weight(&piece));
                gone.push((oldest, piece));
            }
        }
        self.any.store(!waiting.pieces.is_empty(), Ordering::Release);
        gone
    }

    /// Removes and returns a piece.
    pub(super) fn take(&self, key: &CacheKey, weight: impl Fn(&Held) -> u32) -> Option<Held> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut waiting = self.waiting.lock();
        let piece = waiting.pieces.remove(key)?;
        waiting.bytes -= u64::from(weight(&piece));
        if waiting.pieces.is_empty() {
            waiting.order.clear();
            self.any.store(false, Ordering::Release);
        }
        Some(piece)
    }

    /// Returns which blocks of a piece wait.
    pub(super) fn mask(&self, key: &CacheKey) -> u16 {
        match self.any.load(Ordering::Acquire) {
            true => self.waiting.lock().pieces.get(key).map_or(0, |held| held.mask),
            false => 0,
        }
    }

    /// Bytes that the pieces take.
    pub(super) fn held_bytes(&self) -> u64 {
        self.waiting.lock().bytes
    }

    /// All pieces.
    pub(super) fn all(&self) -> Vec<(CacheKey, u16)> {
        self.waiting.lock().pieces.iter().map(|(key, held)| (*key, held.mask)).collect()
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

    fn weight(held: &Held) -> u32 {
        u32::try_from(held.data.len()).unwrap()
    }

    #[test]
    fn the_oldest_go_first_and_what_is_read_leaves() {
        let ahead = Ahead::default();
        for group in 0..4 {
            assert_eq!(ahead.put(key(group), &block(0), 4 * 4096, weight), []);
        }
        assert_eq!(ahead.put(key(4), &block(0), 4 * 4096, weight), [(key(0), block(0))]);
        assert_eq!(ahead.take(&key(1), weight), Some(block(0)));
        assert_eq!(ahead.take(&key(1), weight), None);
        assert_eq!(ahead.put(key(2), &block(3), 4 * 4096, weight), [(key(2), block(0))], "replaced by both");
        assert_eq!((ahead.mask(&key(2)), ahead.held_bytes()), (0b1001, 4 * 4096));
        let gone = ahead.put(key(9), &block(0), 2 * 4096, weight);
        assert_eq!(gone.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key(2), key(3)]);
        assert_eq!(ahead.held_bytes(), 2 * 4096);
    }
}
