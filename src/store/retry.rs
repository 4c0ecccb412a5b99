//! Retries: a decorator that repeats failed requests with exponential backoff and full jitter.
//!
//! Owns when to repeat a request and when to give up, and must not know what a request is for: it sends the
//! same bytes again. It is deterministic: it depends only on the clock of `tokio::time` and on its seed.
//! Invariants: a definite answer is returned at once. A 412 that follows a lost answer therefore reaches the
//! caller, who alone can tell whether it is the caller's own success. An error says that the effect is
//! unknown if any attempt left it unknown.
//!
//! At start-up, a refusal (credentials, permissions, bucket, host name of the service) is an error after a
//! few attempts, because an operator is watching. Once disks are in use, it is treated as an outage: see
//! [`Retry::wait_out_refusals`]. From then on background work has no deadline. A checkpoint sends many reads
//! at once, which wait for each other. With a deadline, the last of them would fail behind a slow store, and
//! would fail again in each further attempt.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use crate::metrics::{StoreClass, StoreMetrics};
use crate::mutant::{self, Mutant};

use super::{ByteRange, Condition, ETag, Error, ListFrom, Listing, Object, Operation, Pages, Store, key};

/// When to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Time limit for all attempts together, including the time until the request is admitted. `None` means
    /// no limit.
    pub deadline: Option<Duration>,
    /// How often to retry a refusal ([`Error::is_refusal`]). `None` retries until the deadline, because an
    /// operator can fix credentials, permissions and buckets. Ignored once refusals are treated as outages.
    pub refusals: Option<u32>,
}

/// How to retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOptions {
    /// Upper bound of the pause before the first retry. It doubles with each further retry. The actual pause
    /// is random, between 0 and the bound.
    pub base: Duration,
    /// Limit of the upper bound.
    pub cap: Duration,
    /// When to give up on GET and LIST.
    pub read: Patience,
    /// When to give up on PUT and DELETE.
    pub write: Patience,
    /// Minimum time between two log lines about failures, over all requests.
    pub log_interval: Duration,
}

impl Default for RetryOptions {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(100),
            cap: Duration::from_secs(5),
            read: Patience { deadline: Some(Duration::from_secs(60)), refusals: Some(3) },
            write: Patience { deadline: None, refusals: Some(3) },
            log_interval: Duration::from_secs(10),
        }
    }
}

/// A decorator that repeats failed requests.
pub struct Retry {
    inner: Arc<dyn Store>,
    options: RetryOptions,
    metrics: StoreMetrics,
    random: Mutex<SmallRng>,
    log: Mutex<Log>,
    /// Whether disks are in use, so that refusals are treated as outages.
    in_use: AtomicBool,
    is_background: bool,
}

/// When failures were last logged, and how many were not.
#[derive(Debug, Default)]
struct Log {
    last: Option<Instant>,
    unsaid: u64,
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner, options, .. } = self;
        f.debug_struct("Retry").field("inner", inner).field("options", options).finish_non_exhaustive()
    }
}

impl Retry {
    /// Creates a decorator that retries requests to `inner`. The pauses depend on `seed`.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, options: RetryOptions, metrics: StoreMetrics, seed: u64) -> Self {
        let random = Mutex::new(SmallRng::seed_from_u64(seed));
        let (in_use, is_background) = (AtomicBool::new(false), false);
        Self { inner, options, metrics, random, log: Mutex::default(), in_use, is_background }
    }

    /// Sets the class of the requests. Those of [`StoreClass::Bulk`] have no deadline once disks are in use.
    #[must_use]
    pub fn of_class(self, class: StoreClass) -> Self {
        Self { is_background: class == StoreClass::Bulk, ..self }
    }

    /// Treats refusals as outages from now on: they are retried until the deadline, because disks are in use
    /// and an operator can fix the credentials or permissions.
    pub fn wait_out_refusals(&self) {
        self.in_use.store(true, Ordering::Relaxed);
    }

    fn gives_up(&self, patience: Patience, refusals: u32) -> bool {
        (!self.in_use.load(Ordering::Relaxed) || mutant::is(Mutant::RefusalIsFinal))
            && patience.refusals.is_some_and(|bound| refusals > bound)
    }

    fn deadline(&self, patience: Patience, begun: Instant) -> Option<Instant> {
        if self.is_background && self.in_use.load(Ordering::Relaxed) {
            return None;
        }
        patience.deadline.and_then(|deadline| begun.checked_add(deadline))
    }

    fn pause(&self, failures: u32) -> Duration {
        let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let longest = self.options.base.saturating_mul(doubled).min(self.options.cap);
        self.random.lock().random_range(Duration::ZERO..=longest)
    }

    fn say(&self, operation: Operation, error: &Error, attempt: u32) {
        let mut log = self.log.lock();
        let now = Instant::now();
        if log.last.is_some_and(|last| now.saturating_duration_since(last) < self.options.log_interval) {
            log.unsaid += 1;
            return;
        }
        tracing::warn!(
            ?operation, attempt, unsaid = log.unsaid, %error,
            "a store request failed, trying again"
        );
        *log = Log { last: Some(now), unsaid: 0 };
    }

    async fn retry<T, F>(
        &self,
        operation: Operation,
        patience: Patience,
        key: &str,
        mut request: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let begun = Instant::now();
        let deadline = self.deadline(patience, begun);
        let mut attempts = Attempts::default();
        loop {
            let error = match until(deadline, request()).await {
                Some(Ok(answer)) => {
                    if attempts.failures > 0 {
                        tracing::debug!(
                            ?operation,
                            key,
                            failures = attempts.failures,
                            "a store request succeeded after retries"
                        );
                    }
                    return Ok(answer);
                }
                Some(Err(error)) if error.is_definite() => return Err(error),
                Some(Err(error)) => error,
                None => {
                    let waited = begun.elapsed().as_millis();
                    let after_ms = u64::try_from(waited).unwrap_or(u64::MAX);
                    return Err(attempts.cut_off(operation, Error::Timeout { key: key.to_owned(), after_ms }));
                }
            };
            if error.is_refusal() {
                attempts.refusals = attempts.refusals.saturating_add(1);
                if self.gives_up(patience, attempts.refusals) {
                    return Err(attempts.give_up(error));
                }
            }
            attempts.failures = attempts.failures.saturating_add(1);
            self.say(operation, &error, attempts.failures);
            let pause = self.pause(attempts.failures);
            if until(deadline, tokio::time::sleep(pause)).await.is_none() {
                return Err(attempts.give_up(error));
            }
            attempts.note(operation, error);
            self.metrics.retried(operation);
        }
    }
}

