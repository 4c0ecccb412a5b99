//! Limits: the length of a record and of the journal, what an opening reads, and the memory of a reply.

use std::time::Duration;

use cairn::effect::Durability::{Durable, Volatile};
use cairn::store::Operation;
use cairn::store::fault::{Action, Gate, Rule};
use cairn::volume::{OpenError, Segment, Status, Volume};

use super::bench::{Bench, MIB, pattern, quiesce, read};

const KIB: u64 = 1 << 10;

/// The sizes in bytes of the commit records in the bucket.
fn commit_bytes(bench: &Bench) -> Vec<u64> {
    let objects = bench.memory.objects();
    let records = objects.iter().filter(|(key, _)| key.contains("/journal/"));
    records.map(|(_, body)| body.len() as u64).filter(|bytes| *bytes > 200).collect()
}

/// Writes 256 KiB into each of the given chunks.
async fn write_apart(volume: &Volume, chunks: std::ops::Range<u64>) {
    for chunk in chunks {
        volume.write(chunk * 4 * MIB, pattern(chunk, 256 << 10), Volatile).await.unwrap();
    }
}

async fn check_apart(volume: &Volume, chunks: std::ops::Range<u64>) {
    for chunk in chunks {
        assert_eq!(read(volume, chunk * 4 * MIB, 256 * KIB).await, pattern(chunk, 256 << 10), "{chunk}");
    }
}

/// The data that gathers while records are in flight must not all go into the next record.
#[tokio::test(start_paused = true)]
async fn what_gathers_while_records_are_on_their_way_goes_in_records_within_the_bound() {
    let mut bench = Bench::new(512 * MIB).await;
    bench.options.commit_max_bytes = MIB;
    bench.options.commits_in_flight = 2;
    let volume = bench.open().await;
    let gate = bench.fault.hold(Operation::Put, "/journal/0000000001/");
    write_apart(&volume, 0..8).await;
    gate.reached(2).await;
    write_apart(&volume, 8..100).await;
    check_apart(&volume, 0..100).await;
    assert_eq!(gate.count(), 2, "no more than two are on their way");
    gate.release();
    volume.flush().await.unwrap();
    let sizes = commit_bytes(&bench);
    assert!(sizes.iter().all(|bytes| *bytes <= MIB), "{sizes:?}");
    assert!(sizes.len() < 40, "and they are as few as they can be: {sizes:?}");
    volume.abandon().await;
    let volume = bench.open().await;
    check_apart(&volume, 0..100).await;
}

