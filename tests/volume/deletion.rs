//! No object is deleted that is still referenced, and every unreferenced object is deleted.

use std::time::Duration;

use cairn::effect::Durability::{Durable, Volatile};
use cairn::effect::Zeroing;
use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::volume::catalog;

use super::bench::{Bench, MIB, pattern, read};
use super::stored::Stored;

#[tokio::test(start_paused = true)]
async fn a_trim_of_a_full_volume_reads_no_data_and_its_objects_go() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    for n in 0..16_u64 {
        volume.write(n * 4 * MIB, pattern(n, 4 << 20), Volatile).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
    assert_eq!(bench.keys("/chunk/").len(), 16);
    bench.memory.reset_tallies();
    volume.zero(0, 64 * MIB, Zeroing::Deallocate, Durable).await.unwrap();
    volume.checkpoint().await.unwrap();
    assert_eq!(bench.keys("/chunk/").len(), 16, "kept for the grace");
    assert_eq!(read(&volume, 0, MIB).await, vec![0; 1 << 20]);
    tokio::time::sleep(bench.options.deletion_grace + Duration::from_secs(60)).await;
    assert_eq!(bench.keys("/chunk/"), Vec::<String>::new());
    assert_eq!(bench.gets("/chunk/").requests, 0);
    volume.close().await.unwrap();
    let volume = bench.open().await;
    assert_eq!(read(&volume, 0, MIB).await, vec![0; 1 << 20]);
}

