//! What a snapshot contains, which names it may have, and what happens while it cannot be finished.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Rule};
use cairn::task::Tasks;
use cairn::volume::format::head::Head;
use cairn::volume::format::keys::{Keys, volume_of};
use cairn::volume::format::root::RootTable;
use cairn::volume::format::snapshot::Snapshot;
use cairn::volume::{OpenError, SnapshotDisk, SnapshotError, Volume, catalog};

use super::super::bench::{Bench, MIB, bytes_of, pattern, quiesce, read};
use super::super::engine::{Model, Numbers, fill};
use super::super::stored::Kept;
use super::{BLOCK, COLLECTED, change, disk, expect, has, small_bench, write_block};

#[tokio::test(start_paused = true)]
async fn a_snapshot_has_what_was_answered_before_it_and_nothing_of_later() {
    let mut bench = small_bench().await;
    let volume = bench.open().await;
    let mut model = Model::new(0, MIB);
    fill(&volume, &mut model).await;
    let mut numbers = Numbers(11);
    let mut taken = Vec::new();
    for round in 0..8_u64 {
        change(&volume, &mut model, &mut numbers).await;
        // Some of what it contains may be durable, or in a root already. Nothing need be.
        match round % 4 {
            1 => volume.flush().await.unwrap(),
            2 => volume.checkpoint().await.unwrap(),
            _ => {}
        }
        change(&volume, &mut model, &mut numbers).await;
        let name = format!("round-{round}");
        let seconds = 1_800_000_000 + 60 * round;
        bench.now_seconds.store(seconds, Ordering::Relaxed);
        let snapshot = volume.snapshot(&name).await.unwrap();
        assert_eq!(snapshot, Snapshot { name: name.clone(), taken_at_seconds: seconds });
        taken.push((snapshot, [model.clone()]));
        model.check(&volume, "the volume has the same").await;
        expect(&bench, &name, &taken.last().unwrap().1, "at once").await;
    }
    let all: Vec<Snapshot> = taken.iter().map(|(snapshot, _)| snapshot.clone()).collect();
    assert_eq!(volume.snapshots(), all);
    change(&volume, &mut model, &mut numbers).await;
    volume.consolidate().await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    Kept::of(&bench).assert_exact(&bench);
    volume.close().await.unwrap();
    let volume = bench.open().await;
    assert_eq!(volume.snapshots(), all, "after another opening");
    let env = bench.env(MIB);
    assert_eq!(cairn::volume::snapshot::list(&env, volume.id()).await.unwrap(), all, "without an opening");
    for (snapshot, models) in &taken {
        expect(&bench, &snapshot.name, models, "later").await;
    }
    model.check(&volume, "the volume has the newest").await;
}

/// Each writer writes the same number to its first block, and once that is answered to its second. At any one
/// instant, the first is equal to the second or the next number.
struct Writer {
    first: u64,
    begun: AtomicU64,
    answered: AtomicU64,
}

