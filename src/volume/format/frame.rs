//! Frames: parts of an object that can be fetched and verified on their own.
//!
//! A frame is a payload followed by a tag of 16 bytes. The tag is the XXH3-128 of the frame's place (volume,
//! object and position) and the payload, so bytes from another volume, object or position never pass.
//!
//! Must not know what the payload means. Invariant: [`Place::open`] returns exactly the payload that
//! [`Place::tag`] was computed for, or `None`.

use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use super::codec::Checksum;
use super::keys::{ObjectId, Slot};

/// Length of a frame's tag in bytes.
pub const TAG_BYTES: u64 = 16;

/// The object that frames belong to. Together with the number of a frame, it is the frame's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    volume: Uuid,
    kind: u8,
    index: u32,
    epoch: u32,
    k: u64,
}

impl Place {
    /// The frames of a chunk object. A frame's number is its page in the chunk.
    #[must_use]
    pub fn chunk(volume: Uuid, index: u32, id: ObjectId) -> Self {
        Self { volume, kind: 1, index, epoch: id.epoch, k: id.k }
    }

    /// The frames of a pack. Frames are numbered from 0.
    #[must_use]
    pub fn pack(volume: Uuid, map_page: u32, id: ObjectId) -> Self {
        Self { volume, kind: 2, index: map_page, epoch: id.epoch, k: id.k }
    }

    /// The data of a record. A frame's number is the index of its change in the record's table.
    #[must_use]
    pub fn record(volume: Uuid, slot: Slot) -> Self {
        Self { volume, kind: 3, index: 0, epoch: slot.epoch, k: slot.n }
    }

    /// Computes the tag of frame `number`.
    #[must_use]
    pub fn tag(&self, number: u32, payload: &[u8]) -> Checksum {
        let mut context = [0_u8; 37];
        context[..16].copy_from_slice(self.volume.as_bytes());
        context[16] = self.kind;
        context[17..21].copy_from_slice(&self.index.to_le_bytes());
        context[21..25].copy_from_slice(&self.epoch.to_le_bytes());
        context[25..33].copy_from_slice(&self.k.to_le_bytes());
        context[33..37].copy_from_slice(&number.to_le_bytes());
        let mut hash = Xxh3::new();
        hash.update(&context);
        hash.update(payload);
        Checksum(hash.digest128().to_le_bytes())
    }

    /// Returns the payload of frame `number` if it matches the tag that follows it.
    #[must_use]
    pub fn open<'a>(&self, number: u32, frame: &'a [u8]) -> Option<&'a [u8]> {
        let (payload, tag) = frame.split_last_chunk::<16>()?;
        (self.tag(number, payload).0 == *tag).then_some(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_valid_in_its_own_place_only() {
        let volume = Uuid::from_u128(1);
        let id = ObjectId { epoch: 2, k: 3 };
        let place = Place::chunk(volume, 4, id);
        let mut frame = b"payload".to_vec();
        frame.extend_from_slice(&place.tag(5, b"payload").0);
        assert_eq!(place.open(5, &frame), Some(&b"payload"[..]));
        assert_eq!(place.open(6, &frame), None, "another page");
        assert_eq!(Place::chunk(volume, 5, id).open(5, &frame), None, "another chunk");
        assert_eq!(Place::pack(volume, 4, id).open(5, &frame), None, "another kind");
        assert_eq!(Place::chunk(Uuid::from_u128(9), 4, id).open(5, &frame), None, "another volume");
        assert_eq!(
            Place::chunk(volume, 4, ObjectId { epoch: 2, k: 4 }).open(5, &frame),
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
