//! The kept roots of a volume as a machine of small states: checkpoints and snapshots add roots, restorations
//! branch, deletions of snapshots retire roots, and a collector deletes what retired roots leave.
//!
//! A root references one object for each of two cells, and is an object itself. Requests of one gateway take
//! one step each, and it may crash between any two: what it has in memory is lost, and the next opening
//! sweeps. [`super::packs`] has gateways that overlap. This file must not know what has to hold: that is in
//! [`super::snapshots`].

use std::fmt;

/// Number of an object. A root has the number of its own object.
pub(super) type Number = u8;

/// Number of cells of the volume.
const CELLS: usize = 2;

/// A rule that a check can break, to show that the rule is needed and that breaking it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// What a root shares with its parent is deleted with it.
    ParentIgnored,
    /// What a root shares with a child is deleted with it.
    ChildIgnored,
    /// What a root shares with another child of its parent is deleted with it.
    SiblingIgnored,
    /// The children of a deleted root do not become children of its parent.
    ChildrenLeft,
    /// A checkpoint retires the root that it replaces although a snapshot keeps it.
    SnapshotForgotten,
    /// A deleted snapshot retires the current root.
    CurrentRetired,
    /// A deleted snapshot's root is garbage before the head references the table without the snapshot.
    FreedUnpublished,
}

/// The size of a check.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    /// Limit on the checkpoints.
    pub checkpoints: u8,
    /// Limit on those that end with a snapshot.
    pub snapshots: u8,
    /// Limit on the restorations.
    pub restorations: u8,
    /// Limit on the crashes.
    pub crashes: u8,
    /// The rule that is broken, if any.
    pub broken: Option<Broken>,
}

impl Scope {
    fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }
}

/// A set of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Objects(u64);

impl Objects {
    pub(super) fn contains(self, object: Number) -> bool {
        self.0 >> object & 1 == 1
    }

    pub(super) fn contains_all(self, other: Self) -> bool {
        other.without(self).is_empty()
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn with(self, object: Number) -> Self {
        Self(self.0 | 1 << object)
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn first(self) -> Number {
        Number::try_from(self.0.trailing_zeros()).expect("at most 64")
    }

    /// Objects with smaller numbers.
    fn below(end: Number) -> Self {
        Self((1 << end) - 1)
    }
}

/// An entry of the root table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Root {
    pub number: Number,
    pub parent: Option<Number>,
    /// The object of each cell.
    pub content: [Number; CELLS],
    /// Whether a snapshot keeps it.
    pub is_snapshot: bool,
    pub is_retired: bool,
}

impl Root {
    /// The objects that it references.
    fn content(&self) -> Objects {
        self.content.into_iter().fold(Objects::default(), Objects::with)
    }

    /// What it needs: itself, and what it references.
    pub(super) fn needed(&self) -> Objects {
        self.content().with(self.number)
    }
}

/// Why objects are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    Orphans,
    Retired(Number),
    Swept,
}

/// The bucket and the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    /// The root table that the head references. The current root is the last.
    pub head: Vec<Root>,
    pub exists: Objects,
    /// The table that the gateway knows to be published.
    pub table: Vec<Root>,
    /// Roots of that table that are deleted, or about to be.
    pub collected: Objects,
    /// A table on its way to the head, and whether it is there.
    pub change: Option<(Vec<Root>, bool)>,
    /// A list of objects that are deleted one by one.
    pub deletion: Option<(Reason, Objects)>,
    pub orphans: Objects,
    pub sweeps: bool,
    /// The number of the first object since the last opening.
    own: Number,
    next: Number,
    checkpoints: u8,
    snapshots: u8,
    restorations: u8,
    crashes: u8,
    /// For the check: snapshots that were answered, and whose deletion nobody asked for.
    pub promised: Objects,
}

/// A step between two states.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Folds { cell: Option<usize>, is_snapshot: bool },
    Restores(Number),
    DeletesSnapshot(Number),
    Publishes,
    HasAnswer,
    Lists(Reason),
    FindsMissing(Number),
    Deletes(Number),
    Crashes,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folds { cell, is_snapshot } => write!(f, "folds {cell:?}, for a snapshot: {is_snapshot}"),
            Self::Restores(root) => write!(f, "restores root {root}"),
            Self::DeletesSnapshot(root) => write!(f, "deletes the snapshot of root {root}"),
            Self::Publishes => write!(f, "the head references the new table"),
            Self::HasAnswer => write!(f, "knows the new table published"),
            Self::Lists(reason) => write!(f, "lists what goes: {reason:?}"),
            Self::FindsMissing(root) => write!(f, "finds root {root} deleted"),
            Self::Deletes(object) => write!(f, "deletes object {object}"),
            Self::Crashes => write!(f, "crashes, and the next gateway opens the volume"),
        }
    }
}

