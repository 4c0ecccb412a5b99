//! Where the bytes of a range are: in memory, in a record, in a chunk object, or nowhere (zeros).
//!
//! Must not know how bytes are fetched. Invariant: a piece references immutable bytes. They may leave memory,
//! but they never change.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::volume::format::chunk;
use crate::volume::format::codec::Checksum;
use crate::volume::format::frame::Place;
use crate::volume::format::geometry::{BLOCK_BYTES, BLOCK_LEN, ChunkIndex, PAGE_BYTES, PAGE_LEN, PageIndex};
use crate::volume::format::interval::{IntervalMap, Value};
use crate::volume::format::keys::{ObjectId, Slot};
use crate::volume::format::page_set::PageSet;
use crate::volume::format::record::{Change, Record};
use crate::volume::signal::Signal;

/// A block of 4 KiB with dirty sectors.
#[derive(Clone, Debug)]
pub struct Block {
    /// One bit for each sector, lowest first. It is set if `data` contains the sector.
    pub sectors: u8,
    /// The bytes of the block. They are meaningless for sectors whose bit is not set.
    pub data: Bytes,
}

/// Where the data of one `Data` change is stored in its record.
#[derive(Clone, Copy, Debug)]
pub struct DataPlace {
    /// Offset in the record, in bytes.
    pub at: u64,
    /// Length in bytes, at most a page.
    pub length: u32,
    /// Tag that verifies the data.
    pub tag: Checksum,
}

/// Successive `Data` changes of a record whose data is adjacent: either all of them consist of whole blocks,
/// or none does. A fold fetches a run as a unit, and the cache holds the blocks of a run as a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of its first change.
    first: u32,
    /// Offset of the run in the record, in bytes.
    pub at: u64,
    /// Length in bytes, at most a page.
    pub length: u32,
}

/// A record that the data of changes is read from.
#[derive(Debug)]
pub struct RecordRef {
    /// Its slot in the journal.
    pub slot: Slot,
    /// The places of its `Data` changes, by number of the change; `None` for other changes.
    data: Vec<Option<DataPlace>>,
    /// How many bytes of each change no later change has replaced.
    left: Vec<AtomicU32>,
    /// The runs that all `Data` changes form, in order.
    runs: Vec<Run>,
    /// The bytes of the record, until it is known to be durable.
    pub body: Mutex<Option<Bytes>>,
}

impl RecordRef {
    /// Creates a reference to a record. `body` is its bytes if they are to stay in memory for now.
    #[must_use]
    pub fn new(record: &Record, body: Option<Bytes>) -> Self {
        let data: Vec<Option<DataPlace>> = record
            .changes
            .iter()
            .map(|change| match change {
                &Change::Data { at, length, tag, .. } => Some(DataPlace { at, length, tag }),
                _ => None,
            })
            .collect();
        let mut runs: Vec<Run> = Vec::new();
        for (first, place) in (0_u32..).zip(&data) {
            let Some(place) = place else { continue };
            let is_alike = |run: &Run| {
                let begins = data[run.first as usize].map(|place| are_blocks(place.length));
                begins == Some(are_blocks(place.length))
            };
            match runs.last_mut() {
                Some(run)
                    if u64::from(run.length) + u64::from(place.length) <= PAGE_BYTES && is_alike(run) =>
                {
                    assert_eq!(run.at + u64::from(run.length), place.at, "the data of a record has no gaps");
                    run.length += place.length;
                }
                _ => runs.push(Run { first, at: place.at, length: place.length }),
            }
        }
        let left = data.iter().map(|place| AtomicU32::new(place.map_or(0, |place| place.length))).collect();
        Self { slot: record.slot, data, left, runs, body: Mutex::new(body) }
    }

    /// Returns where the data of a `Data` change is stored.
    ///
    /// # Panics
    /// Panics if it is another kind of change.
    #[must_use]
    pub fn place(&self, change: u32) -> DataPlace {
        self.data[change as usize].expect("a piece names a data change")
    }

