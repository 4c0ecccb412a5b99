//! How much a checkpoint does besides what clients wrote: which packs it rewrites, and how many chunks it
//! consolidates.
//!
//! Owns the budget. It does no I/O. Invariant: the bytes of background work are in proportion to what
//! clients wrote, unless garbage takes too much space.

use std::collections::BTreeMap;

use crate::mutant::{self, Mutant};
use crate::volume::format::geometry::BLOCK_BYTES;
use crate::volume::format::keys::ObjectId;
use crate::volume::format::root::{PackUse, Root, Space};
use crate::volume::options::Options;

/// Limit on the packs that one checkpoint rewrites.
const MOST_VICTIMS: usize = 64;
/// Percent of what is in use that may be stored before more is rewritten than usual.
const USUAL_PERCENT: u64 = 150;
/// Percent of what is in use that should never be exceeded.
const MOST_PERCENT: u64 = 195;
/// Packs that may exist in addition to twice as many as their frames need.
const SPARE_PACKS: usize = 64;

/// How eagerly garbage is reduced. The more space it takes, the more work is worth its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Eagerness {
    /// Bytes of background work for each 100 bytes that clients wrote.
    pub(super) percent: u64,
    /// A chunk is consolidated when overlays decide about this share of its blocks, in percent.
    pub(super) consolidate_percent: u64,
    /// A pack is rewritten when at most this share of its frames is in use, in percent.
    pub(super) relocate_percent: u64,
}

impl Eagerness {
    pub(super) fn of(space: Space, options: &Options) -> Self {
        let usual = Self {
            percent: options.background_percent,
            consolidate_percent: options.consolidate_percent,
            relocate_percent: options.relocate_percent,
        };
        let excess = (space.stored * 100).checked_div(space.live).unwrap_or(0).saturating_sub(USUAL_PERCENT);
        let excess = excess.min(MOST_PERCENT - USUAL_PERCENT);
        Self {
            percent: usual.percent + usual.percent.max(100) * excess / 10,
            consolidate_percent: usual.consolidate_percent * (60 - excess) / 60,
            relocate_percent: usual.relocate_percent.max(excess + 30).min(90),
        }
    }

    /// Bytes of background work for a checkpoint of `written` bytes. What the work replaces is deleted only
    /// after the checkpoint, so it is bounded by the room that is left, too.
    pub(super) fn budget(self, space: Space, written: u64) -> u64 {
        let most = (space.live * MOST_PERCENT / 100).saturating_sub(space.stored) * BLOCK_BYTES;
        (written * self.percent / 100).min(written.max(most))
    }
}

/// Returns the packs that are worth rewriting, the least used first, while their blocks fit into `budget`
/// bytes.
pub(super) fn victims(
    root: &Root,
    eagerness: Eagerness,
    pack_frames: u32,
    budget: u64,
) -> Vec<(ObjectId, PackUse)> {
    let percent = |pack: &PackUse| u64::from(pack.live) * 100 / u64::from(pack.frames);
    let mut chosen: BTreeMap<ObjectId, PackUse> = root
        .packs
        .iter()
        .filter(|(_, pack)| percent(pack) <= eagerness.relocate_percent)
        .map(|(id, pack)| (*id, *pack))
        .collect();
    // A volume with little traffic makes small packs. There must not be ever more of them.
    let frames: u64 = root.packs.values().map(|pack| u64::from(pack.frames)).sum();
    let needed = usize::try_from(frames / u64::from(pack_frames)).unwrap_or(usize::MAX);
    let most = needed.saturating_mul(2).saturating_add(SPARE_PACKS);
    if root.packs.len() > most {
        let mut smallest: Vec<_> = root.packs.iter().map(|(id, pack)| (pack.live, *id, *pack)).collect();
        smallest.sort_by_key(|(live, id, _)| (*live, *id));
        chosen.extend(smallest.into_iter().take(MOST_VICTIMS).map(|(_, id, pack)| (id, pack)));
    }
    let mut victims: Vec<(ObjectId, PackUse)> = chosen.into_iter().collect();
    victims.sort_by_key(|(id, pack)| (percent(pack), *id));
    victims.truncate(MOST_VICTIMS);
    let mut left = budget;
    victims.retain(|(_, pack)| {
        let bytes = u64::from(pack.live) * BLOCK_BYTES;
        let fits = bytes <= left;
        left -= if fits { bytes } else { 0 };
        fits
    });
    victims
}

