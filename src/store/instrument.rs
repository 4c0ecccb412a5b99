//! Metrics of a store: a decorator that counts and times every attempt.
//!
//! Owns the measurement of an attempt, and must not change its answer. It belongs below
//! [`Retry`](super::Retry) and [`Limit`](super::Limit), so that it sees every single attempt and no waiting
//! time. Invariant: every request is counted once. A request that its caller drops counts as cancelled.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::metrics::{InFlight, StoreMetrics, StoreOutcome};

use super::{ByteRange, Condition, ETag, Error, ListFrom, Listing, Object, Operation, Store};

/// A decorator that counts and times requests.
#[derive(Debug)]
pub struct Instrument {
    inner: Arc<dyn Store>,
    metrics: StoreMetrics,
}

impl Instrument {
    /// Creates a decorator that counts the requests to `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, metrics: StoreMetrics) -> Self {
        Self { inner, metrics }
    }

    async fn measure<T>(
        &self,
        operation: Operation,
        request: impl Future<Output = Result<T, Error>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Result<T, Error> {
        let mut attempt = Attempt {
            metrics: &self.metrics,
            operation,
            begun: Instant::now(),
            outcome: StoreOutcome::Cancelled,
            bytes: 0,
            _in_flight: self.metrics.in_flight(operation),
        };
        let answer = request.await;
        match &answer {
            Ok(value) => {
                attempt.outcome = StoreOutcome::Ok;
                attempt.bytes = bytes(value);
            }
            Err(error) => attempt.outcome = error.outcome(),
        }
        answer
    }
}

/// An attempt in progress. It is counted when it is dropped, with or without an answer.
struct Attempt<'a> {
    metrics: &'a StoreMetrics,
    operation: Operation,
    begun: Instant,
    outcome: StoreOutcome,
    bytes: usize,
    _in_flight: InFlight,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let bytes = u64::try_from(self.bytes).expect("a length fits in 64 bits");
        self.metrics.ended(self.operation, self.outcome, bytes, self.begun.elapsed());
    }
}

#[async_trait]
impl Store for Instrument {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        self.measure(Operation::Get, self.inner.get(key, range), |object| object.body.len()).await
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        let length = body.len();
        self.measure(Operation::Put, self.inner.put(key, body, condition), |_| length).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        self.measure(Operation::Delete, self.inner.delete(keys), |()| 0).await
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        self.measure(Operation::List, self.inner.list(prefix, from), |_| 0).await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::metrics::Metrics;
    use crate::store::{Fault, MemoryStore};

    #[tokio::test]
    async fn every_attempt_is_counted_once_under_its_outcome() {
        let fault = Fault::new(Arc::new(MemoryStore::new()), 0);
        let metrics = Metrics::new();
        let store = Instrument::new(Arc::new(fault.clone()), metrics.store());
        let body = Bytes::from_static(b"abc");
        store.put("a", body.clone(), Condition::IfAbsent).await.unwrap();
        store.put("a", body.clone(), Condition::IfAbsent).await.unwrap_err();
        store.get("b", ByteRange::Full).await.unwrap_err();
        let _gate = fault.hold(Operation::Put, "held");
        assert!(store.put("held", body, Condition::Always).now_or_never().is_none());
        let counted = |operation, outcome| metrics.store().requests(operation, outcome);
        assert_eq!(counted(Operation::Put, StoreOutcome::Ok), 1);
        assert_eq!(counted(Operation::Put, StoreOutcome::PreconditionFailed), 1);
        assert_eq!(counted(Operation::Put, StoreOutcome::Cancelled), 1);
        assert_eq!(counted(Operation::Get, StoreOutcome::NotFound), 1);
        let text = metrics.render();
        assert!(text.contains("cairn_store_bytes_total{operation=\"put\"} 3\n"));
        assert!(text.contains("cairn_store_request_duration_seconds_count{operation=\"put\"} 3\n"));
        assert!(text.contains("cairn_store_requests_in_flight{operation=\"put\"} 0\n"));
    }
}
