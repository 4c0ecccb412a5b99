//! Exhaustive check, at small scope, of how packs, overlays, chunk objects, map pages and roots are published
//! and deleted. [`map`] has the objects, [`gateway`] and [`collect`] are the machine; this file owns what
//! must hold in each of its states, and checks that breaking each rule is found.

mod collect;
mod gateway;
mod map;
mod scope;
mod step;

use self::gateway::{Lease, State};
use self::map::{BLOCKS, Change, Kind, Number, Object, Objects, PAGES, Place};
use self::scope::{Broken, Scope};
use self::step::Step;
use super::explore::{Machine, check, check_to_first};

/// A condition that must never occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Violation {
    /// An object that a kept root references does not exist.
    Lost,
    /// A kept root locates a block in other bytes than those of its commit.
    Wrong,
    /// Nobody holds the volume, no sweep is due, and an object exists that nothing references.
    Leaked,
}

impl Machine for State {
    type Scope = Scope;
    type Step = Step;
    type Violation = Violation;

    fn first(scope: &Scope) -> Self {
        Self::first(scope)
    }

    fn steps(&self, scope: &Scope) -> Vec<(Step, Self)> {
        self.steps(scope)
    }

    fn violation(&self, scope: &Scope) -> Option<Violation> {
        let current = self.head.checkpoint;
        if !self.exists.contains(Object { by: current, kind: Kind::Table }) {
            return Some(Violation::Lost);
        }
        for &root in &self.history.of(current).kept {
            if self.dying.contains(&root) && root != current {
                continue;
            }
            if !self.references(root).without(self.exists).is_empty() {
                return Some(Violation::Lost);
            }
            let commit = self.history.root(root).commit;
            for block in 0..BLOCKS {
                let place = self.history.locate(scope, root, block);
                if let Place::Pack(by) = place
                    && !self.exists.contains(Object { by, kind: Kind::Pack })
                {
                    return Some(Violation::Lost);
                }
                if self.history.value(place, block) != Some(self.truth(block, commit)) {
                    return Some(Violation::Wrong);
                }
            }
        }
        let is_at_rest = self.head.lease == Lease::Released && self.kept_are_whole();
        (is_at_rest && !self.exists.without(self.needed(scope)).without(self.strays).is_empty())
            .then_some(Violation::Leaked)
    }
}

impl State {
    /// Returns the objects that a root references, itself included.
    fn references(&self, root: Number) -> Objects {
        let mut references = self.history.root(root).packs();
        references.insert(Object { by: root, kind: Kind::Root });
        for page in 0..PAGES {
            if let Some(by) = self.history.root(root).pages[page] {
                references.insert(Object { by, kind: Kind::Map(page) });
                references = references.union(self.named_by_page(root, page));
            }
        }
        references
    }

    /// Whether the roots and map pages of every kept root exist. If one does not, the next opener leaves to a
    /// sweep what it may have referenced.
    fn kept_are_whole(&self) -> bool {
        let collected = &self.holder().collected;
        let kept = &self.history.of(self.head.checkpoint).kept;
        kept.iter().filter(|root| !collected.contains(root)).all(|&root| {
            let pages = (0..PAGES).filter_map(|page| {
                self.history.root(root).pages[page].map(|by| Object { by, kind: Kind::Map(page) })
            });
            pages.chain([Object { by: root, kind: Kind::Root }]).all(|object| self.exists.contains(object))
        })
    }

    /// Returns the objects that the head keeps. A pack that no block is located in is not needed, whatever
    /// the root lists. A root that is being deleted may have any of its objects, until its deletion is
    /// complete.
    fn needed(&self, scope: &Scope) -> Objects {
        let current = self.head.checkpoint;
        let mut needed: Objects = [Object { by: current, kind: Kind::Table }].into_iter().collect();
        let collected = &self.holder().collected;
        for &root in self.history.of(current).kept.iter().filter(|root| !collected.contains(root)) {
            let references = self.references(root);
            let is_dying = self.dying.contains(&root);
            let located: Objects = (0..BLOCKS)
                .filter_map(|block| match self.history.locate(scope, root, block) {
                    Place::Pack(by) => Some(Object { by, kind: Kind::Pack }),
                    _ => None,
                })
                .collect();
            let is_needed =
                |object: &Object| is_dying || object.kind != Kind::Pack || located.contains(*object);
            needed = needed.union(references.iter().filter(is_needed).collect());
        }
        needed
    }
}

const fn write(block: usize, value: u8) -> Change {
    Change { block, value }
}

/// A pack with both blocks of chunk 0.
const ONE_PACK: &[(&[Change], Option<usize>)] = &[(&[write(0, 1), write(1, 2)], None)];

