//! Uncommitted changes: what the next commit will make durable.
//!
//! A [`DirtyLayer`] contains, from newest to oldest: blocks with dirty sectors, chunks that were filled
//! completely (and are being uploaded), and zeroed ranges. It must not know about time, stores or commits.
//! Invariants: ranges consist of whole sectors. A read takes each sector from only one of the three: blocks
//! win over chunks, and chunks over zeros. The count of full blocks of each chunk is exact.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::piece::{Block, ChunkRef, Piece, own};
use crate::mutant::{self, Mutant};
use crate::volume::format::geometry::{
    BLOCK_BYTES, BLOCK_LEN, BlockIndex, ChunkIndex, Geometry, SECTOR_BYTES, SECTOR_LEN,
};
use crate::volume::format::interval::{IntervalMap, gaps};
use crate::volume::format::record::{
    DATA_CHANGE_BYTES, EMPTY_RECORD_BYTES, ZERO_CHANGE_BYTES, chunk_change_bytes,
};

const ALL_SECTORS: u8 = 0xff;
/// Number of zeroed ranges that count as much as one block.
const ZEROS_PER_BLOCK: usize = 64;
/// Limit on the bytes that a dirty block takes in a record. A block that is written in parts takes no more
/// than a whole one.
const BLOCK_RECORD_BYTES: u64 = BLOCK_BYTES + DATA_CHANGE_BYTES;

/// Returns the bits of the sectors that a range covers within its block.
fn sector_bits(range: &Range<u64>) -> u8 {
    let first = range.start % BLOCK_BYTES / SECTOR_BYTES;
    let count = (range.end - range.start) / SECTOR_BYTES;
    u8::try_from((((1_u16 << count) - 1) << first) & 0xff).expect("masked")
}

/// A write that is already cut into blocks, so that little work remains under the volume's lock.
#[derive(Debug, Default)]
pub struct PreparedWrite {
    /// Whole blocks.
    full: Vec<(BlockIndex, Bytes)>,
    /// Runs of sectors within a block, by offset on the volume.
    edges: Vec<(u64, Bytes)>,
}

impl PreparedWrite {
    /// Cuts `data` at `offset` into blocks. Both `offset` and the length must be multiples of a sector. The
    /// bytes are copied unless `data` is a single block in memory of its own: otherwise one remaining block
    /// would keep all of a long write in memory.
    #[must_use]
    pub fn new(offset: u64, data: Bytes) -> Self {
        assert!(
            offset.is_multiple_of(SECTOR_BYTES) && (data.len() as u64).is_multiple_of(SECTOR_BYTES),
            "what lies in the layer is whole sectors"
        );
        let mut prepared = Self::default();
        if data.len() == BLOCK_LEN && offset.is_multiple_of(BLOCK_BYTES) {
            prepared.full.push((BlockIndex::at(offset), own(data)));
            return prepared;
        }
        let (mut at, mut rest) = (offset, &data[..]);
        while !rest.is_empty() {
            let within = usize::try_from(at % BLOCK_BYTES).expect("4 KiB");
            let length = rest.len().min(BLOCK_LEN - within);
            let (part, after) = rest.split_at(length);
            match length {
                BLOCK_LEN => prepared.full.push((BlockIndex::at(at), Bytes::copy_from_slice(part))),
                _ => prepared.edges.push((at, Bytes::copy_from_slice(part))),
            }
            at += length as u64;
            rest = after;
        }
        prepared
    }

    /// Adds a sector that the write covers only in part, completed with its other bytes.
    pub fn add_sector(&mut self, offset: u64, sector: [u8; SECTOR_LEN]) {
        self.edges.push((offset, Bytes::copy_from_slice(&sector)));
    }

    /// Limit on the blocks that the write adds to a layer.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.full.len() + self.edges.len()
    }

    /// Number of chunks that the write fills by itself. These are uploaded as separate objects.
    fn whole_chunks(&self, geometry: Geometry) -> u64 {
        let (Some((first, _)), Some((last, _))) = (self.full.first(), self.full.last()) else { return 0 };
        let blocks = geometry.blocks_per_chunk();
        ((last.0 + 1) / blocks).saturating_sub(first.0.div_ceil(blocks))
    }

    fn touched(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        let edges = self.edges.iter().map(|(offset, _)| BlockIndex::at(*offset));
        self.full.iter().map(|(block, _)| *block).chain(edges)
    }
}

/// A change, reduced to what determines how much longer it makes a record.
#[derive(Clone, Copy, Debug)]
pub struct Growth<'a> {
    /// The whole sectors that the change writes.
    pub write: &'a PreparedWrite,
    /// Number of sectors that the change covers only in part.
    pub sectors: usize,
    /// Whether the change zeroes a range.
    pub zero: bool,
}

