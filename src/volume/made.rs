//! What an attempt to fold makes. Invariant: a name is noted before anything is sent under it, so that what came of an
//! attempt that failed can be deleted.

use bytes::Bytes;
use parking_lot::Mutex;

/// What an attempt to fold makes: names of objects, noted before they are sent, and memory that it uses again.
#[derive(Debug, Default)]
pub(super) struct Made {
    names: Mutex<Vec<String>>,
    /// Of objects that are durable: as many at most as are made at a time.
    memory: Mutex<Vec<Vec<u8>>>,
}

impl Made {
    /// The names noted so far.
    pub(super) fn names(&self) -> Vec<String> {
        self.names.lock().clone()
    }

    /// Notes a name; gives it back.
    pub(super) fn note(&self, key: String) -> String {
        self.names.lock().push(key.clone());
        key
    }

    /// Memory for an object of so many bytes. What the system gives anew it must first clear, page by page.
    pub(super) fn memory(&self, bytes: u64) -> Vec<u8> {
        let bytes = usize::try_from(bytes).expect("at most 33 MiB");
        self.memory.lock().pop().unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    /// Takes the memory of an object back, unless the store still holds on to it.
    pub(super) fn reclaim(&self, object: Bytes) {
        if object.is_unique() {
            self.memory.lock().push(Vec::from(object));
        }
    }
}
