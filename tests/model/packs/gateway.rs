//! Checkpoints and takeovers as a machine of small states: what each gateway may do next, and what that does
//! to the bucket. [`super::collect`] has the steps that delete.
//!
//! Every step is one request to the store or less. Gateways do not wait for each other, so a gateway that
//! crashes is one that takes no further step, and requests of a deposed gateway land late. A PUT may also
//! fail and land later, or never. [`super::super::protocol`] checks the journal; here it is a list of flushed
//! changes to which only the newest gateway adds. This file must not know what has to hold: that is in
//! [`super`].

use super::map::{
    BLOCKS, CHUNKS, Change, Checkpoint, History, Kind, Merge, Number, Object, Objects, Place, Plan, Value,
    all_of, chunk_of,
};
use super::scope::{Broken, Scope};
use super::step::Step;

/// What the head says about the volume's holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lease {
    Held,
    /// Nobody holds the volume, and no orphans exist.
    Released,
    /// Nobody holds the volume, and the next opener must sweep.
    Unswept,
}

/// The head: the only object that is overwritten, by compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Head {
    pub epoch: u8,
    /// The checkpoint whose root and root table it references.
    pub checkpoint: Number,
    pub lease: Lease,
}

/// How far a gateway has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    New,
    Open,
    /// It closed the volume, or noticed that it was deposed.
    Done,
}

/// How far a sweep has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Sweep {
    Due,
    Listed,
    Done,
}

/// A checkpoint in the making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fold {
    pub number: Number,
    /// Number of its objects that were sent.
    pub sent: usize,
    /// Whether the head references it; the gateway has no answer yet.
    pub is_published: bool,
}

/// Why objects are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    Orphans,
    /// The root of this checkpoint goes.
    Retired(Number),
    Swept,
}

/// A list of objects that a gateway deletes one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Deletion {
    pub reason: Reason,
    pub list: Objects,
    /// Whether the head still had the gateway's epoch.
    pub is_asked: bool,
}

/// The state of one gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Gateway {
    pub phase: Phase,
    /// The checkpoint whose root and root table it uses.
    pub checkpoint: Number,
    /// Roots of the table that it has deleted or is about to delete.
    pub collected: Vec<Number>,
    pub fold: Option<Fold>,
    /// Objects that it found to be unreferenced.
    pub orphans: Objects,
    pub deletion: Option<Deletion>,
    pub sweep: Sweep,
    /// Whether it left something that only the sweep of a later opening finds.
    pub has_left: bool,
    /// Only if [`Broken::ReadsHeadFirst`]: the head had its epoch when it was read for the next list.
    pub has_read_head: bool,
}

impl Gateway {
    fn new(checkpoint: Number) -> Self {
        Self {
            phase: Phase::New,
            checkpoint,
            collected: Vec::new(),
            fold: None,
            orphans: Objects::default(),
            deletion: None,
            sweep: Sweep::Done,
            has_left: false,
            has_read_head: false,
        }
    }
}

/// The bucket, the journal and every gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub changes: Vec<Change>,
    pub history: History,
    pub head: Head,
    /// The objects in the bucket.
    pub exists: Objects,
    /// PUTs that failed and may land later.
    pub late: Objects,
    pub failures: u8,
    pub gateways: Vec<Gateway>,
    /// For the check: objects that landed when nobody looked for them any more.
    pub strays: Objects,
    /// For the check: roots whose deletion has begun.
    pub dying: Vec<Number>,
}

impl State {
    /// Returns the first state: the first gateway has opened a volume with the content of the scope, of which
    /// only the last root is kept.
    pub(super) fn first(scope: &Scope) -> Self {
        let (mut history, mut changes) = (History::default(), Vec::new());
        let mut last = history.add(Checkpoint { kept: vec![0], ..Checkpoint::default() });
        for (added, chunk) in scope.before {
            changes.extend_from_slice(added);
            let plan = Plan { chunk: *chunk, pack: None, merge: Merge::Oldest };
            let mut made = history.fold(scope, last, &changes, plan, 0);
            made.kept = vec![last + 1];
            last = history.add(made);
        }
        let mut state = Self {
            changes,
            history,
            head: Head { epoch: 1, checkpoint: last, lease: Lease::Held },
            exists: Objects::default(),
            late: Objects::default(),
            failures: 0,
            gateways: Vec::new(),
            strays: Objects::default(),
            dying: Vec::new(),
        };
        state.gateways = vec![Gateway::new(last); scope.gateways];
        state.gateways[0].phase = Phase::Open;
        state.exists = state.needed(scope);
        state
    }

    /// Returns the epoch of a gateway.
    pub(super) fn epoch(gateway: usize) -> u8 {
        u8::try_from(gateway + 1).expect("few gateways")
    }

