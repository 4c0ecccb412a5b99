//! A volume gets another name while nobody uses it. At every instant a name is bound to it, whoever dies, takes it
//! over or deletes it meanwhile. Whoever opens it by a name has it under that name alone.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairn::effect::Durability::Durable;
use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::volume::catalog::{self, Info};
use cairn::volume::{Entropy, Environment, OpenError, Volume};
use tokio::time::Instant;
use uuid::Uuid;

use super::bench::{Bench, MIB, pattern, read};

/// An environment whose ids and nonces differ from those of all others.
fn env(bench: &Bench) -> Environment {
    static SEEDS: AtomicU64 = AtomicU64::new(1 << 41);
    let seed = SEEDS.fetch_add(1, Ordering::Relaxed);
    Environment { entropy: Entropy::seeded(seed), ..bench.env(MIB) }
}

async fn try_open(bench: &Bench, name: &str) -> Result<Arc<Volume>, OpenError> {
    catalog::open(&env(bench), || bench.options.clone(), name, true).await
}

async fn open(bench: &Bench, name: &str) -> Arc<Volume> {
    try_open(bench, name).await.unwrap_or_else(|error| panic!("{name} can be opened: {error}"))
}

/// Renames a volume, whoever holds it.
async fn rename(bench: &Bench, from: &str, to: &str) -> Result<Info, OpenError> {
    catalog::rename(&env(bench), &bench.options, from, to, true).await
}

/// Opens a volume by any of its names. Returns it with its name.
async fn open_by_any(bench: &Bench, name: &str) -> (Arc<Volume>, String) {
    match try_open(bench, name).await {
        Ok(volume) => (volume, name.to_owned()),
        Err(OpenError::Renamed { from, to }) => {
            assert_eq!(from, name);
            assert_eq!(bound(bench, name).await, None, "nothing has the old name");
            assert_eq!(holder(bench, &to).await, None, "it is not held after that");
            (open(bench, &to).await, to)
        }
        Err(error) => panic!("{name}: {error}"),
    }
}

async fn holder(bench: &Bench, name: &str) -> Option<String> {
    catalog::info(&env(bench), name).await.expect("it is sound").holder
}

/// Flips a bit of an object.
fn damage(bench: &Bench, key: &str) {
    let mut body = bench.memory.remove(key).expect("the object exists").to_vec();
    body[40] ^= 1;
    bench.memory.insert(key, body.into());
}

async fn bound(bench: &Bench, name: &str) -> Option<Uuid> {
    match catalog::resolve(&env(bench), name).await {
        Ok(volume) => Some(volume),
        Err(OpenError::NoSuchVolume(_)) => None,
        Err(error) => panic!("{name}: {error}"),
    }
}

async fn create(bench: &Bench, name: &str) -> Result<Uuid, OpenError> {
    let made = catalog::create(&env(bench), &bench.options, name, MIB, catalog::ChunkBytes(4 * MIB)).await;
    made.map(|info| info.volume)
}

async fn listed(bench: &Bench) -> Vec<(String, Uuid)> {
    let all = catalog::volumes(&env(bench)).await.unwrap();
    all.into_iter().map(|listed| (listed.name, listed.found.expect("it is sound").volume)).collect()
}

/// Checks that of all names and volumes only free names are left.
fn only_free_names(bench: &Bench) {
    let left = bench.memory.objects().into_iter().filter(|(_, body)| body.len() != 52);
    assert_eq!(left.map(|(key, _)| key).collect::<Vec<_>>(), Vec::<String>::new());
}

async fn fill(bench: &Bench, name: &str) {
    let volume = open(bench, name).await;
    volume.write(0, pattern(1, 8192), Durable).await.unwrap();
    volume.close().await.unwrap();
}

/// A bench whose volume `disk` has flushed data, and the id of that.
async fn filled() -> (Bench, Uuid) {
    let bench = Bench::new(64 * MIB).await;
    let id = bound(&bench, "disk").await.unwrap();
    fill(&bench, "disk").await;
    (bench, id)
}

