//! Exhaustive check, at small scope, of when a flattened clone frees the snapshot of its parent.
//!
//! The gateway of the clone makes checkpoints, takes, deletes and restores snapshots, adopts what is foreign, and
//! detaches the clone; between the two requests of that it may crash. Its collector deletes roots that were replaced.
//! One deleter of the parent's snapshot reads the root that the clone's head references. Another one reads any root
//! that exists, as a deletion does that has lost the table. Each deletes the snapshot if that root lists no origins. The
//! numbers of states are those of an independent implementation in another language.

use std::fmt;

use super::explore::{Machine, check, check_to_first};

/// A rule that a check can break, to show that the rule is needed and that breaking it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// The origins leave the root although a snapshot of the clone is foreign.
    HeldIgnored,
    /// The origins leave the root although a root that was replaced is foreign.
    RetiredIgnored,
    /// A deleter frees the snapshot whatever the root lists.
    Unread,
}

/// The size of a check.
#[derive(Clone, Copy, Debug)]
struct Scope {
    /// Limit on the roots that are made.
    roots: usize,
    /// The rule that is broken, if any.
    broken: Option<Broken>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// Made, and in no table.
    Orphan,
    /// In the root table.
    Table,
    Deleted,
}

/// A root of the clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Root {
    /// Whether it references objects of the parent.
    is_foreign: bool,
    /// Whether it lists the parent among its origins.
    lists: bool,
    /// Whether a snapshot of the clone keeps it.
    is_held: bool,
    place: Place,
}

/// How far a deleter of the parent's snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Deleter {
    Reads,
    Deletes,
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    roots: Vec<Root>,
    /// The root that the head references.
    current: usize,
    /// A root without origins that exists and is not published yet.
    pending: Option<usize>,
    /// Whether the snapshot of the parent and its objects exist.
    snapshot: bool,
    /// Reads the root that the head references.
    by_head: Deleter,
    /// Reads any root.
    by_search: Deleter,
}

/// A root that the clone keeps references objects that are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Lost;