    /// Records that a later change has replaced `bytes` bytes of a `Data` change. Returns whether all of it
    /// is replaced now.
    pub(crate) fn replace(&self, change: u32, bytes: u64) -> bool {
        let bytes = u32::try_from(bytes).expect("at most a page");
        self.left[change as usize].fetch_sub(bytes, Ordering::Relaxed) == bytes
    }

    /// Returns the `Data` changes that are not replaced, with their places.
    pub(crate) fn left(&self) -> impl Iterator<Item = (u32, DataPlace)> + '_ {
        let changes = (0_u32..).zip(self.data.iter().zip(&self.left));
        changes.filter_map(|(number, (place, left))| {
            place.filter(|_| left.load(Ordering::Relaxed) > 0).map(|place| (number, place))
        })
    }

    /// Returns how the cache holds a `Data` change: the number of the change that names the piece, and which
    /// blocks of the piece are the change's. The changes of a run share a piece if they consist of blocks.
    /// Any other change is a piece by itself, and counts as one block.
    #[must_use]
    pub fn held_as(&self, change: u32) -> (u32, Range<u32>) {
        let place = self.place(change);
        if !are_blocks(place.length) {
            return (change, 0..1);
        }
        let run = self.run(self.run_of(change));
        let block = |bytes: u64| u32::try_from(bytes / BLOCK_BYTES).expect("a run is at most a page");
        let start = block(place.at - run.at);
        (run.first, start..start + block(u64::from(place.length)))
    }

    /// Returns the number of the run that contains a `Data` change.
    #[must_use]
    pub fn run_of(&self, change: u32) -> u32 {
        let after = self.runs.partition_point(|run| run.first <= change);
        u32::try_from(after - 1).expect("no more than changes")
    }

    /// Returns a run by its number.
    #[must_use]
    pub fn run(&self, number: u32) -> Run {
        self.runs[number as usize]
    }

    /// Returns the `Data` changes of the run with this number that are not replaced, or `None` if there is no
    /// such run.
    pub(crate) fn left_in_run(&self, number: u32) -> Option<Vec<u32>> {
        self.runs.get(number as usize)?;
        let left = |change: &u32| self.left[*change as usize].load(Ordering::Relaxed) > 0;
        Some(self.changes_of_run(number).filter(left).collect())
    }

    /// The numbers of the changes of a run. Some may be no `Data` changes.
    fn changes_of_run(&self, number: u32) -> Range<u32> {
        let next = self.runs.get(number as usize + 1).map(|next| next.first);
        let end = next.unwrap_or_else(|| u32::try_from(self.data.len()).expect("a count is four bytes"));
        self.run(number).first..end
    }

    /// Whether the data of every change in a run matches its tag. `place` is the record's.
    #[must_use]
    pub fn verify_run(&self, place: &Place, number: u32, bytes: &[u8]) -> bool {
        let run = self.run(number);
        self.changes_of_run(number).all(|change| {
            let Some(data) = &self.data[change as usize] else { return true };
            let start = usize::try_from(data.at - run.at).expect("within the run");
            let bytes = bytes.get(start..start + data.length as usize);
            bytes.is_some_and(|bytes| place.tag(u64::from(change), bytes) == data.tag)
        })
    }
}

/// Whether so many bytes of changes are whole blocks.
#[must_use]
pub const fn are_blocks(length: u32) -> bool {
    (length as usize).is_multiple_of(BLOCK_LEN)
}

/// What memory contains of a chunk that was filled.
#[derive(Clone, Debug)]
pub enum ChunkMemory {
    /// Its blocks. The object has not been made yet.
    Blocks(Arc<Vec<Bytes>>),
    /// The bytes of the object, which is being uploaded.
    Object(Bytes),
    /// Nothing. The object is durable.
    Gone,
}

/// A chunk that was filled completely, and is stored as one object.
#[derive(Debug)]
pub struct ChunkRef {
    /// Index of the chunk in the volume.
    pub index: ChunkIndex,
    /// Id of the chunk object.
    pub id: ObjectId,
    /// Number of pages in a chunk.
    pub pages_per_chunk: u16,
    /// Pages that the object stores. The others are zeros. If the set is empty, no object is needed.
    pub stored: PageSet,
    /// What memory contains of the chunk.
    pub memory: Mutex<ChunkMemory>,
    /// Becomes `true` when the object is durable.
    pub uploaded: Signal<bool>,
}

