//! How much the reads of clients occupy the store and the processors.
//!
//! Owns their count and their time. Must not know who asks for it. Invariant: a read that ends, even by
//! cancellation, is no longer counted as waiting.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Reads occupy the processors if the sum of their times is more than the time that has passed divided by
/// this. Reads of 4 KiB from memory take a few microseconds each, so it takes some 15,000 of them in a
/// second. The server spends more time than that on each, elsewhere.
const BUSY_PART: u32 = 16;

/// The reads of clients, of all volumes.
#[derive(Debug, Default)]
pub struct ReadLoad {
    waiting: AtomicUsize,
    begun: AtomicU64,
    nanoseconds: AtomicU64,
}

/// A read of a client that waits for the store. It waits until it is dropped.
#[derive(Debug)]
pub struct WaitingRead<'a>(&'a ReadLoad);

/// What there was at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    at: Instant,
    begun: u64,
    nanoseconds: u64,
}

impl ReadLoad {
    /// Counts a read that waits for the store, until the returned value is dropped.
    pub fn wait(&self) -> WaitingRead<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        WaitingRead(self)
    }

    /// Counts the time that a read took.
    pub fn took(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Returns what there is now.
    pub fn now(&self) -> Seen {
        Seen {
            at: Instant::now(),
            begun: self.begun.load(Ordering::Relaxed),
            nanoseconds: self.nanoseconds.load(Ordering::Relaxed),
        }
    }

    /// Whether reads wait for the store, have waited for it since `seen`, or have occupied the processors
    /// since. Updates `seen`.
    pub fn is_high_since(&self, seen: &mut Seen) -> bool {
        let now = self.now();
        let before = std::mem::replace(seen, now);
        let spent = Duration::from_nanos(now.nanoseconds - before.nanoseconds);
        now.begun != before.begun
            || self.waiting.load(Ordering::Relaxed) > 0
            || spent * BUSY_PART > now.at - before.at
    }
}

impl Drop for WaitingRead<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_read_counts_while_it_waits_and_once_after_it() {
        let load = ReadLoad::default();
        let mut seen = load.now();
        assert!(!load.is_high_since(&mut seen));
        let read = load.wait();
        assert!(load.is_high_since(&mut seen));
        assert!(load.is_high_since(&mut seen), "it still waits");
        drop(read);
        assert!(!load.is_high_since(&mut seen));
        drop(load.wait());
        assert!(load.is_high_since(&mut seen), "one came and went in between");
        assert!(!load.is_high_since(&mut seen));
    }

    #[tokio::test(start_paused = true)]
    async fn many_reads_from_memory_count_and_few_do_not() {
        let load = ReadLoad::default();
        let mut seen = load.now();
        for (reads, is_high) in [(10, false), (1000, true), (0, false), (300, true)] {
            (0..reads).for_each(|_| load.took(Duration::from_micros(4)));
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert_eq!(load.is_high_since(&mut seen), is_high, "{reads} reads");
        }
    }
}
