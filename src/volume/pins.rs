//! Requests that clones may be in the way of: they keep a snapshot until they are gone.
//!
//! Owns the turns in which an open volume finds out which of its clones are gone. Must not know how pins are
//! stored. Invariants: one task of a volume does that at a time. Whatever it finds is recorded in the root
//! table, even if whoever asked has given up meanwhile.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};
use uuid::Uuid;

use super::clones;
use super::error::{Error, SnapshotError};
use super::fold::{FoldHandle, Refused};
use super::shared::Shared;

/// How far clones that are in the way are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Until one is known to exist: one is enough to refuse.
    UntilAlive,
    /// At all of them: each that is gone makes room.
    AtAll,
}

/// The turns of a volume.
#[derive(Debug, Default)]
pub(super) struct Pins(Arc<Mutex<()>>);

impl Pins {
    /// Executes a request about a snapshot. If clones are in the way, looks which of them still exist, and
    /// executes it once more. Returns the clones that are in the way.
    ///
    /// # Errors
    /// If the request is refused for another reason, if the store fails, or if the volume stopped.
    pub(super) async fn unless_needed<T, F>(
        &self,
        shared: &Arc<Shared>,
        folds: &FoldHandle,
        look: Look,
        request: impl Fn() -> F,
    ) -> Result<Result<T, Vec<Uuid>>, SnapshotError>
    where
        F: Future<Output = Result<T, Refused>>,
    {
        let mut turn = None;
        loop {
            let clones = match request().await {
                Ok(done) => return Ok(Ok(done)),
                Err(Refused::Other(error)) => return Err(error),
                Err(Refused::Clones(clones)) => clones,
            };
            // Whoever had the turn before may have found out that the clones are gone.
            let Some(mine) = turn.take() else {
                turn = Some(Arc::clone(&self.0).lock_owned().await);
                continue;
            };
            let sighted = clones::look(&shared.env, &clones).await.map_err(Error::Store)?;
            if sighted.doubtful.is_empty() || (look == Look::UntilAlive && !sighted.alive.is_empty()) {
                return Ok(Err(sighted.alive));
            }
            if unpin(shared, folds, sighted.doubtful.clone(), mine).await? == 0 {
                return Ok(Err(sighted.alive.into_iter().chain(sighted.doubtful).collect()));
            }
        }
    }
}

/// Keeps no snapshot any more for those of the clones that do not exist any more. Returns how many these are.
/// A task of the volume does it, so that a caller who gives up costs nobody what was found.
async fn unpin(
    shared: &Arc<Shared>,
    folds: &FoldHandle,
    doubtful: Vec<Uuid>,
    turn: OwnedMutexGuard<()>,
) -> Result<usize, Error> {
    let (of_task, folds) = (Arc::clone(shared), folds.clone());
    let unpinning = shared.tasks.spawn_until_cancelled(async move {
        let gone = clones::gone(&of_task.env, &doubtful).await?;
        let count = gone.len();
        if count > 0 {
            folds.unpin(&of_task, gone).await?;
        }
        drop(turn);
        Ok(count)
    });
    match unpinning.await {
        Ok(Some(unpinned)) => unpinned,
        Ok(None) | Err(_) => {
            shared.check_serving()?;
            Err(Error::Stopped("the volume is closed".to_owned()))
        }
    }
}
