//! Blocks in memory that changes have replaced.
//!
//! They would only be evicted after blocks that are in use, because they share entries of the cache with such
//! blocks. Must not know when blocks are replaced. Invariant: no read of the volume as it is now needs such a
//! block. A fold, or a read of a snapshot or of a clone may need it, and fetches it again.

use std::collections::BTreeMap;
use std::ops::Range;

use super::base::{self, BasePart};
use crate::volume::cache::fetch::{CacheKey, Unit};
use crate::volume::environment::Environment;
use crate::volume::format::geometry::{BLOCK_BYTES, BLOCKS_PER_PAGE, PageIndex};
use crate::volume::format::keys::Keys;
use crate::volume::format::root::Root;
use crate::volume::state::piece::{ChunkRef, Piece};
use crate::volume::state::segments::Committed;

/// Blocks of pieces of the cache: one bit for each of the 16 that share a key.
pub(crate) type Blocks = BTreeMap<CacheKey, u16>;

/// Number of ranges that are looked up before other tasks have their turn.
const STEP: usize = 1024;

/// The offsets, in bytes, of the blocks that lie wholly within a range.
fn whole_blocks(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    (range.start.div_ceil(BLOCK_BYTES)..range.end / BLOCK_BYTES).map(|block| block * BLOCK_BYTES)
}

/// Adds the blocks of a chunk that lie wholly within a part of it, in bytes.
pub(crate) fn add_chunk(blocks: &mut Blocks, keys: Keys, chunk: &ChunkRef, part: &Range<u64>) {
    for at in whole_blocks(part) {
        let block = u32::try_from(at / BLOCK_BYTES).expect("within a chunk");
        let unit = Unit::page(chunk.index, chunk.id, PageIndex::of_block(block));
        *blocks.entry(CacheKey { volume: keys.volume(), unit }).or_default() |=
            1 << (block % BLOCKS_PER_PAGE);
    }
}

/// Returns the blocks of this volume's objects that `root` references and that lie wholly within one of the
/// ranges. Takes memory for each block. Leaves out what only map pages know that are not in memory.
pub(crate) async fn in_base(env: &Environment, keys: Keys, root: &Root, ranges: &[Range<u64>]) -> Blocks {
    let geometry = root.geometry;
    let (mut blocks, mut parts) = (Blocks::new(), Vec::new());
    let mut last = None;
    for (number, range) in ranges.iter().enumerate() {
        if number % STEP == STEP - 1 {
            tokio::task::yield_now().await;
        }
        let end = range.end / BLOCK_BYTES * BLOCK_BYTES;
        let mut at = range.start.next_multiple_of(BLOCK_BYTES);
        while at < end {
            let number = geometry.chunk_at(at).map_page();
            let until = end.min((u64::from(number) + 1) * geometry.map_page_bytes());
            if last.as_ref().is_none_or(|(known, _)| *known != number) {
                last = Some((number, base::held_map_page(env, keys, geometry, root, number).await));
            }
            if let Some((_, Some(map))) = &last {
                base::resolve_page(map, geometry, at..until, &mut parts);
            }
            at = until;
        }
        for (_, part) in parts.drain(..) {
            if let BasePart::Stored { fetch, .. } = part
                && fetch.key.volume == keys.volume()
            {
                *blocks.entry(fetch.key).or_default() |= fetch.mask();
            }
        }
    }
    blocks
}

/// Returns the blocks of changes that are being folded and that lie wholly within one of the ranges.
pub(crate) fn in_changes(keys: Keys, folding: &Committed, ranges: &[Range<u64>]) -> Blocks {
    let mut blocks = Blocks::new();
    for at in ranges.iter().flat_map(whole_blocks) {
        if let Some((slot, named, bit)) = folding.block_of_change(at) {
            let key = CacheKey { volume: keys.volume(), unit: Unit::Change(slot, named) };
            *blocks.entry(key).or_default() |= 1 << bit;
        } else if let Some((range, Piece::Chunk(chunk, within))) = folding.pieces.at(at) {
            let start = within + (at - range.start);
            add_chunk(&mut blocks, keys, chunk, &(start..start + (range.end - at).min(BLOCK_BYTES)));
        }
    }
    blocks
}
