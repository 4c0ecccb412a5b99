//! Merges overlays of a map page, so that a read never searches more than a few.
//!
//! Pure functions, without I/O and state. Merging moves index entries, never data. Invariant: the merged
//! overlay locates each block, in each chunk that it applies to, exactly where the two overlays together
//! do.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use crate::mutant::{self, Mutant};
use crate::volume::cache::index::LoadedOverlay;
use crate::volume::format::geometry::Geometry;
use crate::volume::format::keys::Keys;
use crate::volume::format::map::ChunkSet;
use crate::volume::format::overlay::{Overlay, OverlayBuilder, Run, Target};

/// Returns the index of the older of the two neighbours that are cheapest to merge.
pub(super) fn cheapest(overlays: &[LoadedOverlay]) -> Option<usize> {
    let runs = |overlay: &LoadedOverlay| overlay.overlay.as_ref().map(|overlay| overlay.runs().len()).ok();
    let cost = |pair: &[LoadedOverlay]| Some(runs(&pair[0])? + runs(&pair[1])?);
    let costs = overlays.windows(2).enumerate().filter_map(|(place, pair)| Some((cost(pair)?, place)));
    costs.min().map(|(_, place)| place)
}

/// The runs of an overlay in the chunks that it applies to.
fn applying(loaded: &LoadedOverlay, geometry: Geometry) -> impl Iterator<Item = Run> + '_ {
    let blocks = u32::try_from(geometry.blocks_per_chunk()).expect("at most 8,192");
    let overlay = loaded.overlay.as_ref().ok();
    overlay.into_iter().flat_map(|overlay| overlay.runs().iter().copied()).filter(move |run| {
        loaded.chunks.contains(u16::try_from(run.first() / blocks).expect("at most 4,096 chunks"))
    })
}

fn push(builder: &mut OverlayBuilder, from: &LoadedOverlay, blocks: Range<u32>, target: Target) {
    let overlay: &Overlay = from.overlay.as_ref().expect("a lost overlay is never merged");
    match target {
        Target::Zero { hole } => builder.zeros(blocks, hole),
        Target::Frame { pack, frame } => {
            let (owner, id): (Uuid, _) = overlay.pack(from.owner.volume(), pack);
            builder.frames(blocks, owner, id, frame);
        }
    }
}

/// Merges two neighbouring overlays into one that `keys` owns. The newer one decides where both have a block.
pub(super) fn merge(
    keys: Keys,
    geometry: Geometry,
    older: &LoadedOverlay,
    newer: &LoadedOverlay,
) -> LoadedOverlay {
    let (older, newer) = if mutant::is(Mutant::MergeKeepsOlder) { (newer, older) } else { (older, newer) };
    let mut builder = OverlayBuilder::new(keys.volume(), geometry);
    let mut over = applying(newer, geometry).peekable();
    let mut covered = 0;
    for run in applying(older, geometry) {
        let Range { start, end } = run.range();
        let mut at = start.max(covered);
        while at < end {
            if let Some(next) = over.next_if(|next| next.first() <= at) {
                covered = next.range().end;
                at = at.max(covered);
                push(&mut builder, newer, next.range(), next.target());
                continue;
            }
            let until = over.peek().map_or(end, |next| next.first().min(end));
            if !mutant::is(Mutant::MergeDropsRun) || start % 4 != 1 {
                push(&mut builder, older, at..until, run.target().advanced(at - start));
            }
            at = until;
        }
    }
    for run in over {
        push(&mut builder, newer, run.range(), run.target());
    }
    let mut chunks: ChunkSet = older.chunks.clone();
    chunks.extend(&newer.chunks);
    LoadedOverlay { overlay: Ok(Arc::new(builder.finish())), owner: keys, id: None, chunks }
}

/// Returns an overlay that `keys` owns and that says the same as an overlay of another volume.
pub(super) fn adopted(keys: Keys, geometry: Geometry, foreign: &LoadedOverlay) -> LoadedOverlay {
    let nothing = Ok(Arc::new(Overlay::default()));
    let older = LoadedOverlay { overlay: nothing, owner: keys, id: None, chunks: ChunkSet::default() };
    merge(keys, geometry, &older, foreign)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::volume::format::keys::ObjectId;

    fn geometry() -> Geometry {
        Geometry::new(64 << 10).expect("a chunk size")
    }

    /// An overlay of blocks, each in the frame of its own number of a pack, that applies to some chunks.
    fn overlay(pack: u64, blocks: &[u32], chunks: &[u16]) -> LoadedOverlay {
        let volume = Uuid::from_u128(1);
        let mut builder = OverlayBuilder::new(volume, geometry());
        for block in blocks {
            match block % 7 {
                0 => builder.zeros(*block..block + 1, pack == 1),
                _ => {
                    let frame = u16::try_from(*block).expect("few");
                    builder.frames(*block..block + 1, volume, ObjectId { epoch: 1, k: pack }, frame);
                }
            }
        }
        let mut set = ChunkSet::default();
        chunks.iter().for_each(|slot| set.insert(*slot));
        let overlay = Ok(Arc::new(builder.finish()));
        LoadedOverlay { overlay, owner: Keys::new(volume), id: None, chunks: set }
    }

    /// What an overlay says of each block: a pack and a frame, or zeros.
    fn said(loaded: &LoadedOverlay) -> BTreeMap<u32, Result<(ObjectId, u16), bool>> {
        let mut said = BTreeMap::new();
        let overlay = loaded.overlay.as_ref().expect("it is not lost");
        for run in applying(loaded, geometry()) {
            for block in run.range() {
                let place = match run.target().advanced(block - run.first()) {
                    Target::Zero { hole } => Err(hole),
                    Target::Frame { pack, frame } => Ok((overlay.pack(Uuid::from_u128(1), pack).1, frame)),
                };
                said.insert(block, place);
            }
        }
        said
    }

    proptest! {
        #[test]
        fn a_merged_overlay_says_what_the_two_say_together(
            older in proptest::collection::btree_set(0_u32..64, 1..50),
            newer in proptest::collection::btree_set(0_u32..64, 1..50),
            older_chunks in proptest::collection::btree_set(0_u16..4, 0..4),
            newer_chunks in proptest::collection::btree_set(0_u16..4, 0..4),
        ) {
            let list = |blocks: std::collections::BTreeSet<u32>| blocks.into_iter().collect::<Vec<_>>();
            let chunks = |chunks: std::collections::BTreeSet<u16>| chunks.into_iter().collect::<Vec<_>>();
            let older = overlay(1, &list(older), &chunks(older_chunks));
            let newer = overlay(2, &list(newer), &chunks(newer_chunks));
            let mut expected = said(&older);
            expected.extend(said(&newer));
            let merged = merge(Keys::new(Uuid::from_u128(1)), geometry(), &older, &newer);
            prop_assert_eq!(said(&merged), expected);
        }
    }
}
