//! Exhaustive check, at small scope, of how a clone is created and deleted while others delete its snapshot.
//!
//! A creator, two deleters of the clone and the gateway that holds the parent take their requests in any order.
//! Each of them may stop for ever at any request, which is a crash. The creator makes the identity, has the
//! snapshot pinned, makes the head, and binds the name if that is unchanged. A deleter marks the head, or
//! changes the name if there is none; then it deletes the head, and the identity last. The parent's gateway
//! deletes the snapshot if it has no pin, or if the head and the identity of the clone are gone. The numbers of
//! states are those of an independent implementation in another language.

use std::fmt;

use super::explore::{Machine, check, check_to_first};

/// A rule that a check can break, to show that the rule is needed and that breaking it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// The snapshot is not pinned.
    PinLeftOut,
    /// The clone counts as gone when it has no head.
    IdentityIgnored,
    /// A deleter that finds no head leaves the free name as it is.
    NameLeft,
    /// A deleter deletes the identity before it changes the name.
    IdentityFirst,
}

/// The size of a check.
#[derive(Clone, Copy, Debug)]
struct Scope {
    /// Number of deleters of the clone.
    deleters: usize,
    /// The rule that is broken, if any.
    broken: Option<Broken>,
}

impl Scope {
    fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Head {
    Absent,
    Live,
    Deleting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Name {
    /// As it was when the creator read it.
    Unchanged,
    Bound,
    /// Free, in a version that the creator did not read.
    Changed,
}

/// What the creator does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Creator {
    MakesIdentity,
    Pins,
    MakesHead,
    Binds,
    RemovesHead,
    RemovesIdentity,
    Succeeded,
    Failed,
}

/// What a deleter does next. It begins once the clone has been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Deleter {
    Marks,
    ChangesFreeName,
    ChangesName,
    DeletesHead,
    DeletesIdentity,
    Done,
}

/// What the gateway of the parent does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holder {
    ReadsTable,
    LooksForHead,
    LooksForIdentity,
    Deletes,
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    identity: bool,
    head: Head,
    name: Name,
    pin: bool,
    /// Whether the snapshot and its objects exist.
    snapshot: bool,
    creator: Creator,
    deleters: Vec<Deleter>,
    holder: Holder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Violation {
    /// A clone that has its name needs objects that are gone.
    Lost,
    /// Nobody deleted the clone, its creation was answered, and it has no name.
    Forgotten,
    /// A name is bound to a clone that is being deleted, and nobody will free it.
    Dangling,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Creator(Creator),
    Deleter(usize, Deleter),
    Holder(Holder),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Creator(does) => write!(f, "the creator: {does:?}"),
            Self::Deleter(number, does) => write!(f, "deleter {number}: {does:?}"),
            Self::Holder(does) => write!(f, "the gateway of the parent: {does:?}"),
        }
    }
}

impl State {
    fn creates(&self, scope: &Scope) -> Option<Self> {
        use Creator::{
            Binds, Failed, MakesHead, MakesIdentity, Pins, RemovesHead, RemovesIdentity, Succeeded,
        };
        let mut next = self.clone();
        next.creator = match self.creator {
            MakesIdentity => {
                next.identity = true;
                Pins
            }
            // Without the snapshot there is nothing to pin.
            Pins if !self.snapshot => RemovesIdentity,
            Pins => {
                next.pin = !scope.breaks(Broken::PinLeftOut);
                MakesHead
            }
            MakesHead => {
                next.head = Head::Live;
                Binds
            }
            Binds if self.name == Name::Unchanged => {
                next.name = Name::Bound;
                Succeeded
            }
            Binds => RemovesHead,
            RemovesHead => {
                next.head = Head::Absent;
                RemovesIdentity
            }
            RemovesIdentity => {
                next.identity = false;
                Failed
            }
            Succeeded | Failed => return None,
        };
        Some(next)
    }