impl ChunkRef {
    /// Creates a reference to a chunk in memory that must be uploaded.
    #[must_use]
    pub fn filled(index: ChunkIndex, id: ObjectId, pages_per_chunk: u16, blocks: Vec<Bytes>) -> Self {
        let mut stored = PageSet::EMPTY;
        let blocks_per_page = usize::try_from(PAGE_BYTES / BLOCK_BYTES).expect("16");
        for (page, blocks) in (0..pages_per_chunk).map(PageIndex).zip(blocks.chunks(blocks_per_page)) {
            if !blocks.iter().all(|block| is_zero(block)) {
                stored.insert(page);
            }
        }
        let memory = Mutex::new(ChunkMemory::Blocks(Arc::new(blocks)));
        Self { index, id, pages_per_chunk, stored, memory, uploaded: Signal::new(false) }
    }

    /// Creates a reference to a chunk whose object is already durable.
    #[must_use]
    pub fn durable(index: ChunkIndex, id: ObjectId, pages_per_chunk: u16, stored: PageSet) -> Self {
        let memory = Mutex::new(ChunkMemory::Gone);
        Self { index, id, pages_per_chunk, stored, memory, uploaded: Signal::new(true) }
    }

    /// Returns `length` bytes from byte `at` of the chunk if no fetch is needed. They must
    /// lie within one page.
    fn in_memory(&self, at: u64, length: usize) -> Option<InMemory> {
        let page = PageIndex::at(at);
        if !self.stored.contains(page) {
            return Some(InMemory::Zero);
        }
        match &*self.memory.lock() {
            ChunkMemory::Blocks(blocks) => Some(InMemory::Bytes(copy_blocks(blocks, at, length))),
            ChunkMemory::Object(object) => Some(InMemory::Bytes(self.copy_frames(object, at, length))),
            ChunkMemory::Gone => None,
        }
    }

    /// Copies `length` bytes from byte `at` of the chunk on, which lie within one stored page, from the bytes
    /// of the object.
    fn copy_frames(&self, object: &[u8], at: u64, length: usize) -> Bytes {
        let (rank, mut at) = (self.stored.rank(PageIndex::at(at)), at % PAGE_BYTES);
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let block = u32::try_from(at / BLOCK_BYTES).expect("within a page");
            let block = chunk::payload(object, self.pages_per_chunk, rank, block);
            let within = usize::try_from(at % BLOCK_BYTES).expect("4 KiB");
            let part = (BLOCK_LEN - within).min(length - bytes.len());
            bytes.extend_from_slice(&block[within..within + part]);
            at += part as u64;
        }
        Bytes::from(bytes)
    }
}

/// Where the bytes of a range are.
#[derive(Clone, Debug)]
pub enum Piece {
    /// In memory: exactly these bytes, which lie within one block.
    Block(Bytes),
    /// Nowhere: the range reads as zeros.
    Zero {
        /// Whether the range is unallocated.
        hole: bool,
    },
    /// In the data of a `Data` change of a record, from byte `at` on.
    Data {
        /// The record that contains the change.
        record: Arc<RecordRef>,
        /// Number of the change in the record.
        change: u32,
        /// Offset in the data of the change, in bytes.
        at: u64,
    },
    /// In a chunk object that no map page references yet, from this byte of the chunk on.
    Chunk(Arc<ChunkRef>, u64),
}

