//! Requests to the folding task.
//!
//! Owns how callers wait for a checkpoint. It does not know how one is made. Invariant: a caller gets an
//! answer, or an error once the task has ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::own_pages::OwnPages;
use crate::mutant::{self, Mutant};
use crate::volume::collect::{Collector, Trash};
use crate::volume::error::{Error, SnapshotError};
use crate::volume::format::root::Root;
use crate::volume::shared::Shared;

/// Limit on waiting requests to the folding task.
pub(super) const REQUESTS: usize = 16;
/// A request to the folding task.
#[derive(Debug)]
pub(super) enum Request {
    /// Fold what is committed, and answer when the checkpoint is published.
    Fold(Scope, oneshot::Sender<()>),
    /// Fold every segment that has ended, and answer when their checkpoints are published.
    FoldClosed(oneshot::Sender<()>),
    /// Delete a snapshot, and answer when the volume no longer keeps it.
    DeleteSnapshot(String, oneshot::Sender<Result<(), Refused>>),
    /// Keep the root of a snapshot for a clone, and answer with that root when the head says so.
    Pin(String, Uuid, oneshot::Sender<Result<Root, Refused>>),
    /// Keep no root for these clones any more, and answer when the head says so.
    Unpin(Vec<Uuid>, oneshot::Sender<Result<(), Error>>),
    /// Make objects of other volumes this volume's own, from a map page on, and answer when the checkpoint is
    /// published.
    Adopt(u32, oneshot::Sender<Result<Adopted, Error>>),
    /// Reference no other volume any more, and answer when the head says so. These map pages are known to
    /// need none.
    Detach(OwnPages, oneshot::Sender<Result<Detached, Error>>),
    /// Make the volume what it was at a snapshot, and answer when the head says so.
    Restore(String, oneshot::Sender<Result<(), SnapshotError>>),
    /// Fold nothing more, and answer when no fold is running.
    Rest(oneshot::Sender<()>),
}

/// Why a snapshot is not deleted, or not kept for a clone.
#[derive(Clone, Debug)]
pub(crate) enum Refused {
    /// Because of these clones, unless they are gone and unpinned.
    Clones(Vec<Uuid>),
    /// For another reason.
    Other(SnapshotError),
}

/// What a step of an adoption did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Adopted {
    /// The map page at which the next step begins; `None` after the last one.
    pub(super) next: Option<u32>,
    /// Chunks and map pages that cannot be read, in the map pages that are done.
    pub(super) unreadable: u64,
    /// Bytes that the next steps have yet to rewrite, at most.
    pub(super) remaining_bytes: u64,
}

/// Whether a volume was detached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Detached {
    /// Its root lists no origins.
    Done,
    /// The current root references objects of other volumes.
    Foreign,
    /// Roots that were replaced do so, and wait this long for the end of their grace period.
    Waits(Duration),
    /// These snapshots do so.
    Held(Vec<String>),
}

impl From<SnapshotError> for Refused {
    fn from(error: SnapshotError) -> Self {
        Self::Other(error)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Other(error.into())
    }
}

/// How much a fold is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// What is committed, and the background work that is due.
    Committed,
    /// Also consolidate chunks of which overlays locate anything, up to [`STEP_BYTES`].
    Consolidate,
    /// Also rewrite chunks of which other volumes store anything, in the chosen map pages, up to
    /// [`STEP_BYTES`].
    Adopt,
}

/// Sends requests to the folding task.
#[derive(Clone, Debug)]
pub(crate) struct FoldHandle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) trash: Arc<Trash>,
}

impl FoldHandle {
    /// Folds everything that is committed now. Returns once the checkpoint is published.
    pub(crate) async fn fold(&self, shared: &Shared) -> Result<(), Error> {
        self.request(shared, Scope::Committed).await
    }

    /// Folds every durable commit up to the last one that ends with a snapshot or a new size. Returns once
    /// their checkpoints are published.
    pub(crate) async fn fold_closed(&self, shared: &Shared) -> Result<(), Error> {
        self.ask(shared, Request::FoldClosed).await
    }

    /// Folds everything that is committed, and moves all blocks from packs back to chunk objects.
    pub(crate) async fn consolidate(&self, shared: &Shared) -> Result<(), Error> {
        let overlaid = || {
            let root = Arc::clone(&shared.state.lock().root);
            root.map_pages.values().map(|page| u64::from(page.counts.overlaid)).sum::<u64>()
        };
        loop {
            let before = overlaid();
            self.request(shared, Scope::Consolidate).await?;
            // What clients write meanwhile is left to the usual checkpoints.
            if overlaid() == 0 || overlaid() >= before.max(1) {
                return Ok(());
            }
        }
    }

    async fn request(&self, shared: &Shared, scope: Scope) -> Result<(), Error> {
        if mutant::is(Mutant::CheckpointUnawaited) {
            return self.requests.try_send(Request::Fold(scope, oneshot::channel().0)).or(Ok(()));
        }
        self.ask(shared, |done| Request::Fold(scope, done)).await
    }

    /// Sends a request and waits for the answer.
    pub(super) async fn ask<T>(
        &self,
        shared: &Shared,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Error> {
        let (done, answer) = oneshot::channel();
        if self.requests.send(request(done)).await.is_ok()
            && let Ok(answer) = answer.await
        {
            return Ok(answer);
        }
        shared.check_serving()?;
        Err(Error::Stopped("the volume is closed".to_owned()))
    }

    /// Stops folding. Returns once no fold is running; none will start after that.
    pub(crate) async fn rest(&self) {
        let (done, answer) = oneshot::channel();
        // If there is no answer, the task has already ended.
        if self.requests.send(Request::Rest(done)).await.is_err() || answer.await.is_err() {
            tracing::debug!("the folder rests already");
        }
    }

    /// Returns what deletes the garbage of the volume.
    pub(in crate::volume) fn collector(&self, shared: &Arc<Shared>) -> Collector {
        Collector::new(Arc::clone(shared), Arc::clone(&self.trash))
    }

    /// Whether objects may exist that only a sweep finds.
    pub(crate) fn is_unswept(&self) -> bool {
        self.trash.is_unswept()
    }
}

/// Answers a request. The caller may have given up.
pub(super) fn answer<T>(to: oneshot::Sender<T>, with: T) {
    if to.send(with).is_err() {
        tracing::debug!("nobody waits for the answer of the folder any more");
    }
}
