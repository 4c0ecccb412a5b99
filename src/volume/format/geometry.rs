//! Sizes and positions: how a volume is divided into chunks, pages, blocks and sectors.
//!
//! Pure arithmetic; must not know what is stored where. Invariant: a [`Geometry`] is valid once it exists,
//! and the pages that it computes lie within a chunk.

use std::ops::Range;

/// Size of a sector in bytes. Dirty data is tracked by sector.
pub const SECTOR_BYTES: u64 = 512;
/// As [`SECTOR_BYTES`], for lengths in memory.
pub const SECTOR_LEN: usize = 512;
/// Size of a block in bytes. Dirty data is stored in memory by block, and clean data is packed, fetched and
/// verified by block.
pub const BLOCK_BYTES: u64 = 4096;
/// As [`BLOCK_BYTES`], for lengths in memory.
pub const BLOCK_LEN: usize = 4096;
/// Size of a page in bytes: the unit in which chunk objects record what they store.
pub const PAGE_BYTES: u64 = 64 * 1024;
/// As [`PAGE_BYTES`], for lengths in memory.
pub const PAGE_LEN: usize = 64 * 1024;
/// Number of blocks in a page.
pub const BLOCKS_PER_PAGE: u32 = 16;
/// Number of chunks that one map page covers.
pub const MAP_PAGE_ENTRIES: u32 = 4096;
/// Limit on the map pages of one root.
pub const MAX_MAP_PAGES: u32 = 65_536;
/// Size of the smallest chunk, in bytes.
pub const MIN_CHUNK_BYTES: u32 = 64 * 1024;
/// Size of the largest chunk, in bytes.
pub const MAX_CHUNK_BYTES: u32 = 32 * 1024 * 1024;
/// Default size of a chunk, in bytes.
pub const DEFAULT_CHUNK_BYTES: u32 = 4 * 1024 * 1024;
/// Number of pages in the largest chunk.
pub const MAX_PAGES_PER_CHUNK: u16 = 512;

/// Size in bytes that the chunks of a new volume are to have. [`Geometry::new`] checks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkBytes(pub u64);

/// The position of a chunk in its volume, counted in chunks from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u32);

impl ChunkIndex {
    /// Returns the number of the map page that contains the chunk's entry.
    #[must_use]
    pub fn map_page(self) -> u32 {
        self.0 / MAP_PAGE_ENTRIES
    }

    /// Returns the index of the chunk's entry in its map page.
    #[must_use]
    pub fn slot(self) -> u16 {
        u16::try_from(self.0 % MAP_PAGE_ENTRIES).expect("less than 4,096")
    }

    /// Returns the chunk whose entry has the index `slot` in map page `page`.
    #[must_use]
    pub fn at(page: u32, slot: u16) -> Self {
        Self(page * MAP_PAGE_ENTRIES + u32::from(slot))
    }
}

/// The position of a page in its chunk, counted in pages from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u16);

impl PageIndex {
    /// Returns the page that contains the byte at `offset` of the chunk.
    #[must_use]
    pub fn at(offset: u64) -> Self {
        Self(u16::try_from(offset / PAGE_BYTES).expect("less than 512"))
    }

    /// Returns the page that contains a block, which is counted from the start of the chunk.
    #[must_use]
    pub fn of_block(block: u32) -> Self {
        Self(u16::try_from(block / BLOCKS_PER_PAGE).expect("less than 512"))
    }

    /// Returns the offset of the page's first byte in the chunk.
    #[must_use]
    pub fn offset(self) -> u64 {
        u64::from(self.0) * PAGE_BYTES
    }

    /// Returns the first block of the page, counted from the start of the chunk.
    #[must_use]
    pub fn first_block(self) -> u32 {
        u32::from(self.0) * BLOCKS_PER_PAGE
    }
}

/// The position of a block in its volume, counted in blocks from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

impl BlockIndex {
    /// Returns the block that contains the byte at `offset` of the volume.
    #[must_use]
    pub fn at(offset: u64) -> Self {
        Self(offset / BLOCK_BYTES)
    }

    /// Returns the blocks that a range of bytes of the volume touches.
    #[must_use]
    pub fn touched_by(range: &Range<u64>) -> Range<Self> {
        Self::at(range.start)..Self(range.end.div_ceil(BLOCK_BYTES))
    }

