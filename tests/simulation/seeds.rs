//! Runs many seeds and adds up their results.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::ops::Range;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::driver::{Outcome, run};
use super::weather::Coverage;

/// Number of seeds of a plain `cargo test`.
const FEW: Range<u64> = 0..24;
/// From this number of seeds on, every fault must have happened in every phase at least this often.
const MANY: u64 = 1000;
const MET: u64 = 20;
/// Seeds that are run in two processes; fewer where nothing was optimized.
const TWICE: Range<u64> = if cfg!(debug_assertions) { 0..8 } else { 0..50 };

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Number of panics on this thread so far: a task that panics ends alone, and nothing else would report it.
pub(super) fn panics() -> u64 {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with(|panics| panics.set(panics.get() + 1));
            before(info);
        }));
    });
    PANICS.with(Cell::get)
}

fn seeds(variable: &str, default: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var(variable) else { return default };
    let ends = text.split_once("..").map(|(from, to)| (from.parse(), to.parse()));
    match (ends, text.parse()) {
        (Some((Ok(from), Ok(to))), _) if from < to => from..to,
        (_, Ok(one)) => one..one + 1,
        _ => panic!("{variable}={text:?} is not like 0..2000"),
    }
}

/// The totals of many runs.
#[derive(Debug, Default)]
struct Sum {
    commands: u64,
    /// Fewest commands of a seed.
    fewest: Option<u64>,
    crashes: u64,
    openings: u64,
    lines: u64,
    coverage: Coverage,
    broken: BTreeMap<u64, String>,
}

impl Sum {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.commands += outcome.commands;
        self.lines += outcome.lines;
        if outcome.violation.is_none() {
            self.fewest = Some(self.fewest.unwrap_or(u64::MAX).min(outcome.commands));
        }
        self.crashes += outcome.crashes;
        self.openings += outcome.openings;
        self.coverage.add(&outcome.coverage);
        if let Some(why) = outcome.violation {
            println!("seed {seed}: {why}");
            self.broken.insert(seed, why);
        }
    }
}

/// Runs seeds on all processors; each run stays on one thread.
fn run_all(seeds: &Range<u64>, print: bool) -> Sum {
    let (next, sum) = (AtomicU64::new(seeds.start), Mutex::new(Sum::default()));
    let threads = if print { 1 } else { threads() };
    on_threads(threads, |watch| {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            watch.begins(&format!("seed {seed}"));
            let outcome = run(seed, print);
            sum.lock().add(seed, outcome);
        }
    });
    sum.into_inner()
}

