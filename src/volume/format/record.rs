//! Records of the journal: commits, opening records and seals.
//!
//! `prologue | kind, flags (2) | slot (12) | writer's epoch (4) | nonce (8) |
//! previous record's checksum (16) | pages of a chunk (2) | count (4) | data bytes (8) | table |
//! table checksum (16) | data | checksum (16)`.
//!
//! The table lists the changes in the order in which they are applied. The data of the `Data` changes follows
//! the table in the same order. Each has a tag of its own, so that it can be fetched and verified alone.
//!
//! Must not know how records are sent or replayed. Invariant: the checksum of a record's table covers the
//! tags of its data and the checksum of the record before it, and so the whole journal up to this record.

use super::codec::{Checksum, DecodeError, Decoder, Encoder, Kind, invalid};
use super::frame::Place;
use super::geometry::{ChunkIndex, Geometry, MAX_PAGES_PER_CHUNK, PAGE_BYTES};
use super::keys::{Epoch, ObjectId, Slot};
use super::page_set::PageSet;
use super::sealing::Sealing;
use super::snapshot::Snapshot;
use bytes::Bytes;

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The first record in the log of its epoch. It proves that its writer replayed everything before it.
    Opening,
    /// A batch of changes to the volume.
    Commit,
    /// The end of the log of an older epoch.
    Seal,
}

/// A change, as the table of a record lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bytes that are written at an offset, within one page.
    Data {
        /// Offset on the volume, in bytes.
        offset: u64,
        /// Length in bytes, at most a page.
        length: u32,
        /// Offset of the data in the record, in bytes.
        at: u64,
        /// Tag that verifies the data.
        tag: Checksum,
    },
    /// A range that is zeroed.
    Zero {
        /// Offset on the volume, in bytes.
        offset: u64,
        /// Length in bytes.
        length: u64,
        /// Whether the range becomes unallocated.
        hole: bool,
    },
    /// A chunk that was uploaded as one object.
    Chunk {
        /// Index of the chunk in the volume.
        index: ChunkIndex,
        /// Id of the chunk object.
        id: ObjectId,
        /// Pages that the object stores. The other pages are zeros. All pages of the chunk become allocated.
        stored: PageSet,
    },
    /// A new size of the volume. Only a snapshot may follow it in its record. Before it, the record makes the
    /// range between the two sizes unallocated, whichever of them is larger.
    Resize {
        /// The new size in bytes.
        size_bytes: u64,
    },
    /// A snapshot of the volume as it is at this change, which is the last of its record.
    Snapshot(Snapshot),
}

/// The contents of a record, without the data of its changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The kind of the record.
    pub kind: RecordKind,
    /// The record's place in the journal.
    pub slot: Slot,
    /// Epoch of the writer: the epoch of the slot or, for a seal, a later one.
    pub writer: Epoch,
    /// Distinguishes this record from another record with the same content.
    pub nonce: u64,
    /// Table checksum of the previous record in the journal.
    pub previous: Checksum,
    /// Number of pages in a chunk, which determines the length of the bitmaps.
    pub pages_per_chunk: u16,
    /// The changes, in the order in which they are applied.
    pub changes: Vec<Change>,
    /// Total length in bytes of the data after the table.
    pub data_bytes: u64,
}

const LEAST_CHANGE_BYTES: usize = 2;
/// Length in bytes of a record without changes: an opening record or a seal.
pub const EMPTY_RECORD_BYTES: u64 = (HEADER_BYTES + 2 * Checksum::BYTES) as u64;
/// Length in bytes of a `Zero` change in the table.
pub const ZERO_CHANGE_BYTES: u64 = 1 + 8 + 8 + 1;
/// Length in bytes of a `Resize` change in the table.
pub const RESIZE_CHANGE_BYTES: u64 = 1 + 8;
/// Length in bytes of the header, which ends where the table begins.
const HEADER_BYTES: usize = Encoder::PROLOGUE_BYTES + 2 + 12 + 4 + 8 + 16 + 2 + 4 + 8;
/// Length in bytes of a `Data` change in the table, without its data.
pub const DATA_CHANGE_BYTES: u64 = 1 + 8 + 4 + 16;

