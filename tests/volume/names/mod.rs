//! A name is always bound to a complete volume or to one that is being deleted, whatever is created, deleted
//! and opened concurrently.

mod damaged;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use cairn::effect::Durability::Durable;
use cairn::store::fault::{Action, Failure, Rule};
use cairn::store::{Condition, Operation, Store as _};
use cairn::volume::catalog::{self, Progress};
use cairn::volume::{Entropy, Environment, OpenError, Volume};
use uuid::Uuid;

use super::bench::{Bench, MIB, bytes_of, pattern, read};

const CHUNK: u64 = 4 * MIB;

/// An environment whose ids and nonces differ from those of all others.
fn env(bench: &Bench) -> Environment {
    static SEEDS: AtomicU64 = AtomicU64::new(1 << 40);
    let seed = SEEDS.fetch_add(1, Ordering::Relaxed);
    Environment { entropy: Entropy::seeded(seed), ..bench.env(MIB) }
}

async fn create(bench: &Bench, name: &str) -> Result<catalog::Info, OpenError> {
    catalog::create(&env(bench), &bench.options, name, MIB, catalog::ChunkBytes(CHUNK)).await
}

async fn delete(bench: &Bench, name: &str, takeover: bool) -> Result<(), OpenError> {
    catalog::delete(&env(bench), &bench.options, name, takeover).await
}

async fn delete_id(bench: &Bench, id: Uuid, takeover: bool) -> Result<(), OpenError> {
    catalog::delete_by_id(&env(bench), &bench.options, id, takeover).await
}

async fn id(bench: &Bench) -> Uuid {
    catalog::resolve(&bench.env(MIB), "disk").await.expect("the name stands")
}

/// Opens the volume, writes and flushes data, and closes it.
async fn fill(bench: &mut Bench, seed: u64) {
    let volume = bench.open().await;
    volume.write(0, pattern(seed, 8192), Durable).await.unwrap();
    volume.close().await.unwrap();
}

/// Checks that the volume with the name `disk` contains the flushed data.
async fn holds(bench: &mut Bench, seed: u64) {
    let volume = bench.open().await;
    assert_eq!(read(&volume, 0, 8192).await, pattern(seed, 8192));
    volume.close().await.unwrap();
}

/// Removes all volumes without a name by their ids. Returns their number.
async fn remove_unnamed(bench: &Bench) -> usize {
    let unnamed =
        catalog::unnamed(&bench.env(MIB)).await.expect("a listing never fails because of one volume");
    for volume in &unnamed {
        delete_id(bench, volume.volume, false).await.unwrap_or_else(|e| panic!("{volume:?}: {e}"));
    }
    assert_eq!(catalog::unnamed(&bench.env(MIB)).await.unwrap().len(), 0);
    unnamed.len()
}

/// Checks that only free names are left in the store.
fn only_free_names(bench: &Bench) {
    let left: Vec<_> = bench.memory.objects().into_iter().filter(|(_, body)| body.len() != 52).collect();
    assert!(left.is_empty(), "{:?}", left.iter().map(|(key, _)| key).collect::<Vec<_>>());
}

/// A deletion may remove records and seals while an opening reads the journal. The opening must not take this
/// for the end of the journal. Nor must it when the creator's request for the head lands again, late.
#[tokio::test(start_paused = true)]
async fn no_volume_is_opened_that_is_deleted_meanwhile() {
    for head_returns in [false, true] {
        let mut refused = 0;
        for operation in [Operation::Get, Operation::Put, Operation::List] {
            for nth in 0.. {
                match Box::pin(opened_beside_deletion(operation, nth, head_returns)).await {
                    Some(Ok(volume)) => match volume.read(0, 4096).await {
                        // It was opened before the deletion began. A read returns the flushed data, or fails.
                        Ok(read) => assert_eq!(bytes_of(&read), pattern(1, 4096), "{operation:?} {nth}"),
                        Err(_) => refused += 1,
                    },
                    Some(Err(OpenError::Deleting | OpenError::Incomplete { .. } | OpenError::Lost(_))) => {
                        refused += 1;
                    }
                    Some(Err(error)) => panic!("{operation:?} {nth}: {error}"),
                    None => break,
                }
            }
        }
        assert!(refused > 5, "{refused} openings were overtaken");
    }
}