    /// Whether the head still has a gateway's epoch.
    pub(super) fn is_held_by(&self, gateway: usize) -> bool {
        self.head.epoch == Self::epoch(gateway)
    }

    /// Returns the gateway whose epoch the head has.
    pub(super) fn holder(&self) -> &Gateway {
        &self.gateways[usize::from(self.head.epoch) - 1]
    }

    /// Returns the bytes that a block must have after a number of changes.
    pub(super) fn truth(&self, block: usize, commit: usize) -> Value {
        let last = self.changes[..commit].iter().rev().find(|change| change.block == block);
        last.map_or(0, |change| change.value)
    }

    /// Returns this state with one gateway changed by `change`.
    pub(super) fn with(&self, gateway: usize, change: impl FnOnce(&mut Gateway)) -> Self {
        let mut next = self.clone();
        change(&mut next.gateways[gateway]);
        next
    }

    /// Returns every possible step and the state after it.
    pub(super) fn steps(&self, scope: &Scope) -> Vec<(Step, Self)> {
        let mut steps = Vec::new();
        for (g, gateway) in self.gateways.iter().enumerate() {
            match gateway.phase {
                Phase::New if usize::from(self.head.epoch) == g => steps.push(self.open(scope, g)),
                Phase::Open if self.is_held_by(g) => self.serve(scope, g, gateway, &mut steps),
                Phase::Open => self.lag(scope, g, gateway, &mut steps),
                Phase::New | Phase::Done => {}
            }
        }
        for object in self.late.iter() {
            let mut next = self.clone();
            next.late.remove(object);
            next.land(object);
            steps.push((Step::Lands { object }, next));
        }
        for (_, next) in &mut steps {
            if scope.at_once {
                next.complete(scope);
            }
            next.forget();
        }
        steps
    }

    /// Completes the checkpoint or the deletion that the only gateway has begun. Nobody can observe the steps
    /// between.
    fn complete(&mut self, scope: &Scope) {
        let mut steps = Vec::new();
        while let Gateway { phase: Phase::Open, fold, deletion, .. } = &self.gateways[0] {
            match (*fold, *deletion) {
                (Some(fold), _) => self.advance(scope, 0, fold, &mut steps),
                (None, Some(_)) => self.collect(scope, 0, &mut steps),
                (None, None) => return,
            }
            *self = steps.remove(0).1;
            steps.clear();
        }
    }

    /// The steps of the gateway that holds the volume.
    fn serve(&self, scope: &Scope, g: usize, gateway: &Gateway, steps: &mut Vec<(Step, Self)>) {
        if let Some(fold) = gateway.fold {
            self.advance(scope, g, fold, steps);
            // Its own deletions do not depend on what it sends now, so they need not come between.
            if fold.sent < self.history.of(fold.number).objects(fold.number).len() {
                if scope.flushes_meanwhile {
                    steps.extend(self.flush(scope).into_iter().map(|next| {
                        (Step::Flushes(*next.changes.last().expect("a change was added")), next)
                    }));
                }
                return;
            }
        } else {
            // Nothing but the beginning of a checkpoint depends on what clients flushed before it.
            let mut flushed = vec![self.clone()];
            let mut done = 0;
            while done < flushed.len() {
                flushed[done].begin(scope, g, gateway, steps);
                flushed.extend(flushed[done].flush(scope));
                done += 1;
            }
            if gateway.deletion.is_none() {
                steps.push(self.close(scope, g, gateway));
            }
        }
        self.collect(scope, g, steps);
    }

    /// The steps of a gateway that was deposed and has not noticed.
    fn lag(&self, scope: &Scope, g: usize, gateway: &Gateway, steps: &mut Vec<(Step, Self)>) {
        if let Some(fold) = gateway.fold {
            self.advance(scope, g, fold, steps);
        }
        self.collect(scope, g, steps);
    }

    /// Forgets what no later step and no check depends on, so that states that differ only in it are one.
    fn forget(&mut self) {
        let holder = usize::from(self.head.epoch) - 1;
        for (g, gateway) in self.gateways.iter_mut().enumerate() {
            if gateway.phase == Phase::Done {
                let collected = if g == holder { std::mem::take(&mut gateway.collected) } else { Vec::new() };
                *gateway = Gateway { phase: Phase::Done, collected, ..Gateway::new(self.head.checkpoint) };
            }
        }
        let folds = self.gateways.iter().filter_map(|gateway| gateway.fold.map(|fold| fold.number));
        let folds: Vec<Number> = folds.collect();
        let used = self.gateways.iter().map(|gateway| gateway.checkpoint).chain([self.head.checkpoint]);
        let used: Vec<Number> = used.chain(folds.iter().copied()).collect();
        let mut listed = Vec::new();
        for number in 0..Number::try_from(self.history.len()).expect("few checkpoints") {
            let left = self.exists.union(self.late);
            if left.without(all_of(number)) == left && !used.contains(&number) {
                self.history.forget(number);
            } else if !used.contains(&number) {
                if !self.history.of(number).kept.is_empty() {
                    self.history.of_mut(number).kept.clear();
                }
            } else {
                listed.extend_from_slice(&self.history.of(number).kept);
            }
        }
        self.dying.retain(|root| listed.contains(root));
        for gateway in &mut self.gateways {
            gateway.collected.retain(|root| listed.contains(root));
        }
    }

