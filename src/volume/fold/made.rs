//! What a fold makes, over all its attempts. Invariants: a name is noted before anything is sent under it, so
//! that what came of an attempt that failed can be deleted; what an attempt finished is the same for the
//! next, since all fold the same changes into the same root.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::volume::format::geometry::ChunkIndex;
use crate::volume::format::keys::{Keys, ObjectId, Slot};
use crate::volume::format::map::Entry;

/// What became of a map page.
#[derive(Clone, Copy, Debug)]
pub(super) enum FoldedPage {
    /// An object of this name.
    Object(ObjectId),
    /// Zeros allocated at a commit throughout, or holes.
    Uniform(Option<Slot>),
}

/// What a fold makes: names of objects, noted before they are sent, what is finished, and memory that it uses
/// again.
#[derive(Debug, Default)]
pub(super) struct Made {
    names: Mutex<Vec<String>>,
    /// Chunks whose objects are durable, with their new entries.
    chunks: Mutex<BTreeMap<ChunkIndex, Entry>>,
    /// Map pages that are durable, or need no object.
    map_pages: Mutex<BTreeMap<u32, FoldedPage>>,
    /// Of objects that are durable: as many at most as are made at a time.
    memory: Mutex<Vec<Vec<u8>>>,
}

impl Made {
    /// The names noted so far.
    pub(crate) fn names(&self) -> Vec<String> {
        self.names.lock().clone()
    }

    /// Notes a name; gives it back.
    pub(crate) fn note(&self, key: String) -> String {
        self.names.lock().push(key.clone());
        key
    }

    /// The entry of a chunk that an earlier attempt finished.
    pub(super) fn finished_chunk(&self, index: ChunkIndex) -> Option<Entry> {
        self.chunks.lock().get(&index).cloned()
    }

    /// Notes that a chunk's object is durable.
    pub(super) fn finish_chunk(&self, index: ChunkIndex, entry: Entry) {
        self.chunks.lock().insert(index, entry);
    }

    /// Chunks that are finished.
    pub(super) fn finished_chunks(&self) -> usize {
        self.chunks.lock().len()
    }

    /// The map page that an earlier attempt finished.
    pub(super) fn finished_map_page(&self, number: u32) -> Option<FoldedPage> {
        self.map_pages.lock().get(&number).copied()
    }

    /// Notes that a map page is durable, or needs no object.
    pub(super) fn finish_map_page(&self, number: u32, folded: FoldedPage) {
        self.map_pages.lock().insert(number, folded);
    }

    /// Takes the names under which nothing stands that a further attempt uses.
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

    /// Memory for an object of so many bytes. What the system gives anew it must first clear, page by page.
    pub(crate) fn memory(&self, bytes: u64) -> Vec<u8> {
        let bytes = usize::try_from(bytes).expect("at most 33 MiB");
        self.memory.lock().pop().unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    /// Takes the memory of an object back, unless the store still holds on to it.
    pub(crate) fn reclaim(&self, object: Bytes) {
        if object.is_unique() {
            self.memory.lock().push(Vec::from(object));
        }
    }
}
