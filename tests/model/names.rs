//! The binding of names as a machine of small states: what each process may do next, and what a request does
//! when it lands.
//!
//! Processes create, delete (by name and by id), open and rename volumes under a few names. A request is sent in
//! one step and lands in another, however late, even after its sender died; a process that dies takes no
//! further step. With `late_duplicates` each change of a name may land twice, and the answer of the first
//! landing may be lost. The journal and the lease are included only as far as a deletion or a renaming must
//! respect them. This file must not know what has to hold: that is in [`super`]. The steps of a renaming are in
//! [`super::renames`], and those of a deletion in [`super::deletions`]. A clone would be another [`Role`].

use std::fmt;

use super::deletions::{after_unbinding, cleared, removal};
use super::renames;

/// A volume: its index among all that are ever made.
pub(super) type Volume = u8;

/// A name: an index. Volumes are created under the first.
pub(super) type Name = u8;

/// The name under which volumes are created.
pub(super) const FIRST: Name = 0;
/// Number of names.
const NAMES: usize = 3;

/// The names that a head records: that of the volume, and the one that it is getting.
pub(super) type Names = (Name, Option<Name>);

/// The object under a name. Its version grows with every change, so that no version returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Binding {
    /// No object exists: the name was never used.
    Absent,
    /// A free name, with this version.
    Free(u8),
    /// The version, and the volume that the name is bound to.
    Bound(u8, Volume),
}

impl Binding {
    pub(super) fn version(self) -> u8 {
        match self {
            Self::Absent => 0,
            Self::Free(version) | Self::Bound(version, _) => version,
        }
    }

    pub(super) fn stands_for(self, volume: Volume) -> bool {
        matches!(self, Self::Bound(_, bound) if bound == volume)
    }
}

/// The head of a volume. Its version grows with every change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Head {
    Absent,
    /// The version, whether a gateway holds the lease, and the names of the volume.
    Live(u8, bool, Names),
    Deleting(u8, Names),
}

/// The objects of a volume, but for the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Part {
    /// The identity, by which a listing finds the volume.
    Identity,
    /// All other objects: root, root table, data.
    Content,
    Head,
}

/// The objects of one volume in the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Disk {
    pub identity: bool,
    pub content: bool,
    pub head: Head,
    /// Whether a flush of data in it was answered.
    pub committed: bool,
}

/// The task of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Creates(Volume),
    DeletesByName(Name),
    DeletesById(Volume),
    Opens,
    /// Renames the volume that has the first of these names. Takes it from whoever holds it.
    Renames(Name, Name),
}

/// A rule that a check can break, to show that the rule is needed and that breaking it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// A deletion removes the name whatever it is bound to by then.
    UnbindsBlindly,
    /// A deletion unbinds the name before it marks the head.
    UnbindsFirst,
    /// A deletion unbinds the name after the head is gone.
    UnbindsLast,
    /// A name is unbound by deleting its object.
    DeletesName,
    /// A creator binds the name unconditionally.
    BindsBlindly,
    /// A creator binds the name before the volume has a head.
    BindsHalfMade,
    /// A creator whose binding failed although the name is free reads it again, and binds the volume that it
    /// has already made.
    BindsAgain,
    /// A creator takes a name from a volume that is not being deleted.
    TakesLiveName,
    /// A deletion by id leaves a free name unchanged, so that the creator can still bind it.
    LeavesNameFree,
    /// A deletion by id that found no head takes the name from a volume that has got a head since.
    UnbindsUnmarked,
    /// A deletion removes the identity before the rest.
    IdentityFirst,
    /// A deletion checks the lease, and then marks whatever head exists.
    MarksBlindly,
    /// A creator replaces the name of a volume that is being deleted, instead of freeing it first.
    BindsOverDeleting,
    /// A renaming frees the old name before it binds the new one.
    FreesOldFirst,
    /// A renaming does not record the new name in the head first.
    Unrecorded,
    /// A renaming reads the old name after it has updated the head.
    ReadsOldLate,
    /// A deletion frees the name of the volume, and not the one that it is getting.
    LeavesNextName,
    /// A renaming does not finish one that was cut short, and records its own in the head.
    ForgetsNextName,
    /// A renaming gives the volume its name although the volume has lost the one by which it was found.
    RenamesOn,
    /// An opener does not finish a renaming that was cut short.
    LeavesRenaming,
    /// An opener takes a volume that has lost the name by which it was found.
    OpensByOldName,
    /// A creator that comes too late deletes its volume without a look at the head.
    DeletesRenamed,
}

