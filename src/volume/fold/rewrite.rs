//! Rewrites a chunk: its base, its overlaid blocks and the changes of a checkpoint become a new object.
//!
//! Owns the content of new chunk objects; which chunks are rewritten is decided in `mod`.

use bytes::Bytes;

use super::Folder;
use super::compose::{ALL_GOOD, Batch, ChangedBlock, Composition, Heat};
use super::made::Made;
use super::page::PageUpdate;
use super::plan::{Changes, Cover};
use crate::metrics::labels::ObjectKind;
use crate::mutant::{self, Mutant};
use crate::store::Condition;
use crate::volume::cache::fetch::{CacheKey, Unit};
use crate::volume::cache::held::Held;
use crate::volume::cache::moved::HeldBlock;
use crate::volume::error::Error;
use crate::volume::format::chunk::{ChunkWriter, object_bytes};
use crate::volume::format::geometry::{
    BLOCK_LEN, BLOCKS_PER_PAGE, ChunkIndex, PAGE_BYTES, PAGE_LEN, PageIndex,
};
use crate::volume::format::keys::{ObjectId, Slot};
use crate::volume::format::map::{Base, Damage, Entry, SECTOR_MASK_BYTES};
use crate::volume::state::piece::is_zero;
use crate::volume::state::segments::Committed;

/// Blocks of a page of a new object that are to stay in memory.
struct HotPage {
    page: PageIndex,
    held: Held,
    /// The changes that these blocks are in memory as, each with its block of the page.
    moved: Vec<(u32, ChangedBlock)>,
    /// Blocks of changes that are to leave memory.
    leaving: Vec<ChangedBlock>,
}

impl Folder {
    /// Makes the entry of a chunk at the commit `birth` from what lies below and the changes since, which are
    /// sorted by offset. Uploads the chunk's object. Returns `None` if the chunk is to become this volume's
    /// own, and not all of it can be read: its owner may still get it back.
    pub(super) async fn rewrite_chunk(
        &self,
        page: &PageUpdate,
        index: ChunkIndex,
        changes: &Changes,
        folding: &Committed,
        birth: Slot,
        made: &Made,
    ) -> Result<Option<Entry>, Error> {
        let shared = &self.shared;
        let old = page.entries.get(&index.slot()).cloned().unwrap_or_default();
        let birth = if changes.is_empty() { old.birth } else { Some(birth) };
        let mut entry = Entry { birth, allocated: old.allocated, lost: old.lost, ..Entry::default() };
        let start = shared.geometry.chunk_range(index).start;
        let mut batch = Batch::default();
        for number in (0..shared.geometry.pages_per_chunk()).map(PageIndex) {
            let page_start = start + number.offset();
            let cover = Cover::of(changes, &(page_start..(page_start + PAGE_BYTES).min(page.end)));
            if entry.lost.contains(number) && cover.bytes == 0 {
                continue;
            }
            entry.lost.remove(number);
            if cover.discards() {
                entry.allocated.remove(number);
                continue;
            }
            if !cover.all_holes {
                entry.allocated.insert(number);
            }
            let range = page_start..page_start + PAGE_BYTES;
            batch.add(shared, range, folding, |part| page.below(part));
        }
        let fetched = batch.fetch(shared, folding.slots.len()).await?;
        let (sealing, pages_per_chunk) = (shared.keys.sealing(), shared.geometry.pages_per_chunk());
        let id = shared.next_id();
        let id = if mutant::is(Mutant::NameReused) { ObjectId { k: 1, ..id } } else { id };
        let most = object_bytes(pages_per_chunk, u32::from(pages_per_chunk));
        let memory = shared.buffers().take(usize::try_from(most).expect("at most 33 MiB"));
        let mut writer = ChunkWriter::within(sealing, index, id, pages_per_chunk, memory);
        let (mut hot, mut bytes) = (Vec::new(), vec![0; PAGE_LEN]);
        let may_come_back = page.is_adopted && page.is_foreign(index.slot());
        for composition in &batch.compositions {
            let number = shared.geometry.page_at(composition.range.start);
            let good = composition.compose(&fetched, &mut bytes)?;
            if may_come_back && is_newly_lost(&old, number, &good) {
                return Ok(None);
            }
            if good != ALL_GOOD {
                entry.damage.push(Damage { page: number, good_sectors: good });
                entry.allocated.insert(number);
            } else if is_zero(&bytes) {
                continue;
            }
            writer.page(number, &bytes);
            hot.push(self.hot_page(number, composition, folding, &bytes));
        }
        drop(fetched);
        let stored = writer.stored();
        if !stored.is_empty() {
            let object = shared.buffers().lend(writer.finish());
            self.put_chunk(index, id, object, hot, made).await?;
            entry.base = Some(Base { origin: 0, id, stored });
        }
        if !entry.damage.is_empty() {
            tracing::error!(volume = %shared.keys.volume(), chunk = index.0, pages = entry.damage.len(),
                "sectors of a chunk were lost");
        }
        Ok(Some(entry))
    }

