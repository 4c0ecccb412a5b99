//! The driver of one run: starts gateways, advances the time, and causes disasters.
//!
//! Gateways run one at a time, the one furthest behind first, up to the next event of the world; a request
//! that it sends may bring that event nearer. The driver must not know what a gateway does. Invariant: every
//! request takes effect in order of time, whatever the gateways' clocks say, and the whole run is a function
//! of the seed.

use std::collections::BTreeMap;

use cairn::metrics::{Metrics, VolumeMetrics};
use cairn::store::MemoryStore;
use cairn::volume::{DirtyBudget, Entropy, Environment, PageCache, catalog};
use futures::FutureExt;
use rand::Rng;

use super::gateway::Gateway;
use super::plan::Plan;
use super::prefix;
use super::weather::{Coverage, Fault};
use super::world::{Act, Event, Inner, Order, Process, Time, World};

/// Limit on the events of a run: more mean that it makes no progress.
const MAX_EVENTS: u64 = 3_000_000;
/// World time in milliseconds after which no more disasters happen.
const CHAOS_ENDS: Time = 45 * 60 * 1000;
/// Limit in milliseconds on the duration of anything in fair weather.
pub(super) const PATIENCE: Time = 10 * 60 * 1000;

thread_local! {
    static METRICS: Metrics = Metrics::new();
    static VOLUME_METRICS: VolumeMetrics = metrics().volume("simulated");
}

/// Returns the metrics shared by all runs of this thread. Nothing reads them.
pub(super) fn metrics() -> Metrics {
    METRICS.with(Metrics::clone)
}

/// Returns the metrics of a volume, which nothing reads.
pub(super) fn volume_metrics() -> VolumeMetrics {
    VOLUME_METRICS.with(VolumeMetrics::clone)
}

/// The result of a run.
pub(super) struct Outcome {
    pub(super) hash: u64,
    pub(super) lines: u64,
    pub(super) commands: u64,
    pub(super) crashes: u64,
    pub(super) openings: u64,
    pub(super) coverage: Coverage,
    /// The promise that was broken, with the events that led there.
    pub(super) violation: Option<String>,
}

/// The driver of a run.
pub(super) struct Driver {
    pub(super) world: World,
    pub(super) gateways: BTreeMap<Process, Gateway>,
    /// Starts a process; the last argument says whether it takes over.
    starts: fn(&World, Process, bool) -> Gateway,
    next_process: Process,
    crashes: u64,
    events: u64,
}

/// Runs a seed: gateways that fight for a volume, then processes that create and delete volumes of a few names, then
/// those that also bring them back, then a disk that grows and shrinks, and clones.
pub(super) fn run(seed: u64, print: bool) -> Outcome {
    let mut driver = Driver::new(Plan::draw(seed), print);
    driver.chaos();
    driver.finale();
    let outcome = driver.outcome();
    if outcome.violation.is_some() {
        return outcome;
    }
    let outcome = outcome.and(super::names::run(seed, print));
    if outcome.violation.is_some() {
        return outcome;
    }
    let outcome = outcome.and(super::undeletes::run(seed, print));
    if outcome.violation.is_some() {
        return outcome;
    }
    let violation = super::sizes::run(seed).or_else(|| super::clones::run(seed));
    Outcome { violation, ..outcome }
}

impl Outcome {
    /// Combines the results of two runs.
    fn and(mut self, other: Self) -> Self {
        self.hash = self.hash.rotate_left(1) ^ other.hash;
        self.lines += other.lines;
        self.crashes += other.crashes;
        self.coverage.add(&other.coverage);
        self.violation = other.violation;
        self
    }
}

/// Creates an empty store, and a fault-free environment for creating a volume in it. For half of the seeds
/// listings are unordered.
pub(super) fn empty_store(seed: u64) -> (MemoryStore, Environment) {
    let memory = match seed.is_multiple_of(2) {
        true => MemoryStore::with_page_entries(7),
        false => MemoryStore::unsorted(7),
    };
    let env = Environment {
        store: cairn::store::Classes::one(std::sync::Arc::new(memory.clone())),
        cache: PageCache::new(0, 1 << 20),
        budget: DirtyBudget::new(4096),
        entropy: Entropy::seeded(seed),
        wall_clock: std::sync::Arc::new(|| 0),
    };
    (memory, env)
}

impl Driver {
    fn new(plan: Plan, print: bool) -> Self {
        let (memory, env) = empty_store(plan.seed);
        let layout = &plan.layout;
        let created =
            catalog::create(&env, &plan.options, "disk", layout.size, catalog::ChunkBytes(layout.chunk))
                .now_or_never();
        let volume = created.expect("memory answers at once").expect("an empty store takes a volume").volume;
        Self::with(World::new(plan, volume, memory, print), Gateway::start)
    }

