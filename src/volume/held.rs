//! The head as its holder last wrote it, and the lease in it: how the head is replaced and the lease renewed.
//!
//! Must not know about open volumes: the head is held from the moment the epoch is taken. Invariants: every
//! update has a version of its own. An update whose answer is missing is sent again, with the same bytes,
//! until its fate is known. A head that is missing is never created again.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::error::OpenError;
use super::format::head::{Head, Lease};
use super::format::keys::Keys;
use super::options::Options;
use super::store_exact::{Contradictions, agreed, get_referenced};
use crate::metrics::VolumeMetrics;
use crate::metrics::labels::ObjectKind;
use crate::mutant::{self, Mutant};
use crate::store::{self, ByteRange, Condition, ETag, Store};

/// The outcome of an update of the head.
pub(super) enum Updated {
    /// The head has our bytes. Contains its new ETag.
    Done(ETag),
    /// The head has other bytes or is gone. Describes, for people, whose it is.
    Lost(String),
}

/// Replaces the head that has `etag` with `head`. Repeats the request until its fate is known.
pub(super) async fn update_head(
    store: &dyn Store,
    key: &str,
    etag: &ETag,
    head: &Head,
) -> Result<Updated, store::Error> {
    let bytes = Bytes::from(head.encode());
    let mut contradictions = Contradictions::default();
    loop {
        let condition = if mutant::is(Mutant::HeadUnconditional) {
            Condition::Always
        } else {
            Condition::IfMatch(etag.clone())
        };
        match store.put(key, bytes.clone(), condition).await {
            Ok(etag) => return Ok(Updated::Done(etag)),
            Err(store::Error::PreconditionFailed { .. } | store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        match get_referenced(store, key, ByteRange::Full).await {
            Ok(found) if found.body == bytes => return Ok(Updated::Done(found.etag)),
            // The head is still the one to be replaced, so the refusal was outdated or wrong.
            Ok(found) if found.etag == *etag => contradictions.pause(key).await?,
            Ok(found) => {
                // Bytes that were damaged in transit must not be mistaken for another holder's.
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

/// The head as its holder last wrote it, and when the lease in it expires.
#[derive(Debug)]
pub(super) struct HeldHead {
    head: Head,
    etag: ETag,
    ttl: Duration,
    is_strict: bool,
    metrics: VolumeMetrics,
    /// When the last update was answered.
    updated_at: Instant,
    /// When the lease expires, counted from before the renewal was sent: others may have seen the
    /// new head at once.
    ends_at: Instant,
}

/// Why the head no longer belongs to its holder.
pub(super) enum Unheld {
    /// Another gateway replaced the head. Describes, for people, who that is.
    TakenOver(String),
    /// The lease of a strict holder expired before it was renewed.
    Over,
}

impl Unheld {
    pub(super) fn why(&self) -> String {
        match self {
            Self::TakenOver(to) => format!("the volume was taken over by {to}"),
            Self::Over => "the lease is over and could not be renewed (lease.strict)".to_owned(),
        }
    }
}

impl HeldHead {
    /// Takes charge of the head that a request sent at `sent_at` has written.
    pub(super) fn new(
        head: Head,
        etag: ETag,
        sent_at: Instant,
        options: &Options,
        metrics: VolumeMetrics,
    ) -> Self {
        let (ttl, is_strict) = (options.lease_ttl, options.lease_strict);
        let held =
            Self { head, etag, ttl, is_strict, metrics, updated_at: Instant::now(), ends_at: sent_at + ttl };
        held.show();
        held
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    /// The contents that the next update will write.
    pub(super) fn head_mut(&mut self) -> &mut Head {
        &mut self.head
    }

    /// When the last update was answered.
    pub(super) fn updated_at(&self) -> Instant {
        self.updated_at
    }

    /// When the lease expires.
    pub(super) fn ends_at(&self) -> Instant {
        self.ends_at
    }

    /// How long after an update the lease is to be renewed.
    pub(super) fn renewal(&self) -> Duration {
        self.ttl / 3
    }

    fn show(&self) {
        let is_held = matches!(self.head.lease, Lease::Held { .. });
        self.metrics.lease_ends.set(is_held.then_some(self.ends_at));
        self.metrics.lease_ttl.set(if is_held { self.ttl.as_secs_f64() } else { 0.0 });
    }

    /// Runs `work` and renews the lease meanwhile.
    ///
    /// If another gateway has taken the lease, the renewal stops but the work continues. Only the journal
    /// decides whether the work was in vain. If two openers gave up whenever they saw each other, neither
    /// would ever succeed.
    ///
    /// # Errors
    /// Returns an error if the holder is strict and its lease expires.
    pub(super) async fn renewed_during<T>(
        &mut self,
        store: &dyn Store,
        work: impl Future<Output = T>,
    ) -> Result<T, OpenError> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = tokio::time::sleep_until(self.updated_at + self.renewal()) => {}
            }
            let (update, mut done) = (self.update(store), None);
            tokio::pin!(update);
            // An update that was sent is completed even if the work ends first, because its
            // fate must be known.
            let updated = loop {
                tokio::select! {
                    biased;
                    updated = &mut update => break updated,
                    output = &mut work, if done.is_none() => done = Some(output),
                }
            };
            match (updated, done) {
                (Err(Unheld::Over), _) => return Err(OpenError::LeaseOver),
                (_, Some(done)) => return Ok(done),
                (Ok(()), None) => {}
                (Err(unheld @ Unheld::TakenOver(_)), None) => {
                    tracing::warn!("while the volume is being opened, {}", unheld.why());
                    return Ok(work.await);
                }
            }
        }
    }

    /// Writes the head under the next version. For a strict holder, fails when the lease expires.
    pub(super) async fn update(&mut self, store: &dyn Store) -> Result<(), Unheld> {
        let ends_at = self.ends_at;
        if !self.is_strict || mutant::is(Mutant::LeaseOutlived) {
            return self.update_at_last(store).await;
        }
        tokio::time::timeout_at(ends_at, self.update_at_last(store)).await.unwrap_or(Err(Unheld::Over))
    }

    /// As [`HeldHead::update`], without a time limit.
    async fn update_at_last(&mut self, store: &dyn Store) -> Result<(), Unheld> {
        self.head.version += 1;
        let begun = Instant::now();
        let key = Keys::new(self.head.volume).head();
        loop {
            match update_head(store, &key, &self.etag, &self.head).await {
                Ok(Updated::Done(etag)) => {
                    self.etag = etag;
                    self.updated_at = Instant::now();
                    self.ends_at = begun + self.ttl;
                    self.show();
                    self.metrics.put_bytes.of(ObjectKind::Head).inc_by(self.head.encode().len() as u64);
                    return Ok(());
                }
                Ok(Updated::Lost(to)) => return Err(Unheld::TakenOver(to)),
                Err(error) => {
                    tracing::error!(%key, "head not updated yet, sending it again: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}
