//! Creating an object whose name is bound to its bytes, whatever becomes of the answers.

use bytes::Bytes;

use crate::store::{ByteRange, Condition, Error, Store};

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
            Err(Error::PreconditionFailed { .. }) => {}
            Err(error) => return Err(error),
        }
        match store.get(key, ByteRange::Full).await {
            Ok(object) if object.body == *bytes => return Ok(Placed::Ours),
            Ok(object) => return Ok(Placed::Other(object.body)),
            Err(Error::NotFound { .. }) => tokio::task::yield_now().await,
            Err(error) => return Err(error),
        }
    }
}
