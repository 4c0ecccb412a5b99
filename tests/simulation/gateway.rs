//! A gateway: a process of its own, with its own runtime and clock, that opens the volume and serves clients.
//!
//! Its own runtime is what makes a crash possible: dropping it ends every task at its current await point. A
//! gateway that is not run is paused, and its clock then jumps. It must not know the faults of the world.
//! Invariant: a gateway runs only when the driver lets it.

use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::store::{Instrument, Store};
use cairn::task::Tasks;
use cairn::volume::signal::Signal;
use cairn::volume::{DirtyBudget, Entropy, Environment, Error, OpenError, PageCache, Volume};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::bounds::{Bounded, Control, classes};
use super::bucket;
use super::client::Client;
use super::driver::{metrics, volume_metrics};
use super::link::{Clock, Link};
use super::wire::Front;
use super::world::{DAWN, Inner, MAX_SKEW, Order, Process, Time, World};

/// Limit on the time that a process may take to return the permits of a volume's dirty budget.
const GIVING_BACK: Duration = Duration::from_secs(60);

/// A running gateway.
pub(super) struct Gateway {
    pub(super) process: Process,
    /// World time up to which it has run.
    pub(super) time: Time,
    /// Whether it is paused.
    pub(super) paused: bool,
    runtime: Runtime,
    clock: Arc<Clock>,
    sent: Arc<Notify>,
}

impl Gateway {
    /// Starts a gateway that serves clients.
    pub(super) fn start(world: &World, process: Process, takeover: bool) -> Self {
        Self::spawn(world, process, |parts| Life { parts, takeover }.live())
    }

    /// Starts a process that executes `run`.
    pub(super) fn spawn<F>(world: &World, process: Process, run: impl FnOnce(Parts) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true);
        if world.lock().plan.crash_at_await > 0 {
            // One task at a time, so that a crash may happen between any two of them.
            builder.event_interval(1);
        }
        let runtime = builder.build().expect("a runtime without I/O");
        let base = runtime.block_on(async { Instant::now() });
        let mut inner = world.lock();
        let seed = inner.random.random();
        let mut random = SmallRng::seed_from_u64(seed);
        let rate = if inner.plan.skewed { random.random_range(900..1100) } else { 1000 };
        let clock = Arc::new(Clock { started: inner.now, rate, base });
        let sent = Arc::new(Notify::new());
        let orders = inner.born(process);
        inner.say(format_args!("P{process} starts"));
        let link = Link { world: world.clone(), process, clock: Arc::clone(&clock), sent: Arc::clone(&sent) };
        inner.processes.get_mut(&process).expect("just born").skewed = rate != 1000;
        let (env, control) = environment(&inner, link, &mut random, world);
        let time = inner.now;
        drop(inner);
        let parts = Parts { world: world.clone(), process, env, control, orders, random };
        // The handle is not needed: the task ends with the runtime.
        drop(runtime.spawn(run(parts)));
        Self { process, time, paused: false, runtime, clock, sent }
    }

    /// Runs until a world time, or until a request was sent.
    pub(super) fn run_until(&mut self, until: Time) {
        let deadline = self.clock.local(until);
        let sent = Arc::clone(&self.sent);
        let (reached, now) = self.runtime.block_on(async move {
            let reached = tokio::select! {
                biased;
                () = sent.notified() => false,
                () = tokio::time::sleep_until(deadline) => true,
            };
            (reached, Instant::now())
        });
        let come = if reached { until } else { self.clock.world(now).min(until) };
        self.time = self.time.max(come);
    }

    /// Lets this number of tasks run, and leaves the others where they are.
    pub(super) fn run_some(&mut self, rounds: u32) {
        self.runtime.block_on(async move {
            for _ in 0..rounds {
                tokio::task::yield_now().await;
            }
        });
    }

    /// Resumes after a pause, during which its clock has continued.
    pub(super) fn resume(&mut self, time: Time) {
        let until = self.clock.local(time);
        self.runtime.block_on(async move {
            let gone = until.saturating_duration_since(Instant::now());
            tokio::time::advance(gone).await;
        });
        self.time = self.time.max(time);
        self.paused = false;
    }
}

fn environment(inner: &Inner, link: Link, random: &mut SmallRng, world: &World) -> (Environment, Control) {
    let (plan, metrics, process) = (&inner.plan, metrics().store(), link.process);
    let counted: Arc<dyn Store> = Arc::new(Instrument::new(Arc::new(link), metrics.clone()));
    let (store, control) = classes(world, process, plan, &counted, &metrics, random);
    let skew = random.random_range(0..MAX_SKEW);
    let world = world.clone();
    let env = Environment {
        store,
        cache: PageCache::eager(plan.cache_bytes, plan.options.get_bytes),
        budget: DirtyBudget::new(plan.budget_bytes),
        entropy: Entropy::seeded(random.random()),
        wall_clock: Arc::new(move || DAWN + skew + world.lock().now / 1000),
    };
    (env, control)
}

