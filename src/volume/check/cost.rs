//! What damage costs: the ranges of the volume that read from the objects in question.
//!
//! Resolves ranges as a read does, through the journal and the current root. Must not know how damage is
//! found. Invariant: a range that a newer change covers is not reported, since no read needs what lies
//! below it.

use std::collections::BTreeSet;
use std::ops::Range;

use super::context::{Context, Stop};
use super::journal::{Journal, Source};
use super::maps;
use super::report::Trouble;
use super::suspects::{Part, Suspects};
use crate::volume::cache::fetch::Fetch;
use crate::volume::format::geometry::{BLOCK_BYTES, BLOCKS_PER_PAGE, PAGE_BYTES, SECTOR_BYTES};
use crate::volume::format::interval::gaps;
use crate::volume::format::keys::{self, Keys, Parsed, Slot};
use crate::volume::format::map::Damage;
use crate::volume::format::root::{MapPageRef, Root};
use crate::volume::read::base::{BasePart, LoadedMapPage, resolve_page};

/// Finds the ranges that each of the objects costs.
pub(super) async fn find(
    context: &Context<'_>,
    root: &Root,
    journal: &Journal,
    suspects: &mut Suspects,
) -> Result<(), Stop> {
    if suspects.is_empty() {
        return Ok(());
    }
    suspects.uncover(|range| uncovered(journal, range.clone()));
    let mut cost = Cost { context, root, journal, suspects };
    cost.of_journal();
    cost.of_root().await
}

/// Returns the parts of a range that no record changes.
fn uncovered(journal: &Journal, range: Range<u64>) -> Vec<Range<u64>> {
    gaps(range.clone(), journal.changes.overlaps(range).map(|(part, _)| part))
}

struct Cost<'a> {
    context: &'a Context<'a>,
    root: &'a Root,
    journal: &'a Journal,
    suspects: &'a mut Suspects,
}

impl Cost<'_> {
    /// Adds a range to every trouble with an object, unless these bytes of the object are sound.
    fn add(&mut self, key: &str, bytes: &Range<u64>, range: Range<u64>) {
        for suspect in self.suspects.of(key) {
            if suspect.has(bytes) {
                suspect.ranges.add(range.clone());
            }
        }
    }

    fn add_whole(&mut self, key: &str, range: Range<u64>) {
        self.add(key, &(0..u64::MAX), range);
    }

    fn of_journal(&mut self) {
        for (range, source) in self.journal.changes.iter() {
            match source {
                Source::Zero => {}
                Source::Data { slot, at } => self.of_data(*slot, *at, range),
                Source::Chunk(index, id, stored) => {
                    let (keys, geometry) = (self.context.keys, self.root.geometry);
                    let key = keys.chunk(*index, *id);
                    for (start, part) in parts(range, PAGE_BYTES) {
                        let page = geometry.page_at(start);
                        if !stored.contains(page) {
                            continue;
                        }
                        let blocks = page.first_block()..page.first_block() + BLOCKS_PER_PAGE;
                        let chunk = (*index, *id, &**stored);
                        let page = Fetch::chunk(keys.sealing(), geometry.pages_per_chunk(), chunk, blocks);
                        for (block, part) in parts(part, BLOCK_BYTES) {
                            let block = u32::try_from(block % PAGE_BYTES / BLOCK_BYTES).expect("at most 15");
                            self.add(&key, &page.frame(block), part);
                        }
                    }
                }
            }
        }
    }

    /// A change counts as a whole, because its tag is over all of it. Adds what is left of it.
    fn of_data(&mut self, slot: Slot, at: u64, range: Range<u64>) {
        let key = self.context.keys.record(slot);
        let length = range.end - range.start;
        for suspect in self.suspects.of(&key) {
            let Part::Bytes(bad) = &suspect.part else { continue };
            if bad.iter().any(|bad| bad.start < at + length && at < bad.end) {
                suspect.ranges.add(range.clone());
            }
        }
    }

    async fn of_root(&mut self) -> Result<(), Stop> {
        let (mut numbers, mut is_any) = (BTreeSet::new(), false);
        for key in self.suspects.keys() {
            match keys::volume_of(key).and_then(|owner| Keys::new(owner).parse(key)) {
                Some(Parsed::MapPage(number, _) | Parsed::Overlay(number, _)) => {
                    numbers.insert(number);
                }
                Some(Parsed::Chunk(index, _)) => {
                    numbers.insert(index.map_page());
                }
                Some(Parsed::Pack(_)) => is_any = true,
                _ => {}
            }
        }
        for (number, reference) in &self.root.map_pages {
            if is_any || numbers.contains(number) {
                self.of_map_page(*number, *reference).await?;
            }
        }
        Ok(())
    }

    async fn of_map_page(&mut self, number: u32, reference: MapPageRef) -> Result<(), Stop> {
        let (root, geometry) = (self.root, self.root.geometry);
        let start = u64::from(number) * geometry.map_page_bytes();
        let end = (start + geometry.map_page_bytes()).min(root.size_bytes);
        let key = self.context.owner(root, reference.origin).map_page(number, reference.id);
        let Some(map) = maps::load(self.context, root, number, reference, self.suspects).await? else {
            for range in uncovered(self.journal, start..end) {
                self.add_whole(&key, range);
            }
            return Ok(());
        };
        for (_, chunk) in parts(start..end, geometry.chunk_bytes()) {
            for range in uncovered(self.journal, chunk) {
                self.of_range(&key, &map, range);
            }
        }
        Ok(())
    }

    /// Adds a range of one chunk that no record changes.
    fn of_range(&mut self, map_key: &str, map: &LoadedMapPage, range: Range<u64>) {
        let mut found = Vec::new();
        resolve_page(map, self.root.geometry, range, &mut found);
        for (range, part) in found {
            match part {
                BasePart::Zero { .. } => {}
                BasePart::Stored { fetch, at, damage } => self.of_stored(map_key, &fetch, at, damage, range),
                BasePart::Lost(error) => match &error {
                    crate::volume::error::Error::Lost { key, .. } => self.add_whole(key, range),
                    _ => self.add_lost(map_key, range),
                },
            }
        }
    }

    fn add_lost(&mut self, map_key: &str, range: Range<u64>) {
        if let Some(suspect) = self.suspects.of_trouble(map_key, Trouble::LostEarlier) {
            suspect.ranges.add(range);
        }
    }

    /// Adds a part of stored blocks, which begins `at` bytes after the start of the first of them.
    fn of_stored(
        &mut self,
        map_key: &str,
        fetch: &Fetch,
        at: u64,
        damage: Option<Damage>,
        range: Range<u64>,
    ) {
        let key = fetch.object_key();
        let first = range.start - at;
        for (block, part) in parts(range, BLOCK_BYTES) {
            let block = block / BLOCK_BYTES * BLOCK_BYTES;
            let frame = u32::try_from((block - first) / BLOCK_BYTES).expect("at most 15");
            self.add(&key, &fetch.frame(frame), part.clone());
            let Some(damage) = damage else { continue };
            for (sector, part) in parts(part, SECTOR_BYTES) {
                if !damage.is_good(sector % PAGE_BYTES / SECTOR_BYTES) {
                    self.add_lost(map_key, part);
                }
            }
        }
    }
}

/// Cuts a range at the multiples of `unit`. Returns each part with its start.
fn parts(range: Range<u64>, unit: u64) -> impl Iterator<Item = (u64, Range<u64>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = range.end.min((start / unit + 1) * unit);
        (start < range.end).then_some((start, start..at))
    })
}
