//! The results of a fold over all its attempts.
//!
//! Owns the names of new objects and what is finished. It sends nothing itself. Invariants: a name is
//! recorded before an object is sent under it, so that the objects of a failed attempt can be deleted. What
//! one attempt finished is valid for the next, since all attempts fold the same changes into the same root.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use parking_lot::Mutex;

use super::packing::Packs;
use super::page::Put;
use super::patience::Patience;
use crate::volume::format::geometry::{BlockIndex, ChunkIndex};
use crate::volume::format::keys::{Keys, ObjectId, Slot};
use crate::volume::format::map::Entry;
use crate::volume::format::root::BlockCounts;

/// The content of a map page that a fold made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    /// The map page is stored in the object with this id.
    Object(ObjectId, BlockCounts),
    /// The map page needs no object: all its chunks are zeros allocated at this commit, or holes if `None`.
    Uniform(Option<Slot>),
}

/// The result of folding a map page.
#[derive(Clone, Debug)]
pub(super) struct FoldedPage {
    pub(super) content: Content,
    /// Frames of packs that are no longer in use, by pack.
    pub(super) released: BTreeMap<ObjectId, u32>,
    /// Keys of the overlays that were made for it.
    pub(super) overlay_keys: Vec<String>,
}

impl FoldedPage {
    /// A map page that needs no object.
    pub(super) fn uniform(zeroed: Option<Slot>, released: BTreeMap<ObjectId, u32>) -> Self {
        Self { content: Content::Uniform(zeroed), released, overlay_keys: Vec::new() }
    }
}

/// What a fold decided to do with the chunks of one map page, and how far it has come with packing their
/// blocks.
#[derive(Debug, Default)]
pub(super) struct Packing {
    /// The chunks to rewrite, with or without changes.
    pub(super) rewrites: BTreeSet<ChunkIndex>,
    /// The blocks to pack, in order. A block that is only moved has the pack that it is in.
    pub(super) blocks: Vec<(BlockIndex, Option<ObjectId>)>,
    /// How many of them are done.
    pub(super) done: usize,
    /// Where blocks were put, counted from the start of the map page.
    pub(super) puts: Vec<(Range<u32>, Put)>,
    /// The intact sectors of each block that is not intact or was composed, by block of the map page.
    pub(super) good: Vec<(u32, u8)>,
}

/// The background work that a fold decided on before its first attempt.
#[derive(Debug, Default)]
pub(super) struct Background {
    /// Bytes of background work that may still be done.
    pub(super) budget: u64,
    /// A chunk is consolidated from this number of overlaid blocks on.
    pub(super) consolidate_from: u64,
    /// Whether chunks of which nothing belongs to this volume are left as they are, unless they are changed.
    pub(super) spares_shared: bool,
    /// The first chunk that this fold may consolidate.
    pub(super) from: ChunkIndex,
    /// The first chunk that the next fold may consolidate.
    pub(super) cursor: ChunkIndex,
    /// Map pages of which this volume gets everything that belongs to other volumes, while the budget lasts.
    pub(super) adopts: BTreeSet<u32>,
    /// Blocks to move, with the packs that they are in, by map page.
    pub(super) moves: BTreeMap<u32, Vec<(BlockIndex, ObjectId)>>,
    /// The packs whose blocks are all moved.
    pub(super) emptied: Vec<ObjectId>,
}

/// The results of a fold: names of objects, recorded before they are sent; chunks, packs and map pages that
/// are finished.
#[derive(Debug, Default)]
pub(super) struct Made {
    names: Mutex<Vec<String>>,
    /// Names of objects that the next attempt uses too.
    kept: Mutex<BTreeSet<String>>,
    /// Chunks whose objects are durable, with their new entries.
    chunks: Mutex<BTreeMap<ChunkIndex, Entry>>,
    /// Map pages that are durable, or need no object.
    map_pages: Mutex<BTreeMap<u32, FoldedPage>>,
    /// The background work, once it is decided.
    pub(super) background: Mutex<Option<Background>>,
    /// The packs. Only one task fills them.
    pub(super) packs: tokio::sync::Mutex<Packs>,
    /// The map page whose blocks are being packed.
    pub(super) packing: tokio::sync::Mutex<Option<(u32, Packing)>>,
    /// How the fold lets others go first, unless somebody waits for it.
    pub(super) patience: Option<Patience>,
}

impl Made {
    /// The results of a fold that nobody waits for.
    pub(super) fn patient() -> Self {
        Self { patience: Some(Patience::default()), ..Self::default() }
    }

    /// Records a name and returns it.
    pub(crate) fn note(&self, key: String) -> String {
        self.names.lock().push(key.clone());
        key
    }

    /// Records that the next attempt uses an object too.
    fn keep(&self, key: String) {
        self.kept.lock().insert(key);
    }

    /// Records names of objects that all attempts use.
    pub(super) fn note_for_all(&self, keys: Vec<String>) {
        for key in keys {
            if self.kept.lock().insert(key.clone()) {
                self.names.lock().push(key);
            }
        }
    }

    /// Returns the entry of a chunk that an earlier attempt finished, if any.
    pub(super) fn finished_chunk(&self, index: ChunkIndex) -> Option<Entry> {
        self.chunks.lock().get(&index).cloned()
    }

    /// Records that a chunk's object is durable.
    pub(super) fn finish_chunk(&self, keys: Keys, index: ChunkIndex, entry: Entry) {
        if let Some(base) = entry.base {
            self.keep(keys.chunk(index, base.id));
        }
        self.chunks.lock().insert(index, entry);
    }

    /// Number of finished chunks.
    pub(super) fn finished_chunks(&self) -> usize {
        self.chunks.lock().len()
    }

    /// Returns the map page that an earlier attempt finished, if any.
    pub(super) fn finished_map_page(&self, number: u32) -> Option<FoldedPage> {
        self.map_pages.lock().get(&number).cloned()
    }

    /// Records that a map page is durable, or needs no object.
    pub(super) fn finish_map_page(&self, keys: Keys, number: u32, folded: FoldedPage) {
        if let Content::Object(id, _) = folded.content {
            self.keep(keys.map_page(number, id));
        }
        folded.overlay_keys.iter().for_each(|key| self.keep(key.clone()));
        self.map_pages.lock().insert(number, folded);
    }

    /// Removes and returns the names of objects that no further attempt uses.
    pub(super) fn take_unfinished(&self) -> Vec<String> {
        let kept = self.kept.lock();
        let mut names = self.names.lock();
        let (used, unfinished) =
            std::mem::take(&mut *names).into_iter().partition(|name| kept.contains(name));
        *names = used;
        unfinished
    }
}