/// Returns the length in bytes of a `Chunk` change in the table.
#[must_use]
pub fn chunk_change_bytes(pages_per_chunk: u16) -> u64 {
    (1 + 4 + 12 + PageSet::encoded_bytes(pages_per_chunk)) as u64
}

/// Returns the length in bytes of a `Snapshot` change in the table.
#[must_use]
pub fn snapshot_change_bytes(snapshot: &Snapshot) -> u64 {
    1 + snapshot.encoded_bytes()
}

/// Builds a record, change by change.
#[derive(Debug)]
pub struct RecordWriter {
    record: Record,
    place: Place,
    sealing: Sealing,
    data: Vec<Bytes>,
}

impl RecordWriter {
    /// Starts a record without changes.
    #[must_use]
    pub fn new(
        sealing: Sealing,
        kind: RecordKind,
        slot: Slot,
        writer: Epoch,
        nonce: u64,
        previous: Checksum,
        pages_per_chunk: u16,
    ) -> Self {
        let record = Record {
            kind,
            slot,
            writer,
            nonce,
            previous,
            pages_per_chunk,
            changes: Vec::new(),
            data_bytes: 0,
        };
        Self { record, place: Place::record(sealing, slot), sealing, data: Vec::new() }
    }

    /// Appends a change that has no data.
    pub fn change(&mut self, change: Change) {
        assert!(!matches!(change, Change::Data { .. }), "data comes by RecordWriter::data");
        self.record.changes.push(change);
    }

    /// Appends a `Data` change. The bytes must lie within one page.
    ///
    /// # Panics
    /// Panics if they do not.
    pub fn data(&mut self, offset: u64, data: Bytes) {
        let length = u32::try_from(data.len()).expect("at most a page");
        assert!(is_within_page(offset, length), "a data change lies within one page");
        let number = u32::try_from(self.record.changes.len()).expect("changes are bounded");
        let tag = self.place.tag(u64::from(number), &data);
        // The offset of the data in the record depends on the length of the table, so until `finish` it
        // counts from the start of the data.
        self.record.changes.push(Change::Data { offset, length, at: self.record.data_bytes, tag });
        self.record.data_bytes += u64::from(length);
        self.data.push(data);
    }

    /// Encodes the record. Returns the record, its bytes and the checksum of its table.
    #[must_use]
    pub fn finish(self) -> (Record, Bytes, Checksum) {
        let (record, bytes, checksum) = self.finish_within(Vec::with_capacity);
        (record, Bytes::from(bytes), checksum)
    }

    /// As [`RecordWriter::finish`], in a buffer that `memory` returns for a number of bytes. The old contents
    /// of the buffer are discarded.
    #[must_use]
    pub fn finish_within(mut self, memory: impl FnOnce(usize) -> Vec<u8>) -> (Record, Vec<u8>, Checksum) {
        let mut table = HEADER_BYTES + Checksum::BYTES;
        for change in &self.record.changes {
            table += change_bytes(change, self.record.pages_per_chunk);
        }
        let data_bytes = usize::try_from(self.record.data_bytes).expect("a record fits into memory");
        let bytes = table + data_bytes + Checksum::BYTES;
        let mut to = Encoder::within(Kind::Record, self.sealing.volume(), memory(bytes));
        self.record.encode_table(&mut to);
        let checksum = Checksum::of(to.written());
        to.raw(&checksum.0);
        assert_eq!(to.position(), table, "the table is as long as its changes");
        for data in self.data {
            to.raw(&data);
        }
        for change in &mut self.record.changes {
            if let Change::Data { at, .. } = change {
                *at += u64::try_from(table).expect("small");
            }
        }
        (self.record, to.finish(), checksum)
    }
}

