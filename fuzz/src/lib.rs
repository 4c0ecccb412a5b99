//! What the fuzz targets share: they take bytes for an object whose envelope and checksum fit, so that the fuzzer
//! gets to the fields. The golden files are seeds: `cargo fuzz run -s none head tests/golden/v2`.

use cairn::volume::format::codec::{Checksum, Encoder, FORMAT_VERSION, Kind};
use uuid::Uuid;

/// The volume of every object.
pub const VOLUME: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

/// The bytes as an object of this kind; those too short for one as they are.
#[must_use]
pub fn object(kind: Kind, input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if bytes.len() >= Encoder::PROLOGUE_BYTES + Checksum::BYTES {
        bytes[..8].copy_from_slice(kind.magic());
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[10..26].copy_from_slice(VOLUME.as_bytes());
        let (body, checksum) = bytes.split_at_mut(input.len() - Checksum::BYTES);
        checksum.copy_from_slice(&Checksum::of(body).0);
    }
    bytes
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
