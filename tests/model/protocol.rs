//! The protocol of the journal as a machine of small states: what each gateway may do next, and what a PUT
//! does when it lands.
//!
//! It models slots, seals, opening records, epochs, checkpoints and the deletion of folded records. It leaves
//! out chunk objects, snapshots, leases and local journals. A PUT is sent in one step and lands in another,
//! however late, even after its sender died or was deposed; a gateway that crashes takes no further step.
//! This file must not know what has to hold. Invariant: [`State::steps`] returns every step that some
//! interleaving can take.

use std::fmt;

/// Place of a record: epoch of the log, and number within it. Orders as the journal does.
pub(super) type Slot = (u8, u8);

/// A commit: the gateway that cut it, and its number there.
pub(super) type Commit = (u8, u8);

/// A rule of the protocol that a check can break, to show that the rule is needed and that breaking it is
/// found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// Seals are deleted together with the records of their log.
    DeletesSeals,
    /// An opener continues with the next epoch without sealing the log that it replayed.
    SkipsSeal,
    /// An opener serves without an opening record of its own.
    SkipsOpening,
    /// A FLUSH is answered when that number of commits is durable, whether or not these are all before it.
    AnswersOutOfOrder,
    /// A commit whose slot is taken counts as durable.
    IgnoresTakenSlot,
}

/// Which PUTs may land twice: those that were sent a second time, because the first was slow or its answer was
/// lost. The second landing may come at any time, and its answer reaches nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Twice {
    Never,
    Commits,
    /// Commits, seals and opening records.
    Every,
}

/// The size of a check.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    /// Number of gateways, each of which opens the volume once.
    pub gateways: u8,
    /// Limit on the commits that each gateway cuts.
    pub commits: u8,
    /// Limit on the commits in flight of a gateway.
    pub window: u8,
    /// Which PUTs may land twice.
    pub twice: Twice,
    /// The rule that is broken, if any.
    pub broken: Option<Broken>,
}

impl Scope {
    /// Returns how often a PUT may land.
    fn landings(&self, kind: Kind) -> u8 {
        match (self.twice, kind) {
            (Twice::Every, _) | (Twice::Commits, Kind::Commit(_)) => 2,
            _ => 1,
        }
    }

    /// Returns whether the PUT has landed before.
    fn is_second(&self, flight: &Flight) -> bool {
        flight.landings < self.landings(flight.record.kind)
    }
}

/// The head, the only object that is overwritten, by compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Head {
    pub epoch: u8,
    /// Slot of the last folded record.
    pub checkpoint: Slot,
    /// Commits that the map contains, in order.
    pub folded: Vec<Commit>,
}

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Opening,
    Commit(Commit),
    Seal,
}

/// An object of the journal, created only if none exists in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Record {
    pub slot: Slot,
    pub kind: Kind,
    /// Epoch of the gateway that wrote it.
    pub writer: u8,
}

/// How far a gateway has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    New,
    Replaying,
    Opening,
    Serving,
    Fenced,
}

/// The state of one gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Gateway {
    pub phase: Phase,
    pub epoch: u8,
    /// Next slot to replay.
    pub at: Slot,
    /// Commits that it recovered when it opened.
    pub seen: Vec<Commit>,
    /// Number of commits that it has sent.
    pub cut: u8,
    /// Bit set of the commits that it knows to be durable.
    pub durable: u8,
    /// Number of flushes that it has answered, in order.
    pub answered: u8,
    /// The last checkpoint that it published, if any.
    pub folded_to: Option<Slot>,
}

/// A PUT in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Flight {
    pub sender: u8,
    pub record: Record,
    /// How many more times it may land.
    pub landings: u8,
}

/// The bucket, the network and every gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub head: Head,
    /// Records sorted by slot, at most one in each.
    pub journal: Vec<Record>,
    pub gateways: Vec<Gateway>,
    /// PUTs in flight, sorted and without duplicates.
    pub flights: Vec<Flight>,
}

/// A step between two states.
#[derive(Clone, Debug)]
pub(super) enum Step {
    TakesEpoch { gateway: u8, epoch: u8 },
    FindsHigherSeal { gateway: u8 },
    ServesUnopened { gateway: u8 },
    LeavesUnsealed { gateway: u8, slot: Slot },
    Sends { gateway: u8, record: Record },
    Answers { gateway: u8, commit: u8 },
    Checkpoints { gateway: u8, slot: Slot },
    Deletes { gateway: u8, slots: Vec<Slot> },
    Lands { flight: Flight, taken_by: Option<Record> },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TakesEpoch { gateway, epoch } => write!(f, "G{gateway} takes epoch {epoch}"),
            Self::FindsHigherSeal { gateway } => write!(f, "G{gateway} finds a seal of a higher epoch"),
            Self::ServesUnopened { gateway } => write!(f, "G{gateway} serves without an opening record"),
            Self::LeavesUnsealed { gateway, slot } => write!(f, "G{gateway} leaves {slot:?} unsealed"),
            Self::Sends { gateway, record } => {
                write!(f, "G{gateway} sends {:?} to {:?}", record.kind, record.slot)
            }
            Self::Answers { gateway, commit } => write!(f, "G{gateway} answers the flush of commit {commit}"),
            Self::Checkpoints { gateway, slot } => write!(f, "G{gateway} publishes a checkpoint at {slot:?}"),
            Self::Deletes { gateway, slots } => write!(f, "G{gateway} deletes {slots:?}"),
            Self::Lands { flight: Flight { sender, record, .. }, taken_by } => {
                write!(f, "  PUT of G{sender}, {:?} to {:?}, lands: ", record.kind, record.slot)?;
                match taken_by {
                    None => write!(f, "created"),
                    Some(other) => write!(f, "taken by {:?} of epoch {}", other.kind, other.writer),
                }
            }
        }
    }
}

