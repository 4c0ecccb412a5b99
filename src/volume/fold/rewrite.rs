//! Rewrites a chunk: its base and the changes of a checkpoint become a new object.
//!
//! Owns the content of new chunk objects; which chunks are rewritten is decided in `fold`. Invariant: each
//! sector of the new object holds what a read at the checkpoint's commit returns. A sector that cannot be
//! read is marked as lost until it is overwritten; it never becomes zeros.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;

use super::made::Made;
use crate::metrics::labels::ObjectKind;
use crate::mutant::{self, Mutant};
use crate::store::Condition;
use crate::volume::cache::fetch::Fetch;
use crate::volume::error::Error;
use crate::volume::format::chunk::{ChunkWriter, object_bytes};
use crate::volume::format::geometry::{ChunkIndex, PAGE_BYTES, PAGE_LEN, SECTOR_LEN};
use crate::volume::format::interval::Value;
use crate::volume::format::keys::{ObjectId, Slot};
use crate::volume::format::map::{Base, Damage, Entry, SECTOR_MASK_BYTES};
use crate::volume::read::base::{self, LoadedMapPage};
use crate::volume::shared::Shared;
use crate::volume::state::piece::{InMemory, Piece, is_zero};
use crate::volume::store_exact::confirm_gone;

/// A page counts as in use, and is cached, if at least this many of its bytes changed. Caching a whole page
/// for each changed block would evict the rest of the cache.
const HOT_LEN: usize = PAGE_LEN / 4;

/// A changed part of a page: its position in the page, and its bytes or the fetch that returns them (with an
/// offset).
struct Part {
    within: Range<usize>,
    bytes: PartBytes,
}

enum PartBytes {
    Ready(InMemory),
    Fetched(usize, usize),
}

/// What lies below the changes of a page.
#[derive(Clone, Copy)]
enum Below {
    /// No bytes that remain visible.
    Nothing,
    /// The bytes that the fetch of this index returns.
    Fetched(usize),
    /// Bytes that are lost.
    Lost,
}

/// The sources of one page of the new object.
struct PagePlan {
    page: u16,
    below: Below,
    damage: Option<Damage>,
    parts: Vec<Part>,
}

