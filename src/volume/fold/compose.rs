//! Composes new content for a part of a page from what lies below it and the changes of a checkpoint.
//!
//! Owns the content of new blocks; which blocks are made is decided in `plan`. Invariant: each sector holds
//! what a read at the checkpoint's commit returns. A sector that cannot be read is marked as lost until it is
//! overwritten; it never becomes zeros.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::mutant::{self, Mutant};
use crate::volume::cache::fetch::{CacheKey, Check, Fetch, Unit};
use crate::volume::cache::moved::HeldBlock;
use crate::volume::error::Error;
use crate::volume::format::geometry::{BLOCK_BYTES, BLOCK_LEN, PAGE_BYTES, PAGE_LEN, SECTOR_LEN};
use crate::volume::format::interval::gaps;
use crate::volume::format::map::{Damage, SECTOR_MASK_BYTES};
use crate::volume::read::base::BasePart;
use crate::volume::read::reader_of;
use crate::volume::shared::Shared;
use crate::volume::state::piece::{InMemory, Piece, RecordRef};
use crate::volume::state::segments::Committed;
use crate::volume::store_exact::confirm_gone;

/// The mask of a page of which all sectors are intact.
pub(super) const ALL_GOOD: [u8; SECTOR_MASK_BYTES] = [0xff; SECTOR_MASK_BYTES];

/// Where the bytes of a part come from.
#[derive(Debug)]
enum Source {
    Zero,
    Ready(Bytes),
    /// The result of this fetch, from this byte on, and the damaged sectors of the page that it is from.
    Fetched(usize, usize, Option<Damage>),
    Lost,
}

/// A block or a page to be composed.
#[derive(Debug)]
pub(super) struct Composition {
    /// The bytes of the volume that it covers. They lie within one page.
    pub(super) range: Range<u64>,
    /// The parts, each with its place in the composition. Later parts lie over earlier ones.
    parts: Vec<(Range<usize>, Source)>,
    /// Which blocks of the page were in memory before. They stay there under their new place.
    pub(super) hot: u16,
}

/// A block that is all of one block of a change.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChangedBlock {
    /// The block of the change, in the cache.
    from: HeldBlock,
}

/// Whether a block was in memory before a fold composed it, and as what.
#[derive(Clone, Copy, Debug)]
pub(super) enum Heat {
    /// It was not, or only as a block of an older object that newer changes have replaced.
    Cold,
    /// In parts, or as a block of an older object, which others may still read.
    Warm,
    /// As a block of a change, which nobody will read once the checkpoint is published.
    Changed(ChangedBlock),
    /// As a block of a change that newer changes have replaced, so that only the fold reads it.
    Replaced(ChangedBlock),
}

impl ChangedBlock {
    /// Returns the block of a change that is the block at `start`, in bytes, if there is one.
    fn of(shared: &Shared, changes: &Committed, start: u64) -> Option<Self> {
        let (slot, named, bit) = changes.block_of_change(start)?;
        let key = CacheKey { volume: shared.keys.volume(), unit: Unit::Change(slot, named) };
        Some(Self { from: HeldBlock { key, bit } })
    }

    /// Makes reads find the block as `to`, which has the same bytes. Frees its memory.
    pub(super) async fn moves(self, shared: &Shared, to: HeldBlock) {
        shared.env.cache.moved(self.from, to).await;
    }

    /// Frees the memory of the block.
    pub(super) async fn leaves(self, shared: &Shared) {
        shared.env.cache.let_go([(self.from.key, 1 << self.from.bit)]).await;
    }
}

/// What a fetch found: one result for all of it, or one for each of its blocks.
pub(super) type Found = Vec<Result<Bytes, Error>>;

/// Compositions that are fetched together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) compositions: Vec<Composition>,
    fetches: Vec<Fetch>,
}

impl Batch {
    /// Adds the content of a range that lies within one page: the changes of a checkpoint, and between them
    /// what `below` returns for a part of the range.
    pub(super) fn add(
        &mut self,
        shared: &Shared,
        range: Range<u64>,
        changes: &Committed,
        below: impl Fn(Range<u64>) -> Vec<(Range<u64>, BasePart)>,
    ) {
        let mut composition = Composition { range: range.clone(), parts: Vec::new(), hot: 0 };
        let mut changed: Vec<(Range<u64>, Piece)> = changes.pieces.overlaps(range.clone()).collect();
        for gap in gaps(range, changed.iter().map(|(part, _)| part.clone())) {
            for (part, base) in below(gap) {
                let source = match base {
                    BasePart::Zero { .. } => Source::Zero,
                    BasePart::Lost(_) => Source::Lost,
                    BasePart::Stored { fetch, at, damage } => self.fetched(
                        shared,
                        &mut composition,
                        &part,
                        fetch,
                        (usize::try_from(at).expect("within a page"), damage),
                    ),
                };
                composition.push(&part, source);
            }
        }
        if mutant::is(Mutant::FoldEdgeLost) && changed.len() > 1 {
            changed.pop();
        }
        for (part, piece) in changed {
            // A chunk that a commit references is read page by page, as this range is.
            let length = part.end - part.start;
            let source = match piece.in_memory(length) {
                Some(InMemory::Zero) => Source::Zero,
                Some(InMemory::Bytes(bytes)) => {
                    composition.heat(&part);
                    Source::Ready(bytes)
                }
                None => {
                    let (fetch, at) = reader_of(shared).piece_fetch(&piece, length);
                    let (fetch, at) = match &piece {
                        // The fold needs the neighbours too, although for other chunks.
                        Piece::Data { record, change, at } if !shared.env.cache.contains(&fetch) => {
                            (Fetch::run(shared.keys.sealing(), record, *change), *at)
                        }
                        _ => (fetch, at),
                    };
                    let at = usize::try_from(at).expect("within a page");
                    self.fetched(shared, &mut composition, &part, fetch, (at, None))
                }
            };
            composition.push(&part, source);
        }
        self.compositions.push(composition);
    }

