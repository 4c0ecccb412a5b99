//! A store that can only be read, and that counts what is read.
//!
//! Must not know what is checked. Invariant: no PUT and no DELETE reaches the store below, whatever the code
//! above does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::store::error::cause;
use crate::store::{ByteRange, Condition, ETag, Error, ListFrom, Listing, Object, Store};

/// A decorator that refuses to change anything.
#[derive(Debug)]
pub(super) struct ReadOnly {
    inner: Arc<dyn Store>,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl ReadOnly {
    pub(super) fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, requests: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Returns how many requests were made, and how many bytes the GETs returned. Requests that a store below
    /// repeats are not included.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

fn refused(key: &str) -> Error {
    Error::Rejected { key: key.to_owned(), source: cause("a check changes nothing in the store") }
}

#[async_trait]
impl Store for ReadOnly {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let object = self.inner.get(key, range).await?;
        self.bytes.fetch_add(object.body.len() as u64, Ordering::Relaxed);
        Ok(object)
    }

    async fn put(&self, key: &str, _body: Bytes, _condition: Condition) -> Result<ETag, Error> {
        Err(refused(key))
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        Err(refused(keys.first().map_or("", String::as_str)))
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.inner.list(prefix, from).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn nothing_is_changed_and_reads_are_counted() {
        let memory = MemoryStore::new();
        memory.insert("object", Bytes::from_static(b"content"));
        let store = ReadOnly::new(Arc::new(memory.clone()));
        store.put("other", Bytes::new(), Condition::Always).await.expect_err("it is a change");
        store.delete(&["object".to_owned()]).await.expect_err("it is a change");
        assert_eq!(memory.objects().len(), 1);
        store.get("object", ByteRange::Full).await.unwrap();
        store.list("", &ListFrom::Start).await.unwrap();
        assert_eq!(store.counts(), (2, 7));
    }
}
