//! Frames: parts of an object that can be fetched and verified on their own.
//!
//! A frame is a payload followed by a tag of 16 bytes. The tag is the XXH3-128 of the payload, seeded with a
//! hash of the frame's place (volume, object and position), so bytes from another volume, object or position
//! never pass.
//!
//! Must not know what the payload means. Invariant: [`Place::open`] returns exactly the payload that
//! [`Place::tag`] was computed for, or `None`.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use super::codec::Checksum;
use super::geometry::BLOCK_BYTES;
use super::keys::{ObjectId, Slot};
use super::sealing::Sealing;

/// Length of a frame's tag in bytes.
pub const TAG_BYTES: u64 = 16;
/// Length in bytes of a frame of a chunk object or a pack: a block, uncompressed, and its tag.
pub const FRAME_BYTES: u64 = BLOCK_BYTES + TAG_BYTES;
/// As [`FRAME_BYTES`], for lengths in memory.
pub const FRAME_LEN: usize = 4096 + 16;

/// The object that frames belong to. Together with the number of a frame, it is the frame's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Volume, kind of object, index, epoch and k, as the tag covers them.
    context: [u8; 33],
}

impl Place {
    /// The frames of a chunk object. A frame's number is its block in the chunk.
    #[must_use]
    pub fn chunk(sealing: Sealing, index: u32, id: ObjectId) -> Self {
        Self::new(sealing, 1, index, id.epoch, id.k)
    }

    /// The frames of a pack. A frame's number is its block on the volume.
    #[must_use]
    pub fn pack(sealing: Sealing, id: ObjectId) -> Self {
        Self::new(sealing, 2, 0, id.epoch, id.k)
    }

    /// The data of a record. A frame's number is the index of its change in the record's table.
    #[must_use]
    pub fn record(sealing: Sealing, slot: Slot) -> Self {
        Self::new(sealing, 3, 0, slot.epoch, slot.n)
    }

    fn new(sealing: Sealing, kind: u8, index: u32, epoch: u32, k: u64) -> Self {
        let mut context = [0_u8; 33];
        context[..16].copy_from_slice(sealing.volume().as_bytes());
        context[16] = kind;
        context[17..21].copy_from_slice(&index.to_le_bytes());
        context[21..25].copy_from_slice(&epoch.to_le_bytes());
        context[25..].copy_from_slice(&k.to_le_bytes());
        Self { context }
    }

    /// Computes the tag of frame `number`.
    #[must_use]
    pub fn tag(&self, number: u64, payload: &[u8]) -> Checksum {
        let mut context = [0_u8; 41];
        context[..33].copy_from_slice(&self.context);
        context[33..].copy_from_slice(&number.to_le_bytes());
        Checksum(xxh3_128_with_seed(payload, xxh3_64(&context)).to_le_bytes())
    }

    /// Returns the payload of frame `number` if it matches the tag that follows it.
    #[must_use]
    pub fn open<'a>(&self, number: u64, frame: &'a [u8]) -> Option<&'a [u8]> {
        let (payload, tag) = frame.split_last_chunk::<16>()?;
        (self.tag(number, payload).0 == *tag).then_some(payload)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_frame_is_valid_in_its_own_place_only() {
        let sealing = Sealing::new(Uuid::from_u128(1));
        let id = ObjectId { epoch: 2, k: 3 };
        let place = Place::chunk(sealing, 4, id);
        let mut frame = b"payload".to_vec();
        frame.extend_from_slice(&place.tag(5, b"payload").0);
        assert_eq!(place.open(5, &frame), Some(&b"payload"[..]));
        assert_eq!(place.open(6, &frame), None, "another block");
        assert_eq!(Place::chunk(sealing, 5, id).open(5, &frame), None, "another chunk");
        assert_eq!(Place::pack(sealing, id).open(5, &frame), None, "another kind");
        assert_eq!(
            Place::chunk(Sealing::new(Uuid::from_u128(9)), 4, id).open(5, &frame),
            None,
            "another volume"
        );
        assert_eq!(
            Place::chunk(sealing, 4, ObjectId { epoch: 2, k: 4 }).open(5, &frame),
            None,
            "another object"
        );
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(place.open(5, &flipped), None, "bit {bit}");
        }
        assert_eq!(place.open(5, &[0; 15]), None, "shorter than a tag");
    }
}
