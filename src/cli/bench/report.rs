//! The output of `cairn bench store`: a table, and JSON.
//!
//! Owns both formats and what is computed for them, and must not send requests. Invariant: both formats show
//! the same measurements.

use std::time::Duration;

use serde::Serialize;

use super::load::{Done, Plan, Request};
use crate::cli::error::Error;
use crate::cli::printed::{self, print_json, table};
use crate::config::Size;

const MIB: f64 = 1_048_576.0;

pub(super) fn print(store: &str, plan: Plan, results: &[Done], json: bool) -> Result<(), Error> {
    if json {
        print_json(&Shown::of(store, plan, results))
    } else {
        printed::print(&text(store, plan, results))
    }
}

/// The result in JSON.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    store: &'a str,
    size_bytes: u64,
    range_bytes: u64,
    concurrency: usize,
    put: Option<Figures>,
    get: Option<Figures>,
    get_range: Option<Figures>,
}

impl<'a> Shown<'a> {
    fn of(store: &'a str, plan: Plan, results: &[Done]) -> Self {
        let of = |request| results.iter().find(|done| done.request == request).map(Figures::of);
        Self {
            store,
            size_bytes: plan.size_bytes,
            range_bytes: plan.range_bytes(),
            concurrency: plan.concurrency,
            put: of(Request::Put),
            get: of(Request::Get),
            get_range: of(Request::GetRange),
        }
    }
}

/// One measurement in figures.
#[derive(Debug, Serialize)]
struct Figures {
    requests: usize,
    bytes: u64,
    seconds: f64,
    requests_per_second: f64,
    bytes_per_second: f64,
    retries: u64,
    latency_seconds: Latency,
}

/// How long a request took, in seconds. Each is the time of a request that was measured.
#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Figures {
    #[allow(clippy::cast_precision_loss, reason = "a rate of 2^53 requests or bytes is not exact, but close")]
    fn of(done: &Done) -> Self {
        let seconds = done.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let of = |percent| percentile(&done.latencies, percent).as_secs_f64();
        Self {
            requests: done.latencies.len(),
            bytes: done.bytes,
            seconds,
            requests_per_second: done.latencies.len() as f64 / seconds,
            bytes_per_second: done.bytes as f64 / seconds,
            retries: done.retries,
            latency_seconds: Latency { p50: of(50), p90: of(90), p99: of(99), max: of(100) },
        }
    }
}

/// Returns the shortest of the sorted times that `percent` of all times do not exceed (the nearest rank).
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

fn text(store: &str, plan: Plan, results: &[Done]) -> String {
    let head = ["REQUEST", "SIZE", "REQUESTS", "PER SECOND", "MiB/s", "P50", "P90", "P99", "MAX", "RETRIES"];
    let rows = results.iter().map(|done| {
        let Figures { requests, requests_per_second, bytes_per_second, retries, latency_seconds, .. } =
            Figures::of(done);
        let Latency { p50, p90, p99, max } = latency_seconds;
        let (name, bytes) = match done.request {
            Request::Put => ("PUT", plan.size_bytes),
            Request::Get => ("GET", plan.size_bytes),
            Request::GetRange => ("GET range", plan.range_bytes()),
        };
        let rate = format!("{requests_per_second:.1}");
        let bytes_rate = format!("{:.1}", bytes_per_second / MIB);
        let [p50, p90, p99, max] = [p50, p90, p99, max].map(milliseconds);
        let (size, requests, retries) = (Size(bytes).to_string(), requests.to_string(), retries.to_string());
        [name.to_owned(), size, requests, rate, bytes_rate, p50, p90, p99, max, retries]
    });
    let lines: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    format!("{store}, {} requests at a time\n{}", plan.concurrency, table(&lines))
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(milliseconds: impl Iterator<Item = u64>) -> Done {
        let latencies = milliseconds.map(Duration::from_millis).collect();
        let elapsed = Duration::from_millis(500);
        Done { request: Request::Put, bytes: 8 << 20, elapsed, retries: 3, latencies }
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        // The example of Wikipedia's page on percentiles, section "The nearest-rank method".
        let five = done([15, 20, 35, 40, 50].into_iter()).latencies;
        for (percent, milliseconds) in [(5, 15), (30, 20), (40, 20), (50, 35), (100, 50)] {
            assert_eq!(percentile(&five, percent), Duration::from_millis(milliseconds), "{percent}");
        }
        let hundred = done(1..=100).latencies;
        for percent in [50, 90, 99, 100] {
            assert_eq!(percentile(&hundred, percent).as_millis(), percent as u128);
        }
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn the_table_shows_rates_and_times() {
        let plan =
            Plan { size_bytes: 2 << 20, concurrency: 2, time_limit: Duration::from_secs(1), bytes: 8 << 20 };
        let text = text("s3://disks", plan, &[done([1, 2, 3, 40].into_iter())]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0].join(" "), "s3://disks, 2 requests at a time");
        assert_eq!(lines[2].join(" "), "PUT 2MiB 4 8.0 16.0 2.00 ms 40.00 ms 40.00 ms 40.00 ms 3");
    }
}