/// Returns the record in a slot, if any.
fn record_at(journal: &[Record], slot: Slot) -> Option<&Record> {
    journal.binary_search_by_key(&slot, |r| r.slot).ok().map(|place| &journal[place])
}

/// Inserts an item into a sorted list unless it is already there.
fn insert<T: Ord>(items: &mut Vec<T>, item: T) {
    if let Err(place) = items.binary_search(&item) {
        items.insert(place, item);
    }
}

impl State {
    /// Returns the first state: a new volume that was never opened.
    pub(super) fn first(scope: &Scope) -> Self {
        let gateway = Gateway {
            phase: Phase::New,
            epoch: 0,
            at: (0, 0),
            seen: Vec::new(),
            cut: 0,
            durable: 0,
            answered: 0,
            folded_to: None,
        };
        Self {
            head: Head::default(),
            journal: Vec::new(),
            gateways: vec![gateway; usize::from(scope.gateways)],
            flights: Vec::new(),
        }
    }

    /// Returns the commits that an opener would find now, and the slot where the newest log ends.
    pub(super) fn replayed(&self) -> (Vec<Commit>, Slot) {
        let mut commits = self.head.folded.clone();
        let (mut epoch, mut n) = self.head.checkpoint;
        n += 1;
        while let Some(record) = record_at(&self.journal, (epoch, n)) {
            match record.kind {
                Kind::Seal if epoch + 1 > self.head.epoch => break,
                Kind::Seal => (epoch, n) = (epoch + 1, 1),
                Kind::Commit(commit) => {
                    commits.push(commit);
                    n += 1;
                }
                Kind::Opening => n += 1,
            }
        }
        (commits, (epoch, n))
    }

    /// Returns this state with one gateway changed by `change`.
    fn with(&self, gateway: u8, change: impl FnOnce(&mut Gateway)) -> Self {
        let mut next = self.clone();
        change(&mut next.gateways[usize::from(gateway)]);
        next
    }

    fn send(&mut self, sender: u8, record: Record, landings: u8) {
        insert(&mut self.flights, Flight { sender, record, landings });
    }

    /// Returns every possible step and the state after it.
    pub(super) fn steps(&self, scope: &Scope) -> Vec<(Step, Self)> {
        let mut steps = Vec::new();
        for (g, gateway) in (0_u8..).zip(&self.gateways) {
            match gateway.phase {
                Phase::New => steps.push(self.take_epoch(g)),
                Phase::Replaying if self.flights.iter().all(|f| f.sender != g || scope.is_second(f)) => {
                    steps.push(self.replay(scope, g, gateway));
                }
                Phase::Serving => self.serve(scope, g, gateway, &mut steps),
                Phase::Replaying | Phase::Opening | Phase::Fenced => {}
            }
            if matches!(gateway.phase, Phase::Serving | Phase::Fenced) {
                steps.extend(self.delete(scope, g, gateway));
            }
        }
        steps.extend(self.flights.iter().map(|flight| self.land(scope, *flight)));
        steps
    }

    /// Takes the next epoch by a compare-and-swap of the head. The gateway then uses the checkpoint of that
    /// head.
    fn take_epoch(&self, g: u8) -> (Step, Self) {
        let epoch = self.head.epoch + 1;
        let mut next = self.with(g, |gateway| {
            gateway.phase = Phase::Replaying;
            gateway.epoch = epoch;
            gateway.at = (self.head.checkpoint.0, self.head.checkpoint.1 + 1);
            gateway.seen.clone_from(&self.head.folded);
        });
        next.head.epoch = epoch;
        (Step::TakesEpoch { gateway: g, epoch }, next)
    }