    fn fetched(
        &mut self,
        shared: &Shared,
        composition: &mut Composition,
        part: &Range<u64>,
        fetch: Fetch,
        (at, damage): (usize, Option<Damage>),
    ) -> Source {
        // Runs are only fetched by folds. They say nothing about what clients read.
        if !matches!(fetch.check, Check::Run(..)) && shared.env.cache.contains(&fetch) {
            composition.heat(part);
        }
        self.fetches.push(fetch);
        Source::Fetched(self.fetches.len() - 1, at, damage)
    }

    /// Returns the runs that follow the missing ones in their records, as far as the fold needs them and
    /// there is room. A fold goes through all of its records at once, in order of offset, so the room is
    /// divided among them.
    fn runs_ahead(&self, shared: &Shared, records: usize) -> Vec<Fetch> {
        let (cache, sealing) = (&shared.env.cache, shared.keys.sealing());
        let room = cache.most_run_bytes() / 2 / (records as u64).max(1);
        let is_missing = |record: &Arc<RecordRef>, change: &u32| {
            let length = u64::from(record.place(*change).length);
            !cache.contains(&Fetch::change(sealing, record, *change, 0..length).0)
        };
        let mut ahead: BTreeMap<CacheKey, Fetch> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for fetch in &self.fetches {
            let Check::Run(_, record, change) = &fetch.check else { continue };
            if !seen.insert(fetch.key) || cache.contains(fetch) {
                continue;
            }
            let mut bytes = u64::from(fetch.length);
            for number in record.run_of(*change) + 1.. {
                let left = record.left_in_run(number).unwrap_or_default();
                let Some(first) = left.into_iter().find(|change| is_missing(record, change)) else { break };
                let next = Fetch::run(sealing, record, first);
                bytes += u64::from(next.length);
                if bytes > room || cache.contains(&next) || ahead.insert(next.key, next).is_some() {
                    break;
                }
            }
        }
        ahead.into_values().collect()
    }

    /// Fetches what the compositions need; `records` is the number of records that are folded. Makes sure
    /// that objects that were not found are gone for good: their sectors are marked as lost, and what is left
    /// of the objects is deleted.
    pub(super) async fn fetch(&mut self, shared: &Shared, records: usize) -> Result<Vec<Found>, Error> {
        let ahead = self.runs_ahead(shared, records);
        let mut fetches = std::mem::take(&mut self.fetches);
        let wanted = fetches.len();
        fetches.extend(ahead);
        shared.check_serving()?;
        let store = &shared.env.store.bulk;
        let mut fetched = shared.env.cache.fetch_passing(store, &fetches).await;
        // Whatever was not found of the runs that follow is fetched again when it is needed.
        fetched.truncate(wanted);
        fetches.truncate(wanted);
        let mut all: Vec<Found> = fetched.into_iter().map(|found| vec![found]).collect();
        for (fetch, found) in fetches.iter().zip(&mut all) {
            // A damaged block must not take the blocks with it that were fetched together with it.
            if fetch.has_blocks() && matches!(found[0], Err(Error::Damaged { .. })) {
                let blocks: Vec<Fetch> =
                    (0..fetch.count).map(|block| fetch.narrowed(1 << (fetch.first + block))).collect();
                *found = shared.env.cache.fetch_passing(store, &blocks).await;
            }
        }
        let lost: BTreeSet<&str> = all
            .iter()
            .flatten()
            .filter_map(|result| match result {
                Err(Error::Lost { key, .. }) => Some(key.as_str()),
                _ => None,
            })
            .collect();
        for key in lost {
            if !mutant::is(Mutant::AbsenceBelieved) {
                confirm_lost(shared, key).await?;
            }
        }
        Ok(all)
    }
}

impl Composition {
    fn push(&mut self, part: &Range<u64>, source: Source) {
        let within = |at: u64| usize::try_from(at - self.range.start).expect("within a page");
        self.parts.push((within(part.start)..within(part.end), source));
    }

