//! Object storage: the trait [`Store`], its implementations and decorators.
//!
//! Knows nothing of volumes: keys are strings, bodies are bytes. Invariant: an error never stands for a
//! result; a body is whole or it is an error.

pub mod classes;
pub mod error;
pub mod fault;
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
pub use instrument::Instrument;
pub use limit::Limit;
pub use listing::{Entry, ListFrom, Listing, PageToken, Pages};
pub use local::{LocalStore, Setup};
pub use location::Location;
pub use memory::MemoryStore;
pub use open::{Control, Drawn, OpenError, Opened, Options, open};
pub use retry::Retry;
pub use s3::{S3Options, S3Store};

/// An opaque version of an object, as the store gives it; only ever compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ETag(pub Arc<str>);

/// Bytes of an object that is read whole, at most: whoever asks holds all of it in memory.
pub const MAX_WHOLE_BYTES: u64 = 512 << 20;

/// Which bytes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// All of it; one of more than [`MAX_WHOLE_BYTES`] is [`Error::TooLarge`].
    Full,
    /// `length` bytes from `offset`; an object that ends before is [`Error::Truncated`]. `length` is not 0.
    Bounded {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// When a PUT takes effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Always (for names that are bound to their bytes).
    Always,
    /// `If-None-Match: *`: only where no object stands.
    IfAbsent,
    /// `If-Match`: only where exactly this version stands. A missing object is [`Error::PreconditionFailed`]
    /// or [`Error::NotFound`].
    IfMatch(ETag),
}

/// An object, or the part of it that was asked for.
#[derive(Clone, Debug)]
pub struct Object {
    /// Exactly the bytes asked for.
    pub body: Bytes,
    /// Version.
    pub etag: ETag,
}

/// Keys of one [`Store::delete`] at most: S3 takes no more in one request.
pub const MAXIMUM_DELETE_KEYS: usize = 1000;

/// Object storage. Keys are relative to the store's root, `/`-separated, of `[A-Za-z0-9._-]` segments; no
/// segment is empty, `.` or `..`. No key goes on where another ends (`a` and `a/b`), since in a directory one
/// is a file.
///
/// A call may be dropped at any await point; a PUT or DELETE so dropped has an unknown effect.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Reads an object or a range of it.
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error>;
    /// Creates or replaces an object, atomically and durably: when it returns, the object survives power
    /// loss.
    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error>;
    /// Deletes objects, at most [`MAXIMUM_DELETE_KEYS`]; one that is absent counts as deleted. On an error
    /// any of them may be gone.
    async fn delete(&self, keys: &[String]) -> Result<(), Error>;
    /// Lists one page of the keys that begin with `prefix` (a string, not only whole segments), in no
    /// particular order. Use [`Pages`] to list them all.
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
