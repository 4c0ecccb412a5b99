//! Flattening: a clone gets objects of its own for all that it reads from other volumes.
//!
//! Owns the order of the steps and who does them: a task of the volume, so that the work goes on in the
//! background if the caller gives up. It must not know how objects are rewritten. Invariants: one task of a
//! volume does it at a time, and at most one waits to go on. Nothing of it has to be remembered: what is left
//! to do follows from the roots, so a later call goes on with that, whoever holds the volume then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use super::error::Error;
use super::fold::{Detached, FoldHandle};
use super::shared::Shared;

/// Shortest pause before the volume is looked at again, if roots wait for the end of their grace period.
const PAUSE: Duration = Duration::from_secs(10);

/// How far a volume is flattened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flattened {
    /// It needs no other volume any more.
    Done,
    /// It is not a clone, or it was flattened before.
    NoClone,
    /// All of its data is its own. Roots that were replaced still need other volumes until their grace period
    /// is over. While it is open, the rest is done then.
    Waits {
        /// How long that takes, in seconds.
        seconds: u64,
    },
    /// All of its data is its own. Snapshots that were taken before still need other volumes.
    Held {
        /// Names of the snapshots.
        snapshots: Vec<String>,
    },
    /// Some of what it shares cannot be read, and is left as it is.
    Unreadable {
        /// Number of chunks and map pages.
        chunks: u64,
    },
}

/// The turns of a volume, and whether a task goes on later.
#[derive(Clone, Debug, Default)]
pub(super) struct Flattening {
    /// Held by whoever flattens the volume.
    turn: Arc<Mutex<()>>,
    /// Whether a task waits for the end of the grace period. As long as the volume is open, this changes only
    /// while the turn is held.
    goes_on: Arc<AtomicBool>,
}

/// The task that goes on later, until it is dropped.
#[derive(Debug)]
struct Continuation(Arc<AtomicBool>);

impl Drop for Continuation {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Flattening {
    /// Flattens the volume as far as possible.
    ///
    /// # Errors
    /// If the store fails, or if the volume stopped.
    pub(super) async fn run(&self, shared: &Arc<Shared>, folds: &FoldHandle) -> Result<Flattened, Error> {
        if shared.state.lock().root.origins.is_empty() {
            return Ok(Flattened::NoClone);
        }
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let (this, of_task, folds) = (self.clone(), Arc::clone(shared), folds.clone());
        let work = shared.tasks.spawn_until_cancelled(async move {
            let flattened = flatten(&of_task, &folds).await;
            if let Ok(Flattened::Waits { seconds }) = flattened {
                this.go_on_later(&of_task, folds, seconds);
            }
            drop(turn);
            flattened
        });
        match work.await {
            Ok(Some(flattened)) => flattened,
            Ok(None) | Err(_) => {
                shared.check_serving()?;
                Err(Error::Stopped("the volume is closed".to_owned()))
            }
        }
    }

    /// Does the rest when the grace period of the roots that wait is over, unless a task does so already.
    fn go_on_later(&self, shared: &Arc<Shared>, folds: FoldHandle, seconds: u64) {
        if self.goes_on.swap(true, Ordering::AcqRel) {
            return;
        }
        let continuation = Continuation(Arc::clone(&self.goes_on));
        let (turns, of_task, volume) = (Arc::clone(&self.turn), Arc::clone(shared), shared.keys.volume());
        shared.tasks.spawn_until_cancelled(async move {
            let (mut left, mut is_failing) = (Duration::from_secs(seconds), false);
            loop {
                tokio::time::sleep(left.max(PAUSE)).await;
                let turn = turns.lock().await;
                match go_on(&of_task, &folds).await {
                    Ok(Flattened::Waits { seconds }) => {
                        (left, is_failing) = (Duration::from_secs(seconds), false);
                    }
                    Err(error) if of_task.check_serving().is_ok() => {
                        if !is_failing {
                            tracing::warn!(%volume, "the flattening fails, trying again: {error}");
                        }
                        (left, is_failing) = (PAUSE, true);
                    }
                    ended => {
                        tracing::info!(%volume, ?ended, "went on with the flattening");
                        // Before another call has the turn, which must not rely on this task.
                        drop(continuation);
                        drop(turn);
                        return;
                    }
                }
            }
        });
    }
}

/// One more attempt, unless somebody has done the rest.
async fn go_on(shared: &Shared, folds: &FoldHandle) -> Result<Flattened, Error> {
    if shared.state.lock().root.origins.is_empty() {
        return Ok(Flattened::NoClone);
    }
    flatten(shared, folds).await
}

async fn flatten(shared: &Shared, folds: &FoldHandle) -> Result<Flattened, Error> {
    loop {
        let chunks = folds.adopt(shared).await?;
        if chunks > 0 {
            return Ok(Flattened::Unreadable { chunks });
        }
        match folds.detach(shared).await? {
            Detached::Done => return Ok(Flattened::Done),
            Detached::Waits(left) => return Ok(Flattened::Waits { seconds: left.as_secs() }),
            Detached::Held(snapshots) => return Ok(Flattened::Held { snapshots }),
            // The map was lost in part since it was adopted, which the next round reports.
            Detached::Foreign => {}
        }
    }
}