fn is_within_page(offset: u64, length: u32) -> bool {
    length > 0 && offset % PAGE_BYTES + u64::from(length) <= PAGE_BYTES
}

fn change_bytes(change: &Change, pages: u16) -> usize {
    let bytes = match change {
        Change::Data { .. } => DATA_CHANGE_BYTES,
        Change::Zero { .. } => ZERO_CHANGE_BYTES,
        Change::Chunk { .. } => chunk_change_bytes(pages),
        Change::Resize { .. } => RESIZE_CHANGE_BYTES,
        Change::Snapshot(snapshot) => snapshot_change_bytes(snapshot),
    };
    usize::try_from(bytes).expect("at most a name or a bitmap")
}

impl Record {
    /// The size in bytes that the record gives the volume, if it changes it.
    #[must_use]
    pub fn resized(&self) -> Option<u64> {
        self.changes.iter().rev().find_map(|change| match change {
            Change::Resize { size_bytes } => Some(*size_bytes),
            _ => None,
        })
    }

    /// Checks that the changes lie within a volume of `size_bytes`. If they give it a new size, that must be
    /// the last change but for a snapshot, and the range between the two sizes must be unallocated.
    ///
    /// # Errors
    /// Returns what is wrong, for people, without a subject.
    pub fn check_within(&self, geometry: Geometry, size_bytes: u64) -> Result<(), String> {
        let resized = self.resized().unwrap_or(size_bytes);
        geometry.check_size(resized).map_err(|error| format!("changes the size: {error}"))?;
        let between = size_bytes.min(resized)..size_bytes.max(resized);
        let cleared = Change::Zero { offset: between.start, length: between.end - between.start, hole: true };
        let (mut is_cleared, mut is_last) = (between.is_empty(), false);
        for change in &self.changes {
            if is_last && !matches!(change, Change::Snapshot(_)) {
                return Err("has a change after the new size".to_owned());
            }
            let range = match change {
                Change::Data { offset, length, .. } => *offset..offset.saturating_add(u64::from(*length)),
                Change::Zero { offset, length, .. } => *offset..offset.saturating_add(*length),
                Change::Chunk { index, .. } => {
                    let start = geometry.chunk_range(*index).start;
                    start..start.saturating_add(1)
                }
                Change::Snapshot(_) => continue,
                Change::Resize { .. } => {
                    is_last = true;
                    continue;
                }
            };
            if *change == cleared {
                is_cleared = true;
            } else if range.end > between.start {
                return Err(format!("changes byte {} of a volume of {}", range.end - 1, between.start));
            }
        }
        if is_cleared { Ok(()) } else { Err("changes the size and keeps what is between".to_owned()) }
    }

    fn encode_table(&self, to: &mut Encoder) {
        to.u8(match self.kind {
            RecordKind::Opening => 1,
            RecordKind::Commit => 2,
            RecordKind::Seal => 3,
        });
        to.u8(0);
        self.slot.encode(to);
        to.u32(self.writer);
        to.u64(self.nonce);
        to.raw(&self.previous.0);
        to.u16(self.pages_per_chunk);
        to.len(self.changes.len());
        to.u64(self.data_bytes);
        for change in &self.changes {
            match change {
                Change::Data { offset, length, tag, .. } => {
                    to.u8(1);
                    to.u64(*offset);
                    to.u32(*length);
                    to.raw(&tag.0);
                }
                Change::Zero { offset, length, hole } => {
                    to.u8(2);
                    to.u64(*offset);
                    to.u64(*length);
                    to.u8(u8::from(*hole));
                }
                Change::Chunk { index, id, stored } => {
                    to.u8(3);
                    to.u32(index.0);
                    id.encode(to);
                    stored.encode(self.pages_per_chunk, to);
                }
                Change::Resize { size_bytes } => {
                    to.u8(4);
                    to.u64(*size_bytes);
                }
                Change::Snapshot(snapshot) => {
                    to.u8(5);
                    snapshot.encode(to);
                }
            }
        }
    }