/// Waiting cuts are bounded too, because every read has to look into each of them.
#[tokio::test(start_paused = true)]
async fn writers_wait_once_too_many_cuts_wait_for_their_records() {
    let mut bench = Bench::with_chunks(512 * MIB, 64 * KIB).await;
    bench.options.commit_max_bytes = 64 * KIB;
    bench.options.commits_in_flight = 2;
    bench.dirty_bytes = 64 * MIB;
    let volume = bench.open().await;
    let gate = bench.fault.hold(Operation::Put, "/journal/0000000001/");
    let writes = async {
        for n in 0..200_u64 {
            volume.write(n * 100 * KIB + 512, pattern(n, 48 << 10), Volatile).await.unwrap();
        }
    };
    tokio::pin!(writes);
    assert!(tokio::time::timeout(Duration::from_secs(600), writes.as_mut()).await.is_err(), "they wait");
    let in_flight = volume.usage().commits_in_flight;
    assert!((60..=70).contains(&in_flight), "{in_flight}");
    gate.release();
    writes.await;
    volume.flush().await.unwrap();
    for n in 0..200_u64 {
        assert_eq!(read(&volume, n * 100 * KIB + 512, 48 * KIB).await, pattern(n, 48 << 10), "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_of_several_records_is_answered_when_the_last_of_them_is_durable() {
    let mut bench = Bench::new(512 * MIB).await;
    bench.options.commit_max_bytes = MIB;
    bench.options.commits_in_flight = 2;
    let volume = bench.open().await;
    let first = bench.fault.hold(Operation::Put, "00000000000000000002");
    let last = bench.fault.hold(Operation::Put, "00000000000000000007");
    write_apart(&volume, 0..16).await;
    let flush = volume.flush();
    tokio::pin!(flush);
    assert!(tokio::time::timeout(Duration::from_secs(60), flush.as_mut()).await.is_err());
    first.release();
    last.reached(1).await;
    assert!(tokio::time::timeout(Duration::from_secs(60), flush.as_mut()).await.is_err(), "all but one are");
    last.release();
    flush.await.unwrap();
    assert_eq!(commit_bytes(&bench).len(), 6);
    volume.abandon().await;
    check_apart(&*bench.open().await, 0..16).await;
}

/// No WRITE may be split between records. So the edges of a long WRITE, less than two chunks, share one.
#[tokio::test(start_paused = true)]
async fn a_write_longer_than_a_record_may_be_is_whole_in_one() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.commit_max_bytes = 256 * KIB;
    let volume = bench.open().await;
    let gate = bench.fault.hold(Operation::Put, "/journal/0000000001/");
    volume.write(0, pattern(1, 4096), Volatile).await.unwrap();
    // It fills three whole chunks, with 3 MiB before and 3 MiB after them.
    volume.write(MIB, pattern(2, 18 << 20), Volatile).await.unwrap();
    volume.write(32 * MIB, pattern(3, 4096), Volatile).await.unwrap();
    gate.release();
    volume.flush().await.unwrap();
    let sizes = commit_bytes(&bench);
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes[0] < 8 * KIB && sizes[2] < 8 * KIB, "what does not need the length has it not: {sizes:?}");
    assert!((6 * MIB..7 * MIB).contains(&sizes[1]), "{sizes:?}");
    volume.abandon().await;
    assert_eq!(read(&*bench.open().await, MIB, 18 * MIB).await, pattern(2, 18 << 20));
}

/// Leaves a record of some 24 MiB in the journal, as an older version might have written it.
async fn leave_a_long_record(bench: &mut Bench) {
    bench.options.commit_max_bytes = 256 * MIB;
    let volume = bench.open().await;
    for chunk in 0..96 {
        volume.write(chunk * 4 * MIB, pattern(chunk, 256 << 10), Volatile).await.unwrap();
    }
    volume.flush().await.unwrap();
    assert!(commit_bytes(bench)[..].iter().any(|bytes| *bytes > 24 * MIB));
    volume.abandon().await;
}

/// What is read of a record first, in bytes.
const TABLE_BYTES: u64 = 128 * KIB;

/// A replay needs the table alone, however much data follows it.
#[tokio::test(start_paused = true)]
async fn a_record_that_is_larger_than_a_get_is_replayed_without_its_data() {
    let mut bench = Bench::new(512 * MIB).await;
    leave_a_long_record(&mut bench).await;
    bench.memory.read_whole_at_most(8 * MIB);
    bench.memory.reset_tallies();
    let volume = bench.open().await;
    let gets = bench.gets("/journal/0000000001/00000000000000000002");
    assert_eq!((gets.requests, gets.bytes), (1, TABLE_BYTES), "of 24 MiB");
    check_apart(&volume, 0..96).await;
}

/// A table that is longer than what is read first takes a second GET, of exactly the rest.
#[tokio::test(start_paused = true)]
async fn a_long_table_is_read_in_two_parts() {
    let mut bench = Bench::new(512 * MIB).await;
    bench.options.commit_max_bytes = 64 * MIB;
    let volume = bench.open().await;
    for n in 0..6000_u64 {
        volume.write(n * 8192, pattern(n, 512), Volatile).await.unwrap();
    }
    volume.flush().await.unwrap();
    volume.abandon().await;
    bench.memory.reset_tallies();
    let volume = bench.open().await;
    let gets = bench.gets("/journal/0000000001/00000000000000000002");
    // The fields before the table, 29 bytes for each change, and the checksum of the table.
    assert_eq!((gets.requests, gets.bytes), (2, 82 + 6000 * 29 + 16));
    for n in 0..6000_u64 {
        assert_eq!(read(&volume, n * 8192, 512).await, pattern(n, 512), "{n}");
    }
}

