//! Reads a record in parts if it is too long to be held in memory as a whole.
//!
//! Owns the reading and its retries; it does not apply any change. It verifies the same as for a record that
//! is read at once ([`Record::decode`]): the form of the table, the tag of every change, and the checksum of
//! the whole. Invariant: at any time it holds no more than the table and [`PART_BYTES`].

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::store::{ByteRange, Store};
use crate::volume::format::codec::{Checksum, DecodeError};
use crate::volume::format::frame::Place;
use crate::volume::format::keys::{Keys, Slot};
use crate::volume::format::record::{Change, Record};
use crate::volume::store_exact::{CheckedError, Doubt, Verdict, damaged_on_the_way};

/// Bytes of a record that are read at a time.
pub(super) const PART_BYTES: u64 = 8 << 20;

/// Why a reading failed: a store error, or damage together with the bytes that distinguish this damaged
/// reading from another.
enum Failed {
    Store(crate::store::Error),
    Damaged(DecodeError, Bytes),
}

/// One reading of a record, from its first byte to its last.
struct Reading<'a> {
    store: &'a dyn Store,
    key: &'a str,
    /// Hash of all bytes read so far.
    hash: Xxh3,
}

impl Reading<'_> {
    async fn get(&mut self, offset: u64, length: u64) -> Result<Bytes, Failed> {
        let range = ByteRange::Bounded { offset, length };
        self.store.get(self.key, range).await.map(|object| object.body).map_err(Failed::Store)
    }

    /// Reads the next part and adds it to the checksum.
    async fn next(&mut self, offset: u64, length: u64) -> Result<Bytes, Failed> {
        let part = self.get(offset, length).await?;
        self.hash.update(&part);
        Ok(part)
    }

    fn damaged(&self, error: DecodeError) -> Failed {
        Failed::Damaged(error, Bytes::copy_from_slice(&self.hash.digest128().to_le_bytes()))
    }

    /// Reads the record up to its data.
    async fn table(&mut self, keys: Keys, slot: Slot, size_bytes: u64) -> Result<(Record, u64), Failed> {
        let volume = keys.volume();
        let first = size_bytes.min(PART_BYTES);
        let start = self.get(0, first).await?;
        let end = Record::table_bytes(volume, &start, size_bytes).map_err(|error| {
            self.hash.update(&start);
            self.damaged(error)
        })?;
        let within = usize::try_from(end.min(first)).expect("a part fits into memory");
        let mut table = start[..within].to_vec();
        self.hash.update(&table);
        while (table.len() as u64) < end {
            let at = table.len() as u64;
            table.extend_from_slice(&self.next(at, PART_BYTES.min(end - at)).await?);
        }
        let record = Record::decode_unverified(volume, slot, &table).map_err(|error| self.damaged(error))?;
        Ok((record, end))
    }

    async fn record(mut self, keys: Keys, slot: Slot, size_bytes: u64) -> Result<(Record, Checksum), Failed> {
        let (record, mut at) = self.table(keys, slot, size_bytes).await?;
        let place = Place::record(keys.volume(), slot);
        let mut first = 0;
        while first < record.changes.len() {
            let (run, bytes) = run_of(&record.changes[first..]);
            let part = if bytes == 0 { Bytes::new() } else { self.next(at, bytes).await? };
            let mut rest = &part[..];
            for (number, change) in (first..).zip(&record.changes[first..first + run]) {
                let Change::Data { length, tag, .. } = change else { continue };
                let (payload, after) = rest.split_at(*length as usize);
                let number = u32::try_from(number).expect("a count is four bytes");
                if place.tag(number, payload) != *tag {
                    return Err(self.damaged(DecodeError::Checksum));
                }
                rest = after;
            }
            (first, at) = (first + run, at + bytes);
        }
        let found = self.get(at, Checksum::BYTES as u64).await?;
        let checksum = Checksum(self.hash.digest128().to_le_bytes());
        if found[..] != checksum.0 {
            self.hash.update(&found);
            return Err(self.damaged(DecodeError::Checksum));
        }
        Ok((record, checksum))
    }
}

/// Returns how many of the changes have their data in the next part, and the size of that part in bytes.
fn run_of(changes: &[Change]) -> (usize, u64) {
    let mut bytes = 0;
    let run = changes.iter().take_while(|change| {
        let length = if let Change::Data { length, .. } = change { u64::from(*length) } else { 0 };
        let fits = bytes + length <= PART_BYTES;
        bytes += if fits { length } else { 0 };
        fits
    });
    (run.count(), bytes)
}

/// Reads and verifies the record of `size_bytes` in a slot. Repeats the reading while the damage may have
/// happened in transit. Also returns the record's checksum.
pub(super) async fn read_in_parts(
    store: &dyn Store,
    keys: Keys,
    slot: Slot,
    size_bytes: u64,
) -> Result<(Record, Checksum), CheckedError> {
    let key = keys.record(slot);
    let mut doubt = Doubt::default();
    loop {
        let reading = Reading { store, key: &key, hash: Xxh3::new() };
        let (error, digest) = match reading.record(keys, slot, size_bytes).await {
            Ok(found) => return Ok(found),
            Err(Failed::Store(error)) => return Err(CheckedError::Store(error)),
            Err(Failed::Damaged(error, digest)) => (error, digest),
        };
        match doubt.note(&key, &digest) {
            Verdict::Again => {}
            Verdict::AtRest => return Err(CheckedError::Damaged(error)),
            Verdict::OnTheWay => return Err(CheckedError::Store(damaged_on_the_way(&key))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::*;
    use crate::store::fault::{Action, Rule};
    use crate::store::{Fault, MemoryStore, Operation};
    use crate::volume::format::record::{RecordKind, RecordWriter};

    /// A record of 20 MiB in changes of one page each, which is more than two parts.
    fn long_record(volume: Uuid, slot: Slot) -> (Record, Bytes, Checksum) {
        let mut writer = RecordWriter::new(volume, RecordKind::Commit, slot, 1, 7, Checksum::default(), 64);
        writer.change(Change::Zero { offset: 0, length: 512, hole: true });
        for page in 0..320 {
            writer.data(page * 65_536, Bytes::from(vec![u8::try_from(page % 251).unwrap(); 65_536]));
        }
        writer.finish()
    }

    #[tokio::test]
    async fn a_record_in_parts_says_what_it_says_as_a_whole() {
        let (keys, slot) = (Keys::new(Uuid::from_u128(1)), Slot { epoch: 1, n: 2 });
        let (record, bytes, checksum) = long_record(keys.volume(), slot);
        let (memory, size_bytes) = (MemoryStore::new(), bytes.len() as u64);
        memory.insert(&keys.record(slot), bytes.clone());
        let fault = Fault::new(Arc::new(memory.clone()), 1);
        fault.add(Rule::new(Action::FlipBit).on(Operation::Get).skip(1).times(2));
        let found = read_in_parts(&fault, keys, slot, size_bytes).await.unwrap();
        assert_eq!(found, (record, checksum), "damage on the way is read again");
        assert_eq!(found, Record::decode(keys.volume(), slot, &bytes).unwrap());
        for at in [0, 40, 100, 5000, 15 << 20, bytes.len() - 1] {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1;
            memory.insert(&keys.record(slot), flipped.into());
            let error = read_in_parts(&memory, keys, slot, size_bytes).await.expect_err("damaged at rest");
            assert!(matches!(error, CheckedError::Damaged(_)), "byte {at}: {error:?}");
        }
    }
}
