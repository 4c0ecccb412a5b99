//! The load of `cairn bench store`: three measurements, one after the other, and the deletion.
//!
//! Owns which requests are sent, how many at a time, and how long each takes. It must not know the command
//! line or the output. A request takes its whole way through the gateway's client, including the limit of its
//! class and retries. Invariants: every key begins with the prefix. A PUT that was sent is waited for, so that
//! the deletion comes after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cli::error::Error;
use crate::gateway::chain;
use crate::metrics::StoreMetrics;
use crate::store::{
    ByteRange, Classes, Condition, Error as StoreError, MAXIMUM_DELETE_KEYS, Operation, Pages, Store,
};
use crate::task::Tasks;

/// Length in bytes of a ranged GET: a block of a volume.
pub(super) const RANGE_BYTES: u64 = 4096;
/// Limit on the requests of one measurement, and so on the memory for their times.
const MAX_REQUESTS: u64 = 1 << 20;
/// The content of two objects differs by an offset of this many bytes in the payload.
const SHIFT_BYTES: u64 = 64;

/// The bounds of each measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Size of an object in bytes.
    pub(super) size_bytes: u64,
    /// Number of requests at a time.
    pub(super) concurrency: usize,
    /// No request begins after this time.
    pub(super) time_limit: Duration,
    /// Maximum number of bytes to transfer.
    pub(super) bytes: u64,
}

impl Plan {
    /// Returns the length of a ranged GET in bytes.
    pub(super) fn range_bytes(&self) -> u64 {
        RANGE_BYTES.min(self.size_bytes)
    }
}

/// What a measurement repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A PUT of a new object.
    Put,
    /// A GET of a whole object, one object after the other.
    Get,
    /// A GET of [`Plan::range_bytes`] bytes at a random place.
    GetRange,
}

/// The result of one measurement.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) request: Request,
    /// Bytes of all bodies.
    pub(super) bytes: u64,
    /// From the first request to the last answer.
    pub(super) elapsed: Duration,
    /// Number of attempts that repeated a failed one.
    pub(super) retries: u64,
    /// How long each request took, in increasing order.
    pub(super) latencies: Vec<Duration>,
}

/// A store, and what is measured in it.
pub(super) struct Bench(Arc<Inner>);

struct Inner {
    store: Classes,
    metrics: StoreMetrics,
    prefix: String,
    plan: Plan,
    seed: u64,
    /// Random bytes, twice the size of an object.
    payload: Bytes,
    /// Number of objects whose PUT was begun: those with the numbers below it.
    begun: AtomicU64,
    /// No request begins once this is cancelled.
    stop: CancellationToken,
}

impl Bench {
    /// Prepares measurements in `store` below `prefix`, which ends in a slash.
    pub(super) fn new(store: Classes, metrics: StoreMetrics, prefix: String, plan: Plan, seed: u64) -> Self {
        let length = usize::try_from(plan.size_bytes * 2).expect("the plan fits in memory");
        let mut payload = vec![0; length];
        SmallRng::seed_from_u64(seed).fill_bytes(&mut payload);
        Self(Arc::new(Inner {
            store,
            metrics,
            prefix,
            plan,
            seed,
            payload: payload.into(),
            begun: AtomicU64::new(0),
            stop: CancellationToken::new(),
        }))
    }

    /// Lets no further request begin. Those in flight are waited for.
    pub(super) fn stop(&self) {
        self.0.stop.cancel();
    }

    /// Measures each kind of request in turn.
    ///
    /// # Errors
    /// If a request fails for good.
    pub(super) async fn measure(&self) -> Result<Vec<Done>, Error> {
        self.0.connect().await?;
        let Plan { size_bytes, bytes, .. } = self.0.plan;
        let mut results = Vec::new();
        for request in [Request::Put, Request::Get, Request::GetRange] {
            let each = if request == Request::GetRange { self.0.plan.range_bytes() } else { size_bytes };
            let done = self.0.repeat(request, (bytes / each).clamp(1, MAX_REQUESTS), each).await?;
            results.push(done);
        }
        Ok(results)
    }

    /// Deletes every object that was written.
    ///
    /// # Errors
    /// If an object may be left.
    pub(super) async fn clean(&self) -> Result<(), Error> {
        let cleaned = self.0.clean().await;
        cleaned.map_err(|error| self.left_behind(&chain(&error)))
    }

    /// Returns the error of a deletion that did not finish.
    pub(super) fn left_behind(&self, why: &str) -> Error {
        Error::LeftBehind { prefix: self.0.prefix.clone(), why: why.to_owned() }
    }
}

impl Inner {
    fn key(&self, number: u64) -> String {
        format!("{}{number}", self.prefix)
    }

