//! Folds the changes of one map page: decides what becomes of each changed chunk, packs blocks, rewrites
//! chunks, and makes the new map page.
//!
//! Invariant: what one attempt decided and packed is what the next attempt uses, because the packs are shared
//! by all map pages of a fold.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use futures::stream::{self, StreamExt};

use super::compose::{Batch, confirm_lost};
use super::made::{Background, Content, FoldedPage, Made, Packing};
use super::page::{PageUpdate, Put};
use super::plan::{self, Changes, Fresh, FreshRun};
use super::{Folder, put_new, uniform};
use crate::metrics::labels::{ObjectKind, Work};
use crate::mutant::{self, Mutant};
use crate::volume::cache::fetch::{CacheKey, Unit};
use crate::volume::cache::index::MapView;
use crate::volume::error::Error;
use crate::volume::format::geometry::{
    BLOCK_BYTES, BLOCK_LEN, BLOCKS_PER_PAGE, BlockIndex, ChunkIndex, PAGE_BYTES, PageIndex,
};
use crate::volume::format::interval::Value;
use crate::volume::format::keys::{ObjectId, Slot};
use crate::volume::format::map::{Base, Entry};
use crate::volume::format::page_set::PageSet;
use crate::volume::format::root::Root;
use crate::volume::read::base::{self, BasePart, Located, Mapped};
use crate::volume::state::piece::{Piece, is_zero};
use crate::volume::state::segments::Committed;

/// Number of blocks that are composed together.
const BATCH_BLOCKS: usize = 256;

/// The changes of one map page that replace no whole chunk, by chunk.
type Touched = BTreeMap<ChunkIndex, Changes>;

impl PageUpdate {
    /// Returns what lies below the changes of a range within one page.
    pub(super) fn below(&self, range: Range<u64>) -> Vec<(Range<u64>, BasePart)> {
        let mut parts = Vec::new();
        match &self.map {
            Some(map) => base::resolve_page(map, self.geometry, range, &mut parts),
            None => {
                let index = self.geometry.chunk_at(range.start);
                let page = self.geometry.page_at(range.start);
                let is_lost = self.entries.get(&index.slot()).is_some_and(|entry| entry.lost.contains(page));
                let lost = || Error::lost(self.keys.map_pages());
                let part = if is_lost { BasePart::Lost(lost()) } else { BasePart::Zero { hole: true } };
                parts.push((range, part));
            }
        }
        parts
    }

    /// Whether anything is stored of a chunk, so that zeros must hide it.
    fn stores_any(&self, slot: u16) -> bool {
        self.entries.get(&slot).is_some_and(|entry| entry.base.is_some() || entry.overlaid > 0)
    }
}

impl Folder {
    pub(super) async fn fold_map_page(
        &self,
        old: &Root,
        folding: &Committed,
        birth: Slot,
        number: u32,
        made: &Made,
    ) -> Result<FoldedPage, Error> {
        let geometry = self.shared.geometry;
        let start = u64::from(number) * geometry.map_page_bytes();
        // What a volume that becomes smaller loses is folded too: as zeros.
        let end = folding.reach(old.size_bytes);
        let covers = start..(start + geometry.map_page_bytes()).min(end);
        let chunks = (covers.end - covers.start).div_ceil(geometry.chunk_bytes());
        let mut page = self.load(old, (number, end), chunks, birth).await?;
        page.is_adopted = made.background.lock().as_ref().is_some_and(|work| work.adopts.contains(&number));
        let changes: Changes = folding.pieces.overlaps(covers).collect();
        let touched = self.replace_whole_chunks(&mut page, changes, birth);
        let mut packing = made.packing.lock().await;
        if packing.as_ref().is_none_or(|(of, _)| *of != number) {
            *packing = Some((number, self.decide(&page, &touched, made)));
        }
        let (_, packing) = packing.as_mut().expect("just decided");
        let rewritten = self.rewrite_chunks(&page, packing, &touched, folding, birth, made).await?;
        pack_instead(packing, &rewritten, &touched);
        self.pack(&page, packing, folding, made).await?;
        let mut puts = packing.puts.clone();
        for (index, entry) in rewritten {
            page.replace(index.slot(), Some(entry));
        }
        for (index, changes) in &touched {
            if !packing.rewrites.contains(index) {
                self.update_packed(&mut page, *index, changes, &packing.good, birth, &mut puts);
            }
        }
        puts.sort_by_key(|(blocks, _)| blocks.start);
        page.add_overlay(&puts);
        self.finish(page, chunks, made).await
    }

