//! Rewriting a chunk: its base and the changes of a checkpoint become a new object.
//!
//! Invariant: a sector of the new object is what a read at the checkpoint's commit gives; one that cannot be read is
//! marked as lost and stays so until it is overwritten, never zeros.

use std::ops::Range;

use bytes::Bytes;

use super::base::{self, LoadedMapPage};
use super::cache::Fetch;
use super::chunk::ChunkWriter;
use super::error::Error;
use super::fold::Made;
use super::geometry::{ChunkIndex, PAGE_BYTES, PAGE_LEN, SECTOR_LEN};
use super::interval::Value;
use super::keys::{ObjectId, Slot};
use super::map::{Base, Damage, Entry, SECTOR_MASK_BYTES};
use super::page_set::PageSet;
use super::piece::{InMemory, Piece, is_zero};
use super::shared::Shared;
use crate::metrics::labels::ObjectKind;
use crate::mutant::{self, Mutant};
use crate::store::Condition;

/// A page of which so much changed is taken for one that is in use: a page for a block would crowd the cache out.
const HOT_LEN: usize = PAGE_LEN / 4;

/// A part of a page that changed: where in the page, and its bytes (or the fetch that gives them, from a byte of it).
struct Part {
    within: Range<usize>,
    bytes: PartBytes,
}

enum PartBytes {
    Ready(InMemory),
    Fetched(usize, usize),
}

/// How a page of the new object is made.
struct PagePlan {
    page: u16,
    /// The fetch of the base's page.
    base: Option<usize>,
    damage: Option<Damage>,
    parts: Vec<Part>,
}

/// A page of the new object.
struct Composed {
    bytes: Bytes,
    damage: Option<Damage>,
}

/// Whether a fetch failed because the bytes are lost, not because the store is away.
fn is_loss(error: &Error) -> bool {
    matches!(error, Error::Damaged { .. } | Error::Lost { .. })
}

impl Shared {
    /// Makes the entry of a chunk at the commit `birth` from its entry below and the changes since, in order of
    /// offset; uploads its object.
    pub(super) async fn rewrite_chunk(
        &self,
        map: Option<&LoadedMapPage>,
        index: ChunkIndex,
        old: &Entry,
        changes: Vec<(Range<u64>, Piece)>,
        birth: Slot,
        made: &Made,
    ) -> Result<Entry, Error> {
        let mut fetches = Vec::new();
        let mut allocated = old.allocated;
        let plans = self.plan_pages(map, index, old, &changes, &mut allocated, &mut fetches);
        let hot: Vec<bool> = fetches.iter().map(|fetch| self.env.cache.contains(&fetch.key)).collect();
        let fetched = self.env.cache.fetch_passing(&self.env.store, &fetches).await;
        let mut stored = PageSet::EMPTY;
        let mut damage = Vec::new();
        let mut pages = Vec::with_capacity(plans.len());
        for plan in plans {
            let is_hot = plan.base.is_some_and(|base| hot[base]) || plan.changed_len() >= HOT_LEN;
            let (page, below) = (plan.page, plan.base.and_then(|base| fetched[base].as_ref().ok()));
            let composed = plan.compose(&fetched)?;
            if composed.damage.is_none() && is_zero(&composed.bytes) {
                continue;
            }
            damage.extend(composed.damage);
            stored.insert(page);
            let cached = match mutant::is(Mutant::OldPageCached) {
                false => is_hot.then(|| composed.bytes.clone()),
                true => below.filter(|_| is_hot).cloned(),
            };
            pages.push((page, composed.bytes, cached));
        }
        let base = match stored.is_empty() {
            true => None,
            false => Some(self.put_chunk(index, stored, pages, made).await?),
        };
        for page in damage.iter().map(|damage: &Damage| damage.page) {
            tracing::error!(volume = %self.keys.volume(), chunk = index.0, page, "sectors of a page were lost");
            allocated.insert(page);
        }
        Ok(Entry { birth: Some(birth), base, allocated, packs: Vec::new(), damage })
    }

    async fn put_chunk(
        &self,
        index: ChunkIndex,
        stored: PageSet,
        pages: Vec<(u16, Bytes, Option<Bytes>)>,
        made: &Made,
    ) -> Result<Base, Error> {
        let id = self.next_id();
        let id = if mutant::is(Mutant::NameReused) { ObjectId { k: 1, ..id } } else { id };
        let pages_per_chunk = self.geometry.pages_per_chunk();
        let mut writer = ChunkWriter::new(self.keys.volume(), index, id, pages_per_chunk, stored);
        for (page, bytes, _) in &pages {
            writer.page(*page, bytes);
        }
        let object = writer.finish();
        let bytes = object.len() as u64;
        let key = made.note(self.keys.chunk(index, id));
        self.env.store.put(&key, object, Condition::Always).await?;
        self.metrics.put_bytes.of(ObjectKind::Chunk).inc_by(bytes);
        let chunk = super::piece::ChunkRef::durable(index, id, pages_per_chunk, stored);
        for (page, _, cached) in pages {
            // Pages that were in use under their old names stay so under the new one.
            if let Some(bytes) = cached {
                let key = self.chunk_fetch(&chunk, u64::from(page) * PAGE_BYTES).key;
                self.env.cache.insert(key, bytes);
            }
        }
        Ok(Base { origin: 0, id, stored })
    }

