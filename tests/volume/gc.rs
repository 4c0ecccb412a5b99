//! What nothing references is deleted on request, and nothing else, whatever fails, hangs or crashes meanwhile. A
//! look at it changes nothing.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cairn::effect::Durability::{Durable, Volatile};
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::store::{
    ByteRange, Classes, Condition, ETag, Error, Fault, ListFrom, Listing, MemoryStore, Object, Operation,
    Store,
};
use cairn::volume::format::geometry::ChunkIndex;
use cairn::volume::format::head::Head;
use cairn::volume::format::keys::{Keys, ObjectId, volume_of};
use cairn::volume::format::root::Root;
use cairn::volume::{CollectError, Environment, SnapshotDisk, Volume, catalog, gc};

use super::bench::{Bench, MIB, bytes_of, pattern, read};
use super::stored::Kept;

const CHUNK: u64 = 64 << 10;
/// Longer than the collector needs if there is no grace period.
const COLLECTED: Duration = Duration::from_secs(60);

fn keys_of(bench: &Bench) -> Keys {
    Keys::new(volume_of(&bench.keys("/head")[0]).expect("the head of a volume"))
}

/// The content of the disk at the snapshot, and now.
fn contents() -> (Vec<u8>, Vec<u8>) {
    let mut at_snapshot: Vec<u8> = (0..4).flat_map(|chunk| pattern(chunk + 1, 1 << 16)).collect();
    at_snapshot[(1 << 16) + 4096..][..4096].copy_from_slice(&pattern(11, 4096));
    let mut now = at_snapshot.clone();
    now[..1 << 16].copy_from_slice(&pattern(21, 1 << 16));
    now[(1 << 16) + 4096..][..4096].copy_from_slice(&pattern(22, 4096));
    (at_snapshot, now)
}