/// The parts of a process.
pub(super) struct Parts {
    pub(super) world: World,
    pub(super) process: Process,
    pub(super) env: Environment,
    pub(super) control: Control,
    pub(super) orders: Arc<Signal<Order>>,
    pub(super) random: SmallRng,
}

/// The life of a gateway from its start to its end.
struct Life {
    parts: Parts,
    takeover: bool,
}

/// How serving a volume ended.
enum End {
    Closed,
    Lost,
}

impl Life {
    async fn live(mut self) {
        loop {
            let Some(volume) = self.open().await else { return self.rest().await };
            let end = self.serve(&volume).await;
            drop(volume);
            self.gives_back().await;
            let mut again = self.parts.random.random_bool(0.5);
            match end {
                End::Closed => self.parts.world.lock().order(self.parts.process, Order::Serve),
                End::Lost => again &= *self.parts.orders.borrow() == Order::Serve,
            }
            again &= self.parts.world.lock().calm.is_none();
            if !again {
                return self.rest().await;
            }
            self.parts.world.lock().again(self.parts.process);
            let pause = Duration::from_millis(self.parts.random.random_range(1..2000));
            tokio::time::sleep(pause).await;
            self.takeover = self.parts.random.random_bool(0.3);
        }
    }

    /// Waits until the dirty budget is complete again: other volumes need it, and so does this one when it is
    /// opened again.
    async fn gives_back(&self) {
        let budget = &self.parts.env.budget;
        for _ in 0..GIVING_BACK.as_millis() {
            if budget.used() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let kept = budget.used();
        let mut inner = self.parts.world.lock();
        inner.broken(format!(
            "P{} keeps {kept} dirty blocks of a volume that it lost or closed",
            self.parts.process
        ));
    }

    /// Waits forever: this process does nothing more.
    async fn rest(&self) {
        let mut inner = self.parts.world.lock();
        inner.processes.get_mut(&self.parts.process).expect("it was born").ended = true;
        inner.say(format_args!("P{} is done", self.parts.process));
    }

    /// Opens the volume, with any number of attempts. Returns `None` once it is ordered to stop.
    async fn open(&mut self) -> Option<Arc<Volume>> {
        loop {
            if *self.parts.orders.borrow() != Order::Serve {
                return None;
            }
            let (options, volume) = {
                let inner = self.parts.world.lock();
                let mut options = inner.plan.options.clone();
                options.holder_name = format!("P{}", self.parts.process);
                options.metrics = Some(volume_metrics());
                (options, inner.volume)
            };
            match Volume::open(&self.parts.env, options, volume, self.takeover).await {
                Ok(volume) => {
                    // From here on clients rely on the disk.
                    self.parts.control.wait_out_refusals();
                    let Environment { cache, budget, .. } = &self.parts.env;
                    let bounded = Bounded::new(&volume, cache, budget);
                    let mut inner = self.parts.world.lock();
                    inner.opened(self.parts.process, volume.epoch());
                    let state = inner.processes.get_mut(&self.parts.process).expect("it was born");
                    state.bounded = Some(bounded);
                    return Some(volume);
                }
                Err(error) => self.parts.world.lock().opening_failed(self.parts.process, &error),
            }
            let pause = Duration::from_millis(self.parts.random.random_range(10..3000));
            tokio::time::sleep(pause).await;
            self.takeover |= self.parts.random.random_bool(0.3);
        }
    }

    /// Serves clients until the volume is lost, or closed on order.
    async fn serve(&mut self, volume: &Arc<Volume>) -> End {
        let tasks = Tasks::new();
        let (clients, wire) = {
            let inner = self.parts.world.lock();
            (inner.plan.clients, inner.plan.wire)
        };
        let front = Front::new(&self.parts.world, self.parts.process, volume, clients, wire).await;
        for way in &front.ways {
            let client = Client {
                world: self.parts.world.clone(),
                process: self.parts.process,
                epoch: volume.epoch(),
                env: self.parts.env.clone(),
                way: way.clone(),
                orders: Arc::clone(&self.parts.orders),
                random: SmallRng::seed_from_u64(self.parts.random.random()),
            };
            drop(tasks.spawn(client.run()));
        }
        let lost = tokio::select! {
            biased;
            why = volume.stopped() => Some(why),
            () = self.parts.orders.wait(|order| (*order == Order::Close).then_some(())) => None,
        };
        let end = match lost {
            Some(why) => {
                self.parts.world.lock().lost(self.parts.process, volume.epoch(), &why);
                End::Lost
            }
            None => {
                front.drain().await;
                self.close(volume).await
            }
        };
        drop(front);
        tasks.join().await;
        end
    }

    /// Publishes a checkpoint shortly before, as a caller of `hand_on` does, and lets a client fill a chunk
    /// twice after it.
    async fn before_handing_on(&mut self, volume: &Volume) -> Result<(), Error> {
        volume.checkpoint().await?;
        let (layout, epoch) = (self.parts.world.lock().plan.layout.clone(), volume.epoch());
        let position = self.parts.random.random_range(0..layout.bytes());
        let (offset, room) = layout.place(position / layout.chunk * layout.chunk);
        let range = offset..offset + layout.chunk.min(room);
        for _ in 0..2 {
            let (id, data) = self.parts.world.lock().issue_write(epoch, &range);
            volume.write(range.start, data, Volatile).await?;
            self.parts.world.lock().answered(epoch, id, Volatile);
        }
        Ok(())
    }

    async fn close(&mut self, volume: &Volume) -> End {
        let number = self.parts.world.lock().begin(self.parts.process, &"close");
        // Every other epoch is handed on to a waiting successor.
        let is_handed_on = volume.epoch().is_multiple_of(2);
        if is_handed_on
            && self.parts.random.random_bool(0.7)
            && let Err(error) = self.before_handing_on(volume).await
        {
            self.parts.world.lock().failed(self.parts.process, volume.epoch(), &error);
        }
        let end = loop {
            let closed = match is_handed_on {
                true => volume.hand_on().await,
                false => volume.close().await,
            };
            match closed {
                Ok(()) => {
                    let mut inner = self.parts.world.lock();
                    inner.history.close_answered(volume.epoch());
                    inner.say(format_args!("P{} closed epoch {}", self.parts.process, volume.epoch()));
                    break End::Closed;
                }
                Err(Error::Deadline { .. }) => {}
                Err(error) => {
                    self.parts.world.lock().lost(self.parts.process, volume.epoch(), &error.to_string());
                    break End::Lost;
                }
            }
        };
        self.parts.world.lock().end(self.parts.process, number, "close");
        end
    }
}

impl Inner {
    /// Records that a gateway opened the volume.
    fn opened(&mut self, process: Process, epoch: u32) {
        self.say(format_args!("P{process} opened epoch {epoch}"));
        if !self.history.epochs.contains_key(&epoch)
            && let Some(image) = self.check_now()
        {
            self.history.begin(epoch, Arc::new(image));
        }
        let state = self.processes.get_mut(&process).expect("it was born");
        (state.opening, state.epoch) = (false, Some(epoch));
    }