/// Whether overlays are objects or parts of their map page.
#[tokio::test(start_paused = true)]
async fn overwriting_for_ever_keeps_the_bucket_small() {
    for embed_bytes in [4096, 0] {
        let mut bench = Bench::new(64 * MIB).await;
        bench.options.embed_bytes = embed_bytes;
        bench.options.deletion_grace = Duration::ZERO;
        let volume = bench.open().await;
        for round in 0..20_u64 {
            for n in 0..4_u64 {
                let (at, seed) = (n * 4 * MIB + round * 4096, round * 10 + n);
                volume.write(at, pattern(seed, 100_000), Volatile).await.unwrap();
            }
            volume.write(32 * MIB, pattern(round, 4 << 20), Durable).await.unwrap();
            volume.checkpoint().await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(bench.keys("/chunk/").len(), 1, "{:?}", bench.keys("/chunk/"));
        assert_eq!(bench.keys("/map/").len(), 1);
        // All but the newest packs are mostly overwritten, and rewritten into the next one.
        assert!(bench.keys("/pack/").len() <= 3, "{:?}", bench.keys("/pack/"));
        let overlays = bench.keys("/overlay/").len();
        assert!(overlays <= if embed_bytes == 0 { bench.options.overlays } else { 0 }, "{overlays} overlays");
        assert!(bench.keys("/journal/").len() <= 1, "{:?}", bench.keys("/journal/"));
        assert_eq!(bench.keys("/root/").len(), 2, "{:?}", bench.keys("/root/"));
        let stored = Stored::of(&bench);
        stored.assert_counts();
        stored.assert_nothing_else(&bench);
        // 19 blocks before the last range of 100,000 bytes, and 25 in it, in each of four chunks.
        let space = stored.root.space();
        assert_eq!(space.live, 1024 + 4 * 44);
        assert!(space.stored <= space.live + 4 * 44, "{space:?}");
        assert_eq!(read(&volume, 32 * MIB, 4 * MIB).await, pattern(19, 4 << 20));
        for n in 0..4_u64 {
            assert_eq!(read(&volume, n * 4 * MIB + 19 * 4096, 100_000).await, pattern(190 + n, 100_000));
            assert_eq!(read(&volume, n * 4 * MIB, 4096).await, pattern(n, 4096));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_unclean_end_left_behind_is_swept() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.deletion_grace = Duration::from_secs(60);
    let volume = bench.open().await;
    volume.write(0, pattern(1, 4 << 20), Durable).await.unwrap();
    // This chunk is uploaded, but no record references it when the gateway dies.
    volume.write(8 * MIB, pattern(2, 4 << 20), Volatile).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.keys("/chunk/").len(), 2);
    volume.abandon().await;
    let volume = bench.open().await;
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(bench.keys("/chunk/").len(), 1);
    assert_eq!(read(&volume, 0, 4 * MIB).await, pattern(1, 4 << 20));
    assert_eq!(read(&volume, 8 * MIB, 4 * MIB).await, vec![0; 4 << 20]);
    volume.close().await.unwrap();
    let volume = bench.open().await;
    assert_eq!(read(&volume, 0, 4 * MIB).await, pattern(1, 4 << 20));
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_was_replaced_on_its_way_is_waited_for_and_goes() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    let gate = Gate::new();
    bench.fault.add(Rule::new(Action::Hold(gate.clone())).on(Operation::Put).containing("/chunk/").times(1));
    volume.write(0, pattern(1, 4 << 20), Volatile).await.unwrap();
    gate.reached(1).await;
    // Filled again before the commit: no record will reference the first object, which is still being
    // uploaded.
    volume.write(0, pattern(2, 4 << 20), Volatile).await.unwrap();
    let flush = volume.flush();
    tokio::pin!(flush);
    let hour = tokio::time::timeout(Duration::from_secs(3600), flush.as_mut());
    hour.await.expect_err("what lands after its deletion would stay for ever");
    gate.release();
    flush.await.unwrap();
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.keys("/chunk/").len(), 1, "{:?}", bench.keys("/chunk/"));
    volume.close().await.unwrap();
    let volume = bench.open().await;
    assert_eq!(read(&volume, 0, 4 * MIB).await, pattern(2, 4 << 20));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_volume_leaves_nothing_and_fences_its_writer() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    volume.write(0, pattern(1, 4 << 20), Durable).await.unwrap();
    let env = bench.env(MIB);
    let error = catalog::delete(&env, &bench.options, "disk", false).await.expect_err("it is in use");
    assert!(error.to_string().contains("in use"), "{error}");
    let gate = bench.fault.hold(cairn::store::Operation::Delete, "/journal/");
    let delete = catalog::delete(&env, &bench.options, "disk", true);
    let (deleted, ()) = tokio::join!(delete, async {
        gate.reached(1).await;
        volume.write(4096, pattern(2, 4096), Durable).await.expect_err("its log is sealed");
        gate.release();
    });
    deleted.unwrap();
    let left: Vec<String> = bench.memory.objects().into_keys().collect();
    assert_eq!(left, ["name/disk"], "only that the name is free");
}

/// A closed volume of 256 MiB. Its one large record references a chunk object that the root does not, and the
/// deletion grace of that object is not over. Returns the key of the record too.
async fn closed_with_leftovers() -> (Bench, String) {
    let mut bench = Bench::new(256 * MIB).await;
    bench.options.deletion_grace = Duration::from_secs(60);
    let volume = bench.open().await;
    volume.write(0, pattern(1, 4 << 20), Volatile).await.unwrap();
    for n in 0..3000_u64 {
        volume.write(4 * MIB + n * 81_920, pattern(n, 4096), Volatile).await.unwrap();
    }
    volume.flush().await.unwrap();
    volume.write(0, pattern(2, 4 << 20), Durable).await.unwrap();
    volume.close().await.unwrap();
    let sizes = bench.memory.objects();
    let large = |key: &&String| key.contains("/journal/") && sizes[*key].len() > 3000 * 4096;
    let large = sizes.keys().find(large).expect("its data went into one record").clone();
    (bench, large)
}

#[tokio::test(start_paused = true)]
async fn the_look_for_leftovers_reads_no_data_of_folded_records() {
    let (mut bench, _) = closed_with_leftovers().await;
    let chunks = bench.keys("/chunk/").len();
    bench.memory.reset_tallies();
    let volume = bench.open().await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(bench.keys("/chunk/").len(), chunks - 1, "the one that a later record replaced is gone");
    let left: Vec<String> =
        bench.keys("/journal/").into_iter().filter(|key| !key.contains("/0000000002/")).collect();
    assert_eq!(left.len(), 2, "only the seals of the creator's and the first epoch are left: {left:?}");
    let read = bench.gets("/journal/");
    assert!(read.bytes < 300_000, "{read:?}");
    assert_eq!(self::read(&volume, 0, 4 * MIB).await, pattern(2, 4 << 20));
}

#[tokio::test(start_paused = true)]
async fn what_is_left_goes_while_the_look_for_more_is_on_its_way() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    for n in 0..400_u64 {
        volume.write(n * 4096, pattern(n, 512), Durable).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
    volume.abandon().await;
    let log = |bench: &Bench| bench.keys("/journal/0000000001/").len();
    assert_eq!(log(&bench), 401, "an opening record, and 400 for which the grace was not over");
    bench.options.deletion_grace = Duration::ZERO;
    let gate = Gate::new();
    let hold = Rule::new(Action::Hold(gate.clone())).on(Operation::Get).containing("/journal/0000000001/");
    let held = bench.fault.add(hold.skip(300));
    let volume = bench.open().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let left = log(&bench);
    assert!((100..=200).contains(&left), "{left} of 401 are left when 300 were looked at");
    bench.fault.remove(held);
    gate.release();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(log(&bench), 1, "the seal");
    assert_eq!(read(&volume, 399 * 4096, 512).await, pattern(399, 512));
}

/// The listing has pages of 5 keys, so these are more pages than batches may wait in the queue.
#[tokio::test(start_paused = true)]
async fn however_many_records_an_opening_finds_each_is_kept_for_its_grace_period() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    for n in 0..6000_u64 {
        volume.write(n * 4096, pattern(n, 512), Durable).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
    volume.abandon().await;
    let kept = |bench: &Bench| (bench.keys("/root/").len(), bench.keys("/journal/0000000001/").len());
    assert_eq!(kept(&bench), (6, 6001), "three roots, a table of each; the opening record and all others");
    let volume = bench.open().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(kept(&bench), (4, 6002), "only two replaced tables are gone; a seal is new");
    tokio::time::sleep(bench.options.deletion_grace).await;
    assert_eq!(kept(&bench), (2, 1), "the current root and its table, and the seal");
    assert_eq!(read(&volume, 5999 * 4096, 512).await, pattern(5999, 512));
}

#[tokio::test(start_paused = true)]
async fn a_folded_record_that_names_the_chunk_of_another_epoch_is_left_alone() {
    let (mut bench, key) = closed_with_leftovers().await;
    let chunks = bench.keys("/chunk/");
    let mut record = bench.memory.objects()[&key].to_vec();
    // After the header of 82 bytes: a change of kind 3, the chunk's index, the epoch of its object.
    assert_eq!(record[82..91], [3, 0, 0, 0, 0, 1, 0, 0, 0]);
    record[87] = 2;
    bench.memory.insert(&key, record.into());
    let volume = bench.open().await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(bench.keys("/chunk/"), chunks);
    assert!(bench.memory.objects().contains_key(&key));
    assert_eq!(self::read(&volume, 0, 4 * MIB).await, pattern(2, 4 << 20));
}

#[tokio::test(start_paused = true)]
async fn a_record_stays_while_reads_need_it_though_the_head_is_further() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    volume.write(0, pattern(1, 8192), Durable).await.unwrap();
    volume.abandon().await;
    bench.options.deletion_grace = Duration::ZERO;
    // The sweep begins by reading the roots that are kept. Before it, the opening reads a root and a table.
    let look = Gate::new();
    let held = Rule::new(Action::Hold(look.clone())).on(Operation::Get).containing("/root/");
    bench.fault.add(held.skip(2));
    let volume = bench.open().await;
    look.reached(1).await;
    let head = Gate::new();
    bench.fault.add(Rule::new(Action::HoldAnswer(head.clone())).on(Operation::Put).containing("/head"));
    let folds = async { volume.checkpoint().await.unwrap() };
    let looks = async {
        head.reached(1).await;
        look.release();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let data = read(&volume, 0, 8192).await;
        head.release();
        data
    };
    let ((), data) = tokio::join!(folds, looks);
    assert_eq!(data, pattern(1, 8192));
    assert_eq!(read(&volume, 0, 8192).await, pattern(1, 8192));
    volume.close().await.unwrap();
    bench.fault.clear();
    let volume = bench.open().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.keys("/journal/0000000001/").len(), 1, "only the seal is left");
    assert_eq!(read(&volume, 0, 8192).await, pattern(1, 8192));
}

