//! The head keeper: the only task that updates `head` while a volume is open. It renews the lease, publishes
//! checkpoints, records names and releases the lease, one update at a time. It does not know how a checkpoint
//! is made.
//!
//! Invariant: if another opening has changed the head, the volume stops.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
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
    /// It waits until the pace allows it.
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

    /// Makes updates stop waiting for their turn, because the volume is being closed and a caller waits for
    /// it.
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

/// Number of updates of the head that may follow each other at once after a time without any.
const AT_ONCE: u32 = 4;

/// The pace of updates: a few at once, and on average one in each interval. Some stores refuse to replace an
/// object more often.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    /// When [`AT_ONCE`] updates are allowed at once again.
    rested_at: Instant,
}

impl Pace {
    /// Begins at the pace of a volume whose head was just updated.
    fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, rested_at: now + interval }
    }

    /// Records an update.
    fn spend(&mut self, now: Instant) {
        self.rested_at = self.rested_at.max(now) + self.interval;
    }

    /// Returns how long the next update has to wait.
    fn wait(&self, now: Instant) -> Duration {
        let spare = self.interval * (AT_ONCE - 1);
        self.rested_at.saturating_duration_since(now).saturating_sub(spare)
    }
}

/// The task that updates the head.
#[derive(Debug)]
pub(super) struct HeadKeeper {
    shared: Arc<Shared>,
    requests: HeadRequests,
    held: HeldHead,
    pace: Pace,
}

impl HeadKeeper {
    pub(super) fn new(shared: Arc<Shared>, requests: HeadRequests, held: HeldHead) -> Self {
        // No wait outlasts the lease.
        let interval = shared.options.head_interval.min(held.renewal());
        let pace = Pace::new(interval, held.updated_at());
        Self { shared, requests, held, pace }
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
                let wait = self.pace.wait(Instant::now());
                tokio::select! {
                    biased;
                    () = self.requests.hurry.cancelled() => {}
                    () = tokio::time::sleep(wait) => {}
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
                self.pace.spend(self.held.updated_at());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_updates_go_at_once_and_then_one_in_each_interval() {
        let (second, begun) = (Duration::from_secs(1), Instant::now());
        let mut pace = Pace::new(second, begun);
        let mut now = begun;
        let mut waits = Vec::new();
        for _ in 0..6 {
            waits.push(pace.wait(now));
            now += pace.wait(now);
            pace.spend(now);
        }
        // The opening was the first of the four.
        assert_eq!(waits, [0, 0, 0, 1, 1, 1].map(|seconds| second * seconds));
        now += second * 2;
        assert_eq!(pace.wait(now), Duration::ZERO, "two intervals allow two updates");
        pace.spend(now);
        pace.spend(now);
        assert_eq!(pace.wait(now), second);
        now += second * 3600;
        for _ in 0..AT_ONCE {
            assert_eq!(pace.wait(now), Duration::ZERO);
            pace.spend(now);
        }
        assert_eq!(pace.wait(now), second, "a long rest allows no more than that");
    }
}
