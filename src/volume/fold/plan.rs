//! What the changes of a checkpoint do to the blocks and pages of one chunk.
//!
//! Pure functions, without I/O and state. Invariant: a block counts as zeros only if the changes zero all
//! of it.

use std::ops::Range;

use crate::mutant::{self, Mutant};
use crate::volume::format::geometry::{BLOCK_BYTES, BLOCKS_PER_PAGE, BlockIndex, PAGE_BYTES, PageIndex};
use crate::volume::format::map::{Damage, Entry, SECTOR_MASK_BYTES};
use crate::volume::state::piece::Piece;

/// The changes of one chunk, in order of offset.
pub(super) type Changes = Vec<(Range<u64>, Piece)>;

/// What becomes of a run of changed blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fresh {
    /// All of it is zeros. Contains whether it is unallocated.
    Zero(bool),
    /// It has to be composed.
    Data,
}

/// Successive blocks of the volume, and what becomes of them.
pub(super) type FreshRun = (Range<BlockIndex>, Fresh);

/// Returns the blocks that changes touch, in order.
pub(super) fn fresh_runs(changes: &Changes) -> Vec<FreshRun> {
    let mut runs: Vec<FreshRun> = Vec::new();
    for (range, piece) in changes {
        let whole = BlockIndex(range.start.div_ceil(BLOCK_BYTES))..BlockIndex::at(range.end);
        let touched = BlockIndex::touched_by(range);
        let whole = match piece {
            Piece::Zero { .. } if mutant::is(Mutant::ZeroTakesBlock) => touched.clone(),
            _ => whole,
        };
        let inside = match piece {
            Piece::Zero { hole } => Fresh::Zero(*hole),
            _ => Fresh::Data,
        };
        if whole.start >= whole.end {
            push(&mut runs, touched, Fresh::Data);
            continue;
        }
        push(&mut runs, touched.start..whole.start, Fresh::Data);
        push(&mut runs, whole.clone(), inside);
        push(&mut runs, whole.end..touched.end, Fresh::Data);
    }
    runs
}

/// Appends a run, joined to the last one where they touch or share a block that both change in part.
fn push(runs: &mut Vec<FreshRun>, mut blocks: Range<BlockIndex>, fresh: Fresh) {
    if let Some((last, kind)) = runs.last_mut() {
        blocks.start = blocks.start.max(last.end);
        if *kind == fresh && last.end == blocks.start && !blocks.is_empty() {
            last.end = blocks.end;
            return;
        }
    }
    if !blocks.is_empty() {
        runs.push((blocks, fresh));
    }
}

/// Number of blocks in `runs` that have to be composed.
pub(super) fn data_blocks(runs: &[FreshRun]) -> u64 {
    runs.iter().filter(|(_, fresh)| *fresh == Fresh::Data).map(|(run, _)| run.end.0 - run.start.0).sum()
}

/// How changes cover one page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cover {
    /// Number of changed bytes.
    pub(super) bytes: u64,
    /// Whether all changes make their range unallocated.
    pub(super) all_holes: bool,
}

impl Cover {
    /// Returns how changes cover a page. `page` is the part of it within the volume. The part beyond the end
    /// of the volume counts as changed.
    pub(super) fn of(changes: &Changes, page: &Range<u64>) -> Self {
        let first = changes.partition_point(|(range, _)| range.end <= page.start);
        let touching = changes[first..].iter().take_while(|(range, _)| range.start < page.end);
        let (mut bytes, mut all_holes) = (0, true);
        for (range, piece) in touching {
            bytes += range.end.min(page.end) - range.start.max(page.start);
            all_holes &= matches!(piece, Piece::Zero { hole: true });
        }
        if bytes > 0 {
            bytes += PAGE_BYTES - (page.end - page.start);
        }
        Self { bytes, all_holes }
    }

    pub(super) fn is_whole(self) -> bool {
        self.bytes == PAGE_BYTES
    }

    /// Whether the page is unallocated after the changes.
    pub(super) fn discards(self) -> bool {
        self.is_whole() && self.all_holes
    }
}