impl State {
    /// A new volume, whose root references two objects.
    pub(super) fn first() -> Self {
        let root = Root { number: 2, parent: None, content: [0, 1], is_snapshot: false, is_retired: false };
        Self {
            head: vec![root],
            exists: Objects::below(3),
            table: vec![root],
            collected: Objects::default(),
            change: None,
            deletion: None,
            orphans: Objects::default(),
            sweeps: false,
            own: 0,
            next: 3,
            checkpoints: 0,
            snapshots: 0,
            restorations: 0,
            crashes: 0,
            promised: Objects::default(),
        }
    }

    /// The roots that the gateway keeps: those of its table that are not collected. Their children become
    /// children of their parents.
    pub(super) fn kept(&self, scope: &Scope) -> Vec<Root> {
        let parent_of = |number| self.table.iter().find(|root| root.number == number)?.parent;
        let mut kept = self.table.clone();
        kept.retain(|root| !self.collected.contains(root.number));
        for root in &mut kept {
            while let Some(parent) = root.parent.filter(|parent| self.collected.contains(*parent))
                && !scope.breaks(Broken::ChildrenLeft)
            {
                root.parent = parent_of(parent);
            }
        }
        kept
    }

    /// Returns every possible step and the state after it.
    pub(super) fn steps(&self, scope: &Scope) -> Vec<(Step, Self)> {
        let mut steps = Vec::new();
        let kept = self.kept(scope);
        match &self.change {
            None => self.begin(scope, &kept, &mut steps),
            Some((table, false)) => {
                let mut next = self.clone();
                (next.head, next.change) = (table.clone(), Some((table.clone(), true)));
                steps.push((Step::Publishes, next));
            }
            Some((table, true)) => steps.push((Step::HasAnswer, self.learn(table))),
        }
        match self.deletion {
            Some((reason, list)) => steps.push(self.delete(reason, list)),
            None => self.collect(scope, &kept, &mut steps),
        }
        if self.crashes < scope.crashes {
            let mut next = Self {
                table: self.head.clone(),
                collected: Objects::default(),
                change: None,
                deletion: None,
                orphans: Objects::default(),
                sweeps: true,
                own: self.next,
                ..self.clone()
            };
            next.crashes += 1;
            steps.push((Step::Crashes, next));
        }
        steps
    }

    /// Begins a checkpoint, a restoration or the deletion of a snapshot. The objects are put at once: nothing
    /// references them before the head does.
    fn begin(&self, scope: &Scope, kept: &[Root], steps: &mut Vec<(Step, Self)>) {
        let current = *kept.last().expect("the current root is kept");
        let replaced = |root: Root| {
            let mut table = kept.to_vec();
            let old = table.last_mut().expect("the current root is kept");
            old.is_snapshot &= !scope.breaks(Broken::SnapshotForgotten);
            old.is_retired = !old.is_snapshot;
            table.push(root);
            Some((table, false))
        };
        for cell in [None, Some(0), Some(1)] {
            for is_snapshot in [false, true] {
                let is_possible = self.checkpoints < scope.checkpoints
                    && (!is_snapshot || self.snapshots < scope.snapshots)
                    && (is_snapshot || cell.is_some());
                if !is_possible {
                    continue;
                }
                let (mut next, mut content) = (self.clone(), current.content);
                if let Some(cell) = cell {
                    content[cell] = next.put();
                }
                let (number, parent) = (next.put(), Some(current.number));
                next.change = replaced(Root { number, parent, content, is_snapshot, is_retired: false });
                next.checkpoints += 1;
                next.snapshots += u8::from(is_snapshot);
                steps.push((Step::Folds { cell, is_snapshot }, next));
            }
        }
        for root in kept.iter().filter(|root| root.is_snapshot) {
            if self.restorations < scope.restorations {
                let mut next = self.clone();
                let (number, parent) = (next.put(), Some(root.number));
                next.change =
                    replaced(Root { number, parent, is_snapshot: false, is_retired: false, ..*root });
                next.restorations += 1;
                steps.push((Step::Restores(root.number), next));
            }
            let mut table = kept.to_vec();
            let place = kept.iter().position(|other| other.number == root.number).expect("it is kept");
            table[place].is_snapshot = false;
            table[place].is_retired = root.number != current.number || scope.breaks(Broken::CurrentRetired);
            let mut next = self.clone();
            next.promised = self.promised.without(Objects::default().with(root.number));
            if scope.breaks(Broken::FreedUnpublished) {
                next.table.clone_from(&table);
            }
            next.change = Some((table, false));
            steps.push((Step::DeletesSnapshot(root.number), next));
        }
    }

