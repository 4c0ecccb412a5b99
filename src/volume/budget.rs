//! The limit on dirty bytes of the process.
//!
//! Owns the buffers for uploads too, because a body takes the place of the dirty blocks in it. Must not know
//! which volumes use it. Invariant: only permits that were taken are returned. After the budget shrank,
//! returned permits vanish until the new limit holds.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use super::format::geometry::{BLOCK_BYTES, BLOCK_LEN};
use crate::buffers::Buffers;

/// The part of the budget that idle buffers for uploads may take in addition, and its limit in bytes. A full
/// record has 16 MiB by default, and the default budget 128 MiB.
const IDLE_BUFFERS: usize = 6;
const MOST_IDLE_BYTES: usize = 32 << 20;

/// The limit on dirty bytes of the process, shared by its volumes. Permits are for one block each, and are
/// given out first come, first served.
#[derive(Debug)]
pub struct DirtyBudget {
    permits: Semaphore,
    total: watch::Sender<usize>,
    /// Number of permits that must vanish when they are returned, because the budget shrank.
    owed: Mutex<usize>,
    buffers: Arc<Buffers>,
}

impl DirtyBudget {
    /// Creates a budget of `bytes` bytes, but of at least one block.
    #[must_use]
    pub fn new(bytes: u64) -> Arc<Self> {
        let total = Self::blocks(bytes);
        let (permits, owed) = (Semaphore::new(total), Mutex::new(0));
        let buffers = Buffers::new(idle_bytes(total));
        Arc::new(Self { permits, total: watch::Sender::new(total), owed, buffers })
    }

    /// Returns the buffers for the bodies of uploads.
    pub(super) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    fn blocks(bytes: u64) -> usize {
        let total = usize::try_from(bytes / BLOCK_BYTES).unwrap_or(Semaphore::MAX_PERMITS);
        total.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize))
    }

    /// Changes the budget to `bytes` bytes. Blocks that are already dirty beyond it stay so
    /// until they are committed.
    pub fn resize(&self, bytes: u64) {
        let mut owed = self.owed.lock();
        let (before, after) = (self.total(), Self::blocks(bytes));
        self.total.send_replace(after);
        self.buffers.limit(idle_bytes(after));
        if after >= before {
            let grown = after - before;
            let paid = grown.min(*owed);
            *owed -= paid;
            self.permits.add_permits(grown - paid);
        } else {
            *owed += before - after - self.permits.forget_permits(before - after);
        }
    }

    /// The size of the budget in blocks.
    #[must_use]
    pub fn total(&self) -> usize {
        *self.total.borrow()
    }

    /// Takes permits for `blocks` blocks, but no more than the budget has in total. Returns `None` if they
    /// are not available at once.
    pub(super) fn try_take(&self, blocks: usize) -> Option<usize> {
        let blocks = blocks.min(self.total());
        self.permits.try_acquire_many(u32::try_from(blocks).expect("clamped")).ok()?.forget();
        Some(blocks)
    }

    /// Waits for permits for `blocks` blocks, but no more than the budget has in total, and takes them.
    pub(super) async fn take(&self, blocks: usize) -> usize {
        let mut total = self.total.subscribe();
        loop {
            let blocks = blocks.min(*total.borrow_and_update());
            tokio::select! {
                biased;
                permits = self.permits.acquire_many(u32::try_from(blocks).expect("clamped")) => {
                    permits.expect("the semaphore is never closed").forget();
                    return blocks;
                }
                // The budget may have shrunk below what this call waits for.
                changed = total.changed() => changed.expect("we hold the sender"),
            }
            // The cancelled wait has returned the permits that it had collected. Those that are owed must not
            // be taken again.
            let mut owed = self.owed.lock();
            *owed -= self.permits.forget_permits(*owed);
        }
    }

    /// Returns permits to the budget, for other changes to take.
    ///
    /// # Panics
    /// Panics if more permits are returned than were taken.
    pub(super) fn give(&self, blocks: usize) {
        let mut owed = self.owed.lock();
        let taken = self.total() + *owed - self.permits.available_permits();
        assert!(blocks <= taken, "only what was taken is given back");
        let paid = blocks.min(*owed);
        *owed -= paid;
        self.permits.add_permits(blocks - paid);
    }

    /// Number of blocks that are dirty now.
    #[must_use]
    pub fn used(&self) -> usize {
        let owed = self.owed.lock();
        self.total() + *owed - self.permits.available_permits()
    }
}

/// Limit on the idle buffers of a budget of so many blocks. Once nothing is left to upload, all are freed.
fn idle_bytes(blocks: usize) -> usize {
    (blocks.saturating_mul(BLOCK_LEN) / IDLE_BUFFERS).min(MOST_IDLE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::format::chunk::object_bytes;
    use crate::volume::options::Options;

    #[tokio::test]
    async fn a_budget_shrinks_as_blocks_come_back_and_grows_at_once() {
        let budget = DirtyBudget::new(10 * BLOCK_BYTES);
        assert_eq!(budget.try_take(8), Some(8));
        budget.resize(4 * BLOCK_BYTES);
        assert_eq!((budget.total(), budget.used()), (4, 8));
        budget.give(3);
        assert_eq!((budget.used(), budget.try_take(1)), (5, None));
        budget.give(2);
        assert_eq!((budget.used(), budget.try_take(1)), (3, Some(1)));
        budget.resize(6 * BLOCK_BYTES);
        assert_eq!((budget.used(), budget.try_take(2), budget.try_take(1)), (4, Some(2), None));
        budget.give(6);
        assert_eq!((budget.used(), budget.try_take(100)), (0, Some(6)));
    }

    /// Otherwise the system would clear the memory of each object anew.
    #[test]
    fn idle_buffers_have_room_for_a_full_record_and_for_several_chunks() {
        let options = Options::default();
        let idle = idle_bytes(DirtyBudget::blocks(128 << 20)) as u64;
        let chunk = object_bytes(64, 64);
        assert!(
            idle >= options.commit_max_bytes && idle >= 4 * chunk,
            "{idle} bytes, {chunk} for each chunk"
        );
        assert_eq!(idle_bytes(DirtyBudget::blocks(u64::MAX)), MOST_IDLE_BYTES);
        let budget = DirtyBudget::new(128 << 20);
        budget.resize(6 << 20);
        drop([1, 2].map(|_| budget.buffers().lend(Vec::with_capacity(1 << 20))));
        assert_eq!(budget.buffers().idle_bytes(), 1 << 20, "there is room for one of both");
    }

    /// A call that waits for more permits than the budget has gets all of them.
    #[tokio::test]
    async fn who_waits_while_a_budget_shrinks_is_served() {
        let budget = DirtyBudget::new(10 * BLOCK_BYTES);
        assert_eq!(budget.try_take(1), Some(1));
        let waiting = budget.take(10);
        tokio::pin!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        budget.resize(4 * BLOCK_BYTES);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        budget.give(1);
        assert_eq!(waiting.await, 4);
    }
}