impl Piece {
    /// Whether two pieces reference the same bytes. Conservative: `false` if that is not known.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Block(a), Self::Block(b)) => a.as_ptr() == b.as_ptr(),
            (Self::Zero { .. }, Self::Zero { .. }) => true,
            (Self::Data { record: a, change: c, at: i }, Self::Data { record: b, change: d, at: j }) => {
                a.slot == b.slot && c == d && i == j
            }
            (Self::Chunk(a, i), Self::Chunk(b, j)) => a.index == b.index && a.id == b.id && i == j,
            _ => false,
        }
    }

    /// Returns the first `length` bytes of the piece if no fetch is needed. They must lie within one page.
    #[must_use]
    pub fn in_memory(&self, length: u64) -> Option<InMemory> {
        let length_bytes = usize::try_from(length).expect("a piece that is read fits into memory");
        match self {
            Self::Block(bytes) => Some(InMemory::Bytes(part_of_block(bytes, 0..length_bytes))),
            Self::Zero { .. } => Some(InMemory::Zero),
            Self::Data { record, change, at } => {
                let body = record.body.lock().clone()?;
                let place = record.place(*change);
                let start = usize::try_from(place.at + at).expect("within the record");
                Some(InMemory::Bytes(part(&body, start..start + length_bytes)))
            }
            Self::Chunk(chunk, at) => chunk.in_memory(*at, length_bytes),
        }
    }
}

/// The bytes of a piece that needs no fetch.
#[derive(Clone, Debug)]
pub enum InMemory {
    /// The bytes themselves, from memory.
    Bytes(Bytes),
    /// As many zeros as were requested.
    Zero,
}

fn copy_blocks(blocks: &[Bytes], at: u64, length: usize) -> Bytes {
    let mut at = usize::try_from(at).expect("within a chunk");
    let end = at + length;
    if at / BLOCK_LEN == (end - 1) / BLOCK_LEN {
        let within = at % BLOCK_LEN;
        return part_of_block(&blocks[at / BLOCK_LEN], within..within + length);
    }
    let mut bytes = Vec::with_capacity(length);
    while at < end {
        let within = at % BLOCK_LEN;
        let until = BLOCK_LEN.min(within + (end - at));
        bytes.extend_from_slice(&blocks[at / BLOCK_LEN][within..until]);
        at += until - within;
    }
    Bytes::from(bytes)
}

/// Returns the blocks of one page, from the blocks of a whole chunk.
#[must_use]
pub fn blocks_of_page(blocks: &[Bytes], page: PageIndex) -> &[Bytes] {
    let blocks_per_page = PAGE_LEN / BLOCK_LEN;
    &blocks[usize::from(page.0) * blocks_per_page..][..blocks_per_page]
}

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Comparing the bytes with themselves, shifted by one, runs at the speed of memcmp.
    bytes.first().is_none_or(|first| *first == 0)
        && bytes.get(1..).is_none_or(|rest| *rest == bytes[..rest.len()])
}

impl Value for Piece {
    fn advanced(&self, by: u64) -> Self {
        match self {
            Self::Block(bytes) => Self::Block(bytes.slice(usize::try_from(by).expect("within a block")..)),
            Self::Zero { hole } => Self::Zero { hole: *hole },
            Self::Data { record, change, at } => {
                Self::Data { record: Arc::clone(record), change: *change, at: at + by }
            }
            Self::Chunk(chunk, at) => Self::Chunk(Arc::clone(chunk), at + by),
        }
    }
}

/// Returns a part of `whole`. A short part is copied, because a slice keeps all of `whole` in memory: a reply
/// that a client does not read would hold many times the bytes that it was charged for.
#[must_use]
pub fn part(whole: &Bytes, range: Range<usize>) -> Bytes {
    if range.len() * 2 <= whole.len() { Bytes::copy_from_slice(&whole[range]) } else { whole.slice(range) }
}

/// As [`part`], for bytes that may already be a slice of a block.
fn part_of_block(bytes: &Bytes, range: Range<usize>) -> Bytes {
    if range.len() * 2 <= BLOCK_LEN { Bytes::copy_from_slice(&bytes[range]) } else { bytes.slice(range) }
}

/// Returns the bytes in memory that contains little else. They are copied if they share
/// memory with other bytes.
#[must_use]
pub fn own(bytes: Bytes) -> Bytes {
    let most = bytes.len() + bytes.len() / 16;
    match bytes.try_into_mut() {
        Ok(sole) if sole.capacity() <= most => sole.freeze(),
        Ok(sole) => Bytes::copy_from_slice(&sole),
        Err(shared) => Bytes::copy_from_slice(&shared),
    }
}

