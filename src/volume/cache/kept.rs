//! A piece in the cache, with what is known of its use.
//!
//! Must not know the cache that it is in. Invariant: a block that was read since the piece was last examined
//! is not let go. Times are counted in bytes that the cache has taken or given up, so that they do not depend
//! on a clock.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use super::held::Held;

/// A piece in the cache.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) held: Held,
    /// The blocks that were read since `examined`.
    read: AtomicU16,
    /// How many bytes the cache had taken when the piece was last used.
    used: AtomicU64,
    /// How many bytes the cache had evicted when it was last examined which blocks are read.
    examined: AtomicU64,
}

impl Kept {
    /// Keeps blocks of which none was read yet. `taken` and `evicted` are how many bytes the cache has taken
    /// and has evicted so far.
    pub(super) fn new(held: Held, taken: u64, evicted: u64) -> Self {
        Self { held, read: AtomicU16::new(0), used: AtomicU64::new(taken), examined: AtomicU64::new(evicted) }
    }

    /// Keeps other blocks of the same piece in its place. What is known of the use of the blocks stays.
    pub(super) fn with(&self, held: Held, taken: u64) -> Self {
        Self {
            held,
            read: AtomicU16::new(self.read.load(Ordering::Relaxed)),
            used: AtomicU64::new(taken),
            examined: AtomicU64::new(self.examined.load(Ordering::Relaxed)),
        }
    }

    /// Records that the blocks in `mask` are read.
    pub(super) fn note(&self, mask: u16, taken: u64) {
        // Most reads change nothing, and must not take the memory from other processors.
        if mask & !self.read.load(Ordering::Relaxed) != 0 {
            self.read.fetch_or(mask, Ordering::Relaxed);
        }
        if self.used.load(Ordering::Relaxed) != taken {
            self.used.store(taken, Ordering::Relaxed);
        }
    }

    /// When the piece was last used.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the blocks that were read, if the cache has evicted `bound` bytes since it was last asked, and
    /// other blocks were not read: by themselves, these would have been evicted.
    pub(super) fn examine(&self, evicted: u64, bound: u64) -> Option<u16> {
        if evicted.saturating_sub(self.examined.load(Ordering::Relaxed)) < bound {
            return None;
        }
        self.examined.store(evicted, Ordering::Relaxed);
        let read = self.read.swap(0, Ordering::Relaxed) & self.held.mask();
        (read != self.held.mask()).then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn blocks_that_nobody_reads_go_when_they_would_have_been_evicted_by_themselves() {
        let kept = Kept::new(Held::new(0b111, Bytes::from(vec![7; 3 * 4096])), 0, 1000);
        kept.note(0b001, 10);
        assert_eq!(kept.examine(1099, 100), None, "too little was evicted since");
        kept.note(0b100, 20);
        assert_eq!(kept.used(), 20);
        assert_eq!(kept.examine(1100, 100), Some(0b101));
        kept.note(0b111, 30);
        assert_eq!(kept.examine(1199, 100), None);
        assert_eq!(kept.examine(1200, 100), None, "all of them were read");
        assert_eq!(kept.examine(1300, 100), Some(0), "none since");
    }
}
