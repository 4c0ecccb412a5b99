//! Exhaustive check, at small scope, of the binding of names to volumes. [`super::names`] is the machine;
//! this file owns what must hold in each of its states, and checks that breaking each rule is found.

use super::explore::{Machine, check};
use super::names::{At, Broken, FIRST, Head, Name, Process, Role, Scope, State, Step, Volume};

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
    /// A name is bound to a live volume whose head does not record it.
    Unrecorded,
    /// A gateway serves a volume under a name that is not bound to it.
    Misnamed,
    /// Two renamings that found a volume under the same name both succeeded.
    RenamedTwice,
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
            let names: Vec<Name> = (0..)
                .zip(&self.names)
                .filter(|(_, name)| name.stands_for(volume))
                .map(|(name, _)| name)
                .collect();
            let bound = !names.is_empty();
            let made = (scope.roles.iter().zip(&self.processes))
                .any(|(role, p)| *role == Role::Creates(volume) && p.at == At::Done(Some(volume)));
            let live = matches!(disk.head, Head::Live(..));
            if live && !bound && (disk.committed || made) {
                return Some(Violation::Nameless);
            }
            let whole = disk.identity && disk.content && live;
            if bound && !whole && !matches!(disk.head, Head::Deleting(..)) {
                return Some(Violation::Dangling);
            }
            if let Head::Live(_, _, (current, next)) = disk.head
                && names.iter().any(|name| *name != current && Some(*name) != next)
            {
                return Some(Violation::Unrecorded);
            }
            // Whoever has lost the volume to another serves nothing.
            let holds = |p: &Process| serves(p.at, volume) && p.head == disk.head;
            if !names.contains(&FIRST) && self.processes.iter().any(holds) {
                return Some(Violation::Misnamed);
            }
            let deleting = matches!(disk.head, Head::Deleting(..));
            if deleting && !scope.takeover && self.processes.iter().any(|p| serves(p.at, volume)) {
                return Some(Violation::Torn);
            }
            let something = disk.content || disk.head != Head::Absent;
            if something && !disk.identity && leaves_nothing_late(scope) {
                return Some(Violation::Unfindable);
            }
        }
        let renamed = (scope.roles.iter().zip(&self.processes))
            .filter(|(role, p)| matches!(role, Role::Renames(FIRST, _)) && matches!(p.at, At::Done(_)));
        (gives_the_name_once(scope) && renamed.count() > 1).then_some(Violation::RenamedTwice)
    }
}

/// Whether a volume that has lost the first name never gets it again, nor any other volume, and no two processes give
/// it the same name.
fn gives_the_name_once(scope: &Scope) -> bool {
    let gives_back = |role: &Role| matches!(role, Role::Creates(_) | Role::Renames(_, FIRST));
    !scope.roles.iter().any(gives_back) && !scope.roles.windows(2).any(|pair| pair[0] == pair[1])
}

/// Whether no request can land on a volume that is already deleted. An object that lands then is left behind:
/// a duplicate of a creating PUT, or what the creator of a volume makes after that was deleted by its id.
fn leaves_nothing_late(scope: &Scope) -> bool {
    !scope.late_duplicates && !scope.roles.iter().any(|role| matches!(role, Role::DeletesById(_)))
}

fn scope(roles: &[Role], first_stands: bool, late_duplicates: bool, broken: Option<Broken>) -> Scope {
    Scope { roles: roles.to_vec(), first_stands, late_duplicates, takeover: false, broken }
}

const CREATE: Role = Role::Creates(0);
const CREATE_ANOTHER: Role = Role::Creates(1);
const DELETE: Role = Role::DeletesByName(0);
const DELETE_NEW: Role = Role::DeletesByName(1);
const DELETE_ID: Role = Role::DeletesById(0);
const DELETE_ANOTHER_ID: Role = Role::DeletesById(1);
const OPEN: Role = Role::Opens;
const RENAME: Role = Role::Renames(0, 1);
const RENAME_BACK: Role = Role::Renames(1, 0);
const RENAME_ELSE: Role = Role::Renames(0, 2);

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
    holds(&[CREATE, CREATE_ANOTHER, OPEN], false, false, 522);
    holds(&[CREATE_ANOTHER, DELETE, DELETE], true, false, 4_525);
    holds(&[CREATE_ANOTHER, DELETE, DELETE, OPEN], true, false, 32_031);
    holds(&[CREATE, CREATE_ANOTHER, DELETE, OPEN], false, false, 6_824);
}

#[test]
fn also_when_requests_land_twice_and_answers_are_lost() {
    holds(&[CREATE_ANOTHER, DELETE, OPEN], true, true, 6_141);
    holds(&[CREATE, CREATE_ANOTHER, DELETE], false, true, 17_378);
}

