//! Exhaustive check, at small scope, of the protocol by which commits become durable and gateways take over.
//!
//! Every interleaving is visited, breadth first, so that what is found is found with the fewest steps. In each
//! state, what the next opener would replay is held against what each gateway answered, committed and began with.
//! Each rule of the protocol is broken once, and its breaking must be found; the unbroken protocol must show
//! nothing. Invariant: the number of states is that of the expected table, which an independent implementation
//! of the same machine, in another language, printed for the same scope.

mod protocol;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};

use xxhash_rust::xxh3::xxh3_128;

use protocol::{Broken, Commit, Phase, Scope, State};

/// What must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Violation {
    /// What an opener finds is no prefix of what a gateway committed.
    Gap,
    /// A flush was answered, and an opener does not find its commit.
    Lost,
    /// A gateway serves something else than the truth below its epoch.
    Stale,
    /// A commit of a newer epoch comes before one of an older.
    Order,
}

/// What is wrong with a state, if anything.
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

/// Collects what a state hashes as bytes, so that its hash is the same on every run.
#[derive(Default)]
struct Content(Vec<u8>);

impl Hasher for Content {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        unreachable!("the content is hashed as a whole")
    }
}

/// A state in 128 bits.
fn digest(state: &State, content: &mut Content) -> u128 {
    content.0.clear();
    state.hash(content);
    xxh3_128(&content.0)
}

/// What a check found.
#[derive(Debug, Default)]
struct Findings {
    /// Different states that were reached.
    states: usize,
    /// Each kind of violation, with the shortest way to it.
    violations: BTreeMap<Violation, Vec<String>>,
}

/// Visits every state. Those that violate are not followed further.
fn check(scope: &Scope) -> Findings {
    let mut content = Content::default();
    let first = State::first(scope);
    // The place of each state's predecessor, in order of discovery, tells the way to it.
    let (mut came_from, mut digests) = (vec![0], vec![digest(&first, &mut content)]);
    let mut seen: BTreeSet<u128> = digests.iter().copied().collect();
    let mut queue = VecDeque::from([(0, first)]);
    let mut violations = BTreeMap::new();
    while let Some((place, state)) = queue.pop_front() {
        if let Some(violation) = violation(&state) {
            violations.entry(violation).or_insert(place);
            continue;
        }
        for (_, next) in state.steps(scope) {
            let digest = digest(&next, &mut content);
            if seen.insert(digest) {
                queue.push_back((came_from.len(), next));
                came_from.push(place);
                digests.push(digest);
            }
        }
    }
    let way = |place| way_to(scope, place, &came_from, &digests);
    Findings {
        states: seen.len(),
        violations: violations.into_iter().map(|(kind, place)| (kind, way(place))).collect(),
    }
}

/// The steps to a state, found again from the first.
fn way_to(scope: &Scope, place: usize, came_from: &[usize], digests: &[u128]) -> Vec<String> {
    let mut places = vec![place];
    while let Some(&last) = places.last().filter(|place| **place != 0) {
        places.push(came_from[last]);
    }
    let (mut content, mut state, mut way) = (Content::default(), State::first(scope), Vec::new());
    for place in places.iter().rev().skip(1) {
        let mut steps = state.steps(scope).into_iter();
        let (step, next) =
            steps.find(|(_, next)| digest(next, &mut content) == digests[*place]).expect("a step led there");
        way.push(step.to_string());
        state = next;
    }
    way
}

/// A scope by its parts.
fn scope(gateways: u8, commits: u8, window: u8, late_duplicates: bool, broken: Option<Broken>) -> Scope {
    Scope { gateways, commits, window, late_duplicates, broken }
}

/// The unbroken protocol shows nothing, in exactly so many states.
fn holds(scope: Scope, states: usize) {
    let found = check(&scope);
    assert!(found.violations.is_empty(), "{scope:?}: {:#?}", found.violations);
    assert_eq!(found.states, states, "{scope:?}");
}

/// The breaking of a rule is found: exactly these violations, in exactly so many states.
fn finds(scope: Scope, states: usize, expected: &[Violation]) {
    let found = check(&scope);
    let kinds: Vec<Violation> = found.violations.keys().copied().collect();
    assert_eq!(kinds, expected, "{scope:?}: {:#?}", found.violations);
    assert_eq!(found.states, states, "{scope:?}");
}

#[test]
fn two_gateways_lose_nothing() {
    holds(scope(2, 2, 2, false, None), 4_485);
    holds(scope(2, 3, 3, false, None), 44_465);
}

#[test]
fn nor_when_a_put_lands_twice() {
    holds(scope(2, 2, 2, true, None), 51_739);
    holds(scope(3, 1, 1, true, None), 119_065);
}

#[test]
fn nor_do_three_gateways() {
    holds(scope(3, 1, 1, false, None), 30_325);
    holds(scope(3, 2, 1, false, None), 260_764);
    holds(scope(3, 2, 2, false, None), 854_047);
}

#[test]
fn nor_do_four_gateways() {
    holds(scope(4, 1, 1, false, None), 3_201_913);
}

#[test]
fn nor_do_three_commits_in_flight_that_land_twice() {
    holds(scope(2, 3, 2, true, None), 1_010_603);
}

#[test]
fn deleting_seals_loses_flushes() {
    finds(scope(2, 2, 2, false, Some(Broken::DeletesSeals)), 5_985, &[Violation::Lost]);
    finds(scope(2, 2, 2, true, Some(Broken::DeletesSeals)), 79_207, &[Violation::Lost]);
}

#[test]
fn skipping_the_seal_loses_flushes() {
    finds(scope(2, 2, 2, false, Some(Broken::SkipsSeal)), 413, &[Violation::Lost, Violation::Stale]);
    finds(scope(2, 2, 2, true, Some(Broken::SkipsSeal)), 1_241, &[Violation::Lost, Violation::Stale]);
}

#[test]
fn skipping_the_opening_record_serves_what_is_not_the_truth() {
    // Two gateways do not show it.
    finds(scope(2, 2, 2, false, Some(Broken::SkipsOpening)), 4_193, &[]);
    finds(scope(3, 1, 1, false, Some(Broken::SkipsOpening)), 20_224, &[Violation::Stale]);
    finds(scope(3, 2, 2, false, Some(Broken::SkipsOpening)), 744_178, &[Violation::Stale]);
}

#[test]
fn answering_out_of_order_loses_flushes() {
    finds(scope(2, 2, 2, false, Some(Broken::AnswersOutOfOrder)), 4_749, &[Violation::Lost]);
}

#[test]
fn ignoring_a_taken_slot_loses_flushes() {
    finds(scope(2, 2, 2, false, Some(Broken::IgnoresTakenSlot)), 4_883, &[Violation::Lost]);
}
