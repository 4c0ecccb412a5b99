//! The head keeper: the only task that updates `head` while a volume is open. It renews the lease, publishes
//! checkpoints, records names and releases the lease, one update at a time. It does not know how a checkpoint
//! is made.
//!
//! Invariant: if another opening has changed the head, the volume stops.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::format::head::{Checkpoint, Lease, Names};
use super::format::keys::ObjectId;
use super::held::{HeldHead, Unheld};
use super::shared::Shared;

/// A request to the head keeper.
#[derive(Debug)]
enum Request {
    Publish { checkpoint: Checkpoint, root: ObjectId, root_table: ObjectId, done: oneshot::Sender<()> },
    Name { names: Names, done: oneshot::Sender<()> },
    Release { unswept: bool, done: oneshot::Sender<()> },
}

/// What an update of the head means for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It waits for the minimum interval since the previous one.
    Waits,
    /// It is rare, and somebody waits for it.
    AtOnce,
    /// It is the last one.
    Last,
}

/// Sends requests to the head keeper.
#[derive(Clone, Debug)]
pub(super) struct HeadHandle {
    requests: mpsc::Sender<Request>,
    hurry: CancellationToken,
}

/// Limit on waiting requests. Only the folder, one renaming and one closing send any.
const REQUESTS: usize = 4;

impl HeadHandle {
    /// Creates a handle, and the receiving end for the head keeper.
    pub(super) fn new() -> (Self, HeadRequests) {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let hurry = CancellationToken::new();
        (Self { requests, hurry: hurry.clone() }, HeadRequests { requests: receiver, hurry })
    }

    /// Makes updates stop waiting for the minimum interval since the previous one, because the volume is
    /// being closed and a caller waits for it.
    pub(super) fn hurry(&self) {
        self.hurry.cancel();
    }

    /// Publishes a checkpoint in the head. Returns once the head is durable.
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

    /// Records the names of the volume in the head. Returns once the head is durable, which proves that the
    /// volume was still held after the call began.
    pub(super) async fn record_names(&self, shared: &Shared, names: Names) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        self.ask(shared, Request::Name { names, done }, answer).await
    }

    /// Releases the lease, after which the head keeper ends. `unswept` records in the head whether
    /// unreferenced objects may exist.
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

/// The receiving end of the head keeper's requests.
#[derive(Debug)]
pub(super) struct HeadRequests {
    requests: mpsc::Receiver<Request>,
    hurry: CancellationToken,
}

/// The task that updates the head.
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
            let (done, turn) = match request {
                None => return,
                Some(Request::Publish { checkpoint, root, root_table, done }) => {
                    assert!(checkpoint.slot >= head.checkpoint.slot, "a checkpoint never goes back");
                    head.checkpoint = checkpoint;
                    head.root = root;
                    head.root_table = root_table;
                    (done, Turn::Waits)
                }
                Some(Request::Name { names, done }) => {
                    head.names = Some(names);
                    (done, Turn::AtOnce)
                }
                Some(Request::Release { unswept, done }) => {
                    head.lease = if unswept { Lease::Unswept } else { Lease::Released };
                    (done, Turn::Last)
                }
            };
            if turn == Turn::Waits {
                // The wait never outlasts the lease.
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
            if turn == Turn::Last {
                return;
            }
        }
    }

    /// Writes the head with the next version. Returns `false` once the volume has stopped.
    async fn update(&mut self) -> bool {
        // A volume that no longer serves must not renew its lease, so that others need not wait for it.
        if self.shared.check_serving().is_err() {
            return false;
        }
        match self.held.update(self.shared.env.store.journal.as_ref()).await {
            Ok(()) => {
                self.shared.renewed_until(self.held.ends_at());
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
