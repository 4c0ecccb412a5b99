//! The latencies of recent requests, in order to recognise a slow one.
//!
//! Owns a sliding window for each size of requests, and must not know what a slow request leads to.
//! Invariant: the memory is bounded, and nothing is allocated once a window is full.

use std::time::Duration;

use crate::store::ByteRange;

/// Number of latencies in a window.
const WINDOW: usize = 512;
/// After how many latencies the window is sorted again.
const SORT_EVERY: usize = 32;
/// Upper bounds in bytes of the sizes that have a window of their own. Larger requests share one more.
const SIZES: [u64; 3] = [16 << 10, 128 << 10, 1 << 20];
/// Number of windows: one for each size, one for larger requests, and one for GETs of whole objects, whose
/// size is unknown.
const WINDOWS: usize = SIZES.len() + 2;

/// The size of a request, as far as its latency depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(usize);

impl Size {
    /// Returns the size of a body of `bytes`.
    pub(super) fn of_bytes(bytes: u64) -> Self {
        Self(SIZES.iter().take_while(|most| bytes > **most).count())
    }

    /// Returns the size of the answer to a GET.
    pub(super) fn of_range(range: ByteRange) -> Self {
        match range {
            ByteRange::Full => Self(WINDOWS - 1),
            ByteRange::Bounded { length, .. } => Self::of_bytes(length),
        }
    }
}

/// The windows of all sizes.
#[derive(Debug, Default)]
pub(super) struct Latencies([Window; WINDOWS]);

/// The latencies of recent requests of one size.
#[derive(Debug, Default)]
struct Window {
    /// In microseconds. The oldest is replaced first.
    ring: Vec<u32>,
    /// Where the next latency goes once the ring is full.
    next: usize,
    /// The ring as of the last time that it was sorted.
    sorted: Vec<u32>,
    /// Number of latencies since then, below [`SORT_EVERY`].
    unsorted: usize,
}

impl Latencies {
    /// Records the latency of a request. A request that was given up counts with the time until then.
    pub(super) fn record(&mut self, size: Size, latency: Duration) {
        self.0[size.0].record(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    /// Returns the latency that at most `permille` of 1,000 recent requests exceeded. `None` if fewer than
    /// `least` requests are known, or if no recent request was so slow that a second one, sent after that
    /// time, would have been sooner.
    pub(super) fn slow_after(&self, size: Size, permille: usize, least: usize) -> Option<Duration> {
        let sorted = &self.0[size.0].sorted;
        if sorted.len() < least.max(1) {
            return None;
        }
        let exceeded_by = |permille: usize| {
            let above = (sorted.len() * permille / 1000).min(sorted.len() - 1);
            sorted[sorted.len() - 1 - above]
        };
        let (median, slowest) = (exceeded_by(500), exceeded_by(5));
        let slow = exceeded_by(permille);
        // A second request is rarely answered sooner than after half the median.
        let helps = slowest >= slow.saturating_add(median / 2);
        helps.then(|| Duration::from_micros(slow.into()))
    }
}

impl Window {
    fn record(&mut self, microseconds: u32) {
        if self.ring.len() < WINDOW {
            self.ring.push(microseconds);
        } else {
            self.ring[self.next] = microseconds;
            self.next = (self.next + 1) % WINDOW;
        }
        self.unsorted += 1;
        if self.unsorted == SORT_EVERY {
            self.unsorted = 0;
            self.sorted.clear();
            self.sorted.extend_from_slice(&self.ring);
            self.sorted.sort_unstable();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Size = Size(0);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn recorded(latencies: impl IntoIterator<Item = u64>) -> Latencies {
        let mut windows = Latencies::default();
        for latency in latencies {
            windows.record(SMALL, ms(latency));
        }
        windows
    }

    #[test]
    fn a_request_is_slow_once_it_takes_longer_than_all_but_a_share_of_the_recent_ones() {
        let one_to_a_hundred = || recorded((0..512).map(|n| n * 100 / 512 + 1));
        assert_eq!(one_to_a_hundred().slow_after(SMALL, 100, 100), None, "the slowest are not much slower");
        let long_tail = recorded((0..512_u64).map(|n| if n.is_multiple_of(20) { 400 } else { 20 + n % 20 }));
        assert_eq!(long_tail.slow_after(SMALL, 100, 100), Some(ms(38)));
        assert_eq!(long_tail.slow_after(SMALL, 60, 100), Some(ms(39)));
        assert_eq!(long_tail.slow_after(SMALL, 100, 513), None, "too few are known");
        assert_eq!(long_tail.slow_after(Size(1), 100, 100), None, "each size has its own");
        assert_eq!(long_tail.slow_after(SMALL, 1000, 1), Some(ms(21)), "a share of all");
    }

    #[test]
    fn the_window_slides() {
        let tail = |n: u64, usual: u64| if n.is_multiple_of(20) { usual * 10 } else { usual };
        let mut windows = recorded((0..10_000).map(|n| tail(n, 20)));
        assert_eq!(windows.slow_after(SMALL, 100, 100), Some(ms(20)));
        for n in 0..512 {
            windows.record(SMALL, ms(tail(n, 80)));
        }
        assert_eq!(windows.slow_after(SMALL, 100, 100), Some(ms(80)));
        let Latencies([window, ..]) = &windows;
        assert_eq!((window.ring.len(), window.sorted.len()), (WINDOW, WINDOW));
    }

    #[test]
    fn sizes_are_apart() {
        let of = |bytes| Size::of_bytes(bytes).0;
        assert_eq!([0, 16 << 10, (16 << 10) + 1, 1 << 20, u64::MAX].map(of), [0, 0, 1, 2, 3]);
        assert_eq!(Size::of_range(ByteRange::Full).0, 4);
        assert_eq!(Size::of_range(ByteRange::Bounded { offset: 7, length: 4096 }).0, 0);
    }
}