impl Shared {
    /// Makes the entry of a chunk at the commit `birth` from the entry below and the changes since, which are
    /// sorted by offset. Uploads the chunk's object.
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
        let (allocated, lost) = (old.allocated, old.lost);
        let mut entry = Entry { birth: Some(birth), allocated, lost, ..Entry::default() };
        let plans = self.plan_pages(map, index, old, &changes, &mut entry, &mut fetches);
        let in_use = |plan: &PagePlan| {
            let below = plan.fetch().is_some_and(|fetch| self.env.cache.contains(&fetches[fetch].key));
            below || plan.changed_len() >= HOT_LEN
        };
        let hot: Vec<bool> = plans.iter().map(in_use).collect();
        let fetched = self.env.cache.fetch_passing(&self.env.store.bulk, &fetches).await;
        self.confirm_losses(&fetched).await?;
        let (volume, pages_per_chunk) = (self.keys.volume(), self.geometry.pages_per_chunk());
        let id = self.next_id();
        let id = if mutant::is(Mutant::NameReused) { ObjectId { k: 1, ..id } } else { id };
        let memory = made.memory(object_bytes(pages_per_chunk, u32::from(pages_per_chunk)));
        let mut writer = ChunkWriter::within(volume, index, id, pages_per_chunk, memory);
        let mut cached = Vec::new();
        for (plan, is_hot) in plans.into_iter().zip(hot) {
            let (page, below) = (plan.page, plan.fetch().and_then(|fetch| fetched[fetch].as_ref().ok()));
            let stored = writer.compose(page, |bytes| {
                let start = bytes.len();
                let lost_sectors = plan.compose(&fetched, bytes)?;
                entry.damage.extend(lost_sectors);
                Ok::<_, Error>(lost_sectors.is_some() || !is_zero(&bytes[start..]))
            })?;
            if stored && is_hot {
                cached.push((page, below.filter(|_| mutant::is(Mutant::OldPageCached)).cloned()));
            }
        }
        drop(fetched);
        let stored = writer.stored();
        if !stored.is_empty() {
            let base = Base { origin: 0, id, stored };
            self.put_chunk(index, base, writer.finish(), cached, made).await?;
            entry.base = Some(base);
        }
        for page in entry.damage.iter().map(|damage| damage.page) {
            tracing::error!(volume = %self.keys.volume(), chunk = index.0, page,
                "sectors of a page were lost");
            entry.allocated.insert(page);
        }
        Ok(entry)
    }

    /// Makes sure that objects that were not found are gone for good: their sectors are then marked as lost,
    /// and what is left of the objects is deleted.
    async fn confirm_losses(&self, fetched: &[Result<Bytes, Error>]) -> Result<(), Error> {
        let lost: BTreeSet<&str> = fetched
            .iter()
            .filter_map(|result| match result {
                Err(Error::Lost { key, .. }) => Some(key.as_str()),
                _ => None,
            })
            .collect();
        for key in lost {
            if !mutant::is(Mutant::AbsenceBelieved) {
                confirm_gone(self.env.store.bulk.as_ref(), key).await?;
            }
        }
        Ok(())
    }

    /// Uploads a chunk object and caches those of its pages that are in use.
    async fn put_chunk(
        &self,
        index: ChunkIndex,
        base: Base,
        object: Bytes,
        pages: Vec<(u16, Option<Bytes>)>,
        made: &Made,
    ) -> Result<(), Error> {
        let key = made.note(self.keys.chunk(index, base.id));
        self.env.store.bulk.put(&key, object.clone(), Condition::Always).await?;
        self.metrics.put_bytes.of(ObjectKind::Chunk).inc_by(object.len() as u64);
        let pages_per_chunk = self.geometry.pages_per_chunk();
        let chunk =
            crate::volume::state::piece::ChunkRef::durable(index, base.id, pages_per_chunk, base.stored);
        for (page, instead) in pages {
            // Pages that were in use under their old names stay in use under the new one.
            let fetch = self.chunk_fetch(&chunk, u64::from(page) * PAGE_BYTES);
            let start = usize::try_from(fetch.at).expect("within the object");
            let bytes = instead.unwrap_or_else(|| Bytes::copy_from_slice(&object[start..start + PAGE_LEN]));
            self.env.cache.insert(fetch.key, bytes).await;
        }
        made.reclaim(object);
        Ok(())
    }

    /// Plans the sources of each page that the new object may store. Updates which pages the new entry counts
    /// as allocated and as lost.
    fn plan_pages(
        &self,
        map: Option<&LoadedMapPage>,
        index: ChunkIndex,
        old: &Entry,
        changes: &[(Range<u64>, Piece)],
        new: &mut Entry,
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
            let is_lost = new.lost.contains(page);
            if is_lost && parts.is_empty() {
                continue;
            }
            new.lost.remove(page);
            if whole && all_holes {
                new.allocated.remove(page);
                continue;
            }
            if !all_holes {
                new.allocated.insert(page);
            }
            let below = match map.and_then(|map| base::page_fetch(map, self.geometry, index, old, page)) {
                _ if whole => Below::Nothing,
                Some(fetch) => {
                    fetches.push(fetch);
                    Below::Fetched(fetches.len() - 1)
                }
                None if is_lost => Below::Lost,
                None => Below::Nothing,
            };
            let is_zero = matches!(below, Below::Nothing)
                && parts.iter().all(|part| matches!(part.bytes, PartBytes::Ready(InMemory::Zero)));
            if !is_zero {
                let is_kept = matches!(below, Below::Fetched(_));
                let damage = old.damage_of(page).copied().filter(|_| is_kept);
                plans.push(PagePlan { page, below, damage, parts });
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
                fetches.push(fetch);
                PartBytes::Fetched(fetches.len() - 1, usize::try_from(at).expect("within a page"))
            }
        };
        Part { within: within(range.start)..within(range.end), bytes }
    }
}

impl PagePlan {
    /// Index of the fetch that returns what is below the changes, if any.
    fn fetch(&self) -> Option<usize> {
        match self.below {
            Below::Fetched(fetch) => Some(fetch),
            Below::Nothing | Below::Lost => None,
        }
    }

    /// Number of bytes of the page that changed.
    fn changed_len(&self) -> usize {
        self.parts.iter().map(|part| part.within.len()).sum()
    }

    /// Appends the page to `bytes`. Returns which parts of it are lost.
    fn compose(
        mut self,
        fetched: &[Result<Bytes, Error>],
        bytes: &mut Vec<u8>,
    ) -> Result<Option<Damage>, Error> {
        if mutant::is(Mutant::FoldEdgeLost) && self.parts.len() > 1 {
            self.parts.pop();
        }
        let start = bytes.len();
        let mut good = [0xff; SECTOR_MASK_BYTES];
        match self.fetch().map(|fetch| &fetched[fetch]) {
            Some(Ok(below)) => {
                bytes.extend_from_slice(below);
                if let Some(damage) = self.damage {
                    good = damage.good_sectors;
                }
            }
            Some(Err(error)) if !error.is_loss() => return Err(error.clone()),
            _ => {
                bytes.resize(start + PAGE_LEN, 0);
                if !matches!(self.below, Below::Nothing) {
                    good = [0; SECTOR_MASK_BYTES];
                }
            }
        }
        let page = &mut bytes[start..];
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
                    Err(error) if error.is_loss() => {
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
        Ok(damage)
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