    fn deletes(&self, scope: &Scope, number: usize) -> Option<Self> {
        use Deleter::{ChangesFreeName, ChangesName, DeletesHead, DeletesIdentity, Done, Marks};
        let mut next = self.clone();
        let identity_first = scope.breaks(Broken::IdentityFirst);
        next.deleters[number] = match self.deleters[number] {
            // It begins when a listing has shown the clone.
            Marks if !self.identity => return None,
            Marks => match self.head {
                Head::Absent => {
                    if identity_first {
                        next.identity = false;
                    }
                    ChangesFreeName
                }
                Head::Live | Head::Deleting => {
                    next.head = Head::Deleting;
                    ChangesName
                }
            },
            ChangesFreeName if self.name == Name::Bound => {
                // The creator was faster. Its head exists now, or another deleter has deleted it.
                if self.head == Head::Absent {
                    ChangesName
                } else {
                    next.head = Head::Deleting;
                    ChangesName
                }
            }
            ChangesFreeName => {
                if !scope.breaks(Broken::NameLeft) {
                    next.name = Name::Changed;
                }
                DeletesHead
            }
            ChangesName => {
                next.name = Name::Changed;
                DeletesHead
            }
            DeletesHead => {
                next.head = Head::Absent;
                DeletesIdentity
            }
            DeletesIdentity => {
                next.identity = false;
                Done
            }
            Done => return None,
        };
        Some(next)
    }

    fn holds(&self, scope: &Scope) -> Option<Self> {
        use Holder::{Deletes, Done, LooksForHead, LooksForIdentity, ReadsTable};
        let mut next = self.clone();
        next.holder = match self.holder {
            ReadsTable if self.pin => LooksForHead,
            ReadsTable => {
                next.snapshot = false;
                Done
            }
            LooksForHead if self.head != Head::Absent => ReadsTable,
            LooksForHead if scope.breaks(Broken::IdentityIgnored) => Deletes,
            LooksForHead => LooksForIdentity,
            LooksForIdentity if self.identity => ReadsTable,
            LooksForIdentity => Deletes,
            Deletes => {
                next.pin = false;
                next.snapshot = false;
                Done
            }
            Done => return None,
        };
        Some(next)
    }
}

impl Machine for State {
    type Scope = Scope;
    type Step = Step;
    type Violation = Violation;

    fn first(scope: &Scope) -> Self {
        Self {
            identity: false,
            head: Head::Absent,
            name: Name::Unchanged,
            pin: false,
            snapshot: true,
            creator: Creator::MakesIdentity,
            deleters: vec![Deleter::Marks; scope.deleters],
            holder: Holder::ReadsTable,
        }
    }

    fn steps(&self, scope: &Scope) -> Vec<(Step, Self)> {
        let creates = self.creates(scope).map(|next| (Step::Creator(self.creator), next));
        let holds = self.holds(scope).map(|next| (Step::Holder(self.holder), next));
        let deletes = (0..self.deleters.len()).filter_map(|number| {
            Some((Step::Deleter(number, self.deleters[number]), self.deletes(scope, number)?))
        });
        creates.into_iter().chain(deletes).chain(holds).collect()
    }

    fn violation(&self, _: &Scope) -> Option<Violation> {
        let is_named = self.name == Name::Bound;
        if is_named && self.head == Head::Live && !self.snapshot {
            return Some(Violation::Lost);
        }
        let untouched = self.deleters.iter().all(|deleter| *deleter == Deleter::Marks);
        if untouched && self.creator == Creator::Succeeded && !is_named {
            return Some(Violation::Forgotten);
        }
        let is_over = self.deleters.contains(&Deleter::Done);
        (is_over && is_named).then_some(Violation::Dangling)
    }
}

/// Checks that the unbroken rules have no violation, in exactly this number of states.
fn holds(deleters: usize, states: usize) {
    let found = check::<State>(&Scope { deleters, broken: None });
    assert!(found.violations.is_empty(), "{:#?}", found.violations);
    assert_eq!(found.states, states);
}

/// Checks that breaking a rule is found.
fn finds(broken: Broken, expected: Violation) {
    let found = check_to_first::<State>(&Scope { deleters: 1, broken: Some(broken) });
    assert!(found.violations.contains_key(&expected), "{broken:?}: {found:#?}");
}

#[test]
fn a_clone_that_has_its_name_has_its_snapshot() {
    holds(0, 15);
    holds(1, 134);
    holds(2, 992);
}

#[test]
fn a_snapshot_without_a_pin_is_deleted_under_its_clone() {
    finds(Broken::PinLeftOut, Violation::Lost);
}

#[test]
fn a_clone_without_a_head_is_not_gone_while_it_has_an_identity() {
    finds(Broken::IdentityIgnored, Violation::Lost);
}

#[test]
fn the_name_is_changed_before_the_identity_is_deleted() {
    finds(Broken::NameLeft, Violation::Dangling);
    finds(Broken::IdentityFirst, Violation::Lost);
}