    /// Records that a gateway that has stopped serving starts again.
    fn again(&mut self, process: Process) {
        let state = self.processes.get_mut(&process).expect("it was born");
        (state.opening, state.epoch) = (true, None);
        self.say(format_args!("P{process} begins again"));
    }

    fn opening_failed(&mut self, process: Process, error: &OpenError) {
        self.say(format_args!("P{process} cannot open: {error}"));
        let is_explained = match error {
            OpenError::Held { .. } | OpenError::Lost(_) => true,
            OpenError::LeaseOver => self.plan.options.lease_strict,
            OpenError::Store(_) => !self.is_fair(),
            _ => false,
        };
        if !is_explained {
            self.broken(format!("P{process} cannot open the volume: {error}"));
        }
    }

    /// Records that a gateway's volume stopped.
    fn lost(&mut self, process: Process, epoch: u32, why: &str) {
        self.say(format_args!("P{process} lost epoch {epoch}: {why}"));
        self.check_superseded(process, epoch, why);
    }

    /// Checks that a volume that stopped was taken over, or is one that observes its lease.
    pub(super) fn check_superseded(&mut self, process: Process, epoch: u32, why: &str) {
        let is_strict = self.plan.options.lease_strict && why.contains("lease.strict");
        if !is_strict && !self.is_superseded(epoch) {
            self.broken(format!("P{process} of epoch {epoch} stopped, though that is the newest: {why}"));
        }
    }

    /// Whether a later epoch has begun.
    pub(super) fn is_superseded(&self, epoch: u32) -> bool {
        bucket::head(&self.objects(), self.volume).is_ok_and(|head| head.epoch > epoch)
    }
}