/// Updates which pages of an entry are allocated, lost and damaged, for changes whose blocks are packed.
/// The blocks that the changes touch are marked one by one, with [`set_good`]. `chunk` is the part of the
/// chunk within the volume.
pub(super) fn update_pages(entry: &mut Entry, changes: &Changes, chunk: &Range<u64>) {
    let mut next = 0;
    for (range, _) in changes {
        let page = |at: u64| PageIndex::at(at - chunk.start).0;
        for page in (page(range.start).max(next)..=page(range.end - 1)).map(PageIndex) {
            next = page.0 + 1;
            let start = chunk.start + page.offset();
            let cover = Cover::of(changes, &(start..(start + PAGE_BYTES).min(chunk.end)));
            if cover.discards() {
                entry.allocated.remove(page);
            } else if !cover.all_holes {
                entry.allocated.insert(page);
            }
            if entry.lost.contains(page) {
                entry.lost.remove(page);
                if !cover.is_whole() {
                    entry.allocated.insert(page);
                    for block in 0..BLOCKS_PER_PAGE {
                        set_good(entry, page, block, 0);
                    }
                }
            }
        }
    }
}

/// Sets which sectors of a block are intact: one bit for each of its eight.
pub(super) fn set_good(entry: &mut Entry, page: PageIndex, block: u32, good: u8) {
    let place = entry.damage.partition_point(|damage| damage.page < page);
    if entry.damage.get(place).is_none_or(|damage| damage.page != page) {
        if good == 0xff {
            return;
        }
        entry.damage.insert(place, Damage { page, good_sectors: [0xff; SECTOR_MASK_BYTES] });
    }
    let damage = &mut entry.damage[place];
    damage.good_sectors[usize::try_from(block).expect("less than 16")] = good;
    if damage.good_sectors == [0xff; SECTOR_MASK_BYTES] {
        entry.damage.remove(place);
    }
}

/// Returns which sectors of a block are intact: one bit for each of its eight.
pub(super) fn good(entry: &Entry, page: PageIndex, block: u32) -> u8 {
    let block = usize::try_from(block).expect("less than 16");
    entry.damage_of(page).map_or(0xff, |damage| damage.good_sectors[block])
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn blocks_are_zeros_only_where_all_of_them_is_zeroed() {
        let zero = |range: Range<u64>, hole| (range, Piece::Zero { hole });
        let data = |range: Range<u64>| (range, Piece::Block(Bytes::new()));
        let changes = vec![
            zero(512..3 * 4096 + 512, true),
            data(3 * 4096 + 512..3 * 4096 + 1024),
            data(4 * 4096..5 * 4096),
            zero(5 * 4096..6 * 4096, false),
            zero(6 * 4096 + 512..6 * 4096 + 1024, false),
        ];
        let runs = fresh_runs(&changes);
        let expected = [
            (0..1, Fresh::Data),
            (1..3, Fresh::Zero(true)),
            (3..5, Fresh::Data),
            (5..6, Fresh::Zero(false)),
            (6..7, Fresh::Data),
        ];
        assert_eq!(runs, expected.map(|(run, fresh)| (BlockIndex(run.start)..BlockIndex(run.end), fresh)));
        assert_eq!(data_blocks(&runs), 4);
    }

    #[test]
    fn a_lost_page_that_is_changed_in_part_has_damage_instead() {
        let mut entry = Entry::default();
        (0..3).for_each(|page| entry.lost.insert(PageIndex(page)));
        let zero = |range: Range<u64>, hole| (range, Piece::Zero { hole });
        update_pages(
            &mut entry,
            &vec![zero(0..65_536, true), zero(65_536..65_536 + 4096, false)],
            &(0..1 << 20),
        );
        set_good(&mut entry, PageIndex(1), 0, 0xff);
        assert_eq!(entry.lost.iter().collect::<Vec<_>>(), [PageIndex(2)]);
        assert_eq!(entry.allocated.iter().collect::<Vec<_>>(), [PageIndex(1)]);
        assert_eq!(entry.damage.len(), 1);
        let good = |page, block| good(&entry, PageIndex(page), block);
        assert_eq!((good(1, 0), good(1, 1), good(0, 0)), (0xff, 0, 0xff));
        (1..16).for_each(|block| set_good(&mut entry, PageIndex(1), block, 0xff));
        assert!(entry.damage.is_empty());
    }
}
