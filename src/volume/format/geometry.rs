//! Sizes and positions: how a volume is divided into chunks, pages, blocks and sectors.
//!
//! Pure arithmetic. Invariant: a [`Geometry`] is valid once made; positions computed with it lie within a
//! chunk.

use std::ops::Range;

/// Unit of dirty tracking, in bytes.
pub const SECTOR_BYTES: u64 = 512;
/// [`SECTOR_BYTES`] as a length of memory.
pub const SECTOR_LEN: usize = 512;
/// Unit in which dirty data is held, in bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// [`BLOCK_BYTES`] as a length of memory.
pub const BLOCK_LEN: usize = 4096;
/// Unit of caching and checksumming, in bytes.
pub const PAGE_BYTES: u64 = 64 * 1024;
/// [`PAGE_BYTES`] as a length of memory.
pub const PAGE_LEN: usize = 64 * 1024;
/// Entries of a map page.
pub const MAP_PAGE_ENTRIES: u32 = 4096;
/// Map pages of a root at most.
pub const MAX_MAP_PAGES: u32 = 65_536;
/// Smallest chunk, in bytes.
pub const MIN_CHUNK_BYTES: u32 = 64 * 1024;
/// Largest chunk, in bytes.
pub const MAX_CHUNK_BYTES: u32 = 32 * 1024 * 1024;
/// Chunk size where none is given, in bytes.
pub const DEFAULT_CHUNK_BYTES: u32 = 4 * 1024 * 1024;
/// Pages of the largest chunk.
pub const MAX_PAGES_PER_CHUNK: u16 = 512;

/// Position of a chunk in its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u32);

impl ChunkIndex {
    /// The map page that holds this chunk's entry.
    #[must_use]
    pub fn map_page(self) -> u32 {
        self.0 / MAP_PAGE_ENTRIES
    }

    /// The place of the entry in its map page.
    #[must_use]
    pub fn slot(self) -> u16 {
        u16::try_from(self.0 % MAP_PAGE_ENTRIES).expect("less than 4,096")
    }

    /// The chunk at `slot` of map page `page`.
    #[must_use]
    pub fn at(page: u32, slot: u16) -> Self {
        Self(page * MAP_PAGE_ENTRIES + u32::from(slot))
    }
}

/// How a volume is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    chunk_bytes: u32,
}

/// Why a size cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Chunk size.
    #[error("chunk size {0} is not a power of two from {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES} bytes")]
    Chunk(u64),
    /// Volume size.
    #[error("volume size {size} is not a multiple of {SECTOR_BYTES} from {SECTOR_BYTES} to {most} bytes")]
    Volume {
        /// Size asked for, in bytes.
        size: u64,
        /// Largest volume with this chunk size, in bytes.
        most: u64,
    },
}

impl Geometry {
    /// A geometry with chunks of this size.
    ///
    /// # Errors
    /// If it is not a power of two within the bounds.
    pub fn new(chunk_bytes: u64) -> Result<Self, GeometryError> {
        match u32::try_from(chunk_bytes) {
            Ok(bytes) if bytes.is_power_of_two() && (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&bytes) => {
                Ok(Self { chunk_bytes: bytes })
            }
            _ => Err(GeometryError::Chunk(chunk_bytes)),
        }
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn chunk_bytes(self) -> u64 {
        u64::from(self.chunk_bytes)
    }

    /// Pages of a chunk: 1 to 512.
    #[must_use]
    pub fn pages_per_chunk(self) -> u16 {
        u16::try_from(self.chunk_bytes() / PAGE_BYTES).expect("at most 512")
    }

    /// Blocks of a chunk.
    #[must_use]
    pub fn blocks_per_chunk(self) -> u64 {
        self.chunk_bytes() / BLOCK_BYTES
    }

    /// Largest volume in bytes.
    #[must_use]
    pub fn max_volume_bytes(self) -> u64 {
        self.chunk_bytes() * u64::from(MAP_PAGE_ENTRIES) * u64::from(MAX_MAP_PAGES)
    }

    /// Checks a volume's size.
    ///
    /// # Errors
    /// If it is 0, too large, or not whole sectors.
    pub fn check_size(self, size: u64) -> Result<(), GeometryError> {
        if size == 0 || !size.is_multiple_of(SECTOR_BYTES) || size > self.max_volume_bytes() {
            return Err(GeometryError::Volume { size, most: self.max_volume_bytes() });
        }
        Ok(())
    }

    /// Map pages of a volume of this size.
    #[must_use]
    pub fn map_pages(self, size: u64) -> u32 {
        let page_bytes = self.map_page_bytes();
        u32::try_from(size.div_ceil(page_bytes)).expect("a checked size has at most 65,536 map pages")
    }

    /// Bytes of a volume that one map page covers.
    #[must_use]
    pub fn map_page_bytes(self) -> u64 {
        self.chunk_bytes() * u64::from(MAP_PAGE_ENTRIES)
    }

    /// The chunk that holds the byte at `offset`.
    #[must_use]
    pub fn chunk_at(self, offset: u64) -> ChunkIndex {
        ChunkIndex(u32::try_from(offset / self.chunk_bytes()).expect("offsets lie within a checked size"))
    }

    /// The bytes of a chunk.
    #[must_use]
    pub fn chunk_range(self, index: ChunkIndex) -> Range<u64> {
        let start = u64::from(index.0) * self.chunk_bytes();
        start..start + self.chunk_bytes()
    }

    /// The page within its chunk that holds the byte at `offset`.
    #[must_use]
    pub fn page_at(self, offset: u64) -> u16 {
        u16::try_from(offset % self.chunk_bytes() / PAGE_BYTES).expect("less than 512")
    }
}
