//! What memory holds of one piece: some of the 16 blocks that share a cache key, or bytes that are used only
//! as a whole.
//!
//! Must not know where the blocks come from. Invariants: the data consists of exactly the blocks of the mask,
//! in order. Blocks that are held apart have memory of their own each, so that any of them can be let go.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::mutant::{self, Mutant};
use crate::volume::format::geometry::BLOCK_LEN;
use crate::volume::state::piece::own;

/// Verified blocks that share a cache key, or bytes that are used only as a whole: those of a run of changes,
/// or of a change that does not consist of whole blocks.
#[derive(Clone, Debug, Default)]
pub struct Held {
    mask: u16,
    data: Data,
}

/// The bytes of the blocks, in order.
#[derive(Clone, Debug)]
enum Data {
    /// One after another.
    Together(Bytes),
    /// Each block by itself.
    Apart(Arc<[Bytes]>),
}

impl Default for Data {
    fn default() -> Self {
        Self::Together(Bytes::new())
    }
}

/// The numbers of the bits that are set.
fn bits(mask: u16) -> impl Iterator<Item = u32> {
    (0..16).filter(move |bit| mask >> bit & 1 == 1)
}

/// Number of bits of `mask` below `bit`.
fn rank(mask: u16, bit: u32) -> usize {
    usize::try_from((u32::from(mask) & ((1 << bit) - 1)).count_ones()).expect("at most 16")
}

/// Returns the mask of successive blocks.
#[must_use]
pub fn mask_of(blocks: &Range<u32>) -> u16 {
    u16::try_from(((1_u32 << blocks.len()) - 1) << blocks.start).expect("at most 16 blocks")
}

impl Held {
    /// Holds blocks of which `data` has the bytes, one after another.
    ///
    /// # Panics
    /// Panics if the data has another length than the blocks.
    #[must_use]
    pub fn new(mask: u16, data: Bytes) -> Self {
        assert_eq!(data.len(), rank(mask, 16) * BLOCK_LEN, "the bytes of the blocks");
        Self { mask, data: Data::Together(data) }
    }

    /// Holds blocks that can be let go one by one, each with memory of its own.
    ///
    /// # Panics
    /// Panics if there are more or fewer blocks than `mask` has bits.
    #[must_use]
    pub fn apart(mask: u16, blocks: Vec<Bytes>) -> Self {
        assert_eq!(blocks.len(), rank(mask, 16), "one for each block");
        Self { mask, data: Data::Apart(blocks.into()) }
    }

    /// Holds bytes that are used only as a whole. They count as one block.
    #[must_use]
    pub fn whole(data: Bytes) -> Self {
        Self { mask: 1, data: Data::Together(data) }
    }

    /// One bit for each block that is held, block 0 in the lowest bit.
    #[must_use]
    pub const fn mask(&self) -> u16 {
        self.mask
    }

