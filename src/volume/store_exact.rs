//! Creating an object whose name is bound to its bytes, whatever becomes of the answers, and reading one whose bytes
//! must pass a check.

use bytes::Bytes;

use super::codec::DecodeError;
use crate::mutant::{self, Mutant};
use crate::store::{ByteRange, Condition, ETag, Error, Object, Store};

/// How often an object is fetched when its check fails: a flip on the way is not damage.
pub(super) const CHECKED_FETCHES: u32 = 3;

/// What stands under the name now.
#[derive(Debug)]
pub(super) enum Placed {
    /// Exactly our bytes, be it by this request or by an earlier one whose answer was lost.
    Ours,
    /// Something else.
    Other(Bytes),
}

/// Creates the object if nothing stands there, and says what does.
///
/// An object that vanishes between the two requests was deleted by someone who could only do so after reading it:
/// the creation is tried again.
pub(super) async fn create_exact(store: &dyn Store, key: &str, bytes: &Bytes) -> Result<Placed, Error> {
    loop {
        match store.put(key, bytes.clone(), Condition::IfAbsent).await {
            Ok(_) => return Ok(Placed::Ours),
            Err(Error::PreconditionFailed { .. }) if mutant::is(Mutant::OwnSuccessUnknown) => {
                return Ok(Placed::Other(Bytes::new()));
            }
            Err(Error::PreconditionFailed { .. }) => {}
            Err(error) => return Err(error),
        }
        match store.get(key, ByteRange::Full).await {
            Ok(object) if object.body == *bytes => return Ok(Placed::Ours),
            Ok(object) => {
                // Bytes that were damaged on the way must not pass for another's.
                let object = agreed(store, key, object).await?;
                return Ok(if object.body == *bytes { Placed::Ours } else { Placed::Other(object.body) });
            }
            Err(Error::NotFound { .. }) => tokio::task::yield_now().await,
            Err(error) => return Err(error),
        }
    }
}

/// Reads an object again until two readings in a row agree.
pub(super) async fn agreed(store: &dyn Store, key: &str, first: Object) -> Result<Object, Error> {
    let mut last = first;
    loop {
        let next = store.get(key, ByteRange::Full).await?;
        if next.body == last.body {
            return Ok(next);
        }
        last = next;
    }
}

/// Why an object could not be had.
#[derive(Debug)]
pub(super) enum CheckedError {
    /// The store did not give it.
    Store(Error),
    /// It is not what was written.
    Damaged(DecodeError),
}

/// Fetches and decodes an object, and again while that fails.
pub(super) async fn fetch_checked<T>(
    store: &dyn Store,
    key: &str,
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<(T, ETag), CheckedError> {
    let mut attempt = 1;
    loop {
        let object = store.get(key, ByteRange::Full).await.map_err(CheckedError::Store)?;
        match decode(&object.body) {
            Ok(value) => return Ok((value, object.etag)),
            Err(error) if attempt == CHECKED_FETCHES => return Err(CheckedError::Damaged(error)),
            Err(error) => tracing::warn!(%key, attempt, "fetching again what fails its check: {error}"),
        }
        attempt += 1;
    }
}
