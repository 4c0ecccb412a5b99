//! Flattening: a clone gets objects of its own for all that it reads from other volumes.
//!
//! Owns the order of the steps and who does them: a task of the volume, so that the work goes on in the
//! background if the caller gives up. It must not know how objects are rewritten. Invariants: one task of a
//! volume does it at a time. Nothing of it has to be remembered: what is left to do follows from the roots,
//! so a later call goes on with that, whoever holds the volume then.

use std::sync::Arc;
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

/// The turns of a volume.
#[derive(Debug, Default)]
pub(super) struct Flattening(Arc<Mutex<()>>);

impl Flattening {
    /// Flattens the volume as far as possible.
    ///
    /// # Errors
    /// If the store fails, or if the volume stopped.
    pub(super) async fn run(&self, shared: &Arc<Shared>, folds: &FoldHandle) -> Result<Flattened, Error> {
        if shared.state.lock().root.origins.is_empty() {
            return Ok(Flattened::NoClone);
        }
        let turn = Arc::clone(&self.0).lock_owned().await;
        let (of_task, folds, turns) = (Arc::clone(shared), folds.clone(), Arc::clone(&self.0));
        let work = shared.tasks.spawn_until_cancelled(async move {
            let flattened = flatten(&of_task, &folds).await;
            drop(turn);
            if let Ok(Flattened::Waits { seconds }) = flattened {
                go_on_later(&of_task, folds, turns, seconds);
            }
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

/// Does the rest when the grace period of the roots that wait is over.
fn go_on_later(shared: &Arc<Shared>, folds: FoldHandle, turns: Arc<Mutex<()>>, seconds: u64) {
    let (of_task, volume) = (Arc::clone(shared), shared.keys.volume());
    let mut left = Duration::from_secs(seconds);
    shared.tasks.spawn_until_cancelled(async move {
        loop {
            tokio::time::sleep(left.max(PAUSE)).await;
            let _turn = turns.lock().await;
            match flatten(&of_task, &folds).await {
                Ok(Flattened::Waits { seconds }) => left = Duration::from_secs(seconds),
                Ok(flattened) => {
                    tracing::info!(%volume, ?flattened, "went on with the flattening");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%volume, "the flattening ends: {error}");
                    return;
                }
            }
        }
    });
}
