//! The object `reads`: which blocks the clients of a volume read first after an opening.
//!
//! It is a hint: the next opening loads these blocks before anybody asks for them. Must not know when it is
//! written or used. Invariant: a list has 1 to [`MAX_RANGES`] ranges, each is within the largest volume, and
//! none is empty.

use std::ops::Range;

use super::codec::{Checksum, DecodeError, Decoder, Encoder, Kind, invalid};
use super::geometry::{BLOCK_BYTES, BlockIndex, MAP_PAGE_ENTRIES, MAX_CHUNK_BYTES, MAX_MAP_PAGES};
use super::sealing::Sealing;

/// Limit on the ranges of a list.
pub const MAX_RANGES: usize = 16_384;
/// Length of an encoded range in bytes.
const RANGE_BYTES: usize = 8 + 4;
/// Length in bytes of the object before the ranges.
const BEFORE_RANGES: usize = Encoder::PROLOGUE_BYTES + 4;
/// Number of blocks of the largest volume.
const MAX_BLOCKS: u64 =
    MAX_MAP_PAGES as u64 * MAP_PAGE_ENTRIES as u64 * (MAX_CHUNK_BYTES as u64 / BLOCK_BYTES);

/// The blocks that were read first after an opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstReads {
    /// Ranges of blocks of the volume, in the order of their first read.
    pub ranges: Vec<Range<BlockIndex>>,
}

impl FirstReads {
    /// Length in bytes of the shortest object, which has one range. So many bytes say how long the object is.
    pub const LEAST_BYTES: u64 = (BEFORE_RANGES + RANGE_BYTES + Checksum::BYTES) as u64;

    /// Encodes the object.
    ///
    /// # Panics
    /// Panics if a range has 2^32 blocks or more.
    #[must_use]
    pub fn encode(&self, sealing: Sealing) -> Vec<u8> {
        let capacity = BEFORE_RANGES + self.ranges.len() * RANGE_BYTES + Checksum::BYTES;
        let mut to = Encoder::new(Kind::FirstReads, sealing.volume(), capacity);
        to.len(self.ranges.len());
        for range in &self.ranges {
            to.u64(range.start.0);
            to.u32(u32::try_from(range.end.0 - range.start.0).expect("less than 16 TiB"));
        }
        to.finish()
    }

    /// Returns how many bytes the object has that begins with `start`, which must be at least
    /// [`FirstReads::LEAST_BYTES`] long. So whoever reads it takes no more memory than a list may have.
    ///
    /// # Errors
    /// Returns an error if the object is of another kind or volume, or has too many ranges.
    pub fn object_bytes(sealing: Sealing, start: &[u8]) -> Result<u64, DecodeError> {
        let (volume, mut from) = Decoder::prologue(Kind::FirstReads, start)?;
        if volume != sealing.volume() {
            return Err(DecodeError::Volume(volume));
        }
        let count = checked_count(from.length()?)?;
        Ok((BEFORE_RANGES + count * RANGE_BYTES + Checksum::BYTES) as u64)
    }

    /// Decodes the object.
    ///
    /// # Errors
    /// Returns an error if the object is damaged or belongs to another volume.
    pub fn decode(sealing: Sealing, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Decoder::object_of(Kind::FirstReads, sealing.volume(), bytes)?;
        let count = checked_count(from.count(RANGE_BYTES)?)?;
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            let (start, blocks) = (from.u64()?, u64::from(from.u32()?));
            match start.checked_add(blocks) {
                Some(end) if blocks > 0 && end <= MAX_BLOCKS => {
                    ranges.push(BlockIndex(start)..BlockIndex(end));
                }
                _ => return Err(invalid("range", format!("{blocks} blocks at {start} are in no volume"))),
            }
        }
        from.finish()?;
        Ok(Self { ranges })
    }
}

fn checked_count(count: usize) -> Result<usize, DecodeError> {
    match count {
        1..=MAX_RANGES => Ok(count),
        _ => Err(invalid("count", format!("{count} ranges are not 1 to {MAX_RANGES}"))),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const SEALING: Sealing = Sealing::new(Uuid::from_u128(7));

    fn list(ranges: &[(u64, u64)]) -> FirstReads {
        let ranges = ranges.iter().map(|(start, end)| BlockIndex(*start)..BlockIndex(*end));
        FirstReads { ranges: ranges.collect() }
    }

    #[test]
    fn a_list_decodes_to_what_was_encoded_and_its_beginning_says_its_length() {
        let last = (MAX_BLOCKS - 1, MAX_BLOCKS);
        for ranges in [&[(0, 1)][..], &[(900, 1000), (3, 4)], &[last, (5, 6), (5, 9)]] {
            let list = list(ranges);
            let bytes = list.encode(SEALING);
            assert_eq!(FirstReads::decode(SEALING, &bytes), Ok(list));
            let least = usize::try_from(FirstReads::LEAST_BYTES).unwrap();
            let length = FirstReads::object_bytes(SEALING, &bytes[..least]);
            assert_eq!(length, Ok(bytes.len() as u64));
        }
    }

    #[test]
    fn what_is_no_list_of_this_volume_is_refused() {
        let bytes = list(&[(0, 1), (7, 9)]).encode(SEALING);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            assert!(FirstReads::decode(SEALING, &flipped).is_err(), "byte {at}");
            assert!(FirstReads::decode(SEALING, &bytes[..at]).is_err(), "{at} bytes");
        }
        let other = Sealing::new(Uuid::from_u128(8));
        assert!(matches!(FirstReads::decode(other, &bytes), Err(DecodeError::Volume(_))));
        assert!(matches!(FirstReads::object_bytes(other, &bytes), Err(DecodeError::Volume(_))));
        for wrong in [&[][..], &[(5, 5)], &[(MAX_BLOCKS, MAX_BLOCKS + 1)]] {
            let bytes = list(wrong).encode(SEALING);
            assert!(matches!(FirstReads::decode(SEALING, &bytes), Err(DecodeError::Invalid { .. })));
        }
        let long: Vec<(u64, u64)> = (0..=MAX_RANGES as u64).map(|n| (2 * n, 2 * n + 1)).collect();
        let bytes = list(&long).encode(SEALING);
        let (decoded, length) =
            (FirstReads::decode(SEALING, &bytes), FirstReads::object_bytes(SEALING, &bytes));
        for refused in [decoded.err(), length.err()] {
            assert!(matches!(refused, Some(DecodeError::Invalid { field: "count", .. })), "{refused:?}");
        }
        assert!(FirstReads::decode(SEALING, &list(&long[1..]).encode(SEALING)).is_ok());
    }
}
