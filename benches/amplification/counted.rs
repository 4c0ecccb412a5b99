//! A store decorator that counts requests and bytes by kind of object, and knows what is stored.
//!
//! Must not change any answer. Invariant: `stored_bytes` is the size of all objects whose PUT has succeeded, minus those
//! whose DELETE has succeeded.

use std::collections::BTreeMap;
use std::ops::Sub;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cairn::store::{ByteRange, Condition, ETag, Error, ListFrom, Listing, Object, Pages, Store};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

/// Requests that succeeded, and the bytes of their bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
}

/// Tallies by kind of object. The kind is the part of the key that follows the volume: `journal`, `chunk`, `pack`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tallies(BTreeMap<String, Tally>);

impl Tallies {
    fn add(&mut self, key: &str, bytes: u64) {
        let tally = self.0.entry(kind(key).to_owned()).or_default();
        tally.requests += 1;
        tally.bytes += bytes;
    }

    /// The sum over all kinds that satisfy `matches`.
    pub(crate) fn sum(&self, matches: impl Fn(&str) -> bool) -> Tally {
        let counted = self.0.iter().filter(|(kind, _)| matches(kind));
        counted.fold(Tally::default(), |sum, (_, tally)| Tally {
            requests: sum.requests + tally.requests,
            bytes: sum.bytes + tally.bytes,
        })
    }

    /// The sum over all kinds.
    pub(crate) fn total(&self) -> Tally {
        self.sum(|_| true)
    }
}

/// The difference of two tallies of one store: what happened in between.
impl Sub for &Tallies {
    type Output = Tallies;

    fn sub(self, earlier: &Tallies) -> Tallies {
        let since = self.0.iter().map(|(kind, now)| {
            let before = earlier.0.get(kind).copied().unwrap_or_default();
            let (requests, bytes) = (now.requests - before.requests, now.bytes - before.bytes);
            (kind.clone(), Tally { requests, bytes })
        });
        Tallies(since.filter(|(_, tally)| tally.requests > 0).collect())
    }
}

fn kind(key: &str) -> &str {
    let mut parts = key.split('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("volume"), Some(_), Some(kind)) => kind,
        (Some(first), ..) => first,
        _ => key,
    }
}

/// What the store has been asked for since it was opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) puts: Tallies,
    pub(crate) gets: Tallies,
    pub(crate) deleted_keys: u64,
    pub(crate) lists: u64,
}

#[derive(Debug)]
struct State {
    counts: Counts,
    sizes: BTreeMap<String, u64>,
    stored_bytes: u64,
    /// Requests in flight, and when the last one began or ended. The head does not count: its lease is renewed for ever.
    in_flight: u64,
    last: Instant,
}

/// A store that counts. Clones share their counts.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    inner: Arc<dyn Store>,
    state: Arc<Mutex<State>>,
}

impl Counted {
    /// Counts the requests to `inner`. Lists the store once, to know what it holds already.
    pub(crate) async fn new(inner: Arc<dyn Store>) -> Result<Self, Error> {
        let (mut sizes, mut stored_bytes) = (BTreeMap::new(), 0);
        let mut pages = Pages::new(inner.as_ref(), "");
        while let Some(entries) = pages.next().await? {
            for entry in entries {
                stored_bytes += entry.size_bytes;
                sizes.insert(entry.key, entry.size_bytes);
            }
        }
        let (counts, last) = (Counts::default(), Instant::now());
        let state = Arc::new(Mutex::new(State { counts, sizes, stored_bytes, in_flight: 0, last }));
        Ok(Self { inner, state })
    }

    pub(crate) fn counts(&self) -> Counts {
        self.state.lock().counts.clone()
    }

    /// Total size in bytes of all objects in the store.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.state.lock().stored_bytes
    }

    /// The objects in the store by kind: their number and size.
    pub(crate) fn stored(&self) -> Tallies {
        let state = self.state.lock();
        let mut stored = Tallies::default();
        state.sizes.iter().for_each(|(key, bytes)| stored.add(key, *bytes));
        stored
    }

    /// For how long nothing has been asked of the store, the head aside.
    pub(crate) fn idle(&self) -> Duration {
        let state = self.state.lock();
        if state.in_flight > 0 { Duration::ZERO } else { state.last.elapsed() }
    }

    fn active(&self, key: &str) -> Option<Active<'_>> {
        (kind(key) != "head").then(|| {
            let mut state = self.state.lock();
            state.in_flight += 1;
            state.last = Instant::now();
            Active(&self.state)
        })
    }
}

/// A request in flight.
struct Active<'a>(&'a Mutex<State>);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_flight -= 1;
        state.last = Instant::now();
    }
}

#[async_trait]
impl Store for Counted {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        let _active = self.active(key);
        let object = self.inner.get(key, range).await?;
        self.state.lock().counts.gets.add(key, object.body.len() as u64);
        Ok(object)
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        let _active = self.active(key);
        let bytes = body.len() as u64;
        let etag = self.inner.put(key, body, condition).await?;
        let mut state = self.state.lock();
        state.counts.puts.add(key, bytes);
        let before = state.sizes.insert(key.to_owned(), bytes).unwrap_or(0);
        state.stored_bytes = state.stored_bytes + bytes - before;
        Ok(etag)
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        let _active = keys.first().and_then(|key| self.active(key));
        self.inner.delete(keys).await?;
        let mut state = self.state.lock();
        for key in keys {
            state.counts.deleted_keys += 1;
            let bytes = state.sizes.remove(key).unwrap_or(0);
            state.stored_bytes -= bytes;
        }
        Ok(())
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        let _active = self.active(prefix);
        self.state.lock().counts.lists += 1;
        self.inner.list(prefix, from).await
    }
}
