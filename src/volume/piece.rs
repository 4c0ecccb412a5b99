//! Where the bytes of a range are: in memory, in a record, in a chunk object, or nowhere (zeros).
//!
//! Invariant: a piece names immutable bytes. What it names may leave memory, never change.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::chunk::frame_offset;
use super::codec::Checksum;
use super::geometry::{BLOCK_BYTES, BLOCK_LEN, ChunkIndex, PAGE_BYTES, PAGE_LEN};
use super::interval::Value;
use super::keys::{ObjectId, Slot};
use super::page_set::PageSet;
use super::signal::Signal;

/// A block with dirty sectors.
#[derive(Clone, Debug)]
pub struct Block {
    /// One bit a sector, lowest first: set where `data` holds it.
    pub sectors: u8,
    /// The bytes; meaningless where the sector's bit is not set.
    pub data: [u8; BLOCK_LEN],
}

/// Lets a block be the owner of a [`Bytes`].
#[derive(Debug)]
pub struct BlockBytes(pub Arc<Block>);

impl AsRef<[u8]> for BlockBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0.data
    }
}

/// Where one `Data` change of a record lies in it.
#[derive(Clone, Copy, Debug)]
pub struct DataPlace {
    /// First byte in the record.
    pub at: u64,
    /// Bytes.
    pub length: u32,
    /// Tag.
    pub tag: Checksum,
}

/// A record that changes are read from.
#[derive(Debug)]
pub struct RecordRef {
    /// Where it stands in the journal.
    pub slot: Slot,
    /// Its `Data` changes by number; `None` for other changes.
    pub data: Vec<Option<DataPlace>>,
    /// Its bytes, until it is known to be durable.
    pub body: Mutex<Option<Bytes>>,
}

/// What memory holds of a chunk that was filled.
#[derive(Clone, Debug)]
pub enum ChunkMemory {
    /// Its blocks: the object is not made yet.
    Blocks(Arc<Vec<Arc<Block>>>),
    /// The object's bytes: it is being uploaded.
    Object(Bytes),
    /// Nothing: the object is durable.
    Gone,
}

/// A chunk that was filled, and is uploaded whole.
#[derive(Debug)]
pub struct ChunkRef {
    /// Which chunk.
    pub index: ChunkIndex,
    /// Its object.
    pub id: ObjectId,
    /// Pages of a chunk.
    pub pages_per_chunk: u16,
    /// Pages that the object stores; the others are zeros. If there are none, there is no object.
    pub stored: PageSet,
    /// What memory holds of it.
    pub memory: Mutex<ChunkMemory>,
    /// Whether the object is durable.
    pub uploaded: Signal<bool>,
}

impl ChunkRef {
    /// A chunk in memory, to be uploaded.
    #[must_use]
    pub fn filled(index: ChunkIndex, id: ObjectId, pages_per_chunk: u16, blocks: Vec<Arc<Block>>) -> Self {
        let mut stored = PageSet::EMPTY;
        let blocks_per_page = usize::try_from(PAGE_BYTES / BLOCK_BYTES).expect("16");
        for (page, blocks) in (0..pages_per_chunk).zip(blocks.chunks(blocks_per_page)) {
            if !blocks.iter().all(|block| is_zero(&block.data)) {
                stored.insert(page);
            }
        }
        let memory = Mutex::new(ChunkMemory::Blocks(Arc::new(blocks)));
        Self { index, id, pages_per_chunk, stored, memory, uploaded: Signal::new(false) }
    }

    /// A chunk whose object is durable.
    #[must_use]
    pub fn durable(index: ChunkIndex, id: ObjectId, pages_per_chunk: u16, stored: PageSet) -> Self {
        let memory = Mutex::new(ChunkMemory::Gone);
        Self { index, id, pages_per_chunk, stored, memory, uploaded: Signal::new(true) }
    }

    /// `length` bytes from byte `at` of the chunk, within one page, if they need no fetch.
    fn in_memory(&self, at: u64, length: usize) -> Option<InMemory> {
        let page = u16::try_from(at / PAGE_BYTES).expect("within a chunk");
        if !self.stored.contains(page) {
            return Some(InMemory::Zero);
        }
        match &*self.memory.lock() {
            ChunkMemory::Blocks(blocks) => Some(InMemory::Bytes(copy_blocks(blocks, at, length))),
            ChunkMemory::Object(object) => {
                let frame = frame_offset(self.pages_per_chunk, self.stored.rank(page));
                let start = usize::try_from(frame + at % PAGE_BYTES).expect("within the object");
                Some(InMemory::Bytes(object.slice(start..start + length)))
            }
            ChunkMemory::Gone => None,
        }
    }
}