    /// Creates a run in a world without any event yet.
    pub(super) fn with(world: World, starts: fn(&World, Process, bool) -> Gateway) -> Self {
        {
            let mut inner = world.lock();
            let plan = format!("{:?}", inner.plan);
            inner.say(format_args!("{plan}"));
            inner.push(0, Event::Act(Act::Disaster));
        }
        Self { world, gateways: BTreeMap::new(), starts, next_process: 1, crashes: 0, events: 0 }
    }

    pub(super) fn chaos(&mut self) {
        while self.step() {
            let mut inner = self.world.lock();
            if inner.commands_left == 0 {
                return;
            }
            if inner.now > CHAOS_ENDS && inner.calm.is_none() {
                // The remaining requests are sent in fair weather.
                inner.calm = Some(inner.now);
                (inner.storm, inner.refused) = (false, false);
            }
        }
    }

    /// Advances the time to the next event and executes it. Returns `false` once a promise is broken.
    pub(super) fn step(&mut self) -> bool {
        let panics = super::seeds::panics();
        loop {
            self.crash_those_who_must();
            self.hold_up_those_who_must();
            let next = self.world.lock().next_time().expect("something is always to come");
            let behind = self.gateways.values_mut().filter(|gateway| !gateway.paused && gateway.time < next);
            match behind.min_by_key(|gateway| (gateway.time, gateway.process)) {
                Some(gateway) => {
                    let process = gateway.process;
                    let dies = self.world.lock().dies_midway(process);
                    if let Some(rounds) = dies {
                        gateway.run_some(rounds);
                        self.crash(process);
                    } else {
                        gateway.run_until(next);
                        self.world.lock().check_bounds(process);
                    }
                }
                None => break,
            }
            if super::seeds::panics() > panics {
                self.world.lock().broken("a task panicked".to_owned());
            }
            if self.world.lock().violation.is_some() {
                return false;
            }
        }
        let event = self.world.lock().pop().expect("there is a next one");
        self.events += 1;
        if self.events > MAX_EVENTS {
            self.world.lock().broken("the run comes to no end".to_owned());
        }
        match event {
            Event::Land(flight) => self.world.lock().land(*flight),
            Event::Answer(process, number, reply, result) => {
                self.world.lock().answer(process, number, reply, *result);
            }
            Event::Act(act) => self.act(act),
        }
        self.world.lock().violation.is_none()
    }

    /// Advances the time until `done`. Returns whether that happened.
    pub(super) fn run_while(&mut self, patience: Time, done: impl Fn(&Inner) -> bool) -> bool {
        let began = self.world.lock().now;
        loop {
            let soon = {
                let mut inner = self.world.lock();
                if done(&inner) {
                    return true;
                }
                if inner.now >= began + patience {
                    return false;
                }
                // The longer it takes, the less often it is checked.
                let soon = inner.now + 1000.max((inner.now - began) / 16);
                inner.push(soon, Event::Act(Act::Wake));
                soon
            };
            while self.world.lock().now < soon {
                if !self.step() {
                    return false;
                }
            }
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Wake => {}
            Act::Disaster => self.disaster(),
            Act::Heal(process) => {
                let mut inner = self.world.lock();
                inner.say(format_args!("P{process} can reach the store again"));
                inner.processes.get_mut(&process).expect("it was born").partitioned = false;
                inner.ends_a_fault();
            }
            Act::Resume(process) => self.resume(process),
            Act::Clear => {
                let mut inner = self.world.lock();
                inner.say(format_args!("the storm is over"));
                inner.storm = false;
            }
            Act::Admit => {
                let mut inner = self.world.lock();
                inner.say(format_args!("the credentials are accepted again"));
                inner.refused = false;
            }
        }
    }

    /// Resumes a paused gateway.
    pub(super) fn resume(&mut self, process: Process) {
        let mut inner = self.world.lock();
        let now = inner.now;
        if let Some(gateway) = self.gateways.get_mut(&process).filter(|gateway| gateway.paused) {
            inner.say(format_args!("P{process} goes on"));
            inner.ends_a_fault();
            drop(inner);
            gateway.resume(now);
        }
    }

    fn disaster(&mut self) {
        let mut inner = self.world.lock();
        // Rarer and rarer while nothing is answered, so that every run completes.
        let every = inner.plan.disaster_every << (inner.quiet / 2).min(10);
        inner.quiet += 1;
        let calm = inner.calm.is_some();
        let (next, dice) = (inner.random.random_range(1..=2 * every), inner.random.random_range(0..100_u32));
        let at = inner.now + next;
        inner.push(at, Event::Act(Act::Disaster));
        let most = inner.plan.gateways;
        let done: Vec<Process> =
            self.gateways.keys().copied().filter(|process| inner.processes[process].ended).collect();
        let alive = self.gateways.len() - done.len();
        let pick = inner.random.random_range(0..self.gateways.len().max(1));
        let victim = self.gateways.keys().copied().nth(pick);
        drop(inner);
        done.into_iter().for_each(|process| self.bury(process));
        let Some(victim) = victim.filter(|_| alive > 0) else { return self.start(dice < 50) };
        if calm || !self.gateways.contains_key(&victim) {
            return;
        }
        match dice {
            0..25 => self.crash(victim),
            25..45 if alive < most => self.start(dice < 35),
            45..58 => self.partition(victim),
            58..70 => self.pause(victim),
            70..80 => self.world.lock().order(victim, Order::Close),
            80..95 if self.refuses() => {}
            80..95 => self.storm(),
            _ => drop(self.world.lock().check_now()),
        }
    }

