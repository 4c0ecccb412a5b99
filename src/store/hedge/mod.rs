//! Hedged requests: a decorator that sends a request a second time if the first one takes unusually long, and
//! uses whichever answer comes first.
//!
//! Owns when a second request is sent, and which answer is used. It hedges GETs, and PUTs that create an
//! object only if it is absent; all other requests pass through. It belongs below [`Retry`](super::Retry), so
//! that a pause is never hedged, and above [`Limit`], so that each request holds a permit of its own and is
//! counted. It is deterministic: it depends only on the clock of `tokio::time` and on the answers.
//! Invariants: both requests are the same, byte for byte. An answer that says less than the other one could
//! (a failure, or that an object does not exist) is used only when both have come.
//!
//! The request whose answer is not used is dropped. A dropped PUT may take effect later, like one that timed
//! out and was repeated. Its key is bound to its bytes, so that it can only create the object that the other
//! one created.
//!
//! PUTs that create an object are hedged only in a class whose callers accept an object with their own bytes
//! as their success. A second PUT that finds the object in place is such an answer: the caller reads the
//! object, which is sooner than a slow answer.

mod budget;
mod latency;

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{Either, select};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::budget::Budget;
use self::latency::{Latencies, Size};
use super::{ByteRange, Condition, ETag, Error, Limit, ListFrom, Listing, Object, Operation, Store};
use crate::metrics::{HedgeResult, StoreClass, StoreMetrics};
use crate::mutant::{self, Mutant};

/// How long nothing is hedged after the store asked for fewer requests.
const AFTER_THROTTLING: Duration = Duration::from_secs(10);
/// How long nothing is hedged after another failure.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Limit on the length in bytes of a PUT whose object is read instead of sending it again. The answer is held
/// in memory.
const LOOK_BYTES: usize = 1 << 20;

/// When to hedge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgeOptions {
    /// Limit on the second requests, in percent of the first ones: 0 to 100. 0 disables hedging.
    pub percent: u32,
    /// Shortest time after which a request counts as slow. A store that always answers sooner is never
    /// hedged.
    pub floor: Duration,
    /// How many latencies must be known before a request can count as slow. At most 512.
    pub least_known: usize,
}

impl Default for HedgeOptions {
    fn default() -> Self {
        Self { percent: 5, floor: Duration::from_millis(5), least_known: 100 }
    }
}

/// Hedging of one store: the decorators of its classes, which share what they know of its health.
#[derive(Clone, Debug)]
pub struct Hedging {
    options: HedgeOptions,
    metrics: StoreMetrics,
    health: Arc<Health>,
}

/// Until when nothing is hedged, because requests failed.
#[derive(Debug, Default)]
struct Health(Mutex<Option<Instant>>);

impl Health {
    fn failed(&self, error: &Error) {
        let pause = if matches!(error, Error::Throttled { .. }) { AFTER_THROTTLING } else { AFTER_FAILURE };
        let mut until = self.0.lock();
        *until = (*until).max(Some(Instant::now() + pause));
    }

    fn is_good(&self) -> bool {
        self.0.lock().is_none_or(|until| until <= Instant::now())
    }
}

impl Hedging {
    /// Creates the hedging of one store.
    #[must_use]
    pub fn new(options: HedgeOptions, metrics: StoreMetrics) -> Self {
        Self { options, metrics, health: Arc::default() }
    }

    /// Hedges a class of requests: GETs of [`StoreClass::Reads`], and the creation of records in
    /// [`StoreClass::Journal`]. Nobody waits for a single request of the others.
    #[must_use]
    pub fn above(&self, class: StoreClass, limited: Arc<Limit>) -> Arc<dyn Store> {
        let hedged = match class {
            StoreClass::Reads => Operation::Get,
            StoreClass::Journal => Operation::Put,
            StoreClass::Uploads | StoreClass::Ahead | StoreClass::Bulk => return limited,
        };
        if self.options.percent == 0 {
            return limited;
        }
        let known = Known { latencies: Latencies::default(), budget: Budget::new(self.options.percent) };
        Arc::new(Hedge {
            inner: limited,
            hedged,
            hedging: self.clone(),
            known: Mutex::new(known),
            looks: AtomicBool::new(false),
        })
    }
}

/// What a decorator knows of its recent requests.
#[derive(Debug)]
struct Known {
    latencies: Latencies,
    budget: Budget,
}

/// The decorator of one class, which hedges one operation.
struct Hedge {
    inner: Arc<Limit>,
    hedged: Operation,
    hedging: Hedging,
    known: Mutex<Known>,
    /// Whether the last slow PUT had taken effect when its answer was late. Then the next one is looked for
    /// before it is sent again.
    looks: AtomicBool,
}

impl fmt::Debug for Hedge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner, hedged, .. } = self;
        f.debug_struct("Hedge").field("inner", inner).field("hedged", hedged).finish_non_exhaustive()
    }
}

/// A second request that was sent. It is counted when it is dropped.
struct Sent<'a> {
    hedge: &'a Hedge,
    result: HedgeResult,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.hedge.hedging.metrics.hedged(self.hedge.hedged, self.result);
    }
}

