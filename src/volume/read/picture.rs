//! A picture of the disk for people: how much of each part is stored, how much of that is also in memory, and
//! how much is not durable yet.
//!
//! Reads no data and loads a bounded number of map pages. Must not know how the picture is shown. Invariant:
//! the cells cover the volume, in order and without gaps.

use std::ops::Range;

use super::base::{self, BasePart, LoadedMapPage, Mapped};
use super::reader::at_pages;
use super::{Loads, PIECES, first_window, look_up, reader_of};
use crate::volume::cache::clean::HeldPieces;
use crate::volume::error::Error;
use crate::volume::format::geometry::{BLOCK_BYTES, Geometry, PageIndex};
use crate::volume::shared::Shared;
use crate::volume::state::Resolved;
use crate::volume::state::piece::{ChunkMemory, Piece};

/// Limit on the map pages that one picture loads. Beyond it, everything that an unloaded map page covers
/// counts as stored.
const MAP_PAGES: usize = 64;

/// Summary of one part of the disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Bytes that the store holds durably. Holes and zeros do not count.
    pub stored_bytes: u64,
    /// The share of `stored_bytes` that is also in memory, so that a READ need not fetch it.
    pub cached_bytes: u64,
    /// Bytes that were written, discarded or zeroed and are not durable yet.
    pub dirty_bytes: u64,
}

/// The whole disk, divided into parts of equal size. The last part may be shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Size of a part in bytes.
    pub cell_bytes: u64,
    /// The parts, in order of offset.
    pub cells: Vec<Cell>,
}

impl Picture {
    fn new(size_bytes: u64, cells: u64) -> Self {
        let cell_bytes = size_bytes.div_ceil(cells.max(1)).next_multiple_of(BLOCK_BYTES);
        let count =
            usize::try_from(size_bytes.div_ceil(cell_bytes)).expect("no more cells than were asked for");
        Self { cell_bytes, cells: vec![Cell::default(); count] }
    }

    /// Calls `add` for each cell that a range overlaps, with the number of bytes that they share.
    fn add(&mut self, range: Range<u64>, add: impl Fn(&mut Cell, u64)) {
        let mut at = range.start;
        while at < range.end {
            let number = at / self.cell_bytes;
            let end = range.end.min((number + 1) * self.cell_bytes);
            let cell = usize::try_from(number).expect("the range lies within the volume");
            add(&mut self.cells[cell], end - at);
            at = end;
        }
    }

    fn add_stored(&mut self, range: Range<u64>, is_cached: bool) {
        self.add(range, |cell, bytes| {
            cell.stored_bytes += bytes;
            cell.cached_bytes += if is_cached { bytes } else { 0 };
        });
    }

    /// Adds a stored range of at most 16 blocks. `cached` has one bit for each block that is in memory, the
    /// first block in the lowest bit.
    fn add_blocks(&mut self, range: Range<u64>, cached: u16) {
        let count = range.end.div_ceil(BLOCK_BYTES) - range.start / BLOCK_BYTES;
        if cached == 0 || u64::from(cached.trailing_ones()) >= count {
            return self.add_stored(range, cached != 0);
        }
        let mut at = range.start;
        for block in 0..count {
            let end = range.end.min((at / BLOCK_BYTES + 1) * BLOCK_BYTES);
            self.add_stored(at..end, cached >> block & 1 == 1);
            at = end;
        }
    }

    /// Adds the stored blocks that a map page records for a range.
    fn add_mapped(&mut self, map: &LoadedMapPage, held: &HeldPieces, geometry: Geometry, range: Range<u64>) {
        let mut parts = Vec::new();
        base::resolve_page(map, geometry, range, &mut parts);
        for (range, part) in parts {
            match part {
                BasePart::Stored { fetch, .. } => self.add_blocks(range, held.blocks(&fetch)),
                BasePart::Lost(_) => self.add_stored(range, false),
                BasePart::Zero { .. } => {}
            }
        }
    }
}

