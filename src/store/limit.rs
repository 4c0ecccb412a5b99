//! Bounded concurrency: a decorator that limits how many requests run at a time, and admits them in order of
//! arrival.
//!
//! Owns the permits, and must not know what a request is for. It belongs below [`Retry`](super::Retry), so
//! that a request holds no permit while it waits for its next attempt. Invariant: a request holds a permit
//! exactly while the inner store works on it.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::metrics::{StoreClass, StoreMetrics};
use crate::mutant::{self, Mutant};

use super::{ByteRange, Condition, ETag, Error, ListFrom, Listing, Object, Store};

/// A decorator that limits concurrency.
pub struct Limit {
    inner: Arc<dyn Store>,
    permits: Semaphore,
    metrics: StoreMetrics,
    class: StoreClass,
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = self.permits.available_permits();
        f.debug_struct("Limit").field("inner", &self.inner).field("free", &free).finish_non_exhaustive()
    }
}

impl Limit {
    /// Allows `requests` concurrent requests, and counts them under the class [`StoreClass::Reads`].
    ///
    /// # Panics
    /// If `requests` is 0.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, requests: usize, metrics: StoreMetrics) -> Self {
        Self::of_class(inner, requests, metrics, StoreClass::Reads)
    }

    /// Allows `requests` concurrent requests of one class.
    ///
    /// # Panics
    /// If `requests` is 0.
    #[must_use]
    pub fn of_class(
        inner: Arc<dyn Store>,
        requests: usize,
        metrics: StoreMetrics,
        class: StoreClass,
    ) -> Self {
        assert!(requests > 0, "a limit of 0 would let nothing through");
        let requests = if mutant::is(Mutant::RequestsUnbounded) { usize::MAX } else { requests };
        Self { inner, permits: Semaphore::new(requests.min(Semaphore::MAX_PERMITS)), metrics, class }
    }

    /// Returns whether another request would be admitted at once.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.permits.available_permits() > 0
    }

    async fn permit(&self) -> SemaphorePermit<'_> {
        // The semaphore is fair: this fails while others wait, so a new request does not overtake them.
        if let Ok(permit) = self.permits.try_acquire() {
            return permit;
        }
        let _waiting = self.metrics.waiting(self.class);
        self.permits.acquire().await.expect("the semaphore is never closed")
    }
}

#[async_trait]
impl Store for Limit {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        let _permit = self.permit().await;
        self.inner.get(key, range).await
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        let _permit = self.permit().await;
        self.inner.put(key, body, condition).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        let _permit = self.permit().await;
        self.inner.delete(keys).await
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        let _permit = self.permit().await;
        self.inner.list(prefix, from).await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::metrics::Metrics;
    use crate::store::{Fault, MemoryStore, Operation};

    #[tokio::test]
    async fn requests_wait_for_their_turn_in_order() {
        let memory = MemoryStore::new();
        let fault = Fault::new(Arc::new(memory.clone()), 0);
        let metrics = Metrics::new();
        let limit = Limit::of_class(Arc::new(fault.clone()), 2, metrics.store(), StoreClass::Bulk);
        let gates = ["1", "2", "3", "4"].map(|key| fault.hold(Operation::Put, key));
        let mut puts: Vec<_> =
            ["1", "2", "3", "4"].iter().map(|key| limit.put(key, Bytes::new(), Condition::Always)).collect();
        for put in &mut puts {
            assert!(put.now_or_never().is_none());
        }
        assert_eq!(gates.each_ref().map(fault_count), [1, 1, 0, 0]);
        assert!(metrics.render().contains("cairn_store_requests_waiting{class=\"bulk\"} 2\n"));
        assert!(metrics.render().contains("cairn_store_requests_waiting{class=\"reads\"} 0\n"));
        gates[1].release();
        assert!((&mut puts[1]).now_or_never().is_some());
        assert!((&mut puts[3]).now_or_never().is_none());
        assert!((&mut puts[2]).now_or_never().is_none());
        assert_eq!(gates.each_ref().map(fault_count), [1, 1, 1, 0]);
        drop(puts);
        assert!(metrics.render().contains("cairn_store_requests_waiting{class=\"bulk\"} 0\n"));
    }

    fn fault_count(gate: &crate::store::fault::Gate) -> u64 {
        gate.count()
    }
}
