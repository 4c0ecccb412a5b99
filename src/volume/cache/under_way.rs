//! Bytes that are being read ahead.
//!
//! Owns their count and the limit on it. Must not know how they are fetched. Invariant: what is no longer
//! under way, even by cancellation, is no longer counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::fetch::Fetch;

/// Limit on the bytes that are under way at once for all readers: the capacity divided by this.
const SHARE: u64 = 4;

/// The count of the bytes that are being read ahead.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Arc<AtomicU64>);

/// Bytes that are under way until this is dropped.
struct Counted(Arc<AtomicU64>, u64);

impl UnderWay {
    /// Returns the first of `wanted`, as many as may be read ahead now. `capacity` is that of the cache in
    /// bytes. The rest is left to the reads that need it.
    pub(super) fn fitting<'a>(&self, wanted: &'a [Fetch], capacity: u64) -> &'a [Fetch] {
        let mut left = (capacity / SHARE).saturating_sub(self.0.load(Ordering::Relaxed));
        let fits = |fetch: &&Fetch| {
            let rest = left.checked_sub(u64::from(fetch.length));
            left = rest.unwrap_or(0);
            rest.is_some()
        };
        &wanted[..wanted.iter().take_while(fits).count()]
    }

    /// Counts `bytes` bytes until `load` ends or is dropped.
    pub(super) fn during<F>(&self, bytes: u64, load: F) -> impl Future<Output = ()> + use<F>
    where
        F: Future<Output = ()>,
    {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        let counted = Counted(Arc::clone(&self.0), bytes);
        async move {
            let _counted = counted;
            load.await;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::volume::format::geometry::BlockIndex;
    use crate::volume::format::keys::ObjectId;
    use crate::volume::format::sealing::Sealing;

    #[tokio::test]
    async fn what_is_under_way_leaves_less_room() {
        let id = ObjectId { epoch: 1, k: 1 };
        let sealing = Sealing::new(Uuid::from_u128(1));
        let block = |number: u16| Fetch::pack(sealing, id, number, 1, BlockIndex(u64::from(number)));
        let wanted: Vec<Fetch> = (0..16).map(block).collect();
        let (under_way, capacity) = (UnderWay::default(), 8 * 4096 * SHARE);
        assert_eq!(under_way.fitting(&wanted, capacity).len(), 8);
        let load = under_way.during(5 * 4096, async {});
        assert_eq!(under_way.fitting(&wanted, capacity).len(), 3);
        let cancelled = under_way.during(100 * 4096, async {});
        assert_eq!(under_way.fitting(&wanted, capacity).len(), 0);
        drop(cancelled);
        assert_eq!(under_way.fitting(&wanted, capacity).len(), 3);
        load.await;
        assert_eq!(under_way.fitting(&wanted, capacity).len(), 8);
    }
}