    /// Sends one request on each connection that the measurements will use, so that they do not include
    /// handshakes. It asks for an object that does not exist.
    async fn connect(self: &Arc<Self>) -> Result<(), Error> {
        let tasks = Tasks::new();
        let absent = format!("{}absent", self.prefix);
        let ask = || {
            let (inner, absent) = (Arc::clone(self), absent.clone());
            tasks.spawn(async move { inner.store.reads.get(&absent, ByteRange::Full).await })
        };
        let asked: Vec<_> = (0..self.plan.concurrency).map(|_| ask()).collect();
        for answer in asked {
            match answer.await.expect("it neither panics nor is cancelled") {
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(source) => return Err(Error::Request { source }),
            }
        }
        Ok(())
    }

    /// Repeats a request of `each` bytes until a limit is reached.
    async fn repeat(self: &Arc<Self>, request: Request, limit: u64, each: u64) -> Result<Done, Error> {
        let tasks = Tasks::new();
        let next = Arc::new(AtomicU64::new(0));
        let operation = if request == Request::Put { Operation::Put } else { Operation::Get };
        let retries = self.metrics.retries(operation);
        let begun = Instant::now();
        let worker = |seed: u64| {
            let (inner, next) = (Arc::clone(self), Arc::clone(&next));
            let random = SmallRng::seed_from_u64(self.seed.wrapping_add(seed));
            tasks.spawn(async move { inner.work(request, &next, limit, random).await })
        };
        let workers: Vec<_> = (0..self.plan.concurrency as u64).map(worker).collect();
        let (mut latencies, mut failed) = (Vec::new(), None);
        for worker in workers {
            match worker.await.expect("it neither panics nor is cancelled") {
                Ok(mut of_worker) => latencies.append(&mut of_worker),
                Err(source) => failed = failed.or(Some(Error::Request { source })),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let elapsed = begun.elapsed();
        latencies.sort_unstable();
        let bytes = each * u64::try_from(latencies.len()).expect("a length fits in 64 bits");
        Ok(Done { request, bytes, elapsed, retries: self.metrics.retries(operation) - retries, latencies })
    }

    /// Sends one request after the other. Returns how long each took.
    async fn work(
        &self,
        request: Request,
        next: &AtomicU64,
        limit: u64,
        mut random: SmallRng,
    ) -> Result<Vec<Duration>, StoreError> {
        let ends = Instant::now() + self.plan.time_limit;
        let mut latencies = Vec::new();
        while !self.stop.is_cancelled() && Instant::now() < ends {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= limit {
                break;
            }
            let begun = Instant::now();
            if let Err(error) = self.send(request, number, &mut random).await {
                self.stop.cancel();
                return Err(error);
            }
            latencies.push(begun.elapsed());
        }
        Ok(latencies)
    }

    async fn send(&self, request: Request, number: u64, random: &mut SmallRng) -> Result<(), StoreError> {
        let Plan { size_bytes, .. } = self.plan;
        let (key, range) = match request {
            Request::Put => {
                self.begun.fetch_max(number + 1, Ordering::Relaxed);
                let key = self.key(number);
                return self.store.uploads.put(&key, self.body(number), Condition::Always).await.map(drop);
            }
            Request::Get => (self.key(number % self.written()), ByteRange::Full),
            Request::GetRange => {
                let length = self.plan.range_bytes();
                let offset = random.random_range(0..size_bytes / length) * length;
                let key = self.key(random.random_range(0..self.written()));
                (key, ByteRange::Bounded { offset, length })
            }
        };
        self.store.reads.get(&key, range).await.map(drop)
    }

    /// Returns the number of objects. At least one PUT was begun before the first GET.
    fn written(&self) -> u64 {
        self.begun.load(Ordering::Relaxed).max(1)
    }

    fn body(&self, number: u64) -> Bytes {
        let size = self.plan.size_bytes;
        let at = number.wrapping_mul(SHIFT_BYTES) % size;
        let index = |n: u64| usize::try_from(n).expect("the payload is in memory");
        self.payload.slice(index(at)..index(at + size))
    }

    async fn clean(&self) -> Result<(), StoreError> {
        let store = &self.store.bulk;
        let keys: Vec<String> = (0..self.begun.load(Ordering::Relaxed)).map(|n| self.key(n)).collect();
        if keys.is_empty() {
            return Ok(());
        }
        for keys in keys.chunks(MAXIMUM_DELETE_KEYS) {
            store.delete(keys).await?;
        }
        // An attempt whose answer was lost may have taken effect after a later attempt or the deletion.
        let mut pages = Pages::new(store, &self.prefix);
        while let Some(entries) = pages.next().await? {
            let left: Vec<String> = entries.into_iter().map(|entry| entry.key).collect();
            for keys in left.chunks(MAXIMUM_DELETE_KEYS) {
                store.delete(keys).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::store::fault::{Action, Failure, Rule};
    use crate::store::{Fault, MemoryStore};

    const PREFIX: &str = "probe/bench-0/";

    struct Fixture {
        memory: MemoryStore,
        fault: Fault,
        bench: Bench,
    }

    /// 32 objects of 1 KiB at most, 4 at a time, next to an object of another prefix.
    async fn fixture() -> Fixture {
        let memory = MemoryStore::new();
        memory.put("probe/passed", Bytes::from_static(b"x"), Condition::Always).await.unwrap();
        let fault = Fault::new(Arc::new(memory.clone()), 1);
        let plan =
            Plan { size_bytes: 1024, concurrency: 4, time_limit: Duration::from_secs(60), bytes: 32 << 10 };
        let store = Classes::one(Arc::new(fault.clone()));
        let bench = Bench::new(store, Metrics::new().store(), PREFIX.to_owned(), plan, 7);
        Fixture { memory, fault, bench }
    }

    fn keys(memory: &MemoryStore) -> Vec<String> {
        memory.objects().into_keys().collect()
    }

    #[tokio::test]
    async fn every_object_is_put_and_read_once_and_deleted() {
        let Fixture { memory, bench, .. } = fixture().await;
        let results = bench.measure().await.unwrap();
        let found: Vec<_> = results.iter().map(|d| (d.request, d.latencies.len(), d.bytes)).collect();
        let all = |request| (request, 32, 32 << 10);
        assert_eq!(found, [all(Request::Put), all(Request::Get), all(Request::GetRange)]);
        let objects = memory.objects();
        assert_eq!(objects.len(), 33);
        let distinct: std::collections::BTreeSet<_> = objects.values().collect();
        assert_eq!(distinct.len(), 17, "the content repeats after 1024 / 64 objects");
        for part in ["/absent", "passed"] {
            assert_eq!(memory.tally(Operation::Delete, |key| key.ends_with(part)).requests, 0);
        }
        assert_eq!(memory.tally(Operation::Get, |key| key.ends_with("/absent")).requests, 4, "connections");
        bench.clean().await.unwrap();
        assert_eq!(keys(&memory), ["probe/passed"]);
    }

    #[tokio::test]
    async fn what_a_failed_measurement_wrote_is_deleted() {
        let Fixture { memory, fault, bench } = fixture().await;
        fault.add(Rule::new(Action::FailAfter(Failure::Denied)).on(Operation::Put).skip(9));
        let error = bench.measure().await.unwrap_err().to_string();
        assert!(error.contains("injected"), "{error}");
        assert!(keys(&memory).len() > 10, "the failed PUTs took effect");
        bench.clean().await.unwrap();
        assert_eq!(keys(&memory), ["probe/passed"]);
    }

    #[tokio::test]
    async fn a_put_that_lands_after_the_deletion_began_is_found_and_deleted() {
        let Fixture { memory, fault, bench } = fixture().await;
        // The last PUT lands with the LIST, after the DELETE.
        fault.add(Rule::new(Action::Late(Failure::Timeout, 1)).on(Operation::Put).skip(31));
        bench.measure().await.unwrap_err();
        assert_eq!(keys(&memory).len(), 32);
        bench.clean().await.unwrap();
        assert_eq!(keys(&memory), ["probe/passed"]);
        assert_eq!(memory.tally(Operation::Put, |_| true).requests, 33);
    }

    #[tokio::test]
    async fn a_deletion_that_fails_names_the_prefix() {
        let Fixture { fault, bench, .. } = fixture().await;
        bench.measure().await.unwrap();
        fault.add(Rule::new(Action::FailBefore(Failure::Denied)).on(Operation::Delete));
        let error = bench.clean().await.unwrap_err().to_string();
        assert!(error.contains(PREFIX), "{error}");
    }

    #[tokio::test]
    async fn no_request_begins_after_a_stop_and_those_in_flight_are_waited_for() {
        let Fixture { memory, fault, bench } = fixture().await;
        let gate = fault.hold(Operation::Put, PREFIX);
        let mut measuring = std::pin::pin!(bench.measure());
        while gate.count() < 4 {
            assert!(futures::poll!(measuring.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        bench.stop();
        assert!(futures::poll!(measuring.as_mut()).is_pending(), "it waits for the PUTs");
        gate.release();
        let results = measuring.await.unwrap();
        assert_eq!(results.iter().map(|done| done.latencies.len()).collect::<Vec<_>>(), [4, 0, 0]);
        bench.clean().await.unwrap();
        assert_eq!(keys(&memory), ["probe/passed"]);
    }
}