#[test]
fn a_volume_may_be_deleted_by_its_id_while_it_is_being_made() {
    holds(&[CREATE, DELETE_ID, OPEN], false, false, 669);
    holds(&[CREATE, CREATE_ANOTHER, DELETE_ID], false, false, 7_587);
    holds(&[CREATE, DELETE, DELETE_ID], false, true, 19_012);
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

#[test]
fn a_creator_binds_no_name_over_a_volume_that_is_being_deleted() {
    holds(&[CREATE_ANOTHER, DELETE, DELETE_ANOTHER_ID], true, false, 3_554);
    finds(
        &[CREATE_ANOTHER, DELETE, DELETE_ANOTHER_ID],
        true,
        false,
        Broken::BindsOverDeleting,
        Violation::Dangling,
    );
}

/// Checks that the unbroken rules have no violation with renamings, in exactly this number of states. Whoever
/// deletes takes the volume from whoever holds it.
fn renaming_holds(roles: &[Role], late_duplicates: bool, states: usize) {
    let scope = Scope { takeover: true, ..scope(roles, true, late_duplicates, None) };
    let found = check::<State>(&scope);
    assert!(found.violations.is_empty(), "{scope:?}: {:#?}", found.violations);
    assert_eq!(found.states, states, "{scope:?}");
}

/// Checks that breaking a rule of renamings is found as this violation.
fn renaming_finds(roles: &[Role], broken: Broken, expected: Violation) {
    let scope = Scope { takeover: true, ..scope(roles, true, false, Some(broken)) };
    let found = check::<State>(&scope);
    assert!(found.violations.contains_key(&expected), "{scope:?}: {found:#?}");
}

#[test]
fn a_volume_that_is_renamed_always_has_a_name_and_its_head_records_each() {
    renaming_holds(&[RENAME], false, 16);
    renaming_holds(&[RENAME, RENAME], false, 1_450);
    renaming_holds(&[RENAME, RENAME_BACK], true, 3_678);
    renaming_holds(&[RENAME, RENAME_BACK, RENAME_ELSE], false, 39_337);
    renaming_holds(&[RENAME, RENAME_BACK, OPEN], false, 36_252);
    renaming_holds(&[RENAME, RENAME_ELSE, OPEN], false, 109_537);
}

#[test]
fn also_while_it_is_deleted() {
    renaming_holds(&[RENAME, DELETE, DELETE_NEW], false, 8_296);
    renaming_holds(&[RENAME, DELETE_ID, DELETE], false, 17_078);
    renaming_holds(&[RENAME, RENAME_BACK, DELETE_ID], true, 1_334_858);
    renaming_holds(&[RENAME, RENAME_ELSE, DELETE_ID, DELETE_NEW], false, 983_110);
    renaming_holds(&[RENAME, DELETE_ID], true, 5_255);
}

#[test]
fn also_while_another_volume_is_created_under_the_old_name() {
    renaming_holds(&[RENAME, CREATE_ANOTHER, RENAME], false, 14_047);
    renaming_holds(&[RENAME, CREATE_ANOTHER, RENAME_BACK], false, 4_222);
    renaming_holds(&[RENAME, CREATE_ANOTHER, DELETE], false, 5_872);
    renaming_holds(&[RENAME, CREATE_ANOTHER, DELETE_ID], false, 15_482);
    renaming_holds(&[RENAME, CREATE_ANOTHER, RENAME_BACK, DELETE], false, 408_970);
    renaming_holds(&[RENAME, CREATE_ANOTHER, RENAME_BACK, DELETE_ANOTHER_ID], false, 175_160);
    renaming_holds(&[RENAME, CREATE_ANOTHER, RENAME_BACK], true, 107_266);
}

#[test]
fn a_creator_whose_answer_was_lost_keeps_the_volume_that_was_renamed_since() {
    let renamed = [CREATE, RENAME];
    holds(&renamed, false, true, 202);
    holds(&[CREATE, RENAME, CREATE_ANOTHER], false, true, 14_082);
    holds(&[CREATE, RENAME, DELETE_NEW], false, true, 1_240);
    finds(&renamed, false, true, Broken::DeletesRenamed, Violation::Dangling);
}

#[test]
fn freeing_the_old_name_first_leaves_a_volume_without_a_name() {
    renaming_finds(&[RENAME], Broken::FreesOldFirst, Violation::Nameless);
}

#[test]
fn a_new_name_is_recorded_before_it_is_bound() {
    renaming_finds(&[RENAME], Broken::Unrecorded, Violation::Unrecorded);
    renaming_finds(&[RENAME, DELETE_ID], Broken::Unrecorded, Violation::Dangling);
}

#[test]
fn names_are_read_before_the_head_proves_that_the_volume_is_held() {
    renaming_finds(&[RENAME, RENAME_BACK], Broken::ReadsOldLate, Violation::Nameless);
}

#[test]
fn a_deletion_frees_the_name_that_the_volume_is_getting() {
    renaming_finds(&[RENAME, DELETE], Broken::LeavesNextName, Violation::Dangling);
}

#[test]
fn a_renaming_that_was_cut_short_is_finished_first() {
    renaming_finds(&[RENAME, RENAME_ELSE], Broken::ForgetsNextName, Violation::Unrecorded);
}

#[test]
fn whoever_opens_a_volume_finishes_its_renaming_before_it_is_used() {
    renaming_holds(&[RENAME, OPEN], true, 2_641);
    renaming_holds(&[RENAME, OPEN, OPEN], false, 57_924);
    renaming_holds(&[RENAME, OPEN, DELETE], false, 17_201);
    renaming_holds(&[RENAME, OPEN, CREATE_ANOTHER], false, 4_394);
    renaming_finds(&[RENAME, OPEN], Broken::LeavesRenaming, Violation::Misnamed);
}

#[test]
fn nobody_takes_a_volume_that_has_lost_the_name_by_which_it_was_found() {
    renaming_finds(&[RENAME, OPEN], Broken::OpensByOldName, Violation::Misnamed);
    renaming_holds(&[RENAME, RENAME_ELSE], true, 5_193);
    renaming_finds(&[RENAME, RENAME_ELSE], Broken::RenamesOn, Violation::RenamedTwice);
}
