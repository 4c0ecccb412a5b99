//! Exhaustive check, at small scope, of how a deleted volume is kept, brought back under a name, and deleted
//! for good.
//!
//! One volume, two names, and processes that take their requests in any order. Each of them may stop for ever
//! at any request, which is a crash, or go on long after the others. They delete the volume so that it is
//! kept, bring it back, create another volume under a name, or delete it for good. Each request for the head
//! or a name replaces exactly the version that was read. A second machine counts the time with two watchers.
//!
//! A rule that is broken must be found. What must never occur is a volume in use without a name, or with one
//! that its head does not record; a name of a volume that is gone; and a volume in use that is deleted for
//! good.

use std::fmt;

use super::explore::{Machine, check, check_to_first};

/// A rule that a check can break, to show that the rule is needed and that breaking it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// Names are freed without replacing the head first.
    SettlesUnproved,
    /// Names are freed as they are after the head was replaced.
    ReadsNamesLate,
    /// Whoever creates a volume frees the name of a kept one without replacing its head.
    ClaimsByFreeing,
    /// A name that is free already is left as it is.
    LeavesFree,
    /// The next name is forgotten without being replaced.
    LeavesNext,
    /// The volume is in use before its name is bound.
    LivesFirst,
    /// A deletion for good marks whatever head it finds.
    PurgesWhateverStands,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Role {
    /// Deletes the volume that has the first name, so that it is kept.
    SetsAside,
    /// Brings the volume back under a name.
    Undeletes(usize),
    /// Creates another volume under a name.
    Creates(usize),
    /// Deletes the volume for good, if it is kept.
    Purges,
}

/// The size of a check.
#[derive(Clone, Debug)]
struct Scope {
    roles: Vec<Role>,
    broken: Option<Broken>,
}

impl Scope {
    fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Volume {
    Ours,
    Other,
}

/// The object under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name {
    version: u8,
    to: Option<Volume>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Live,
    Kept,
    Deleting,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Head {
    version: u8,
    life: Life,
    current: usize,
    next: Option<usize>,
}

/// The request that a process sends next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    ReadsName,
    ReadsHead,
    Keeps,
    SettleReadsHead,
    SettleReadsCurrent,
    SettleReadsNext,
    SettleProves,
    SettleFreesCurrent,
    SettleFreesNext,
    SettleForgets,
    Claims,
    ReadsItsHead,
    FreesIt,
    Records,
    Binds,
    Lives,
    BindsLate,
    Marks,
    UnbindsCurrent,
    UnbindsNext,
    Removes,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Process {
    at: At,
    /// The head as it was read or written last.
    head: Head,
    /// The current and the next name as they were read.
    names: [Name; 2],
    /// The name to be bound, as it was read.
    found: Name,
    attempts: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    head: Head,
    names: [Name; 2],
    processes: Vec<Process>,
    /// Whether a volume in use was marked.
    marked_live: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Violation {
    /// A volume is in use and no name is bound to it.
    Nameless,
    /// A name is bound to a volume in use whose head does not record it.
    Unrecorded,
    /// A name is bound to a volume that is gone.
    Dangling,
    /// A volume in use was deleted for good.
    Taken,
}

struct Step(usize, At);

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}: {:?}", self.0, self.1)
    }
}

/// How often a process begins anew.
const ATTEMPTS: u8 = 2;

impl State {
    /// Replaces the head if it is still the one that the process knows.
    fn replace(&mut self, number: usize, to: Head) -> bool {
        let process = &mut self.processes[number];
        if self.head.version != process.head.version || self.head.life == Life::Gone {
            return false;
        }
        self.head = Head { version: self.head.version + 1, ..to };
        process.head = self.head;
        true
    }

    /// Replaces a name if it is still as it was read. The same object that somebody else wrote counts as
    /// success.
    fn swap(&mut self, name: usize, read: Name, to: Option<Volume>) -> bool {
        let wanted = Name { version: read.version + 1, to };
        if self.names[name] == read {
            self.names[name] = wanted;
        }
        self.names[name] == wanted
    }

