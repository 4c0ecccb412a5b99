//! A store in memory for tests and simulation, with conditional writes, ranges, paged listings and counts of
//! requests.
//!
//! Owns its objects and counts, and must not know what is stored. It is deterministic: it uses no clock, no
//! randomness and no tasks, and a request takes effect when it is first polled. Invariant: as in S3, equal
//! bodies have equal [`ETag`]s, so code that relies on unique ETags fails here too.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::listing::PAGE_ENTRIES;
use super::{
    ByteRange, Condition, ETag, Entry, Error, ListFrom, Listing, MAX_WHOLE_BYTES, Object, Operation,
    PageToken, Store, key,
};

/// A count of requests and of the bytes in their bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Number of requests, including failed ones. A DELETE counts once for each key.
    pub requests: u64,
    /// Number of body bytes of the requests that succeeded.
    pub bytes: u64,
}

#[derive(Debug)]
struct Stored {
    body: Bytes,
    /// The ETag of the body. It is computed once, because most objects are read more than once.
    etag: ETag,
}

impl Stored {
    fn new(body: Bytes) -> Self {
        Self { etag: ETag(format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&body)).into()), body }
    }
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<String, Stored>,
    /// Maximum size in bytes of an object that may be read whole.
    most_whole_bytes: u64,
    /// Counts by operation and key; for a LIST, by its prefix. The map grows with the number of different
    /// keys. [`MemoryStore::reset_tallies`] empties it.
    tallies: BTreeMap<(Operation, String), Tally>,
}

impl Default for State {
    fn default() -> Self {
        let (objects, tallies) = (BTreeMap::new(), BTreeMap::new());
        Self { objects, most_whole_bytes: MAX_WHOLE_BYTES, tallies }
    }
}

impl State {
    fn count(&mut self, operation: Operation, key: &str) -> &mut Tally {
        let tally = self.tallies.entry((operation, key.to_owned())).or_default();
        tally.requests += 1;
        tally
    }

    /// Returns the objects whose keys begin with `prefix` and do not precede `start`, in the order of keys.
    fn entries<'a>(&'a self, prefix: &'a str, start: Bound<&'a str>) -> impl Iterator<Item = Entry> + 'a {
        self.objects
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, stored)| Entry { key: key.clone(), size_bytes: length(&stored.body) })
    }

    fn list_sorted(&self, prefix: &str, from: &ListFrom, page_entries: usize) -> Listing {
        let start = match from {
            ListFrom::Start => "",
            ListFrom::After(key) => key,
            ListFrom::Page(PageToken(last)) => last,
        };
        let start = if start < prefix { Bound::Included(prefix) } else { Bound::Excluded(start) };
        let mut following = self.entries(prefix, start);
        let entries: Vec<Entry> = following.by_ref().take(page_entries).collect();
        let last = entries.last().filter(|_| following.next().is_some());
        let next = last.map(|last| PageToken(last.key.as_str().into()));
        Listing { next, entries }
    }

    fn list_unsorted(&self, prefix: &str, from: &ListFrom, page_entries: usize) -> Listing {
        let token = match from {
            ListFrom::Start | ListFrom::After(_) => "",
            ListFrom::Page(PageToken(token)) => token,
        };
        let after = token.trim_start_matches(BEHIND_EMPTY);
        let mut entries: Vec<Entry> = self.entries(prefix, Bound::Included(prefix)).collect();
        entries.retain(|entry| after.is_empty() || scattered(&entry.key) > scattered(after));
        entries.sort_by(|a, b| scattered(&a.key).cmp(&scattered(&b.key)));
        let is_empty =
            entries.first().is_some_and(|first| scattered(&first.key).0.is_multiple_of(EMPTY_EVERY));
        if is_empty && !token.starts_with(BEHIND_EMPTY) {
            let next = Some(PageToken(format!("{BEHIND_EMPTY}{after}").into()));
            return Listing { entries: Vec::new(), next };
        }
        let more = entries.len() > page_entries;
        entries.truncate(page_entries);
        let last = entries.last().filter(|_| more);
        Listing { next: last.map(|last| PageToken(last.key.as_str().into())), entries }
    }
}

/// A store in memory. Clones share their objects.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    page_entries: usize,
    order: Order,
}

/// The order of keys in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// In the order of their bytes, as in general-purpose buckets of S3.
    Sorted,
    /// In no meaningful order, as in directory buckets of S3. Some pages are empty although more pages
    /// follow.
    Unsorted,
}

/// In an unsorted listing, one of this many pages is empty on average.
const EMPTY_EVERY: u64 = 4;
/// First character of the token of an empty page. It prevents a second empty page in a row.
const BEHIND_EMPTY: char = '!';

