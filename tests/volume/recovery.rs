//! One writer, and recovery to exactly the state after some commit.

use std::time::Duration;

use cairn::effect::Durability::{Durable, Volatile};
use cairn::store::Operation;
use cairn::volume::{Error, OpenError, Status, Volume, catalog};

use super::bench::{Bench, MIB, pattern, quiesce, read};
use crate::golden::seal;

#[tokio::test(start_paused = true)]
async fn a_second_gateway_is_refused_while_the_lease_lives() {
    let mut bench = Bench::new(64 * MIB).await;
    let first = bench.open().await;
    let error = bench.try_open(false).await.expect_err("the first renews its lease");
    assert!(matches!(&error, OpenError::Held { holder } if holder.contains("gateway 2")), "{error}");
    first.write(0, pattern(1, 4096), Durable).await.unwrap();
    first.abandon().await;
    let begun = tokio::time::Instant::now();
    let second = bench.try_open(false).await.expect("the lease ran out");
    assert!(begun.elapsed() >= bench.options.lease_ttl, "a whole lease time was waited");
    assert_eq!(read(&second, 0, 4096).await, pattern(1, 4096));
}

#[tokio::test(start_paused = true)]
async fn the_deposed_gateway_fails_everything_and_no_flushed_write_is_missing() {
    let mut bench = Bench::new(64 * MIB).await;
    let first = bench.open().await;
    first.write(0, pattern(1, 4096), Durable).await.unwrap();
    let second = bench.open().await;
    first.write(4096, pattern(2, 4096), Volatile).await.unwrap();
    let error = first.flush().await.expect_err("its log is sealed");
    assert!(matches!(&error, Error::Stopped(why) if why.contains("seal of epoch 2")), "{error}");
    assert!(matches!(first.status(), Status::Stopped(_)));
    first.write(0, pattern(3, 512), Volatile).await.expect_err("nothing more is served");
    first.read(0, 512).await.expect_err("nothing more is served");
    assert_eq!(read(&second, 0, 4096).await, pattern(1, 4096));
    assert_eq!(read(&second, 4096, 4096).await, vec![0; 4096], "what was not flushed is not there");
    second.write(4096, pattern(4, 4096), Durable).await.unwrap();
    second.close().await.unwrap();
    let third = bench.open().await;
    assert_eq!(read(&third, 0, 8192).await, [pattern(1, 4096), pattern(4, 4096)].concat());
}

/// The new holder deletes the journal that the old one is folding. The old one must not ask for many seconds
/// whether each record is really gone.
#[tokio::test(start_paused = true)]
async fn the_checkpoint_of_a_deposed_gateway_ends_although_its_journal_is_gone() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.deletion_grace = Duration::ZERO;
    let writer = bench.open().await;
    for n in 0..20 {
        writer.write(n * MIB, pattern(n, 512), Durable).await.unwrap();
    }
    writer.abandon().await;
    let mut other = bench.beside();
    let first = bench.open().await;
    let gate = bench.fault.hold(Operation::Get, "/journal/");
    let (outcome, released) = tokio::join!(first.checkpoint(), async {
        gate.reached(1).await;
        let second = other.open().await;
        second.checkpoint().await.unwrap();
        // The opening record and the seal may stay.
        while bench.keys("/journal/0000000001/").len() > 2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        gate.release();
        let released = tokio::time::Instant::now();
        first.stopped().await;
        (released, second)
    });
    let (released, second) = released;
    assert!(matches!(&outcome, Err(Error::Stopped(_))), "{outcome:?}");
    assert!(released.elapsed() < Duration::from_secs(15), "it ended after {:?}", released.elapsed());
    assert_eq!(read(&second, 19 * MIB, 512).await, pattern(19, 512));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_lands_late_counts_only_before_the_seal() {
    let mut bench = Bench::new(64 * MIB).await;
    let first = bench.open().await;
    let gate = bench.fault.hold(Operation::Put, "/journal/0000000001/");
    first.write(0, pattern(1, 4096), Volatile).await.unwrap();
    let flush = first.flush();
    tokio::pin!(flush);
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut flush).await.is_err());
    gate.reached(1).await;
    bench.fault.clear();
    let second = bench.open().await;
    assert_eq!(read(&second, 0, 4096).await, vec![0; 4096]);
    gate.release();
    let error = flush.await.expect_err("the slot is sealed");
    assert!(matches!(error, Error::Stopped(_)), "{error}");
    assert_eq!(read(&second, 0, 4096).await, vec![0; 4096]);
}