impl Hedge {
    /// Sends `first`, and `second` too if the first one is slow.
    async fn race<T>(
        &self,
        size: Size,
        first: impl Future<Output = Result<T, Error>> + Send,
        second: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, Error> {
        let begun = Instant::now();
        let slow_after = self.begin(size);
        let mut first = pin!(first);
        let early = match slow_after {
            None => Some(first.as_mut().await),
            Some(slow_after) => tokio::time::timeout(slow_after, first.as_mut()).await.ok(),
        };
        let answer = match early {
            Some(answer) => answer,
            None if self.may_send() => self.both(first, pin!(second)).await,
            None => {
                self.hedging.metrics.hedged(self.hedged, HedgeResult::Denied);
                first.await
            }
        };
        match &answer {
            Err(error) if !error.is_definite() => self.hedging.health.failed(error),
            _ => self.known.lock().latencies.record(size, begun.elapsed()),
        }
        answer
    }

    /// Counts a first request. Returns after which time it counts as slow, if that is known.
    fn begin(&self, size: Size) -> Option<Duration> {
        let options = &self.hedging.options;
        let known = &mut *self.known.lock();
        known.budget.earn();
        let permille = known.budget.slow_permille();
        let slow_after = known.latencies.slow_after(size, permille, options.least_known)?;
        Some(slow_after.max(options.floor))
    }

    /// Decides whether a second request may be sent now. If so, it is paid for.
    fn may_send(&self) -> bool {
        // While the class is at its limit, the first request may not have been sent yet.
        self.hedging.health.is_good() && self.inner.has_room() && self.known.lock().budget.spend()
    }

    /// Waits for the first answer of two requests that the other one cannot improve on.
    async fn both<T>(
        &self,
        first: Pin<&mut (impl Future<Output = Result<T, Error>> + Send)>,
        second: Pin<&mut (impl Future<Output = Result<T, Error>> + Send)>,
    ) -> Result<T, Error> {
        let mut sent = Sent { hedge: self, result: HedgeResult::Lost };
        // The first one is polled first.
        let (answer, is_second) = match select(first, second).await {
            Either::Left((Err(error), other)) if is_open(&error) => {
                self.noticed(&error);
                (of_both(error, other.await), true)
            }
            Either::Right((Err(error), other)) if is_open(&error) => {
                self.noticed(&error);
                (of_both(error, other.await), false)
            }
            Either::Left((answer, _)) => (answer, false),
            Either::Right((answer, _)) => (answer, true),
        };
        if is_second && !answer.as_ref().is_err_and(is_open) {
            sent.result = HedgeResult::Won;
        }
        answer
    }

    /// Notices that the store asks for fewer requests, even if the other request succeeds.
    fn noticed(&self, error: &Error) {
        if matches!(error, Error::Throttled { .. }) {
            self.hedging.health.failed(error);
        }
    }

    /// Creates an object whose first PUT is slow: sends it again, or looks whether it has taken effect.
    async fn put_again(&self, key: &str, body: Bytes) -> Result<ETag, Error> {
        if self.looks.load(Ordering::Relaxed) && body.len() <= LOOK_BYTES {
            match self.inner.get(key, ByteRange::Full).await {
                Ok(found) if found.body == body => return Ok(found.etag),
                Ok(_) | Err(Error::TooLarge { .. }) => {
                    return Err(Error::PreconditionFailed { key: key.to_owned() });
                }
                Err(Error::NotFound { .. }) => self.looks.store(false, Ordering::Relaxed),
                Err(error) => return Err(error),
            }
            if !self.known.lock().budget.spend() {
                return Err(Error::NotFound { key: key.to_owned() });
            }
        }
        let condition =
            if mutant::is(Mutant::HedgeUnconditional) { Condition::Always } else { Condition::IfAbsent };
        match self.inner.put(key, body, condition).await {
            Err(Error::PreconditionFailed { .. }) if mutant::is(Mutant::HedgeRefusedIsSuccess) => {
                Ok(ETag(key.into()))
            }
            Err(error @ Error::PreconditionFailed { .. }) => {
                self.looks.store(true, Ordering::Relaxed);
                Err(error)
            }
            answer => answer,
        }
    }
}

/// Returns whether another request may still improve on this answer: it is a failure, or says that an object
/// does not exist.
fn is_open(error: &Error) -> bool {
    !error.is_definite() || matches!(error, Error::NotFound { .. })
}

/// Returns the answer of two requests of which one ended with `error`: the other one, unless it says less.
fn of_both<T>(error: Error, other: Result<T, Error>) -> Result<T, Error> {
    match &other {
        // That an object does not exist is an answer only if both say so.
        Err(Error::NotFound { .. }) => Err(error),
        // An effect that is unknown stays unknown.
        Err(last) if is_open(last) && !last.effect_unknown() && error.effect_unknown() => Err(error),
        _ => other,
    }
}

#[async_trait]
impl Store for Hedge {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        if self.hedged != Operation::Get {
            return self.inner.get(key, range).await;
        }
        let get = || async { self.inner.get(key, range).await };
        self.race(Size::of_range(range), get(), get()).await
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        if self.hedged != Operation::Put || condition != Condition::IfAbsent {
            return self.inner.put(key, body, condition).await;
        }
        let size = Size::of_bytes(body.len().try_into().expect("a length fits in 64 bits"));
        let again = self.put_again(key, body.clone());
        self.race(size, self.inner.put(key, body, condition), again).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        self.inner.delete(keys).await
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        self.inner.list(prefix, from).await
    }
}