#[tokio::test(start_paused = true)]
async fn a_root_whose_deletion_was_cut_short_keeps_nothing() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.deletion_grace = Duration::ZERO;
    let volume = bench.open().await;
    volume.write(0, pattern(1, 4 << 20), Durable).await.unwrap();
    volume.checkpoint().await.unwrap();
    bench
        .fault
        .add(Rule::new(Action::FailBefore(Failure::Rejected)).on(Operation::Delete).containing("/root/"));
    // This replaces the first root. Only the first and the second root reference the first chunk's object.
    volume.write(4 * MIB, pattern(2, 4 << 20), Durable).await.unwrap();
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    volume.write(0, pattern(3, 4 << 20), Durable).await.unwrap();
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    volume.close().await.unwrap();
    bench.fault.clear();
    let volume = bench.open().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(bench.keys("/chunk/").len(), 2, "{:?}", bench.keys("/chunk/"));
    assert_eq!(bench.keys("/map/").len(), 1, "{:?}", bench.keys("/map/"));
    assert_eq!(bench.keys("/root/").len(), 2, "{:?}", bench.keys("/root/"));
    assert_eq!(read(&volume, 0, 4 * MIB).await, pattern(3, 4 << 20));
    assert_eq!(read(&volume, 4 * MIB, 4 * MIB).await, pattern(2, 4 << 20));
}

/// No record references the object, so only a sweep finds it. A hand-over records that a sweep is needed.
#[tokio::test(start_paused = true)]
async fn a_chunk_that_was_replaced_before_its_commit_goes_after_a_hand_over_too() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.deletion_grace = Duration::ZERO;
    let volume = bench.open().await;
    volume.checkpoint().await.unwrap();
    for seed in 1..=3 {
        volume.write(0, pattern(seed, 4 << 20), Volatile).await.unwrap();
        // Wait until its object is durable. It is not committed yet.
        let objects = usize::try_from(seed).unwrap();
        while bench.keys("/chunk/").len() < objects {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    volume.hand_on().await.unwrap();
    assert_eq!(bench.keys("/chunk/").len(), 3, "it was not folded, nor swept");
    let volume = bench.open().await;
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(bench.keys("/chunk/").len(), 1, "{:?}", bench.keys("/chunk/"));
    assert_eq!(read(&volume, 0, 4 * MIB).await, pattern(3, 4 << 20));
}