    /// Loads a map page to be changed. What is lost for good is given up. `end` is the end of the volume for
    /// this fold.
    async fn load(
        &self,
        old: &Root,
        (number, end): (u32, u64),
        chunks: u64,
        birth: Slot,
    ) -> Result<PageUpdate, Error> {
        let (shared, geometry) = (&self.shared, self.shared.geometry);
        let mapped = base::map_page(&shared.env, shared.keys, geometry, old, number).await;
        let (map, entries) = match self.unless_lost(mapped, number).await? {
            None => (None, uniform::lost_entries(geometry, chunks, birth)),
            Some(Mapped::Holes) => (None, BTreeMap::new()),
            Some(Mapped::Zeroed(birth)) => (None, uniform::zeroed_entries(geometry, chunks, birth)),
            Some(Mapped::Page(map)) => {
                let entries = map.view.page.entries();
                (Some(map), entries)
            }
        };
        let hidden = match &map {
            // What the map page of another volume counts belongs to that volume.
            Some(_) => {
                let page = old.map_pages.get(&number).filter(|page| page.origin == 0);
                page.map_or(0, |page| page.counts.hidden)
            }
            None => 0,
        };
        for overlay in map.iter().flat_map(|map| &map.view.overlays) {
            if let Err(Error::Lost { key, .. }) = &overlay.overlay {
                confirm_lost(shared, key).await?;
            }
        }
        let mut page = PageUpdate::new(number, shared.keys, (geometry, end), map, entries, hidden);
        page.lose_overlays();
        Ok(page)
    }

    /// Returns what the root has for a map page, or `None` if the page is damaged or lost for good. The
    /// location of its chunks is then unknown, so the range that no change covers is lost, and the volume
    /// continues without it.
    async fn unless_lost(&self, mapped: Result<Mapped, Error>, number: u32) -> Result<Option<Mapped>, Error> {
        let error = match mapped {
            Err(error) if error.is_loss() => error,
            mapped => return mapped.map(Some),
        };
        if let Error::Lost { key, .. } = &error {
            confirm_lost(&self.shared, key).await?;
        }
        tracing::error!(volume = %self.shared.keys.volume(), map_page = number,
            "a map page was lost: {error}");
        Ok(None)
    }

    /// Applies the changes that replace whole chunks to the entries. Returns the rest, grouped by chunk.
    fn replace_whole_chunks(&self, page: &mut PageUpdate, changes: Changes, birth: Slot) -> Touched {
        let geometry = self.shared.geometry;
        let all_pages = PageSet::first(geometry.pages_per_chunk());
        let mut touched = Touched::new();
        for (range, piece) in changes {
            let mut at = range.start;
            while at < range.end {
                let index = geometry.chunk_at(at);
                let chunk = geometry.chunk_range(index);
                let part = at..range.end.min(chunk.end);
                // The last chunk of a volume may extend beyond its end, where nothing was ever written.
                let whole = part.start == chunk.start && part.end == chunk.end.min(page.end);
                at = part.end;
                let zeroed = Entry { birth: Some(birth), allocated: all_pages, ..Entry::default() };
                match &piece {
                    Piece::Zero { hole: true } if whole => page.replace(index.slot(), None),
                    Piece::Zero { hole: false } if whole => page.replace(index.slot(), Some(zeroed)),
                    Piece::Chunk(chunk, 0) if whole => {
                        let base = Base { origin: 0, id: chunk.id, stored: chunk.stored };
                        let base = (!chunk.stored.is_empty()).then_some(base);
                        page.replace(index.slot(), Some(Entry { base, ..zeroed }));
                    }
                    other => {
                        let piece = other.advanced(part.start - range.start);
                        touched.entry(index).or_default().push((part, piece));
                    }
                }
            }
        }
        touched
    }

