//! The steps of a renaming, as part of the machine in [`super::names`].
//!
//! A process that renames holds the volume, and may lose it to another at any time. It reads both names,
//! records in the head that the volume gets the new one, binds that, frees the old one, and records that. The
//! next holder finishes what was cut short, by the same steps, before it serves the volume or renames it. It
//! gives the volume back if that has another name then than the one by which it was found.

use super::names::{
    At, Binding, Broken, Head, Name, Names, Process, Request, Role, Scope, State, Step, Volume,
};

/// How far a renaming has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    ReadsOld,
    ReadsNew,
    /// The new name is bound to this volume: checks whether that is being deleted.
    Checks(Volume),
    /// It is, so the name is taken from it.
    Clears,
    /// Records in the head that the volume gets the new name.
    Records,
    Binds,
    FreesOld,
    /// Records in the head that the volume has the new name.
    Settles,
    /// Another volume has the new name: records in the head that the volume keeps the old one.
    GivesUp,
}

/// The names in the head that a process made.
fn names(process: &Process) -> Names {
    match process.head {
        Head::Live(_, _, names) => names,
        Head::Absent | Head::Deleting(..) => unreachable!("it holds the volume"),
    }
}

/// The name of a renaming that was cut short.
fn pending(scope: &Scope, process: &Process) -> Option<Name> {
    names(process).1.filter(|_| !scope.breaks(Broken::ForgetsNextName))
}

/// The name that the volume gets: first the one that an earlier renaming recorded.
fn target(scope: &Scope, process: &Process, role: Role) -> Name {
    match (pending(scope, process), role) {
        (Some(next), _) => next,
        (None, Role::Renames(_, to)) => to,
        (None, _) => unreachable!("it finishes a renaming"),
    }
}

/// Whether a volume has lost the name by which a process found it.
pub(super) fn has_lost_its_name(scope: &Scope, role: Role, (current, next): Names) -> bool {
    let name = State::name_of(role);
    let is_ignored = match role {
        Role::Renames(..) => scope.breaks(Broken::RenamesOn),
        _ => scope.breaks(Broken::OpensByOldName),
    };
    current != name && next != Some(name) && !is_ignored
}

/// What a process does that has taken a volume.
pub(super) fn after_taking(scope: &Scope, process: &Process, role: Role, volume: Volume) -> At {
    match pending(scope, process) {
        Some(_) if role == Role::Opens && scope.breaks(Broken::LeavesRenaming) => At::Serves(volume),
        Some(_) => At::Renames(volume, Stage::ReadsOld),
        None => settled(scope, process, role, volume),
    }
}

/// What a process does with a volume of which no renaming is left to be finished.
fn settled(scope: &Scope, process: &Process, role: Role, volume: Volume) -> At {
    let now = names(process).0;
    match role {
        Role::Renames(_, to) if now == to => At::Releases(volume),
        Role::Renames(from, _) if now == from || scope.breaks(Broken::RenamesOn) => {
            At::Renames(volume, Stage::ReadsOld)
        }
        Role::Opens if now == State::name_of(role) || scope.breaks(Broken::OpensByOldName) => {
            At::Serves(volume)
        }
        _ => At::GivesBack(volume),
    }
}

/// What follows the record of a new name.
fn after_record(scope: &Scope, process: &Process, volume: Volume) -> Stage {
    if process.name.stands_for(volume) || scope.breaks(Broken::FreesOldFirst) {
        Stage::FreesOld
    } else {
        Stage::Binds
    }
}

impl State {
    /// The next step of a process that renames.
    pub(super) fn rename(
        &self,
        scope: &Scope,
        p: u8,
        role: Role,
        volume: Volume,
        stage: Stage,
    ) -> (Step, Self) {
        let process = &self.processes[usize::from(p)];
        let (current, next) = names(process);
        let target = target(scope, process, role);
        let then = |stage| At::Renames(volume, stage);
        match stage {
            Stage::ReadsOld => self.reads(p, role, |now| {
                now.old = self.name(current);
                now.at = then(Stage::ReadsNew);
            }),
            Stage::ReadsNew => self.reads(p, role, |now| {
                now.name = self.name(target);
                now.at = match now.name {
                    Binding::Bound(_, other) if other != volume => then(Stage::Checks(other)),
                    // It has lost the volume, and a successor has renamed it.
                    _ if !now.name.stands_for(volume) && !now.old.stands_for(volume) => At::Failed,
                    _ if scope.breaks(Broken::Unrecorded) => then(after_record(scope, now, volume)),
                    _ => then(Stage::Records),
                };
            }),
            Stage::Checks(other) => self.reads(p, role, |now| {
                now.at = match self.disk(other).head {
                    Head::Deleting(..) => then(Stage::Clears),
                    _ if next.is_some() => then(Stage::GivesUp),
                    _ => At::GivesBack(volume),
                };
            }),
            Stage::Clears => self.clear(scope, p, role, target),
            Stage::Records => self.record(scope, p, role, volume, (current, Some(target))),
            Stage::Binds => {
                let bound = Binding::Bound(process.name.version() + 1, volume);
                self.sends(
                    scope,
                    p,
                    role,
                    Request::Name { name: target, from: Some(process.name), to: bound },
                )
            }
            Stage::FreesOld => {
                let late = scope.breaks(Broken::ReadsOldLate);
                let from = if late { self.name(current) } else { process.old };
                if !from.stands_for(volume) {
                    return self.reads(p, role, |now| now.at = then(Stage::Settles));
                }
                let to = Binding::Free(from.version() + 1);
                self.sends(scope, p, role, Request::Name { name: current, from: Some(from), to })
            }
            Stage::Settles => self.record(scope, p, role, volume, (target, None)),
            Stage::GivesUp => self.record(scope, p, role, volume, (current, None)),
        }
    }

    /// Updates the head that the process made.
    fn record(&self, scope: &Scope, p: u8, role: Role, volume: Volume, names: Names) -> (Step, Self) {
        let from = self.processes[usize::from(p)].head;
        let Head::Live(version, ..) = from else { unreachable!("it holds the volume") };
        let to = Head::Live(version + 1, true, names);
        self.sends(scope, p, role, Request::Head { volume, from: Some(from), to })
    }
}

/// Returns what a process that renames does once it knows the outcome of its request.
pub(super) fn answered(
    scope: &Scope,
    role: Role,
    process: &mut Process,
    request: Request,
    done: bool,
    volume: Volume,
    stage: Stage,
) -> At {
    let then = |stage| At::Renames(volume, stage);
    let first = scope.breaks(Broken::FreesOldFirst) && !process.name.stands_for(volume);
    match (stage, request) {
        (Stage::Records | Stage::Settles | Stage::GivesUp, Request::Head { to: made, .. }) => {
            if !done {
                // Another process has the volume.
                return At::Failed;
            }
            process.head = made;
            match stage {
                Stage::Records => then(after_record(scope, process, volume)),
                // It may have been an earlier renaming that was finished or dropped.
                _ => settled(scope, process, role, volume),
            }
        }
        (Stage::FreesOld, _) if first => then(Stage::Binds),
        (Stage::Binds, _) if done && first => then(Stage::Settles),
        (Stage::Binds, _) if done => then(Stage::FreesOld),
        // The name was changed since it was read.
        (Stage::Binds, _) => then(Stage::ReadsOld),
        // If the old name was changed, the head was replaced too.
        (Stage::FreesOld, _) => then(Stage::Settles),
        (Stage::Clears, _) => then(Stage::ReadsOld),
        (stage, _) => then(stage),
    }
}
