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

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

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

/// The in-flight limits of one connection, and what it uses of them. Clones share them.
#[derive(Clone)]
pub(crate) struct InFlight(Arc<Connection>);

struct Connection {
    most_requests: u32,
    most_bytes: u32,
    share_bytes: u32,
    /// The most bytes that a single request is charged. A larger request is charged this much, so it runs
    /// when no other request holds bytes.
    largest_bytes: u32,
    used: Mutex<Used>,
    /// Signalled after a release, if somebody waits for one.
    released: Notify,
    common: Arc<Semaphore>,
    metrics: Arc<dyn Metrics>,
}

/// What the requests of a connection use.
#[derive(Debug, Default)]
struct Used {
    requests: u32,
    /// Bytes of all requests.
    bytes: u32,
    /// Bytes of those that were taken from the connection's share.
    share_bytes: u32,
    /// Whether anybody waits for a release.
    is_awaited: bool,
}

/// What one request holds of the in-flight limits. Dropping it releases everything.
#[derive(Debug)]
pub(crate) struct Charge {
    _started: StartedRequest,
    _held: Held,
    /// Memory common to all connections, if the connection's share had no room.
    _common: Option<OwnedSemaphorePermit>,
}

/// What one request holds of its connection's limits. Dropping it releases everything.
struct Held {
    connection: Arc<Connection>,
    bytes: u32,
    /// Whether the bytes were taken from the connection's share.
    is_own: bool,
}

impl InFlight {
    /// Creates the limits of a new connection.
    pub(crate) fn new(options: &Options, budget: &Budget, metrics: Arc<dyn Metrics>) -> Self {
        let most_bytes = options.in_flight_bytes.max(1);
        Self(Arc::new(Connection {
            most_requests: options.in_flight_requests.max(1),
            most_bytes,
            share_bytes: budget.share_bytes,
            largest_bytes: most_bytes.min(budget.common_bytes),
            used: Mutex::default(),
            released: Notify::new(),
            common: Arc::clone(&budget.common),
            metrics,
        }))
    }

    /// Waits until the request fits into the limits. A request of any size fits when no other request holds
    /// bytes.
    pub(crate) async fn charge(&self, bytes: u32) -> Charge {
        let connection = &self.0;
        let bytes = bytes.min(connection.largest_bytes);
        let is_own = match connection.try_take(bytes) {
            Some(is_own) => is_own,
            None => connection.wait(|used| connection.take(used, bytes)).await,
        };
        let held = Held { connection: Arc::clone(connection), bytes, is_own };
        let common = match is_own {
            true => None,
            false => {
                let taken = Arc::clone(&connection.common).acquire_many_owned(bytes).await;
                Some(taken.expect(NEVER_CLOSED))
            }
        };
        Charge { _started: StartedRequest::new(&connection.metrics, bytes), _held: held, _common: common }
    }

    /// Waits until every reply is written, or dropped because the connection is broken.
    pub(super) async fn wait_until_idle(&self) {
        self.0.wait(|used| (used.requests == 0).then_some(())).await;
    }
}

impl Connection {
    fn try_take(&self, bytes: u32) -> Option<bool> {
        self.take(&mut self.used.lock(), bytes)
    }

    /// Takes a request and its bytes if they fit. Returns whether the memory is from the connection's share.
    fn take(&self, used: &mut Used, bytes: u32) -> Option<bool> {
        if used.requests == self.most_requests || bytes > self.most_bytes - used.bytes {
            return None;
        }
        used.requests += 1;
        used.bytes += bytes;
        let is_own = bytes <= self.share_bytes - used.share_bytes;
        if is_own {
            used.share_bytes += bytes;
        }
        Some(is_own)
    }

    /// Waits until `check` returns `Some`, which it can only do after a release.
    async fn wait<T>(&self, mut check: impl FnMut(&mut Used) -> Option<T>) -> T {
        loop {
            let released = self.released.notified();
            tokio::pin!(released);
            {
                let mut used = self.used.lock();
                if let Some(found) = check(&mut used) {
                    return found;
                }
                // Registers before the lock is released, so that no release is missed.
                released.as_mut().enable();
                used.is_awaited = true;
            }
            released.await;
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let is_awaited = {
            let mut used = self.connection.used.lock();
            used.requests -= 1;
            used.bytes -= self.bytes;
            if self.is_own {
                used.share_bytes -= self.bytes;
            }
            std::mem::take(&mut used.is_awaited)
        };
        if is_awaited {
            self.connection.released.notify_waiters();
        }
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
    fn a_request_beyond_a_limit_of_its_connection_waits_until_another_ends() {
        let options = Options { in_flight_requests: 2, in_flight_bytes: 100, ..Options::default() };
        let in_flight = InFlight::new(&options, &Budget::new(&options), Arc::new(NoMetrics));
        let charge = |bytes| in_flight.charge(bytes).now_or_never().expect("it fits");
        let (first, second) = (charge(60), charge(0));
        let mut third = Box::pin(in_flight.charge(0));
        assert!(third.as_mut().now_or_never().is_none(), "two requests are in flight");
        drop(second);
        let third = third.as_mut().now_or_never().expect("only one is in flight");
        let mut fourth = Box::pin(in_flight.charge(41));
        drop(third);
        assert!(fourth.as_mut().now_or_never().is_none(), "only 40 bytes are left");
        let mut idle = Box::pin(in_flight.wait_until_idle());
        assert!(idle.as_mut().now_or_never().is_none());
        drop(first);
        let fourth = fourth.as_mut().now_or_never().expect("all bytes are free");
        assert!(idle.as_mut().now_or_never().is_none(), "the fourth request is in flight");
        drop(fourth);
        assert!(idle.as_mut().now_or_never().is_some());
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