impl Growth<'_> {
    /// Limit on the bytes that the change adds to a record.
    #[must_use]
    pub fn record_bytes(&self, geometry: Geometry) -> u64 {
        let chunks = self.write.whole_chunks(geometry);
        let blocks = (self.write.blocks() + self.sectors) as u64 - chunks * geometry.blocks_per_chunk();
        // Zeroing a range may cut an older one in two.
        let zeros = if self.zero { 2 * ZERO_CHANGE_BYTES } else { 0 };
        blocks * BLOCK_RECORD_BYTES + chunks * chunk_change_bytes(geometry.pages_per_chunk()) + zeros
    }

    /// Limit on the weight that the change adds to the journal, even if it starts a new record.
    #[must_use]
    pub fn weight(&self, geometry: Geometry) -> u64 {
        let (blocks, zeros) = (self.write.blocks() + self.sectors, usize::from(self.zero));
        EMPTY_RECORD_BYTES + self.record_bytes(geometry) + pieces_weight(blocks, 2 * zeros)
    }
}

/// Memory in bytes that a change takes until it is folded.
pub const PIECE_WEIGHT: u64 = 96;

/// Limit on the weight of the pieces of one record. Data may cut a zeroed range in two.
fn pieces_weight(blocks_and_chunks: usize, zeros: usize) -> u64 {
    (2 * blocks_and_chunks + zeros) as u64 * PIECE_WEIGHT
}

/// Uncommitted changes, which become one commit.
#[derive(Debug, Default)]
pub struct DirtyLayer {
    /// Blocks with dirty sectors.
    blocks: BTreeMap<BlockIndex, Block>,
    /// How many blocks of each chunk have only dirty sectors. Chunks without such a block are left out.
    full_blocks: BTreeMap<ChunkIndex, u64>,
    /// Chunks that were filled completely.
    chunks: BTreeMap<ChunkIndex, Arc<ChunkRef>>,
    /// Filled chunks that later changes of this layer replaced.
    superseded: Vec<Arc<ChunkRef>>,
    /// Zeroed ranges, each with whether it is a hole.
    zeros: IntervalMap<bool>,
}

