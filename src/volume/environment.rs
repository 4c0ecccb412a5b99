//! What all volumes of a process share: the store, the page cache, the budget of dirty
//! bytes, randomness and time.
//!
//! Must not know about any single volume. Invariant: all volumes use the same cache and the same budget, so
//! the bounds on memory hold for the whole process.

use std::sync::Arc;

use super::budget::DirtyBudget;
use super::cache::PageCache;
use super::options::{Entropy, WallClock};
use crate::store::Classes;

/// The resources of the process that a volume uses. Clones share them.
#[derive(Clone)]
pub struct Environment {
    /// The store of the objects, by class of request.
    pub store: Classes,
    /// Cache of clean pages.
    pub cache: Arc<PageCache>,
    /// Limit on dirty bytes.
    pub budget: Arc<DirtyBudget>,
    /// Source of nonces and uuids.
    pub entropy: Entropy,
    /// Time of day, in seconds since 1970.
    pub wall_clock: WallClock,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("store", &self.store).finish_non_exhaustive()
    }
}