/// Sort key of an object in an unsorted listing.
fn scattered(key: &str) -> (u64, &str) {
    (xxhash_rust::xxh3::xxh3_64(key.as_bytes()), key)
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// Creates an empty store whose listings have pages of up to 1,000 keys.
    #[must_use]
    pub fn new() -> Self {
        Self::with_page_entries(PAGE_ENTRIES)
    }

    /// Creates an empty store whose listings have pages of up to `page_entries` keys.
    ///
    /// # Panics
    /// If `page_entries` is 0.
    #[must_use]
    pub fn with_page_entries(page_entries: usize) -> Self {
        assert!(page_entries > 0, "a page of a listing holds a key");
        Self { state: Arc::default(), page_entries, order: Order::Sorted }
    }

    /// Creates an empty store whose listings have no order and some empty pages. Its listings ignore
    /// [`ListFrom::After`].
    ///
    /// # Panics
    /// If `page_entries` is 0.
    #[must_use]
    pub fn unsorted(page_entries: usize) -> Self {
        Self { order: Order::Unsorted, ..Self::with_page_entries(page_entries) }
    }

    /// Sums the counts of one operation over the keys that satisfy `matches`. For a LIST, its prefix counts
    /// as its key.
    pub fn tally(&self, operation: Operation, matches: impl Fn(&str) -> bool) -> Tally {
        let state = self.state.lock();
        let counted = state.tallies.iter().filter(|((o, key), _)| *o == operation && matches(key));
        counted.fold(Tally::default(), |sum, (_, tally)| Tally {
            requests: sum.requests + tally.requests,
            bytes: sum.bytes + tally.bytes,
        })
    }

    /// Sets every count to 0.
    pub fn reset_tallies(&self) {
        self.state.lock().tallies.clear();
    }

    /// Sets the maximum size in bytes of an object that may be read whole, in place of [`MAX_WHOLE_BYTES`].
    pub fn read_whole_at_most(&self, bytes: u64) {
        self.state.lock().most_whole_bytes = bytes;
    }

    /// Returns every object, without counting a request.
    #[must_use]
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        let state = self.state.lock();
        state.objects.iter().map(|(key, stored)| (key.clone(), stored.body.clone())).collect()
    }

    /// Inserts an object without counting a request or checking a condition, to damage an object or to
    /// restore a state.
    pub fn insert(&self, key: &str, body: Bytes) {
        self.state.lock().objects.insert(key.to_owned(), Stored::new(body));
    }

    /// Removes and returns an object, without counting a request.
    #[must_use]
    pub fn remove(&self, key: &str) -> Option<Bytes> {
        self.state.lock().objects.remove(key).map(|stored| stored.body)
    }
}

/// Returns the part of `body` that `range` requests.
fn slice(key: &str, body: &Bytes, range: ByteRange) -> Result<Bytes, Error> {
    let ByteRange::Bounded { offset, length } = range else { return Ok(body.clone()) };
    let truncated = || {
        let held = u64::try_from(body.len()).expect("a length fits in 64 bits");
        Error::Truncated { key: key.to_owned(), wanted: length, got: held.saturating_sub(offset).min(length) }
    };
    let start = usize::try_from(offset).map_err(|_| truncated())?;
    let end = offset.checked_add(length).and_then(|end| usize::try_from(end).ok()).ok_or_else(truncated)?;
    if end > body.len() { Err(truncated()) } else { Ok(body.slice(start..end)) }
}

fn length(body: &Bytes) -> u64 {
    u64::try_from(body.len()).expect("a length fits in 64 bits")
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        key::check(key)?;
        let mut state = self.state.lock();
        state.count(Operation::Get, key);
        let stored = state.objects.get(key).ok_or_else(|| Error::NotFound { key: key.to_owned() })?;
        let size_bytes = length(&stored.body);
        if range == ByteRange::Full && size_bytes > state.most_whole_bytes {
            return Err(Error::TooLarge { key: key.to_owned(), size_bytes });
        }
        let object = Object { etag: stored.etag.clone(), body: slice(key, &stored.body, range)? };
        state.tallies.entry((Operation::Get, key.to_owned())).or_default().bytes += length(&object.body);
        Ok(object)
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        key::check(key)?;
        let mut state = self.state.lock();
        state.count(Operation::Put, key);
        let holds = match (&condition, state.objects.get(key)) {
            (Condition::Always, _) | (Condition::IfAbsent, None) => true,
            (Condition::IfMatch(wanted), Some(stands)) => *wanted == stands.etag,
            (Condition::IfAbsent, Some(_)) | (Condition::IfMatch(_), None) => false,
        };
        if !holds {
            return Err(Error::PreconditionFailed { key: key.to_owned() });
        }
        let stored = Stored::new(body);
        let etag = stored.etag.clone();
        state.tallies.entry((Operation::Put, key.to_owned())).or_default().bytes += length(&stored.body);
        state.objects.insert(key.to_owned(), stored);
        Ok(etag)
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        keys.iter().try_for_each(|key| key::check(key))?;
        let mut state = self.state.lock();
        for key in keys {
            state.count(Operation::Delete, key);
            state.objects.remove(key);
        }
        Ok(())
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        key::check_prefix(prefix)?;
        let mut state = self.state.lock();
        state.count(Operation::List, prefix);
        Ok(match self.order {
            Order::Sorted => state.list_sorted(prefix, from, self.page_entries),
            Order::Unsorted => state.list_unsorted(prefix, from, self.page_entries),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_tallied_by_operation_and_key() {
        let store = MemoryStore::new();
        let body = Bytes::from_static(b"12345");
        store.put("a/1", body.clone(), Condition::IfAbsent).await.unwrap();
        store.put("a/1", body.clone(), Condition::IfAbsent).await.unwrap_err();
        store.put("b/1", body, Condition::Always).await.unwrap();
        store.get("a/1", ByteRange::Bounded { offset: 1, length: 2 }).await.unwrap();
        store.delete(&["a/1".into(), "a/2".into()]).await.unwrap();
        let tally = |operation, prefix: &str| {
            let Tally { requests, bytes } = store.tally(operation, |key| key.starts_with(prefix));
            (requests, bytes)
        };
        assert_eq!(tally(Operation::Put, "a/"), (2, 5));
        assert_eq!(tally(Operation::Put, ""), (3, 10));
        assert_eq!(tally(Operation::Get, ""), (1, 2));
        assert_eq!(tally(Operation::Delete, ""), (2, 0));
        assert_eq!(tally(Operation::List, ""), (0, 0));
        store.reset_tallies();
        assert_eq!(tally(Operation::Put, ""), (0, 0));
    }
}