    /// Decodes a whole record and verifies all of it. Also returns the checksum of its table.
    ///
    /// # Errors
    /// Returns an error if the record is damaged, belongs to another volume, or is not the record of `slot`.
    pub fn decode(sealing: Sealing, slot: Slot, bytes: &[u8]) -> Result<(Self, Checksum), DecodeError> {
        Decoder::object_of(Kind::Record, sealing.volume(), bytes)?;
        let end = Self::table_bytes(sealing, bytes, bytes.len() as u64)?;
        let end = usize::try_from(end).expect("within the bytes");
        let (record, checksum) = Self::decode_table(sealing, slot, &bytes[..end])?;
        let mut from = Decoder::fields(&bytes[end..bytes.len() - Checksum::BYTES]);
        let place = Place::record(sealing, slot);
        for (number, change) in (0..).zip(&record.changes) {
            if let Change::Data { length, tag, .. } = change {
                let data = from.raw(usize::try_from(*length).expect("at most a page"))?;
                if place.tag(number, data) != *tag {
                    return Err(DecodeError::Checksum);
                }
            }
        }
        from.finish()?;
        Ok((record, checksum))
    }

    /// Returns the offset at which the data of a record begins, behind its table and the checksum of the
    /// table. `start` is the beginning of the record, which has `size_bytes` bytes.
    ///
    /// # Errors
    /// Returns an error if this is not a record of the volume, or not of this size.
    pub fn table_bytes(sealing: Sealing, start: &[u8], size_bytes: u64) -> Result<u64, DecodeError> {
        let Some(last) = start.get(HEADER_BYTES - 8..HEADER_BYTES) else {
            return Err(DecodeError::Truncated { missing: HEADER_BYTES - start.len() });
        };
        let (found, _) = Decoder::prologue(Kind::Record, start)?;
        if found != sealing.volume() {
            return Err(DecodeError::Volume(found));
        }
        let data_bytes = Decoder::fields(last).u64()?;
        let behind = data_bytes.saturating_add(Checksum::BYTES as u64);
        match size_bytes.checked_sub(behind) {
            Some(table) if table >= (HEADER_BYTES + Checksum::BYTES) as u64 => Ok(table),
            _ => Err(invalid("data", format!("{data_bytes} bytes of an object of {size_bytes}"))),
        }
    }

    /// Decodes and verifies a record without its data, from bytes that end with the checksum of its table.
    /// Also returns that checksum. The data is verified when it is read, by the tags that the table contains.
    ///
    /// # Errors
    /// Returns an error if the bytes are not the table of the record of `slot` of the volume.
    pub fn decode_table(sealing: Sealing, slot: Slot, bytes: &[u8]) -> Result<(Self, Checksum), DecodeError> {
        let Some((table, checksum)) = bytes.split_last_chunk() else {
            return Err(DecodeError::Truncated { missing: Checksum::BYTES - bytes.len() });
        };
        let (found, mut from) = Decoder::prologue(Kind::Record, table)?;
        if found != sealing.volume() {
            return Err(DecodeError::Volume(found));
        }
        let checksum = Checksum(*checksum);
        if Checksum::of(table) != checksum {
            return Err(DecodeError::Checksum);
        }
        let record = Self::decode_fields(slot, &mut from)?;
        from.finish()?;
        Ok((record, checksum))
    }

    /// As [`Record::decode_table`], from a whole object. Its data is not verified.
    ///
    /// # Errors
    /// Returns an error if the object is not the record of `slot` of the volume, or its table is damaged.
    pub fn decode_table_of(
        sealing: Sealing,
        slot: Slot,
        object: &[u8],
    ) -> Result<(Self, Checksum), DecodeError> {
        let end = Self::table_bytes(sealing, object, object.len() as u64)?;
        Self::decode_table(sealing, slot, &object[..usize::try_from(end).expect("within the object")])
    }