/// The size of a check.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub roles: Vec<Role>,
    /// Whether volume 0 exists at the start, complete, with data and bound to the name.
    pub first_stands: bool,
    /// Whether each change of a name may land twice.
    pub late_duplicates: bool,
    /// Whether deletions and openers take a volume from whoever holds it.
    pub takeover: bool,
    pub broken: Option<Broken>,
}

impl Scope {
    pub(super) fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }

    /// Upper bound on the number of volumes.
    fn volumes(&self) -> usize {
        let made = self.roles.iter().filter_map(|role| match role {
            Role::Creates(volume) => Some(usize::from(*volume) + 1),
            _ => None,
        });
        made.max().unwrap_or(0).max(1)
    }
}

/// How far a process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum At {
    Begins,
    /// The name to be bound is bound to this volume: checks whether that is being deleted.
    Checks(Volume),
    /// It is, so the name is taken from it.
    Clears(Volume),
    Makes(Part),
    Binds,
    /// The name cannot be bound any more: the head shows whether it was.
    Judges(Volume),
    /// Deleter: reads the head, and marks it.
    Marks(Volume),
    /// Reads the name, and unbinds it.
    Unbinds(Volume),
    /// The same with the names that the marked head records: the first or the second.
    UnbindsRecorded(Volume, bool),
    /// By id, without a head: makes sure that the name is never bound to the volume.
    Fences(Volume),
    Removes(Volume, Part),
    /// Opener: takes the lease of this volume.
    Takes(Volume),
    Recovers(Volume),
    Serves(Volume),
    Releases(Volume),
    /// Releases the lease, and fails: the volume has another name than the one by which it was found.
    GivesBack(Volume),
    /// Holder that renames, or finishes a renaming: see [`super::renames`].
    Renames(Volume, renames::Stage),
    /// The operation was answered with success.
    Done(Option<Volume>),
    /// The operation was answered with an error.
    Failed,
}

/// A request that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Request {
    /// Replaces a name's object if it is exactly `from`; with `None`, unconditionally.
    Name {
        name: Name,
        from: Option<Binding>,
        to: Binding,
    },
    Head {
        volume: Volume,
        from: Option<Head>,
        to: Head,
    },
    Make(Volume, Part),
    Delete(Volume, Part),
}

/// What one process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub at: At,
    /// The name to be bound or unbound, as it was read.
    pub name: Binding,
    /// Renaming: the old name, as it was read.
    pub old: Binding,
    /// The head that it made.
    pub head: Head,
    /// A request without an answer yet.
    pub waits: Option<Request>,
    /// A request that was refused: the existing object decides what that means.
    pub refused: Option<Request>,
}

/// A request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Flight {
    pub sender: u8,
    pub request: Request,
    /// How many more times it may land.
    pub landings: u8,
}

/// The bucket, the network and every process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub names: [Binding; NAMES],
    pub disks: Vec<Disk>,
    pub processes: Vec<Process>,
    /// Requests in flight, sorted and without duplicates.
    pub flights: Vec<Flight>,
}

/// A step between two states.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Reads { process: u8, role: Role, then: At },
    Sends { process: u8, role: Role, request: Request },
    Commits { process: u8, volume: Volume },
    Lands { flight: Flight, applied: bool, answered: bool },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reads { process, role, then } => write!(f, "P{process} ({role:?}) reads; now {then:?}"),
            Self::Sends { process, role, request } => write!(f, "P{process} ({role:?}) sends {request:?}"),
            Self::Commits { process, volume } => write!(f, "P{process} answers a flush on volume {volume}"),
            Self::Lands { flight, applied, answered } => {
                let Flight { sender, request, .. } = flight;
                let effect = if *applied { "done" } else { "refused" };
                let answer = if *answered { "" } else { ", no answer" };
                write!(f, "  {request:?} of P{sender} lands: {effect}{answer}")
            }
        }
    }
}

impl State {
    /// Returns the first state, in which no process has begun.
    pub(super) fn first(scope: &Scope) -> Self {
        let none = Disk { identity: false, content: false, head: Head::Absent, committed: false };
        let mut disks = vec![none; scope.volumes()];
        let mut names = [Binding::Absent; NAMES];
        if scope.first_stands {
            let head = Head::Live(1, false, (FIRST, None));
            disks[0] = Disk { identity: true, content: true, head, committed: true };
            names[usize::from(FIRST)] = Binding::Bound(1, 0);
        }
        let process = Process {
            at: At::Begins,
            name: Binding::Absent,
            old: Binding::Absent,
            head: Head::Absent,
            waits: None,
            refused: None,
        };
        Self { names, disks, processes: vec![process; scope.roles.len()], flights: Vec::new() }
    }

