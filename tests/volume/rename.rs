//! A volume gets another name while it is open. At every instant a name is bound to it, whoever dies, takes it over
//! or deletes it meanwhile.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn::effect::Durability::Durable;
use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::volume::catalog;
use cairn::volume::{Entropy, Environment, OpenError, RenameError, Volume};
use uuid::Uuid;

use super::bench::{Bench, MIB, pattern, read};

/// An environment whose ids and nonces differ from those of all others.
fn env(bench: &Bench) -> Environment {
    static SEEDS: AtomicU64 = AtomicU64::new(1 << 41);
    let seed = SEEDS.fetch_add(1, Ordering::Relaxed);
    Environment { entropy: Entropy::seeded(seed), ..bench.env(MIB) }
}

async fn open(bench: &Bench, id: Uuid) -> Arc<Volume> {
    Volume::open(&env(bench), bench.options.clone(), id, true).await.expect("it can be opened")
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

/// A bench whose volume `disk` has flushed data, and the id of that.
async fn filled() -> (Bench, Uuid) {
    let bench = Bench::new(64 * MIB).await;
    let id = bound(&bench, "disk").await.unwrap();
    let volume = open(&bench, id).await;
    volume.write(0, pattern(1, 8192), Durable).await.unwrap();
    volume.close().await.unwrap();
    (bench, id)
}

/// Checks that the volume has the flushed data, and closes it.
async fn holds(volume: &Volume) {
    assert_eq!(read(volume, 0, 8192).await, pattern(1, 8192));
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_volume_gets_another_name_and_stays_what_it_is() {
    let (bench, id) = filled().await;
    let volume = open(&bench, id).await;
    for (from, to) in
        [("disk", "new"), ("new", "third"), ("third", "disk"), ("disk", "disk"), ("disk", "last")]
    {
        assert_eq!(volume.name(), from);
        catalog::rename(&volume, to).await.unwrap();
        assert_eq!((volume.name(), listed(&bench).await), (to.to_owned(), vec![(to.to_owned(), id)]));
        assert_eq!(catalog::unnamed(&env(&bench)).await.unwrap().len(), 0);
        volume.write(8192, pattern(2, 4096), Durable).await.unwrap();
    }
    holds(&volume).await;
    // The next holder knows the name, and the others are free for other volumes.
    let again = open(&bench, id).await;
    assert_eq!(again.name(), "last");
    holds(&again).await;
    let other = create(&bench, "disk").await.unwrap();
    assert_eq!(listed(&bench).await, [("disk".to_owned(), other), ("last".to_owned(), id)]);
    catalog::delete(&env(&bench), &bench.options, "disk", false).await.unwrap();
    catalog::delete(&env(&bench), &bench.options, "last", false).await.unwrap();
    only_free_names(&bench);
}

#[tokio::test(start_paused = true)]
async fn a_name_of_another_volume_is_refused_until_that_is_being_deleted() {
    let (bench, id) = filled().await;
    let other = create(&bench, "other").await.unwrap();
    let volume = open(&bench, id).await;
    let error = catalog::rename(&volume, "other").await.expect_err("it is taken");
    assert!(matches!(&error, RenameError::Name(OpenError::Exists(name)) if name == "other"), "{error}");
    for bad in ["", ".hidden", "a/b"] {
        let error = catalog::rename(&volume, bad).await.expect_err("it is no name");
        assert!(matches!(error, RenameError::Name(OpenError::BadName(_))), "{error}");
    }
    assert_eq!(listed(&bench).await, [("disk".to_owned(), id), ("other".to_owned(), other)]);

    // A deletion that hangs after it has marked the head.
    let gate = bench.fault.hold(Operation::Put, "name/other");
    let beside = bench.beside();
    let (deleter, options) = (env(&bench), bench.options.clone());
    let deletion = catalog::delete(&deleter, &options, "other", false);
    let renaming = async {
        gate.reached(1).await;
        let volume = open(&beside, id).await;
        catalog::rename(&volume, "other").await.unwrap();
        gate.release();
        holds(&volume).await;
    };
    let (deleted, ()) = tokio::join!(deletion, renaming);
    deleted.unwrap();
    assert_eq!(listed(&beside).await, [("other".to_owned(), id)]);
}

/// After a renaming that failed at any request, with or without effect, the volume has its old name, its new one or
/// both. After the next opening it has one.
#[tokio::test(start_paused = true)]
async fn a_renaming_that_is_cut_short_anywhere_is_finished_by_the_next_opening() {
    let mut both = 0;
    for effect in [Action::FailBefore(Failure::Rejected), Action::FailAfter(Failure::Rejected)] {
        for (requests, how) in (0..).flat_map(|requests| [(requests, 0), (requests, 1), (requests, 2)]) {
            let (bench, id) = filled().await;
            let volume = open(&bench, id).await;
            // Only the names: the head is sent again until it is stored.
            bench.fault.add(Rule::new(effect.clone()).prefix("name/").skip(requests).times(1));
            bench
                .fault
                .add(Rule::new(Action::FailBefore(Failure::Rejected)).prefix("name/").skip(requests + 1));
            let ended = catalog::rename(&volume, "new").await.is_ok();
            volume.abandon().await;
            bench.fault.clear();
            let names = listed(&bench).await;
            assert!(
                !names.is_empty() && names.iter().all(|(_, found)| *found == id),
                "{requests}: {names:?}"
            );
            assert_eq!(catalog::unnamed(&env(&bench)).await.unwrap().len(), 0, "{requests}");
            both += usize::from(names.len() == 2);
            match how {
                0 => {
                    let next = open(&bench, id).await;
                    catalog::finish_rename(&next).await.unwrap();
                    assert_eq!(listed(&bench).await, [(next.name(), id)], "{requests}");
                    assert!(next.name() == "new" || !ended);
                    holds(&next).await;
                    catalog::delete(&env(&bench), &bench.options, &next.name(), false).await.unwrap();
                }
                1 => catalog::delete(&env(&bench), &bench.options, &names[0].0, true).await.unwrap(),
                _ => catalog::delete_by_id(&env(&bench), &bench.options, id, true).await.unwrap(),
            }
            only_free_names(&bench);
            if ended && how == 2 {
                break;
            }
        }
    }
    assert!(both > 0, "it was never cut short between the two names");
}

/// A gateway hangs at any request of a renaming, and another one takes the volume over, finishes the renaming, and
/// gives the volume its old name again. What the first one does when it goes on changes nothing.
#[tokio::test(start_paused = true)]
async fn a_renaming_that_hangs_anywhere_changes_nothing_of_what_its_successor_did() {
    for operation in [Operation::Get, Operation::Put] {
        for nth in 0.. {
            let (bench, id) = filled().await;
            let volume = open(&bench, id).await;
            let gate = Gate::new();
            bench.fault.add(Rule::new(Action::Hold(gate.clone())).on(operation).skip(nth));
            let mut late = pin!(catalog::rename(&volume, "new"));
            let hangs = tokio::select! {
                biased;
                renamed = late.as_mut() => { renamed.unwrap(); false }
                () = gate.reached(1) => true,
            };
            if !hangs {
                assert!(nth > 2, "a renaming has some of these requests: {operation:?}");
                break;
            }
            let beside = bench.beside();
            let next = open(&beside, id).await;
            catalog::finish_rename(&next).await.unwrap();
            catalog::rename(&next, "disk").await.unwrap();
            gate.release();
            late.await.expect_err("it has lost the volume");
            volume.abandon().await;
            assert_eq!(listed(&beside).await, [("disk".to_owned(), id)], "{operation:?} {nth}");
            holds(&next).await;
            catalog::delete_by_id(&env(&beside), &beside.options, id, true).await.unwrap();
            only_free_names(&beside);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_while_the_new_name_is_bound_frees_it() {
    for by_id in [false, true] {
        let (bench, id) = filled().await;
        let volume = open(&bench, id).await;
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
        let (renamed, ()) = tokio::join!(catalog::rename(&volume, "new"), deletion);
        renamed.expect_err("the volume is gone");
        volume.abandon().await;
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
        let volume = open(&beside, id).await;
        catalog::rename(&volume, "new").await.unwrap();
        holds(&volume).await;
        gate.release();
    };
    let (deleted, ()) = tokio::join!(catalog::delete(&deleter, &options, "disk", true), renaming);
    assert!(matches!(deleted, Err(OpenError::NoSuchVolume(_))), "{deleted:?}");
    assert_eq!(listed(&beside).await, [("new".to_owned(), id)]);
    let volume = open(&beside, id).await;
    holds(&volume).await;
}

/// Without the head, only a look at all names finds those of a volume that was renamed.
#[tokio::test(start_paused = true)]
async fn a_renamed_volume_with_a_damaged_head_is_deleted_with_its_name() {
    for by_id in [false, true] {
        let (bench, id) = filled().await;
        let volume = open(&bench, id).await;
        catalog::rename(&volume, "new").await.unwrap();
        volume.close().await.unwrap();
        let key = format!("volume/{id}/head");
        let mut body = bench.memory.remove(&key).expect("a head").to_vec();
        body[40] ^= 1;
        bench.memory.insert(&key, body.into());
        let deleted = match by_id {
            false => catalog::delete(&env(&bench), &bench.options, "new", true).await,
            true => catalog::delete_by_id(&env(&bench), &bench.options, id, true).await,
        };
        deleted.unwrap();
        only_free_names(&bench);
    }
}
