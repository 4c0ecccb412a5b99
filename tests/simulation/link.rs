//! A gateway's way to the store: the store below its decorators, and its clock.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cairn::store::{ByteRange, Condition, ETag, Error, ListFrom, Listing, Object, Store};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::bounds::Waiting;
use super::world::{Answer, Call, Process, Time, World};

/// Converts between the clock of a gateway and the world's.
#[derive(Debug)]
pub(super) struct Clock {
    /// World time at which the gateway was started.
    pub(super) started: Time,
    /// Rate of the gateway's clock: milliseconds per second of the world.
    pub(super) rate: u64,
    /// Time of its start by the gateway's own clock.
    pub(super) base: Instant,
}

impl Clock {
    /// Converts world time to the gateway's time.
    pub(super) fn local(&self, time: Time) -> Instant {
        self.base + Duration::from_millis(time.saturating_sub(self.started) * self.rate / 1000)
    }

    /// Converts the gateway's time to world time.
    pub(super) fn world(&self, now: Instant) -> Time {
        let gone = u64::try_from(now.duration_since(self.base).as_millis()).expect("runs are short");
        self.started + (gone * 1000).div_ceil(self.rate)
    }
}

/// A gateway's way to the store.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) world: World,
    pub(super) process: Process,
    pub(super) clock: Arc<Clock>,
    /// Tells the driver that a request was sent.
    pub(super) sent: Arc<Notify>,
}

impl Link {
    async fn request(&self, call: Call) -> Result<Answer, Error> {
        let _waiting = Waiting::begin(&self.world, self.process, &call);
        let (reply, answer) = oneshot::channel();
        let at = self.clock.world(Instant::now());
        self.world.lock().send(self.process, at, call, reply);
        self.sent.notify_one();
        match answer.await {
            Ok(result) => result,
            // The run is over.
            Err(_) => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Store for Link {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        match self.request(Call::Get(key.to_owned(), range)).await? {
            Answer::Object(object) => Ok(object),
            other => unreachable!("a GET is answered by {other:?}"),
        }
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        match self.request(Call::Put(key.to_owned(), body, condition)).await? {
            Answer::ETag(etag) => Ok(etag),
            other => unreachable!("a PUT is answered by {other:?}"),
        }
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        match self.request(Call::Delete(keys.to_vec())).await? {
            Answer::Deleted => Ok(()),
            other => unreachable!("a DELETE is answered by {other:?}"),
        }
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        match self.request(Call::List(prefix.to_owned(), from.clone())).await? {
            Answer::Listing(listing) => Ok(listing),
            other => unreachable!("a LIST is answered by {other:?}"),
        }
    }
}
