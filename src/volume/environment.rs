//! What volumes use of their process: the store, the cache of clean pages, the bound on dirty bytes, chance
//! and time.

use std::sync::Arc;

use super::budget::DirtyBudget;
use super::cache::PageCache;
use super::options::{Entropy, WallClock};
use crate::store::Classes;

/// What process-wide resources a volume uses.
#[derive(Clone)]
pub struct Environment {
    /// Where the objects are, by class of request.
    pub store: Classes,
    /// Clean pages.
    pub cache: Arc<PageCache>,
    /// Bound on dirty bytes.
    pub budget: Arc<DirtyBudget>,
    /// Randomness.
    pub entropy: Entropy,
    /// Time of day.
    pub wall_clock: WallClock,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("store", &self.store).finish_non_exhaustive()
    }
}
