//! Exhaustive check, at small scope, of how snapshots keep roots and how their deletion frees them.
//! [`super::kept`] is the machine; this file owns what must hold in each of its states, and checks that
//! breaking each rule is found. The numbers of states are those of an independent implementation in another
//! language.

use super::explore::{Machine, check, check_to_first};
use super::kept::{Broken, Objects, Scope, State, Step};

/// A condition that must never occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Violation {
    /// The current root or a snapshot needs an object that is gone.
    Lost,
    /// A snapshot was answered and not deleted, and the head does not list it.
    Forgotten,
    /// Nothing is left to do, and an object exists that nobody needs.
    Leaked,
}

impl Machine for State {
    type Scope = Scope;
    type Step = Step;
    type Violation = Violation;

    fn first(_: &Scope) -> Self {
        Self::first()
    }

    fn steps(&self, scope: &Scope) -> Vec<(Step, Self)> {
        self.steps(scope)
    }

    fn violation(&self, scope: &Scope) -> Option<Violation> {
        let listed = self.head.iter().filter(|root| root.is_snapshot);
        let listed = listed.fold(Objects::default(), |all, root| all.with(root.number));
        if !listed.contains_all(self.promised) {
            return Some(Violation::Forgotten);
        }
        let kept = self.kept(scope);
        let is_current_kept = self.table.last().is_some_and(|root| !self.collected.contains(root.number));
        let mut needing = self.head.iter().chain(&kept).filter(|root| !root.is_retired);
        if !is_current_kept || needing.any(|root| !self.exists.contains_all(root.needed())) {
            return Some(Violation::Lost);
        }
        let is_idle = self.change.is_none()
            && self.deletion.is_none()
            && self.orphans.is_empty()
            && !self.sweeps
            && !kept.iter().any(|root| root.is_retired);
        let needed = kept.iter().fold(Objects::default(), |all, root| all.union(root.needed()));
        (is_idle && !needed.contains_all(self.exists)).then_some(Violation::Leaked)
    }
}

fn scope(checkpoints: u8, snapshots: u8, restorations: u8, crashes: u8) -> Scope {
    Scope { checkpoints, snapshots, restorations, crashes, broken: None }
}

/// Checks that the unbroken rules have no violation, in exactly this number of states.
fn holds(scope: Scope, states: usize) {
    let found = check::<State>(&scope);
    assert!(found.violations.is_empty(), "{scope:?}: {:#?}", found.violations);
    assert_eq!(found.states, states, "{scope:?}");
}

/// Checks that breaking a rule is found, and that this violation takes the fewest steps.
fn finds(scope: Scope, broken: Broken, expected: Violation) {
    let scope = Scope { broken: Some(broken), ..scope };
    let found = check_to_first::<State>(&scope);
    assert!(found.violations.contains_key(&expected), "{scope:?}: {found:#?}");
}

#[test]
fn snapshots_keep_what_they_need_and_leave_nothing() {
    holds(scope(2, 2, 0, 0), 4_826);
    holds(scope(3, 1, 0, 0), 31_400);
}

#[test]
fn also_when_one_is_restored() {
    holds(scope(2, 2, 1, 0), 40_583);
}

#[test]
fn also_when_the_gateway_crashes_at_any_step() {
    holds(scope(2, 2, 0, 1), 48_844);
    holds(scope(2, 1, 1, 1), 128_573);
}

#[test]
fn what_a_relative_references_outlives_a_root() {
    finds(scope(3, 1, 0, 0), Broken::ParentIgnored, Violation::Lost);
    finds(scope(2, 1, 0, 0), Broken::ChildIgnored, Violation::Lost);
    finds(scope(2, 2, 1, 0), Broken::SiblingIgnored, Violation::Lost);
}

#[test]
fn the_children_of_a_deleted_root_pass_to_its_parent() {
    finds(scope(2, 2, 0, 0), Broken::ChildrenLeft, Violation::Lost);
}

#[test]
fn a_checkpoint_keeps_the_snapshot_of_the_root_that_it_replaces() {
    finds(scope(2, 1, 0, 0), Broken::SnapshotForgotten, Violation::Forgotten);
}

#[test]
fn the_current_root_stays_when_its_snapshot_is_deleted() {
    finds(scope(2, 1, 0, 0), Broken::CurrentRetired, Violation::Lost);
}

#[test]
fn a_snapshot_is_freed_when_the_head_says_that_it_is_deleted() {
    finds(scope(2, 1, 0, 1), Broken::FreedUnpublished, Violation::Lost);
}
