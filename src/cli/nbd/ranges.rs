//! Locks on ranges of a disk. A holder excludes others from the same bytes, and from no other bytes.
//!
//! Owns the order of the waiting requests, and must not know what they do. Invariant: requests for
//! overlapping ranges are granted in order of arrival, so nobody waits forever.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The ranges that are held or waited for.
#[derive(Clone, Debug, Default)]
pub(super) struct RangeLocks(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// All requests, in order of arrival.
    wanted: BTreeMap<u64, Wanted>,
}

#[derive(Debug)]
struct Wanted {
    range: Range<u64>,
    /// Cancelled when the range is released.
    released: CancellationToken,
}

/// A range that is held until this value is dropped.
#[derive(Debug)]
pub(super) struct Held {
    locks: RangeLocks,
    number: u64,
}

impl RangeLocks {
    /// Waits until no earlier request holds any of these bytes.
    pub(super) async fn lock(&self, range: Range<u64>) -> Held {
        let (held, earlier) = self.ask(range);
        for released in earlier {
            released.cancelled().await;
        }
        held
    }

    fn ask(&self, range: Range<u64>) -> (Held, Vec<CancellationToken>) {
        let mut table = self.0.lock();
        let overlaps = |wanted: &&Wanted| wanted.range.start < range.end && range.start < wanted.range.end;
        let earlier = table.wanted.values().filter(overlaps).map(|it| it.released.clone()).collect();
        let number = table.next;
        table.next += 1;
        table.wanted.insert(number, Wanted { range, released: CancellationToken::new() });
        (Held { locks: self.clone(), number }, earlier)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(wanted) = self.locks.0.lock().wanted.remove(&self.number) {
            wanted.released.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, poll};

    use super::*;

    #[tokio::test]
    async fn disjoint_ranges_do_not_wait_for_each_other() {
        let locks = RangeLocks::default();
        let _first = locks.lock(0..10).await;
        let _second = locks.lock(10..20).await;
        assert!(locks.lock(5..15).now_or_never().is_none());
        assert!(locks.lock(20..21).now_or_never().is_some());
    }

    #[tokio::test]
    async fn overlapping_ranges_are_granted_in_order_of_arrival() {
        let locks = RangeLocks::default();
        let first = locks.lock(0..10).await;
        let mut second = Box::pin(locks.lock(5..15));
        let mut third = Box::pin(locks.lock(12..20));
        assert!(poll!(&mut second).is_pending());
        assert!(poll!(&mut third).is_pending(), "the second asked before it");
        drop(first);
        let second = second.await;
        assert!(poll!(&mut third).is_pending());
        drop(second);
        third.await;
        assert!(locks.0.lock().wanted.is_empty());
    }

    #[tokio::test]
    async fn a_cancelled_request_delays_nobody() {
        let locks = RangeLocks::default();
        let first = locks.lock(0..10).await;
        let mut second = Box::pin(locks.lock(0..10));
        assert!(poll!(&mut second).is_pending());
        drop(second);
        drop(first);
        assert!(locks.lock(0..10).now_or_never().is_some());
    }
}