    /// Replays to the first free slot, and sends the record that belongs there.
    fn replay(&self, scope: &Scope, g: u8, gateway: &Gateway) -> (Step, Self) {
        let ((mut epoch, mut n), mut seen) = (gateway.at, gateway.seen.clone());
        while epoch < gateway.epoch
            && let Some(record) = record_at(&self.journal, (epoch, n))
        {
            match record.kind {
                Kind::Seal if record.writer > gateway.epoch => {
                    let next = self.with(g, |gateway| gateway.phase = Phase::Fenced);
                    return (Step::FindsHigherSeal { gateway: g }, next);
                }
                Kind::Seal => (epoch, n) = (epoch + 1, 1),
                Kind::Commit(commit) => {
                    seen.push(commit);
                    n += 1;
                }
                Kind::Opening => n += 1,
            }
        }
        let slot = (epoch, n);
        let mut next = self.with(g, |gateway| (gateway.at, gateway.seen) = (slot, seen));
        let own = &mut next.gateways[usize::from(g)];
        let record = if epoch == gateway.epoch {
            if scope.broken == Some(Broken::SkipsOpening) {
                own.phase = Phase::Serving;
                return (Step::ServesUnopened { gateway: g }, next);
            }
            own.phase = Phase::Opening;
            Record { slot: (epoch, 1), kind: Kind::Opening, writer: gateway.epoch }
        } else if scope.broken == Some(Broken::SkipsSeal) {
            own.at = (epoch + 1, 1);
            return (Step::LeavesUnsealed { gateway: g, slot }, next);
        } else {
            Record { slot, kind: Kind::Seal, writer: gateway.epoch }
        };
        next.send(g, record, scope.landings(record.kind));
        (Step::Sends { gateway: g, record }, next)
    }

    /// Cuts commits, answers flushes in order, folds what is durable.
    fn serve(&self, scope: &Scope, g: u8, gateway: &Gateway, steps: &mut Vec<(Step, Self)>) {
        if gateway.cut < scope.commits && gateway.cut - gateway.answered < scope.window {
            let first = if scope.broken == Some(Broken::SkipsOpening) { 1 } else { 2 };
            let slot = (gateway.epoch, first + gateway.cut);
            let record = Record { slot, kind: Kind::Commit((g, gateway.cut)), writer: gateway.epoch };
            let mut next = self.with(g, |gateway| gateway.cut += 1);
            next.send(g, record, scope.landings(record.kind));
            steps.push((Step::Sends { gateway: g, record }, next));
        }
        let durable = gateway.durable.count_ones();
        let ready = gateway.durable >> gateway.answered & 1 == 1
            || scope.broken == Some(Broken::AnswersOutOfOrder) && durable > u32::from(gateway.answered);
        if ready {
            let next = self.with(g, |gateway| gateway.answered += 1);
            steps.push((Step::Answers { gateway: g, commit: gateway.answered }, next));
        }
        if self.head.epoch == gateway.epoch {
            let (commits, end) = self.replayed();
            let own = commits.iter().filter(|commit| commit.0 == g).count();
            if end.0 == gateway.epoch && commits != self.head.folded && own <= durable as usize {
                let slot = (end.0, end.1 - 1);
                let mut next = self.with(g, |gateway| gateway.folded_to = Some(slot));
                next.head.checkpoint = slot;
                next.head.folded = commits;
                steps.push((Step::Checkpoints { gateway: g, slot }, next));
            }
        }
    }

    /// Deletes a list of folded records, perhaps late, even by a gateway that was deposed since.
    fn delete(&self, scope: &Scope, g: u8, gateway: &Gateway) -> Option<(Step, Self)> {
        let to = gateway.folded_to?;
        let seals_too = scope.broken == Some(Broken::DeletesSeals);
        let dies = |record: &Record| record.slot <= to && (record.kind != Kind::Seal || seals_too);
        let slots: Vec<Slot> = self.journal.iter().filter(|r| dies(r)).map(|r| r.slot).collect();
        if slots.is_empty() {
            return None;
        }
        let mut next = self.clone();
        next.journal.retain(|record| !dies(record));
        Some((Step::Deletes { gateway: g, slots }, next))
    }

    /// Lets a PUT land: it creates its record, or finds the slot taken, possibly by itself.
    fn land(&self, scope: &Scope, flight: Flight) -> (Step, Self) {
        let Flight { sender, record, landings } = flight;
        let mut next = self.clone();
        next.flights.retain(|other| *other != flight);
        if landings > 1 {
            next.send(sender, record, landings - 1);
        }
        let there = record_at(&self.journal, record.slot).copied();
        if there.is_none() {
            insert(&mut next.journal, record);
        }
        let taken_by = there.filter(|other| *other != record);
        let created = taken_by.is_none();
        let gateway = &mut next.gateways[usize::from(sender)];
        match (record.kind, gateway.phase) {
            (Kind::Seal | Kind::Opening, _) if scope.is_second(&flight) => {}
            (Kind::Commit((_, k)), Phase::Serving) => {
                if created || scope.broken == Some(Broken::IgnoresTakenSlot) {
                    gateway.durable |= 1 << k;
                } else {
                    gateway.phase = Phase::Fenced;
                }
            }
            (Kind::Opening, Phase::Opening) => {
                gateway.phase = if created { Phase::Serving } else { Phase::Fenced };
            }
            // Any other record in the slot of a seal is replayed, and the next slot tried.
            (Kind::Seal, _)
                if taken_by.is_some_and(|other| other.kind == Kind::Seal && other.writer > gateway.epoch) =>
            {
                gateway.phase = Phase::Fenced;
            }
            _ => {}
        }
        (Step::Lands { flight, taken_by }, next)
    }
}
