//! Uniform map pages: the ranges and entries that they consist of.
//!
//! Pure functions, without I/O and state. Invariant: a map page counts as uniform only if all its chunks
//! within the volume are alike.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::mutant::{self, Mutant};
use crate::volume::format::geometry::Geometry;
use crate::volume::format::keys::Slot;
use crate::volume::format::map::Entry;
use crate::volume::format::page_set::PageSet;

fn number_of(map_page: u64) -> u32 {
    u32::try_from(map_page).expect("a volume has at most 65,536 map pages")
}

/// Numbers of the map pages that a range touches.
pub(super) fn map_pages_of(geometry: Geometry, range: &Range<u64>) -> Range<u32> {
    let page_bytes = geometry.map_page_bytes();
    number_of(range.start / page_bytes)..number_of(range.end.div_ceil(page_bytes))
}

/// Numbers of the map pages of a volume of `size_bytes` that a range covers in full. If there are none, the
/// result is an empty range within those that it touches.
pub(super) fn whole_map_pages(geometry: Geometry, size_bytes: u64, range: &Range<u64>) -> Range<u32> {
    let page_bytes = geometry.map_page_bytes();
    let touched = map_pages_of(geometry, range);
    if mutant::is(Mutant::ZeroReachesTooFar) {
        return touched;
    }
    // The last map page of a volume may extend beyond its end, where nothing was ever written.
    let ends_whole = range.end.is_multiple_of(page_bytes) || range.end == size_bytes;
    let end = if ends_whole { touched.end } else { touched.end - 1 };
    let start = number_of(range.start.div_ceil(page_bytes)).min(touched.end);
    start..end.max(start)
}

/// Returns the entries of the first `chunks` chunks of a uniform map page of zeros.
pub(super) fn zeroed_entries(geometry: Geometry, chunks: u64, birth: Slot) -> BTreeMap<u16, Entry> {
    let entry = Entry {
        birth: Some(birth),
        allocated: PageSet::first(geometry.pages_per_chunk()),
        ..Entry::default()
    };
    (0..u16::try_from(chunks).expect("at most 4,096")).map(|slot| (slot, entry.clone())).collect()
}

/// Returns the entries of the first `chunks` chunks of a lost map page: the content of each chunk is unknown
/// until it is overwritten.
pub(super) fn lost_entries(geometry: Geometry, chunks: u64, birth: Slot) -> BTreeMap<u16, Entry> {
    let mut entries = zeroed_entries(geometry, chunks, birth);
    if !mutant::is(Mutant::LostMapPageIsZeros) {
        entries.values_mut().for_each(|entry| entry.lost = entry.allocated);
    }
    entries
}

/// Returns the newest birth of the entries if all `chunks` chunks of the map page are present, allocated and
/// zeros.
pub(super) fn zeroed_throughout(
    geometry: Geometry,
    chunks: u64,
    entries: &BTreeMap<u16, Entry>,
) -> Option<Slot> {
    let allocated = PageSet::first(geometry.pages_per_chunk());
    let is_zeroed = |entry: &Entry| {
        entry.base.is_none()
            && entry.overlaid == 0
            && entry.damage.is_empty()
            && entry.lost.is_empty()
            && entry.allocated == allocated
    };
    let all = entries.len() as u64 == chunks
        && (entries.values().all(is_zeroed)
            || (mutant::is(Mutant::ZerosSwallowData) && entries.values().take(1).all(is_zeroed)));
    entries.values().filter_map(|entry| entry.birth).max().filter(|_| all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_range_covers_is_whole() {
        let geometry = Geometry::new(65_536).expect("a chunk size");
        let page = geometry.map_page_bytes();
        let size = 10 * page - 512;
        for (range, touched, whole) in [
            (0..page, 0..1, 0..1),
            (0..page - 512, 0..1, 0..0),
            (512..page, 0..1, 1..1),
            (512..2 * page, 0..2, 1..2),
            (page - 512..3 * page + 512, 0..4, 1..3),
            (9 * page..size, 9..10, 9..10),
            (9 * page..size - 512, 9..10, 9..9),
            (0..size, 0..10, 0..10),
        ] {
            assert_eq!(map_pages_of(geometry, &range), touched, "{range:?}");
            assert_eq!(whole_map_pages(geometry, size, &range), whole, "{range:?}");
        }
    }

    #[test]
    fn a_map_page_with_one_other_chunk_is_not_uniform() {
        let geometry = Geometry::new(4 << 20).expect("a chunk size");
        let birth = Slot { epoch: 1, n: 2 };
        let mut entries = zeroed_entries(geometry, 9, birth);
        assert_eq!(zeroed_throughout(geometry, 9, &entries), Some(birth));
        assert_eq!(zeroed_throughout(geometry, 10, &entries), None, "a hole");
        entries.get_mut(&8).expect("the last").allocated = PageSet::first(63);
        assert_eq!(zeroed_throughout(geometry, 9, &entries), None, "a hole in a chunk");
        assert_eq!(zeroed_throughout(geometry, 9, &lost_entries(geometry, 9, birth)), None, "lost");
    }
}