    /// Reads the fields between the prologue and the checksum of the table.
    fn decode_fields(slot: Slot, from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let input = from.remaining();
        let kind = match from.u8()? {
            1 => RecordKind::Opening,
            2 => RecordKind::Commit,
            3 => RecordKind::Seal,
            other => return Err(invalid("kind", format!("{other} is unknown"))),
        };
        let flags = from.u8()?;
        if flags != 0 {
            return Err(invalid("flags", format!("{flags:#x} are unknown")));
        }
        let found = Slot::decode(from)?;
        if found != slot {
            return Err(invalid("slot", format!("is {found:?}, not {slot:?}")));
        }
        let writer = from.u32()?;
        let fits = match kind {
            RecordKind::Opening => writer == slot.epoch && slot.n == 1,
            RecordKind::Commit => writer == slot.epoch && slot.n > 1,
            RecordKind::Seal => writer > slot.epoch && slot.n > 0,
        };
        if !fits {
            return Err(invalid("writer", format!("epoch {writer} cannot put a {kind:?} at {slot:?}")));
        }
        let nonce = from.u64()?;
        let previous = from.checksum()?;
        let pages_per_chunk = from.u16()?;
        if !pages_per_chunk.is_power_of_two() || pages_per_chunk > MAX_PAGES_PER_CHUNK {
            return Err(invalid(
                "pages of a chunk",
                format!("{pages_per_chunk} is no power of two up to 512"),
            ));
        }
        let count = from.count(LEAST_CHANGE_BYTES)?;
        if kind != RecordKind::Commit && count != 0 {
            return Err(invalid("count", format!("a {kind:?} has no changes")));
        }
        let data_bytes = from.u64()?;
        let mut changes = Vec::with_capacity(count.min(input / 16));
        let mut data_total = 0_u64;
        for _ in 0..count {
            let change = decode_change(from, pages_per_chunk, data_total)?;
            if let Change::Data { length, .. } = &change {
                data_total += u64::from(*length);
            }
            if matches!(changes.last(), Some(Change::Snapshot(_))) {
                return Err(invalid("snapshot", "is not the last change"));
            }
            changes.push(change);
        }
        if data_total != data_bytes {
            return Err(invalid("data", format!("{data_bytes} bytes, {data_total} expected")));
        }
        let table = (Encoder::PROLOGUE_BYTES + input - from.remaining() + Checksum::BYTES) as u64;
        for change in &mut changes {
            if let Change::Data { at, .. } = change {
                *at += table;
            }
        }
        Ok(Self { kind, slot, writer, nonce, previous, pages_per_chunk, changes, data_bytes })
    }
}

