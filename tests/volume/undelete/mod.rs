//! A deleted volume is kept and can be brought back, with all that was flushed, whoever dies, hangs or
//! interferes meanwhile. A volume in use always has exactly one name, and a kept one is always found.

mod beside;
mod history;
mod watch;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairn::effect::Durability::Durable;
use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::volume::catalog::{self, Info};
use cairn::volume::format::head::{Head, Lease, VolumeState};
use cairn::volume::format::keys::Keys;
use cairn::volume::snapshot::{self, SnapshotDisk};
use cairn::volume::{Entropy, Environment, OpenError, Volume};
use uuid::Uuid;

use super::bench::{Bench, MIB, pattern, read};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// An environment whose ids and nonces differ from those of all others.
fn env(bench: &Bench) -> Environment {
    static SEEDS: AtomicU64 = AtomicU64::new(1 << 42);
    let seed = SEEDS.fetch_add(1, Ordering::Relaxed);
    Environment { entropy: Entropy::seeded(seed), ..bench.env(MIB) }
}

async fn create(bench: &Bench, name: &str) -> Result<Uuid, OpenError> {
    let made = catalog::create(&env(bench), &bench.options, name, MIB, catalog::ChunkBytes(4 * MIB)).await;
    made.map(|info| info.volume)
}

/// Deletes a volume that nobody holds, so that it can be brought back.
async fn set_aside(bench: &Bench, name: &str) -> Result<Option<Duration>, OpenError> {
    catalog::set_aside(&env(bench), &bench.options, name, false).await
}

async fn undelete(bench: &Bench, id: Uuid, to: Option<&str>) -> Result<Info, OpenError> {
    catalog::undelete(&env(bench), id, to).await
}

async fn open(bench: &Bench, name: &str) -> Arc<Volume> {
    let opened = catalog::open(&env(bench), || bench.options.clone(), name, true).await;
    opened.unwrap_or_else(|error| panic!("{name} can be opened: {error}"))
}

/// The volume that a name is bound to, whether or not that is deleted.
async fn bound(bench: &Bench, name: &str) -> Option<Uuid> {
    match catalog::resolve(&env(bench), name).await {
        Ok(volume) => Some(volume),
        Err(OpenError::NoSuchVolume(_)) => None,
        Err(error) => panic!("{name}: {error}"),
    }
}

/// The volumes in use, with their names.
async fn live(bench: &Bench) -> Vec<(String, Uuid)> {
    let all = catalog::volumes(&env(bench)).await.unwrap();
    let found = all.into_iter().filter_map(|listed| match listed.found {
        Ok(info) => Some((listed.name, info.volume)),
        Err(error) => {
            assert!(matches!(*error, OpenError::Deleting), "{}: {error}", listed.name);
            None
        }
    });
    found.collect()
}

/// The deleted volumes that can be brought back, with the names that they had.
async fn kept(bench: &Bench) -> Vec<(String, Uuid)> {
    let all = catalog::deleted(&env(bench)).await.unwrap();
    all.into_iter().map(|deleted| (deleted.name, deleted.volume)).collect()
}

fn head(bench: &Bench, id: Uuid) -> Head {
    Head::decode(id, &bench.memory.objects()[&Keys::new(id).head()]).unwrap()
}

/// Checks that the head of each volume in use records exactly the name that it has.
async fn recorded(bench: &Bench) {
    for (name, id) in live(bench).await {
        let head = head(bench, id);
        assert_eq!(head.state, VolumeState::Live);
        let Some(names) = head.names else { continue };
        assert_eq!((names.current, names.next), (name, None));
    }
}

/// Checks that of all names and volumes only free names are left.
fn only_free_names(bench: &Bench) {
    let left = bench.memory.objects().into_iter().filter(|(_, body)| body.len() != 52);
    assert_eq!(left.map(|(key, _)| key).collect::<Vec<_>>(), Vec::<String>::new());
}