    /// Decides which chunks are rewritten and which blocks are packed.
    fn decide(&self, page: &PageUpdate, touched: &Touched, made: &Made) -> Packing {
        let mut packing = Packing::default();
        let mut background = made.background.lock();
        let background = background.as_mut().expect("decided before the first map page");
        let is_ripe = |entry: &Entry| u64::from(entry.overlaid) >= background.consolidate_from;
        let is_spared = |slot: u16| background.spares_shared && page.is_shared(slot);
        let is_adopted = |slot: u16| page.is_adopted && page.is_foreign(slot);
        let is_due = |slot: u16, entry: &Entry| is_ripe(entry) && !is_spared(slot) || is_adopted(slot);
        let ripe = page.entries.iter().filter(|(slot, entry)| is_due(**slot, entry));
        let ripe = ripe.map(|(slot, _)| ChunkIndex::at(page.number, *slot));
        let candidates: BTreeSet<ChunkIndex> = touched.keys().copied().chain(ripe).collect();
        let mut fresh: Vec<FreshRun> = Vec::new();
        for index in candidates {
            let runs = touched.get(&index).map(plan::fresh_runs).unwrap_or_default();
            if self.is_rewritten(page, index, &runs, background) {
                packing.rewrites.insert(index);
            } else {
                fresh.extend(runs);
            }
        }
        packing.blocks.extend(to_pack(&fresh));
        for (block, pack) in background.moves.get(&page.number).cloned().unwrap_or_default() {
            let blocks = page.within(&block.alone());
            let index = page.chunk_of(blocks.start);
            let at = fresh.partition_point(|(run, _)| run.end <= block);
            let is_fresh = fresh.get(at).is_some_and(|(run, _)| run.start <= block);
            let stays = packing.rewrites.contains(&index) || is_fresh;
            if !stays && is_in(page, index.slot(), blocks, pack) {
                packing.blocks.push((block, Some(pack)));
            }
        }
        packing.blocks.sort_by_key(|(block, _)| *block);
        packing
    }

    /// Whether a chunk is rewritten instead of packing its changed blocks.
    fn is_rewritten(
        &self,
        page: &PageUpdate,
        index: ChunkIndex,
        runs: &[FreshRun],
        background: &mut Background,
    ) -> bool {
        let blocks_per_chunk = self.shared.geometry.blocks_per_chunk();
        let data = plan::data_blocks(runs);
        if data * 2 >= blocks_per_chunk {
            return true;
        }
        let mut overlaid = page.entries.get(&index.slot()).map_or(0, |entry| u64::from(entry.overlaid));
        for (run, _) in runs {
            let located = page.located(index.slot(), page.within(run));
            let known: u32 = located.iter().map(|(run, _)| run.end - run.start).sum();
            overlaid += run.end.0 - run.start.0 - u64::from(known);
        }
        let is_adopted = page.is_adopted && page.is_foreign(index.slot());
        if !is_adopted && (overlaid < background.consolidate_from || index < background.from) {
            return false;
        }
        let cost = (blocks_per_chunk - data) * BLOCK_BYTES;
        match background.budget.checked_sub(cost) {
            Some(left) => {
                background.budget = left;
                let work = if is_adopted { Work::Adopt } else { Work::Consolidate };
                self.shared.metrics.background_bytes.of(work).inc_by(cost);
                background.cursor = ChunkIndex::default();
                true
            }
            None => {
                // The next checkpoint goes on here.
                background.budget = 0;
                background.cursor = index;
                background.from = ChunkIndex(u32::MAX);
                false
            }
        }
    }

    async fn rewrite_chunks(
        &self,
        page: &PageUpdate,
        packing: &Packing,
        touched: &Touched,
        folding: &Committed,
        birth: Slot,
        made: &Made,
    ) -> Result<Vec<(ChunkIndex, Entry)>, Error> {
        let shared = &self.shared;
        let nothing = Changes::new();
        let mut jobs = Vec::with_capacity(packing.rewrites.len());
        for index in &packing.rewrites {
            let changes = touched.get(index).unwrap_or(&nothing);
            jobs.push(self.rewrite(page, *index, changes, folding, birth, made));
        }
        let parallel = shared.options.fold_bytes / (2 * shared.geometry.chunk_bytes());
        let parallel = usize::try_from(parallel).unwrap_or(1).max(1);
        // Waits for all, even if one fails: a request in flight could take effect after its object was
        // deleted.
        let rewritten: Vec<Result<Option<(ChunkIndex, Entry)>, Error>> =
            stream::iter(jobs).buffer_unordered(parallel).collect().await;
        rewritten.into_iter().filter_map(Result::transpose).collect()
    }

    /// Rewrites a chunk, unless an earlier attempt did. Returns `None` if the chunk stays as it is.
    async fn rewrite(
        &self,
        page: &PageUpdate,
        index: ChunkIndex,
        changes: &Changes,
        folding: &Committed,
        birth: Slot,
        made: &Made,
    ) -> Result<Option<(ChunkIndex, Entry)>, Error> {
        if let Some(entry) = made.finished_chunk(index) {
            return Ok(Some((index, entry)));
        }
        let _step = self.step(made).await;
        let rewritten = self.rewrite_chunk(page, index, changes, folding, birth, made).await?;
        let Some(entry) = rewritten else { return Ok(None) };
        made.finish_chunk(self.shared.keys, index, entry.clone());
        Ok(Some((index, entry)))
    }

