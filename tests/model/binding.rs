//! Exhaustive check, at small scope, of the binding of names to volumes. [`super::names`] is the machine;
//! this file owns what must hold in each of its states, and checks that breaking each rule is found.

use super::explore::{Machine, check};
use super::names::{At, Broken, Head, Role, Scope, State, Step, Volume};

/// A condition that must never occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Violation {
    /// A volume whose creation was answered, or that has answered flushes, has no name and is not being
    /// deleted.
    Nameless,
    /// A name is bound to a volume that is incomplete and not being deleted.
    Dangling,
    /// A deletion took a volume from a gateway that holds it.
    Torn,
    /// A creation or deletion left an object that no listing finds.
    Unfindable,
}

impl Machine for State {
    type Scope = Scope;
    type Step = Step;
    type Violation = Violation;

    fn first(scope: &Scope) -> Self {
        Self::first(scope)
    }

    fn steps(&self, scope: &Scope) -> Vec<(Step, Self)> {
        self.steps(scope)
    }

    fn violation(&self, scope: &Scope) -> Option<Violation> {
        let serves = |at: At, volume: Volume| at == At::Serves(volume);
        for (volume, disk) in (0_u8..).zip(&self.disks) {
            let bound = self.name.stands_for(volume);
            let made = (scope.roles.iter().zip(&self.processes))
                .any(|(role, p)| *role == Role::Creates(volume) && p.at == At::Done(Some(volume)));
            let live = matches!(disk.head, Head::Live(..));
            if live && !bound && (disk.committed || made) {
                return Some(Violation::Nameless);
            }
            let whole = disk.identity && disk.content && live;
            if bound && !whole && !matches!(disk.head, Head::Deleting(_)) {
                return Some(Violation::Dangling);
            }
            let deleting = matches!(disk.head, Head::Deleting(_));
            if deleting && self.processes.iter().any(|p| serves(p.at, volume)) {
                return Some(Violation::Torn);
            }
            let something = disk.content || disk.head != Head::Absent;
            if something && !disk.identity && leaves_nothing_late(scope) {
                return Some(Violation::Unfindable);
            }
        }
        None
    }
}

/// Whether no request can land on a volume that is already deleted. An object that lands then is left behind:
/// a duplicate of a creating PUT, or what the creator of a volume makes after that was deleted by its id.
fn leaves_nothing_late(scope: &Scope) -> bool {
    !scope.late_duplicates && !scope.roles.iter().any(|role| matches!(role, Role::DeletesById(_)))
}

fn scope(roles: &[Role], first_stands: bool, late_duplicates: bool, broken: Option<Broken>) -> Scope {
    Scope { roles: roles.to_vec(), first_stands, late_duplicates, broken }
}

const CREATE: Role = Role::Creates(0);
const CREATE_ANOTHER: Role = Role::Creates(1);
const DELETE: Role = Role::DeletesByName;
const DELETE_ID: Role = Role::DeletesById(0);
const OPEN: Role = Role::Opens;

/// Checks that the unbroken rules have no violation, in exactly this number of states.
fn holds(roles: &[Role], first_stands: bool, late_duplicates: bool, states: usize) {
    let scope = scope(roles, first_stands, late_duplicates, None);
    let found = check::<State>(&scope);
    assert!(found.violations.is_empty(), "{scope:?}: {:#?}", found.violations);
    assert_eq!(found.states, states, "{scope:?}");
}

/// Checks that breaking a rule is found as this violation.
fn finds(roles: &[Role], first_stands: bool, late_duplicates: bool, broken: Broken, expected: Violation) {
    let scope = scope(roles, first_stands, late_duplicates, Some(broken));
    let found = check::<State>(&scope);
    assert!(found.violations.contains_key(&expected), "{scope:?}: {found:#?}");
}

#[test]
fn a_name_always_stands_for_a_whole_volume_or_one_that_is_being_deleted() {
    holds(&[CREATE, CREATE_ANOTHER, OPEN], false, false, 504);
    holds(&[CREATE_ANOTHER, DELETE, DELETE], true, false, 5_316);
    holds(&[CREATE_ANOTHER, DELETE, DELETE, OPEN], true, false, 37_926);
    holds(&[CREATE, CREATE_ANOTHER, DELETE, OPEN], false, false, 6_728);
}

#[test]
fn also_when_requests_land_twice_and_answers_are_lost() {
    holds(&[CREATE_ANOTHER, DELETE, OPEN], true, true, 5_521);
    holds(&[CREATE, CREATE_ANOTHER, DELETE], false, true, 26_010);
}

#[test]
fn a_volume_may_be_deleted_by_its_id_while_it_is_being_made() {
    holds(&[CREATE, DELETE_ID, OPEN], false, false, 607);
    holds(&[CREATE, CREATE_ANOTHER, DELETE_ID], false, false, 6_386);
    holds(&[CREATE, DELETE, DELETE_ID], false, true, 23_488);
}

#[test]
fn a_late_deletion_that_unbinds_blindly_takes_the_name_of_a_new_volume() {
    finds(&[CREATE_ANOTHER, DELETE, DELETE], true, false, Broken::UnbindsBlindly, Violation::Nameless);
}

#[test]
fn unbinding_before_the_head_is_marked_leaves_a_live_volume_without_a_name() {
    finds(&[DELETE, OPEN], true, false, Broken::UnbindsFirst, Violation::Nameless);
}

#[test]
fn unbinding_after_the_head_is_gone_leaves_a_name_that_stands_for_nothing() {
    finds(&[DELETE], true, false, Broken::UnbindsLast, Violation::Dangling);
}

#[test]
fn a_name_whose_object_is_deleted_can_be_bound_by_a_request_from_before() {
    finds(&[CREATE, DELETE], false, true, Broken::DeletesName, Violation::Dangling);
}

#[test]
fn binding_blindly_takes_the_name_from_another_volume() {
    finds(&[CREATE, CREATE_ANOTHER], false, false, Broken::BindsBlindly, Violation::Nameless);
}

#[test]
fn a_name_is_bound_last() {
    finds(&[CREATE], false, false, Broken::BindsHalfMade, Violation::Dangling);
}

#[test]
fn a_creator_that_lost_the_name_must_not_bind_what_may_be_deleted() {
    finds(&[CREATE, DELETE_ID], false, false, Broken::BindsAgain, Violation::Dangling);
}

#[test]
fn a_name_is_only_taken_from_a_volume_that_is_being_deleted() {
    finds(&[CREATE_ANOTHER], true, false, Broken::TakesLiveName, Violation::Nameless);
}

#[test]
fn a_deletion_by_id_must_change_the_name_that_the_creator_will_bind() {
    finds(&[CREATE, DELETE_ID], false, false, Broken::LeavesNameFree, Violation::Dangling);
}

#[test]
fn a_deletion_by_id_takes_no_name_from_a_volume_that_it_did_not_mark() {
    finds(&[CREATE, DELETE_ID], false, false, Broken::UnbindsUnmarked, Violation::Nameless);
}

#[test]
fn what_a_listing_shows_is_removed_last() {
    finds(&[DELETE], true, false, Broken::IdentityFirst, Violation::Unfindable);
}

#[test]
fn the_mark_replaces_exactly_the_head_that_nobody_held() {
    finds(&[DELETE, OPEN], true, false, Broken::MarksBlindly, Violation::Torn);
}