/// One that no listing shows, since it lands only then, is found when its slot is to be sealed.
#[tokio::test(start_paused = true)]
async fn a_record_that_is_larger_than_a_get_is_found_by_the_seal_too() {
    let mut bench = Bench::new(512 * MIB).await;
    bench.options.commit_max_bytes = 256 * MIB;
    bench.memory.read_whole_at_most(8 * MIB);
    let volume = bench.open().await;
    let record = bench.fault.hold(Operation::Put, "/journal/0000000001/");
    write_apart(&volume, 0..96).await;
    let flush = volume.flush();
    tokio::pin!(flush);
    assert!(tokio::time::timeout(Duration::from_secs(1), flush.as_mut()).await.is_err());
    let listing = Gate::new();
    let mut other = bench.beside();
    other.fault.add(Rule::new(Action::HoldAnswer(listing.clone())).on(Operation::List));
    let opening = other.try_open(true);
    let (opened, ()) = tokio::join!(opening, async {
        listing.reached(1).await;
        record.release();
        flush.as_mut().await.expect("its slot was free");
        listing.release();
    });
    check_apart(&opened.expect("opened"), 0..96).await;
}

/// Records in flight count too. Otherwise the journal would exceed this bound by up to half once all of them
/// have arrived.
#[tokio::test(start_paused = true)]
async fn the_journal_never_passes_twice_its_size_while_it_cannot_be_folded() {
    let mut bench = Bench::new(512 * MIB).await;
    bench.options.commit_max_bytes = MIB;
    bench.options.journal_max_bytes = 8 * MIB;
    let volume = bench.open().await;
    let root = bench.fault.hold(Operation::Put, "/root/");
    write_apart(&volume, 0..36).await;
    volume.flush().await.unwrap();
    root.reached(1).await;
    let record = bench.fault.hold(Operation::Put, "/journal/0000000001/");
    let writes = write_apart(&volume, 36..120);
    tokio::pin!(writes);
    assert!(tokio::time::timeout(Duration::from_secs(60), writes.as_mut()).await.is_err(), "they wait");
    record.release();
    assert!(tokio::time::timeout(Duration::from_secs(60), writes.as_mut()).await.is_err(), "they still do");
    volume.flush().await.unwrap();
    let bytes = volume.usage().journal_bytes;
    assert!((14 * MIB..=16 * MIB).contains(&bytes), "{bytes}");
    root.release();
    writes.await;
    volume.flush().await.unwrap();
    check_apart(&volume, 0..120).await;
}

/// Otherwise the lease would expire during the replay, and another gateway could open the volume.
#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_while_a_long_journal_is_replayed() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.journal_max_records = 100_000;
    let volume = bench.open().await;
    for n in 0..4000_u64 {
        volume.write(n * 4096, pattern(n, 512), Durable).await.unwrap();
    }
    volume.abandon().await;
    let each = Duration::from_millis(160);
    bench.fault.add(Rule::new(Action::Delay(each, each)).on(Operation::Get).containing("/journal/"));
    let (begun, mut other) = (tokio::time::Instant::now(), bench.beside());
    let (first, second) = tokio::join!(bench.try_open(true), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        other.try_open(false).await
    });
    let error = second.expect_err("the first renews its lease");
    assert!(matches!(&error, OpenError::Held { holder } if holder.contains("gateway 3")), "{error}");
    let first = first.expect("it holds the volume");
    assert!(begun.elapsed() > bench.options.lease_ttl, "the replay took {:?}", begun.elapsed());
    assert_eq!(read(&first, 3999 * 4096, 512).await, pattern(3999, 512));
    first.write(0, pattern(9, 512), Durable).await.expect("its head is the one that it renewed");
    first.checkpoint().await.unwrap();
}

/// The renewal of the lease finds the head of another gateway. The journal decides who holds the volume.
#[tokio::test(start_paused = true)]
async fn an_opener_that_is_overtaken_while_it_replays_is_fenced_by_the_journal() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.open().await.abandon().await;
    let gate = bench.fault.hold(Operation::List, "/journal/");
    let mut other = bench.beside();
    let (slow, fast) = tokio::join!(bench.try_open(true), async {
        gate.reached(1).await;
        let fast = other.open().await;
        tokio::time::sleep(2 * other.options.lease_ttl).await;
        gate.release();
        fast
    });
    let error = slow.expect_err("another has the volume");
    assert!(matches!(&error, OpenError::Lost(to) if to.contains("epoch 3")), "{error}");
    fast.write(0, pattern(1, 512), Durable).await.unwrap();
}

