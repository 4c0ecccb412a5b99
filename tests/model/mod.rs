//! Exhaustive check, at small scope, of the protocol by which commits become durable and gateways take over.
//!
//! Every interleaving is visited ([`explore`]). In each state, what the next opener would replay is compared
//! with what each gateway answered, committed and started with. Each rule of the protocol is broken once,
//! which must be found; the unbroken protocol must have no violation. Invariant: the number of states equals
//! that of the expected table, which an independent implementation of the same machine in another language
//! printed for the same scope.
//!
//! [`binding`] checks the binding of names to volumes and their renaming in the same way, [`packs`] how the objects of
//! checkpoints are published and deleted, [`snapshots`] how snapshots keep roots, [`clones`] how clones keep
//! snapshots, [`flattening`] when they keep them no more, [`undeletes`] how deleted volumes are kept and brought
//! back, and [`watchers`] for how long.

mod binding;
mod clones;
mod deletions;
mod explore;
mod flattening;
mod kept;
mod names;
mod packs;
mod protocol;
mod renames;
mod snapshots;
mod undeletes;
mod watchers;

use explore::{Machine, check};
use protocol::Twice::{Commits, Every, Never};
use protocol::{Broken, Commit, Phase, Scope, State, Twice};

/// A condition that must never occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Violation {
    /// The commits that an opener finds are not a prefix of those of a gateway.
    Gap,
    /// A flush was answered, and an opener does not find its commit.
    Lost,
    /// A gateway serves a state that differs from the commits below its epoch.
    Stale,
    /// A commit of a newer epoch comes before one of an older.
    Order,
}

/// Returns the violation in a state, if any.
fn violation(state: &State) -> Option<Violation> {
    let (commits, _) = state.replayed();
    let epoch = |commit: &Commit| state.gateways[usize::from(commit.0)].epoch;
    for (g, gateway) in (0_u8..).zip(&state.gateways) {
        let mine = commits.iter().filter(|commit| commit.0 == g).map(|commit| commit.1);
        if mine.clone().zip(0..).any(|(k, expected)| k != expected) {
            return Some(Violation::Gap);
        }
        if mine.count() < usize::from(gateway.answered) {
            return Some(Violation::Lost);
        }
        let below = || commits.iter().filter(|commit| epoch(commit) < gateway.epoch);
        if gateway.phase == Phase::Serving && !below().eq(&gateway.seen) {
            return Some(Violation::Stale);
        }
    }
    let sorted = commits.iter().map(epoch).is_sorted();
    (!sorted).then_some(Violation::Order)
}

impl Machine for State {
    type Scope = Scope;
    type Step = protocol::Step;
    type Violation = Violation;

    fn first(scope: &Scope) -> Self {
        Self::first(scope)
    }

    fn steps(&self, scope: &Scope) -> Vec<(Self::Step, Self)> {
        self.steps(scope)
    }

    fn violation(&self, _: &Scope) -> Option<Violation> {
        violation(self)
    }
}

/// Builds a scope from its parts.
fn scope(gateways: u8, commits: u8, window: u8, twice: Twice, broken: Option<Broken>) -> Scope {
    Scope { gateways, commits, window, twice, broken }
}

/// Checks that the unbroken protocol has no violation, in exactly this number of states.
fn holds(scope: Scope, states: usize) {
    let found = check::<State>(&scope);
    assert!(found.violations.is_empty(), "{scope:?}: {:#?}", found.violations);
    assert_eq!(found.states, states, "{scope:?}");
}

/// Checks that breaking a rule causes exactly these violations, in exactly this number of states.
fn finds(scope: Scope, states: usize, expected: &[Violation]) {
    let found = check::<State>(&scope);
    let kinds: Vec<Violation> = found.violations.keys().copied().collect();
    assert_eq!(kinds, expected, "{scope:?}: {:#?}", found.violations);
    assert_eq!(found.states, states, "{scope:?}");
}

#[test]
fn two_gateways_lose_nothing() {
    holds(scope(2, 2, 2, Never, None), 4_485);
    holds(scope(2, 3, 3, Never, None), 44_465);
}

#[test]
fn nor_when_a_put_lands_twice() {
    holds(scope(2, 2, 2, Commits, None), 51_739);
    holds(scope(3, 1, 1, Commits, None), 119_065);
}

/// Any record may be sent twice while the gateway waits for its answer. The second PUT may take effect after the
/// record was folded and deleted, after another gateway has sealed the log, or never.
#[test]
fn nor_when_any_put_is_hedged_and_lands_late() {
    holds(scope(2, 1, 1, Every, None), 139_229);
    finds(scope(2, 1, 1, Every, Some(Broken::DeletesSeals)), 454_997, &[Violation::Lost]);
    finds(scope(2, 1, 1, Every, Some(Broken::IgnoresTakenSlot)), 135_773, &[Violation::Lost]);
}

#[test]
fn nor_do_three_gateways() {
    holds(scope(3, 1, 1, Never, None), 30_325);
    holds(scope(3, 2, 1, Never, None), 260_764);
    holds(scope(3, 2, 2, Never, None), 854_047);
}

#[test]
fn nor_do_four_gateways() {
    holds(scope(4, 1, 1, Never, None), 3_201_913);
}

#[test]
fn nor_do_three_commits_in_flight_that_land_twice() {
    holds(scope(2, 3, 2, Commits, None), 1_010_603);
}

#[test]
fn deleting_seals_loses_flushes() {
    finds(scope(2, 2, 2, Never, Some(Broken::DeletesSeals)), 5_985, &[Violation::Lost]);
    finds(scope(2, 2, 2, Commits, Some(Broken::DeletesSeals)), 79_207, &[Violation::Lost]);
}

#[test]
fn skipping_the_seal_loses_flushes() {
    finds(scope(2, 2, 2, Never, Some(Broken::SkipsSeal)), 413, &[Violation::Lost, Violation::Stale]);
    finds(scope(2, 2, 2, Commits, Some(Broken::SkipsSeal)), 1_241, &[Violation::Lost, Violation::Stale]);
}

#[test]
fn skipping_the_opening_record_serves_what_is_not_the_truth() {
    // Two gateways are too few to reveal it.
    finds(scope(2, 2, 2, Never, Some(Broken::SkipsOpening)), 4_193, &[]);
    finds(scope(3, 1, 1, Never, Some(Broken::SkipsOpening)), 20_224, &[Violation::Stale]);
    finds(scope(3, 2, 2, Never, Some(Broken::SkipsOpening)), 744_178, &[Violation::Stale]);
}

#[test]
fn answering_out_of_order_loses_flushes() {
    finds(scope(2, 2, 2, Never, Some(Broken::AnswersOutOfOrder)), 4_749, &[Violation::Lost]);
}

#[test]
fn ignoring_a_taken_slot_loses_flushes() {
    finds(scope(2, 2, 2, Never, Some(Broken::IgnoresTakenSlot)), 4_883, &[Violation::Lost]);
}