    /// Uploads a chunk object and caches those of its blocks that were in memory before.
    async fn put_chunk(
        &self,
        index: ChunkIndex,
        id: ObjectId,
        object: Bytes,
        hot: Vec<HotPage>,
        made: &Made,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        let key = made.note(shared.keys.chunk(index, id));
        shared.env.store.bulk.put(&key, object.clone(), Condition::Always).await?;
        shared.metrics.put_bytes.of(ObjectKind::Chunk).inc_by(object.len() as u64);
        for HotPage { page, held, moved, leaving } in hot {
            let page = if mutant::is(Mutant::NeighbourCached) { PageIndex(page.0 ^ 1) } else { page };
            let key = CacheKey { volume: shared.keys.volume(), unit: Unit::page(index, id, page) };
            shared.env.cache.insert(key, held).await;
            for (bit, change) in moved {
                change.moves(shared, HeldBlock { key, bit }).await;
            }
            for change in leaving {
                change.leaves(shared).await;
            }
        }
        Ok(())
    }

    /// Returns the blocks of a page that are to stay in memory, with the content that was composed.
    fn hot_page(
        &self,
        page: PageIndex,
        composed: &Composition,
        folding: &Committed,
        bytes: &[u8],
    ) -> HotPage {
        let newer = composed.newer(&self.shared);
        let (mut stays, mut moved, mut leaving) = (0, Vec::new(), Vec::new());
        for bit in 0..BLOCKS_PER_PAGE {
            match composed.heat_of(&self.shared, folding, bit, newer) {
                Heat::Cold => {}
                Heat::Warm => stays |= 1 << bit,
                Heat::Changed(change) => {
                    stays |= 1 << bit;
                    moved.push((bit, change));
                }
                Heat::Replaced(change) => leaving.push(change),
            }
        }
        HotPage { page, held: chosen(stays, bytes), moved, leaving }
    }
}

/// Whether sectors of a page are lost now that its chunk's entry does not mark as lost. `good` are the intact
/// ones.
fn is_newly_lost(entry: &Entry, page: PageIndex, good: &[u8; SECTOR_MASK_BYTES]) -> bool {
    let known = entry.damage_of(page).map_or(ALL_GOOD, |damage| damage.good_sectors);
    !entry.lost.contains(page) && known.iter().zip(good).any(|(known, good)| known & !good != 0)
}

/// Returns some of the blocks of a page.
fn chosen(mask: u16, page: &[u8]) -> Held {
    let blocks = page.chunks(BLOCK_LEN).enumerate().filter(|(block, _)| mask >> block & 1 == 1);
    let data = blocks.map(|(_, bytes)| bytes).collect::<Vec<_>>().concat();
    Held::new(mask, Bytes::from(data))
}