#[derive(Clone, Copy, Debug)]
struct Step(&'static str);

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl State {
    fn now(&self) -> Root {
        self.roots[self.current]
    }

    /// The state after a root was published.
    fn with(&self, is_foreign: bool, lists: bool) -> Self {
        let mut next = self.clone();
        next.roots.push(Root { is_foreign, lists, is_held: false, place: Place::Table });
        next.current = self.roots.len();
        next
    }

    fn changed(&self, root: usize, change: impl Fn(&mut Root)) -> Self {
        let mut next = self.clone();
        change(&mut next.roots[root]);
        next
    }

    /// Whether the origins may leave the root.
    fn may_detach(&self, broken: Option<Broken>) -> bool {
        let now = self.now();
        let is_in_the_way = |(place, root): (usize, &Root)| {
            let ignored = if root.is_held { Broken::HeldIgnored } else { Broken::RetiredIgnored };
            place != self.current && root.place == Place::Table && root.is_foreign && broken != Some(ignored)
        };
        now.lists && !now.is_foreign && !self.roots.iter().enumerate().any(is_in_the_way)
    }

    /// What the gateway of the clone does by roots.
    fn folds(&self, scope: &Scope) -> Vec<(Step, Self)> {
        let now = self.now();
        if let Some(pending) = self.pending {
            let mut published = self.changed(pending, |root| root.place = Place::Table);
            (published.current, published.pending) = (pending, None);
            let crashed = Self { pending: None, ..self.clone() };
            return vec![(Step("detaches"), published), (Step("crashes"), crashed)];
        }
        let mut steps = Vec::new();
        if !now.is_held {
            steps.push((Step("takes a snapshot"), self.changed(self.current, |root| root.is_held = true)));
        }
        if self.roots.len() == scope.roots {
            return steps;
        }
        steps.push((Step("makes a checkpoint"), self.with(now.is_foreign, now.lists)));
        if now.is_foreign {
            steps.push((Step("adopts"), self.with(false, now.lists)));
        }
        for (place, root) in self.roots.iter().enumerate() {
            if root.is_held && place != self.current {
                let restored = self.with(root.is_foreign, now.lists && root.lists);
                steps.push((Step("restores a snapshot"), restored));
            }
        }
        if self.may_detach(scope.broken) {
            let mut next = self.clone();
            next.pending = Some(self.roots.len());
            let place = Place::Orphan;
            next.roots.push(Root { is_foreign: false, lists: false, is_held: false, place });
            steps.push((Step("makes a root without origins"), next));
        }
        steps
    }

    fn collects(&self) -> Vec<(Step, Self)> {
        let mut steps = Vec::new();
        for (place, root) in self.roots.iter().enumerate() {
            if root.is_held {
                let next = self.changed(place, |root| root.is_held = false);
                steps.push((Step("deletes a snapshot"), next));
            } else if root.place == Place::Table && place != self.current {
                let next = self.changed(place, |root| root.place = Place::Deleted);
                steps.push((Step("deletes a root"), next));
            }
        }
        steps
    }

    fn deletes(&self, scope: &Scope) -> Vec<(Step, Self)> {
        let mut steps = Vec::new();
        let is_free = !self.now().lists || scope.broken == Some(Broken::Unread);
        match self.by_head {
            Deleter::Reads if is_free => {
                steps.push((Step("reads the head"), Self { by_head: Deleter::Deletes, ..self.clone() }));
            }
            Deleter::Deletes => {
                let next = Self { by_head: Deleter::Done, snapshot: false, ..self.clone() };
                steps.push((Step("deletes the parent's snapshot"), next));
            }
            Deleter::Reads | Deleter::Done => {}
        }
        let is_found = self.roots.iter().any(|root| !root.lists && root.place != Place::Deleted);
        match self.by_search {
            Deleter::Reads if is_found => {
                steps.push((Step("reads a root"), Self { by_search: Deleter::Deletes, ..self.clone() }));
            }
            Deleter::Deletes => {
                let next = Self { by_search: Deleter::Done, snapshot: false, ..self.clone() };
                steps.push((Step("deletes the parent's snapshot"), next));
            }
            Deleter::Reads | Deleter::Done => {}
        }
        steps
    }
}

impl Machine for State {
    type Scope = Scope;
    type Step = Step;
    type Violation = Lost;

    fn first(_: &Scope) -> Self {
        Self {
            roots: vec![Root { is_foreign: true, lists: true, is_held: false, place: Place::Table }],
            current: 0,
            pending: None,
            snapshot: true,
            by_head: Deleter::Reads,
            by_search: Deleter::Reads,
        }
    }

    fn steps(&self, scope: &Scope) -> Vec<(Step, Self)> {
        [self.folds(scope), self.collects(), self.deletes(scope)].concat()
    }

    fn violation(&self, _: &Scope) -> Option<Lost> {
        let is_lost = |root: &Root| root.place == Place::Table && root.is_foreign;
        (!self.snapshot && self.roots.iter().any(is_lost)).then_some(Lost)
    }
}

#[test]
fn a_flattened_clone_frees_the_snapshot_when_nothing_that_it_keeps_needs_it() {
    for (roots, states) in [(3, 152), (4, 1_094), (5, 6_710)] {
        let found = check::<State>(&Scope { roots, broken: None });
        assert!(found.violations.is_empty(), "{:#?}", found.violations);
        assert_eq!(found.states, states);
    }
}

#[test]
fn each_rule_of_a_flattening_is_needed() {
    for broken in [Broken::HeldIgnored, Broken::RetiredIgnored, Broken::Unread] {
        let found = check_to_first::<State>(&Scope { roots: 4, broken: Some(broken) });
        assert!(found.violations.contains_key(&Lost), "{broken:?}: {found:#?}");
    }
}