/// Seals are kept as long as the volume, but an opening reads only what is new.
#[tokio::test(start_paused = true)]
async fn an_opening_reads_no_seal_of_long_ago() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.deletion_grace = Duration::ZERO;
    for n in 0..30_u64 {
        let volume = bench.open().await;
        volume.write(n * 4096, pattern(n, 4096), Durable).await.unwrap();
        tokio::time::sleep(Duration::from_secs(100)).await;
        volume.close().await.unwrap();
        // A gateway that dies before its opening record, so that the first slot of its log gets a seal.
        let gate = bench.fault.hold(Operation::Put, &format!("/journal/{:010}/", 2 * n + 2));
        let dies = tokio::time::timeout(Duration::from_secs(5), bench.try_open(true)).await;
        assert!(dies.is_err() && gate.count() == 1, "held at its opening record");
        bench.fault.clear();
    }
    let volume = bench.open().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    volume.close().await.unwrap();
    let seals = bench.keys("/journal/").len();
    assert!(seals >= 60, "seals stay: {seals}");
    bench.memory.reset_tallies();
    let volume = bench.open().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let gets = bench.gets("/journal/").requests;
    assert!(gets <= 4, "{gets} records and seals were read");
    assert!(
        bench.keys("/journal/").len() <= seals + 3,
        "what is no seal goes: {:?}",
        bench.keys("/journal/")
    );
    for n in 0..30_u64 {
        assert_eq!(read(&volume, n * 4096, 4096).await, pattern(n, 4096));
    }
}

/// The memory in bytes that a reply holds. The reply must share it with nothing.
fn held_bytes(segments: Vec<Segment>) -> usize {
    let held = segments.into_iter().map(|segment| match segment {
        Segment::Data(bytes) => bytes.try_into_mut().expect("it shares no memory").capacity(),
        Segment::Zero(_) => 0,
    });
    held.sum()
}

/// A reply must not keep the whole record in memory from which it was read.
#[tokio::test(start_paused = true)]
async fn replies_that_nobody_takes_keep_no_records_in_memory() {
    let mut bench = Bench::new(512 * MIB).await;
    bench.options.commit_max_bytes = MIB;
    let volume = bench.open().await;
    let gate = bench.fault.hold(Operation::Put, "/journal/0000000001/");
    write_apart(&volume, 0..40).await;
    gate.reached(8).await;
    let mut replies = Vec::new();
    for chunk in 0..40 {
        replies.push(volume.read(chunk * 4 * MIB, 4096).await.unwrap());
    }
    gate.release();
    volume.flush().await.unwrap();
    quiesce().await;
    let held: usize = replies.into_iter().map(held_bytes).sum();
    assert_eq!(held, 40 * 4096, "no more than they are charged for");
}

#[tokio::test(start_paused = true)]
async fn ones_own_lease_is_not_waited_for_and_anothers_is() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.holder = Some("disks/cairn-a-0".to_owned());
    let first = bench.open().await;
    first.write(0, pattern(1, 4096), Durable).await.unwrap();
    first.abandon().await;
    let begun = tokio::time::Instant::now();
    let second = bench.try_open(false).await.expect("the lease is its own from before");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(read(&second, 0, 4096).await, pattern(1, 4096));
    // Another gateway, which also has a stable name.
    let mut other = bench.beside();
    other.holder = Some("disks/cairn-b-0".to_owned());
    let error = other.try_open(false).await.expect_err("the holder lives");
    assert!(matches!(&error, OpenError::Held { holder } if holder.contains("cairn-a-0")), "{error}");
    assert!(matches!(second.status(), Status::Serving));
    // The fenced gateway finds the name of another one in the head, and does not take the volume back.
    let third = other.try_open(true).await.expect("taken over by hand");
    second.stopped().await;
    assert!(second.is_fenced());
    drop(second);
    let error = bench.try_open(false).await.expect_err("it is another's now");
    assert!(matches!(&error, OpenError::Held { holder } if holder.contains("cairn-b-0")), "{error}");
    third.write(0, pattern(2, 4096), Durable).await.unwrap();
}