/// A pack with a block of each chunk, in one overlay.
const SHARED_PACK: &[(&[Change], Option<usize>)] = &[(&[write(0, 1), write(2, 2)], None)];

/// A base below both blocks of chunk 0, and an overlay with blocks of both chunks above it.
const BASE_AND_OVERLAY: &[(&[Change], Option<usize>)] =
    &[(&[write(0, 1), write(1, 2)], Some(0)), (&[write(0, 3), write(2, 4)], None)];

/// An overlay that applies to chunk 1 only, since chunk 0 was rewritten, and above it one with a block of
/// chunk 0.
const CLEARED_OVERLAY: &[(&[Change], Option<usize>)] =
    &[(&[write(0, 1), write(1, 2), write(2, 3)], None), (&[write(0, 4)], Some(0)), (&[write(1, 5)], None)];

/// One gateway, which makes up to two checkpoints of up to two changes.
const ALONE: Scope = Scope {
    pages: 1,
    blocks: BLOCKS,
    before: BASE_AND_OVERLAY,
    changes: 2,
    checkpoints: 2,
    gateways: 1,
    failures: 0,
    rewrites: true,
    relocates: true,
    embeds: false,
    at_once: true,
    flushes_meanwhile: false,
    broken: None,
};
const ALONE_ON_TWO_PAGES: Scope = Scope { pages: 2, ..ALONE };
const ALONE_FROM_NOTHING: Scope =
    Scope { before: &[], blocks: 3, changes: 3, checkpoints: 3, embeds: true, ..ALONE };
const ALONE_ABOVE_CLEARED: Scope = Scope { before: CLEARED_OVERLAY, changes: 1, ..ALONE };
const FLUSHED_MEANWHILE: Scope = Scope {
    before: ONE_PACK,
    blocks: 1,
    checkpoints: 1,
    relocates: false,
    at_once: false,
    flushes_meanwhile: true,
    ..ALONE
};

/// Two gateways that overlap at any point, and a PUT that fails and lands at any time.
const TAKEN_OVER: Scope = Scope {
    before: ONE_PACK,
    blocks: 1,
    changes: 1,
    checkpoints: 1,
    gateways: 2,
    failures: 1,
    at_once: false,
    ..ALONE
};
const TAKEN_OVER_FROM_NOTHING: Scope =
    Scope { before: &[], changes: 2, checkpoints: 2, failures: 0, rewrites: false, ..TAKEN_OVER };
/// Three roots in turn, the first two of which share what the third does not reference.
const TAKEN_OVER_WITH_THREE_ROOTS: Scope =
    Scope { before: SHARED_PACK, changes: 0, checkpoints: 2, failures: 0, relocates: false, ..TAKEN_OVER };
const TAKEN_OVER_TWICE: Scope =
    Scope { gateways: 3, failures: 0, rewrites: false, relocates: false, ..TAKEN_OVER };

/// Checks that the unbroken rules have no violation, in exactly this number of states.
fn holds(scope: &Scope, states: usize) {
    let found = check::<State>(scope);
    assert!(found.violations.is_empty(), "{scope:?}: {:#?}", found.violations);
    assert_eq!(found.states, states, "{scope:?}");
}

/// Checks that breaking a rule is found, and that this violation takes the fewest steps.
fn finds(scope: &Scope, broken: Broken, expected: Violation) {
    let scope = Scope { broken: Some(broken), ..*scope };
    let found = check_to_first::<State>(&scope);
    assert!(found.violations.contains_key(&expected), "{scope:?}: {found:#?}");
}

#[test]
fn every_root_locates_the_bytes_of_its_commit() {
    holds(&ALONE, 73_242);
    holds(&ALONE_ON_TWO_PAGES, 69_322);
    holds(&ALONE_FROM_NOTHING, 123_864);
    holds(&ALONE_ABOVE_CLEARED, 12_554);
    holds(&FLUSHED_MEANWHILE, 641);
}

#[test]
fn also_while_gateways_overlap_and_requests_land_late() {
    holds(&TAKEN_OVER, 9_629);
    holds(&TAKEN_OVER_FROM_NOTHING, 84_292);
    holds(&TAKEN_OVER_TWICE, 63_816);
}

#[test]
fn also_when_roots_are_deleted_in_any_order() {
    holds(&TAKEN_OVER_WITH_THREE_ROOTS, 130_664);
}

#[test]
fn the_newest_overlay_is_the_last() {
    finds(&ALONE, Broken::NewestOverlayFirst, Violation::Wrong);
}

#[test]
fn a_merge_keeps_every_entry() {
    finds(&ALONE, Broken::MergeDropsEntry, Violation::Wrong);
}