    pub(super) fn disk(&self, volume: Volume) -> &Disk {
        &self.disks[usize::from(volume)]
    }

    pub(super) fn name(&self, name: Name) -> Binding {
        self.names[usize::from(name)]
    }

    /// The name that a process reads to find or free its volume.
    pub(super) fn name_of(role: Role) -> Name {
        match role {
            Role::DeletesByName(name) | Role::Renames(name, _) => name,
            Role::Creates(_) | Role::DeletesById(_) | Role::Opens => FIRST,
        }
    }

    /// Returns every possible step and the state after it.
    pub(super) fn steps(&self, scope: &Scope) -> Vec<(Step, Self)> {
        let mut steps = Vec::new();
        for (p, process) in (0_u8..).zip(&self.processes) {
            if process.waits.is_none() {
                let role = scope.roles[usize::from(p)];
                steps.extend(self.step(scope, p, role, process));
            }
        }
        for flight in &self.flights {
            steps.push(self.land(scope, *flight, true));
            if flight.landings > 1 && self.processes[usize::from(flight.sender)].waits == Some(flight.request)
            {
                steps.push(self.land(scope, *flight, false));
            }
        }
        steps
    }

    /// The next step of a process that waits for nothing.
    fn step(&self, scope: &Scope, p: u8, role: Role, process: &Process) -> Option<(Step, Self)> {
        if let Some(request) = process.refused {
            return Some(self.looks(scope, p, role, request));
        }
        match (process.at, role) {
            (At::Begins, Role::Creates(_)) => Some(self.reads(p, role, |now| {
                now.name = self.name(FIRST);
                now.at = match now.name {
                    Binding::Bound(_, other) => At::Checks(other),
                    Binding::Absent | Binding::Free(_) => At::Makes(Part::Identity),
                };
            })),
            (At::Checks(other), Role::Creates(_)) => Some(self.reads(p, role, |now| {
                let deleting = matches!(self.disk(other).head, Head::Deleting(..));
                now.at = match deleting {
                    _ if scope.breaks(Broken::TakesLiveName) => At::Makes(Part::Identity),
                    true if scope.breaks(Broken::BindsOverDeleting) => At::Makes(Part::Identity),
                    true => At::Clears(other),
                    false => At::Failed,
                };
            })),
            (At::Clears(_), Role::Creates(_)) => Some(self.clear(scope, p, role, FIRST)),
            (At::Makes(part), Role::Creates(volume)) => {
                let request = match part {
                    Part::Head => {
                        let to = Head::Live(1, false, (FIRST, None));
                        Request::Head { volume, from: Some(Head::Absent), to }
                    }
                    Part::Identity | Part::Content => Request::Make(volume, part),
                };
                Some(self.sends(scope, p, role, request))
            }
            (At::Binds, Role::Creates(volume)) => {
                let to = Binding::Bound(process.name.version() + 1, volume);
                let from = (!scope.breaks(Broken::BindsBlindly)).then_some(process.name);
                Some(self.sends(scope, p, role, Request::Name { name: FIRST, from, to }))
            }
            (At::Judges(volume), _) => Some(self.reads(p, role, |now| {
                now.at = match self.disk(volume).head {
                    // Nobody has opened it, so it never had a name.
                    Head::Live(1, ..) => removal(scope, volume, None),
                    Head::Live(..) if scope.breaks(Broken::DeletesRenamed) => removal(scope, volume, None),
                    Head::Live(..) => At::Done(Some(volume)),
                    Head::Absent | Head::Deleting(..) => At::Failed,
                };
            })),
            (At::Begins, Role::DeletesByName(name)) => Some(self.reads(p, role, |now| {
                now.name = self.name(name);
                now.at = match now.name {
                    Binding::Bound(_, volume) if scope.breaks(Broken::UnbindsFirst) => At::Unbinds(volume),
                    Binding::Bound(_, volume) => At::Marks(volume),
                    Binding::Absent | Binding::Free(_) => At::Failed,
                };
            })),
            (At::Begins, Role::DeletesById(volume)) => Some(self.reads(p, role, |now| {
                now.at = if self.disk(volume).identity { At::Marks(volume) } else { At::Failed };
            })),
            (At::Marks(volume), _) => Some(self.mark(scope, p, role, volume)),
            (At::Fences(volume), _) if self.name(FIRST).stands_for(volume) => {
                Some(self.reads(p, role, |now| now.at = At::Marks(volume)))
            }
            (At::Unbinds(volume) | At::Fences(volume), _) => {
                let fences = matches!(role, Role::DeletesById(_)) && !scope.breaks(Broken::LeavesNameFree);
                Some(self.unbind(scope, p, role, Self::name_of(role), volume, fences))
            }
            (At::UnbindsRecorded(volume, next), _) => {
                Some(self.unbind_recorded(scope, p, role, volume, next))
            }
            (At::Removes(volume, part), _) => Some(self.sends(scope, p, role, Request::Delete(volume, part))),
            (At::Begins, Role::Opens | Role::Renames(..)) => Some(self.reads(p, role, |now| {
                now.at = match self.name(Self::name_of(role)) {
                    Binding::Bound(_, volume) => At::Takes(volume),
                    Binding::Absent | Binding::Free(_) => At::Failed,
                };
            })),
            (At::Takes(volume), _) => match self.disk(volume).head {
                Head::Live(_, _, names) if renames::has_lost_its_name(scope, role, names) => {
                    Some(self.reads(p, role, |now| now.at = At::Failed))
                }
                Head::Live(version, held, names)
                    if !held || scope.takeover || matches!(role, Role::Renames(..)) =>
                {
                    let from = Some(Head::Live(version, held, names));
                    let to = Head::Live(version + 1, true, names);
                    Some(self.sends(scope, p, role, Request::Head { volume, from, to }))
                }
                _ => Some(self.reads(p, role, |now| now.at = At::Failed)),
            },
            (At::Recovers(volume), _) => Some(self.reads(p, role, |now| {
                let whole = self.disk(volume).identity && self.disk(volume).content;
                now.at = if whole { renames::after_taking(scope, now, role, volume) } else { At::Failed };
            })),
            (At::Serves(volume), _) => self.commit(p, process, volume),
            (At::Releases(volume) | At::GivesBack(volume), _) => {
                let Head::Live(version, _, names) = process.head else { return None };
                let (from, to) = (Some(process.head), Head::Live(version + 1, false, names));
                Some(self.sends(scope, p, role, Request::Head { volume, from, to }))
            }
            (At::Renames(volume, stage), _) => Some(self.rename(scope, p, role, volume, stage)),
            (At::Makes(_) | At::Binds | At::Checks(_) | At::Clears(_) | At::Done(_) | At::Failed, _) => None,
        }
    }