impl Retry {
    /// Reads a range. If the body ends early, asks the listing for the size of the object, which shows
    /// whether the object is too short or the body was cut in transit.
    async fn get_or_learn_size(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        let answer = self.inner.get(key, range).await;
        let (Err(Error::Truncated { .. }), ByteRange::Bounded { offset, length }) = (&answer, range) else {
            return answer;
        };
        let wanted = offset.saturating_add(length);
        let mut pages = Pages::new(&*self.inner, key);
        while let Some(entries) = pages.next().await? {
            if let Some(entry) = entries.iter().find(|entry| entry.key == key) {
                let size_bytes = entry.size_bytes;
                let is_short = size_bytes < wanted;
                return if is_short {
                    Err(Error::CutShort { key: key.to_owned(), wanted, size_bytes })
                } else {
                    answer
                };
            }
        }
        answer
    }
}

/// The failed attempts of one request.
#[derive(Debug, Default)]
struct Attempts {
    failures: u32,
    refusals: u32,
    /// The last error that leaves the effect unknown.
    unknown: Option<Error>,
    /// The last error.
    last: Option<Error>,
}

impl Attempts {
    fn note(&mut self, operation: Operation, error: Error) {
        if error.effect_unknown() && matches!(operation, Operation::Put | Operation::Delete) {
            self.unknown = Some(error.clone());
        }
        self.last = Some(error);
    }

    /// Chooses the error of a request whose last attempt was dropped without an answer. The error before it
    /// says more about the cause. For a write, it must also leave the effect unknown.
    fn cut_off(self, operation: Operation, timeout: Error) -> Error {
        let reads = matches!(operation, Operation::Get | Operation::List);
        self.last.filter(|last| reads || last.effect_unknown()).unwrap_or(timeout)
    }

    fn give_up(self, last: Error) -> Error {
        if last.effect_unknown() { last } else { self.unknown.unwrap_or(last) }
    }
}

/// Waits for a future until the deadline. `None` if the deadline comes first. The deadline is looked at
/// first: when the time of many waiting requests is over at once, none of them is sent in vain.
async fn until<F: Future>(deadline: Option<Instant>, future: F) -> Option<F::Output> {
    let Some(deadline) = deadline else { return Some(future.await) };
    tokio::select! {
        biased;
        () = tokio::time::sleep_until(deadline) => None,
        output = future => Some(output),
    }
}

#[async_trait]
impl Store for Retry {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        key::check(key)?;
        self.retry(Operation::Get, self.options.read, key, || self.get_or_learn_size(key, range)).await
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        key::check(key)?;
        let request = || async {
            match self.inner.put(key, body.clone(), condition.clone()).await {
                Err(Error::Timeout { .. }) if mutant::is(Mutant::TimeoutIsSuccess) => Ok(ETag(key.into())),
                outcome => outcome,
            }
        };
        self.retry(Operation::Put, self.options.write, key, request).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        keys.iter().try_for_each(|key| key::check(key))?;
        let first = keys.first().map_or("", String::as_str);
        self.retry(Operation::Delete, self.options.write, first, || self.inner.delete(keys)).await
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        key::check_prefix(prefix)?;
        self.retry(Operation::List, self.options.read, prefix, || self.inner.list(prefix, from)).await
    }
}
