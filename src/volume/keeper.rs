//! The owner of `head`: renews the lease, publishes checkpoints, releases; one update at a time.
//!
//! Invariant: a head that another opening changed stops the volume.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::format::head::{Checkpoint, Lease};
use super::format::keys::ObjectId;
use super::held::{HeldHead, Unheld};
use super::shared::Shared;

/// What is asked of the owner of the head.
#[derive(Debug)]
enum Request {
    Publish { checkpoint: Checkpoint, root: ObjectId, root_table: ObjectId, done: oneshot::Sender<()> },
    Release { unswept: bool, done: oneshot::Sender<()> },
}

/// A way to ask the owner of the head.
#[derive(Clone, Debug)]
pub(super) struct HeadHandle {
    requests: mpsc::Sender<Request>,
    hurry: CancellationToken,
}

/// Requests that wait at most; there is one folder and one closing.
const REQUESTS: usize = 4;

impl HeadHandle {
    /// A handle and what the owner receives from it.
    pub(super) fn new() -> (Self, HeadRequests) {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let hurry = CancellationToken::new();
        (Self { requests, hurry: hurry.clone() }, HeadRequests { requests: receiver, hurry })
    }

    /// Lets no update wait for the one before to be old enough: the volume is being closed, and somebody
    /// waits for it.
    pub(super) fn hurry(&self) {
        self.hurry.cancel();
    }

    /// Publishes a checkpoint; returns when it is durable.
    pub(super) async fn publish(
        &self,
        shared: &Shared,
        checkpoint: Checkpoint,
        root: ObjectId,
        root_table: ObjectId,
    ) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        self.ask(shared, Request::Publish { checkpoint, root, root_table, done }, answer).await
    }

    /// Releases the lease, and says whether objects that nothing names may stand; the owner ends.
    pub(super) async fn release(&self, shared: &Shared, unswept: bool) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        self.ask(shared, Request::Release { unswept, done }, answer).await
    }

    async fn ask(
        &self,
        shared: &Shared,
        request: Request,
        answer: oneshot::Receiver<()>,
    ) -> Result<(), Error> {
        let gone = || Error::Stopped("the volume is closed".to_owned());
        if self.requests.send(request).await.is_err() || answer.await.is_err() {
            shared.check_serving()?;
            return Err(gone());
        }
        Ok(())
    }
}

/// What the owner of the head receives.
#[derive(Debug)]
pub(super) struct HeadRequests {
    requests: mpsc::Receiver<Request>,
    hurry: CancellationToken,
}

/// The owner of the head.
#[derive(Debug)]
pub(super) struct HeadKeeper {
    shared: Arc<Shared>,
    requests: HeadRequests,
    held: HeldHead,
}

impl HeadKeeper {
    pub(super) fn new(shared: Arc<Shared>, requests: HeadRequests, held: HeldHead) -> Self {
        Self { shared, requests, held }
    }

    /// Runs until the lease is released or the volume stops.
    pub(super) async fn run(mut self) {
        let renewal = self.held.renewal();
        loop {
            let request = tokio::select! {
                biased;
                request = self.requests.requests.recv() => request,
                () = tokio::time::sleep_until(self.held.updated_at() + renewal) => {
                    if !self.update().await { return }
                    continue;
                }
            };
            let head = self.held.head_mut();
            let (done, last) = match request {
                None => return,
                Some(Request::Publish { checkpoint, root, root_table, done }) => {
                    assert!(checkpoint.slot >= head.checkpoint.slot, "a checkpoint never goes back");
                    head.checkpoint = checkpoint;
                    head.root = root;
                    head.root_table = root_table;
                    (done, false)
                }
                Some(Request::Release { unswept, done }) => {
                    head.lease = if unswept { Lease::Unswept } else { Lease::Released };
                    (done, true)
                }
            };
            if !last {
                // A rest never outlasts the lease.
                let rested = self.held.updated_at() + self.shared.options.head_interval.min(renewal);
                tokio::select! {
                    biased;
                    () = self.requests.hurry.cancelled() => {}
                    () = tokio::time::sleep_until(rested) => {}
                }
            }
            if !self.update().await {
                return;
            }
            if done.send(()).is_err() {
                tracing::debug!("nobody waits for the update of the head any more");
            }
            if last {
                return;
            }
        }
    }

    /// Writes the head under the next version; `false` once the volume has stopped.
    async fn update(&mut self) -> bool {
        // Whoever serves no more keeps nobody waiting.
        if self.shared.check_serving().is_err() {
            return false;
        }
        match self.held.update(self.shared.env.store.journal.as_ref()).await {
            Ok(()) => {
                *self.shared.lease_ends_at.lock() = self.held.ends_at();
                true
            }
            Err(unheld @ Unheld::TakenOver(_)) => {
                self.shared.fence(unheld.why());
                false
            }
            Err(unheld @ Unheld::Over) => {
                self.shared.stop(unheld.why());
                false
            }
        }
    }
}