#[tokio::test(start_paused = true)]
async fn after_a_close_the_next_opening_replays_nothing_and_waits_for_nothing() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    for n in 0..50_u64 {
        volume
            .write(n * 100_000, pattern(n, 3000), if n % 5 == 0 { Durable } else { Volatile })
            .await
            .unwrap();
    }
    volume.close().await.unwrap();
    bench.memory.reset_tallies();
    let begun = tokio::time::Instant::now();
    let volume = bench.try_open(false).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "no lease was waited for");
    assert_eq!(volume.usage().journal_records, 1, "only our opening record");
    for n in (0..50_u64).rev() {
        let end = (n * 100_000 + 3000).min((n + 1) * 100_000);
        assert_eq!(read(&volume, n * 100_000, end - n * 100_000).await, pattern(n, 3000));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_handed_on_is_committed_and_replayed_without_a_wait_or_a_checkpoint() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    for n in 0..5_u64 {
        volume.write(n * 100_000, pattern(n, 3000), Volatile).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
    for n in 5..10_u64 {
        volume
            .write(n * 100_000, pattern(n, 3000), if n % 2 == 0 { Durable } else { Volatile })
            .await
            .unwrap();
    }
    bench.memory.reset_tallies();
    let begun = tokio::time::Instant::now();
    volume.hand_on().await.unwrap();
    assert_eq!(bench.puts("/root/").requests, 0, "no checkpoint");
    let volume = bench.try_open(false).await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "neither the lease nor the age of the head was waited for"
    );
    assert!(volume.usage().journal_records > 1, "the journal is replayed");
    for n in 0..10_u64 {
        assert_eq!(read(&volume, n * 100_000, 3000).await, pattern(n, 3000), "{n}");
    }
    let late = volume.hand_on().await;
    assert!(late.is_ok() && volume.write(0, pattern(0, 512), Volatile).await.is_err(), "{late:?}");
}

/// The replay of a long journal would keep clients waiting for longer than the fold does.
#[tokio::test(start_paused = true)]
async fn a_long_journal_is_folded_before_it_is_handed_on() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.journal_max_records = 80;
    let volume = bench.open().await;
    for n in 0..20_u64 {
        volume.write(n * 100_000, pattern(n, 3000), Durable).await.unwrap();
    }
    volume.hand_on().await.unwrap();
    let volume = bench.try_open(false).await.unwrap();
    assert_eq!(volume.usage().journal_records, 1, "only our opening record");
    assert_eq!(read(&volume, 1_900_000, 3000).await, pattern(19, 3000));
}

/// Updates of the head keep a minimum distance in time, but not while somebody waits for the volume to close.
#[tokio::test(start_paused = true)]
async fn a_closing_waits_for_no_age_of_the_head() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.head_interval = Duration::from_secs(600);
    bench.options.lease_ttl = Duration::from_secs(3600);
    let volume = bench.open().await;
    // With the opening, these are as many updates as may follow each other at once.
    for n in 0..3 {
        volume.write(0, pattern(n, 4096), Durable).await.unwrap();
        volume.checkpoint().await.unwrap();
    }
    volume.write(0, pattern(3, 4096), Durable).await.unwrap();
    let begun = tokio::time::Instant::now();
    volume.close().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_broken_chain_is_refused() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    for n in 0..3_u64 {
        volume.write(n * 4096, pattern(n, 4096), Durable).await.unwrap();
    }
    volume.abandon().await;
    let record = bench.keys("/journal/0000000001/00000000000000000003").pop().unwrap();
    let body = bench.memory.objects()[&record].clone();
    let mut flipped = body.to_vec();
    flipped[100] ^= 0x10;
    bench.memory.insert(&record, flipped.into());
    let error = bench.try_open(true).await.expect_err("the record fails its check");
    assert!(matches!(&error, OpenError::Damaged { key, .. } if *key == record), "{error}");
    for left in [0, 1, 60, body.len() - 1] {
        bench.memory.insert(&record, body.slice(..left));
        let error = bench.try_open(true).await.expect_err("the record is cut short");
        assert!(matches!(&error, OpenError::Damaged { key, .. } if *key == record), "{left}: {error}");
    }
    bench.memory.insert(&record, body);
    let volume = bench.open().await;
    for n in 0..3_u64 {
        assert_eq!(read(&volume, n * 4096, 4096).await, pattern(n, 4096));
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_of_what_lies_past_the_end_is_refused() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    volume.write(32 * MIB, pattern(1, 4096), Durable).await.unwrap();
    volume.abandon().await;
    // The same journal with a root that has half the size.
    let (key, body) = bench.memory.objects().into_iter().find(|(key, _)| key.contains("/root/0-1")).unwrap();
    let size = (64 * MIB).to_le_bytes();
    let at = body.windows(8).position(|bytes| bytes == size).expect("a root has the size");
    let mut smaller = body.to_vec();
    smaller[at..at + 8].copy_from_slice(&(32 * MIB).to_le_bytes());
    seal(&mut smaller);
    bench.memory.insert(&key, smaller.into());
    let error = bench.try_open(true).await.expect_err("a write past the end");
    assert!(error.to_string().contains("changes byte 33558527 of a volume of 33554432"), "{error}");
    bench.memory.insert(&key, body);
    assert_eq!(read(&*bench.open().await, 32 * MIB, 4096).await, pattern(1, 4096));
}