/// Opens a volume, and deletes it while the opening waits for one of its requests. Returns `None` if it does not
/// send so many.
async fn opened_beside_deletion(
    operation: Operation,
    nth: u32,
    head_returns: bool,
) -> Option<Result<Arc<Volume>, OpenError>> {
    let mut bench = Bench::new(64 * MIB).await;
    let key = format!("volume/{}/head", id(&bench).await);
    let first_head = bench.memory.objects()[&key].clone();
    let volume = bench.open().await;
    volume.write(0, pattern(1, 4096), Durable).await.unwrap();
    volume.abandon().await;
    let gate = cairn::store::fault::Gate::new();
    bench.fault.add(Rule::new(Action::Hold(gate.clone())).on(operation).skip(nth));
    let other = bench.beside();
    let (env, options, id) = (env(&bench), bench.options.clone(), id(&other).await);
    let mut opening = pin!(Volume::open(&env, options, id, true));
    tokio::select! {
        biased;
        opened = opening.as_mut() => { opened.unwrap(); return None }
        () = gate.reached(1) => {}
    }
    delete(&other, "disk", true).await.unwrap();
    if head_returns {
        bench.memory.insert(&key, first_head);
    }
    gate.release();
    Some(opening.await)
}

#[tokio::test(start_paused = true)]
async fn a_late_deletion_leaves_the_name_of_a_new_volume_alone() {
    let mut bench = Bench::new(64 * MIB).await;
    let first = id(&bench).await;
    let gate = bench.fault.hold(Operation::Get, "/head");
    let mut other = bench.beside();
    let (env, options) = (env(&bench), bench.options.clone());
    let late = catalog::delete(&env, &options, "disk", false);
    let meanwhile = async {
        gate.reached(1).await;
        delete(&other, "disk", false).await.unwrap();
        let second = create(&other, "disk").await.unwrap().volume;
        fill(&mut other, 2).await;
        gate.release();
        second
    };
    let (late, second) = tokio::join!(late, meanwhile);
    late.expect("the volume that it was told to delete is gone");
    assert_ne!(first, second);
    assert_eq!(id(&bench).await, second);
    bench.fault.clear();
    holds(&mut bench, 2).await;
}

