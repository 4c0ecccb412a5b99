//! A picture of the disk for people: how much of each part is stored, and how much is not durable yet.
//!
//! Reads no data, and a bounded number of map pages. Invariant: the cells cover the volume, in order and without gaps.

use std::ops::Range;

use super::base::{self, LoadedMapPage};
use super::error::Error;
use super::geometry::{BLOCK_BYTES, Geometry, PAGE_BYTES};
use super::map::Entry;
use super::piece::Piece;
use super::shared::Shared;
use super::state::Resolved;

/// Map pages that one picture loads; of what lies behind, a map page that stands counts as stored whole.
const MAP_PAGES: usize = 64;

/// A part of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Bytes that the store holds durably and that are no holes.
    pub stored_bytes: u64,
    /// Bytes written, discarded or zeroed that are not durable.
    pub dirty_bytes: u64,
}

/// The whole disk in equal parts; the last may be shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Bytes of a part.
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

    /// Adds a range to each cell that it touches.
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

    fn add_stored(&mut self, range: Range<u64>) {
        self.add(range, |cell, bytes| cell.stored_bytes += bytes);
    }

    /// Adds what a map page says of a range.
    fn add_mapped(&mut self, map: &LoadedMapPage, geometry: Geometry, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            let index = geometry.chunk_at(at);
            let end = range.end.min(geometry.chunk_range(index).end);
            if let Some(entry) = map.page.entry(index.slot()) {
                while at < end {
                    let page_end = end.min((at / PAGE_BYTES + 1) * PAGE_BYTES);
                    if stores(&entry, geometry.page_at(at)) {
                        self.add_stored(at..page_end);
                    }
                    at = page_end;
                }
            }
            at = end;
        }
    }
}

/// Whether an object holds the page.
fn stores(entry: &Entry, page: u16) -> bool {
    entry.base.as_ref().is_some_and(|base| base.stored.contains(page))
        || entry.packs.iter().any(|pack| pack.pages.contains(page))
}

impl Shared {
    /// The disk in at most `cells` parts.
    pub(super) async fn picture(&self, cells: u64) -> Result<Picture, Error> {
        let mut picture = Picture::new(self.size_bytes, cells);
        let mut loads = MAP_PAGES;
        let window_bytes = self.geometry.map_page_bytes();
        for number in 0..self.geometry.map_pages(self.size_bytes) {
            let start = u64::from(number) * window_bytes;
            let window = start..self.size_bytes.min(start + window_bytes);
            let (Resolved { pieces, uncommitted, base, root }, map) = self
                .look_up(&window, |resolved| async move {
                    let (env, root) = (&self.env, &resolved.root);
                    let map = match loads > 0 {
                        true => base::map_page(env, self.keys, self.geometry, root, number).await?,
                        false => None,
                    };
                    Ok((resolved, map))
                })
                .await?;
            for (n, (range, piece)) in pieces.into_iter().enumerate() {
                match piece {
                    _ if n < uncommitted => picture.add(range, |cell, bytes| cell.dirty_bytes += bytes),
                    Piece::Zero { .. } => {}
                    Piece::Block(..) | Piece::Data { .. } | Piece::Chunk(..) => picture.add_stored(range),
                }
            }
            match map {
                Some(map) => {
                    loads -= 1;
                    base.into_iter().for_each(|gap| picture.add_mapped(&map, self.geometry, gap));
                }
                None if root.map_pages.contains_key(&number) => {
                    base.into_iter().for_each(|gap| picture.add_stored(gap));
                }
                None => {}
            }
        }
        Ok(picture)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_cover_the_volume_and_share_a_range_by_bytes() {
        let mut picture = Picture::new(100 * 4096, 8);
        assert_eq!((picture.cell_bytes, picture.cells.len()), (13 * 4096, 8));
        picture.add_stored(12 * 4096..27 * 4096);
        let stored: Vec<u64> = picture.cells.iter().map(|cell| cell.stored_bytes / 4096).collect();
        assert_eq!(stored, [1, 13, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_small_volume_has_fewer_cells_than_were_asked_for() {
        assert_eq!(Picture::new(512, 1024), Picture { cell_bytes: 4096, cells: vec![Cell::default()] });
        assert_eq!(Picture::new(5 * 4096, 1024).cells.len(), 5);
    }
}