    /// What each page that the new object may store is made of; keeps `allocated` up to date.
    fn plan_pages(
        &self,
        map: Option<&LoadedMapPage>,
        index: ChunkIndex,
        old: &Entry,
        changes: &[(Range<u64>, Piece)],
        allocated: &mut PageSet,
        fetches: &mut Vec<Fetch>,
    ) -> Vec<PagePlan> {
        let chunk_start = self.geometry.chunk_range(index).start;
        let mut plans = Vec::new();
        for page in 0..self.geometry.pages_per_chunk() {
            let start = chunk_start + u64::from(page) * PAGE_BYTES;
            let page_range = start..start + PAGE_BYTES;
            let first = changes.partition_point(|(range, _)| range.end <= page_range.start);
            let touching = changes[first..].iter().take_while(|(range, _)| range.start < page_range.end);
            let (mut parts, mut covered, mut all_holes) = (Vec::new(), 0, true);
            for (range, piece) in touching {
                let part = range.start.max(page_range.start)..range.end.min(page_range.end);
                let piece = piece.advanced(part.start - range.start);
                covered += part.end - part.start;
                all_holes &= matches!(piece, Piece::Zero { hole: true });
                parts.push(self.part(&piece, &part, page_range.start, fetches));
            }
            let whole = covered == PAGE_BYTES;
            if whole && all_holes {
                allocated.remove(page);
                continue;
            }
            if !all_holes {
                allocated.insert(page);
            }
            let base = match map.and_then(|map| base::page_fetch(map, self.geometry, index, old, page)) {
                Some(fetch) if !whole => {
                    fetches.push(fetch);
                    Some(fetches.len() - 1)
                }
                _ => None,
            };
            let is_zero = base.is_none()
                && parts.iter().all(|part| matches!(part.bytes, PartBytes::Ready(InMemory::Zero)));
            if !is_zero {
                let damage = old.damage_of(page).copied().filter(|_| base.is_some());
                plans.push(PagePlan { page, base, damage, parts });
            }
        }
        plans
    }

    fn part(&self, piece: &Piece, range: &Range<u64>, page_start: u64, fetches: &mut Vec<Fetch>) -> Part {
        let within = |at: u64| usize::try_from(at - page_start).expect("within a page");
        let bytes = match piece.in_memory(range.end - range.start) {
            Some(memory) => PartBytes::Ready(memory),
            None => {
                let (fetch, at) = self.piece_fetch(piece);
                let number = match fetches.last() {
                    Some(last) if last.key == fetch.key => fetches.len() - 1,
                    _ => {
                        fetches.push(fetch);
                        fetches.len() - 1
                    }
                };
                PartBytes::Fetched(number, usize::try_from(at).expect("within a page"))
            }
        };
        Part { within: within(range.start)..within(range.end), bytes }
    }
}

impl PagePlan {
    /// Bytes of the page that changed.
    fn changed_len(&self) -> usize {
        self.parts.iter().map(|part| part.within.len()).sum()
    }

    fn compose(mut self, fetched: &[Result<Bytes, Error>]) -> Result<Composed, Error> {
        if mutant::is(Mutant::FoldEdgeLost) && self.parts.len() > 1 {
            self.parts.pop();
        }
        if self.parts.is_empty()
            && let (Some(base), None) = (self.base, self.damage)
            && let Ok(bytes) = &fetched[base]
        {
            return Ok(Composed { bytes: bytes.clone(), damage: None });
        }
        let mut page = vec![0; PAGE_LEN];
        let mut good = [0xff; SECTOR_MASK_BYTES];
        if let Some(base) = self.base {
            match &fetched[base] {
                Ok(bytes) => {
                    page.copy_from_slice(bytes);
                    if let Some(damage) = self.damage {
                        good = damage.good_sectors;
                    }
                }
                Err(error) if is_loss(error) => good = [0; SECTOR_MASK_BYTES],
                Err(error) => return Err(error.clone()),
            }
        }
        for part in self.parts {
            let length = part.within.len();
            let is_good = match part.bytes {
                PartBytes::Ready(InMemory::Zero) => {
                    page[part.within.clone()].fill(0);
                    true
                }
                PartBytes::Ready(InMemory::Bytes(bytes)) => {
                    page[part.within.clone()].copy_from_slice(&bytes);
                    true
                }
                PartBytes::Fetched(number, at) => match &fetched[number] {
                    Ok(bytes) => {
                        page[part.within.clone()].copy_from_slice(&bytes[at..at + length]);
                        true
                    }
                    Err(error) if is_loss(error) => {
                        page[part.within.clone()].fill(0);
                        false
                    }
                    Err(error) => return Err(error.clone()),
                },
            };
            mark(&mut good, &part.within, is_good);
        }
        if mutant::is(Mutant::DamageForgotten) {
            good = [0xff; SECTOR_MASK_BYTES];
        }
        let damage =
            (good != [0xff; SECTOR_MASK_BYTES]).then_some(Damage { page: self.page, good_sectors: good });
        Ok(Composed { bytes: Bytes::from(page), damage })
    }
}

fn mark(good: &mut [u8; SECTOR_MASK_BYTES], within: &Range<usize>, is_good: bool) {
    for sector in within.start / SECTOR_LEN..within.end / SECTOR_LEN {
        match is_good {
            true => good[sector / 8] |= 1 << (sector % 8),
            false => good[sector / 8] &= !(1 << (sector % 8)),
        }
    }
}
