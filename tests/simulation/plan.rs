//! The plan of a run, drawn from its seed: sizes, limits, load and faults.
//!
//! It must not know what a run does with it. Invariant: the plan is a function of the seed alone.

use std::time::Duration;

use cairn::store::HedgeOptions;
use cairn::store::retry::{Patience, RetryOptions};
use cairn::volume::Options;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::cells::Layout;
use super::weather::Rates;

/// The parameters of one run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The seed from which all else is drawn.
    pub(super) seed: u64,
    /// Size, chunk size and used windows of the volume.
    pub(super) layout: Layout,
    /// Options of the volume, with its limits.
    pub(super) options: Options,
    /// Size in bytes of the cache of clean pages.
    pub(super) cache_bytes: u64,
    /// Size in bytes of the dirty budget.
    pub(super) budget_bytes: u64,
    /// Limit on concurrent store requests of a gateway.
    pub(super) concurrency: usize,
    /// Limits and pauses of the retry layer.
    pub(super) retry: RetryOptions,
    /// When slow requests are sent a second time.
    pub(super) hedge: HedgeOptions,
    /// Number of commands issued before the finale.
    pub(super) commands: u32,
    /// Number of clients of each gateway.
    pub(super) clients: usize,
    /// Whether there are many clients with many small requests, as databases have: this gives the most
    /// changes per commit and per run.
    pub(super) busy: bool,
    /// Longest pause of a client between commands, in milliseconds.
    pub(super) think: u64,
    /// Whether many writes fill whole chunks, again and again.
    pub(super) fills: bool,
    /// Share of the windows that most commands address, in percent.
    pub(super) hot_percent: u64,
    /// Fault rates and latencies of store requests in rough weather.
    pub(super) rough: Rates,
    /// Limit on gateways that run at the same time.
    pub(super) gateways: usize,
    /// Longest time between two disasters, in milliseconds.
    pub(super) disaster_every: u64,
    /// Whether the gateways' clocks run at different rates.
    pub(super) skewed: bool,
    /// Probability, per 10,000, of a crash at the moment a request is sent or takes effect.
    pub(super) crash_at_request: u32,
    /// Probability, per 10,000, of a crash between two tasks of a gateway, each time it runs.
    pub(super) crash_at_await: u32,
    /// How clients reach the volume over NBD; `None` for direct calls.
    pub(super) wire: Option<Wire>,
    /// Whether an object is damaged or lost at the end.
    pub(super) rots: bool,
    /// Whether the store refuses everyone's credentials from time to time.
    pub(super) refuses: bool,
    /// Number of commands, of 10,000, that are about snapshots.
    pub(super) snapshots: u32,
}

/// How clients reach a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire {
    /// Whether all clients share one connection.
    pub(super) shared: bool,
    /// Whether structured replies are negotiated.
    pub(super) structured: bool,
    /// Whether extended headers are negotiated.
    pub(super) extended: bool,
    /// Limit on requests in flight of a connection.
    pub(super) in_flight: u32,
}