    /// Number of bytes that are held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::Together(data) => data.len(),
            Data::Apart(blocks) => blocks.len() * BLOCK_LEN,
        }
    }

    /// Number of allocations that hold them.
    pub(super) fn allocations(&self) -> usize {
        match &self.data {
            Data::Together(_) => 1,
            Data::Apart(blocks) => blocks.len(),
        }
    }

    /// Returns bytes that are used only as a whole, if they are held.
    #[must_use]
    pub fn as_whole(&self) -> Option<&Bytes> {
        match &self.data {
            Data::Together(data) => (self.mask == 1).then_some(data),
            Data::Apart(_) => None,
        }
    }

    /// Returns successive blocks if all of them are held.
    #[must_use]
    pub fn blocks(&self, blocks: Range<u32>) -> Option<Bytes> {
        let is_held = mask_of(&blocks) & !self.mask == 0;
        let (start, count) = (rank(self.mask, blocks.start), blocks.len());
        let is_believed = mutant::is(Mutant::BitmapLies) && start + count <= rank(self.mask, 16);
        (is_held || is_believed).then(|| match &self.data {
            Data::Together(data) => data.slice(start * BLOCK_LEN..(start + count) * BLOCK_LEN),
            Data::Apart(all) if count == 1 => all[start].clone(),
            Data::Apart(all) => Bytes::from(all[start..start + count].concat()),
        })
    }

    /// Returns the bytes of a block that is held, in memory of their own.
    fn block(&self, bit: u32) -> Bytes {
        let place = rank(self.mask, bit);
        match &self.data {
            Data::Together(data) => Bytes::copy_from_slice(&data[place * BLOCK_LEN..][..BLOCK_LEN]),
            Data::Apart(blocks) => blocks[place].clone(),
        }
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
        let source = |bit| if self.mask >> bit & 1 == 1 { self } else { other };
        let blocks: Vec<Bytes> = bits(mask).map(|bit| source(bit).block(bit)).collect();
        // All of a piece is read in long reads too, for which it must not be joined each time.
        if mask == u16::MAX { Self::new(mask, blocks.concat().into()) } else { Self::apart(mask, blocks) }
    }

    /// Returns those of the blocks that are in `mask`. The memory of the others is free when `self` is
    /// dropped.
    #[must_use]
    pub fn only(&self, mask: u16) -> Self {
        match self.mask & mask {
            all if all == self.mask => self.clone(),
            some => Self::apart(some, bits(some).map(|bit| self.block(bit)).collect()),
        }
    }

    /// Returns the same blocks in memory that holds little else.
    #[must_use]
    pub(super) fn owned(self) -> Self {
        let Self { mask, data } = self;
        match data {
            Data::Together(data) => Self { mask, data: Data::Together(own(data)) },
            apart @ Data::Apart(_) => Self { mask, data: apart },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(block: u32) -> [u8; BLOCK_LEN] {
        [u8::try_from(block).unwrap(); BLOCK_LEN]
    }

    fn mask(blocks: &[u32]) -> u16 {
        blocks.iter().fold(0, |mask, block| mask | 1 << block)
    }

    fn together(blocks: &[u32]) -> Held {
        Held::new(mask(blocks), blocks.iter().flat_map(|block| filled(*block)).collect())
    }

    fn apart(blocks: &[u32]) -> Held {
        Held::apart(mask(blocks), blocks.iter().map(|block| Bytes::from(filled(*block).to_vec())).collect())
    }

    /// The blocks that are held, by what they were filled with.
    fn content(held: &Held) -> Vec<u32> {
        let blocks = (0..16).filter_map(|bit| held.blocks(bit..bit + 1).map(|bytes| (bit, bytes)));
        let checked = blocks.map(|(bit, bytes)| {
            assert_eq!(bytes, filled(bit)[..]);
            bit
        });
        let found: Vec<u32> = checked.collect();
        assert_eq!((mask(&found), found.len() * BLOCK_LEN), (held.mask(), held.bytes()));
        found
    }

    #[test]
    fn blocks_are_found_only_if_all_of_them_are_held() {
        for held in [together(&[1, 2, 3, 9, 15]), apart(&[1, 2, 3, 9, 15])] {
            let found = |first, count| held.blocks(first..first + count);
            let expected = [filled(1), filled(2), filled(3)].concat();
            assert_eq!(found(1, 3), Some(expected.into()));
            assert_eq!(found(15, 1), Some(filled(15).to_vec().into()));
            assert_eq!([found(0, 2), found(3, 2), found(9, 7), found(0, 16)], [None, None, None, None]);
        }
    }

    #[test]
    fn joined_blocks_are_in_order() {
        for (one, other) in
            [(together(&[1, 4, 5]), apart(&[0, 4, 15])), (apart(&[1, 4, 5]), together(&[0, 15]))]
        {
            let both = one.joined(&other);
            assert_eq!(content(&both), [0, 1, 4, 5, 15]);
            assert_eq!(content(&both.joined(&together(&[4]))), [0, 1, 4, 5, 15]);
            assert_eq!(content(&together(&[4]).joined(&both)), [0, 1, 4, 5, 15]);
            assert_eq!(content(&Held::default().joined(&both)), [0, 1, 4, 5, 15]);
        }
    }

    #[test]
    fn a_piece_that_is_complete_is_held_together() {
        let odd = together(&[1, 3, 5, 7, 9, 11, 13, 15]);
        let all = odd.joined(&apart(&[0, 2, 4, 6, 8, 10, 12, 14]));
        assert_eq!((content(&all).len(), all.allocations()), (16, 1));
        assert_eq!(odd.joined(&apart(&[0, 2])).allocations(), 10);
    }

    #[test]
    fn blocks_that_are_let_go_take_no_memory() {
        let all = together(&[0, 1, 2, 3]);
        let some = all.only(0b1010);
        assert_eq!((content(&some), some.allocations()), (vec![1, 3], 2));
        assert_eq!(content(&some.only(0b0010)), [1]);
        assert!(content(&some.only(0b0101)).is_empty());
        assert_eq!(all.only(u16::MAX).allocations(), 1, "nothing was let go");
    }

    #[test]
    fn what_is_used_as_a_whole_is_no_block_of_others() {
        assert_eq!(Held::whole(Bytes::from_static(b"change")).as_whole().unwrap(), "change");
        assert_eq!(together(&[1, 2]).as_whole(), None);
    }
}