    /// Frees a name of the volume whatever its version is, unless it is that of another volume.
    fn unbind(&mut self, name: usize) {
        let now = &mut self.names[name];
        if now.to != Some(Volume::Other) {
            *now = Name { version: now.version + 1, to: None };
        }
    }

    /// Begins anew, unless that was the last attempt.
    fn again(&mut self, number: usize, at: At) -> At {
        let left = &mut self.processes[number].attempts;
        *left = left.saturating_sub(1);
        if *left == 0 { At::Ended } else { at }
    }

    /// What follows once the names of the kept volume were freed.
    fn settled(role: Role) -> At {
        match role {
            Role::Undeletes(_) | Role::Creates(_) => At::Claims,
            Role::SetsAside | Role::Purges => At::Ended,
        }
    }

    /// Takes the names from the volume: one request.
    fn settles(&mut self, scope: &Scope, number: usize) -> At {
        let (role, me) = (scope.roles[number], self.processes[number]);
        let after_reading = |head: Head, proved: At| {
            if head.next.is_some() { At::SettleReadsNext } else { proved }
        };
        let late = scope.breaks(Broken::ReadsNamesLate);
        let (proves, frees) = (At::SettleProves, At::SettleFreesCurrent);
        match me.at {
            At::SettleReadsHead => {
                self.processes[number].head = self.head;
                match (self.head.life, role) {
                    (Life::Kept, _) if late => proves,
                    (Life::Kept, _) => At::SettleReadsCurrent,
                    (_, Role::Creates(_)) => self.again(number, At::Claims),
                    _ => At::Ended,
                }
            }
            At::SettleReadsCurrent => {
                self.processes[number].names[0] = self.names[me.head.current];
                after_reading(me.head, if late { frees } else { proves })
            }
            At::SettleReadsNext => {
                self.processes[number].names[1] = self.names[me.head.next.expect("it was read")];
                if late { frees } else { proves }
            }
            At::SettleProves if scope.breaks(Broken::SettlesUnproved) => frees,
            At::SettleProves if !self.replace(number, me.head) => self.again(number, At::SettleReadsHead),
            At::SettleProves if late => At::SettleReadsCurrent,
            At::SettleProves => frees,
            At::SettleFreesCurrent if !self.frees(scope, me.head.current, me.names[0]) => {
                self.again(number, At::SettleReadsHead)
            }
            At::SettleFreesCurrent if me.head.next.is_none() => Self::settled(role),
            At::SettleFreesCurrent if scope.breaks(Broken::LeavesNext) => At::SettleForgets,
            At::SettleFreesCurrent => At::SettleFreesNext,
            At::SettleFreesNext => {
                let next = me.head.next.expect("it was read");
                if self.frees(scope, next, me.names[1]) {
                    At::SettleForgets
                } else {
                    self.again(number, At::SettleReadsHead)
                }
            }
            At::SettleForgets if self.replace(number, Head { next: None, ..me.head }) => Self::settled(role),
            At::SettleForgets => self.again(number, At::SettleReadsHead),
            other => unreachable!("{other:?} is no part of it"),
        }
    }

    /// Frees a name as it was read. Returns whether the process can go on.
    fn frees(&mut self, scope: &Scope, name: usize, read: Name) -> bool {
        match read.to {
            Some(Volume::Other) => true,
            None if scope.breaks(Broken::LeavesFree) => true,
            _ => self.swap(name, read, None),
        }
    }

    /// Deletes the volume so that it is kept, or for good: one request.
    fn deletes(&mut self, scope: &Scope, number: usize) -> At {
        let me = self.processes[number];
        match me.at {
            At::ReadsName if self.names[0].to == Some(Volume::Ours) => At::ReadsHead,
            At::ReadsName => At::Ended,
            At::ReadsHead => {
                self.processes[number].head = self.head;
                match (self.head.life, scope.roles[number]) {
                    (Life::Live, Role::SetsAside) if self.head.current == 0 => At::Keeps,
                    (Life::Kept, Role::SetsAside) => At::SettleReadsHead,
                    (Life::Kept, Role::Purges) => At::Marks,
                    _ => At::Ended,
                }
            }
            At::Keeps if self.replace(number, Head { life: Life::Kept, ..me.head }) => At::SettleReadsHead,
            At::Keeps => self.again(number, At::ReadsHead),
            At::Marks => {
                if scope.breaks(Broken::PurgesWhateverStands) {
                    self.processes[number].head = self.head;
                }
                let was_live = self.head.life == Life::Live;
                let known = self.processes[number].head;
                if !self.replace(number, Head { life: Life::Deleting, ..known }) {
                    return At::Ended;
                }
                self.marked_live |= was_live;
                At::UnbindsCurrent
            }
            At::UnbindsCurrent => {
                self.unbind(me.head.current);
                if me.head.next.is_some() { At::UnbindsNext } else { At::Removes }
            }
            At::UnbindsNext => {
                self.unbind(me.head.next.expect("it was read"));
                At::Removes
            }
            At::Removes => {
                self.head.life = Life::Gone;
                At::Ended
            }
            other => unreachable!("{other:?} is no part of it"),
        }
    }

