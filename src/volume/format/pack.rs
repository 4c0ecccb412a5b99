//! Packs: changed pages of many chunks of one map page, stored as frames of equal size.
//!
//! `prologue | map page (4) | id (12) | codec, cipher (2) | count (4) | frames | (slot, page) of each frame |
//! …`
//!
//! Must not know how packs are located or verified. Nothing writes packs; this is what reading them
//! takes. Invariant: the frames directly follow a header of fixed length, so the offset of a frame
//! depends only on its number.

use super::codec::Encoder;

/// Length in bytes of the header, which ends where the first frame begins.
pub const HEADER_BYTES: u64 = (Encoder::PROLOGUE_BYTES + 4 + 12 + 2 + 4) as u64;
