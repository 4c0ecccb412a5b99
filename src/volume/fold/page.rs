//! A map page that a fold changes: its entries, its overlays and the counts of blocks, in memory.
//!
//! Owns what the new map page will say. It does no I/O. Invariant: the number of overlaid blocks of each
//! entry, the frames that are no longer in use and the count of hidden blocks follow from what the overlays
//! say, before and after each change.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::merge;
use super::origins::Origins;
use super::plan;
use crate::mutant::{self, Mutant};
use crate::volume::cache::index::LoadedOverlay;
use crate::volume::format::geometry::{BLOCKS_PER_PAGE, BlockIndex, ChunkIndex, Geometry, PageIndex};
use crate::volume::format::keys::{Keys, ObjectId, Slot};
use crate::volume::format::map::{ChunkSet, Entry, MapPage, OverlayPlace, OverlayRef};
use crate::volume::format::overlay::OverlayBuilder;
use crate::volume::format::page_set::PageSet;
use crate::volume::format::root::BlockCounts;
use crate::volume::read::base::{LoadedMapPage, Located, located};

/// Where a fold put blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// In successive frames of a pack of this volume.
    Frames(ObjectId, u16),
    /// Nowhere: they are zeros. Contains whether they are unallocated.
    Zero(bool),
}

/// A map page that a fold changes.
#[derive(Debug)]
pub(super) struct PageUpdate {
    pub(super) number: u32,
    pub(super) keys: Keys,
    pub(super) geometry: Geometry,
    /// The end of the volume for this fold, in bytes: of the larger one if the fold changes its size.
    pub(super) end: u64,
    /// The map page as it was, if it was an object that can be read.
    pub(super) map: Option<LoadedMapPage>,
    pub(super) entries: BTreeMap<u16, Entry>,
    /// The owners of the chunk objects that the entries reference.
    origins: Origins,
    /// The overlays, oldest first, with the chunks that they still apply to.
    pub(super) overlays: Vec<LoadedOverlay>,
    /// Blocks of chunk objects of this volume that overlays replace.
    hidden: u32,
    /// Frames of packs of this volume that are no longer in use, by pack.
    pub(super) released: BTreeMap<ObjectId, u32>,
    /// Whether the fold makes this volume's own what other volumes store of the map page.
    pub(super) is_adopted: bool,
}

impl PageUpdate {
    pub(super) fn new(
        number: u32,
        keys: Keys,
        (geometry, end): (Geometry, u64),
        map: Option<LoadedMapPage>,
        mut entries: BTreeMap<u16, Entry>,
        hidden: u32,
    ) -> Self {
        let mut overlays = map.as_ref().map(|map| map.view.overlays.clone()).unwrap_or_default();
        let mut origins = Origins::new(keys.volume());
        if let Some(map) = &map {
            origins.adopt(&mut entries, |origin| map.origin(origin).volume());
            if map.owner != keys {
                // A commit of this volume may have the slot of any commit of the other one.
                let births = entries.values_mut().filter_map(|entry| entry.birth.as_mut());
                births.for_each(|birth| *birth = Slot::START);
            }
            // An overlay within the map page belongs to whoever owns the map page.
            for overlay in overlays.iter_mut().filter(|overlay| overlay.id.is_none()) {
                if overlay.owner != keys {
                    *overlay = merge::adopted(keys, geometry, overlay);
                }
            }
        }
        Self {
            number,
            keys,
            geometry,
            end,
            map,
            entries,
            origins,
            overlays,
            hidden,
            released: BTreeMap::new(),
            is_adopted: false,
        }
    }

    /// Number of blocks of a chunk.
    pub(super) fn blocks_per_chunk(&self) -> u32 {
        u32::try_from(self.geometry.blocks_per_chunk()).expect("at most 8,192")
    }

    /// Converts blocks of the volume to blocks of this map page.
    pub(super) fn within(&self, blocks: &Range<BlockIndex>) -> Range<u32> {
        let first = u64::from(self.number) * u64::from(self.geometry.map_page_blocks());
        let block = |at: BlockIndex| u32::try_from(at.0 - first).expect("within the map page");
        block(blocks.start)..block(blocks.end)
    }

    /// The blocks of a chunk, counted from the start of the map page.
    fn chunk_blocks(&self, slot: u16) -> Range<u32> {
        let blocks = self.blocks_per_chunk();
        u32::from(slot) * blocks..(u32::from(slot) + 1) * blocks
    }

