//! What memory holds of one piece: some of the 16 blocks that share a cache key, or a whole run of changes.
//!
//! Must not know where the blocks come from. Invariant: the data consists of exactly the blocks of the
//! mask, in order.

use std::ops::Range;

use bytes::Bytes;

use crate::mutant::{self, Mutant};
use crate::volume::format::geometry::BLOCK_LEN;

/// Verified blocks that share a cache key, or the whole of a run of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// One bit for each block that is held, block 0 in the lowest bit. It is 1 for a run of changes, and for
    /// a change that does not consist of whole blocks.
    pub mask: u16,
    /// The bytes of the held blocks, in order, or those of the run.
    pub data: Bytes,
}

/// Number of bits of `mask` below `bit`.
fn rank(mask: u16, bit: u32) -> usize {
    usize::try_from((u32::from(mask) & ((1 << bit) - 1)).count_ones()).expect("at most 16")
}

/// Returns the blocks of a change with `length` bytes of data: one bit for each. A change that does not
/// consist of whole blocks counts as one.
#[must_use]
pub fn mask_of(length: u32) -> u16 {
    let blocks = usize::try_from(length).expect("at most a page") / BLOCK_LEN;
    match (length as usize).is_multiple_of(BLOCK_LEN) {
        true => u16::try_from((1_u32 << blocks) - 1).expect("at most 16 blocks"),
        false => 1,
    }
}

impl Held {
    /// Holds all of a run of changes.
    #[must_use]
    pub fn whole(data: Bytes) -> Self {
        Self { mask: 1, data }
    }

    /// Holds all of a change of a record.
    #[must_use]
    pub fn of_change(data: Bytes) -> Self {
        let length = u32::try_from(data.len()).expect("at most a page");
        Self { mask: mask_of(length), data }
    }

    /// Holds all of a piece if it is as it was written. Also returns whether it is.
    pub(super) fn whole_if(is_right: bool, data: &Bytes) -> (Self, bool) {
        (if is_right { Self::whole(data.clone()) } else { Self::default() }, is_right)
    }

    /// Returns successive blocks if all of them are held.
    #[must_use]
    pub fn blocks(&self, blocks: Range<u32>) -> Option<Bytes> {
        let wanted = ((1_u32 << blocks.len()) - 1) << blocks.start;
        let start = rank(self.mask, blocks.start) * BLOCK_LEN;
        let end = start + blocks.len() * BLOCK_LEN;
        let is_held = wanted & !u32::from(self.mask) == 0;
        (is_held || (end <= self.data.len() && mutant::is(Mutant::BitmapLies)))
            .then(|| self.data.slice(start..end))
    }

    /// Returns the blocks of both. Where both have a block, it is the same.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Self {
        if other.mask & !self.mask == 0 {
            return self.clone();
        }
        if self.mask & !other.mask == 0 {
            return other.clone();
        }
        let mask = self.mask | other.mask;
        let mut data =
            Vec::with_capacity(BLOCK_LEN * usize::try_from(mask.count_ones()).expect("at most 16"));
        for bit in (0..16).filter(|bit| mask >> bit & 1 == 1) {
            let source = if self.mask >> bit & 1 == 1 { self } else { other };
            let start = rank(source.mask, bit) * BLOCK_LEN;
            data.extend_from_slice(&source.data[start..start + BLOCK_LEN]);
        }
        Self { mask, data: Bytes::from(data) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(blocks: &[u32]) -> Held {
        let mask = blocks.iter().fold(0, |mask, block| mask | 1 << block);
        let bytes: Vec<u8> =
            blocks.iter().flat_map(|block| [u8::try_from(*block).unwrap(); BLOCK_LEN]).collect();
        Held { mask, data: Bytes::from(bytes) }
    }

    #[test]
    fn blocks_are_found_only_if_all_of_them_are_held() {
        let held = held(&[1, 2, 3, 9, 15]);
        let fill =
            |first, count| held.blocks(first..first + count).map(|bytes| (bytes[0], bytes.len() / BLOCK_LEN));
        assert_eq!(fill(1, 3), Some((1, 3)));
        assert_eq!(fill(2, 2), Some((2, 2)));
        assert_eq!(fill(15, 1), Some((15, 1)));
        assert_eq!([fill(0, 2), fill(3, 2), fill(9, 7), fill(0, 16)], [None; 4]);
    }

    #[test]
    fn joined_blocks_are_in_order() {
        let both = held(&[1, 4, 5]).joined(&held(&[0, 4, 15]));
        assert_eq!(both, held(&[0, 1, 4, 5, 15]));
        assert_eq!(both.joined(&held(&[4])), both);
        assert_eq!(held(&[4]).joined(&both), both);
        assert_eq!(Held::default().joined(&both), both);
    }
}