impl Writer {
    async fn run(&self, volume: &Volume) {
        for number in 1.. {
            self.begun.store(number, Ordering::Relaxed);
            for block in [self.first, self.first + 37] {
                let mut bytes = pattern(number, 4096).to_vec();
                bytes[..8].copy_from_slice(&number.to_le_bytes());
                volume.write(block * BLOCK, bytes.into(), Volatile).await.unwrap();
            }
            self.answered.store(number, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1 + (number * 7 + self.first) % 13)).await;
        }
    }

    /// The numbers in the two blocks of a snapshot.
    async fn found(&self, disk: &Arc<SnapshotDisk>) -> [u64; 2] {
        let mut numbers = [0; 2];
        for (number, block) in numbers.iter_mut().zip([self.first, self.first + 37]) {
            let bytes = bytes_of(&disk.read(block * BLOCK, BLOCK).await.unwrap());
            *number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            if *number > 0 {
                assert!(bytes[8..] == pattern(*number, 4096)[8..], "no block is torn");
            }
        }
        numbers
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_shows_one_instant_while_clients_write() {
    let mut bench = small_bench().await;
    let volume = bench.open().await;
    let slow = |from, to| Action::Delay(Duration::from_millis(from), Duration::from_millis(to));
    bench.fault.add(Rule::new(slow(5, 60)).on(Operation::Put));
    let writers: Vec<Arc<Writer>> = (0..6)
        .map(|n| Writer { first: n * 3, begun: AtomicU64::new(0), answered: AtomicU64::new(0) })
        .map(Arc::new)
        .collect();
    let tasks = Tasks::new();
    for writer in &writers {
        let (volume, writer) = (Arc::clone(&volume), Arc::clone(writer));
        drop(tasks.spawn_until_cancelled(async move { writer.run(&volume).await }));
    }
    let of = |count: fn(&Writer) -> &AtomicU64| -> Vec<u64> {
        writers.iter().map(|writer| count(writer).load(Ordering::Relaxed)).collect()
    };
    for round in 0..30_u64 {
        tokio::time::sleep(Duration::from_millis(round * 11 % 170)).await;
        let name = format!("round-{round}");
        let answered = of(|writer| &writer.answered);
        volume.snapshot(&name).await.unwrap();
        let begun = of(|writer| &writer.begun);
        let disk = disk(&bench, &name).await;
        for ((writer, answered), begun) in writers.iter().zip(answered).zip(begun) {
            let [first, second] = writer.found(&disk).await;
            assert!(second >= answered && first <= begun, "{answered}..={begun}, found {first}, {second}");
            assert!(first == second || first == second + 1, "no instant has {first} and {second}");
        }
    }
    tasks.shutdown().await;
    let counts = of(|writer| &writer.answered);
    assert!(counts.iter().all(|count| *count > 100), "all of them wrote all the time: {counts:?}");
}

#[tokio::test(start_paused = true)]
async fn clients_do_not_wait_for_a_snapshot() {
    let mut bench = small_bench().await;
    let volume = bench.open().await;
    let tasks = Tasks::new();
    for part in ["/journal/", "/root/", "/head"] {
        let gate = bench.fault.hold(Operation::Put, part);
        write_block(&volume, 1, 1).await;
        let name = format!("at-{}", &part[1..5]);
        let taken = tasks.spawn({
            let (volume, name) = (Arc::clone(&volume), name.clone());
            async move { volume.snapshot(&name).await }
        });
        gate.reached(1).await;
        let begun = tokio::time::Instant::now();
        write_block(&volume, 1, 2).await;
        assert_eq!(read(&volume, BLOCK, BLOCK).await, pattern(2, 4096));
        assert!(begun.elapsed().is_zero(), "{part}: {:?}", begun.elapsed());
        assert!(!taken.is_finished(), "{part}");
        bench.fault.clear();
        gate.release();
        taken.await.unwrap().unwrap();
        let found = disk(&bench, &name).await.read(BLOCK, BLOCK).await.unwrap();
        assert_eq!(bytes_of(&found), pattern(1, 4096), "{part}: what was written meanwhile is not in it");
    }
}

#[tokio::test(start_paused = true)]
async fn snapshots_between_which_nothing_changed_are_equal_and_separate() {
    let mut bench = small_bench().await;
    let volume = bench.open().await;
    let mut model = Model::new(0, MIB);
    volume.snapshot("empty").await.unwrap();
    volume.snapshot("empty-too").await.unwrap();
    change(&volume, &mut model, &mut Numbers(5)).await;
    volume.checkpoint().await.unwrap();
    for name in ["a", "b", "c"] {
        volume.snapshot(name).await.unwrap();
    }
    let empty = [Model::new(0, MIB)];
    let full = [model];
    for gone in ["b", "empty", "c", "a"] {
        volume.delete_snapshot(gone).await.unwrap();
        tokio::time::sleep(COLLECTED).await;
        Kept::of(&bench).assert_exact(&bench);
        for snapshot in volume.snapshots() {
            let models = if snapshot.name.starts_with("empty") { &empty } else { &full };
            expect(&bench, &snapshot.name, models, gone).await;
        }
        assert!(has(&volume, &full).await, "{gone}");
    }
    assert_eq!(Kept::of(&bench).names(), ["empty-too"]);
}

#[tokio::test(start_paused = true)]
async fn a_name_is_valid_and_used_once() {
    let mut bench = small_bench().await;
    let volume = bench.open().await;
    for name in ["", ".a", "a/b", "a b", "ä", &"x".repeat(129)] {
        let error = volume.snapshot(name).await.expect_err("not a name");
        assert!(matches!(&error, SnapshotError::BadName(bad) if bad == name), "{error}");
    }
    volume.snapshot(&"x".repeat(128)).await.unwrap();
    let tasks = Tasks::new();
    // Its commit is on its way; then durable, but without a root.
    for part in ["/journal/", "/root/"] {
        let gate = bench.fault.hold(Operation::Put, part);
        let taken = tasks.spawn({
            let volume = Arc::clone(&volume);
            async move { volume.snapshot("a").await }
        });
        gate.reached(1).await;
        let other = tasks.spawn({
            let volume = Arc::clone(&volume);
            async move { volume.snapshot("a").await }
        });
        quiesce().await;
        bench.fault.clear();
        gate.release();
        taken.await.unwrap().unwrap();
        let error = other.await.unwrap().expect_err("the name is taken");
        assert!(matches!(&error, SnapshotError::Exists(name) if name == "a"), "{part}: {error}");
        volume.snapshot("a").await.expect_err("it has a root now");
        volume.delete_snapshot("a").await.unwrap();
        let error = volume.delete_snapshot("a").await.expect_err("it is gone");
        assert!(matches!(&error, SnapshotError::NoSuchSnapshot(name) if name == "a"), "{part}: {error}");
        let found = SnapshotDisk::open(&bench.env(MIB), &bench.options, volume.id(), "a").await;
        assert!(matches!(found, Err(OpenError::NoSuchSnapshot(name)) if name == "a"), "{part}");
    }
    assert_eq!(volume.snapshots().len(), 1);
}

/// Adds copies of the only snapshot to the root table in the bucket.
fn add_snapshots(bench: &Bench, copies: usize) {
    let objects = bench.memory.objects();
    let head = objects.keys().find(|key| key.ends_with("/head")).unwrap();
    let keys = Keys::new(volume_of(head).unwrap());
    let id = Head::decode(keys.volume(), &objects[head]).unwrap().root_table;
    let mut table = RootTable::decode(keys.sealing(), id, &objects[&keys.root(id)]).unwrap();
    let place = table.roots.iter().position(|kept| kept.snapshot.is_some()).unwrap();
    for number in 0..copies {
        let mut kept = table.roots[place].clone();
        kept.snapshot.as_mut().unwrap().name = format!("copy-{number}");
        table.roots.insert(place, kept);
    }
    bench.memory.insert(&keys.root(id), table.encode(keys.sealing()).into());
}

#[tokio::test(start_paused = true)]
async fn a_volume_has_at_most_2048_snapshots() {
    let mut bench = small_bench().await;
    let volume = bench.open().await;
    volume.snapshot("first").await.unwrap();
    write_block(&volume, 1, 1).await;
    volume.close().await.unwrap();
    add_snapshots(&bench, 2046);
    let volume = bench.open().await;
    volume.snapshot("last").await.unwrap();
    let error = volume.snapshot("too-many").await.expect_err("one too many");
    assert!(matches!(error, SnapshotError::TooMany(2048)), "{error}");
    assert_eq!(volume.snapshots().len(), 2048);
    volume.delete_snapshot("last").await.unwrap();
    volume.snapshot("another").await.unwrap();
    volume.checkpoint().await.unwrap();
    assert_eq!(volume.snapshots().len(), 2048);
}

/// Takes snapshots while no root can be made. Returns what each has, and the tasks that take them.
async fn waiting(
    bench: &Bench,
    volume: &Arc<Volume>,
    tasks: &Tasks,
    count: u64,
) -> (Vec<(String, [Model; 1])>, Vec<tokio::task::JoinHandle<Result<Snapshot, SnapshotError>>>) {
    bench
        .fault
        .add(Rule::new(Action::FailBefore(Failure::Transient)).on(Operation::Put).containing("/root/"));
    let (mut model, mut numbers) = (Model::new(0, MIB), Numbers(3));
    let (mut expected, mut taken) = (Vec::new(), Vec::new());
    for number in 0..count {
        change(volume, &mut model, &mut numbers).await;
        let name = format!("waiting-{number:02}");
        taken.push(tasks.spawn({
            let (volume, name) = (Arc::clone(volume), name.clone());
            async move { volume.snapshot(&name).await }
        }));
        quiesce().await;
        expected.push((name, [model.clone()]));
    }
    (expected, taken)
}

#[tokio::test(start_paused = true)]
async fn snapshots_whose_folds_fail_wait_and_each_gets_its_own_root() {
    let mut bench = small_bench().await;
    let volume = bench.open().await;
    let tasks = Tasks::new();
    let (mut expected, taken) = waiting(&bench, &volume, &tasks, 20).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(volume.snapshots().is_empty() && taken.iter().all(|taken| !taken.is_finished()));
    bench.fault.clear();
    for taken in taken {
        taken.await.unwrap().unwrap();
    }
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    let kept = Kept::of(&bench);
    kept.assert_exact(&bench);
    let names: Vec<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(kept.names(), names);
    // Those that had to wait for room were taken later than they were asked for.
    let last = expected.last().unwrap().1.clone();
    for (_, models) in expected.iter_mut().skip(16) {
        *models = last.clone();
    }
    for (name, models) in &expected {
        expect(&bench, name, models, "after the failures").await;
    }
    assert!(has(&volume, &last).await);
}

#[tokio::test(start_paused = true)]
async fn snapshots_that_have_no_root_yet_are_replayed() {
    let mut bench = small_bench().await;
    let volume = bench.open().await;
    let tasks = Tasks::new();
    let (expected, taken) = waiting(&bench, &volume, &tasks, 20).await;
    volume.flush().await.unwrap();
    volume.abandon().await;
    for taken in taken {
        let error = taken.await.unwrap().expect_err("the gateway is gone");
        assert!(matches!(error, SnapshotError::Volume(_)), "{error}");
    }
    bench.fault.clear();
    let volume = bench.open().await;
    // No checkpoint is due. The snapshots alone cause the folds.
    tokio::time::sleep(COLLECTED).await;
    let names: Vec<String> = volume.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
    let asked: Vec<&String> = expected.iter().map(|(name, _)| name).collect();
    assert_eq!(names.iter().collect::<Vec<_>>(), asked[..16], "only so many may wait");
    for (name, models) in &expected[..16] {
        expect(&bench, name, models, "replayed").await;
    }
    assert!(has(&volume, &expected[19].1).await);
    volume.close().await.unwrap();
    let volume = bench.open().await;
    tokio::time::sleep(COLLECTED).await;
    Kept::of(&bench).assert_exact(&bench);
    assert!(has(&volume, &expected[19].1).await);
}

/// A gateway that was deposed can neither take nor delete a snapshot.
#[tokio::test(start_paused = true)]
async fn only_the_holder_takes_and_deletes_snapshots() {
    let mut bench = small_bench().await;
    let first = bench.open().await;
    write_block(&first, 1, 1).await;
    first.snapshot("a").await.unwrap();
    let second = bench.open().await;
    let error = first.delete_snapshot("a").await.expect_err("it is deposed");
    assert!(matches!(error, SnapshotError::Volume(_)), "{error}");
    let error = first.snapshot("b").await.expect_err("it is deposed");
    assert!(matches!(error, SnapshotError::Volume(_)), "{error}");
    let names: Vec<String> = second.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
    assert_eq!(names, ["a"]);
    second.close().await.unwrap();
    let error = second.snapshot("c").await.expect_err("it is closed");
    assert!(matches!(error, SnapshotError::Volume(_)), "{error}");
    let env = bench.env(MIB);
    let volume = catalog::resolve(&env, "disk").await.unwrap();
    let names = cairn::volume::snapshot::list(&env, volume).await.unwrap();
    assert_eq!(names.len(), 1);
}
