//! Adoption: what a clone reads from other volumes is rewritten into objects of its own.
//!
//! Owns which map pages come next. The fold rewrites the chunks, as it consolidates others. Invariants: it is
//! done in steps, and each is a checkpoint, so it can end anywhere and go on with what is left. What cannot
//! be read is left as it is: no loss is recorded for good, because the owner may get the object back. The
//! changes of clients in such a chunk are packed. One map page with its overlays is in memory at a time, and
//! the numbers of those of one step. A step is short, because nothing else is folded meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::handle::{Adopted, Request, Scope, answer};
use super::made::Made;
use super::own_pages::foreign_in;
use super::{FoldHandle, Folder, STEP_BYTES};
use crate::volume::error::Error;
use crate::volume::shared::Shared;

/// Limit on the map pages that one step looks at.
const STEP_MAP_PAGES: usize = 64;

/// The map pages of a step.
#[derive(Debug, Default)]
struct Step {
    /// How much of each is not this volume's own.
    pages: BTreeMap<u32, u64>,
    next: Option<u32>,
    unreadable: u64,
}

/// Shows how much an adoption has yet to rewrite, until it ends.
#[derive(Debug)]
struct Remaining<'a>(&'a Shared);

impl Drop for Remaining<'_> {
    fn drop(&mut self) {
        self.0.gauge_flattening(0);
    }
}

impl FoldHandle {
    /// Makes everything that the current root references of other volumes this volume's own. Returns how many
    /// chunks and map pages cannot be read, and are left as they are.
    ///
    /// # Errors
    /// If the store fails, or if the volume stopped.
    pub(crate) async fn adopt(&self, shared: &Shared) -> Result<u64, Error> {
        let (mut next, mut unreadable) = (Some(0), 0);
        let remaining = Remaining(shared);
        remaining.0.gauge_flattening(bytes_from(shared, next));
        while let Some(from) = next {
            let adopted = self.ask(shared, |done| Request::Adopt(from, done)).await??;
            remaining.0.gauge_flattening(adopted.remaining_bytes);
            unreadable += adopted.unreadable;
            next = adopted.next;
        }
        Ok(unreadable)
    }
}

impl Folder {
    /// Serves a request for one step. Returns an error only once the volume has stopped.
    pub(super) async fn serve_adoption(
        &self,
        from: u32,
        done: oneshot::Sender<Result<Adopted, Error>>,
    ) -> Result<(), Error> {
        // A step need not make a checkpoint, and the next step may follow at once.
        self.fold_due(self.shared.options.journal_max_age).await?;
        let adopted = self.adopt(from).await;
        self.adopting.lock().clear();
        answer(done, adopted);
        self.shared.check_serving()
    }

    async fn adopt(&self, from: u32) -> Result<Adopted, Error> {
        let Step { pages, next, unreadable } = self.choose_step(from).await?;
        if pages.is_empty() {
            return Ok(Adopted { next, unreadable, remaining_bytes: bytes_from(&self.shared, next) });
        }
        *self.adopting.lock() = pages.keys().copied().collect::<BTreeSet<u32>>();
        self.fold_until_done(Scope::Adopt, Made::default()).await?;
        let root = Arc::clone(&self.shared.state.lock().root);
        let (before, mut left) = (pages.values().sum::<u64>(), 0);
        for number in pages.keys() {
            left += foreign_in(&self.shared, &root, *number).await?.unwrap_or(1);
        }
        let remaining_bytes = bytes_from(&self.shared, next);
        Ok(match left {
            0 => Adopted { next, unreadable, remaining_bytes },
            // The step was full.
            left if left < before => {
                let remaining_bytes = remaining_bytes + left * self.shared.geometry.chunk_bytes();
                Adopted { next: Some(from), unreadable: 0, remaining_bytes }
            }
            left => Adopted { next, unreadable: unreadable + left, remaining_bytes },
        })
    }

    /// Chooses map pages for one step.
    async fn choose_step(&self, from: u32) -> Result<Step, Error> {
        let root = Arc::clone(&self.shared.state.lock().root);
        let most = (STEP_BYTES / self.shared.geometry.chunk_bytes()).max(1);
        let (mut step, mut chunks) = (Step::default(), 0);
        for (looked_at, number) in (1..).zip(root.map_pages.range(from..).map(|(number, _)| *number)) {
            self.shared.check_serving()?;
            match foreign_in(&self.shared, &root, number).await? {
                None => step.unreadable += 1,
                Some(0) => {}
                Some(foreign) => {
                    step.pages.insert(number, foreign);
                    chunks += foreign;
                }
            }
            if chunks >= most || looked_at >= STEP_MAP_PAGES {
                step.next = number.checked_add(1);
                break;
            }
        }
        Ok(step)
    }
}

/// Bytes of the disk in the map pages from one on. Those that are no objects share nothing with another
/// volume.
fn bytes_from(shared: &Shared, from: Option<u32>) -> u64 {
    let Some(from) = from else { return 0 };
    let root = Arc::clone(&shared.state.lock().root);
    let page_bytes = shared.geometry.map_page_bytes();
    let of = |number: u32| root.size_bytes.saturating_sub(u64::from(number) * page_bytes).min(page_bytes);
    root.map_pages.range(from..).map(|(number, _)| of(*number)).sum()
}
