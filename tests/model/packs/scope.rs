//! How large a check is, and which rule it breaks.
//!
//! It does not know how a rule is followed or broken: the rest of the machine asks [`Scope::breaks`] there.

use super::map::{CHUNKS, Change};

/// A rule that a check can break, to show that the rule is needed and that breaking it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// A new overlay is put below the others.
    NewestOverlayFirst,
    /// A merge leaves out an entry.
    MergeDropsEntry,
    /// A merge leaves out the blocks that an overlay zeroes.
    MergeDropsZeros,
    /// A merge keeps the older of two entries.
    MergeKeepsOlder,
    /// A merge takes entries of chunks that their overlay does not apply to any more.
    MergeRevives,
    /// Two overlays are merged that have another between them.
    MergesAcross,
    /// A pack's live count is lowered again when a merge drops an entry that was replaced before.
    CountLoweredByMerge,
    /// A live count stays when a block is replaced.
    CountForgetsReplaced,
    /// A live count stays when a block is zeroed.
    CountForgetsZeroed,
    /// A live count stays when a chunk is rewritten.
    CountForgetsConsolidated,
    /// A live count stays when a block is moved to a new pack.
    CountForgetsRelocated,
    /// A rewritten chunk stays set in every overlay.
    ClearsNoOverlay,
    /// A rewritten chunk is cleared only in the newest overlay.
    ClearsNewestOverlay,
    /// A rewritten chunk is cleared only in the oldest overlay.
    ClearsOldestOverlay,
    /// A chunk is rewritten with changes after the commit of the checkpoint.
    ConsolidationFoldsNewer,
    /// A block of a pack that is given up replaces a newer one of the same checkpoint.
    RelocationWins,
    /// Frames that are not in use are moved too.
    RelocationMovesDead,
    /// The checkpoint does not wait until its pack is durable.
    PackUnawaited,
    /// Packs that the new root does not list are deleted although the old root is kept.
    PackDeletedEarly,
    /// A retired root's overlays are deleted although another root references them.
    OverlaysUnshared,
    /// What a retired root references is compared with its parent only.
    ChildIgnored,
    /// What a retired root references is compared with its children only.
    ParentIgnored,
    /// Objects are deleted without reading the head.
    DeletesUnasked,
    /// The head is read before the list of objects is made.
    ReadsHeadFirst,
    /// The sweep considers objects of its own epoch.
    OwnEpochSwept,
    /// The sweep asks only the current root what is needed.
    OnlyCurrentAsked,
    /// An opener does not carry the retired roots of earlier epochs into its root table.
    RetiredForgotten,
    /// The head says that nothing is left to sweep although orphans are not deleted yet.
    OrphansForgotten,
    /// A retired root that does not exist any more leaves nothing to a sweep.
    MissingRootTrusted,
    /// A retired root whose map page does not exist any more leaves nothing to a sweep.
    MissingPageTrusted,
}

/// The size of a check.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    /// Map pages of the volume: 1, or 2 with a chunk each.
    pub pages: usize,
    /// Number of blocks, from the first, that clients change.
    pub blocks: usize,
    /// The changes of checkpoints that were published before the first state, with what each did besides.
    pub before: &'static [(&'static [Change], Option<usize>)],
    /// Limit on the changes that clients flush.
    pub changes: usize,
    /// Limit on the checkpoints that gateways begin.
    pub checkpoints: usize,
    /// Number of gateways, each of which opens the volume once, with the next epoch.
    pub gateways: usize,
    /// Limit on the PUTs that fail and land later or never.
    pub failures: u8,
    /// Whether checkpoints may rewrite chunks.
    pub rewrites: bool,
    /// Whether checkpoints may move the blocks of a pack to another.
    pub relocates: bool,
    /// Whether a checkpoint or deletion is one step, as is enough for one gateway whose requests do not fail.
    pub at_once: bool,
    /// Whether clients may flush changes while a checkpoint is made.
    pub flushes_meanwhile: bool,
    /// Whether an overlay of one block is embedded in its map page.
    pub embeds: bool,
    /// The rule that is broken, if any.
    pub broken: Option<Broken>,
}

impl Scope {
    pub(super) fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }

    /// Returns the map page of a chunk.
    pub(super) fn page_of(&self, chunk: usize) -> usize {
        chunk * self.pages / CHUNKS
    }
}
