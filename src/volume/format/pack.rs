//! Packs: changed pages of many chunks of one map page, as frames of one size.
//!
//! `prologue | map page (4) | id (12) | codec, cipher (2) | count (4) | (slot, page) of each frame | …`: the
//! frames come first, so that their offsets need no header: see [`HEADER_BYTES`].

use super::codec::Encoder;

/// Bytes before the first frame.
pub const HEADER_BYTES: u64 = (Encoder::PROLOGUE_BYTES + 4 + 12 + 2 + 4) as u64;