    /// Brings the volume back or creates another one: one request.
    fn binds(&mut self, scope: &Scope, number: usize) -> At {
        let (role, me) = (scope.roles[number], self.processes[number]);
        let (Role::Undeletes(name) | Role::Creates(name)) = role else { unreachable!("it binds nothing") };
        let creates = matches!(role, Role::Creates(_));
        let lives = Head { life: Life::Live, current: name, next: None, ..me.head };
        match me.at {
            At::Claims => match self.names[name] {
                Name { to: Some(Volume::Other), .. } => At::Ended,
                Name { to: Some(Volume::Ours), .. } => At::ReadsItsHead,
                free => {
                    self.processes[number].found = free;
                    if creates { At::Binds } else { At::Records }
                }
            },
            At::ReadsItsHead => match self.head.life {
                Life::Live => At::Ended,
                Life::Kept if creates && scope.breaks(Broken::ClaimsByFreeing) => At::FreesIt,
                Life::Kept => self.again(number, At::SettleReadsHead),
                Life::Deleting => At::FreesIt,
                Life::Gone => self.again(number, At::Claims),
            },
            At::FreesIt => {
                if self.names[name].to == Some(Volume::Ours) {
                    self.unbind(name);
                }
                self.again(number, At::Claims)
            }
            At::Records => {
                let next = (name != me.head.current).then_some(name);
                let recorded = self.replace(number, Head { next, ..me.head });
                match recorded {
                    true if scope.breaks(Broken::LivesFirst) => At::Lives,
                    true => At::Binds,
                    false => self.again(number, At::SettleReadsHead),
                }
            }
            At::Binds if creates => {
                self.swap(name, me.found, Some(Volume::Other));
                At::Ended
            }
            At::Binds if self.swap(name, me.found, Some(Volume::Ours)) => At::Lives,
            At::Binds => self.again(number, At::SettleReadsHead),
            At::Lives if !self.replace(number, lives) => self.again(number, At::SettleReadsHead),
            At::Lives if scope.breaks(Broken::LivesFirst) => At::BindsLate,
            At::Lives => At::Ended,
            At::BindsLate => {
                self.swap(name, me.found, Some(Volume::Ours));
                At::Ended
            }
            other => unreachable!("{other:?} is no part of it"),
        }
    }

    /// The state after the next request of a process.
    fn next(&self, scope: &Scope, number: usize) -> Option<Self> {
        let mut next = self.clone();
        let at = match self.processes[number].at {
            At::Ended => return None,
            At::SettleReadsHead
            | At::SettleReadsCurrent
            | At::SettleReadsNext
            | At::SettleProves
            | At::SettleFreesCurrent
            | At::SettleFreesNext
            | At::SettleForgets => next.settles(scope, number),
            At::Claims
            | At::ReadsItsHead
            | At::FreesIt
            | At::Records
            | At::Binds
            | At::Lives
            | At::BindsLate => next.binds(scope, number),
            _ => next.deletes(scope, number),
        };
        let process = &mut next.processes[number];
        process.at = at;
        if at == At::Ended {
            // What it knows matters no more.
            *process = Process { at, ..idle(At::Ended) };
        }
        Some(next)
    }
}

const HEAD: Head = Head { version: 0, life: Life::Live, current: 0, next: None };

