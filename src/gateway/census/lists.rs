//! A decorator that counts the LIST requests of one census.
//!
//! Must not know what is listed. Invariant: every request of the environment that it returns is passed on
//! unchanged, in its class.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::store::{ByteRange, Classes, Condition, ETag, Error, ListFrom, Listing, Object, Store};
use crate::volume::Environment;

/// Number of LIST requests that were sent by way of [`Lists::counted`]. Repeated requests are not included.
#[derive(Clone, Debug, Default)]
pub(super) struct Lists(Arc<AtomicU32>);

impl Lists {
    /// Returns an environment with the same stores, whose LIST requests are counted.
    pub(super) fn counted(&self, env: &Environment) -> Environment {
        let counts = |inner: &Arc<dyn Store>| -> Arc<dyn Store> {
            Arc::new(Counting { inner: Arc::clone(inner), lists: self.clone() })
        };
        let Classes { reads, journal, uploads, ahead, bulk } = &env.store;
        let store = Classes {
            reads: counts(reads),
            journal: counts(journal),
            uploads: counts(uploads),
            ahead: counts(ahead),
            bulk: counts(bulk),
        };
        Environment { store, ..env.clone() }
    }

    /// Returns the number so far.
    pub(super) fn sent(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Counting {
    inner: Arc<dyn Store>,
    lists: Lists,
}

#[async_trait]
impl Store for Counting {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        self.inner.get(key, range).await
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        self.inner.put(key, body, condition).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        self.inner.delete(keys).await
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        self.lists.0.fetch_add(1, Ordering::Relaxed);
        self.inner.list(prefix, from).await
    }
}