impl DirtyLayer {
    /// Whether the layer contains no changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.chunks.is_empty() && self.zeros.is_empty()
    }

    /// Memory that the layer takes, in blocks. Filled chunks are not included. Zeroed ranges count by the
    /// memory that their entries take.
    #[must_use]
    pub fn block_count(&self) -> usize {
        self.blocks.len() + self.zeros.len().div_ceil(ZEROS_PER_BLOCK)
    }

    /// Limit on the bytes of the record of this layer.
    #[must_use]
    pub fn record_bytes(&self, geometry: Geometry) -> u64 {
        // Superseded chunks are in no record, but stay in memory until the record is made.
        let chunks = (self.chunks.len() + self.superseded.len()) as u64;
        EMPTY_RECORD_BYTES
            + self.blocks.len() as u64 * BLOCK_RECORD_BYTES
            + self.zeros.len() as u64 * ZERO_CHANGE_BYTES
            + chunks * chunk_change_bytes(geometry.pages_per_chunk())
    }

    /// Limit on the weight that the record of this layer adds to the journal.
    #[must_use]
    pub fn weight(&self, geometry: Geometry) -> u64 {
        let pieces = pieces_weight(self.blocks.len() + self.chunks.len(), self.zeros.len());
        self.record_bytes(geometry) + pieces
    }

    /// Whether the record of this layer stays within `most` bytes if a change is added.
    #[must_use]
    pub fn has_room(&self, geometry: Geometry, change: Growth<'_>, most: u64) -> bool {
        let with_all = self.record_bytes(geometry) + change.record_bytes(geometry);
        if with_all <= most {
            return true;
        }
        // Blocks that are already dirty take no additional room.
        let touched = change.write.touched();
        let known = touched.filter(|block| self.blocks.contains_key(block)).count() as u64;
        with_all - known * BLOCK_RECORD_BYTES <= most
    }

    /// Filled chunks that later changes of this layer replaced. No record will reference them.
    #[must_use]
    pub fn superseded(&self) -> &[Arc<ChunkRef>] {
        &self.superseded
    }

    /// Applies a write. Returns the chunks that it filled.
    pub fn write(&mut self, geometry: Geometry, write: PreparedWrite) -> Vec<ChunkIndex> {
        let mut filled = Vec::new();
        for (index, data) in write.full {
            let old = self.blocks.insert(index, Block { sectors: ALL_SECTORS, data });
            if old.is_none_or(|old| old.sectors != ALL_SECTORS) {
                self.count_full(geometry, index, &mut filled);
            }
        }
        for (offset, data) in write.edges {
            let index = BlockIndex::at(offset);
            let within = usize::try_from(offset % BLOCK_BYTES).expect("4 KiB");
            let empty = || Block { sectors: 0, data: Bytes::from_static(&[0; BLOCK_LEN]) };
            let block = self.blocks.entry(index).or_insert_with(empty);
            // Changes the bytes in place, or a copy of them if a reader holds them.
            let mut bytes = BytesMut::from(std::mem::take(&mut block.data));
            bytes[within..within + data.len()].copy_from_slice(&data);
            block.data = bytes.freeze();
            let before = block.sectors;
            block.sectors |= sector_bits(&(offset..offset + data.len() as u64));
            if before != ALL_SECTORS && block.sectors == ALL_SECTORS {
                self.count_full(geometry, index, &mut filled);
            }
        }
        filled
    }

    fn count_full(&mut self, geometry: Geometry, block: BlockIndex, filled: &mut Vec<ChunkIndex>) {
        let index = geometry.chunk_at(block.offset());
        let count = self.full_blocks.entry(index).or_insert(0);
        *count += 1;
        if *count == geometry.blocks_per_chunk() {
            filled.push(index);
        }
    }

    fn uncount_full(&mut self, geometry: Geometry, block: BlockIndex) {
        let index = geometry.chunk_at(block.offset());
        if let Some(count) = self.full_blocks.get_mut(&index) {
            *count -= 1;
            if *count == 0 {
                self.full_blocks.remove(&index);
            }
        }
    }

    /// Removes and returns the blocks of a filled chunk. The caller puts them back as
    /// a [`ChunkRef`] with [`DirtyLayer::promote`].
    ///
    /// # Panics
    /// Panics if the chunk is not full.
    #[must_use]
    pub fn take_filled(&mut self, geometry: Geometry, index: ChunkIndex) -> Vec<Bytes> {
        let range = geometry.chunk_range(index);
        let mut rest = self.blocks.split_off(&BlockIndex::at(range.start));
        let mut after = rest.split_off(&BlockIndex::at(range.end));
        self.blocks.append(&mut after);
        self.full_blocks.remove(&index);
        assert_eq!(rest.len() as u64, geometry.blocks_per_chunk(), "a filled chunk has all its blocks");
        rest.into_values().map(|block| block.data).collect()
    }

    /// Inserts a filled chunk below later blocks. It replaces an earlier chunk with the same index.
    pub fn promote(&mut self, chunk: Arc<ChunkRef>) {
        if let Some(earlier) = self.chunks.insert(chunk.index, chunk) {
            self.superseded.push(earlier);
        }
    }

    /// Zeroes a range of whole sectors. The range must not cover only a part of a filled chunk.
    pub fn zero(&mut self, geometry: Geometry, range: Range<u64>, hole: bool) {
        assert!(
            range.start.is_multiple_of(SECTOR_BYTES)
                && range.end.is_multiple_of(SECTOR_BYTES)
                && !range.is_empty(),
            "what is zeroed is whole sectors"
        );
        assert!(
            !self.cuts_filled_chunk(geometry, &range),
            "a zero that would cut a chunk is for a later layer"
        );
        self.zero_chunks(geometry, &range);
        let touched = self.blocks.range(BlockIndex::touched_by(&range));
        let touched: Vec<BlockIndex> = touched.map(|(index, _)| *index).collect();
        for index in touched {
            if mutant::is(Mutant::TrimLeavesBlocks) {
                break;
            }
            let whole = index.range();
            let part = range.start.max(whole.start)..range.end.min(whole.end);
            let block = self.blocks.get_mut(&index).expect("just found");
            let left = block.sectors & !sector_bits(&part);
            let was_full = block.sectors == ALL_SECTORS;
            if left == 0 {
                self.blocks.remove(&index);
            } else {
                block.sectors = left;
            }
            if was_full {
                self.uncount_full(geometry, index);
            }
        }
        self.zeros.insert(range, hole);
    }

    /// Whether `range` covers only a part of a filled chunk. Filled chunks take precedence over zeros, so
    /// such a range must be zeroed in a later layer.
    #[must_use]
    pub fn cuts_filled_chunk(&self, geometry: Geometry, range: &Range<u64>) -> bool {
        let within = geometry.chunk_at(range.start)..=geometry.chunk_at(range.end - 1);
        self.chunks.range(within).any(|(index, _)| {
            let chunk = geometry.chunk_range(*index);
            range.start > chunk.start || range.end < chunk.end
        })
    }

    /// Removes the filled chunks that a zeroed range covers, because they would take
    /// precedence over the zeros.
    fn zero_chunks(&mut self, geometry: Geometry, range: &Range<u64>) {
        if self.chunks.is_empty() {
            return;
        }
        let within = geometry.chunk_at(range.start)..=geometry.chunk_at(range.end - 1);
        let indexes: Vec<ChunkIndex> = self.chunks.range(within).map(|(index, _)| *index).collect();
        for index in indexes {
            let chunk = self.chunks.remove(&index).expect("just found");
            self.superseded.push(chunk);
        }
    }

    /// Appends the pieces of `range` that the layer contains to `found`. Returns the rest of `range`.
    #[must_use]
    pub fn resolve(
        &self,
        geometry: Geometry,
        range: Range<u64>,
        found: &mut Vec<(Range<u64>, Piece)>,
    ) -> Vec<Range<u64>> {
        if self.is_empty() {
            return vec![range];
        }
        let before = found.len();
        for (index, block) in self.blocks.range(BlockIndex::touched_by(&range)) {
            for_each_run(*index, block.sectors, &range, |part| {
                let at = usize::try_from(part.start % BLOCK_BYTES).expect("4 KiB");
                let length = usize::try_from(part.end - part.start).expect("4 KiB");
                found.push((part, Piece::Block(block.data.slice(at..at + length))));
            });
        }
        let mut left = gaps(range, found[before..].iter().map(|(part, _)| part.clone()));
        if !self.chunks.is_empty() {
            left = self.resolve_chunks(geometry, left, found);
        }
        if !self.zeros.is_empty() {
            let mut rest = Vec::new();
            for gap in left {
                let before = found.len();
                for (part, hole) in self.zeros.overlaps(gap.clone()) {
                    found.push((part, Piece::Zero { hole }));
                }
                rest.extend(gaps(gap, found[before..].iter().map(|(part, _)| part.clone())));
            }
            left = rest;
        }
        left
    }

    /// Returns the end of the longest prefix of `range` in which the layer has at most `most` blocks, `most`
    /// chunks and `most` zeroed ranges. `most` must not be 0.
    #[must_use]
    pub fn reach(&self, geometry: Geometry, range: Range<u64>, most: usize) -> u64 {
        let mut touched = self.blocks.range(BlockIndex::touched_by(&range));
        let block = touched.nth(most).map(|(index, _)| index.offset());
        let within = geometry.chunk_at(range.start)..=geometry.chunk_at(range.end - 1);
        let chunk = self.chunks.range(within).nth(most).map(|(index, _)| geometry.chunk_range(*index).start);
        let zeros = self.zeros.reach(range, most);
        block.into_iter().chain(chunk).fold(zeros, u64::min)
    }

    fn resolve_chunks(
        &self,
        geometry: Geometry,
        left: Vec<Range<u64>>,
        found: &mut Vec<(Range<u64>, Piece)>,
    ) -> Vec<Range<u64>> {
        let mut rest = Vec::new();
        for gap in left {
            let before = found.len();
            let within = geometry.chunk_at(gap.start)..=geometry.chunk_at(gap.end - 1);
            for (index, chunk) in self.chunks.range(within) {
                let covers = geometry.chunk_range(*index);
                let part = gap.start.max(covers.start)..gap.end.min(covers.end);
                let at = part.start - covers.start;
                found.push((part, Piece::Chunk(Arc::clone(chunk), at)));
            }
            rest.extend(gaps(gap, found[before..].iter().map(|(part, _)| part.clone())));
        }
        rest
    }

    /// Zeroed ranges in order of offset, each with whether it is a hole.
    pub fn zeros(&self) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        self.zeros.iter().map(|(range, hole)| (range, *hole))
    }

    /// Filled chunks in order of index.
    pub fn chunks(&self) -> impl Iterator<Item = &Arc<ChunkRef>> + '_ {
        self.chunks.values()
    }

    /// The runs of dirty sectors within each block, with their bytes, in order of offset.
    pub fn runs(&self) -> impl Iterator<Item = (Range<u64>, Bytes)> + '_ {
        self.blocks.iter().flat_map(|(index, block)| {
            let mut runs = Vec::new();
            for_each_run(*index, block.sectors, &index.range(), |part| {
                let within = |at| usize::try_from(at - index.offset()).expect("4 KiB");
                let bytes = block.data.slice(within(part.start)..within(part.end));
                runs.push((part, bytes));
            });
            runs
        })
    }
}

/// Calls `with` for each run of sectors that are set in `sectors`, the bits of a block. Runs are cut to
/// `range`.
fn for_each_run(block: BlockIndex, sectors: u8, range: &Range<u64>, mut with: impl FnMut(Range<u64>)) {
    let start = block.offset();
    let mut sector = 0;
    while sector < 8 {
        if sectors >> sector & 1 == 0 {
            sector += 1;
            continue;
        }
        let first = sector;
        while sector < 8 && sectors >> sector & 1 == 1 {
            sector += 1;
        }
        let run = start + first * SECTOR_BYTES..start + sector * SECTOR_BYTES;
        let part = run.start.max(range.start)..run.end.min(range.end);
        if !part.is_empty() {
            with(part);
        }
    }
}