fn idle(at: At) -> Process {
    let name = Name { version: 0, to: None };
    Process { at, head: HEAD, names: [name; 2], found: name, attempts: ATTEMPTS }
}

impl Machine for State {
    type Scope = Scope;
    type Step = Step;
    type Violation = Violation;

    fn first(scope: &Scope) -> Self {
        let begins = |role: &Role| {
            idle(match role {
                Role::SetsAside => At::ReadsName,
                Role::Undeletes(_) => At::SettleReadsHead,
                Role::Creates(_) => At::Claims,
                Role::Purges => At::ReadsHead,
            })
        };
        let names = [Name { version: 1, to: Some(Volume::Ours) }, Name { version: 0, to: None }];
        let processes = scope.roles.iter().map(begins).collect();
        Self { head: HEAD, names, processes, marked_live: false }
    }

    fn steps(&self, scope: &Scope) -> Vec<(Step, Self)> {
        let numbers = 0..self.processes.len();
        numbers
            .filter_map(|number| Some((Step(number, self.processes[number].at), self.next(scope, number)?)))
            .collect()
    }

    fn violation(&self, _: &Scope) -> Option<Violation> {
        let bound = |name: usize| self.names[name].to == Some(Volume::Ours);
        let Head { life, current, next, .. } = self.head;
        if self.marked_live {
            return Some(Violation::Taken);
        }
        match life {
            Life::Live if !bound(0) && !bound(1) => Some(Violation::Nameless),
            Life::Live if (0..2).any(|name| bound(name) && name != current && Some(name) != next) => {
                Some(Violation::Unrecorded)
            }
            Life::Gone if bound(0) || bound(1) => Some(Violation::Dangling),
            _ => None,
        }
    }
}

use Role::{Creates, Purges, SetsAside, Undeletes};

fn holds(roles: &[Role]) -> usize {
    let found = check::<State>(&Scope { roles: roles.to_vec(), broken: None });
    assert!(found.violations.is_empty(), "{roles:?}: {:#?}", found.violations);
    found.states
}

/// Checks that breaking a rule is found.
fn finds(broken: Broken, roles: &[Role], expected: Violation) {
    let found = check_to_first::<State>(&Scope { roles: roles.to_vec(), broken: Some(broken) });
    assert!(found.violations.contains_key(&expected), "{broken:?}: {found:#?}");
}

#[test]
fn a_volume_in_use_has_the_name_that_its_head_records() {
    for roles in [
        &[SetsAside, Undeletes(0), Creates(0)][..],
        &[SetsAside, Undeletes(0), Undeletes(1)],
        &[SetsAside, SetsAside, Undeletes(0)],
        &[SetsAside, SetsAside, Undeletes(1)],
        &[SetsAside, Undeletes(1), Purges],
        &[SetsAside, Undeletes(1), Creates(1)],
        &[SetsAside, Creates(0), Purges],
    ] {
        let states = holds(roles);
        assert!(states > 200, "{roles:?}: {states} states");
    }
}

#[test]
fn names_are_freed_only_as_they_were_read_before_the_head_was_replaced() {
    finds(Broken::SettlesUnproved, &[SetsAside, SetsAside, Undeletes(0)], Violation::Nameless);
    finds(Broken::ReadsNamesLate, &[SetsAside, Undeletes(0)], Violation::Nameless);
    finds(Broken::ClaimsByFreeing, &[SetsAside, Undeletes(0), Creates(0)], Violation::Nameless);
}

#[test]
fn every_name_that_can_be_bound_is_recorded_until_it_is_replaced() {
    finds(Broken::LeavesFree, &[SetsAside, Undeletes(0), Undeletes(1)], Violation::Unrecorded);
    finds(Broken::LeavesNext, &[SetsAside, Undeletes(0), Undeletes(1)], Violation::Unrecorded);
}

#[test]
fn the_name_is_bound_before_the_volume_is_in_use() {
    finds(Broken::LivesFirst, &[SetsAside, Undeletes(0)], Violation::Nameless);
}

#[test]
fn a_deletion_for_good_marks_the_head_that_it_has_judged() {
    finds(Broken::PurgesWhateverStands, &[SetsAside, Undeletes(0), Purges], Violation::Taken);
}
