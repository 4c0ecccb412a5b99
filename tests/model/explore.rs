//! Visits every state of a machine breadth first, so that each violation is found with the fewest steps.
//!
//! It must not know which machine that is. Invariant: every state is visited once, and a state with a
//! violation is not followed further.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};

use xxhash_rust::xxh3::xxh3_128;

/// A machine of small states.
pub(super) trait Machine: Hash + Sized {
    /// The size of a check.
    type Scope: fmt::Debug;
    /// A step between two states.
    type Step: fmt::Display;
    /// A condition that must never occur.
    type Violation: Copy + Ord + fmt::Debug;

    fn first(scope: &Self::Scope) -> Self;
    /// Returns every possible step and the state after it.
    fn steps(&self, scope: &Self::Scope) -> Vec<(Self::Step, Self)>;
    /// Returns the violation in this state, if any.
    fn violation(&self, scope: &Self::Scope) -> Option<Self::Violation>;
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

/// Returns the 128-bit digest of a state.
fn digest(state: &impl Hash, content: &mut Content) -> u128 {
    content.0.clear();
    state.hash(content);
    xxh3_128(&content.0)
}

/// The result of a check.
#[derive(Debug)]
pub(super) struct Findings<V> {
    /// Number of different states reached.
    pub states: usize,
    /// Each kind of violation, with the shortest sequence of steps to it.
    pub violations: BTreeMap<V, Vec<String>>,
}

/// Visits every state. States with a violation are not followed further.
pub(super) fn check<M: Machine>(scope: &M::Scope) -> Findings<M::Violation> {
    visit::<M>(scope, false)
}

/// Visits states up to the first violation.
pub(super) fn check_to_first<M: Machine>(scope: &M::Scope) -> Findings<M::Violation> {
    visit::<M>(scope, true)
}

fn visit<M: Machine>(scope: &M::Scope, to_first: bool) -> Findings<M::Violation> {
    let mut content = Content::default();
    let first = M::first(scope);
    // The index of each state's predecessor, in order of discovery, gives the path to it.
    let (mut came_from, mut digests) = (vec![0], vec![digest(&first, &mut content)]);
    let mut seen: BTreeSet<u128> = digests.iter().copied().collect();
    let mut queue = VecDeque::from([(0, first)]);
    let mut violations = BTreeMap::new();
    while let Some((place, state)) = queue.pop_front() {
        if let Some(violation) = state.violation(scope) {
            violations.entry(violation).or_insert(place);
            if to_first {
                break;
            }
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
    let way = |place| way_to::<M>(scope, place, &came_from, &digests);
    Findings {
        states: seen.len(),
        violations: violations.into_iter().map(|(kind, place)| (kind, way(place))).collect(),
    }
}

/// Returns the steps to a state, by repeating them from the first state.
fn way_to<M: Machine>(scope: &M::Scope, place: usize, came_from: &[usize], digests: &[u128]) -> Vec<String> {
    let mut places = vec![place];
    while let Some(&last) = places.last().filter(|place| **place != 0) {
        places.push(came_from[last]);
    }
    let (mut content, mut state, mut way) = (Content::default(), M::first(scope), Vec::new());
    for place in places.iter().rev().skip(1) {
        let mut steps = state.steps(scope).into_iter();
        let (step, next) =
            steps.find(|(_, next)| digest(next, &mut content) == digests[*place]).expect("a step led there");
        way.push(step.to_string());
        state = next;
    }
    way
}