#[tokio::test(start_paused = true)]
async fn two_openers_at_once_leave_one_writer() {
    let mut bench = Bench::new(64 * MIB).await;
    let first = bench.open().await;
    first.write(0, pattern(1, 4096), Durable).await.unwrap();
    first.abandon().await;
    let gate = bench.fault.hold(Operation::Put, "/journal/0000000001/");
    let mut other = bench.beside();
    let slow = bench.try_open(true);
    tokio::pin!(slow);
    assert!(tokio::time::timeout(Duration::from_secs(5), &mut slow).await.is_err(), "held at its seal");
    let fast = other.open().await;
    fast.write(4096, pattern(2, 4096), Durable).await.unwrap();
    gate.release();
    let error = slow.await.expect_err("a later epoch sealed the log");
    assert!(matches!(error, OpenError::Lost(_)), "{error}");
    quiesce().await;
    fast.write(8192, pattern(3, 4096), Durable).await.unwrap();
    assert_eq!(read(&fast, 0, 4096).await, pattern(1, 4096));
}

/// While the opener is paused, everything that it listed is folded and deleted, except the seals. These come
/// after the deleted records in the log.
#[tokio::test(start_paused = true)]
async fn an_opener_that_was_overtaken_says_so() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.deletion_grace = Duration::ZERO;
    let first = bench.open().await;
    first.write(0, pattern(1, 4096), Durable).await.unwrap();
    first.abandon().await;
    // The gateway of epoch 2 dies before its opening record, so the next one puts a seal into its first slot.
    let gate = bench.fault.hold(Operation::List, "/journal/");
    let dies = tokio::time::timeout(Duration::from_secs(5), bench.try_open(true)).await;
    assert!(dies.is_err() && gate.count() == 1, "held at the listing");
    bench.fault.clear();
    bench.open().await.abandon().await;
    let gate = bench.fault.hold(Operation::List, "/journal/");
    let mut other = bench.beside();
    let slow = bench.try_open(true);
    tokio::pin!(slow);
    assert!(tokio::time::timeout(Duration::from_secs(5), &mut slow).await.is_err(), "held at the listing");
    let fast = other.open().await;
    fast.checkpoint().await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(other.keys("/journal/0000000001/").len(), 1, "its seal stays");
    gate.release();
    let error = slow.await.expect_err("it lost the volume");
    assert!(matches!(&error, OpenError::Lost(to) if to.contains("epoch 5")), "{error}");
    assert_eq!(read(&fast, 0, 4096).await, pattern(1, 4096));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_keeps_dying_leaves_no_ever_longer_journal() {
    let mut bench = Bench::new(64 * MIB).await;
    for n in 0..40_u64 {
        let volume = bench.open().await;
        volume.write(n * 4096, pattern(n, 4096), Durable).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        volume.abandon().await;
    }
    bench.memory.reset_tallies();
    let volume = bench.open().await;
    let gets = bench.gets("/journal/").requests;
    assert!(gets < 20, "{gets} records and seals were read");
    for n in 0..40_u64 {
        assert_eq!(read(&volume, n * 4096, 4096).await, pattern(n, 4096));
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_lost_gives_its_share_of_the_dirty_bound_back() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.dirty_bytes = MIB;
    bench.options.commit_max_bytes = 256 << 10;
    let env = bench.env(MIB);
    let id = catalog::resolve(&env, "disk").await.unwrap();
    let first = Volume::open(&env, bench.options.clone(), id, false).await.unwrap();
    let gate = bench.fault.hold(Operation::Put, "/journal/");
    first.write(0, pattern(1, 512 << 10), Volatile).await.unwrap();
    quiesce().await;
    assert_eq!(gate.count(), 1, "a commit is on its way");
    first.write(MIB, pattern(2, 128 << 10), Volatile).await.unwrap();
    assert_eq!(env.budget.used(), (640 << 10) / 4096, "and there is dirty data besides");
    let second = bench.beside().open().await;
    gate.release();
    first.stopped().await;
    assert_eq!(env.budget.used(), 0);
    drop(second);
    let third = Volume::open(&env, bench.options.clone(), id, true).await.unwrap();
    for n in 0..8 {
        third.write(n * MIB, pattern(n, 1 << 20), Volatile).await.unwrap();
    }
}