    /// Answers a flush, unless the head says that another gateway has the volume: its log is then sealed.
    fn commit(&self, p: u8, process: &Process, volume: Volume) -> Option<(Step, Self)> {
        (self.disk(volume).head == process.head).then(|| {
            let mut next = self.clone();
            next.disks[usize::from(volume)].committed = true;
            next.processes[usize::from(p)].at = At::Releases(volume);
            (Step::Commits { process: p, volume }, next)
        })
    }

    /// A refused request has taken effect after all if the existing object has its bytes: an earlier answer
    /// was lost.
    fn looks(&self, scope: &Scope, p: u8, role: Role, request: Request) -> (Step, Self) {
        let ours = match request {
            Request::Name { name, to, .. } => self.name(name) == to,
            Request::Head { volume, to, .. } => self.disk(volume).head == to,
            Request::Make(..) | Request::Delete(..) => true,
        };
        self.reads(p, role, |now| {
            now.refused = None;
            answered(scope, role, now, request, ours);
            if !ours && now.at == At::Binds && scope.breaks(Broken::BindsAgain) {
                now.name = self.name(FIRST);
            }
            if now.at == At::Binds && matches!(self.name(FIRST), Binding::Bound(..)) && !ours {
                now.at = At::Failed;
            }
        })
    }

    pub(super) fn reads(&self, p: u8, role: Role, change: impl FnOnce(&mut Process)) -> (Step, Self) {
        let mut next = self.clone();
        let process = &mut next.processes[usize::from(p)];
        change(process);
        let then = process.at;
        (Step::Reads { process: p, role, then }, next)
    }

    pub(super) fn sends(&self, scope: &Scope, p: u8, role: Role, request: Request) -> (Step, Self) {
        let mut next = self.clone();
        next.processes[usize::from(p)].waits = Some(request);
        let twice = scope.late_duplicates && matches!(request, Request::Name { .. });
        next.flies(Flight { sender: p, request, landings: if twice { 2 } else { 1 } });
        (Step::Sends { process: p, role, request }, next)
    }

