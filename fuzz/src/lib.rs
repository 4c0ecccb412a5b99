//! What the fuzz targets share: they take bytes for an object whose envelope and checksum fit, so that the fuzzer
//! gets to the fields. The golden files are seeds: `cargo fuzz run -s none head tests/golden/v2`.

use cairn::volume::format::codec::{Checksum, Encoder, FORMAT_VERSION, Kind};
use cairn::volume::format::frame::Place;
use cairn::volume::format::keys::ObjectId;
use cairn::volume::format::record::Record;
use cairn::volume::format::sealing::Sealing;
use uuid::Uuid;

/// The volume of every object.
pub const VOLUME: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
/// With what the objects are sealed.
pub const SEALING: Sealing = Sealing::new(VOLUME);

/// The bytes as an object of this kind; those too short for one as they are. The checksum of a record's table
/// fits too.
#[must_use]
pub fn object(kind: Kind, input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if bytes.len() >= Encoder::PROLOGUE_BYTES + Checksum::BYTES {
        bytes[..8].copy_from_slice(kind.magic());
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[10..26].copy_from_slice(VOLUME.as_bytes());
        let size_bytes = bytes.len() as u64;
        if kind == Kind::Record
            && let Ok(end) = Record::table_bytes(SEALING, &bytes, size_bytes)
        {
            seal(&mut bytes[..usize::try_from(end).expect("within the bytes")]);
        }
        seal(&mut bytes);
    }
    bytes
}

/// Makes the checksum at the end of an object, or of its beginning, fit the bytes before it.
fn seal(bytes: &mut [u8]) {
    let (body, checksum) = bytes.split_at_mut(bytes.len() - Checksum::BYTES);
    checksum.copy_from_slice(&Checksum::of(body).0);
}

/// The pack `id` of these blocks, in this order, whose tags and checksum fit. Each block repeats one byte.
#[must_use]
pub fn pack(id: ObjectId, blocks: &[u64]) -> Vec<u8> {
    let place = Place::pack(SEALING, id);
    let mut to = Encoder::new(Kind::Pack, VOLUME, 0);
    id.encode(&mut to);
    to.raw(&[0; 2]);
    to.len(blocks.len());
    for (number, block) in (0..).zip(blocks) {
        let payload = [number; 4096];
        to.raw(&payload);
        to.raw(&place.tag(*block, &payload).0);
    }
    let index: Vec<u8> = blocks.iter().flat_map(|block| block.to_le_bytes()).collect();
    to.raw(&index);
    to.raw(&place.tag(u64::MAX, &index).0);
    to.finish()
}

/// The four bytes at an offset as a number; 0 where there are none.
#[must_use]
pub fn number_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |found| u32::from_le_bytes(*found))
}

/// An epoch and the number behind it, as names and slots have them, at an offset; 0 where there are none.
#[must_use]
pub fn pair_at(bytes: &[u8], at: usize) -> (u32, u64) {
    let second = bytes.get(at + 4..).and_then(|rest| rest.first_chunk());
    (number_at(bytes, at), second.map_or(0, |found| u64::from_le_bytes(*found)))
}