/// Checks that the volume has the flushed data, and closes it.
async fn holds(volume: &Arc<Volume>) {
    assert_eq!(read(volume, 0, 8192).await, pattern(1, 8192));
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_volume_gets_another_name_and_stays_what_it_is() {
    let (bench, id) = filled().await;
    for (from, to) in
        [("disk", "new"), ("new", "third"), ("third", "disk"), ("disk", "disk"), ("disk", "last")]
    {
        let renamed = rename(&bench, from, to).await.unwrap();
        assert_eq!((&*renamed.name, renamed.volume, renamed.holder), (to, id, None));
        assert_eq!(listed(&bench).await, [(to.to_owned(), id)]);
        assert_eq!(catalog::unnamed(&env(&bench)).await.unwrap().len(), 0);
        assert_eq!(holder(&bench, to).await, None, "others can open it at once");
    }
    // The next holder knows the name, and the others are free for other volumes.
    let volume = open(&bench, "last").await;
    assert_eq!(volume.name(), "last");
    holds(&volume).await;
    let other = create(&bench, "disk").await.unwrap();
    assert_eq!(listed(&bench).await, [("disk".to_owned(), other), ("last".to_owned(), id)]);
    catalog::delete(&env(&bench), &bench.options, "disk", false).await.unwrap();
    catalog::delete(&env(&bench), &bench.options, "last", false).await.unwrap();
    only_free_names(&bench);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_a_gateway_holds_is_not_renamed() {
    let (bench, id) = filled().await;
    let volume = open(&bench, "disk").await;
    let refused = catalog::rename(&env(&bench), &bench.options, "disk", "new", false).await;
    assert!(matches!(refused, Err(OpenError::Held { .. })), "{refused:?}");
    volume.write(8192, pattern(2, 4096), Durable).await.unwrap();
    assert_eq!(listed(&bench).await, [("disk".to_owned(), id)]);
    holds(&volume).await;
    catalog::rename(&env(&bench), &bench.options, "disk", "new", false).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_name_of_another_volume_is_refused_until_that_is_being_deleted() {
    let (bench, id) = filled().await;
    let other = create(&bench, "other").await.unwrap();
    let error = rename(&bench, "disk", "other").await.expect_err("it is taken");
    assert!(matches!(&error, OpenError::Exists(name) if name == "other"), "{error}");
    for bad in ["", ".hidden", "a/b"] {
        let error = rename(&bench, "disk", bad).await.expect_err("it is no name");
        assert!(matches!(error, OpenError::BadName(_)), "{error}");
    }
    assert_eq!(listed(&bench).await, [("disk".to_owned(), id), ("other".to_owned(), other)]);
    holds(&open(&bench, "disk").await).await;

    // A deletion that hangs after it has marked the head.
    let gate = bench.fault.hold(Operation::Put, "name/other");
    let beside = bench.beside();
    let (deleter, options) = (env(&bench), bench.options.clone());
    let deletion = catalog::delete(&deleter, &options, "other", false);
    let renaming = async {
        gate.reached(1).await;
        rename(&beside, "disk", "other").await.unwrap();
        gate.release();
        holds(&open(&beside, "other").await).await;
    };
    let (deleted, ()) = tokio::join!(deletion, renaming);
    deleted.unwrap();
    assert_eq!(listed(&beside).await, [("other".to_owned(), id)]);
}

/// What cannot be read is reported as it is, and not as a name that is absent or taken.
#[tokio::test(start_paused = true)]
async fn a_name_or_a_head_that_cannot_be_read_is_reported_as_such() {
    let (bench, _) = filled().await;
    let other = create(&bench, "other").await.unwrap();
    let key = format!("volume/{other}/head");
    bench.fault.add(Rule::new(Action::FailBefore(Failure::Rejected)).on(Operation::Get).prefix(&key));
    let error = rename(&bench, "disk", "other").await.expect_err("its head cannot be read");
    assert!(matches!(error, OpenError::Store(_)), "{error}");
    let error = create(&bench, "other").await.expect_err("its head cannot be read");
    assert!(matches!(error, OpenError::Store(_)), "{error}");
    bench.fault.clear();
    for damaged in ["other", "disk"] {
        let key = format!("name/{damaged}");
        damage(&bench, &key);
        let error = rename(&bench, "disk", "other").await.expect_err("the name is damaged");
        assert!(matches!(&error, OpenError::Damaged { key: found, .. } if *found == key), "{error}");
    }
}

/// A store with a slow clock would show every pause: nothing waits for an object that need not exist.
#[tokio::test(start_paused = true)]
async fn a_renaming_to_a_name_that_was_never_used_does_not_wait() {
    let (bench, _) = filled().await;
    let begun = Instant::now();
    rename(&bench, "disk", "new").await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
}

/// After a renaming that failed at any request, with or without effect, the volume has its old name, its new one or
/// both, and nobody holds it. After the next opening by name it has one.
#[tokio::test(start_paused = true)]
async fn a_renaming_that_is_cut_short_anywhere_is_finished_by_the_next_opening() {
    let mut both = 0;
    for effect in [Action::FailBefore(Failure::Rejected), Action::FailAfter(Failure::Rejected)] {
        for (requests, how) in (0..).flat_map(|requests| (0..5).map(move |how| (requests, how))) {
            let (bench, id) = filled().await;
            // Only the names: the head is sent again until it is stored.
            bench.fault.add(Rule::new(effect.clone()).prefix("name/").skip(requests).times(1));
            bench
                .fault
                .add(Rule::new(Action::FailBefore(Failure::Rejected)).prefix("name/").skip(requests + 1));
            let ended = rename(&bench, "disk", "new").await.is_ok();
            bench.fault.clear();
            let names = listed(&bench).await;
            assert!(
                !names.is_empty() && names.iter().all(|(_, found)| *found == id),
                "{requests}: {names:?}"
            );
            assert_eq!(catalog::unnamed(&env(&bench)).await.unwrap().len(), 0, "{requests}");
            assert_eq!(holder(&bench, &names[0].0).await, None, "{requests}");
            both += usize::from(names.len() == 2);
            let by = |which: &[(String, Uuid)]| which.last().expect("a name").0.clone();
            match how {
                0 | 1 => {
                    let (volume, name) =
                        open_by_any(&bench, &by(if how == 0 { &names[..1] } else { &names })).await;
                    assert_eq!(listed(&bench).await, [(name.clone(), id)], "{requests}");
                    assert!(volume.name() == name && (name == "new" || !ended));
                    holds(&volume).await;
                    catalog::delete(&env(&bench), &bench.options, &name, false).await.unwrap();
                }
                // The same call again succeeds if it can be repeated.
                2 => {
                    let again = rename(&bench, &names[0].0, "new").await.unwrap();
                    assert_eq!((again.volume, listed(&bench).await), (id, vec![("new".to_owned(), id)]));
                    catalog::delete(&env(&bench), &bench.options, "new", false).await.unwrap();
                }
                3 => catalog::delete(&env(&bench), &bench.options, &names[0].0, true).await.unwrap(),
                _ => catalog::delete_by_id(&env(&bench), &bench.options, id, true).await.unwrap(),
            }
            only_free_names(&bench);
            if ended && how == 4 {
                break;
            }
        }
    }
    assert!(both > 0, "it was never cut short between the two names");
}

/// An opening that cannot finish a renaming fails, and leaves the volume to others.
#[tokio::test(start_paused = true)]
async fn an_opening_that_cannot_finish_a_renaming_fails_and_holds_nothing() {
    let (bench, id) = filled().await;
    let refuse = || Rule::new(Action::FailBefore(Failure::Rejected)).on(Operation::Put).prefix("name/");
    bench.fault.add(refuse());
    rename(&bench, "disk", "new").await.expect_err("no name can be bound");
    let error = try_open(&bench, "disk").await.expect_err("the renaming cannot be finished");
    assert!(matches!(error, OpenError::Store(_)), "{error}");
    assert_eq!(holder(&bench, "disk").await, None);
    bench.fault.clear();
    let error = try_open(&bench, "disk").await.expect_err("it has another name now");
    assert!(matches!(&error, OpenError::Renamed { from, to } if from == "disk" && to == "new"), "{error}");
    assert_eq!(listed(&bench).await, [("new".to_owned(), id)]);
    holds(&open(&bench, "new").await).await;
}

/// If another volume has the new name by now, the volume keeps its own, and can be renamed again.
#[tokio::test(start_paused = true)]
async fn a_renaming_that_was_cut_short_is_dropped_if_the_name_is_taken() {
    let (bench, id) = filled().await;
    bench.fault.add(Rule::new(Action::FailBefore(Failure::Rejected)).on(Operation::Put).prefix("name/"));
    rename(&bench, "disk", "new").await.expect_err("no name can be bound");
    bench.fault.clear();
    let other = create(&bench, "new").await.unwrap();
    holds(&open(&bench, "disk").await).await;
    assert_eq!(listed(&bench).await, [("disk".to_owned(), id), ("new".to_owned(), other)]);
    catalog::delete(&env(&bench), &bench.options, "new", false).await.unwrap();
    holds(&open(&bench, "disk").await).await;
    rename(&bench, "disk", "third").await.unwrap();
    assert_eq!(listed(&bench).await, [("third".to_owned(), id)]);
}

/// A process hangs at any request of a renaming, and a gateway takes the volume over, which finishes the renaming,
/// and gives the volume its old name again. What the first one does when it goes on changes nothing.
#[tokio::test(start_paused = true)]
async fn a_renaming_that_hangs_anywhere_changes_nothing_of_what_its_successor_did() {
    let mut lost = 0;
    for operation in [Operation::Get, Operation::Put] {
        for nth in 0.. {
            let (bench, id) = filled().await;
            let gate = Gate::new();
            bench.fault.add(Rule::new(Action::Hold(gate.clone())).on(operation).skip(nth));
            let (renamer, options) = (env(&bench), bench.options.clone());
            let mut late = pin!(catalog::rename(&renamer, &options, "disk", "new", false));
            let hangs = tokio::select! {
                biased;
                renamed = late.as_mut() => { renamed.unwrap(); false }
                () = gate.reached(1) => true,
            };
            if !hangs {
                assert!(nth > 4, "a renaming has some of these requests: {operation:?}");
                break;
            }
            let beside = bench.beside();
            let names = listed(&beside).await;
            let (next, name) = open_by_any(&beside, &names[0].0).await;
            assert_eq!(listed(&beside).await, [(name.clone(), id)], "{operation:?} {nth}");
            next.hand_on().await.unwrap();
            rename(&beside, &name, "disk").await.unwrap();
            let next = open(&beside, "disk").await;
            gate.release();
            match late.await {
                // It hung only after the renaming.
                Ok(_) => assert_eq!(names, [("new".to_owned(), id)], "{operation:?} {nth}"),
                Err(_) => lost += 1,
            }
            assert_eq!(listed(&beside).await, [("disk".to_owned(), id)], "{operation:?} {nth}");
            holds(&next).await;
            catalog::delete_by_id(&env(&beside), &beside.options, id, true).await.unwrap();
            only_free_names(&beside);
        }
    }
    assert!(lost > 5, "{lost} renamings lost the volume");
}

/// Of two renamings that found the volume under the same name, one succeeds.
#[tokio::test(start_paused = true)]
async fn of_two_renamings_at_once_one_fails_and_says_what_the_other_did() {
    for operation in [Operation::Get, Operation::Put] {
        for nth in 1.. {
            let (bench, id) = filled().await;
            let gate = Gate::new();
            bench.fault.add(Rule::new(Action::Hold(gate.clone())).on(operation).skip(nth));
            let mut first = pin!(rename(&bench, "disk", "first"));
            let hangs = tokio::select! {
                biased;
                renamed = first.as_mut() => { renamed.unwrap(); false }
                () = gate.reached(1) => true,
            };
            if !hangs {
                break;
            }
            let beside = bench.beside();
            let names = listed(&beside).await;
            let second = rename(&beside, &names[0].0, "second").await;
            gate.release();
            let first = first.await;
            let now = listed(&beside).await;
            assert!(matches!(&now[..], [(_, found)] if *found == id), "{operation:?} {nth}: {now:?}");
            match (&first, &second) {
                // The first one hung after it was done.
                (Ok(_), Ok(_)) => assert_eq!(names, [("first".to_owned(), id)], "{operation:?} {nth}"),
                (Ok(_), Err(OpenError::Renamed { to, .. })) => assert_eq!(to, "first"),
                (Err(OpenError::Renamed { to, .. }), Ok(_)) => assert_eq!(to, "second"),
                (Err(OpenError::Lost(_) | OpenError::NoSuchVolume(_)), Ok(_)) => {}
                (Err(OpenError::Lost(_)), Err(OpenError::Renamed { to, .. })) => assert_eq!(to, "first"),
                other => panic!("{operation:?} {nth}: {other:?}"),
            }
            holds(&open(&beside, &now[0].0).await).await;
        }
    }
}

/// Whoever looked up a name before the volume got another one takes the volume from nobody.
#[tokio::test(start_paused = true)]
async fn an_opener_with_an_old_name_takes_the_volume_from_nobody() {
    let (bench, _) = filled().await;
    let gate = bench.fault.hold(Operation::Get, "/head");
    let beside = bench.beside();
    let meanwhile = async {
        gate.reached(1).await;
        rename(&beside, "disk", "new").await.unwrap();
        let volume = open(&beside, "new").await;
        gate.release();
        volume
    };
    let (late, volume) = tokio::join!(try_open(&bench, "disk"), meanwhile);
    let late = late.expect_err("the volume has another name");
    assert!(matches!(&late, OpenError::Renamed { from, to } if from == "disk" && to == "new"), "{late}");
    volume.write(8192, pattern(2, 4096), Durable).await.unwrap();
    holds(&volume).await;
}

/// The answer to a creator's request for the name is lost, and the volume is opened and renamed before the request
/// comes again. The creator then finds another version of the name, but the volume had it.
#[tokio::test(start_paused = true)]
async fn a_creator_whose_answer_was_lost_keeps_the_volume_that_was_renamed_since() {
    let (bench, _) = filled().await;
    let gate = Gate::new();
    for action in [Action::HoldAnswer(gate.clone()), Action::FailAfter(Failure::PreconditionFailed)] {
        bench.fault.add(Rule::new(action).on(Operation::Put).prefix("name/made").times(1));
    }
    let beside = bench.beside();
    let meanwhile = async {
        gate.reached(1).await;
        let id = bound(&beside, "made").await.expect("the request has taken effect");
        fill(&beside, "made").await;
        rename(&beside, "made", "renamed").await.unwrap();
        gate.release();
        id
    };
    let (created, id) = tokio::join!(create(&bench, "made"), meanwhile);
    assert_eq!(created.expect("the volume was created"), id);
    assert_eq!(bound(&beside, "made").await, None);
    assert_eq!(bound(&beside, "renamed").await, Some(id));
    assert_eq!(catalog::unnamed(&env(&beside)).await.unwrap().len(), 0);
    holds(&open(&beside, "renamed").await).await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_while_the_new_name_is_bound_frees_it() {
    for by_id in [false, true] {
        let (bench, id) = filled().await;
        let gate = bench.fault.hold(Operation::Put, "name/new");
        let beside = bench.beside();
        let deletion = async {
            gate.reached(1).await;
            let env = env(&beside);
            let deleted = match by_id {
                false => catalog::delete(&env, &beside.options, "disk", true).await,
                true => catalog::delete_by_id(&env, &beside.options, id, true).await,
            };
            gate.release();
            deleted.unwrap();
        };
        let (renamed, ()) = tokio::join!(rename(&bench, "disk", "new"), deletion);
        renamed.expect_err("the volume is gone");
        only_free_names(&beside);
    }
}

/// A deletion that read the name before the volume got another one must not delete it.
#[tokio::test(start_paused = true)]
async fn a_volume_that_got_another_name_is_not_deleted_under_the_old_one() {
    let (bench, id) = filled().await;
    let gate = bench.fault.hold(Operation::Get, "/head");
    let beside = bench.beside();
    let (deleter, options) = (env(&bench), bench.options.clone());
    let renaming = async {
        gate.reached(1).await;
        rename(&beside, "disk", "new").await.unwrap();
        gate.release();
    };
    let (deleted, ()) = tokio::join!(catalog::delete(&deleter, &options, "disk", true), renaming);
    assert!(matches!(deleted, Err(OpenError::NoSuchVolume(_))), "{deleted:?}");
    assert_eq!(listed(&beside).await, [("new".to_owned(), id)]);
    holds(&open(&beside, "new").await).await;
}

/// Without the head, only a look at all names finds those of a volume that was renamed.
#[tokio::test(start_paused = true)]
async fn a_renamed_volume_with_a_damaged_head_is_deleted_with_its_name() {
    for by_id in [false, true] {
        let (bench, id) = filled().await;
        rename(&bench, "disk", "new").await.unwrap();
        damage(&bench, &format!("volume/{id}/head"));
        let deleted = match by_id {
            false => catalog::delete(&env(&bench), &bench.options, "new", true).await,
            true => catalog::delete_by_id(&env(&bench), &bench.options, id, true).await,
        };
        deleted.unwrap();
        only_free_names(&bench);
    }
}
