//! The steps of a deletion, as part of the machine in [`super::names`].
//!
//! A deletion marks the head, frees the names of the volume, and then removes its objects.

use super::names::{
    At, Binding, Broken, Head, Name, Part, Process, Request, Role, Scope, State, Step, Volume,
};
use super::renames::Stage;

impl State {
    /// Reads the head. If it is live and not held, replaces it by one that says that the volume is being
    /// deleted.
    pub(super) fn mark(&self, scope: &Scope, p: u8, role: Role, volume: Volume) -> (Step, Self) {
        let next = self.after_mark(scope, volume);
        match self.disk(volume).head {
            // The volume has got another name since it was found.
            Head::Live(_, _, (name, next)) if matches!(role, Role::DeletesByName(by) if by != name && Some(by) != next) => {
                self.reads(p, role, |now| now.at = At::Failed)
            }
            Head::Live(version, held, names) if !held || scope.takeover => {
                let from = (!scope.breaks(Broken::MarksBlindly)).then_some(Head::Live(version, held, names));
                let to = Head::Deleting(version + 1, names);
                self.sends(scope, p, role, Request::Head { volume, from, to })
            }
            Head::Live(..) => self.reads(p, role, |now| now.at = At::Failed),
            // An earlier deletion was interrupted, or a creation before it made the head.
            Head::Deleting(..) => self.reads(p, role, |now| now.at = next),
            Head::Absent if matches!(role, Role::DeletesById(_)) => {
                let unfenced = scope.breaks(Broken::UnbindsUnmarked);
                self.reads(p, role, |now| now.at = if unfenced { next } else { At::Fences(volume) })
            }
            // By name: another deletion has removed the volume, and had taken the name before.
            Head::Absent => self.reads(p, role, |now| now.at = At::Failed),
        }
    }

    fn after_mark(&self, scope: &Scope, volume: Volume) -> At {
        if scope.breaks(Broken::UnbindsFirst) || scope.breaks(Broken::UnbindsLast) {
            removal(scope, volume, None)
        } else {
            At::Unbinds(volume)
        }
    }

    /// Takes a name from a volume that is being deleted, so that the process can bind it, and reads it again.
    pub(super) fn clear(&self, scope: &Scope, p: u8, role: Role, name: Name) -> (Step, Self) {
        match self.name(name) {
            found @ Binding::Bound(version, of) if matches!(self.disk(of).head, Head::Deleting(..)) => {
                let to = Binding::Free(version + 1);
                self.sends(scope, p, role, Request::Name { name, from: Some(found), to })
            }
            _ => self.reads(p, role, cleared),
        }
    }

    /// Frees a name if it is bound to this volume. One that `fences` changes a free name too: a process that
    /// is still to bind it read it before, and thus comes too late.
    pub(super) fn unbind(
        &self,
        scope: &Scope,
        p: u8,
        role: Role,
        name: Name,
        volume: Volume,
        fences: bool,
    ) -> (Step, Self) {
        let now = self.name(name);
        let to = if scope.breaks(Broken::DeletesName) {
            Binding::Absent
        } else {
            Binding::Free(now.version() + 1)
        };
        let from = (!scope.breaks(Broken::UnbindsBlindly)).then_some(now);
        match now {
            now if now.stands_for(volume) => self.sends(scope, p, role, Request::Name { name, from, to }),
            Binding::Absent | Binding::Free(_) if fences => {
                self.sends(scope, p, role, Request::Name { name, from, to })
            }
            _ => self.reads(p, role, |now| now.at = after_unbinding(scope, now.at, volume)),
        }
    }

    /// Frees the names that the marked head records. A volume that was never renamed has the first only, which
    /// is free by then.
    pub(super) fn unbind_recorded(
        &self,
        scope: &Scope,
        p: u8,
        role: Role,
        volume: Volume,
        next: bool,
    ) -> (Step, Self) {
        let recorded = match self.disk(volume).head {
            Head::Deleting(_, (name, _)) if !next => Some(name).filter(|name| *name != Self::name_of(role)),
            Head::Deleting(_, (_, name)) => name.filter(|_| !scope.breaks(Broken::LeavesNextName)),
            Head::Live(..) | Head::Absent => None,
        };
        match recorded {
            Some(name) => self.unbind(scope, p, role, name, volume, true),
            None => self.reads(p, role, |now| now.at = after_unbinding(scope, now.at, volume)),
        }
    }
}

/// A name may be bound now: reads it again.
pub(super) fn cleared(process: &mut Process) {
    process.at = match process.at {
        At::Renames(volume, _) => At::Renames(volume, Stage::ReadsOld),
        _ => At::Begins,
    };
}

/// What a deletion does after it has freed a name.
pub(super) fn after_unbinding(scope: &Scope, at: At, volume: Volume) -> At {
    match at {
        At::Unbinds(_) if scope.breaks(Broken::UnbindsFirst) => At::Marks(volume),
        At::Unbinds(_) if scope.breaks(Broken::UnbindsLast) => At::Done(Some(volume)),
        At::Unbinds(_) => At::UnbindsRecorded(volume, false),
        At::UnbindsRecorded(_, false) => At::UnbindsRecorded(volume, true),
        _ => removal(scope, volume, None),
    }
}

/// Returns what a deletion removes after a part. What a listing shows is removed last.
pub(super) fn removal(scope: &Scope, volume: Volume, after: Option<Part>) -> At {
    let order = if scope.breaks(Broken::IdentityFirst) {
        [Part::Identity, Part::Content, Part::Head]
    } else {
        [Part::Content, Part::Head, Part::Identity]
    };
    let place = after.map_or(0, |part| order.iter().position(|p| *p == part).expect("a part") + 1);
    match order.get(place) {
        Some(part) => At::Removes(volume, *part),
        None if scope.breaks(Broken::UnbindsLast) => At::Unbinds(volume),
        None => At::Done(Some(volume)),
    }
}