    /// Returns what the overlays say about some blocks of a chunk.
    pub(super) fn located(&self, slot: u16, blocks: Range<u32>) -> Vec<(Range<u32>, Located)> {
        located(&self.overlays, slot, blocks)
    }

    /// Records that overlays no longer decide about some blocks of a chunk.
    fn release(&mut self, slot: u16, blocks: Range<u32>) {
        let stored = self.entries.get(&slot).and_then(own_stored);
        for (run, located) in self.located(slot, blocks) {
            let count = run.end - run.start;
            self.hidden = self.hidden.saturating_sub(self.stored_blocks(stored.as_ref(), &run));
            if let Some(entry) = self.entries.get_mut(&slot) {
                entry.overlaid -= u16::try_from(count).expect("at most 8,192");
            }
            if let Located::Frames(owner, id, _) = located
                && owner == self.keys
            {
                *self.released.entry(id).or_default() += count;
            }
        }
    }

    /// Number of blocks of a run, within one chunk, that a chunk object stores.
    fn stored_blocks(&self, stored: Option<&PageSet>, run: &Range<u32>) -> u32 {
        let Some(stored) = stored else { return 0 };
        let within = |block: u32| block % self.blocks_per_chunk();
        let is_stored = |block: &u32| stored.contains(PageIndex::of_block(within(*block)));
        u32::try_from(run.clone().filter(is_stored).count()).expect("at most 8,192")
    }

    /// Makes the overlays say nothing about a chunk any more.
    pub(super) fn clear(&mut self, slot: u16) {
        self.release(slot, self.chunk_blocks(slot));
        for overlay in self.overlays.iter_mut().rev() {
            overlay.chunks.remove(slot);
            if mutant::is(Mutant::OverlaysUncleared) {
                break;
            }
        }
    }

    /// Replaces the entry of a chunk. The overlays say nothing about it any more.
    pub(super) fn replace(&mut self, slot: u16, entry: Option<Entry>) {
        self.clear(slot);
        match entry.filter(|entry| !entry.is_hole()) {
            Some(entry) => drop(self.entries.insert(slot, entry)),
            None => drop(self.entries.remove(&slot)),
        }
    }

    /// Adds an overlay that says where blocks were put. The runs are in order of block.
    pub(super) fn add_overlay(&mut self, puts: &[(Range<u32>, Put)]) {
        let mut builder = OverlayBuilder::new(self.keys.volume(), self.geometry);
        let mut chunks = ChunkSet::default();
        for (blocks, put) in puts {
            match put {
                Put::Frames(pack, frame) => {
                    builder.frames(blocks.clone(), self.keys.volume(), *pack, *frame);
                }
                Put::Zero(hole) => builder.zeros(blocks.clone(), *hole),
            }
            let slot = u16::try_from(blocks.start / self.blocks_per_chunk()).expect("less than 4,096");
            self.release(slot, blocks.clone());
            chunks.insert(slot);
            let entry = self.entries.entry(slot).or_default();
            entry.overlaid += u16::try_from(blocks.end - blocks.start).expect("at most 8,192");
            let stored = own_stored(entry);
            self.hidden += self.stored_blocks(stored.as_ref(), blocks);
        }
        if !builder.is_empty() {
            let overlay = Ok(Arc::new(builder.finish()));
            self.overlays.push(LoadedOverlay { overlay, owner: self.keys, id: None, chunks });
        }
    }

    /// Merges overlays until there are at most `most`.
    pub(super) fn merge_overlays(&mut self, most: usize) {
        self.overlays.retain(|overlay| !overlay.chunks.is_empty());
        while self.overlays.len() > most.max(1) {
            let Some(place) = merge::cheapest(&self.overlays) else { return };
            let newer = self.overlays.remove(place + 1);
            let merged = merge::merge(self.keys, self.geometry, &self.overlays[place], &newer);
            self.overlays[place] = merged;
        }
    }

    /// Gives up what lost overlays located.
    pub(super) fn lose_overlays(&mut self) {
        for place in (0..self.overlays.len()).rev() {
            if let Err(error) = &self.overlays[place].overlay {
                tracing::error!(volume = %self.keys.volume(), map_page = self.number,
                    "blocks were lost with the overlay that located them: {error}");
                self.lose(place);
            }
        }
    }