/// A closed volume with objects of every kind. The snapshot `kept` keeps a chunk object, a pack and an overlay that
/// the disk has overwritten since.
async fn filled() -> Bench {
    let mut bench = Bench::with_chunks(64 * MIB, CHUNK).await;
    bench.options.embed_bytes = 0;
    bench.options.consolidate_percent = 90;
    bench.options.deletion_grace = Duration::ZERO;
    let volume = bench.open().await;
    let (at_snapshot, now) = contents();
    for chunk in 0..4 {
        volume.write(chunk * CHUNK, pattern(chunk + 1, 1 << 16), Volatile).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
    volume.write(CHUNK + 4096, pattern(11, 4096), Volatile).await.unwrap();
    volume.snapshot("kept").await.unwrap();
    assert!(read(&volume, 0, 4 * CHUNK).await == at_snapshot);
    volume.write(0, pattern(21, 1 << 16), Volatile).await.unwrap();
    volume.write(CHUNK + 4096, pattern(22, 4096), Volatile).await.unwrap();
    volume.checkpoint().await.unwrap();
    assert!(read(&volume, 0, 4 * CHUNK).await == now);
    tokio::time::sleep(COLLECTED).await;
    volume.close().await.unwrap();
    bench
}

/// Another bench with a copy of the store.
fn copy(bench: &Bench) -> Bench {
    let memory = MemoryStore::unsorted(5);
    bench.memory.objects().into_iter().for_each(|(key, bytes)| memory.insert(&key, bytes));
    let fault = Fault::new(Arc::new(memory.clone()), 1);
    let mut copy = bench.beside();
    (copy.memory, copy.fault) = (memory, fault);
    copy
}

/// Adds an object of each kind that nothing references and that only a sweep of all objects would find.
fn litter(bench: &Bench) -> Vec<String> {
    let (keys, id) = (keys_of(bench), ObjectId { epoch: 0, k: 77 });
    let strays = vec![
        keys.chunk(ChunkIndex(2), id),
        keys.chunk(ChunkIndex(2), ObjectId { epoch: 1, k: 1 << 40 }),
        keys.map_page(0, id),
        keys.overlay(0, id),
        keys.pack(id),
    ];
    strays.iter().for_each(|key| bench.memory.insert(key, Bytes::from_static(b"left behind")));
    strays
}

fn left(bench: &Bench, strays: &[String]) -> usize {
    let objects = bench.memory.objects();
    strays.iter().filter(|key| objects.contains_key(*key)).count()
}

/// Checks that the volume and its snapshot have what was written, for a gateway that has nothing cached.
async fn holds(volume: &Volume, bench: &Bench) {
    let (at_snapshot, now) = contents();
    assert!(read(volume, 0, 4 * CHUNK).await == now);
    let env = bench.beside().env(64 * MIB);
    let disk = SnapshotDisk::open(&env, &bench.options, volume.id(), "kept").await.unwrap();
    assert!(bytes_of(&disk.read(0, 4 * CHUNK).await.unwrap()) == at_snapshot);
}

/// Checks, by a gateway without faults, that everything is there, and that a collection leaves nothing else.
async fn assert_whole(bench: &Bench, strays: &[String], when: &str) {
    // Its numbers are those of no other gateway.
    let mut beside = bench.beside().beside();
    let volume = beside.open().await;
    holds(&volume, &beside).await;
    let collected = gc::collect(&volume, None).await.unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_eq!((collected.after.orphans.objects, left(&beside, strays)), (0, 0), "{when}: {collected:?}");
    holds(&volume, &beside).await;
    volume.close().await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    let volume = beside.open().await;
    tokio::time::sleep(COLLECTED).await;
    Kept::of(&beside).assert_exact(&beside);
    holds(&volume, &beside).await;
}

/// Opens the volume, and waits until the opening has deleted what it finds by itself.
async fn opened(bench: &mut Bench) -> Arc<Volume> {
    let volume = bench.open().await;
    tokio::time::sleep(COLLECTED).await;
    volume
}

#[tokio::test(start_paused = true)]
async fn every_orphan_goes_and_nothing_else_does() {
    let mut bench = filled().await;
    let strays = litter(&bench);
    let foreign = format!("{}stray/object", keys_of(&bench).prefix());
    bench.memory.insert(&foreign, Bytes::from_static(b"who knows"));
    let volume = opened(&mut bench).await;
    assert_eq!(left(&bench, &strays), strays.len(), "an opening after a clean end does not look for them");
    // What the gateway makes that holds the volume may be referenced in a moment.
    let own = keys_of(&bench).pack(ObjectId { epoch: volume.epoch(), k: 1 << 40 });
    bench.memory.insert(&own, Bytes::from_static(b"in flight"));
    let collected = gc::collect(&volume, None).await.unwrap();
    assert_eq!(collected.before.orphans.objects, strays.len() as u64);
    assert_eq!(collected.deleted_objects, strays.len() as u64);
    let after = collected.after;
    assert_eq!((after.orphans.objects, after.foreign.objects, after.unsettled.objects), (0, 1, 1));
    assert_eq!(after.all.objects + strays.len() as u64, collected.before.all.objects);
    assert_eq!((left(&bench, &strays), left(&bench, &[own.clone(), foreign.clone()])), (0, 2));
    holds(&volume, &bench).await;
    volume.close().await.unwrap();
    // The gateway that made it no longer holds the volume.
    let volume = opened(&mut bench).await;
    gc::collect(&volume, None).await.unwrap();
    assert_eq!(left(&bench, &[own, foreign.clone()]), 1);
    drop(bench.memory.remove(&foreign));
    volume.close().await.unwrap();
    assert_whole(&bench, &strays, "in the end").await;
}

/// What an opening would have deleted by itself counts too if the volume is opened for the collection.
#[tokio::test(start_paused = true)]
async fn what_the_opening_deletes_is_counted() {
    let mut bench = filled().await;
    let volume = bench.open().await;
    volume.write(8 * CHUNK, pattern(31, 1 << 16), Volatile).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    volume.abandon().await;
    let strays = litter(&bench);
    let before = gc::look(&bench.env(MIB), "disk").await.unwrap();
    let volume = bench.open().await;
    let collected = gc::collect(&volume, Some(before)).await.unwrap();
    assert!(collected.deleted_objects > strays.len() as u64, "{collected:?}");
    assert_eq!((left(&bench, &strays), collected.after.orphans.objects), (0, 0));
    holds(&volume, &bench).await;
}

/// A collection cuts no grace period short, however often it is asked for.
#[tokio::test(start_paused = true)]
async fn what_a_checkpoint_replaced_of_an_earlier_gateway_waits() {
    const GRACE: Duration = Duration::from_secs(3600);
    let mut bench = filled().await;
    bench.options.deletion_grace = GRACE;
    let volume = opened(&mut bench).await;
    let (keys, objects) = (keys_of(&bench), bench.memory.objects());
    let head = Head::decode(keys.volume(), &objects[&keys.head()]).expect("a head");
    let replaced = [keys.root(head.root), keys.root(head.root_table)];
    volume.write(8 * CHUNK, pattern(81, 1 << 16), Volatile).await.unwrap();
    volume.checkpoint().await.unwrap();
    for _ in 0..3 {
        let collected = gc::collect(&volume, None).await.unwrap();
        assert_eq!((collected.deleted_objects, left(&bench, &replaced)), (0, 2), "{collected:?}");
    }
    tokio::time::sleep(GRACE + COLLECTED).await;
    assert_eq!(left(&bench, &replaced), 0);
    holds(&volume, &bench).await;
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_look_changes_nothing_also_while_a_gateway_serves() {
    let mut bench = filled().await;
    let strays = litter(&bench);
    let look = async |bench: &Bench| {
        let keys = || bench.memory.objects().into_keys().collect::<Vec<_>>();
        let before = keys();
        let found = gc::look(&bench.beside().env(MIB), "disk").await.unwrap();
        assert_eq!(keys(), before);
        found.tally.orphans.objects
    };
    assert_eq!(look(&bench).await, strays.len() as u64);
    let volume = opened(&mut bench).await;
    volume.write(0, pattern(21, 1 << 16), Durable).await.unwrap();
    assert_eq!(look(&bench).await, strays.len() as u64);
    assert!(matches!(gc::look(&bench.env(MIB), "none").await, Err(CollectError::Open(_))));
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_only_a_snapshot_or_a_clone_needs_stays() {
    let mut bench = filled().await;
    let strays = litter(&bench);
    let volume = opened(&mut bench).await;
    catalog::clone(&volume, "kept", "clone").await.unwrap();
    gc::collect(&volume, None).await.unwrap();
    assert_eq!(left(&bench, &strays), 0);
    holds(&volume, &bench).await;
    let beside = bench.beside();
    let open = async || {
        let options = || beside.options.clone();
        catalog::open(&beside.env(64 * MIB), options, "clone", true).await.unwrap()
    };
    let clone = open().await;
    clone.write(2 * CHUNK, pattern(41, 1 << 16), Volatile).await.unwrap();
    clone.close().await.unwrap();
    let clone = open().await;
    for of in [&volume, &clone, &volume] {
        let collected = gc::collect(of, None).await.unwrap();
        assert_eq!(collected.after.orphans.objects, 0, "{collected:?}");
    }
    clone.close().await.unwrap();
    let (mut expected, _) = contents();
    expected[2 << 16..3 << 16].copy_from_slice(&pattern(41, 1 << 16));
    assert!(read(&*open().await, 0, 4 * CHUNK).await == expected);
    holds(&volume, &bench).await;
}

/// Whatever request fails, with or without effect, and all after it.
#[tokio::test(start_paused = true)]
async fn a_collection_that_fails_anywhere_costs_nothing_and_can_be_repeated() {
    let filled = filled().await;
    for effect in [Action::FailBefore(Failure::Rejected), Action::FailAfter(Failure::Rejected)] {
        for requests in 0.. {
            let mut bench = copy(&filled);
            let strays = litter(&bench);
            let volume = opened(&mut bench).await;
            bench.fault.add(Rule::new(effect.clone()).skip(requests).times(1));
            bench.fault.add(Rule::new(Action::FailBefore(Failure::Rejected)).skip(requests + 1));
            let is_done = gc::collect(&volume, None).await.is_ok();
            bench.fault.clear();
            volume.abandon().await;
            assert_whole(&bench, &strays, &format!("after {effect:?} of request {requests}")).await;
            if is_done {
                assert!(requests > 10, "a collection takes more than {requests} requests");
                break;
            }
        }
    }
}

/// The gateway dies at any request, or hangs while another one takes the volume over and goes on after that.
#[tokio::test(start_paused = true)]
async fn a_collection_that_hangs_or_ends_anywhere_costs_its_successor_nothing() {
    let filled = filled().await;
    for is_answer in [false, true] {
        for requests in 0.. {
            let mut bench = copy(&filled);
            let strays = litter(&bench);
            let volume = opened(&mut bench).await;
            let gate = Gate::new();
            let action = match is_answer {
                true => Action::HoldAnswer(gate.clone()),
                false => Action::Hold(gate.clone()),
            };
            bench.fault.add(Rule::new(action).skip(requests).times(1));
            let mut late = pin!(gc::collect(&volume, None));
            let is_done = tokio::select! {
                biased;
                collected = late.as_mut() => { collected.unwrap(); true }
                () = gate.reached(1) => false,
            };
            // It may be another request of the gateway that hangs.
            let hangs = gate.count() > 0;
            let when = format!("after a halt at request {requests}, answer: {is_answer}");
            let mut beside = bench.beside();
            let next = beside.open().await;
            holds(&next, &beside).await;
            next.write(9 * CHUNK, pattern(51, 1 << 16), Durable).await.unwrap();
            next.checkpoint().await.unwrap();
            next.write(10 * CHUNK, pattern(52, 1 << 16), Durable).await.unwrap();
            gate.release();
            if !is_done {
                // Whether it could finish does not matter.
                drop(late.await);
            }
            let found = read(&next, 9 * CHUNK, 2 * CHUNK).await;
            assert!(found == [pattern(51, 1 << 16), pattern(52, 1 << 16)].concat(), "{when}");
            drop(next);
            assert_whole(&bench, &strays, &when).await;
            if !hangs {
                assert!(requests > 10, "a collection takes more than {requests} requests");
                break;
            }
        }
    }
}

/// The store denies an object once, whichever it is.
#[tokio::test(start_paused = true)]
async fn one_false_answer_costs_nothing() {
    let filled = filled().await;
    let mut bench = copy(&filled);
    litter(&bench);
    let volume = opened(&mut bench).await;
    bench.memory.reset_tallies();
    gc::collect(&volume, None).await.unwrap();
    let gets = u32::try_from(bench.gets("").requests).unwrap();
    assert!(gets > 10, "{gets} GETs");
    for nth in 0..gets {
        let mut bench = copy(&filled);
        let strays = litter(&bench);
        let volume = opened(&mut bench).await;
        let denied = Rule::new(Action::FailBefore(Failure::NotFound)).on(Operation::Get);
        bench.fault.add(denied.skip(nth).times(1));
        // It may give up.
        drop(gc::collect(&volume, None).await);
        bench.fault.clear();
        volume.abandon().await;
        assert_whole(&bench, &strays, &format!("after GET {nth} was denied")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_damaged_volume_nothing_is_deleted() {
    let filled = filled().await;
    let keys = keys_of(&filled);
    let objects = filled.memory.objects();
    let head = Head::decode(keys.volume(), &objects[&keys.head()]).expect("a head");
    let root = Root::decode(keys.sealing(), head.root, &objects[&keys.root(head.root)]).expect("a root");
    let current =
        |key: &String| root.map_pages.iter().any(|(number, page)| *key == keys.map_page(*number, page.id));
    let of_snapshot = filled.keys("/map/").into_iter().find(|key| !current(key));
    let pack = keys.pack(*root.packs.keys().next().expect("the disk has a block in a pack"));
    for lost in [of_snapshot.expect("the snapshot has a map page of its own"), pack] {
        let mut bench = copy(&filled);
        let strays = litter(&bench);
        drop(bench.memory.remove(&lost));
        let volume = opened(&mut bench).await;
        let before = bench.memory.objects().len();
        let refused = gc::collect(&volume, None).await;
        assert!(matches!(refused, Err(CollectError::Damaged { .. })), "{lost}: {refused:?}");
        let looked = gc::look(&bench.env(MIB), "disk").await;
        assert!(matches!(looked, Err(CollectError::Damaged { .. })), "{lost}: {looked:?}");
        assert_eq!((left(&bench, &strays), bench.memory.objects().len()), (strays.len(), before), "{lost}");
        bench.memory.insert(&lost, objects[&lost].clone());
        volume.abandon().await;
        assert_whole(&bench, &strays, &lost).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_lost_the_volume_deletes_nothing() {
    let mut bench = filled().await;
    let volume = opened(&mut bench).await;
    let mut beside = bench.beside();
    // The next one would sweep them.
    let sweeps = beside.fault.hold(Operation::Delete, "/");
    let next = beside.open().await;
    let strays = litter(&bench);
    let refused = gc::collect(&volume, None).await;
    assert!(matches!(refused, Err(CollectError::Volume(_))), "{refused:?}");
    assert_eq!(left(&bench, &strays), strays.len());
    assert!(volume.is_fenced());
    sweeps.release();
    holds(&next, &beside).await;
}

/// A store whose listings can leave out the journal.
#[derive(Debug)]
struct Forgetful {
    inner: Fault,
    forgets: Arc<AtomicBool>,
}

#[async_trait]
impl Store for Forgetful {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        self.inner.get(key, range).await
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        self.inner.put(key, body, condition).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        self.inner.delete(keys).await
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        let mut listing = self.inner.list(prefix, from).await?;
        if self.forgets.load(Ordering::Relaxed) {
            listing.entries.retain(|entry| !entry.key.contains("/journal/"));
        }
        Ok(listing)
    }
}

/// What the check of the store misses, the open volume still knows.
#[tokio::test(start_paused = true)]
async fn a_listing_that_leaves_out_the_journal_costs_no_chunk() {
    let mut bench = filled().await;
    let volume = bench.open().await;
    volume.write(8 * CHUNK, pattern(61, 1 << 16), Durable).await.unwrap();
    volume.abandon().await;
    let (forgets, seed) = (Arc::new(AtomicBool::new(false)), bench.beside());
    let store = Forgetful { inner: bench.fault.clone(), forgets: Arc::clone(&forgets) };
    let env = Environment { store: Classes::one(Arc::new(store)), ..seed.env(64 * MIB) };
    let volume = Volume::open(&env, bench.options.clone(), volume.id(), true).await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    forgets.store(true, Ordering::Relaxed);
    let collected = gc::collect(&volume, None).await.unwrap();
    assert_eq!(collected.before.orphans.objects, 1, "the chunk that only the journal references");
    assert_eq!(collected.after.orphans.objects, 1);
    forgets.store(false, Ordering::Relaxed);
    volume.abandon().await;
    let volume = bench.open().await;
    assert_eq!(read(&volume, 8 * CHUNK, CHUNK).await, pattern(61, 1 << 16));
    holds(&volume, &bench).await;
}