    fn put(&mut self) -> Number {
        self.exists = self.exists.with(self.next);
        self.next += 1;
        self.next - 1
    }

    /// The gateway has the answer that the head references a table.
    fn learn(&self, table: &[Root]) -> Self {
        let snapshots = |table: &[Root]| {
            let snapshots = table.iter().filter(|root| root.is_snapshot);
            snapshots.fold(Objects::default(), |all, root| all.with(root.number))
        };
        let listed = table.iter().fold(Objects::default(), |all, root| all.with(root.number));
        let mut next = self.clone();
        next.promised = self.promised.union(snapshots(table).without(snapshots(&self.table)));
        next.table = table.to_vec();
        next.collected = self.collected.both(listed);
        next.change = None;
        next
    }

    /// Deletes the next object of the list.
    fn delete(&self, reason: Reason, list: Objects) -> (Step, Self) {
        let object = list.first();
        let one = Objects::default().with(object);
        let mut next = self.clone();
        next.exists = self.exists.without(one);
        next.orphans = self.orphans.without(one);
        next.deletion = Some((reason, list.without(one)));
        next.finish_if_done();
        (Step::Deletes(object), next)
    }

    /// Ends a deletion when everything on its list is deleted. A root then becomes an orphan.
    fn finish_if_done(&mut self) {
        let Some((reason, list)) = self.deletion else { return };
        if !list.is_empty() {
            return;
        }
        match reason {
            Reason::Orphans => {}
            Reason::Retired(root) => {
                self.collected = self.collected.with(root);
                self.orphans = self.orphans.with(root);
            }
            Reason::Swept => self.sweeps = false,
        }
        self.deletion = None;
    }

    fn list(&self, reason: Reason, list: Objects) -> (Step, Self) {
        let mut next = self.clone();
        next.deletion = Some((reason, list.both(self.exists)));
        next.finish_if_done();
        (Step::Lists(reason), next)
    }

    /// Fixes a list of objects to delete.
    fn collect(&self, scope: &Scope, kept: &[Root], steps: &mut Vec<(Step, Self)>) {
        if !self.orphans.is_empty() {
            let (step, mut next) = self.list(Reason::Orphans, self.orphans);
            if next.deletion.is_none() {
                next.orphans = Objects::default();
            }
            steps.push((step, next));
        }
        for root in kept.iter().filter(|root| root.is_retired) {
            if !self.exists.contains(root.number) {
                let mut next = self.clone();
                next.collected = self.collected.with(root.number);
                steps.push((Step::FindsMissing(root.number), next));
                continue;
            }
            let is_relative = |other: &&Root| {
                let is = [
                    (Some(other.number) == root.parent, Broken::ParentIgnored),
                    (other.parent == Some(root.number), Broken::ChildIgnored),
                    (other.parent == root.parent, Broken::SiblingIgnored),
                ];
                other.number != root.number && is.into_iter().any(|(is, rule)| is && !scope.breaks(rule))
            };
            let relatives: Vec<&Root> = kept.iter().filter(is_relative).collect();
            if relatives.iter().all(|other| self.exists.contains(other.number)) {
                let only_here =
                    relatives.iter().fold(root.content(), |all, other| all.without(other.content()));
                steps.push(self.list(Reason::Retired(root.number), only_here));
            }
        }
        if self.sweeps {
            let found = kept.iter().filter(|root| self.exists.contains(root.number));
            let needed = found.fold(Objects::default(), |all, root| all.union(root.needed()));
            steps.push(self.list(Reason::Swept, Objects::below(self.own).without(needed)));
        }
    }
}
