//! The world outside the gateways: the store, the requests on their way to and from it, and what happens when.
//!
//! One queue of events in order of time; events of one time happen in the order in which they were drawn. A request
//! is its own: it lands and is answered whether or not its sender still lives. Invariant: every request is answered,
//! unless its sender died.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use cairn::store::{ByteRange, Condition, ETag, Error, ListFrom, Listing, MemoryStore, Object};
use cairn::volume::format::keys::{Epoch, Keys, Parsed};
use cairn::volume::format::record::{Record, RecordKind};
use cairn::volume::format::root::KeptRoot;
use cairn::volume::signal::Signal;
use parking_lot::{Mutex, MutexGuard};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::bounds::{Bounded, Class};
use super::bucket;
use super::history::History;
use super::ledger::Ledger;
use super::plan::Plan;
use super::prefix;
use super::trace::Trace;
use super::weather::{Coverage, Outcome, Phase};

/// Seconds since 1970 when the world begins.
pub(super) const DAWN: u64 = 1_700_000_000;
/// Seconds that the time of day of a gateway is ahead at most.
pub(super) const MAX_SKEW: u64 = 120;
/// Roots whose grace is held to: a gateway lets 1,024 things wait at most, some three of a checkpoint.
const GRACED: usize = 300;

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
    List(String, ListFrom),
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
    pub(super) process: Process,
    pub(super) number: u64,
    pub(super) call: Call,
    /// `None` where the caller will not hear of it.
    pub(super) reply: Option<Reply>,
    pub(super) outcome: Outcome,
    pub(super) answer_at: Time,
    pub(super) sent_at: Time,
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
    /// Ends a time in which the store refuses the credentials.
    Admit,
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
    /// When the last of its updates of the head was sent that took effect: its lease cannot last longer than from there.
    pub(super) leased_at: Time,
    /// Whether it closed the volume, or lost it.
    pub(super) ended: bool,
    /// Whether it is cut off.
    pub(super) partitioned: bool,
    /// Whether its clock goes at a rate of its own.
    pub(super) skewed: bool,
    /// What it was told.
    pub(super) order: Arc<Signal<Order>>,
    /// Commands without an answer, by number.
    pub(super) commands: BTreeMap<u64, String>,
    pub(super) flights: BTreeMap<u64, Phase>,
    /// Whether it was told since it last deleted anything whose the volume is.
    pub(super) asked: bool,
    /// What it last deleted: an attempt that failed may be made again.
    pub(super) deleted: Vec<String>,
    /// Requests whose answers it waits for, by class.
    pub(super) waiting: BTreeMap<Class, usize>,
    /// PUTs of records whose answers it waits for, by log.
    pub(super) records: BTreeMap<Epoch, usize>,
    /// What of its volume is held to bounds.
    pub(super) bounded: Option<Bounded>,
    /// How often it was told that something does not exist which does.
    pub(super) denials: u64,
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
    /// Since when there are no more faults.
    pub(super) calm: Option<Time>,
    /// Nothing is late any more.
    pub(super) drained: bool,
    /// Keys of PUTs that landed without their caller's knowing, or after it lost the volume.
    pub(super) strays: BTreeSet<String>,
    /// Most requests fail.
    pub(super) storm: bool,
    /// The store refuses the credentials of all: they were exchanged, and the new ones are not there yet.
    pub(super) refused: bool,
    /// What is known of names, where the run is about them.
    pub(super) ledger: Option<Ledger>,
    /// Gateways that die at this instant.
    pub(super) crashing: Vec<Process>,
    /// Disasters since a command was answered.
    pub(super) quiet: u32,
    /// An object was damaged or lost at rest: what would be recovered is not to be had from the store any more.
    pub(super) rotten: bool,
    /// What is damaged or lost at rest is a chunk object.
    pub(super) rotten_chunk: bool,
    /// What was recovered right before.
    pub(super) image: Option<super::history::Image>,
    /// What is known of the objects.
    pub(super) known: bucket::Known,
    /// Commands that may still be issued.
    pub(super) commands_left: u32,
    /// Commands that were issued.
    pub(super) commands: u64,
    pub(super) numbers: u64,
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
            calm: None,
            drained: false,
            strays: BTreeSet::new(),
            storm: false,
            refused: false,
            ledger: None,
            crashing: Vec::new(),
            quiet: 0,
            rotten: false,
            rotten_chunk: false,
            image: None,
            known: bucket::Known::default(),
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

    /// What was stopped or cut off goes on: it has not met calm weather yet.
    pub(super) fn ends_a_fault(&mut self) {
        self.calm = self.calm.map(|_| self.now);
    }

    /// Whether the faults of before are over too, for whoever met them.
    pub(super) fn is_fair(&self) -> bool {
        let cut_off = self.processes.values().any(|state| state.alive && state.partitioned);
        !cut_off && self.calm.is_some_and(|since| self.now > since + 20 * self.plan.rough.timeout)
    }

    /// Every object of the store.
    pub(super) fn objects(&self) -> bucket::Objects {
        self.memory.objects()
    }

    /// What a PUT that took effect means: an opening record proves what its writer recovered, and an update of the head
    /// renews the lease of who sent it.
    pub(super) fn landed(&mut self, process: Process, sent_at: Time, key: &str, body: &Bytes) {
        let slot = match Keys::new(self.volume).parse(key) {
            Some(Parsed::Record(slot)) => slot,
            Some(Parsed::Head) => {
                let state = self.processes.get_mut(&process).expect("it sent a request");
                state.leased_at = state.leased_at.max(sent_at);
                return;
            }
            _ => return,
        };
        self.check_bound(key, body);
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

    /// A record is within the bound, or has what one command needs: chunks that a WRITE fills are objects of their own, so
    /// that less than two are left of it.
    fn check_bound(&mut self, key: &str, body: &Bytes) {
        let command = 2 * self.plan.layout.chunk;
        let most = self.plan.options.commit_max_bytes.max(command + command / 64) + 1024;
        if body.len() as u64 > most {
            self.broken(format!("{key} has {} bytes, more than {most}", body.len()));
        }
    }

    /// Whether a read that was issued then may be answered: a strict volume reads nothing once its lease is over, by a
    /// clock that may go slower than ours.
    pub(super) fn check_lease(&mut self, process: Process, issued_at: Time) {
        let lasts = u64::try_from(self.plan.options.lease_ttl.as_millis()).expect("short");
        let ends = self.processes[&process].leased_at + lasts * 9 / 8 + 2;
        if self.plan.options.lease_strict && issued_at > ends {
            let late = issued_at - ends;
            self.broken(format!(
                "P{process} answers a read that was asked {late} ms after its lease was over"
            ));
        }
    }

    /// Checks what an opener would recover now; gives the image.
    pub(super) fn check_now(&mut self) -> Option<Vec<super::cells::Id>> {
        if self.rotten {
            return None;
        }
        let objects = self.objects();
        let found = bucket::recover(&objects, self.volume, &self.plan.layout, &mut self.known);
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
        for kept in found.table.roots.iter().rev().take(GRACED) {
            if !self.is_within_grace(kept) {
                continue;
            }
            let checked =
                bucket::check_root(&objects, self.volume, &self.plan.layout, kept.root, &mut self.known);
            if let Err(why) = checked {
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
    pub(super) fn born(&mut self, process: Process) -> Arc<Signal<Order>> {
        let order = Arc::new(Signal::new(Order::Serve));
        let state = ProcessState {
            alive: true,
            opening: true,
            epoch: None,
            leased_at: 0,
            ended: false,
            partitioned: false,
            skewed: false,
            order: Arc::clone(&order),
            commands: BTreeMap::new(),
            flights: BTreeMap::new(),
            asked: false,
            deleted: Vec::new(),
            waiting: BTreeMap::new(),
            records: BTreeMap::new(),
            bounded: None,
            denials: 0,
        };
        self.processes.insert(process, state);
        order
    }

    /// Tells a gateway what to do.
    pub(super) fn order(&mut self, process: Process, order: Order) {
        self.processes[&process].order.set(order);
    }
}
