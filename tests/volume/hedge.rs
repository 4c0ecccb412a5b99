//! Requests that are sent twice: what they save those who wait for a slow store, and what one that lands late
//! leaves.

use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::{Durable, Volatile};
use cairn::metrics::Metrics;
use cairn::store::fault::{Action, Rule};
use cairn::store::{Classes, Condition, HedgeOptions, Hedging, Store};
use cairn::volume::{Environment, Volume, catalog};
use tokio::time::Instant;

use super::bench::{Bench, MIB, pattern, read};

const USUAL: Duration = Duration::from_millis(20);

/// Opens the volume by a gateway that hedges, with a small cache, over a store of which one answer in twenty
/// takes ten times as long.
async fn hedged(bench: &Bench, percent: u32) -> (Environment, Arc<Volume>) {
    let plain = bench.env(MIB);
    let metrics = Metrics::new().store();
    let hedging = Hedging::new(HedgeOptions { percent, ..HedgeOptions::default() }, metrics.clone());
    let above = |class, limited| hedging.above(class, limited);
    let store = Classes::limited(&plain.store.reads, 64, &metrics, above);
    let env = Environment { store, ..plain };
    let id = catalog::resolve(&env, "disk").await.unwrap();
    let volume = Volume::open(&env, bench.options.clone(), id, true).await.unwrap();
    bench.fault.add(Rule::new(Action::Delay(USUAL, USUAL)));
    bench.fault.add(Rule::new(Action::DelayAnswer(9 * USUAL, 9 * USUAL)).probability(0.05));
    (env, volume)
}

/// The median, and the 99th percentile, in milliseconds.
fn percentiles(mut latencies: Vec<Duration>) -> (u128, u128) {
    latencies.sort_unstable();
    let of = |percent: usize| latencies[latencies.len() * percent / 100].as_millis();
    (of(50), of(99))
}

#[tokio::test(start_paused = true)]
async fn a_flush_and_a_cold_read_take_at_most_twice_as_long_as_usual_99_times_in_100() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.read_ahead_bytes = 0;
    let volume = bench.open().await;
    for n in 0..64 {
        volume.write(n * MIB, pattern(n, 1 << 20), Volatile).await.unwrap();
    }
    volume.close().await.unwrap();
    let mut found = Vec::new();
    for percent in [0, 5] {
        let (_env, volume) = hedged(&bench, percent).await;
        let (mut flushes, mut reads) = (Vec::new(), Vec::new());
        for n in 0..3000_u64 {
            // Somewhere else each time, so that hardly any page is in the cache.
            let offset = n * 7919 % 1024 * 65_536;
            let begun = Instant::now();
            drop(read(&volume, offset, 4096).await);
            // Those in the cache take no time.
            reads.extend(Some(begun.elapsed()).filter(|took| !took.is_zero()));
            volume.write(offset + 4096, pattern(n, 512), Volatile).await.unwrap();
            let begun = Instant::now();
            volume.flush().await.unwrap();
            flushes.push(begun.elapsed());
        }
        assert!(reads.len() > 2000, "{} cold reads", reads.len());
        found.push([percentiles(flushes), percentiles(reads)]);
        volume.abandon().await;
        bench.fault.clear();
    }
    println!("p50 and p99 of flushes and cold reads without and with hedging, in ms: {found:?}");
    for (median, p99) in found[0] {
        assert!(p99 >= 9 * median, "without hedging: {median} ms, {p99} ms");
    }
    for (median, p99) in found[1] {
        assert!(p99 <= 2 * median, "with hedging: {median} ms, {p99} ms");
    }
}

/// The second PUT of a record can take effect at any time, also when the record was folded and deleted long
/// ago. No replay ever reads it, and the sweep of the next opening after an unclean end deletes it.
#[tokio::test(start_paused = true)]
async fn a_record_that_lands_again_after_it_was_deleted_changes_nothing_and_is_swept() {
    let mut bench = Bench::new(64 * MIB).await;
    bench.options.deletion_grace = Duration::ZERO;
    let mut volume = bench.open().await;
    volume.write(0, pattern(1, 8192), Durable).await.unwrap();
    let sent: Vec<_> =
        bench.memory.objects().into_iter().filter(|(key, _)| key.contains("/journal/0000000001/")).collect();
    assert_eq!(sent.len(), 2, "the opening record and a commit");
    volume.write(0, pattern(2, 4096), Durable).await.unwrap();
    let expected = [&pattern(2, 4096)[..], &pattern(1, 8192)[4096..]].concat();
    for opening in 0..3 {
        volume.write(MIB, pattern(9, 4096), Durable).await.unwrap();
        volume.checkpoint().await.unwrap();
        tokio::time::sleep(Duration::from_secs(200)).await;
        for (key, body) in &sent {
            let landed = bench.memory.put(key, body.clone(), Condition::IfAbsent).await;
            assert!(landed.is_ok(), "opening {opening}: {key} had been deleted");
        }
        assert_eq!(read(&volume, 0, 8192).await, expected);
        volume.write(2 * MIB, pattern(opening, 4096), Durable).await.unwrap();
        volume.abandon().await;
        volume = bench.open().await;
        assert_eq!(read(&volume, 0, 8192).await, expected, "opening {opening}");
        assert_eq!(read(&volume, 2 * MIB, 4096).await, pattern(opening, 4096));
    }
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(Duration::from_secs(200)).await;
    for (key, _) in &sent {
        assert_eq!(bench.keys(key), [""; 0], "it was swept");
    }
    volume.close().await.unwrap();
}
