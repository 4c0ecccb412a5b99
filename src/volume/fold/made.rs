//! The results of a fold over all its attempts.
//!
//! Owns the names of new objects and what is finished. It sends nothing itself. Invariants: a name is
//! recorded before an object is sent under it, so that the objects of a failed attempt can be deleted. What
//! one attempt finished is valid for the next, since all attempts fold the same changes into the same root.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::volume::format::geometry::ChunkIndex;
use crate::volume::format::keys::{Keys, ObjectId, Slot};
use crate::volume::format::map::Entry;

/// The result of folding a map page.
#[derive(Clone, Copy, Debug)]
pub(super) enum FoldedPage {
    /// The map page is stored in the object with this id.
    Object(ObjectId),
    /// The map page needs no object: all its chunks are zeros allocated at this commit, or holes if `None`.
    Uniform(Option<Slot>),
}

/// The results of a fold: names of objects, recorded before they are sent; chunks and map pages that are
/// finished; and buffers for reuse.
#[derive(Debug, Default)]
pub(super) struct Made {
    names: Mutex<Vec<String>>,
    /// Chunks whose objects are durable, with their new entries.
    chunks: Mutex<BTreeMap<ChunkIndex, Entry>>,
    /// Map pages that are durable, or need no object.
    map_pages: Mutex<BTreeMap<u32, FoldedPage>>,
    /// Buffers of durable objects, for reuse: at most as many as there are objects in the making at a time.
    memory: Mutex<Vec<Vec<u8>>>,
}

impl Made {
    /// Returns the object names recorded so far.
    pub(crate) fn names(&self) -> Vec<String> {
        self.names.lock().clone()
    }

    /// Records a name and returns it.
    pub(crate) fn note(&self, key: String) -> String {
        self.names.lock().push(key.clone());
        key
    }

    /// Returns the entry of a chunk that an earlier attempt finished, if any.
    pub(super) fn finished_chunk(&self, index: ChunkIndex) -> Option<Entry> {
        self.chunks.lock().get(&index).cloned()
    }

    /// Records that a chunk's object is durable.
    pub(super) fn finish_chunk(&self, index: ChunkIndex, entry: Entry) {
        self.chunks.lock().insert(index, entry);
    }

    /// Number of finished chunks.
    pub(super) fn finished_chunks(&self) -> usize {
        self.chunks.lock().len()
    }

    /// Returns the map page that an earlier attempt finished, if any.
    pub(super) fn finished_map_page(&self, number: u32) -> Option<FoldedPage> {
        self.map_pages.lock().get(&number).copied()
    }

    /// Records that a map page is durable, or needs no object.
    pub(super) fn finish_map_page(&self, number: u32, folded: FoldedPage) {
        self.map_pages.lock().insert(number, folded);
    }

    /// Removes and returns the names of objects that no further attempt uses.
    pub(super) fn take_unfinished(&self, keys: Keys) -> Vec<String> {
        let mut finished = BTreeSet::new();
        for (index, entry) in &*self.chunks.lock() {
            finished.extend(entry.base.map(|base| keys.chunk(*index, base.id)));
        }
        for (number, folded) in &*self.map_pages.lock() {
            if let FoldedPage::Object(id) = folded {
                finished.insert(keys.map_page(*number, *id));
            }
        }
        let mut names = self.names.lock();
        let (kept, unfinished) =
            std::mem::take(&mut *names).into_iter().partition(|name| finished.contains(name));
        *names = kept;
        unfinished
    }

    /// Returns a buffer for an object of `bytes` bytes. Reused memory is cheaper: the system clears new
    /// memory page by page.
    pub(crate) fn memory(&self, bytes: u64) -> Vec<u8> {
        let bytes = usize::try_from(bytes).expect("at most 33 MiB");
        self.memory.lock().pop().unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    /// Takes back the buffer of an object, unless the store still holds it.
    pub(crate) fn reclaim(&self, object: Bytes) {
        if object.is_unique() {
            self.memory.lock().push(Vec::from(object));
        }
    }
}
