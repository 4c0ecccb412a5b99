//! The world outside the gateways: the store, the requests on their way to and from it, and what happens when.
//!
//! One queue of events in order of time; events of one time happen in the order in which they were drawn. A request
//! is its own: it lands and is answered whether or not its sender still lives. Invariant: every request is answered,
//! unless its sender died.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cairn::store::{ByteRange, Condition, ETag, Error, Listing, MemoryStore, Object, Store};
use cairn::volume::keys::{Keys, Parsed};
use cairn::volume::record::{Record, RecordKind};
use cairn::volume::root::KeptRoot;
use futures::FutureExt;
use parking_lot::{Mutex, MutexGuard};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::bucket;
use super::history::History;
use super::plan::Plan;
use super::prefix;
use super::trace::Trace;
use super::weather::{Coverage, Failure, Fate, Fault, Outcome, Phase, draw, fair};

/// Seconds since 1970 when the world begins.
pub(super) const DAWN: u64 = 1_700_000_000;
/// Seconds that the time of day of a gateway is ahead at most.
pub(super) const MAX_SKEW: u64 = 120;

/// Time of the world in milliseconds.
pub(super) type Time = u64;
/// A gateway's life from start to end; each has its own number.
pub(super) type Process = u32;

/// A request to the store.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Get(String, ByteRange),
    Put(String, Bytes, Condition),
    Delete(Vec<String>),
    List(String, Option<String>),
}

/// What the store answers.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Object(Object),
    ETag(ETag),
    Deleted,
    Listing(Listing),
}

/// Where an answer goes.
pub(super) type Reply = oneshot::Sender<Result<Answer, Error>>;

/// A request on its way to the store.
#[derive(Debug)]
pub(super) struct Flight {
    process: Process,
    number: u64,
    call: Call,
    /// `None` where the caller will not hear of it.
    reply: Option<Reply>,
    outcome: Outcome,
    answer_at: Time,
}

/// What happens.
#[derive(Debug)]
pub(super) enum Event {
    /// A request takes effect.
    Land(Box<Flight>),
    /// A caller hears.
    Answer(Process, u64, Reply, Box<Result<Answer, Error>>),
    /// Something that the driver does.
    Act(Act),
}

/// What the driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Draws a disaster, or starts a gateway.
    Disaster,
    /// Ends a partition.
    Heal(Process),
    /// Ends a pause.
    Resume(Process),
    /// Ends a storm.
    Clear,
    /// Nothing but the passing of time.
    Wake,
}

/// What a gateway is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// To serve its clients.
    Serve,
    /// To end its clients after the command at hand, and to wait.
    Rest,
    /// To close the volume.
    Close,
}

/// What is known of a gateway.
#[derive(Debug)]
pub(super) struct ProcessState {
    /// Whether it is alive.
    pub(super) alive: bool,
    /// Whether its requests are those of an opening.
    pub(super) opening: bool,
    /// The epoch that it serves.
    pub(super) epoch: Option<u32>,
    /// Whether it closed the volume, or lost it.
    pub(super) ended: bool,
    /// Whether it is cut off.
    pub(super) partitioned: bool,
    /// What it was told.
    pub(super) order: watch::Sender<Order>,
    /// Commands without an answer, by number.
    pub(super) commands: BTreeMap<u64, String>,
    flights: BTreeMap<u64, Phase>,
}

/// Shared by all parts of a run.
#[derive(Clone)]
pub(super) struct World(Arc<Mutex<Inner>>);

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

/// The world's state.
pub(super) struct Inner {
    pub(super) now: Time,
    pub(super) plan: Plan,
    pub(super) volume: Uuid,
    pub(super) memory: MemoryStore,
    pub(super) random: SmallRng,
    pub(super) trace: Trace,
    pub(super) history: History,
    pub(super) coverage: Coverage,
    /// The first promise that was found broken.
    pub(super) violation: Option<String>,
    pub(super) processes: BTreeMap<Process, ProcessState>,
    /// No more faults.
    pub(super) calm: bool,
    /// Nothing is late any more.
    pub(super) drained: bool,
    /// Keys of PUTs that landed without their caller's knowing, or after it lost the volume.
    pub(super) strays: BTreeSet<String>,
    /// Most requests fail.
    pub(super) storm: bool,
    /// Gateways that die at this instant.
    pub(super) crashing: Vec<Process>,
    /// Commands that may still be issued.
    pub(super) commands_left: u32,
    /// Commands that were issued.
    pub(super) commands: u64,
    numbers: u64,
    queue: BTreeMap<(Time, u64), Event>,
}