/// Returns the packs of a root without the frames that are no longer in use, with the packs that were made.
/// `relocated` are packs of which every block in use was moved.
pub(super) fn packs_after(
    packs: &BTreeMap<ObjectId, PackUse>,
    made: &BTreeMap<ObjectId, u32>,
    released: &BTreeMap<ObjectId, u32>,
    relocated: &[ObjectId],
) -> BTreeMap<ObjectId, PackUse> {
    let mut after = packs.clone();
    after.extend(made.iter().map(|(id, frames)| (*id, PackUse { frames: *frames, live: *frames })));
    for (id, released) in released {
        if let Some(pack) = after.get_mut(id) {
            let released = if mutant::is(Mutant::LiveCountLow) { released + 1 } else { *released };
            pack.live = pack.live.saturating_sub(released);
        }
    }
    after.retain(|id, pack| pack.live > 0 && !relocated.contains(id));
    after
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::format::geometry::Geometry;
    use crate::volume::format::interval::IntervalMap;
    use crate::volume::format::keys::Slot;

    fn id(k: u64) -> ObjectId {
        ObjectId { epoch: 1, k }
    }

    fn root(packs: &[(u64, u32, u32)]) -> Root {
        let packs = packs.iter().map(|(k, frames, live)| (id(*k), PackUse { frames: *frames, live: *live }));
        Root {
            id: id(0),
            commit: Slot { epoch: 1, n: 1 },
            size_bytes: 1 << 30,
            geometry: Geometry::new(4 << 20).expect("a chunk size"),
            origins: Vec::new(),
            map_pages: BTreeMap::new(),
            packs: packs.collect(),
            zeroed: IntervalMap::default(),
        }
    }

    #[test]
    fn the_least_used_packs_are_rewritten_first_within_the_budget() {
        let root = root(&[(1, 100, 90), (2, 100, 30), (3, 100, 10), (4, 100, 31)]);
        let eagerness = Eagerness::of(Space { stored: 4, live: 4 }, &Options::default());
        let chosen = |budget| {
            victims(&root, eagerness, 100, budget).into_iter().map(|(id, _)| id.k).collect::<Vec<_>>()
        };
        assert_eq!(chosen(1 << 30), [3, 2]);
        assert_eq!(chosen(20 * 4096), [3]);
        assert_eq!(chosen(0), [0_u64; 0]);
    }

    #[test]
    fn small_packs_do_not_pile_up() {
        let packs: Vec<(u64, u32, u32)> = (1..=65).map(|k| (k, 1, 1)).collect();
        let eagerness = Eagerness::of(Space::default(), &Options::default());
        assert_eq!(victims(&root(&packs), eagerness, 4096, 1 << 30).len(), MOST_VICTIMS);
        assert_eq!(victims(&root(&packs[..64]), eagerness, 4096, 1 << 30).len(), 0);
    }

    #[test]
    fn a_pack_leaves_the_root_with_its_last_frame_in_use() {
        let before = root(&[(1, 10, 3), (2, 10, 5), (3, 10, 9)]).packs;
        let made = BTreeMap::from([(id(7), 4)]);
        let released = BTreeMap::from([(id(1), 3), (id(2), 4), (id(9), 1)]);
        let after = packs_after(&before, &made, &released, &[id(3)]);
        let expected = [(id(2), PackUse { frames: 10, live: 1 }), (id(7), PackUse { frames: 4, live: 4 })];
        assert_eq!(after.into_iter().collect::<Vec<_>>(), expected);
    }
}