async fn delete_for_good(bench: &Bench, id: Uuid) {
    catalog::delete_by_id(&env(bench), &bench.options, id, true).await.unwrap();
}

/// A bench whose volume `disk` has flushed data, and the id of that.
async fn filled() -> (Bench, Uuid) {
    let bench = Bench::new(64 * MIB).await;
    let volume = open(&bench, "disk").await;
    volume.write(0, pattern(1, 8192), Durable).await.unwrap();
    let id = volume.id();
    volume.close().await.unwrap();
    (bench, id)
}

/// Checks that a volume has the flushed data, and that more can be flushed to it.
async fn holds(bench: &Bench, name: &str) {
    let volume = open(bench, name).await;
    assert_eq!(read(&volume, 0, 8192).await, pattern(1, 8192), "{name}");
    volume.write(8192, pattern(9, 4096), Durable).await.unwrap();
    volume.close().await.unwrap();
}

fn owned(name: &str, id: Uuid) -> Vec<(String, Uuid)> {
    vec![(name.to_owned(), id)]
}

#[tokio::test(start_paused = true)]
async fn what_is_brought_back_has_every_flush() {
    let bench = Bench::new(64 * MIB).await;
    let volume = open(&bench, "disk").await;
    let id = volume.id();
    volume.write(0, pattern(1, 8192), Durable).await.unwrap();
    volume.checkpoint().await.unwrap();
    volume.snapshot("monday").await.unwrap();
    // Only the journal has it.
    volume.write(16_384, pattern(2, 8192), Durable).await.unwrap();
    let refused = set_aside(&bench, "disk").await;
    assert!(matches!(refused, Err(OpenError::Held { .. })), "{refused:?}");
    let set = catalog::set_aside(&env(&bench), &bench.options, "disk", true).await.unwrap();
    assert_eq!(set, Some(DAY));
    // Until it notices, the gateway that has lost the volume may answer flushes. These are not lost either.
    let late = volume.write(32_768, pattern(3, 8192), Durable).await.is_ok();
    volume.abandon().await;
    let other = create(&bench, "disk").await.expect("the name is free at once");
    let taken = undelete(&bench, id, None).await;
    assert!(matches!(&taken, Err(OpenError::Taken(name)) if name == "disk"), "{taken:?}");
    let info = undelete(&bench, id, Some("old")).await.unwrap();
    assert_eq!((&*info.name, info.volume, info.size_bytes, info.holder), ("old", id, 64 * MIB, None));
    assert_eq!(live(&bench).await, [("disk".to_owned(), other), ("old".to_owned(), id)]);
    assert_eq!(head(&bench, id).lease, Lease::Unswept, "the next opening looks for what was left behind");
    let volume = open(&bench, "old").await;
    assert_eq!(read(&volume, 0, 8192).await, pattern(1, 8192));
    assert_eq!(read(&volume, 16_384, 8192).await, pattern(2, 8192));
    assert!(late, "the store has not told the gateway yet that it has lost the volume");
    assert_eq!(read(&volume, 32_768, 8192).await, pattern(3, 8192));
    assert_eq!(volume.snapshots().len(), 1);
    volume.close().await.unwrap();
    let again = undelete(&bench, id, Some("third")).await;
    assert!(matches!(again, Err(OpenError::NotDeleted(_))), "{again:?}");
    recorded(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_kept_volume_is_not_opened_listed_or_read_and_each_of_its_names_is_free() {
    let (bench, id) = filled().await;
    let volume = open(&bench, "disk").await;
    volume.snapshot("monday").await.unwrap();
    volume.close().await.unwrap();
    let disk = SnapshotDisk::open(&env(&bench), &bench.options, id, "monday").await.unwrap();
    catalog::rename(&env(&bench), &bench.options, "disk", "new", false).await.unwrap();
    bench.now_seconds.store(1_900_000_000, Ordering::Relaxed);
    assert_eq!(set_aside(&bench, "new").await.unwrap(), Some(DAY));
    let opened = Volume::open(&env(&bench), bench.options.clone(), id, true).await;
    assert!(matches!(opened, Err(OpenError::Deleting)), "{opened:?}");
    let listed = snapshot::list(&env(&bench), id).await;
    assert!(matches!(listed, Err(OpenError::Deleting)), "{listed:?}");
    assert!(!disk.is_kept().await.unwrap(), "nobody reads it any more");
    assert_eq!(catalog::volumes(&env(&bench)).await.unwrap().len(), 0);
    assert_eq!(catalog::unnamed(&env(&bench)).await.unwrap().len(), 0);
    let [deleted] = &catalog::deleted(&env(&bench)).await.unwrap()[..] else { panic!("one is kept") };
    assert_eq!((deleted.volume, &*deleted.name, deleted.size_bytes), (id, "new", Some(64 * MIB)));
    assert_eq!(
        (deleted.deleted_at_seconds, deleted.kept_until_seconds),
        (1_900_000_000, 1_900_000_000 + DAY.as_secs())
    );
    let again = set_aside(&bench, "new").await;
    assert!(matches!(again, Err(OpenError::NoSuchVolume(_))), "{again:?}");
    undelete(&bench, id, None).await.unwrap();
    assert_eq!(live(&bench).await, owned("new", id));
    holds(&bench, "new").await;
    delete_for_good(&bench, id).await;
    let gone = undelete(&bench, id, None).await;
    assert!(matches!(gone, Err(OpenError::NotDeleted(_))), "{gone:?}");
    only_free_names(&bench);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_volume_is_chosen_by_its_id_or_by_its_name_if_only_one_had_that() {
    let (bench, first) = filled().await;
    set_aside(&bench, "disk").await.unwrap();
    let second = create(&bench, "disk").await.unwrap();
    set_aside(&bench, "disk").await.unwrap();
    let third = create(&bench, "third").await.unwrap();
    set_aside(&bench, "third").await.unwrap();
    let all = catalog::deleted(&env(&bench)).await.unwrap();
    let choose =
        |text: &str| catalog::choose(all.iter().map(|deleted| (deleted.volume, &*deleted.name)), text);
    for id in [first, second, third] {
        assert_eq!(choose(&id.to_string()).unwrap(), id);
    }
    assert_eq!(choose("third").unwrap(), third);
    let error = choose("disk").expect_err("two had that name");
    assert!(matches!(&error, OpenError::Ambiguous { name, volumes: 2 } if name == "disk"), "{error}");
    for unknown in ["fourth", "6f9619ff-8b86-4011-b42d-00c04fc964ff"] {
        let error = choose(unknown).expect_err("there is none");
        assert!(matches!(&error, OpenError::NotDeleted(text) if text == unknown), "{error}");
    }
}

/// Whatever cannot be kept is not deleted, unless it is to be deleted for good.
#[tokio::test(start_paused = true)]
async fn a_volume_whose_head_cannot_be_read_is_deleted_only_for_good() {
    for damages in [false, true] {
        let (bench, id) = filled().await;
        let key = Keys::new(id).head();
        let mut body = bench.memory.remove(&key).unwrap().to_vec();
        if damages {
            body[40] ^= 1;
            bench.memory.insert(&key, body.into());
        }
        let refused = catalog::set_aside(&env(&bench), &bench.options, "disk", true).await;
        assert!(matches!(refused, Err(OpenError::Unkeepable { .. })), "{refused:?}");
        assert_eq!(bound(&bench, "disk").await, Some(id));
        assert!(bench.keys("/journal/").len() > 1, "nothing of it is deleted");
        catalog::delete(&env(&bench), &bench.options, "disk", true).await.unwrap();
        only_free_names(&bench);
    }
}

/// After a deletion that failed at any request, with or without effect, the volume is in use under its name,
/// or it is kept and found by its id. Its name may be taken at once.
#[tokio::test(start_paused = true)]
async fn a_deletion_that_is_cut_short_anywhere_leaves_a_volume_in_use_or_one_that_is_kept() {
    let mut cut = 0;
    for effect in [Action::FailBefore(Failure::Rejected), Action::FailAfter(Failure::Rejected)] {
        for (requests, how) in (0..).flat_map(|requests| (0..4).map(move |how| (requests, how))) {
            let (bench, id) = filled().await;
            bench.fault.add(Rule::new(effect.clone()).skip(requests).times(1));
            bench.fault.add(Rule::new(Action::FailBefore(Failure::Rejected)).skip(requests + 1));
            let ended = set_aside(&bench, "disk").await.is_ok();
            bench.fault.clear();
            assert_eq!(catalog::unnamed(&env(&bench)).await.unwrap().len(), 0, "{requests}");
            let is_live = live(&bench).await == owned("disk", id);
            let expected = if is_live { Vec::new() } else { owned("disk", id) };
            assert_eq!(kept(&bench).await, expected, "{requests}");
            let has_name = bound(&bench, "disk").await.is_some();
            assert!(!ended || !has_name);
            cut += usize::from(has_name && !is_live);
            match how {
                // The same call again succeeds if it can be repeated.
                0 if has_name => assert_eq!(set_aside(&bench, "disk").await.unwrap(), Some(DAY)),
                1 if !is_live => {
                    let other = create(&bench, "disk").await.expect("the name can be taken at once");
                    let taken = undelete(&bench, id, None).await;
                    assert!(matches!(taken, Err(OpenError::Taken(_))), "{taken:?}");
                    delete_for_good(&bench, other).await;
                }
                2 => {
                    delete_for_good(&bench, id).await;
                    only_free_names(&bench);
                    continue;
                }
                _ => {}
            }
            if live(&bench).await.is_empty() {
                undelete(&bench, id, None).await.unwrap();
            }
            assert_eq!(live(&bench).await, owned("disk", id), "{requests}");
            recorded(&bench).await;
            holds(&bench, "disk").await;
            delete_for_good(&bench, id).await;
            only_free_names(&bench);
            if ended && how == 3 {
                break;
            }
        }
    }
    assert!(cut > 0, "it was never cut short before the name was freed");
}

/// After an attempt to bring a volume back that failed at any request, with or without effect, the volume is
/// in use under exactly one name, or it is kept and found by its id.
#[tokio::test(start_paused = true)]
async fn an_undelete_that_is_cut_short_anywhere_leaves_a_volume_in_use_or_one_that_is_kept() {
    let mut cut = 0;
    for effect in [Action::FailBefore(Failure::Rejected), Action::FailAfter(Failure::Rejected)] {
        for to in ["disk", "new"] {
            for (requests, how) in (0..).flat_map(|requests| (0..5).map(move |how| (requests, how))) {
                let (bench, id) = filled().await;
                set_aside(&bench, "disk").await.unwrap();
                bench.fault.add(Rule::new(effect.clone()).skip(requests).times(1));
                bench.fault.add(Rule::new(Action::FailBefore(Failure::Rejected)).skip(requests + 1));
                let ended = undelete(&bench, id, Some(to)).await.is_ok();
                bench.fault.clear();
                assert_eq!(catalog::unnamed(&env(&bench)).await.unwrap().len(), 0, "{requests}");
                let is_live = live(&bench).await == owned(to, id);
                // A failure is reported only if the volume is kept, or if the last answer was lost.
                let is_lost = matches!(effect, Action::FailAfter(_));
                assert!(is_lost || ended == is_live, "{requests}");
                assert!(is_live || !ended && live(&bench).await.is_empty(), "{requests}");
                assert_eq!(kept(&bench).await.len(), usize::from(!is_live), "{requests}");
                let has_name = bound(&bench, to).await.is_some();
                cut += usize::from(has_name && !is_live);
                let name = if is_live { to } else { again(&bench, id, to, how, has_name).await };
                assert_eq!(live(&bench).await, owned(name, id), "{to} {requests} {how}");
                assert_eq!(catalog::list(&env(&bench)).await.unwrap(), [name], "{to} {requests} {how}");
                recorded(&bench).await;
                holds(&bench, name).await;
                delete_for_good(&bench, id).await;
                only_free_names(&bench);
                if ended && how == 4 {
                    break;
                }
            }
        }
    }
    assert!(cut > 0, "it was never cut short between the name and the head");
}

/// Brings a volume back once an attempt to do so was cut short. Returns its name.
async fn again<'a>(bench: &Bench, id: Uuid, to: &'a str, how: u32, has_name: bool) -> &'a str {
    match how {
        0 => {
            undelete(bench, id, Some(to)).await.unwrap();
            to
        }
        1 => {
            undelete(bench, id, Some("third")).await.unwrap();
            "third"
        }
        2 => {
            let other = create(bench, to).await.expect("the name can be taken at once");
            let taken = undelete(bench, id, Some(to)).await;
            assert!(matches!(taken, Err(OpenError::Taken(_))), "{taken:?}");
            undelete(bench, id, Some("third")).await.unwrap();
            delete_for_good(bench, other).await;
            "third"
        }
        3 if has_name => {
            set_aside(bench, to).await.unwrap();
            undelete(bench, id, Some("third")).await.unwrap();
            "third"
        }
        _ => {
            undelete(bench, id, Some("disk")).await.unwrap();
            "disk"
        }
    }
}

/// Lets an operation hang at its request number `nth` of a kind. Returns `None` if it ended before.
async fn hung<T>(work: &mut (impl Future<Output = T> + Unpin), gate: &Gate) -> Option<T> {
    tokio::select! {
        biased;
        ended = work => Some(ended),
        () = gate.reached(1) => None,
    }
}

/// A deletion hangs at any request. Meanwhile somebody else finishes it, brings the volume back under the
/// same name or another one, and uses it. What the first one does when it goes on changes nothing of that.
#[tokio::test(start_paused = true)]
async fn a_deletion_that_hangs_anywhere_harms_nothing_that_was_brought_back() {
    for operation in [Operation::Get, Operation::Put] {
        for (nth, other_name) in (0..).flat_map(|nth| [(nth, false), (nth, true)]) {
            let (bench, id) = filled().await;
            let gate = Gate::new();
            bench.fault.add(Rule::new(Action::Hold(gate.clone())).on(operation).skip(nth));
            let (deleter, options) = (env(&bench), bench.options.clone());
            let mut late = pin!(catalog::set_aside(&deleter, &options, "disk", false));
            if let Some(ended) = hung(&mut late, &gate).await {
                ended.unwrap();
                assert!(nth > 1, "a deletion has some of these requests: {operation:?}");
                break;
            }
            let beside = bench.beside();
            if !live(&beside).await.is_empty() {
                set_aside(&beside, "disk").await.unwrap();
            }
            let name = if other_name { "other" } else { "disk" };
            undelete(&beside, id, Some(name)).await.unwrap();
            let mut expected = owned(name, id);
            if other_name {
                // A late deletion by name may rightly delete this one, unless somebody holds it.
                let new = create(&beside, "disk").await.unwrap();
                expected.insert(0, ("disk".to_owned(), new));
            }
            let mut held = Vec::new();
            for (name, _) in &expected {
                held.push(open(&beside, name).await);
            }
            gate.release();
            drop(late.await);
            assert_eq!(live(&beside).await, expected, "{operation:?} {nth}");
            recorded(&beside).await;
            for volume in held {
                volume.write(16_384, pattern(4, 4096), Durable).await.unwrap();
                volume.close().await.unwrap();
            }
            holds(&beside, name).await;
            for (_, id) in expected {
                delete_for_good(&beside, id).await;
            }
            only_free_names(&beside);
        }
    }
}

/// An attempt to bring a volume back hangs at any request. Meanwhile somebody else brings it back under
/// another name, takes the name, or deletes the volume for good. In the end each volume in use has one name,
/// and each name has one volume.
#[tokio::test(start_paused = true)]
async fn an_undelete_that_hangs_anywhere_gives_no_second_name_and_takes_none() {
    for operation in [Operation::Get, Operation::Put] {
        for (nth, how) in (0..).flat_map(|nth| (0..4).map(move |how| (nth, how))) {
            let (bench, id) = filled().await;
            set_aside(&bench, "disk").await.unwrap();
            let gate = Gate::new();
            bench.fault.add(Rule::new(Action::Hold(gate.clone())).on(operation).skip(nth));
            let undeleter = env(&bench);
            let mut late = pin!(catalog::undelete(&undeleter, id, Some("new")));
            if let Some(ended) = hung(&mut late, &gate).await {
                ended.unwrap();
                assert!(nth > 2, "it has some of these requests: {operation:?}");
                break;
            }
            let beside = bench.beside();
            // It may hang after it was done.
            let was_done = live(&beside).await == owned("new", id);
            let created = match how {
                0 if !was_done => undelete(&beside, id, Some("disk")).await.map(|_| None).unwrap(),
                1 if !was_done => {
                    let other = create(&beside, "new").await.expect("the name can be taken");
                    undelete(&beside, id, Some("disk")).await.unwrap();
                    Some(other)
                }
                // Somebody else brings it back, deletes it again and makes a volume of that name.
                2 if !was_done => {
                    undelete(&beside, id, Some("new")).await.unwrap();
                    set_aside(&beside, "new").await.unwrap();
                    Some(create(&beside, "new").await.unwrap())
                }
                3 => {
                    delete_for_good(&beside, id).await;
                    None
                }
                _ => None,
            };
            let before = live(&beside).await;
            gate.release();
            let ended = late.await;
            let mut now = live(&beside).await;
            if how == 2 && ended.is_err() && !was_done {
                assert_eq!(kept(&beside).await, owned("new", id));
                undelete(&beside, id, Some("third")).await.unwrap();
                now = live(&beside).await;
            } else {
                assert_eq!(now, before, "{operation:?} {nth} {how}: {ended:?}");
            }
            let names: Vec<String> = now.iter().map(|(name, _)| name.clone()).collect();
            assert_eq!(catalog::list(&beside.env(MIB)).await.unwrap(), names, "{operation:?} {nth} {how}");
            recorded(&beside).await;
            if how != 3 {
                let of_volume: Vec<_> = now.iter().filter(|(_, of)| *of == id).collect();
                assert_eq!(of_volume.len(), 1, "{operation:?} {nth} {how}: {now:?}");
                holds(&beside, &of_volume[0].0).await;
                delete_for_good(&beside, id).await;
            }
            if let Some(other) = created {
                delete_for_good(&beside, other).await;
            }
            only_free_names(&beside);
        }
    }
}

/// A name that the store denies once is not left bound.
#[tokio::test(start_paused = true)]
async fn a_deletion_frees_the_name_although_the_store_denies_that_once() {
    for denied in 1..3 {
        let (bench, id) = filled().await;
        let denial = Rule::new(Action::FailBefore(Failure::NotFound)).on(Operation::Get).prefix("name/");
        bench.fault.add(denial.skip(denied).times(1));
        set_aside(&bench, "disk").await.unwrap();
        assert_eq!(bound(&bench, "disk").await, None);
        undelete(&bench, id, None).await.unwrap();
        holds(&bench, "disk").await;
    }
}

#[tokio::test(start_paused = true)]
async fn with_a_time_of_zero_a_volume_is_deleted_for_good_at_once() {
    let (mut bench, _) = filled().await;
    bench.options.undelete = Duration::ZERO;
    assert_eq!(set_aside(&bench, "disk").await.unwrap(), None);
    only_free_names(&bench);
}
