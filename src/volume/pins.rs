//! Requests that clones may be in the way of: they keep a snapshot until they are gone or flattened.
//!
//! Owns the turns in which an open volume finds out which of its clones are gone or need it no more. Must not
//! know how pins are stored. Invariants: one task of a volume does that at a time. Whatever it finds is
//! recorded in the root table, even if whoever asked has given up meanwhile.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};
use uuid::Uuid;

use super::clones::{self, Sighted};
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
            let Sighted { alive, doubtful } =
                clones::look(&shared.env, &clones).await.map_err(Error::Store)?;
            let untied = clones::untied(&shared.env, &alive, shared.keys.volume()).await;
            let untied = untied.map_err(Error::Store)?;
            let tied: Vec<Uuid> = alive.into_iter().filter(|clone| !untied.contains(clone)).collect();
            let is_any_free = !doubtful.is_empty() || !untied.is_empty();
            if !is_any_free || (look == Look::UntilAlive && !tied.is_empty()) {
                return Ok(Err(tied));
            }
            if unpin(shared, folds, (untied, doubtful.clone()), mine).await? == 0 {
                return Ok(Err(tied.into_iter().chain(doubtful).collect()));
            }
        }
    }
}

/// Keeps no snapshot any more for the untied clones, and for those of the doubtful ones that do not exist any
/// more. Returns how many these are. A task of the volume does it, so that a caller who gives up costs nobody
/// what was found.
async fn unpin(
    shared: &Arc<Shared>,
    folds: &FoldHandle,
    (untied, doubtful): (Vec<Uuid>, Vec<Uuid>),
    turn: OwnedMutexGuard<()>,
) -> Result<usize, Error> {
    let (of_task, folds) = (Arc::clone(shared), folds.clone());
    let unpinning = shared.tasks.spawn_until_cancelled(async move {
        let mut gone = clones::gone(&of_task.env, &doubtful).await?;
        gone.extend(untied);
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