    /// Starts a gateway.
    pub(super) fn start(&mut self, takeover: bool) {
        let process = self.number();
        let gateway = (self.starts)(&self.world, process, takeover);
        self.gateways.insert(process, gateway);
    }

    /// Allocates the number of a process that is about to be started.
    pub(super) fn number(&mut self) -> Process {
        self.next_process += 1;
        self.next_process - 1
    }

    fn crash_those_who_must(&mut self) {
        let crashing = std::mem::take(&mut self.world.lock().crashing);
        for process in crashing {
            if self.gateways.contains_key(&process) {
                self.crash(process);
            }
        }
    }

    fn hold_up_those_who_must(&mut self) {
        let (pausing, cutting_off) = {
            let mut inner = self.world.lock();
            (std::mem::take(&mut inner.pausing), std::mem::take(&mut inner.cutting_off))
        };
        for process in pausing {
            if self.gateways.contains_key(&process) {
                self.pause(process);
            }
        }
        for process in cutting_off {
            if self.gateways.contains_key(&process) {
                self.partition(process);
            }
        }
    }

    /// Ends a gateway wherever it is in its work, as a crash does.
    pub(super) fn crash(&mut self, process: Process) {
        self.crashes += 1;
        {
            let mut inner = self.world.lock();
            inner.say(format_args!("P{process} crashes"));
            inner.strike(process, Fault::Crash);
        }
        self.bury(process);
    }

    fn bury(&mut self, process: Process) {
        drop(self.gateways.remove(&process));
        let mut inner = self.world.lock();
        let state = inner.processes.get_mut(&process).expect("it was born");
        state.alive = false;
        state.commands.clear();
    }

    fn partition(&mut self, process: Process) {
        let mut inner = self.world.lock();
        let state = inner.processes.get_mut(&process).expect("it was born");
        if std::mem::replace(&mut state.partitioned, true) {
            return;
        }
        inner.strike(process, Fault::Partition);
        let lasts = inner.random.random_range(10..60_000);
        inner.say(format_args!("P{process} is cut off for {lasts} ms"));
        let at = inner.now + lasts;
        inner.push(at, Event::Act(Act::Heal(process)));
    }

    fn pause(&mut self, process: Process) {
        let gateway = self.gateways.get_mut(&process).expect("it is alive");
        if std::mem::replace(&mut gateway.paused, true) {
            return;
        }
        let mut inner = self.world.lock();
        inner.strike(process, Fault::Pause);
        let most = if inner.random.random_bool(0.3) { 300_000 } else { 10_000 };
        let lasts = inner.random.random_range(10..most);
        inner.say(format_args!("P{process} stands still for {lasts} ms"));
        let at = inner.now + lasts;
        inner.push(at, Event::Act(Act::Resume(process)));
    }

    /// In runs with such faults, the store sometimes refuses all credentials for a while.
    fn refuses(&mut self) -> bool {
        let mut inner = self.world.lock();
        if !inner.plan.refuses || inner.refused || inner.random.random_bool(0.4) {
            return false;
        }
        inner.refused = true;
        let lasts = inner.random.random_range(100..30_000);
        inner.say(format_args!("the credentials are refused for {lasts} ms"));
        let at = inner.now + lasts;
        inner.push(at, Event::Act(Act::Admit));
        true
    }

    fn storm(&mut self) {
        let mut inner = self.world.lock();
        if std::mem::replace(&mut inner.storm, true) {
            return;
        }
        let lasts = inner.random.random_range(100..20_000);
        inner.say(format_args!("a storm of {lasts} ms"));
        let at = inner.now + lasts;
        inner.push(at, Event::Act(Act::Clear));
    }

    pub(super) fn outcome(self) -> Outcome {
        let Self { world, gateways, crashes, .. } = self;
        drop(gateways);
        let mut inner = world.lock();
        if inner.violation.is_none() {
            // All answers are known now, including those of gateways that had lost the volume.
            let history = &inner.history;
            let broken = history.openings.iter().find_map(|(before, epoch, image)| {
                let checked = prefix::check(&history.epochs[before], image);
                checked.err().map(|why| format!("epoch {epoch} began without all of epoch {before}: {why}"))
            });
            if let Some(why) = broken.or_else(|| inner.snapshots.check_all(history).err()) {
                inner.broken(why);
            }
        }
        let violation = inner.violation.take();
        Outcome {
            hash: inner.trace.hash(),
            lines: inner.trace.lines(),
            commands: inner.commands,
            crashes,
            openings: inner.history.openings.len() as u64,
            coverage: inner.coverage.clone(),
            violation: violation.map(|why| format!("{why}\n{}", inner.trace.tail())),
        }
    }
}