/// Where a range's bytes are.
#[derive(Clone, Debug)]
pub enum Piece {
    /// In a block, from this byte of it.
    Block(Arc<Block>, usize),
    /// Zeros.
    Zero {
        /// Whether the range is unallocated.
        hole: bool,
    },
    /// In a `Data` change of a record, from this byte of it.
    Data {
        /// The record.
        record: Arc<RecordRef>,
        /// Number of the change.
        change: u32,
        /// First byte.
        at: u64,
    },
    /// In a chunk object that no map page names yet, from this byte of the chunk.
    Chunk(Arc<ChunkRef>, u64),
}

impl Piece {
    /// Whether the piece names the same bytes as another; conservative (`false` where that is not known).
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Block(a, i), Self::Block(b, j)) => Arc::ptr_eq(a, b) && i == j,
            (Self::Zero { .. }, Self::Zero { .. }) => true,
            (Self::Data { record: a, change: c, at: i }, Self::Data { record: b, change: d, at: j }) => {
                a.slot == b.slot && c == d && i == j
            }
            (Self::Chunk(a, i), Self::Chunk(b, j)) => a.index == b.index && a.id == b.id && i == j,
            _ => false,
        }
    }

    /// `length` bytes of the piece, which lie within one page, if they need no fetch.
    #[must_use]
    pub fn in_memory(&self, length: u64) -> Option<InMemory> {
        let length_bytes = usize::try_from(length).expect("a piece that is read fits into memory");
        match self {
            Self::Block(block, at) => Some(InMemory::Bytes(
                Bytes::from_owner(BlockBytes(Arc::clone(block))).slice(*at..at + length_bytes),
            )),
            Self::Zero { .. } => Some(InMemory::Zero),
            Self::Data { record, change, at } => {
                let body = record.body.lock().clone()?;
                let place = record.data[*change as usize].expect("a piece names a data change");
                let start = usize::try_from(place.at + at).expect("within the record");
                Some(InMemory::Bytes(body.slice(start..start + length_bytes)))
            }
            Self::Chunk(chunk, at) => chunk.in_memory(*at, length_bytes),
        }
    }
}

/// Bytes of a piece that needs no fetch.
#[derive(Clone, Debug)]
pub enum InMemory {
    /// Bytes.
    Bytes(Bytes),
    /// Zeros.
    Zero,
}

fn copy_blocks(blocks: &[Arc<Block>], at: u64, length: usize) -> Bytes {
    let block_bytes = BLOCK_LEN;
    let mut at = usize::try_from(at).expect("within a chunk");
    let end = at + length;
    if at / block_bytes == (end - 1) / block_bytes {
        let within = at % block_bytes;
        let block = Arc::clone(&blocks[at / block_bytes]);
        return Bytes::from_owner(BlockBytes(block)).slice(within..within + length);
    }
    let mut bytes = Vec::with_capacity(length);
    while at < end {
        let within = at % block_bytes;
        let until = block_bytes.min(within + (end - at));
        bytes.extend_from_slice(&blocks[at / block_bytes].data[within..until]);
        at += until - within;
    }
    Bytes::from(bytes)
}

/// The bytes of a page of a chunk made of blocks.
#[must_use]
pub fn page_of_blocks(blocks: &[Arc<Block>], page: u16) -> Bytes {
    copy_blocks(blocks, u64::from(page) * PAGE_BYTES, PAGE_LEN)
}

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Compared with itself shifted, so that it runs at the speed of memcmp.
    bytes.first().is_none_or(|first| *first == 0)
        && bytes.get(1..).is_none_or(|rest| *rest == bytes[..rest.len()])
}

impl Value for Piece {
    fn advanced(&self, by: u64) -> Self {
        match self {
            Self::Block(block, at) => {
                Self::Block(Arc::clone(block), at + usize::try_from(by).expect("within a block"))
            }
            Self::Zero { hole } => Self::Zero { hole: *hole },
            Self::Data { record, change, at } => {
                Self::Data { record: Arc::clone(record), change: *change, at: at + by }
            }
            Self::Chunk(chunk, at) => Self::Chunk(Arc::clone(chunk), at + by),
        }
    }
}
