//! Object storage: the trait [`Store`], its implementations and its decorators.
//!
//! Owns all access to objects, and must not know volumes: keys are strings, bodies are bytes. Invariant: a
//! request returns its full result or an error. A body is never partial, and an error is never reported as a
//! result.

pub mod classes;
pub mod error;
pub mod fault;
pub mod hedge;
pub mod instrument;
pub mod key;
pub mod limit;
pub mod listing;
pub mod local;
pub mod location;
pub mod memory;
pub mod open;
pub mod passed;
pub mod probe;
pub mod retry;
pub mod s3;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub use crate::metrics::StoreOperation as Operation;
pub use classes::Classes;
pub use error::Error;
pub use fault::Fault;
pub use hedge::{HedgeOptions, Hedging};
pub use instrument::Instrument;
pub use limit::Limit;
pub use listing::{Entry, ListFrom, Listing, PageToken, Pages};
pub use local::{LocalStore, Setup};
pub use location::Location;
pub use memory::MemoryStore;
pub use open::{Control, Drawn, OpenError, Opened, Options, open};
pub use retry::Retry;
pub use s3::{S3Options, S3Store, SignBody};

/// An opaque version of an object, as the store reports it. Only compared for equality.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ETag(pub Arc<str>);

/// Maximum size in bytes of an object that is read whole, because the caller holds all of it in memory.
pub const MAX_WHOLE_BYTES: u64 = 512 << 20;

/// The bytes of an object that a GET requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// The whole object. If it exceeds [`MAX_WHOLE_BYTES`], the GET fails with [`Error::TooLarge`].
    Full,
    /// `length` bytes at `offset`. If the object ends before that, the GET fails with [`Error::Truncated`].
    /// `length` must not be 0.
    Bounded {
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
}

/// The condition under which a PUT takes effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// No condition. For keys whose content never differs, or is only a hint, so that a repeated PUT is
    /// harmless.
    Always,
    /// `If-None-Match: *`: only if the object does not exist.
    IfAbsent,
    /// `If-Match`: only if the object has exactly this version. If the object does not exist, the PUT fails
    /// with [`Error::PreconditionFailed`] or [`Error::NotFound`].
    IfMatch(ETag),
}

/// An object, or the part of it that was requested.
#[derive(Clone, Debug)]
pub struct Object {
    /// Exactly the requested bytes.
    pub body: Bytes,
    /// The version of the object.
    pub etag: ETag,
}

/// Maximum number of keys of one [`Store::delete`]: S3 accepts no more in one request.
pub const MAXIMUM_DELETE_KEYS: usize = 1000;

/// An object store. Keys are relative to the root of the store and consist of segments of `[A-Za-z0-9._-]`,
/// separated by `/`. No segment is empty, `.` or `..`. No key is a prefix of another at a segment boundary
/// (`a` and `a/b`), because a directory stores `a` as a file.
///
/// A call may be dropped at any await point. The effect of a dropped PUT or DELETE is unknown.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Reads an object or a range of it.
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error>;
    /// Creates or replaces an object, atomically and durably: when the call returns, the object survives a
    /// power failure.
    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error>;
    /// Deletes at most [`MAXIMUM_DELETE_KEYS`] objects. An object that does not exist counts as deleted.
    /// After an error, any of them may be deleted.
    async fn delete(&self, keys: &[String]) -> Result<(), Error>;
    /// Lists one page of the keys that begin with `prefix`, in no particular order. The prefix is a string
    /// and may end within a segment. Use [`Pages`] to list all keys.
    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error>;
}

#[async_trait]
impl<S: Store + ?Sized> Store for Arc<S> {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        (**self).get(key, range).await
    }
    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        (**self).put(key, body, condition).await
    }
    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        (**self).delete(keys).await
    }
    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        (**self).list(prefix, from).await
    }
}