    /// Returns whether a block of its page was in memory, and as what. `bit` is the number of the block, and
    /// `newer` has the blocks of the page that newer changes than these have replaced.
    pub(super) fn heat_of(&self, shared: &Shared, changes: &Committed, bit: u32, newer: u16) -> Heat {
        if self.hot >> bit & 1 == 0 {
            return Heat::Cold;
        }
        let block = ChangedBlock::of(shared, changes, self.page() + u64::from(bit) * BLOCK_BYTES);
        match (block, newer >> bit & 1 == 1) {
            (None, false) => Heat::Warm,
            (None, true) => Heat::Cold,
            (Some(block), false) => Heat::Changed(block),
            (Some(block), true) => Heat::Replaced(block),
        }
    }

    /// Returns the blocks of its page that durable changes replace which are newer than the checkpoint.
    pub(super) fn newer(&self, shared: &Shared) -> u16 {
        shared.state.lock().committed.replaced_in_page(self.page())
    }

    /// The offset of its page, in bytes.
    fn page(&self) -> u64 {
        self.range.start / PAGE_BYTES * PAGE_BYTES
    }

    /// Records that a part was in memory.
    fn heat(&mut self, part: &Range<u64>) {
        let block = |at: u64| usize::try_from(at % PAGE_BYTES).expect("within a page") / BLOCK_LEN;
        for block in block(part.start)..=block(part.end - 1) {
            self.hot |= 1 << block;
        }
    }

    /// Writes the content to `bytes`, which is as long as the range. Returns the intact sectors of its page,
    /// of which those outside the range count as intact.
    pub(super) fn compose(
        &self,
        fetched: &[Found],
        bytes: &mut [u8],
    ) -> Result<[u8; SECTOR_MASK_BYTES], Error> {
        bytes.fill(0);
        let mut good = ALL_GOOD;
        let offset = usize::try_from(self.range.start % PAGE_BYTES).expect("within a page");
        for (within, source) in &self.parts {
            let part = &mut bytes[within.clone()];
            let in_page = offset + within.start..offset + within.end;
            match source {
                Source::Zero => {
                    part.fill(0);
                    mark(&mut good, in_page, |_| true);
                }
                Source::Ready(ready) => {
                    part.copy_from_slice(ready);
                    mark(&mut good, in_page, |_| true);
                }
                Source::Lost => mark(&mut good, in_page, |_| false),
                Source::Fetched(number, at, damage) => {
                    let is_good = |sector: usize| damage.is_none_or(|damage| damage.is_good(sector as u64));
                    copy_found(&fetched[*number], *at, part, (&mut good, in_page), is_good)?;
                }
            }
        }
        if mutant::is(Mutant::DamageForgotten) {
            good = ALL_GOOD;
        }
        Ok(good)
    }
}

/// Confirms that an object is gone for good, unless the volume stops meanwhile: whoever took it over may have
/// deleted the object.
pub(super) async fn confirm_lost(shared: &Shared, key: &str) -> Result<(), Error> {
    shared.while_serving(confirm_gone(shared.env.store.bulk.as_ref(), key)).await
}

/// Copies what a fetch found, from byte `at` on, to a part of a page. `marked` is the mask of the page and
/// the place of the part in it. Sectors that could not be fetched are marked as lost, and the others as
/// `is_good` says.
fn copy_found(
    found: &Found,
    at: usize,
    part: &mut [u8],
    marked: (&mut [u8; SECTOR_MASK_BYTES], Range<usize>),
    is_good: impl Fn(usize) -> bool,
) -> Result<(), Error> {
    let (good, in_page) = marked;
    let each = if found.len() == 1 { usize::MAX } else { BLOCK_LEN };
    let mut done = 0;
    while done < part.len() {
        let from = at + done;
        let length = (part.len() - done).min(each - from % each);
        let target = &mut part[done..done + length];
        let sectors = in_page.start + done..in_page.start + done + length;
        match &found[from / each] {
            Ok(bytes) => {
                target.copy_from_slice(&bytes[from % each..from % each + length]);
                mark(good, sectors, &is_good);
            }
            Err(error) if error.is_loss() => {
                target.fill(0);
                mark(good, sectors, |_| false);
            }
            Err(error) => return Err(error.clone()),
        }
        done += length;
    }
    Ok(())
}

/// Marks the sectors of a part of a page as intact or lost.
fn mark(good: &mut [u8; SECTOR_MASK_BYTES], in_page: Range<usize>, is_good: impl Fn(usize) -> bool) {
    assert!(in_page.end <= PAGE_LEN, "a part lies within one page");
    for sector in in_page.start / SECTOR_LEN..in_page.end / SECTOR_LEN {
        match is_good(sector) {
            true => good[sector / 8] |= 1 << (sector % 8),
            false => good[sector / 8] &= !(1 << (sector % 8)),
        }
    }
}