impl World {
    /// A world with an empty store.
    pub(super) fn new(plan: Plan, volume: Uuid, memory: MemoryStore, print: bool) -> Self {
        let cells = plan.layout.cells();
        let random = SmallRng::seed_from_u64(plan.seed ^ 0x0dd5_0000_0000_0002);
        Self(Arc::new(Mutex::new(Inner {
            now: 0,
            volume,
            memory,
            random,
            trace: Trace::new(print),
            history: History::new(cells),
            coverage: Coverage::default(),
            violation: None,
            processes: BTreeMap::new(),
            calm: false,
            drained: false,
            strays: BTreeSet::new(),
            storm: false,
            crashing: Vec::new(),
            commands_left: plan.commands,
            commands: 0,
            numbers: 0,
            queue: BTreeMap::new(),
            plan,
        })))
    }

    /// The state, until the guard is dropped.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }
}

fn short(call: &Call, prefix: &str) -> String {
    let cut = |key: &str| key.strip_prefix(prefix).unwrap_or(key).to_owned();
    match call {
        Call::Get(key, ByteRange::Full) => format!("get {}", cut(key)),
        Call::Get(key, ByteRange::Bounded { offset, length }) => {
            format!("get {}[{offset}+{length}]", cut(key))
        }
        Call::Put(key, body, condition) => {
            let how = match condition {
                Condition::Always => "",
                Condition::IfAbsent => " if absent",
                Condition::IfMatch(_) => " if match",
            };
            format!("put {} {} bytes{how}", cut(key), body.len())
        }
        Call::Delete(keys) => {
            format!("delete {}", keys.iter().map(|key| cut(key)).collect::<Vec<_>>().join(" "))
        }
        Call::List(prefix, after) => format!("list {} after {:?}", cut(prefix), after.as_deref().map(cut)),
    }
}

fn told(result: &Result<Answer, Error>) -> String {
    match result {
        Ok(Answer::Object(object)) => format!("{} bytes", object.body.len()),
        Ok(Answer::Listing(listing)) => format!("{} entries", listing.entries.len()),
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{:?}", error.outcome()),
    }
}

impl Inner {
    /// Adds to the trace.
    pub(super) fn say(&mut self, event: std::fmt::Arguments<'_>) {
        self.trace.line(self.now, event);
    }

    /// Notes that a promise is broken.
    pub(super) fn broken(&mut self, why: String) {
        self.say(format_args!("VIOLATION {why}"));
        self.violation.get_or_insert(why);
    }

    /// Lets an event happen at a time.
    pub(super) fn push(&mut self, at: Time, event: Event) {
        self.numbers += 1;
        self.queue.insert((at.max(self.now), self.numbers), event);
    }

    /// The time of the next event.
    pub(super) fn next_time(&self) -> Option<Time> {
        self.queue.first_key_value().map(|((time, _), _)| *time)
    }

    /// Takes the next event; its time is now.
    pub(super) fn pop(&mut self) -> Option<Event> {
        let ((time, _), event) = self.queue.pop_first()?;
        self.now = self.now.max(time);
        Some(event)
    }

    /// Forgets what the driver was still to do.
    pub(super) fn forget_acts(&mut self) {
        self.queue.retain(|_, event| !matches!(event, Event::Act(_)));
    }

    /// Every object of the store.
    pub(super) fn objects(&self) -> bucket::Objects {
        self.memory.objects()
    }

    fn phase(&self, process: Process, call: &Call) -> Phase {
        if self.processes[&process].opening {
            return Phase::Open;
        }
        let parse = |key: &str| Keys::new(self.volume).parse(key);
        match call {
            Call::Delete(_) | Call::List(..) => Phase::Collect,
            Call::Put(key, ..) => match parse(key) {
                Some(Parsed::Head) => Phase::Head,
                Some(Parsed::Root(_) | Parsed::MapPage(..)) => Phase::Fold,
                _ => Phase::Commit,
            },
            Call::Get(key, range) => match (parse(key), range) {
                (Some(Parsed::Record(_)), ByteRange::Full) => Phase::Commit,
                (Some(Parsed::Record(_) | Parsed::Chunk(..) | Parsed::MapPage(..)), _) => Phase::Read,
                _ => Phase::Collect,
            },
        }
    }

