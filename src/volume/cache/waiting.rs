//! Reads of clients that wait for the store.
//!
//! Owns their count. Must not know who asks for it. Invariant: a read that ends, even by cancellation, is no
//! longer counted as waiting.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counts the reads of clients that wait for the store.
#[derive(Debug, Default)]
pub struct Waiting {
    now: AtomicUsize,
    begun: AtomicU64,
}

/// A read of a client that waits for the store. It waits until it is dropped.
#[derive(Debug)]
pub struct WaitingRead<'a>(&'a Waiting);

impl Waiting {
    /// Counts a read, until the returned value is dropped.
    pub fn begin(&self) -> WaitingRead<'_> {
        self.now.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        WaitingRead(self)
    }

    /// Whether a read waits, or one began to wait since the call that set `seen`, which is updated.
    pub fn any_since(&self, seen: &mut u64) -> bool {
        let begun = self.begun.load(Ordering::Relaxed);
        let came = std::mem::replace(seen, begun) != begun;
        came || self.now.load(Ordering::Relaxed) > 0
    }
}

impl Drop for WaitingRead<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_counts_while_it_waits_and_once_after_it() {
        let (waiting, mut seen) = (Waiting::default(), 0);
        assert!(!waiting.any_since(&mut seen));
        let read = waiting.begin();
        assert!(waiting.any_since(&mut seen));
        assert!(waiting.any_since(&mut seen), "it still waits");
        drop(read);
        assert!(!waiting.any_since(&mut seen));
        drop(waiting.begin());
        assert!(waiting.any_since(&mut seen), "one came and went in between");
        assert!(!waiting.any_since(&mut seen));
    }
}
