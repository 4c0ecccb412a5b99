//! Cells: the unit in which content is stamped and attributed, and the parts of a volume that a run uses.
//!
//! A cell is 64 bytes, eight to a sector, so that changes of partial sectors are visible too. A stamp
//! contains the change that wrote it and the cell, and fills the rest with bytes that follow from these two.
//! Bytes of another cell, another change, or half of one therefore never pass for it. Invariant: [`identify`]
//! reverses [`stamp`], and whatever is neither a stamp of its cell nor all zeros is [`TORN`].

use std::ops::Range;

/// Size of a cell in bytes.
pub(crate) const CELL: u64 = 64;
/// [`CELL`] as a `usize`, for lengths of slices.
pub(crate) const CELL_LEN: usize = 64;
/// Number of cells in a block of 4 KiB. Changes are indexed by block.
pub(crate) const BLOCK_CELLS: u32 = 64;

/// Id of the change that wrote a cell; 0 for zeros.
pub(crate) type Id = u32;

/// Content that no change wrote.
pub(crate) const TORN: Id = u32::MAX;

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Returns the bytes that change `id` writes into `cell`.
pub(crate) fn stamp(id: Id, cell: u32) -> [u8; CELL_LEN] {
    let head = u64::from(id) << 32 | u64::from(cell);
    let mut bytes = [0; CELL_LEN];
    let mut word = head;
    for part in bytes.chunks_exact_mut(8) {
        part.copy_from_slice(&word.to_le_bytes());
        word = mix(word.wrapping_add(0x9e37_79b9_7f4a_7c15));
    }
    bytes
}

/// Returns the change that wrote these bytes of `cell`.
pub(crate) fn identify(bytes: &[u8], cell: u32) -> Id {
    let head = u64::from_le_bytes(*bytes.first_chunk().expect("a cell is 64 bytes"));
    if head == 0 {
        return if bytes.iter().all(|byte| *byte == 0) { 0 } else { TORN };
    }
    let id = u32::try_from(head >> 32).expect("shifted");
    if bytes == stamp(id, cell) { id } else { TORN }
}

/// Size and chunk size of the volume, and the windows of it that a run writes and reads.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Size of the volume in bytes.
    pub(crate) size: u64,
    /// Size of a chunk in bytes.
    pub(crate) chunk: u64,
    /// Byte ranges of the volume in use, sorted and of whole cells. Nothing is ever written outside them.
    pub(crate) windows: Vec<Range<u64>>,
}

impl Layout {
    /// Total size of all windows in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.windows.iter().map(|window| window.end - window.start).sum()
    }

    /// Number of cells in all windows. Cells are numbered consecutively across windows.
    pub(crate) fn cells(&self) -> u32 {
        u32::try_from(self.bytes() / CELL).expect("windows are small")
    }

    /// Returns the cells in a range of whole cells, with the offset of the first of each run.
    pub(crate) fn cells_of(&self, range: &Range<u64>) -> Vec<(u64, Range<u32>)> {
        let (mut found, mut first) = (Vec::new(), 0);
        for window in &self.windows {
            let part = range.start.max(window.start)..range.end.min(window.end);
            if part.start < part.end {
                let at = |offset: u64| {
                    u32::try_from(first + (offset - window.start) / CELL).expect("windows are small")
                };
                found.push((part.start, at(part.start)..at(part.end)));
            }
            first += (window.end - window.start) / CELL;
        }
        found
    }

    /// Returns the offset of a position that is counted across all windows, and how much of its window
    /// follows.
    pub(crate) fn place(&self, position: u64) -> (u64, u64) {
        let mut before = 0;
        for window in &self.windows {
            let length = window.end - window.start;
            if position < before + length {
                let offset = window.start + (position - before);
                return (offset, window.end - offset);
            }
            before += length;
        }
        unreachable!("positions lie within the windows")
    }

    /// Returns the bytes that change `id` writes into a range within one window.
    pub(crate) fn payload(&self, range: &Range<u64>, id: Id) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(usize::try_from(range.end - range.start).expect("a payload"));
        for (_, cells) in self.cells_of(range) {
            cells.for_each(|cell| bytes.extend_from_slice(&stamp(id, cell)));
        }
        bytes
    }
}

#[test]
fn a_stamp_is_of_one_change_and_one_cell() {
    let good = stamp(7, 9);
    assert_eq!(identify(&good, 9), 7);
    assert_eq!(identify(&good, 10), TORN);
    assert_eq!(identify(&[0; CELL_LEN], 9), 0);
    let (mut half, other) = (good, stamp(8, 9));
    half[32..].copy_from_slice(&other[32..]);
    assert_eq!(identify(&half, 9), TORN);
    half = good;
    half[63] ^= 1;
    assert_eq!(identify(&half, 9), TORN);
}

#[test]
fn cells_are_numbered_through_the_windows() {
    let layout = Layout { size: 1 << 20, chunk: 1 << 16, windows: vec![0..4096, 8192..12288] };
    assert_eq!(layout.cells(), 128);
    assert_eq!(layout.cells_of(&(0..1 << 20)), vec![(0, 0..64), (8192, 64..128)]);
    assert_eq!(layout.cells_of(&(64..128)), vec![(64, 1..2)]);
    assert_eq!(layout.cells_of(&(4096..8192)), vec![]);
    assert_eq!(layout.place(4096 + 64), (8256, 4032));
}