    /// Packs the blocks that were decided on, from where the last attempt stopped.
    async fn pack(
        &self,
        page: &PageUpdate,
        packing: &mut Packing,
        folding: &Committed,
        made: &Made,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        let mut packs = made.packs.lock().await;
        let mut bytes = vec![0; BATCH_BLOCKS.min(packing.blocks.len()) * BLOCK_LEN];
        loop {
            let _step = self.sending_step(&mut packs, made).await?;
            let end = packing.blocks.len().min(packing.done + BATCH_BLOCKS);
            let jobs = &packing.blocks[packing.done..end];
            if jobs.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::default();
            for (block, _) in jobs {
                let range = block.range();
                let changes = if mutant::is(Mutant::MoveWins)
                    && let Some(background) = &*made.background.lock()
                    && let Some(moves) = background.moves.get(&page.number)
                    && moves.iter().any(|(moved, _)| moved == block)
                {
                    &Committed::default()
                } else {
                    folding
                };
                batch.add(shared, range, changes, |part| page.below(part));
            }
            let fetched = batch.fetch(shared, folding.slots.len()).await?;
            let mut composed = Vec::with_capacity(jobs.len());
            for (composition, bytes) in batch.compositions.iter().zip(bytes.chunks_mut(BLOCK_LEN)) {
                let block = BlockIndex::at(composition.range.start % PAGE_BYTES).0;
                let good = composition.compose(&fetched, bytes)?[usize::try_from(block).expect("of 16")];
                let bit = u32::try_from(block).expect("of 16");
                composed.push((good, composition.heat_of(shared, folding, bit, composition.newer(shared))));
            }
            // From here on nothing fails, so that each block is appended once.
            for (((block, moved), bytes), (good, heat)) in
                jobs.iter().zip(bytes.chunks(BLOCK_LEN)).zip(composed)
            {
                let blocks = page.within(&block.alone());
                let at = blocks.start;
                if let Some(pack) = moved
                    && good != self.good_before(page, at)
                {
                    tracing::warn!(volume = %shared.keys.volume(), block = block.0,
                        "a block cannot be moved from its pack");
                    let mut background = made.background.lock();
                    background.as_mut().expect("decided").emptied.retain(|emptied| emptied != pack);
                    continue;
                }
                packing.good.push((at, good));
                let put = match is_zero(bytes) && good == 0xff {
                    true => Put::Zero(false),
                    false => {
                        if moved.is_some() {
                            shared.metrics.background_bytes.of(Work::Relocate).inc_by(BLOCK_BYTES);
                        }
                        let packed = packs.append(shared, *block, bytes, heat).await;
                        Put::Frames(packed.pack, packed.frame)
                    }
                };
                packing.puts.push((blocks, put));
            }
            packing.done = end;
        }
    }

    /// The intact sectors of a block before the fold.
    fn good_before(&self, page: &PageUpdate, block: u32) -> u8 {
        let within = block % page.blocks_per_chunk();
        let number = PageIndex::of_block(within);
        let entry = page.entries.get(&page.chunk_of(block).slot());
        entry.map_or(0xff, |entry| plan::good(entry, number, within % BLOCKS_PER_PAGE))
    }

    /// Updates the entry of a chunk whose changed blocks are packed, and adds its zeros to `puts`.
    fn update_packed(
        &self,
        page: &mut PageUpdate,
        index: ChunkIndex,
        changes: &Changes,
        good: &[(u32, u8)],
        birth: Slot,
        puts: &mut Vec<(Range<u32>, Put)>,
    ) {
        let slot = index.slot();
        let mut entry = page.entries.get(&slot).cloned().unwrap_or_default();
        let Range { start, end } = self.shared.geometry.chunk_range(index);
        plan::update_pages(&mut entry, changes, &(start..end.min(page.end)));
        entry.birth = Some(birth);
        let blocks_per_chunk = page.blocks_per_chunk();
        let place = |block: u32| {
            let within = block % blocks_per_chunk;
            (PageIndex::of_block(within), within % BLOCKS_PER_PAGE)
        };
        let mut zeros = Vec::new();
        for (run, fresh) in plan::fresh_runs(changes) {
            let run = page.within(&run);
            if let Fresh::Zero(hole) = fresh {
                let damaged = run.clone().filter(|_| !entry.damage.is_empty()).collect::<Vec<u32>>();
                for (number, block) in damaged.into_iter().map(place) {
                    plan::set_good(&mut entry, number, block, 0xff);
                }
                zeros.push((run, Put::Zero(hole)));
            }
        }
        let chunk = u32::from(slot) * blocks_per_chunk..(u32::from(slot) + 1) * blocks_per_chunk;
        let first = good.partition_point(|(block, _)| *block < chunk.start);
        for (block, good) in good[first..].iter().take_while(|(block, _)| *block < chunk.end) {
            let (number, block) = place(*block);
            plan::set_good(&mut entry, number, block, *good);
        }
        if entry.allocated.is_empty() && entry.lost.is_empty() && entry.damage.is_empty() {
            // All of it is unallocated.
            puts.retain(|(blocks, _)| !chunk.contains(&blocks.start));
            return page.replace(slot, None);
        }
        let of_chunk = |blocks: &Range<u32>| chunk.contains(&blocks.start);
        let is_packed =
            |(blocks, put): &(Range<u32>, Put)| of_chunk(blocks) && matches!(put, Put::Frames(..));
        let hides = page.stores_any(slot) || puts.iter().any(is_packed);
        page.entries.insert(slot, entry);
        match hides {
            true => puts.extend(zeros),
            // Without an overlay the blocks of the chunk are zeros too.
            false => puts.retain(|(blocks, _)| !of_chunk(blocks)),
        }
    }