    /// Returns the states after one more flushed change: a write of new bytes, or zeros over what is not
    /// zero. Of blocks that differ only in their number, the first is chosen.
    fn flush(&self, scope: &Scope) -> Vec<Self> {
        let before: usize = scope.before.iter().map(|(changes, _)| changes.len()).sum();
        let mut states = Vec::new();
        if self.changes.len() - before >= scope.changes {
            return states;
        }
        let is_changed = |block: usize| self.changes.iter().any(|change| change.block == block);
        for block in 0..scope.blocks {
            let is_earlier =
                |other: usize| is_changed(other) || chunk_of(other) != chunk_of(block) && other % 2 == 1;
            if before > 0 || (0..block).all(is_earlier) {
                let value = Value::try_from(self.changes.len() + 1).expect("few changes");
                let zero = (self.truth(block, self.changes.len()) != 0).then_some(0);
                for value in [Some(value), zero].into_iter().flatten() {
                    let mut next = self.clone();
                    next.changes.push(Change { block, value });
                    states.push(next);
                }
            }
        }
        states
    }

    /// Takes the next epoch and the checkpoint that the head references.
    fn open(&self, scope: &Scope, g: usize) -> (Step, Self) {
        let mut next = self.with(g, |gateway| {
            gateway.phase = Phase::Open;
            gateway.checkpoint = self.head.checkpoint;
            gateway.sweep = if self.head.lease == Lease::Released { Sweep::Done } else { Sweep::Due };
            if scope.breaks(Broken::RetiredForgotten) {
                gateway.collected = self.history.of(gateway.checkpoint).kept.clone();
                gateway.collected.pop();
            }
        });
        next.head = Head { epoch: Self::epoch(g), lease: Lease::Held, ..self.head };
        (Step::Opens { gateway: g }, next)
    }

    /// Begins a checkpoint of all that is flushed, with every choice of what it does besides.
    fn begin(&self, scope: &Scope, g: usize, gateway: &Gateway, steps: &mut Vec<(Step, Self)>) {
        if self.history.len() - scope.before.len() > scope.checkpoints {
            return;
        }
        let root = self.history.root(gateway.checkpoint);
        let has_changes = root.commit < self.changes.len();
        let is_worth_rewriting = |chunk: &usize| {
            let locate = |block| self.history.locate(scope, gateway.checkpoint, block);
            let is_changed = |block| self.changes[root.commit..].iter().any(|change| change.block == block);
            (0..BLOCKS).any(|block| {
                chunk_of(block) == *chunk && (is_changed(block) || matches!(locate(block), Place::Pack(_)))
            })
        };
        let is_partly_dead = |(pack, live): (&Number, &u8)| *live < self.history.frames(*pack);
        let chunks = (0..CHUNKS).filter(|chunk| scope.rewrites && is_worth_rewriting(chunk)).map(Some);
        let packs = root.live.iter().filter(|(pack, live)| scope.relocates && is_partly_dead((pack, live)));
        let packs: Vec<Option<Number>> =
            std::iter::once(None).chain(packs.map(|(pack, _)| Some(*pack))).collect();
        for chunk in std::iter::once(None).chain(chunks) {
            for pack in packs.iter().copied().filter(|pack| has_changes || chunk.is_some() || pack.is_some())
            {
                let mut made = None;
                for merge in [Merge::Oldest, Merge::Newest] {
                    let plan = Plan { chunk, pack, merge };
                    let changes = &self.changes;
                    let folded = self.history.fold(scope, gateway.checkpoint, changes, plan, Self::epoch(g));
                    if made.as_ref() == Some(&folded) {
                        continue;
                    }
                    let mut next = self.clone();
                    let number = next.history.add(folded.clone());
                    next.gateways[g].fold = Some(Fold { number, sent: 0, is_published: false });
                    let changes = self.changes[root.commit..].to_vec();
                    steps.push((Step::Begins { gateway: g, number, changes, plan }, next));
                    made = Some(folded);
                }
            }
        }
    }