    /// Sends a request at a time, which may be a little ahead of the world's.
    pub(super) fn send(&mut self, process: Process, at: Time, call: Call, reply: Reply) {
        let at = at.max(self.now);
        let phase = self.phase(process, &call);
        self.numbers += 1;
        let number = self.numbers;
        let fate = self.fate(process, &call);
        if let Some(fault) = fate.fault {
            self.coverage.met(fault, phase);
        }
        let prefix = Keys::new(self.volume).prefix();
        self.trace.line(
            at,
            format_args!(
                "P{process} #{number} {phase:?} {}{}",
                short(&call, &prefix),
                match fate.fault {
                    Some(fault) => format!(" [{fault:?}]"),
                    None => String::new(),
                }
            ),
        );
        let answer_at = at + fate.answered;
        let outcome = fate.outcome;
        let flight = |reply| Flight { process, number, call: call.clone(), reply, outcome, answer_at };
        if let Some(again) = fate.again {
            self.push(at + again, Event::Land(Box::new(flight(None))));
        }
        let reply = match outcome {
            Outcome::Fails(failure) => {
                let key = match &call {
                    Call::Get(key, _) | Call::Put(key, ..) | Call::List(key, _) => key.as_str(),
                    Call::Delete(keys) => keys.first().map_or("", String::as_str),
                };
                let error = Box::new(Err(failure.error(key)));
                self.push(answer_at, Event::Answer(process, number, reply, error));
                None
            }
            _ => Some(reply),
        };
        if let Some(lands) = fate.lands {
            self.push(at + lands, Event::Land(Box::new(flight(reply))));
        }
        let state = self.processes.get_mut(&process).expect("it sent a request");
        state.flights.insert(number, phase);
        self.crash_by_chance(process);
    }

    fn fate(&mut self, process: Process, call: &Call) -> Fate {
        let changes = matches!(call, Call::Put(..) | Call::Delete(_));
        let has_body = matches!(call, Call::Get(..));
        if self.calm {
            return fair(&self.plan.rough, &mut self.random);
        }
        if self.processes[&process].partitioned {
            let timeout = self.plan.rough.timeout;
            let refused = self.random.random_bool(0.5);
            let answered = if refused { self.random.random_range(1..50) } else { timeout };
            let failure = if refused { Failure::Transient } else { Failure::Timeout };
            let outcome = Outcome::Fails(failure);
            return Fate { lands: None, again: None, answered, outcome, fault: Some(Fault::Partition) };
        }
        let mut rates = self.plan.rough.clone();
        if self.storm {
            (rates.throttled, rates.error_before, rates.lost_answer) = (5000, 2000, 1000);
        }
        draw(&rates, &mut self.random, changes, has_body)
    }

    fn crash_by_chance(&mut self, process: Process) {
        // Openings are many requests, and crash in peace else.
        let opening = self.processes.get(&process).is_some_and(|state| state.opening);
        let rate = self.plan.crash_at_request / if opening { 10 } else { 1 };
        if !self.calm && rate > 0 && self.random.random_range(0..10_000) < rate {
            self.crashing.push(process);
        }
    }

    /// Counts a fault of a gateway against what it has on its way.
    pub(super) fn strike(&mut self, process: Process, fault: Fault) {
        let phases: Vec<Phase> = self.processes[&process].flights.values().copied().collect();
        phases.into_iter().for_each(|phase| self.coverage.met(fault, phase));
    }

    /// A request takes effect.
    pub(super) fn land(&mut self, flight: Flight) {
        let Flight { process, number, call, reply, outcome, answer_at, .. } = flight;
        if !self.processes[&process].alive && self.random.random_bool(0.3) {
            self.say(format_args!("P{process} #{number} never arrives: its sender is dead"));
            return;
        }
        let result = self.apply(&call);
        self.say(format_args!("P{process} #{number} lands: {}", told(&result)));
        if let (Call::Put(key, body, _), Ok(_)) = (&call, &result) {
            self.landed(key, body);
            let superseded =
                self.processes[&process].epoch.is_some_and(|epoch| epoch < self.history.newest());
            if reply.is_none() || superseded {
                self.strays.insert(key.clone());
            }
        }
        if let Some(reply) = reply {
            let result = self.on_the_way(outcome, result);
            self.push(answer_at, Event::Answer(process, number, reply, Box::new(result)));
            self.crash_by_chance(process);
        }
    }

    fn apply(&self, call: &Call) -> Result<Answer, Error> {
        let now = "the store in memory answers at once";
        match call {
            Call::Get(key, range) => {
                self.memory.get(key, *range).now_or_never().expect(now).map(Answer::Object)
            }
            Call::Put(key, body, condition) => {
                let put = self.memory.put(key, body.clone(), condition.clone());
                put.now_or_never().expect(now).map(Answer::ETag)
            }
            Call::Delete(keys) => {
                self.memory.delete(keys).now_or_never().expect(now).map(|()| Answer::Deleted)
            }
            Call::List(prefix, after) => {
                let list = self.memory.list(prefix, after.as_deref());
                list.now_or_never().expect(now).map(Answer::Listing)
            }
        }
    }

