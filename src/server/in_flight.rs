//! Limits the memory of requests: per connection, and for all connections of a server together.
//!
//! A request acquires all the memory it needs before its payload is read, and releases it when its reply is
//! written. Each connection has its own share: half of the total divided by the maximum number of
//! connections, but no more than the limit of one connection. A request that does not fit into the share
//! takes its memory from the common rest, first come, first served. Must not know the protocol.
//!
//! Invariants: the memory in use never exceeds the limits. A waiting request holds nothing that another
//! connection waits for, and each connection has at most one waiting request. So no connection can keep
//! another from its share or from its turn.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::metrics::{Metrics, StartedRequest};
use super::options::Options;

const NEVER_CLOSED: &str = "the semaphores of a server are never closed";

/// The limit on payload memory of all connections together.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Bytes reserved for each connection.
    share_bytes: u32,
    /// Memory for requests that do not fit into their connection's share.
    common: Arc<Semaphore>,
    common_bytes: u32,
}

impl Budget {
    pub(crate) fn new(options: &Options) -> Self {
        let connections = u64::try_from(options.maximum_connections).unwrap_or(u64::MAX).max(1);
        let share = (options.total_in_flight_bytes / 2 / connections).min(u64::from(options.in_flight_bytes));
        let common = (options.total_in_flight_bytes - share * connections).max(1);
        let permits = usize::try_from(common).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            share_bytes: u32::try_from(share).unwrap_or(u32::MAX),
            common: Arc::new(Semaphore::new(permits)),
            common_bytes: u32::try_from(common).unwrap_or(u32::MAX),
        }
    }
}

/// The in-flight limits of one connection, and what it uses of them.
#[derive(Clone)]
pub(crate) struct InFlight {
    requests: Arc<Semaphore>,
    request_bound: u32,
    bytes: Arc<Semaphore>,
    /// The most bytes that a single request is charged. A larger request is charged this much, so it runs
    /// when no other request holds bytes.
    largest_bytes: u32,
    share: Arc<Semaphore>,
    common: Arc<Semaphore>,
    metrics: Arc<dyn Metrics>,
}

/// What one request holds of the in-flight limits. Dropping it releases everything.
#[derive(Debug)]
pub(crate) struct Charge {
    _started: StartedRequest,
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
    /// From the connection's share, or from the memory common to all connections.
    _memory: OwnedSemaphorePermit,
}

impl InFlight {
    /// Creates the limits of a new connection.
    pub(crate) fn new(options: &Options, budget: &Budget, metrics: Arc<dyn Metrics>) -> Self {
        let semaphore =
            |bound: u32| Arc::new(Semaphore::new(usize::try_from(bound).expect("32 bits fit a usize")));
        let request_bound = options.in_flight_requests.max(1);
        let byte_bound = options.in_flight_bytes.max(1);
        Self {
            requests: semaphore(request_bound),
            request_bound,
            bytes: semaphore(byte_bound),
            largest_bytes: byte_bound.min(budget.common_bytes),
            share: semaphore(budget.share_bytes),
            common: Arc::clone(&budget.common),
            metrics,
        }
    }

    /// Waits until the request fits into the limits. A request of any size fits when no other request holds
    /// bytes.
    pub(crate) async fn charge(&self, bytes: u32) -> Charge {
        let bytes = bytes.min(self.largest_bytes);
        let request = Arc::clone(&self.requests).acquire_owned().await.expect(NEVER_CLOSED);
        let held = Arc::clone(&self.bytes).acquire_many_owned(bytes).await.expect(NEVER_CLOSED);
        let memory = match Arc::clone(&self.share).try_acquire_many_owned(bytes) {
            Ok(own) => own,
            Err(_) => Arc::clone(&self.common).acquire_many_owned(bytes).await.expect(NEVER_CLOSED),
        };
        Charge {
            _started: StartedRequest::new(&self.metrics, bytes),
            _request: request,
            _bytes: held,
            _memory: memory,
        }
    }

    /// Waits until every reply is written, or dropped because the connection is broken.
    pub(super) async fn wait_until_idle(&self) {
        drop(self.requests.acquire_many(self.request_bound).await);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::server::NoMetrics;

    const MIB: u64 = 1 << 20;

    /// Of 4 MiB, half is common and each of two connections has 1 MiB; one connection may hold 3 MiB.
    fn two() -> (InFlight, InFlight) {
        let options = Options {
            maximum_connections: 2,
            in_flight_bytes: 3 << 20,
            total_in_flight_bytes: 4 * MIB,
            ..Options::default()
        };
        let budget = Budget::new(&options);
        let new = || InFlight::new(&options, &budget, Arc::new(NoMetrics));
        (new(), new())
    }

    #[test]
    fn who_holds_all_that_is_common_leaves_others_their_share() {
        let (greedy, other) = two();
        let held = greedy.charge(2 << 20).now_or_never().expect("it fits what is common");
        assert!(greedy.charge(1).now_or_never().is_some(), "its own share is left");
        let own = other.charge(1 << 20).now_or_never().expect("it fits the share");
        assert!(other.charge(1).now_or_never().is_none(), "neither its share nor the common part has room");
        drop(own);
        assert!(other.charge(1).now_or_never().is_some());
        drop(held);
        assert!(other.charge(2 << 20).now_or_never().is_some());
    }

    #[test]
    fn who_waited_first_is_let_through_first_whatever_its_size() {
        let (one, two) = two();
        let held = one.charge(2 << 20).now_or_never().expect("it fits what is common");
        let mut large = Box::pin(two.charge(2 << 20));
        assert!(large.as_mut().now_or_never().is_none());
        let own = one.charge(1 << 20).now_or_never().expect("it fits the share");
        drop(held);
        assert!(one.charge(1).now_or_never().is_none(), "the larger one was first");
        assert!(large.now_or_never().is_some());
        assert!(one.charge(1).now_or_never().is_some());
        drop(own);
    }

    #[test]
    fn a_request_that_exceeds_every_bound_is_let_through_alone() {
        let (one, two) = two();
        let held = one.charge(u32::MAX).now_or_never().expect("nothing else holds bytes");
        assert!(two.charge(u32::MAX).now_or_never().is_none());
        drop(held);
        assert!(two.charge(u32::MAX).now_or_never().is_some());
    }
}