    fn flies(&mut self, flight: Flight) {
        if let Err(place) = self.flights.binary_search(&flight) {
            self.flights.insert(place, flight);
        }
    }

    /// Lets a request take effect or be refused, and answers it unless the answer is lost.
    fn land(&self, scope: &Scope, flight: Flight, answer: bool) -> (Step, Self) {
        let Flight { sender, request, landings } = flight;
        let mut next = self.clone();
        next.flights.retain(|other| *other != flight);
        if landings > 1 {
            next.flies(Flight { landings: landings - 1, ..flight });
        }
        let applied = next.apply(request);
        let process = &mut next.processes[usize::from(sender)];
        let answered_now = answer && process.waits == Some(request);
        if answered_now {
            process.waits = None;
            if applied {
                answered(scope, scope.roles[usize::from(sender)], process, request, true);
            } else {
                process.refused = Some(request);
            }
        }
        (Step::Lands { flight, applied, answered: answered_now }, next)
    }

    fn apply(&mut self, request: Request) -> bool {
        match request {
            Request::Name { name, from, to } => {
                let name = &mut self.names[usize::from(name)];
                let applies = from.is_none_or(|from| from == *name);
                if applies {
                    *name = to;
                }
                applies
            }
            Request::Head { volume, from, to } => {
                let head = &mut self.disks[usize::from(volume)].head;
                let applies = from.is_none_or(|from| from == *head);
                if applies {
                    *head = to;
                }
                applies
            }
            Request::Make(volume, part) | Request::Delete(volume, part) => {
                let disk = &mut self.disks[usize::from(volume)];
                let made = matches!(request, Request::Make(..));
                match part {
                    Part::Identity => disk.identity = made,
                    Part::Content => disk.content = made,
                    Part::Head => disk.head = Head::Absent,
                }
                true
            }
        }
    }
}

/// Decides what a process does once it knows the outcome of its request.
fn answered(scope: &Scope, role: Role, process: &mut Process, request: Request, done: bool) {
    let half_made = scope.breaks(Broken::BindsHalfMade);
    process.at = match (process.at, role) {
        (At::Makes(Part::Identity), _) => At::Makes(Part::Content),
        (At::Makes(Part::Content), _) if half_made => At::Binds,
        (At::Makes(Part::Content), _) => At::Makes(Part::Head),
        (At::Makes(Part::Head), Role::Creates(volume)) if half_made => At::Done(Some(volume)),
        (At::Makes(Part::Head), _) => At::Binds,
        (At::Binds, _) if done && half_made => At::Makes(Part::Head),
        (At::Binds, Role::Creates(volume)) if done => At::Done(Some(volume)),
        (At::Binds, _) if scope.breaks(Broken::BindsAgain) => At::Binds,
        // The name belongs to another volume, or was changed since it was read.
        (At::Binds, Role::Creates(volume)) => At::Judges(volume),
        (At::Marks(volume), _) if done && scope.breaks(Broken::UnbindsFirst) => removal(scope, volume, None),
        (At::Marks(volume), _) if done && scope.breaks(Broken::UnbindsLast) => removal(scope, volume, None),
        (At::Marks(volume), _) if done => At::Unbinds(volume),
        (At::Marks(volume), _) => At::Marks(volume),
        (at @ (At::Unbinds(volume) | At::Fences(volume) | At::UnbindsRecorded(volume, _)), _) if done => {
            after_unbinding(scope, at, volume)
        }
        (At::Clears(_), _) => {
            cleared(process);
            process.at
        }
        (At::Removes(volume, part), Role::Creates(_)) => match removal(scope, volume, Some(part)) {
            At::Unbinds(_) | At::Done(_) => At::Failed,
            next => next,
        },
        (At::Removes(volume, part), _) => removal(scope, volume, Some(part)),
        (At::Takes(volume), _) if done => {
            let Request::Head { to, .. } = request else { unreachable!("it asked for the head") };
            process.head = to;
            match role {
                Role::Renames(..) => renames::after_taking(scope, process, role, volume),
                _ => At::Recovers(volume),
            }
        }
        (At::Takes(_), _) => At::Failed,
        (At::Renames(volume, stage), _) => {
            renames::answered(scope, role, process, request, done, volume, stage)
        }
        (At::Releases(volume), _) if done => At::Done(Some(volume)),
        (At::Releases(_) | At::GivesBack(_), _) => At::Failed,
        (at, _) => at,
    };
}