#[test]
fn a_merge_keeps_zeros_that_hide_older_bytes() {
    finds(&ALONE, Broken::MergeDropsZeros, Violation::Wrong);
}

#[test]
fn a_merge_keeps_the_newer_of_two_entries() {
    finds(&ALONE, Broken::MergeKeepsOlder, Violation::Wrong);
}

#[test]
fn a_merge_takes_no_entry_of_a_chunk_that_its_overlay_does_not_apply_to() {
    finds(&ALONE_ABOVE_CLEARED, Broken::MergeRevives, Violation::Wrong);
}

#[test]
fn only_overlays_next_to_each_other_are_merged() {
    finds(&ALONE, Broken::MergesAcross, Violation::Wrong);
}

#[test]
fn a_merge_changes_no_live_count() {
    finds(&ALONE, Broken::CountLoweredByMerge, Violation::Lost);
}

#[test]
fn whatever_replaces_a_block_lowers_the_live_count_of_its_pack() {
    finds(&ALONE_ABOVE_CLEARED, Broken::CountForgetsReplaced, Violation::Leaked);
    finds(&ALONE_ABOVE_CLEARED, Broken::CountForgetsZeroed, Violation::Leaked);
    finds(&ALONE_ABOVE_CLEARED, Broken::CountForgetsConsolidated, Violation::Leaked);
    finds(&ALONE_ABOVE_CLEARED, Broken::CountForgetsRelocated, Violation::Leaked);
}

#[test]
fn a_rewritten_chunk_is_cleared_in_every_overlay() {
    finds(&ALONE, Broken::ClearsNoOverlay, Violation::Wrong);
    finds(&ALONE, Broken::ClearsNewestOverlay, Violation::Wrong);
    finds(&ALONE, Broken::ClearsOldestOverlay, Violation::Wrong);
}

#[test]
fn a_chunk_is_rewritten_with_nothing_newer_than_the_commit() {
    finds(&FLUSHED_MEANWHILE, Broken::ConsolidationFoldsNewer, Violation::Wrong);
}

#[test]
fn a_moved_block_yields_to_a_change_of_the_same_checkpoint() {
    finds(&ALONE, Broken::RelocationWins, Violation::Wrong);
}

#[test]
fn only_blocks_in_use_are_moved() {
    finds(&ALONE, Broken::RelocationMovesDead, Violation::Wrong);
}

#[test]
fn a_checkpoint_is_published_when_all_its_objects_are_durable() {
    finds(&TAKEN_OVER, Broken::PackUnawaited, Violation::Lost);
}

#[test]
fn a_pack_lives_as_long_as_any_kept_root_lists_it() {
    finds(&TAKEN_OVER, Broken::PackDeletedEarly, Violation::Lost);
}

#[test]
fn what_a_parent_or_a_child_references_outlives_a_root() {
    finds(&TAKEN_OVER, Broken::OverlaysUnshared, Violation::Lost);
    finds(&TAKEN_OVER, Broken::ChildIgnored, Violation::Lost);
    finds(&ALONE, Broken::ParentIgnored, Violation::Lost);
}

#[test]
fn the_head_is_read_after_the_list_is_made() {
    finds(&TAKEN_OVER, Broken::DeletesUnasked, Violation::Lost);
    finds(&TAKEN_OVER, Broken::ReadsHeadFirst, Violation::Lost);
}

#[test]
fn a_sweep_leaves_its_own_epoch_alone() {
    finds(&TAKEN_OVER, Broken::OwnEpochSwept, Violation::Lost);
}

#[test]
fn a_sweep_asks_every_kept_root() {
    finds(&TAKEN_OVER, Broken::OnlyCurrentAsked, Violation::Lost);
}

#[test]
fn an_opener_carries_retired_roots_until_they_are_deleted() {
    // If the opening sweeps, the sweep takes them for orphans; otherwise nobody ever finds what they
    // reference.
    let scope = Scope { failures: 0, broken: Some(Broken::RetiredForgotten), ..TAKEN_OVER };
    let found = check::<State>(&scope);
    assert!(found.violations.keys().eq(&[Violation::Lost, Violation::Leaked]), "{found:#?}");
}

#[test]
fn orphans_that_are_left_make_the_next_opener_sweep() {
    finds(&TAKEN_OVER, Broken::OrphansForgotten, Violation::Leaked);
}

#[test]
fn a_deletion_that_another_epoch_began_makes_the_next_opener_sweep() {
    finds(&TAKEN_OVER_WITH_THREE_ROOTS, Broken::MissingRootTrusted, Violation::Leaked);
    finds(&TAKEN_OVER_WITH_THREE_ROOTS, Broken::MissingPageTrusted, Violation::Leaked);
}