    /// Makes the new map page.
    async fn finish(&self, mut page: PageUpdate, chunks: u64, made: &Made) -> Result<FoldedPage, Error> {
        let shared = &self.shared;
        page.merge_overlays(shared.options.overlays);
        if let Some(birth) = uniform::zeroed_throughout(shared.geometry, chunks, &page.entries) {
            return Ok(FoldedPage::uniform(Some(birth), page.released));
        }
        if page.entries.values().all(Entry::is_hole) {
            return Ok(FoldedPage::uniform(None, page.released));
        }
        let counts = page.counts();
        let mut overlay_keys = Vec::new();
        for loaded in &mut page.overlays {
            let overlay = loaded.overlay.as_ref().expect("what is lost was given up");
            if loaded.id.is_none() && overlay.encoded_bytes() as u64 > shared.options.embed_bytes {
                let id = shared.next_id();
                let key = made.note(shared.keys.overlay(page.number, id));
                let bytes = overlay.encode(shared.keys.sealing(), page.number, id);
                put_new(shared, ObjectKind::Map, key.clone(), bytes).await?;
                overlay_keys.push(key);
                loaded.id = Some(id);
            }
        }
        let map_page = page.map_page();
        let id = shared.next_id();
        let volume = shared.keys.volume();
        let key = shared.keys.map_page(page.number, id);
        put_new(shared, ObjectKind::Map, made.note(key), map_page.encode(shared.keys.sealing(), id)).await?;
        let cache_key = CacheKey { volume, unit: Unit::Map(page.number, id) };
        let view = Arc::new(MapView { page: map_page, overlays: page.overlays });
        shared.env.cache.insert_map_view(cache_key, view).await;
        Ok(FoldedPage { content: Content::Object(id, counts), released: page.released, overlay_keys })
    }
}

/// Returns the blocks of `runs` that have to be composed. None of them is in a pack.
fn to_pack(runs: &[FreshRun]) -> impl Iterator<Item = (BlockIndex, Option<ObjectId>)> {
    let data = runs.iter().filter(|(_, kind)| *kind == Fresh::Data);
    data.flat_map(|(run, _)| (run.start.0..run.end.0).map(|block| (BlockIndex(block), None)))
}

/// Packs the changed blocks of the chunks that were not rewritten although that was decided. A later attempt
/// finds all changed chunks either finished or packed, so it adds nothing.
fn pack_instead(packing: &mut Packing, rewritten: &[(ChunkIndex, Entry)], touched: &Touched) {
    let done: BTreeSet<ChunkIndex> = rewritten.iter().map(|(index, _)| *index).collect();
    for (index, changes) in touched.iter().filter(|(index, _)| !done.contains(index)) {
        if packing.rewrites.remove(index) {
            assert_eq!(packing.done, 0, "no block is packed before all chunks are rewritten or left");
            packing.blocks.extend(to_pack(&plan::fresh_runs(changes)));
            packing.blocks.sort_by_key(|(block, _)| *block);
        }
    }
}

/// Whether a block is in use in a pack of this volume.
fn is_in(page: &PageUpdate, slot: u16, blocks: Range<u32>, pack: ObjectId) -> bool {
    let located = page.located(slot, blocks);
    matches!(&located[..], [(_, Located::Frames(owner, id, _))] if *owner == page.keys && *id == pack)
}
