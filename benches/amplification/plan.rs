//! What an experiment writes, block by block: an [`Experiment`] at a scale, with a seed.
//!
//! Must not write anything itself. Invariant: two plans of the same experiment, scale and seed are equal, so that each
//! phase knows what the phases before it have written.

use std::collections::BTreeSet;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::content::Content;
use crate::experiment::{
    BLOCK_BYTES, Base, CHUNK_BYTES, Experiment, FLUSH_EVERY, HOT_BLOCKS, Load, MAP_PAGE_BYTES, PAGE_BLOCKS,
    TOUCHED_MAP_PAGES,
};
use crate::scale::Scale;

/// Blocks of 1 MiB: the size of a sequential write, and of the extents of [`Load::Skewed`].
pub(crate) const MIB_BLOCKS: u64 = (1 << 20) / BLOCK_BYTES;

/// A run of adjacent blocks that are written together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) block: u64,
    pub(crate) blocks: u64,
}

/// An experiment at a scale, with a seed.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) experiment: &'static Experiment,
    pub(crate) scale: Scale,
    pub(crate) seed: u64,
}

impl Plan {
    /// Size of the disk: whole chunks.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.scale.bytes(self.experiment.disk_bytes, CHUNK_BYTES)
    }

    pub(crate) fn disk_blocks(&self) -> u64 {
        self.disk_bytes() / BLOCK_BYTES
    }

    /// Number of blocks that the load writes.
    pub(crate) fn load_blocks(&self) -> u64 {
        self.scale.bytes(self.experiment.written_bytes, BLOCK_BYTES) / BLOCK_BYTES
    }

    /// Number of writes between two flushes of the load.
    pub(crate) fn flush_every(&self) -> u64 {
        if self.experiment.load == Load::Sequential { u64::MAX } else { FLUSH_EVERY }
    }

    /// The blocks of the hot set, in random order.
    pub(crate) fn hot_set(&self) -> Vec<u64> {
        let mut rng = SmallRng::seed_from_u64(self.seed ^ 0x0068_6f74);
        let count = self.scale.count(HOT_BLOCKS);
        let mut blocks = BTreeSet::new();
        while (blocks.len() as u64) < count {
            blocks.insert(rng.random_range(0..self.disk_blocks()));
        }
        let mut blocks: Vec<u64> = blocks.into_iter().collect();
        blocks.shuffle(&mut rng);
        blocks
    }

    /// The writes of the base, in the order of the disk.
    pub(crate) fn base(&self) -> Box<dyn Iterator<Item = Run>> {
        let (disk, chunk) = (self.disk_blocks(), CHUNK_BYTES / BLOCK_BYTES);
        match self.experiment.base {
            Base::Empty => Box::new(std::iter::empty()),
            Base::Full => Box::new(in_order(disk)),
            Base::FirstPages => {
                let chunks = 0..disk / chunk;
                Box::new(chunks.map(move |index| Run { block: index * chunk, blocks: PAGE_BLOCKS }))
            }
            Base::HotPages => {
                let pages: BTreeSet<u64> = self.hot_set().iter().map(|block| block / PAGE_BLOCKS).collect();
                let runs = pages.into_iter();
                Box::new(runs.map(|page| Run { block: page * PAGE_BLOCKS, blocks: PAGE_BLOCKS }))
            }
        }
    }

    /// The writes of the load.
    pub(crate) fn load(&self) -> Box<dyn Iterator<Item = Run>> {
        let (disk, count) = (self.disk_blocks(), self.load_blocks());
        let mut rng = SmallRng::seed_from_u64(self.seed ^ 0x6c6f_6164);
        let one = |block| Run { block, blocks: 1 };
        match self.experiment.load {
            Load::Uniform => Box::new((0..count).map(move |_| one(rng.random_range(0..disk)))),
            Load::Sequential => Box::new(in_order(count)),
            Load::HotHalf => Box::new(self.hot_set().into_iter().step_by(2).map(one)),
            Load::Skewed => {
                let mut extents: Vec<u64> = (0..disk / MIB_BLOCKS).collect();
                extents.shuffle(&mut rng);
                Box::new((0..count).map(move |_| {
                    let hot = extents.len().div_ceil(10);
                    let among = if rng.random_ratio(9, 10) { hot } else { extents.len() };
                    let extent = extents[rng.random_range(0..among)];
                    one(extent * MIB_BLOCKS + rng.random_range(0..MIB_BLOCKS))
                }))
            }
            Load::FewMapPages => {
                let (pages, map_page) = self.touched_map_pages();
                Box::new(
                    (0..count)
                        .zip((0..pages.len()).cycle())
                        .map(move |(_, turn)| one(pages[turn] + rng.random_range(0..map_page))),
                )
            }
        }
    }

    /// The first blocks of the map pages of [`Load::FewMapPages`], spread over the disk, and the blocks of a map page.
    fn touched_map_pages(&self) -> (Vec<u64>, u64) {
        let map_page = (MAP_PAGE_BYTES / BLOCK_BYTES).min(self.disk_blocks());
        let all = self.disk_blocks() / map_page;
        let touched = TOUCHED_MAP_PAGES.min(all);
        ((0..touched).map(|page| page * (all / touched) * map_page).collect(), map_page)
    }

    /// The content of the disk after its base was written.
    pub(crate) fn content_after_base(&self) -> Content {
        let mut content = Content::new(self.seed);
        self.base().for_each(|run| content.rewrite(run));
        content
    }

    /// The content of the disk after the load was written.
    pub(crate) fn content_after_load(&self) -> Content {
        let mut content = self.content_after_base();
        self.load().for_each(|run| content.rewrite(run));
        content
    }
}

/// Writes of 1 MiB that cover the first `blocks` blocks.
fn in_order(blocks: u64) -> impl Iterator<Item = Run> {
    let starts = (0..blocks).step_by(usize::try_from(MIB_BLOCKS).expect("256"));
    starts.map(move |block| Run { block, blocks: MIB_BLOCKS.min(blocks - block) })
}
