//! The owner of `head`: renews the lease, publishes checkpoints, releases; one update at a time.
//!
//! Invariants: every update has a version of its own; an update whose answer is missing is sent again, the same bytes,
//! until its fate is known; a head that another opening changed stops the volume; a missing head is never re-created.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::head::{Checkpoint, Head, Lease};
use super::keys::ObjectId;
use super::shared::Shared;
use super::store_exact::{agreed, get_referenced};
use crate::metrics::labels::ObjectKind;
use crate::mutant::{self, Mutant};
use crate::store::{self, ByteRange, Condition, ETag, Store};

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

    /// Lets no update wait for the one before to be old enough: the volume is being closed, and somebody waits for it.
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
    head: Head,
    etag: ETag,
    updated_at: Instant,
    /// When the lease is over, counted from before its renewal was sent.
    ends_at: Instant,
}

/// How an update ended.
pub(super) enum Updated {
    /// Our bytes stand.
    Done(ETag),
    /// Another's do.
    Lost(String),
}

/// Replaces the head that has `etag` by `head`, until the fate of that is known.
pub(super) async fn update_head(
    store: &dyn Store,
    key: &str,
    etag: &ETag,
    head: &Head,
) -> Result<Updated, store::Error> {
    let bytes = Bytes::from(head.encode());
    loop {
        let condition = match mutant::is(Mutant::HeadUnconditional) {
            false => Condition::IfMatch(etag.clone()),
            true => Condition::Always,
        };
        match store.put(key, bytes.clone(), condition).await {
            Ok(etag) => return Ok(Updated::Done(etag)),
            Err(store::Error::PreconditionFailed { .. } | store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        match get_referenced(store, key, ByteRange::Full).await {
            Ok(found) if found.body == bytes => return Ok(Updated::Done(found.etag)),
            // Neither ours nor another's: the refusal was for a version that stands no more, or was none.
            Ok(found) if found.etag == *etag => tokio::task::yield_now().await,
            Ok(found) => {
                // Bytes that were damaged on the way must not pass for another's.
                let found = agreed(store, key, found).await?;
                if found.body == bytes {
                    return Ok(Updated::Done(found.etag));
                }
                return Ok(Updated::Lost(match Head::decode(head.volume, &found.body) {
                    Ok(other) => format!("epoch {} of {}", other.epoch, other.holder_name),
                    Err(error) => format!("a head that cannot be read ({error})"),
                }));
            }
            Err(store::Error::NotFound { .. }) => {
                return Ok(Updated::Lost("nobody: the head is gone".to_owned()));
            }
            Err(error) => return Err(error),
        }
    }
}

impl HeadKeeper {
    pub(super) fn new(shared: Arc<Shared>, requests: HeadRequests, head: Head, etag: ETag) -> Self {
        let updated_at = Instant::now();
        let ends_at = updated_at + shared.options.lease_ttl;
        Self { shared, requests, head, etag, updated_at, ends_at }
    }

    /// Runs until the lease is released or the volume stops.
    pub(super) async fn run(mut self) {
        let renewal = self.shared.options.lease_ttl / 3;
        loop {
            let request = tokio::select! {
                biased;
                request = self.requests.requests.recv() => request,
                () = tokio::time::sleep_until(self.updated_at + renewal) => {
                    if !self.update().await { return }
                    continue;
                }
            };
            let (done, last) = match request {
                None => return,
                Some(Request::Publish { checkpoint, root, root_table, done }) => {
                    assert!(checkpoint.slot >= self.head.checkpoint.slot, "a checkpoint never goes back");
                    self.head.checkpoint = checkpoint;
                    self.head.root = root;
                    self.head.root_table = root_table;
                    (done, false)
                }
                Some(Request::Release { unswept, done }) => {
                    self.head.lease = if unswept { Lease::Unswept } else { Lease::Released };
                    (done, true)
                }
            };
            if !last {
                let rested = self.updated_at + self.shared.options.head_interval;
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
        if !self.shared.options.lease_strict {
            return self.update_at_last().await;
        }
        let ends_at = self.ends_at;
        match tokio::time::timeout_at(ends_at, self.update_at_last()).await {
            Ok(updated) => updated,
            Err(_) => {
                self.shared.stop("the lease is over and could not be renewed (lease.strict)".to_owned());
                false
            }
        }
    }

    /// The same, however long it takes.
    async fn update_at_last(&mut self) -> bool {
        self.head.version += 1;
        let begun = Instant::now();
        let key = self.shared.keys.head();
        loop {
            match update_head(self.shared.env.store.journal.as_ref(), &key, &self.etag, &self.head).await {
                Ok(Updated::Done(etag)) => {
                    self.etag = etag;
                    self.updated_at = Instant::now();
                    // Counted from before the renewal was sent: the others may have seen it at once.
                    let ends = matches!(self.head.lease, Lease::Held { .. })
                        .then_some(begun + self.shared.options.lease_ttl);
                    self.shared.metrics.lease_ends.set(ends);
                    self.ends_at = begun + self.shared.options.lease_ttl;
                    self.shared
                        .metrics
                        .put_bytes
                        .of(ObjectKind::Head)
                        .inc_by(self.head.encode().len() as u64);
                    return true;
                }
                Ok(Updated::Lost(to)) => {
                    self.shared.stop(format!("the volume was taken over by {to}"));
                    return false;
                }
                Err(error) => {
                    tracing::error!(%key, "head not updated yet, sending it again: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}