impl Plan {
    /// Draws the plan of a seed.
    pub(super) fn draw(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed ^ 0x5eed_0000_0000_0001);
        let layout = layout(&mut random);
        let ms = Duration::from_millis;
        let options = Options {
            metrics: None,
            holder_name: String::new(),
            commit_max_age: ms(pick(&mut random, &[20, 200, 1000, 5000])),
            commit_chunk_wait: ms(pick(&mut random, &[0, 100, 3000])),
            commit_max_bytes: pick(&mut random, &[8, 32, 128, 1024]) << 10,
            commits_in_flight: usize::try_from(pick(&mut random, &[1, 2, 3, 8])).unwrap(),
            store_deadline: [None, None, Some(ms(2000)), Some(ms(20_000))]
                .choose(&mut random)
                .copied()
                .unwrap(),
            journal_max_bytes: pick(&mut random, &[32, 128, 512, 4096]) << 10,
            journal_max_records: pick(&mut random, &[2, 5, 20, 100]),
            journal_max_age: ms(pick(&mut random, &[1000, 10_000, 300_000])),
            fold_bytes: pick(&mut random, &[1, 2, 8]) * 2 * layout.chunk,
            lease_ttl: ms(pick(&mut random, &[1000, 3000, 30_000])),
            lease_strict: false,
            holder_is_stable: false,
            head_interval: ms(pick(&mut random, &[0, 20, 1000])),
            deletion_grace: ms(pick(&mut random, &[0, 0, 0, 3000, 3_600_000])),
            read_ahead_bytes: pick(&mut random, &[0, 256, 1024]) << 10,
            get_bytes: pick(&mut random, &[1, 2, 16]) * 65_552,
            ..Options::default()
        };
        let timeout = pick(&mut random, &[500, 2000, 10_000]);
        let read = Patience { deadline: Some(ms(timeout * 6)), refusals: Some(3) };
        let retry = RetryOptions {
            base: ms(pick(&mut random, &[10, 100])),
            cap: ms(pick(&mut random, &[200, 5000])),
            read,
            write: Patience { deadline: None, refusals: None },
            log_interval: ms(10_000),
        };
        let damages = random.random_bool(0.3);
        let busy = random.random_bool(0.45);
        let rough = rates(&mut random, damages, timeout);
        // Drawn from a separate generator, so that the other parameters of a seed stay the same.
        let mut apart = SmallRng::seed_from_u64(seed ^ 0x5eed_0000_0000_0003);
        // If a lease expired even in fair weather, a strict volume would never make progress.
        let lasts = options.lease_ttl >= ms(2 * timeout);
        let options = Options {
            lease_strict: lasts && apart.random_bool(0.4),
            holder_is_stable: apart.random_bool(0.3),
            ..options
        };
        // Packs, overlays and thresholds are so small that each way of storing changes is taken.
        let mut packed = SmallRng::seed_from_u64(seed ^ 0x5eed_0000_0000_0007);
        let options = Options {
            pack_bytes: pick(&mut packed, &[1, 3, 17, 64, 4096]) * 4096,
            overlays: usize::try_from(pick(&mut packed, &[1, 2, 3, 8])).unwrap(),
            embed_bytes: pick(&mut packed, &[0, 100, 4096]),
            consolidate_percent: pick(&mut packed, &[5, 25, 50, 100]),
            relocate_percent: pick(&mut packed, &[0, 30, 60, 90]),
            background_percent: pick(&mut packed, &[0, 125, 125, 1000]),
            ..options
        };
        let mut recorded = SmallRng::seed_from_u64(seed ^ 0x5eed_0000_0000_000f);
        let options = Options { record_reads: ms(pick(&mut recorded, &[0, 0, 0, 300, 3000])), ..options };
        let mut further = SmallRng::seed_from_u64(seed ^ 0x5eed_0000_0000_0005);
        let refuses = further.random_bool(0.4);
        let retry = match further.random_bool(0.5) {
            true => RetryOptions { write: Patience { deadline: None, refusals: Some(3) }, ..retry },
            false => retry,
        };
        // Few latencies and small ones suffice, so that many requests are sent twice.
        let mut hedged = SmallRng::seed_from_u64(seed ^ 0x5eed_0000_0000_0009);
        let hedge = HedgeOptions {
            percent: u32::try_from(pick(&mut hedged, &[0, 5, 50, 100])).unwrap(),
            floor: ms(pick(&mut hedged, &[1, 5])),
            least_known: usize::try_from(pick(&mut hedged, &[4, 16])).unwrap(),
        };
        let mut kept = SmallRng::seed_from_u64(seed ^ 0x5eed_0000_0000_000b);
        let snapshots = pick(&mut kept, &[0, 150, 400, 800]) / if busy { 10 } else { 1 };
        Self {
            seed,
            options,
            hedge,
            snapshots: u32::try_from(snapshots).unwrap(),
            cache_bytes: pick(&mut random, &[0, 2, 8, 64]) * 66_000,
            budget_bytes: pick(&mut random, &[16, 64, 256, 4096]) << 10,
            concurrency: usize::try_from(pick(&mut random, &[2, 8, 64])).unwrap(),
            retry,
            commands: random.random_range(200..400) * if busy { 10 } else { 1 },
            clients: random.random_range(1..=6_u32) as usize * if busy { 20 } else { 1 },
            think: if busy { random.random_range(0..2) } else { pick(&mut random, &[1, 10, 100, 1000]) },
            hot_percent: pick(&mut random, &[5, 20, 100]),
            rough,
            gateways: random.random_range(1..=3),
            disaster_every: pick(&mut random, &[500, 3000, 10_000, 60_000]),
            skewed: random.random_bool(0.3),
            crash_at_request: u32::try_from(pick(&mut random, &[0, 0, 20, 100])).unwrap(),
            crash_at_await: u32::try_from(pick(&mut random, &[0, 0, 0, 20])).unwrap(),
            wire: random.random_bool(0.5).then(|| wire(&mut random)),
            rots: random.random_bool(0.15),
            refuses,
            fills: !busy && apart.random_bool(0.3),
            busy,
            layout,
        }
    }
}

fn wire(random: &mut SmallRng) -> Wire {
    let structured = random.random_bool(0.8);
    Wire {
        shared: random.random(),
        structured,
        extended: structured && random.random(),
        in_flight: u32::try_from(pick(random, &[1, 2, 16])).unwrap(),
    }
}

fn pick(random: &mut SmallRng, from: &[u64]) -> u64 {
    *from.choose(random).expect("there are some")
}

/// Draws the sizes: mostly one map page, sometimes two with the border between them in use.
fn layout(random: &mut SmallRng) -> Layout {
    let chunk = pick(random, &[64, 64, 128, 256]) << 10;
    if random.random_bool(0.2) {
        let border = chunk * 4096;
        let (low, high) = (border - (256 << 10), border + (256 << 10));
        return Layout { size: border + (1 << 20), chunk, windows: vec![0..256 << 10, low..high] };
    }
    let size = pick(random, &[8, 16, 32, 64]) * (64 << 10);
    // Sometimes the last chunk, page and block are incomplete.
    let size = size + pick(random, &[0, 0, 512, 4096 + 1536]);
    Layout { size, chunk, windows: std::iter::once(0..size).collect() }
}

fn rates(random: &mut SmallRng, damages: bool, timeout: u64) -> Rates {
    let level = pick(random, &[0, 1, 3, 10]);
    let mut rate = |usual: u64| {
        let on = random.random_bool(0.7);
        u32::try_from(if on { usual * level } else { 0 }).expect("small")
    };
    let mut rates = Rates {
        error_before: rate(60),
        lost_answer: rate(60),
        late: rate(15),
        duplicate: rate(20),
        throttled: rate(40),
        denied: rate(5),
        conflict: rate(20),
        slow: rate(15),
        flip: rate(30),
        short: rate(30),
        absent: rate(30),
        latency: 0,
        timeout,
    };
    if random.random_bool(0.2) {
        // A bad link that damages several readings in a row.
        rates.flip = 1000;
    }
    if random.random_bool(0.2) {
        // A lagging replica: many objects seem to be missing.
        rates.absent = 400;
    }
    if !damages {
        (rates.flip, rates.short) = (0, 0);
    }
    rates.latency = pick(random, &[2, 10, 40]);
    rates
}
