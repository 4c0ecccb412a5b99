//! A store decorator that delays each request, as the network to a bucket would.
//!
//! Must not change any answer, and must not know what is requested.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cairn::store::{ByteRange, Condition, ETag, Error, ListFrom, Listing, Object, Store};

/// A store that is `delay` away.
#[derive(Debug)]
pub(crate) struct Delayed {
    inner: Arc<dyn Store>,
    delay: Duration,
}

impl Delayed {
    pub(crate) fn new(inner: Arc<dyn Store>, delay: Duration) -> Self {
        Self { inner, delay }
    }
}

#[async_trait]
impl Store for Delayed {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        tokio::time::sleep(self.delay).await;
        self.inner.get(key, range).await
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        tokio::time::sleep(self.delay).await;
        self.inner.put(key, body, condition).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        tokio::time::sleep(self.delay).await;
        self.inner.delete(keys).await
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        tokio::time::sleep(self.delay).await;
        self.inner.list(prefix, from).await
    }
}