/// Threads that runs go on, unless `CAIRN_SIM_THREADS` says how many.
pub(super) fn threads() -> usize {
    let told = std::env::var("CAIRN_SIM_THREADS").ok().and_then(|text| text.parse().ok());
    told.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Does `work` on this number of threads, and ends the process if one of them hangs.
pub(super) fn on_threads(threads: usize, work: impl Fn(&Watch) + Sync) {
    let watches: Vec<Watch> = (0..threads).map(|_| Watch::default()).collect();
    let (left, all_done) = (Mutex::new(threads), Condvar::new());
    std::thread::scope(|scope| {
        for watch in &watches {
            scope.spawn(|| {
                let _left = Leaving(&left, &all_done);
                work(watch);
                watch.count.store(0, Ordering::Relaxed);
            });
        }
        let mut left = left.lock();
        let mut seen: Vec<u64> = vec![0; threads];
        while *left > 0 {
            let timed_out = all_done.wait_for(&mut left, HANGS).timed_out();
            if !timed_out {
                continue;
            }
            for (watch, seen) in watches.iter().zip(&mut seen) {
                let count = watch.count.load(Ordering::Relaxed);
                if count != 0 && count == *seen {
                    println!("HANGS: {} does not end", watch.what.lock());
                    std::process::exit(1);
                }
                *seen = count;
            }
        }
    });
}

/// A run that has not ended when it was looked at twice, so long after one another, hangs.
const HANGS: Duration = Duration::from_secs(120);

/// What a thread is at. The count is 0 before it begins and once it is done.
#[derive(Default)]
pub(super) struct Watch {
    count: AtomicU64,
    what: Mutex<String>,
}

impl Watch {
    /// Records that a thread begins a piece of work.
    pub(super) fn begins(&self, what: &str) {
        what.clone_into(&mut self.what.lock());
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Says that a thread has ended, however it does.
struct Leaving<'a>(&'a Mutex<usize>, &'a Condvar);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.1.notify_all();
    }
}

#[test]
fn every_promise_holds_in_every_seed() {
    let print = std::env::var_os("CAIRN_SIM_TRACE").is_some();
    let seeds = seeds("CAIRN_SIM_SEEDS", FEW);
    let sum = run_all(&seeds, print);
    let Sum { commands, fewest, crashes, openings, lines, coverage, broken } = sum;
    println!(
        "seeds {seeds:?}: {commands} commands, {crashes} crashes, {openings} recoveries, {lines} events\n{}",
        coverage.table()
    );
    let broken: Vec<u64> = broken.into_keys().collect();
    assert!(
        broken.is_empty(),
        "promises broken in seeds {broken:?}: replay one with CAIRN_SIM_SEEDS and CAIRN_SIM_TRACE=1"
    );
    assert!(fewest.is_some_and(|fewest| fewest >= 200), "every seed issues 200 commands, not {fewest:?}");
    if seeds.end - seeds.start >= MANY {
        let rare = coverage.rare(MET);
        assert!(rare.is_empty(), "met fewer than {MET} times: {rare:?}");
    }
    if let Some(ledger) = std::env::var_os("CAIRN_SIM_LEDGER") {
        let said = |name| std::env::var(name).unwrap_or_else(|_| panic!("{name} says what is run"));
        let (commit, sources) = (said("CAIRN_SIM_COMMIT"), said("CAIRN_SIM_SOURCES"));
        let Range { start, end } = seeds;
        let least = coverage.least();
        let line =
            format!("{commit}\t{start}\t{end}\t{commands}\t{crashes}\t{openings}\t{least}\t{sources}\n");
        let mut file =
            OpenOptions::new().create(true).append(true).open(ledger).expect("the ledger can be written");
        file.write_all(line.as_bytes()).expect("the ledger can be written");
    }
}

/// Printed before the hashes, so that the other process can find them.
const MARK: &str = "hashes of runs:";

fn hashes(seeds: Range<u64>) -> String {
    seeds.fold(MARK.to_owned(), |mut all, seed| {
        let outcome = run(seed, false);
        write!(all, " {seed}:{:016x}/{}", outcome.hash, outcome.lines).expect("a string takes all");
        all
    })
}

/// Run by the test below in other processes.
#[test]
fn a_seed_is_one_run() {
    let seeds = seeds("CAIRN_SIM_TWICE", 0..2);
    let first = hashes(seeds.clone());
    println!("{first}");
    assert!(std::env::var_os("CAIRN_SIM_TWICE").is_some() || first == hashes(seeds), "a run repeats");
}

#[test]
fn a_seed_is_one_run_in_every_process() {
    let name = "seeds::a_seed_is_one_run";
    let run = || {
        let output = Command::new(std::env::current_exe().expect("we run"))
            .args(["--exact", name, "--nocapture"])
            .env("CAIRN_SIM_TWICE", format!("{}..{}", TWICE.start, TWICE.end))
            .output()
            .expect("this program can be run");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.find(MARK).map(|at| line[at..].to_owned()));
        line.unwrap_or_else(|| panic!("no hashes in {text}"))
    };
    let (first, second) = (run(), run());
    assert_eq!(first.matches(':').count() as u64, TWICE.end - TWICE.start + 1, "every seed says its hash");
    let differ: Vec<(&str, &str)> = first.split(' ').zip(second.split(' ')).filter(|(a, b)| a != b).collect();
    assert!(differ.is_empty(), "runs differ from process to process: {differ:?}");
}