/// A deletion that hangs at any request does no harm when it continues, whatever happened to its name
/// meanwhile.
#[tokio::test(start_paused = true)]
async fn a_deletion_that_hangs_anywhere_harms_no_new_volume() {
    for operation in [Operation::Get, Operation::Put, Operation::Delete, Operation::List] {
        // The first GET decides which volume is deleted. If it is held, that is rightly the new volume.
        let first = u32::from(operation == Operation::Get);
        for nth in first.. {
            let mut bench = Bench::new(64 * MIB).await;
            fill(&mut bench, 1).await;
            let gate = cairn::store::fault::Gate::new();
            bench.fault.add(Rule::new(Action::Hold(gate.clone())).on(operation).skip(nth));
            let mut other = bench.beside();
            let (env, options) = (env(&bench), bench.options.clone());
            let mut late = pin!(catalog::delete(&env, &options, "disk", false));
            let hangs = tokio::select! {
                biased;
                ended = late.as_mut() => { ended.unwrap(); false }
                () = gate.reached(1) => true,
            };
            if !hangs {
                assert!(nth > first, "a deletion has each of these requests: {operation:?}");
                break;
            }
            // Another gateway finishes the deletion. If the name is already free, `remove_unnamed` does it.
            if let Err(error) = delete(&other, "disk", false).await {
                assert!(matches!(error, OpenError::NoSuchVolume(_)), "{error}");
            }
            create(&other, "disk").await.unwrap();
            fill(&mut other, 2).await;
            gate.release();
            late.await.unwrap();
            bench.fault.clear();
            holds(&mut bench, 2).await;
            remove_unnamed(&bench).await;
            delete(&bench, "disk", false).await.unwrap();
            only_free_names(&bench);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_is_cut_short_anywhere_leaves_what_is_found_and_removed() {
    for effect in [Action::FailBefore(Failure::Rejected), Action::FailAfter(Failure::Rejected)] {
        for requests in 0.. {
            let mut bench = Bench::new(64 * MIB).await;
            fill(&mut bench, 1).await;
            let first = id(&bench).await;
            bench.fault.add(Rule::new(effect.clone()).skip(requests).times(1));
            bench.fault.add(Rule::new(Action::FailBefore(Failure::Rejected)).skip(requests + 1));
            let ended = delete(&bench, "disk", false).await.is_ok();
            bench.fault.clear();
            let listed = catalog::volumes(&bench.env(MIB)).await.unwrap();
            let info = catalog::info(&bench.env(MIB), "disk").await;
            match &info {
                Ok(info) => assert_eq!(info.volume, first),
                Err(OpenError::Deleting | OpenError::NoSuchVolume(_)) => {
                    let new = create(&bench, "disk").await.expect("a new one can be made at once");
                    assert_ne!(new.volume, first);
                    fill(&mut bench, 2).await;
                    remove_unnamed(&bench).await;
                    holds(&mut bench, 2).await;
                }
                Err(error) => panic!("after {requests} requests: {error}"),
            }
            assert!(listed.len() <= 1);
            if info.is_ok() {
                assert!(!ended);
                holds(&mut bench, 1).await;
                assert_eq!(remove_unnamed(&bench).await, 0);
            }
            delete(&bench, "disk", false).await.unwrap();
            only_free_names(&bench);
            if ended {
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_is_cut_short_anywhere_leaves_what_is_found_and_removed() {
    for effect in [Action::FailBefore(Failure::Rejected), Action::FailAfter(Failure::Rejected)] {
        for requests in 0.. {
            let bench = Bench::new(64 * MIB).await;
            delete(&bench, "disk", false).await.unwrap();
            bench.fault.add(Rule::new(effect.clone()).skip(requests).times(1));
            bench.fault.add(Rule::new(Action::FailBefore(Failure::Rejected)).skip(requests + 1));
            let ended = create(&bench, "disk").await.is_ok();
            bench.fault.clear();
            let listed = catalog::volumes(&bench.env(MIB)).await.unwrap();
            assert!(listed.iter().all(|listed| listed.found.is_ok()), "{listed:?}");
            let named = !listed.is_empty();
            if !named {
                assert!(!ended);
                create(&bench, "disk").await.expect("the name is free");
            }
            assert!(remove_unnamed(&bench).await <= 1);
            let mut bench = bench.beside();
            fill(&mut bench, 3).await;
            holds(&mut bench, 3).await;
            delete(&bench, "disk", false).await.unwrap();
            only_free_names(&bench);
            if ended {
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_is_deleted_while_it_is_being_made_gets_no_name() {
    for held in ["/root/0-1", "/root/0-2", "/head", "name/"] {
        let bench = Bench::new(64 * MIB).await;
        delete(&bench, "disk", false).await.unwrap();
        let gate = bench.fault.hold(Operation::Put, held);
        let other = bench.beside();
        let creates = create(&bench, "disk");
        let deletes = async {
            gate.reached(1).await;
            let unnamed = catalog::unnamed(&other.env(MIB)).await.unwrap();
            let [only] = &unnamed[..] else { panic!("{unnamed:?}") };
            assert_eq!(only.made_for.as_deref(), Some("disk"));
            let whole = matches!(only.progress, Progress::Unbound);
            assert_eq!(whole, held == "name/", "{only:?}");
            delete_id(&other, only.volume, false).await.unwrap();
            gate.release();
            only.volume
        };
        let (created, first) = tokio::join!(creates, deletes);
        // The creation made another volume, because the name is free.
        let created = created.unwrap();
        assert_ne!(created.volume, first, "{held}");
        assert_eq!(catalog::info(&other.env(MIB), "disk").await.unwrap().volume, created.volume);
        let mut bench = other;
        fill(&mut bench, 1).await;
        holds(&mut bench, 1).await;
    }
}

/// A creator may take the name of a volume that is being deleted. If its own volume is deleted meanwhile, it
/// must come too late all the same.
#[tokio::test(start_paused = true)]
async fn a_volume_that_is_deleted_while_it_takes_the_name_of_another_gets_no_name() {
    let bench = Bench::new(64 * MIB).await;
    let old = id(&bench).await;
    let slow = bench.beside();
    // The deletion of the old volume hangs after it has marked the head.
    let gate = slow.fault.hold(Operation::Put, "name/");
    let other = bench.beside();
    let (env, options) = (env(&slow), slow.options.clone());
    let mut deletes = pin!(catalog::delete(&env, &options, "disk", false));
    tokio::select! { _ = deletes.as_mut() => panic!("it is held"), () = gate.reached(1) => {} }
    let binds = bench.fault.hold(Operation::Put, "/head");
    let creates = create(&bench, "disk");
    let meanwhile = async {
        binds.reached(1).await;
        let of_new = |key: &String| key.starts_with("identity/") && !key.ends_with(&old.to_string());
        let made = other.keys("identity/").into_iter().find(of_new).expect("it is being made");
        let made = made["identity/".len()..].parse().unwrap();
        delete_id(&other, made, false).await.unwrap();
        binds.release();
        made
    };
    let (created, made) = tokio::join!(creates, meanwhile);
    gate.release();
    deletes.await.unwrap();
    assert_ne!(created.unwrap().volume, made);
    assert_ne!(id(&other).await, made);
    assert_eq!(catalog::volumes(&other.env(MIB)).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn of_two_creators_one_has_the_name_and_the_other_leaves_nothing() {
    let bench = Bench::new(64 * MIB).await;
    let gate = bench.fault.hold(Operation::Put, "name/new");
    let other = bench.beside();
    let wins = async {
        gate.reached(1).await;
        let won = create(&other, "new").await.unwrap();
        gate.release();
        won.volume
    };
    let (lost, won) = tokio::join!(create(&bench, "new"), wins);
    assert!(matches!(lost, Err(OpenError::Exists(_))), "{lost:?}");
    assert_eq!(catalog::resolve(&other.env(MIB), "new").await.unwrap(), won);
    assert_eq!(catalog::unnamed(&other.env(MIB)).await.unwrap().len(), 0);
    assert_eq!(other.keys("identity/").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_known_as_ones_own_success_and_a_false_refusal_is_none() {
    for failure in [
        Action::FailAfter(Failure::PreconditionFailed),
        Action::FailBefore(Failure::PreconditionFailed),
        Action::FailBefore(Failure::NotFound),
    ] {
        let bench = Bench::new(64 * MIB).await;
        let once = || Rule::new(failure.clone()).on(Operation::Put).containing("name/").times(1);
        bench.fault.add(once());
        delete(&bench, "disk", false).await.unwrap();
        only_free_names(&bench);
        bench.fault.add(once());
        let made = create(&bench, "disk").await.unwrap();
        assert_eq!(id(&bench).await, made.volume);
        assert_eq!(bench.keys("identity/").len(), 1);
    }
}

/// No two versions of a name have the same bytes. So a late request for an earlier version has no effect.
#[tokio::test(start_paused = true)]
async fn no_version_of_a_name_comes_twice() {
    let bench = Bench::new(64 * MIB).await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..5 {
        assert!(seen.insert(bench.memory.objects()["name/disk"].clone()));
        delete(&bench, "disk", false).await.unwrap();
        assert!(seen.insert(bench.memory.objects()["name/disk"].clone()));
        create(&bench, "disk").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_is_opened_while_its_deletion_begins_stays_unless_taken_over() {
    let mut bench = Bench::new(64 * MIB).await;
    let gate = bench.fault.hold(Operation::Put, "/head");
    let mut other = bench.beside();
    let opens = async {
        gate.reached(1).await;
        let volume = other.open().await;
        volume.write(0, pattern(1, 8192), Durable).await.unwrap();
        gate.release();
        volume
    };
    let (deleted, volume) = tokio::join!(delete(&bench, "disk", false), opens);
    assert!(matches!(deleted, Err(OpenError::Held { .. })), "{deleted:?}");
    volume.write(8192, pattern(2, 8192), Durable).await.unwrap();
    volume.close().await.unwrap();
    bench.fault.clear();
    holds(&mut bench, 1).await;
    assert_eq!(catalog::unnamed(&bench.env(MIB)).await.unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_opening_of_a_volume_that_is_being_deleted_says_so() {
    let mut bench = Bench::new(64 * MIB).await;
    let first = id(&bench).await;
    let gate = bench.fault.hold(Operation::Delete, "/root/");
    let (env, options) = (env(&bench), bench.options.clone());
    let mut deletes = pin!(catalog::delete(&env, &options, "disk", false));
    assert!(futures::poll!(deletes.as_mut()).is_pending());
    tokio::select! { _ = deletes.as_mut() => panic!("it is held"), () = gate.reached(1) => {} }
    let other = bench.beside();
    let opened = Volume::open(&other.env(MIB), other.options.clone(), first, true).await;
    assert!(matches!(opened, Err(OpenError::Deleting)), "{opened:?}");
    gate.release();
    deletes.await.unwrap();
    let opened = Volume::open(&other.env(MIB), other.options.clone(), first, true).await;
    assert!(matches!(opened, Err(OpenError::Incomplete { .. })), "{opened:?}");
    assert!(matches!(bench.try_open(true).await, Err(OpenError::NoSuchVolume(_))));
}

/// After a false 404 for an existing head, a deletion must still check who holds the volume.
#[tokio::test(start_paused = true)]
async fn a_head_that_is_listed_is_not_taken_for_absent() {
    let bench = Bench::new(64 * MIB).await;
    let first = id(&bench).await;
    bench.fault.add(Rule::new(Action::FailBefore(Failure::NotFound)).on(Operation::Get).containing("/head"));
    for deleted in [delete(&bench, "disk", true).await, delete_id(&bench, first, true).await] {
        let error = deleted.expect_err("the store contradicts itself");
        assert!(matches!(error, OpenError::Store(cairn::store::Error::Transient { .. })), "{error}");
    }
    bench.fault.clear();
    assert_eq!(catalog::info(&bench.env(MIB), "disk").await.unwrap().volume, first);
}

/// A listing shows which names are bound, so that many names do not cost a request each.
#[tokio::test(start_paused = true)]
async fn a_list_of_names_costs_no_request_for_each() {
    let bench = Bench::new(64 * MIB).await;
    for n in 0..20 {
        create(&bench, &format!("kept-{n}")).await.unwrap();
        create(&bench, &format!("gone-{n}")).await.unwrap();
        delete(&bench, &format!("gone-{n}"), false).await.unwrap();
    }
    bench.memory.reset_tallies();
    let names = catalog::list(&bench.env(MIB)).await.unwrap();
    assert_eq!(names.len(), 21);
    assert!(names.iter().all(|name| name == "disk" || name.starts_with("kept-")), "{names:?}");
    assert_eq!(bench.gets("").requests, 0);
}

/// A name object that Cairn did not write is an error and is not overwritten.
#[tokio::test(start_paused = true)]
async fn what_is_no_name_object_is_not_overwritten_by_a_creation() {
    let bench = Bench::new(64 * MIB).await;
    let foreign = Bytes::from_static(b"something else");
    bench.fault.put("name/new", foreign.clone(), Condition::IfAbsent).await.unwrap();
    let error = create(&bench, "new").await.expect_err("it cannot be read");
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert_eq!(bench.memory.objects()["name/new"], foreign);
}

/// One false answer must not leave the name bound to a volume that no longer exists.
#[tokio::test(start_paused = true)]
async fn a_deletion_frees_the_name_although_the_store_denies_that_once() {
    for (by_id, denied) in [(false, 0), (false, 1), (false, 2), (true, 0), (true, 1)] {
        let bench = Bench::new(64 * MIB).await;
        let volume = id(&bench).await;
        let denial = Rule::new(Action::FailBefore(Failure::NotFound)).on(Operation::Get).prefix("name/");
        bench.fault.add(denial.skip(denied).times(1));
        let deleted = match by_id {
            false => delete(&bench, "disk", false).await,
            true => delete_id(&bench, volume, false).await,
        };
        if let Err(error) = deleted {
            assert!((by_id, denied) == (false, 0) && matches!(error, OpenError::NoSuchVolume(_)), "{error}");
            delete(&bench, "disk", false).await.unwrap();
        }
        only_free_names(&bench);
    }
}

/// A missing head and a denied name must not look as if another deletion were in progress.
#[tokio::test(start_paused = true)]
async fn a_deletion_that_was_cut_short_is_gone_on_with_although_the_store_denies_the_name_once() {
    for denied in 1..3 {
        let bench = Bench::new(64 * MIB).await;
        drop(bench.memory.remove(&bench.keys("/head")[0]).expect("it exists"));
        let denial = Rule::new(Action::FailBefore(Failure::NotFound)).on(Operation::Get).prefix("name/");
        bench.fault.add(denial.skip(denied).times(1));
        delete(&bench, "disk", false).await.unwrap();
        only_free_names(&bench);
    }
}

/// A complete volume with a name must never be listed among those that can be removed.
#[tokio::test(start_paused = true)]
async fn a_volume_whose_name_is_denied_once_is_not_said_to_have_none() {
    let bench = Bench::new(64 * MIB).await;
    let rule = |failure| Rule::new(Action::FailBefore(failure)).on(Operation::Get).prefix("name/");
    bench.fault.add(rule(Failure::NotFound).times(1));
    assert_eq!(catalog::unnamed(&bench.env(MIB)).await.unwrap().len(), 0);
    // The store denies it once, and fails from then on.
    bench.fault.clear();
    bench.fault.add(rule(Failure::NotFound).times(1));
    bench.fault.add(rule(Failure::Rejected).skip(1));
    let listed = catalog::unnamed(&bench.env(MIB)).await;
    assert!(matches!(listed, Err(OpenError::Store(_))), "{listed:?}");
}