    /// What is left of an answer on its way.
    fn on_the_way(&mut self, outcome: Outcome, result: Result<Answer, Error>) -> Result<Answer, Error> {
        let Ok(Answer::Object(object)) = result else { return result };
        match outcome {
            Outcome::Flipped if !object.body.is_empty() => {
                let mut body = BytesMut::from(&object.body[..]);
                let at = self.random.random_range(0..body.len());
                body[at] ^= 1 << self.random.random_range(0..8_u8);
                Ok(Answer::Object(Object { body: body.freeze(), etag: object.etag }))
            }
            Outcome::Short => {
                let wanted = object.body.len() as u64;
                Err(Error::Truncated { key: String::new(), wanted, got: wanted / 2 })
            }
            _ => Ok(Answer::Object(object)),
        }
    }

    /// A caller hears, unless it is cut off.
    pub(super) fn answer(
        &mut self,
        process: Process,
        number: u64,
        reply: Reply,
        result: Result<Answer, Error>,
    ) {
        let state = self.processes.get_mut(&process).expect("it sent a request");
        if !state.alive {
            return;
        }
        if state.partitioned && !matches!(result, Err(Error::Timeout { .. })) {
            let error = Box::new(Err(Failure::Timeout.error("")));
            let later = self.now + self.plan.rough.timeout;
            return self.push(later, Event::Answer(process, number, reply, error));
        }
        state.flights.remove(&number);
        self.say(format_args!("P{process} #{number} hears: {}", told(&result)));
        // Nobody listens where the caller gave the request up.
        drop(reply.send(result));
    }

    /// What a PUT that took effect means: an opening record proves what its writer recovered.
    fn landed(&mut self, key: &str, body: &Bytes) {
        let Some(Parsed::Record(slot)) = Keys::new(self.volume).parse(key) else { return };
        if slot.n != 1 || self.history.newest() >= slot.epoch {
            return;
        }
        let decoded = Record::decode(self.volume, slot, body);
        if !decoded.is_ok_and(|(record, _)| record.kind == RecordKind::Opening) {
            return;
        }
        if let Some(image) = self.check_now() {
            self.history.begin(slot.epoch, Arc::new(image));
        }
    }

    /// Checks what an opener would recover now; gives the image.
    pub(super) fn check_now(&mut self) -> Option<Vec<super::cells::Id>> {
        let objects = self.objects();
        let found = bucket::recover(&objects, self.volume, &self.plan.layout);
        let found = match found {
            Ok(found) => found,
            Err(why) => {
                self.broken(format!("the volume cannot be recovered: {why}"));
                return None;
            }
        };
        if !found.lost.is_empty() {
            self.broken(format!("sectors are marked as lost: cells {:?}", found.lost.iter().next()));
        }
        let newest = self.history.newest();
        if let Err(why) = prefix::check(&self.history.epochs[&newest], &found.image) {
            self.broken(format!("after epoch {newest}: {why}"));
        }
        for kept in &found.table.roots {
            if !self.is_within_grace(kept) {
                continue;
            }
            if let Err(why) = bucket::check_root(&objects, self.volume, &self.plan.layout, kept.root) {
                self.broken(format!("a root within its grace is not whole: {why}"));
            }
        }
        Some(found.image)
    }

    /// Whether a kept root may not be deleted yet, whatever the clocks of gateways say.
    fn is_within_grace(&self, kept: &KeptRoot) -> bool {
        let now = DAWN + self.now / 1000;
        let ends = kept.retired_at_seconds + self.plan.options.deletion_grace.as_secs();
        kept.retired_at_seconds == 0 || now + 2 * MAX_SKEW < ends
    }

    /// A gateway begins.
    pub(super) fn born(&mut self, process: Process) -> watch::Receiver<Order> {
        let (order, orders) = watch::channel(Order::Serve);
        let state = ProcessState {
            alive: true,
            opening: true,
            epoch: None,
            ended: false,
            partitioned: false,
            order,
            commands: BTreeMap::new(),
            flights: BTreeMap::new(),
        };
        self.processes.insert(process, state);
        orders
    }

    /// Tells a gateway what to do.
    pub(super) fn order(&mut self, process: Process, order: Order) {
        self.processes[&process].order.send_replace(order);
    }
}