fn decode_change(from: &mut Decoder<'_>, pages: u16, at: u64) -> Result<Change, DecodeError> {
    Ok(match from.u8()? {
        1 => {
            let (offset, length, tag) = (from.u64()?, from.u32()?, from.checksum()?);
            if u64::from(length) > PAGE_BYTES || !is_within_page(offset, length) {
                return Err(invalid("data", format!("{length} bytes at {offset} are not within one page")));
            }
            Change::Data { offset, length, at, tag }
        }
        2 => {
            let (offset, length, hole) = (from.u64()?, from.u64()?, from.bool("hole")?);
            if length == 0 || offset.checked_add(length).is_none() {
                return Err(invalid("zero", format!("{length} bytes at {offset}")));
            }
            Change::Zero { offset, length, hole }
        }
        3 => Change::Chunk {
            index: ChunkIndex(from.u32()?),
            id: ObjectId::decode(from)?,
            stored: PageSet::decode(pages, from)?,
        },
        4 => Change::Resize { size_bytes: from.u64()? },
        5 => Change::Snapshot(Snapshot::decode(from)?),
        other => return Err(invalid("change", format!("{other} is unknown"))),
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_table_says_what_the_record_says_and_nothing_shorter_does() {
        let (sealing, slot) = (Sealing::new(Uuid::from_u128(1)), Slot { epoch: 1, n: 2 });
        let mut to = RecordWriter::new(sealing, RecordKind::Commit, slot, 1, 7, Checksum::default(), 64);
        to.change(Change::Zero { offset: 512, length: 512, hole: true });
        to.change(Change::Chunk {
            index: ChunkIndex(3),
            id: ObjectId { epoch: 1, k: 9 },
            stored: PageSet::first(64),
        });
        to.data(65_536, Bytes::from(vec![1; 4096]));
        to.data(131_072, Bytes::from(vec![2; 512]));
        let (record, bytes, checksum) = to.finish_within(|_| vec![0xff; 100]);
        assert_eq!(Record::decode(sealing, slot, &bytes).unwrap(), (record.clone(), checksum));
        let end = Record::table_bytes(sealing, &bytes[..HEADER_BYTES], bytes.len() as u64).unwrap();
        let table = &bytes[..usize::try_from(end).unwrap()];
        assert_eq!(Record::decode_table(sealing, slot, table).unwrap(), (record, checksum));
        for length in 0..table.len() {
            Record::decode_table(sealing, slot, &table[..length]).expect_err("it is cut short");
        }
        for length in 0..HEADER_BYTES {
            Record::table_bytes(sealing, &bytes[..length], bytes.len() as u64)
                .expect_err("there is no header");
        }
        Record::table_bytes(Sealing::new(Uuid::nil()), &bytes, bytes.len() as u64)
            .expect_err("it is another volume's");
        Record::table_bytes(sealing, &bytes, 4608 + 32).expect_err("there is no room for a header");
    }

    #[test]
    fn a_new_size_is_the_last_change_and_leaves_nothing_between_the_sizes() {
        let geometry = Geometry::new(65_536).expect("a chunk size");
        let zero = |offset, length, hole| Change::Zero { offset, length, hole };
        let resize = |size_bytes| Change::Resize { size_bytes };
        let snapshot = || Change::Snapshot(Snapshot { name: "s".to_owned(), taken_at_seconds: 1 });
        let check = |changes: &[Change]| {
            let slot = Slot { epoch: 1, n: 2 };
            let kind = RecordKind::Commit;
            let mut to =
                RecordWriter::new(Sealing::new(Uuid::from_u128(1)), kind, slot, 1, 7, Checksum::default(), 1);
            changes.iter().for_each(|change| to.change(change.clone()));
            to.finish().0.check_within(geometry, 8192)
        };
        for right in [
            &[][..],
            &[zero(0, 8192, false)],
            &[zero(4096, 4096, true), resize(4096)],
            &[zero(8192, 512, true), zero(0, 8192, false), resize(8704), snapshot()],
            &[zero(512, 512, true), resize(8192)],
        ] {
            assert_eq!(check(right), Ok(()), "{right:?}");
        }
        for (wrong, why) in [
            (&[zero(0, 8704, true)][..], "changes byte 8703"),
            (&[resize(4096)], "keeps what is between"),
            (&[zero(4096, 4096, false), resize(4096)], "changes byte 8191"),
            (&[zero(4096, 4096, true), zero(0, 4608, true), resize(4096)], "changes byte 4607"),
            (&[zero(8192, 1024, true), resize(8704)], "changes byte 9215"),
            (&[zero(8192, 512, true), resize(8704), zero(0, 512, true)], "after the new size"),
            (&[resize(8192), resize(8192)], "after the new size"),
            (&[zero(0, 8192, true), resize(0)], "multiple of 512"),
            (&[resize(513)], "multiple of 512"),
        ] {
            let error = check(wrong).expect_err("it is wrong");
            assert!(error.contains(why), "{wrong:?}: {error}");
        }
    }
}