    /// Returns the offset of the block's first byte on the volume.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.0 * BLOCK_BYTES
    }

    /// Returns the range of bytes of the volume that the block covers.
    #[must_use]
    pub fn range(self) -> Range<u64> {
        self.offset()..self.offset() + BLOCK_BYTES
    }

    /// Returns the range that consists of this block alone.
    #[must_use]
    pub fn alone(self) -> Range<Self> {
        self..Self(self.0 + 1)
    }
}

/// How a volume is divided into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    chunk_bytes: u32,
}

/// Why a size is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The chunk size, in bytes, is not a power of two within the limits.
    #[error("chunk size {0} is not a power of two from {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES} bytes")]
    Chunk(u64),
    /// The volume size is zero, too large, or not a multiple of a sector.
    #[error("volume size {size} is not a multiple of {SECTOR_BYTES} from {SECTOR_BYTES} to {most} bytes")]
    Volume {
        /// The requested size in bytes.
        size: u64,
        /// Size of the largest volume with this chunk size, in bytes.
        most: u64,
    },
}

impl Geometry {
    /// Creates a geometry with chunks of `chunk_bytes` bytes.
    ///
    /// # Errors
    /// Returns an error if the size is not a power of two within the limits.
    pub fn new(chunk_bytes: u64) -> Result<Self, GeometryError> {
        match u32::try_from(chunk_bytes) {
            Ok(bytes) if bytes.is_power_of_two() && (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&bytes) => {
                Ok(Self { chunk_bytes: bytes })
            }
            _ => Err(GeometryError::Chunk(chunk_bytes)),
        }
    }

    /// Returns the size of a chunk in bytes.
    #[must_use]
    pub fn chunk_bytes(self) -> u64 {
        u64::from(self.chunk_bytes)
    }

    /// Returns the number of pages in a chunk: 1 to 512.
    #[must_use]
    pub fn pages_per_chunk(self) -> u16 {
        u16::try_from(self.chunk_bytes() / PAGE_BYTES).expect("at most 512")
    }

    /// Returns the number of blocks in a chunk.
    #[must_use]
    pub fn blocks_per_chunk(self) -> u64 {
        self.chunk_bytes() / BLOCK_BYTES
    }

    /// Returns the size of the largest volume in bytes.
    #[must_use]
    pub fn max_volume_bytes(self) -> u64 {
        self.chunk_bytes() * u64::from(MAP_PAGE_ENTRIES) * u64::from(MAX_MAP_PAGES)
    }

    /// Checks the size of a volume, in bytes.
    ///
    /// # Errors
    /// Returns an error if the size is 0, too large, or not a multiple of a sector.
    pub fn check_size(self, size: u64) -> Result<(), GeometryError> {
        if size == 0 || !size.is_multiple_of(SECTOR_BYTES) || size > self.max_volume_bytes() {
            return Err(GeometryError::Volume { size, most: self.max_volume_bytes() });
        }
        Ok(())
    }

    /// Returns how many map pages a volume of `size` bytes has.
    #[must_use]
    pub fn map_pages(self, size: u64) -> u32 {
        let page_bytes = self.map_page_bytes();
        u32::try_from(size.div_ceil(page_bytes)).expect("a checked size has at most 65,536 map pages")
    }

    /// Returns how many bytes of a volume one map page covers.
    #[must_use]
    pub fn map_page_bytes(self) -> u64 {
        self.chunk_bytes() * u64::from(MAP_PAGE_ENTRIES)
    }

    /// Returns the chunk that contains the byte at `offset`.
    #[must_use]
    pub fn chunk_at(self, offset: u64) -> ChunkIndex {
        ChunkIndex(u32::try_from(offset / self.chunk_bytes()).expect("offsets lie within a checked size"))
    }

    /// Returns the range of bytes that a chunk covers.
    #[must_use]
    pub fn chunk_range(self, index: ChunkIndex) -> Range<u64> {
        let start = u64::from(index.0) * self.chunk_bytes();
        start..start + self.chunk_bytes()
    }

    /// Returns how many blocks one map page covers: at most 2^25.
    #[must_use]
    pub fn map_page_blocks(self) -> u32 {
        u32::try_from(self.map_page_bytes() / BLOCK_BYTES).expect("at most 2^25")
    }

    /// Returns the page, within its chunk, that contains the byte at `offset`.
    #[must_use]
    pub fn page_at(self, offset: u64) -> PageIndex {
        PageIndex::at(offset % self.chunk_bytes())
    }
}