/// Summarizes the disk in at most `cells` parts.
pub(crate) async fn take(shared: &Shared, cells: u64) -> Result<Picture, Error> {
    let size_bytes = shared.state.lock().size_bytes;
    let mut picture = Picture::new(size_bytes, cells);
    let mut loads = Loads::new(MAP_PAGES);
    let held = shared.env.cache.held();
    let mut at = 0;
    while at < size_bytes {
        let window = first_window(shared, at..size_bytes, PIECES, u64::MAX);
        at = window.range.end;
        let is_looked_at = loads.note(&window);
        let range = window.range;
        let number = shared.geometry.chunk_at(range.start).map_page();
        let (Resolved { pieces, uncommitted, base, root }, map) =
            look_up(shared, &range, |resolved| async move {
                let (env, root) = (&shared.env, &resolved.root);
                let map = match is_looked_at {
                    true => match base::map_page(env, shared.keys, shared.geometry, root, number).await {
                        Err(error) if error.is_loss() => Mapped::Holes,
                        map => map?,
                    },
                    false => Mapped::Holes,
                };
                Ok((resolved, map))
            })
            .await?;
        for (n, (range, piece)) in pieces.into_iter().enumerate() {
            if n < uncommitted {
                picture.add(range, |cell, bytes| cell.dirty_bytes += bytes);
                continue;
            }
            for (range, piece) in at_pages(range, piece) {
                let length = range.end - range.start;
                if let Some(cached) = stored_in_memory(shared, &piece, length, &held) {
                    picture.add_blocks(range, cached);
                }
            }
        }
        match map {
            Mapped::Page(map) => {
                base.into_iter().for_each(|gap| picture.add_mapped(&map, &held, shared.geometry, gap));
            }
            _ if root.map_pages.contains_key(&number) => {
                base.into_iter().for_each(|gap| picture.add_stored(gap, false));
            }
            Mapped::Holes | Mapped::Zeroed(_) => {}
        }
    }
    Ok(picture)
}

/// Returns which blocks of a durable piece, which lies within one page, are also in memory, the first one
/// in the lowest bit; `None` if it reads as zeros.
fn stored_in_memory(shared: &Shared, piece: &Piece, length: u64, held: &HeldPieces) -> Option<u16> {
    let all_if = |is_cached: bool| if is_cached { u16::MAX } else { 0 };
    Some(match piece {
        Piece::Zero { .. } => return None,
        Piece::Chunk(chunk, at) if !chunk.stored.contains(PageIndex::at(*at)) => return None,
        Piece::Block(..) => u16::MAX,
        Piece::Data { record, .. } => all_if(
            record.body.lock().is_some()
                || shared.env.cache.contains(&reader_of(shared).piece_fetch(piece, length).0),
        ),
        Piece::Chunk(chunk, at) => match *chunk.memory.lock() {
            ChunkMemory::Gone => held.blocks(&reader_of(shared).chunk_fetch(chunk, *at, length)),
            _ => u16::MAX,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_cover_the_volume_and_share_a_range_by_bytes() {
        let mut picture = Picture::new(100 * 4096, 8);
        assert_eq!((picture.cell_bytes, picture.cells.len()), (13 * 4096, 8));
        picture.add_stored(12 * 4096..27 * 4096, false);
        let stored: Vec<u64> = picture.cells.iter().map(|cell| cell.stored_bytes / 4096).collect();
        assert_eq!(stored, [1, 13, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn only_the_blocks_in_memory_count_as_cached() {
        let mut picture = Picture::new(32 * 4096, 2);
        picture.add_blocks(14 * 4096 + 512..18 * 4096 - 512, 0b1101);
        let cells: Vec<_> = picture.cells.iter().map(|cell| (cell.stored_bytes, cell.cached_bytes)).collect();
        assert_eq!(cells, [(2 * 4096 - 512, 4096 - 512), (2 * 4096 - 512, 2 * 4096 - 512)]);
        picture.add_blocks(0..2 * 4096, 0b11);
        picture.add_blocks(2 * 4096..4 * 4096, 0);
        assert_eq!(picture.cells[0].cached_bytes, 3 * 4096 - 512);
    }

    #[test]
    fn a_small_volume_has_fewer_cells_than_were_asked_for() {
        assert_eq!(Picture::new(512, 1024), Picture { cell_bytes: 4096, cells: vec![Cell::default()] });
        assert_eq!(Picture::new(5 * 4096, 1024).cells.len(), 5);
    }
}
