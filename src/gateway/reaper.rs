//! Deletes the volumes for good whose time to be brought back is over.
//!
//! Owns the task that does so, and must not know how the time is counted: `Watch` does that. The census says
//! which volumes no name refers to, so this costs one GET for each of them and no LIST. Invariants: one look
//! at a time is in progress, so the volumes of one look are not asked for once more by the next one. Nothing
//! of it takes a place from requests that clients wait for.

use std::sync::Arc;

use tokio::sync::Mutex;
use uuid::Uuid;

use crate::store::Classes;
use crate::task::Tasks;
use crate::volume::catalog::Watch;
use crate::volume::{self, Environment};

/// The task that deletes volumes for good.
#[derive(Debug)]
pub(crate) struct Reaper {
    env: Environment,
    options: volume::Options,
    watch: Mutex<Watch>,
    tasks: Tasks,
}

impl Reaper {
    /// Creates a reaper that has seen nothing yet.
    pub(crate) fn new(env: Environment, options: volume::Options) -> Arc<Self> {
        let env = Environment { store: Classes::one(Arc::clone(&env.store.bulk)), ..env };
        Arc::new(Self { env, options, watch: Mutex::default(), tasks: Tasks::new() })
    }

    /// Begins to look at all volumes that no name refers to, unless the last look is still in progress.
    pub(super) fn look(self: &Arc<Self>, volumes: Vec<Uuid>) {
        let reaper = Arc::clone(self);
        drop(self.tasks.spawn_until_cancelled(async move {
            if let Ok(mut watch) = reaper.watch.try_lock() {
                watch.look(&reaper.env, &reaper.options, &volumes).await;
            }
        }));
    }

    /// Stops the task. A deletion that it interrupts is finished by a later look, here or elsewhere.
    pub(crate) async fn stop(&self) {
        self.tasks.shutdown().await;
    }
}

#[cfg(test)]
mod tests;