/// The two metrics of the lease in seconds, as Prometheus scrapes them: remaining time and TTL.
fn lease_gauges(metrics: &cairn::metrics::Metrics) -> (f64, f64) {
    let text = metrics.render();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}{{volume=\"disk\"}} ")));
        line.expect("it is there").parse::<f64>().expect("a number")
    };
    (value("cairn_lease_remaining_seconds"), value("cairn_lease_ttl_seconds"))
}

/// The metric must not stay 0 until the first renewal, which is 10 s after the opening.
#[tokio::test(start_paused = true)]
async fn what_is_left_of_the_lease_is_shown_from_the_opening_on() {
    let mut bench = Bench::new(64 * MIB).await;
    let metrics = cairn::metrics::Metrics::new();
    bench.options.metrics = Some(metrics.volume("disk"));
    assert_eq!(lease_gauges(&metrics), (0.0, 0.0));
    let volume = bench.open().await;
    let (remaining, ttl) = lease_gauges(&metrics);
    assert!(remaining > 29.0 && remaining <= 30.0, "{remaining}");
    assert!((ttl - 30.0).abs() < 0.001, "{ttl}");
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(7)).await;
        let (remaining, ttl) = lease_gauges(&metrics);
        assert!(remaining > ttl / 3.0, "the alert is silent while the lease is renewed: {remaining}");
    }
    volume.close().await.unwrap();
    assert_eq!(lease_gauges(&metrics), (0.0, 0.0));
}

/// Commands that somebody waits for should not have to wait until the head is old enough.
#[tokio::test(start_paused = true)]
async fn a_few_checkpoints_follow_each_other_at_once() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.head_interval = Duration::from_secs(1);
    let volume = bench.open().await;
    let begun = tokio::time::Instant::now();
    let mut ends = Vec::new();
    for n in 0..6 {
        volume.write(0, pattern(n, 4096), Durable).await.unwrap();
        volume.checkpoint().await.unwrap();
        ends.push(begun.elapsed().as_secs());
    }
    // The opening was an update, too.
    assert_eq!(ends, [0, 0, 0, 1, 2, 3]);
    volume.close().await.unwrap();
}

/// The pause between two updates of the head may be longer than the lease, but not if the lease is strict.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_of_a_strict_volume_waits_for_no_longer_than_the_lease_lasts() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.lease_strict = true;
    bench.options.lease_ttl = Duration::from_secs(1);
    bench.options.head_interval = Duration::from_secs(60);
    let volume = bench.open().await;
    // More than may follow each other at once.
    for n in 0..10 {
        volume.write(0, pattern(n, 4096), Durable).await.unwrap();
        volume.checkpoint().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(volume.status(), Status::Serving);
    assert_eq!(read(&volume, 0, 4096).await, pattern(9, 4096));
}

#[tokio::test(start_paused = true)]
async fn a_strict_volume_serves_nothing_once_its_lease_is_over_and_is_not_fenced() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.lease_strict = true;
    let volume = bench.open().await;
    volume.write(0, pattern(1, 4096), Durable).await.unwrap();
    // As after a pause of the machine: the read arrives before any timer has fired.
    tokio::time::advance(bench.options.lease_ttl + Duration::from_millis(1)).await;
    let error = volume.read(0, 4096).await.expect_err("its lease is over");
    assert!(error.to_string().contains("lease.strict"), "{error}");
    assert!(matches!(volume.status(), Status::Stopped(_)));
    assert!(!volume.is_fenced(), "nobody took it");
    // The store does not answer renewals.
    let again = bench.open().await;
    assert_eq!(read(&again, 0, 4096).await, pattern(1, 4096));
    let gate = bench.fault.hold(Operation::Put, "/head");
    let why = tokio::time::timeout(2 * bench.options.lease_ttl, again.stopped()).await.expect("it stops");
    assert!(why.contains("lease.strict") && gate.count() == 1, "{why}");
}