    /// Gives up the chunks that a lost overlay applies to, except the blocks that newer overlays have: what
    /// the lost one has of them is unknown, and so is what lies below it. Frames that older overlays
    /// located stay in use, because it is unknown which of them the lost one replaced. Their packs are left
    /// to a rewrite.
    fn lose(&mut self, place: usize) {
        let lost = self.overlays[place].chunks.clone();
        for slot in lost.iter() {
            let blocks = self.chunk_blocks(slot);
            let newer = located(&self.overlays[place + 1..], slot, blocks.clone());
            let entry = self.entries.entry(slot).or_default();
            entry.base = None;
            entry.overlaid = 0;
            let mut known = vec![0_u16; usize::from(self.geometry.pages_per_chunk())];
            for (run, _) in newer {
                entry.overlaid += u16::try_from(run.end - run.start).expect("at most 8,192");
                for block in run {
                    let within = block - blocks.start;
                    let page = usize::try_from(within / BLOCKS_PER_PAGE).expect("less than 512");
                    known[page] |= 1 << (within % BLOCKS_PER_PAGE);
                }
            }
            for (page, known) in (0..).map(PageIndex).zip(known) {
                entry.allocated.insert(page);
                if known == 0 {
                    entry.damage.retain(|damage| damage.page != page);
                    entry.lost.insert(page);
                    continue;
                }
                for block in (0..BLOCKS_PER_PAGE).filter(|block| known >> block & 1 == 0) {
                    plan::set_good(entry, page, block, 0);
                }
            }
            for overlay in &mut self.overlays[..=place] {
                overlay.chunks.remove(slot);
            }
        }
    }

    /// Makes the map page, with no other owners than it needs. Overlays without an id become part of it.
    pub(super) fn map_page(&self) -> MapPage {
        let mut origins = Origins::new(self.keys.volume());
        let mut entries = self.entries.clone();
        origins.adopt(&mut entries, |origin| self.origins.owner(origin));
        let references = self.overlays.iter().map(|loaded| {
            let place = match (loaded.id, &loaded.overlay) {
                (Some(id), _) => OverlayPlace::Object { origin: origins.number(loaded.owner.volume()), id },
                (None, Ok(overlay)) => OverlayPlace::Embedded(Arc::clone(overlay)),
                (None, Err(_)) => unreachable!("what is lost was given up"),
            };
            OverlayRef { place, chunks: loaded.chunks.clone() }
        });
        let references = references.collect();
        MapPage::new(self.number, self.geometry, origins.into_others(), references, &entries)
    }

    /// The counts of blocks of the map page.
    pub(super) fn counts(&self) -> BlockCounts {
        let stored = self.entries.values().filter_map(own_stored).map(|stored| stored.len());
        let overlaid = self.entries.values().map(|entry| u32::from(entry.overlaid)).sum();
        let stored = stored.sum::<u32>() * BLOCKS_PER_PAGE;
        // After a loss the count of hidden blocks is an estimate.
        BlockCounts { stored, overlaid, hidden: self.hidden.min(stored).min(overlaid) }
    }

    /// Whether nothing that is stored of a chunk belongs to this volume.
    pub(super) fn is_shared(&self, slot: u16) -> bool {
        self.entries.get(&slot).and_then(own_stored).is_none()
            && !self.located(slot, self.chunk_blocks(slot)).iter().any(|(_, located)| match located {
                Located::Frames(owner, ..) => *owner == self.keys,
                Located::Zero(_) | Located::Unknown(_) => false,
            })
    }

    /// Whether a read of a chunk needs an object of another volume. An overlay that applies to the chunk is
    /// read even if newer ones hide all that it locates.
    pub(super) fn is_foreign(&self, slot: u16) -> bool {
        let Some(entry) = self.entries.get(&slot) else { return false };
        let applies = |overlay: &LoadedOverlay| overlay.owner != self.keys && overlay.chunks.contains(slot);
        entry.base.is_some_and(|base| base.origin != 0)
            || self.overlays.iter().any(applies)
            || self.located(slot, self.chunk_blocks(slot)).iter().any(|(_, located)| match located {
                Located::Frames(owner, ..) => *owner != self.keys,
                Located::Zero(_) | Located::Unknown(_) => false,
            })
    }

    /// Returns the chunk of a block of the map page.
    pub(super) fn chunk_of(&self, block: u32) -> ChunkIndex {
        let slot = u16::try_from(block / self.blocks_per_chunk()).expect("less than 4,096");
        ChunkIndex::at(self.number, slot)
    }
}

/// What this volume itself stores of a chunk. The entries of a [`PageUpdate`] number its own objects 0.
fn own_stored(entry: &Entry) -> Option<PageSet> {
    entry.base.filter(|base| base.origin == 0).map(|base| base.stored)
}