/// Inserts the `Data` changes of a record into `pieces`, by their range on the volume.
pub(crate) fn insert_data(record: &Arc<RecordRef>, changes: &[Change], pieces: &mut IntervalMap<Piece>) {
    for (number, change) in changes.iter().enumerate() {
        if let Change::Data { offset, length, .. } = change {
            let change = u32::try_from(number).expect("a count is four bytes");
            let piece = Piece::Data { record: Arc::clone(record), change, at: 0 };
            pieces.insert(*offset..*offset + u64::from(*length), piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::volume::format::codec::Checksum;
    use crate::volume::format::record::{RecordKind, RecordWriter};
    use crate::volume::format::sealing::Sealing;

    /// Bytes that a reply keeps in memory once the memory that it was read from is released.
    fn held_alone(reply: Option<InMemory>) -> usize {
        let Some(InMemory::Bytes(bytes)) = reply else { panic!("it is in memory") };
        bytes.try_into_mut().expect("nobody else holds it").capacity()
    }

    fn record_of_blocks(blocks: u64) -> Arc<RecordRef> {
        let lengths = vec![BLOCK_LEN; usize::try_from(blocks).expect("few")];
        record_of(&lengths)
    }

    /// A record of changes of these lengths in bytes, one after the other on the volume.
    fn record_of(lengths: &[usize]) -> Arc<RecordRef> {
        let slot = Slot { epoch: 1, n: 2 };
        let kind = RecordKind::Commit;
        let mut writer =
            RecordWriter::new(Sealing::new(Uuid::from_u128(1)), kind, slot, 1, 7, Checksum::default(), 64);
        let mut offset = 0;
        for length in lengths {
            writer.data(offset, Bytes::from(vec![7; *length]));
            offset += *length as u64;
        }
        let (record, body, _) = writer.finish();
        Arc::new(RecordRef::new(&record, Some(body)))
    }

    #[test]
    fn only_changes_of_whole_blocks_share_a_piece() {
        let sectors = [512; 8];
        let record =
            record_of(&[&sectors[..], &[BLOCK_LEN, 2 * BLOCK_LEN, BLOCK_LEN, 512, BLOCK_LEN]].concat());
        let held: Vec<_> = (0..13).map(|change| record.held_as(change)).collect();
        let alone = |change: u32| (change, 0..1);
        // The eight sectors are as long as a block, but none of them is one.
        let mut expected: Vec<_> = (0..8).map(alone).collect();
        expected.extend([(8, 0..1), (8, 1..3), (8, 3..4), alone(11), alone(12)]);
        assert_eq!(held, expected);
        let runs: Vec<_> = (0..13).map(|change| record.run_of(change)).collect();
        assert_eq!(runs, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3]);
    }

    #[test]
    fn a_short_reply_keeps_no_record_in_memory() {
        let record = record_of_blocks(256);
        let piece = Piece::Data { record: Arc::clone(&record), change: 0, at: 0 };
        let replies = [piece.in_memory(512), piece.in_memory(BLOCK_BYTES)];
        let body = record.body.lock().take().expect("it is on its way");
        assert!(body.is_unique(), "no reply holds the record");
        assert_eq!(replies.map(held_alone), [512, BLOCK_LEN]);
    }

    #[test]
    fn a_short_reply_keeps_neither_a_chunk_object_nor_a_block_in_memory() {
        let id = ObjectId { epoch: 1, k: 1 };
        let blocks = vec![Bytes::from(vec![7; BLOCK_LEN]); 16];
        let chunk = Arc::new(ChunkRef::filled(ChunkIndex(0), id, 1, blocks));
        let of_blocks = Piece::Chunk(Arc::clone(&chunk), 512).in_memory(512);
        *chunk.memory.lock() = ChunkMemory::Object(Bytes::from(vec![7; 2 * PAGE_LEN]));
        let of_object = Piece::Chunk(Arc::clone(&chunk), 512).in_memory(BLOCK_BYTES);
        *chunk.memory.lock() = ChunkMemory::Gone;
        let of_block = Piece::Block(Bytes::from(vec![7; BLOCK_LEN]).slice(512..)).in_memory(512);
        let replies = [of_blocks, of_object, of_block];
        assert_eq!(replies.map(held_alone), [512, BLOCK_LEN, 512]);
    }
}