    /// Sends the next object of a checkpoint, or publishes it.
    fn advance(&self, scope: &Scope, g: usize, fold: Fold, steps: &mut Vec<(Step, Self)>) {
        let number = fold.number;
        if fold.is_published {
            steps.push((Step::HasAnswer { gateway: g, number }, self.published(scope, g, number)));
            if !self.is_held_by(g) {
                steps.push((Step::GivesUp { gateway: g, number }, self.given_up(g, number)));
            }
            return;
        }
        let Some(&object) = self.history.of(number).objects(number).get(fold.sent) else {
            let mut next = self.clone();
            if self.is_held_by(g) {
                next.head.checkpoint = number;
                next.gateways[g].fold = Some(Fold { is_published: true, ..fold });
                steps.push((Step::Publishes { gateway: g, number }, next));
            } else {
                steps.push((Step::IsRefused { gateway: g, number }, self.given_up(g, number)));
            }
            return;
        };
        let mut next = self.with(g, |gateway| gateway.fold = Some(Fold { sent: fold.sent + 1, ..fold }));
        if object.kind == Kind::Table {
            let mut kept = self.kept(g);
            kept.push(number);
            next.history.of_mut(number).kept = kept;
        }
        if object.kind == Kind::Chunk && scope.breaks(Broken::ConsolidationFoldsNewer) {
            next.rewrite_newest(scope, self.gateways[g].checkpoint, number);
        }
        if scope.breaks(Broken::PackUnawaited) && object.kind == Kind::Pack {
            next.late.insert(object);
            steps.push((Step::GoesOn { gateway: g, object }, next));
            return;
        }
        next.land(object);
        steps.push((Step::Puts { gateway: g, object }, next));
        if self.failures < scope.failures && self.is_held_by(g) {
            let mut next = self.with(g, |gateway| gateway.fold = Some(Fold { sent: fold.sent + 1, ..fold }));
            next.failures += 1;
            next.late.insert(object);
            steps.push((Step::Fails { gateway: g, object }, next.given_up(g, number)));
        }
    }

    /// The content of a checkpoint's chunk object changes to the newest bytes.
    fn rewrite_newest(&mut self, scope: &Scope, old: Number, number: Number) {
        let mut newest = [None; BLOCKS];
        for change in &self.changes[self.history.root(old).commit..] {
            newest[change.block] = Some(change.value);
        }
        let (chunk, _) = self.history.of(number).chunk.expect("it has a chunk object");
        let values = self.history.rewritten(scope, old, &newest, chunk);
        if values.iter().any(|value| *value != 0) {
            self.history.of_mut(number).chunk = Some((chunk, values));
        }
    }

    /// An object comes to exist.
    fn land(&mut self, object: Object) {
        self.exists.insert(object);
        let sender = usize::from(self.history.of(object.by).epoch) - 1;
        let is_looked_for = if self.is_held_by(sender) {
            let gateway = &self.gateways[sender];
            gateway.orphans.contains(object) || gateway.fold.is_some_and(|fold| fold.number == object.by)
        } else {
            self.holder().sweep == Sweep::Due
        };
        if !is_looked_for && self.head.lease != Lease::Unswept {
            self.strays.insert(object);
        }
    }

    /// The gateway learns that its checkpoint is published: what it replaced is garbage.
    fn published(&self, scope: &Scope, g: usize, number: Number) -> Self {
        self.with(g, |gateway| {
            let replaced = gateway.checkpoint;
            gateway.checkpoint = number;
            gateway.fold = None;
            gateway.orphans.insert(Object { by: replaced, kind: Kind::Table });
            if scope.breaks(Broken::PackDeletedEarly) {
                let packs = |root| self.history.root(root).packs();
                gateway.orphans = gateway.orphans.union(packs(replaced).without(packs(number)));
            }
        })
    }

    /// The gateway believes that its checkpoint will never be published: what it sent are orphans.
    fn given_up(&self, g: usize, number: Number) -> Self {
        self.with(g, |gateway| {
            let sent = gateway.fold.take().map_or(0, |fold| fold.sent);
            let objects = self.history.of(number).objects(number);
            gateway.orphans = gateway.orphans.union(objects.into_iter().take(sent).collect());
        })
    }

    /// Releases the lease.
    fn close(&self, scope: &Scope, g: usize, gateway: &Gateway) -> (Step, Self) {
        let is_swept = gateway.sweep == Sweep::Done && !gateway.has_left;
        let has_orphans = !gateway.orphans.is_empty() && !scope.breaks(Broken::OrphansForgotten);
        let lease = if is_swept && !has_orphans { Lease::Released } else { Lease::Unswept };
        let mut next = self.with(g, |gateway| gateway.phase = Phase::Done);
        next.head.lease = lease;
        (Step::Closes { gateway: g, lease }, next)
    }
}
