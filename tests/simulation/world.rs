//! The world outside the gateways: the store, the requests in flight to and from it, and the order of events.
//!
//! Owns one queue of events, ordered by time. Events of the same time happen in the order in which they were
//! drawn. It does not know why a gateway sends a request. A request is independent of its sender: it lands
//! and is answered whether or not the sender is still alive. Invariant: every request is answered, unless its
//! sender died.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use cairn::store::{ByteRange, Condition, ETag, Error, ListFrom, Listing, MemoryStore, Object};
use cairn::volume::format::keys::{Keys, Parsed, Slot};
use cairn::volume::format::record::{Record, RecordKind};
use cairn::volume::format::root::KeptRoot;
use cairn::volume::format::sealing::Sealing;
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

/// Unix time in seconds at which the world begins.
pub(super) const DAWN: u64 = 1_700_000_000;
/// Limit in seconds by which a gateway's time of day may be ahead.
pub(super) const MAX_SKEW: u64 = 120;
/// Number of retired roots for which the grace period is checked. A gateway queues at most 1,024 batches of
/// garbage, about three for each checkpoint.
const GRACED: usize = 300;

/// Time of the world in milliseconds.
pub(super) type Time = u64;
/// Number of a process: one run of a gateway from its start to its end.
pub(super) type Process = u32;

/// A request to the store.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Get(String, ByteRange),
    Put(String, Bytes, Condition),
    Delete(Vec<String>),
    List(String, ListFrom),
}

/// A successful answer of the store.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Object(Object),
    ETag(ETag),
    Deleted,
    Listing(Listing),
}

/// Channel that takes the answer to the caller.
pub(super) type Reply = oneshot::Sender<Result<Answer, Error>>;

/// A request in flight to the store.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) process: Process,
    pub(super) number: u64,
    pub(super) call: Call,
    /// Channel for the answer; `None` if the caller will not receive it.
    pub(super) reply: Option<Reply>,
    pub(super) outcome: Outcome,
    pub(super) answer_at: Time,
    pub(super) sent_at: Time,
}

/// An event of the world.
#[derive(Debug)]
pub(super) enum Event {
    /// A request takes effect.
    Land(Box<Flight>),
    /// A caller receives its answer.
    Answer(Process, u64, Reply, Box<Result<Answer, Error>>),
    /// The driver acts.
    Act(Act),
}

/// An action of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Draws and applies a disaster, or starts a gateway.
    Disaster,
    /// Ends the partition of this gateway.
    Heal(Process),
    /// Resumes this paused gateway.
    Resume(Process),
    /// Ends a storm, in which most requests fail.
    Clear,
    /// Ends a period in which the store refuses the credentials.
    Admit,
    /// Does nothing: time only advances to this event.
    Wake,
}

/// An order to a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Serve the clients.
    Serve,
    /// Stop the clients after their current commands, and wait.
    Rest,
    /// Close the volume.
    Close,
}

/// What the world knows about a gateway.
#[derive(Debug)]
pub(super) struct ProcessState {
    /// Whether the process is running.
    pub(super) alive: bool,
    /// Whether the gateway is opening the volume, so that its requests belong to that.
    pub(super) opening: bool,
    /// The epoch under which it serves the volume.
    pub(super) epoch: Option<u32>,
    /// When it sent the last update of the head that took effect. Its lease cannot last longer than counted
    /// from there.
    pub(super) leased_at: Time,
    /// Whether it has closed or lost the volume.
    pub(super) ended: bool,
    /// Whether it is cut off from the store.
    pub(super) partitioned: bool,
    /// Whether its clock runs at a different rate than the world's.
    pub(super) skewed: bool,
    /// The current order to the gateway.
    pub(super) order: Arc<Signal<Order>>,
    /// Unanswered commands, by number.
    pub(super) commands: BTreeMap<u64, String>,
    pub(super) flights: BTreeMap<u64, Phase>,
    /// Whether it has read who holds the volume since its last deletion.
    pub(super) asked: bool,
    /// The keys of its last deletion, which may be repeated if it failed.
    pub(super) deleted: Vec<String>,
    /// Number of requests in flight whose answers it waits for, by class.
    pub(super) waiting: BTreeMap<Class, usize>,
    /// Number of PUTs of each record in flight whose answers it waits for.
    pub(super) records: BTreeMap<Slot, usize>,
    /// The values of its volume that are checked against limits.
    pub(super) bounded: Option<Bounded>,
    /// How often the store falsely reported to it that an object does not exist.
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
    /// Time since which there are no more faults.
    pub(super) calm: Option<Time>,
    /// Whether no late request remains.
    pub(super) drained: bool,
    /// Keys of PUTs that landed without their caller's knowledge, or after it lost the volume.
    pub(super) strays: BTreeSet<String>,
    /// Whether a storm is on, in which most requests fail.
    pub(super) storm: bool,
    /// Whether the store refuses everyone's credentials: they were exchanged, and the new ones are not
    /// available yet.
    pub(super) refused: bool,
    /// What is known about snapshots.
    pub(super) snapshots: super::snapshots::Ledger,
    /// What is known about names, in a run that tests names.
    pub(super) ledger: Option<Ledger>,
    /// Gateways that crash at this instant.
    pub(super) crashing: Vec<Process>,
    /// Processes to be paused before the next event.
    pub(super) pausing: Vec<Process>,
    /// Processes to be cut off from the store before the next event.
    pub(super) cutting_off: Vec<Process>,
    /// Number of disasters since a command was last answered.
    pub(super) quiet: u32,
    /// Whether an object was damaged or lost at rest, so that the state to be recovered is no longer
    /// available from the store.
    pub(super) rotten: bool,
    /// Whether the object damaged or lost at rest is a chunk object.
    pub(super) rotten_chunk: bool,
    /// The image that was recovered right before.
    pub(super) image: Option<super::history::Image>,
    /// Cache of what the objects contain.
    pub(super) known: bucket::Known,
    /// Number of commands that may still be issued.
    pub(super) commands_left: u32,
    /// Number of commands issued so far.
    pub(super) commands: u64,
    pub(super) numbers: u64,
    queue: BTreeMap<(Time, u64), Event>,
}

impl World {
    /// Creates a world with an empty store.
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
            snapshots: super::snapshots::Ledger::default(),
            ledger: None,
            crashing: Vec::new(),
            pausing: Vec::new(),
            cutting_off: Vec::new(),
            quiet: 0,
            rotten: false,
            rotten_chunk: false,
            image: None,
            known: bucket::Known::new(plan.rots),
            commands_left: plan.commands,
            commands: 0,
            numbers: 0,
            queue: BTreeMap::new(),
            plan,
        })))
    }

    /// Locks the state.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }
}

impl Inner {
    /// Adds to the trace.
    pub(super) fn say(&mut self, event: std::fmt::Arguments<'_>) {
        self.trace.line(self.now, event);
    }

    /// Records that a promise is broken; the first one counts.
    pub(super) fn broken(&mut self, why: String) {
        self.say(format_args!("VIOLATION {why}"));
        self.violation.get_or_insert(why);
    }

    /// Schedules an event.
    pub(super) fn push(&mut self, at: Time, event: Event) {
        self.numbers += 1;
        self.queue.insert((at.max(self.now), self.numbers), event);
    }

    /// The time of the next event.
    pub(super) fn next_time(&self) -> Option<Time> {
        self.queue.first_key_value().map(|((time, _), _)| *time)
    }

    /// Takes the next event and advances the time to it.
    pub(super) fn pop(&mut self) -> Option<Event> {
        let ((time, _), event) = self.queue.pop_first()?;
        self.now = self.now.max(time);
        Some(event)
    }

    /// Removes all scheduled actions of the driver.
    pub(super) fn forget_acts(&mut self) {
        self.queue.retain(|_, event| !matches!(event, Event::Act(_)));
    }

    /// Notes that a paused or partitioned gateway continues: it has not been in calm weather yet.
    pub(super) fn ends_a_fault(&mut self) {
        self.calm = self.calm.map(|_| self.now);
    }

    /// Whether the weather is calm, and earlier faults no longer affect any gateway.
    pub(super) fn is_fair(&self) -> bool {
        let cut_off = self.processes.values().any(|state| state.alive && state.partitioned);
        !cut_off && self.calm.is_some_and(|since| self.now > since + 20 * self.plan.rough.timeout)
    }

    /// Every object of the store.
    pub(super) fn objects(&self) -> bucket::Objects {
        self.memory.objects()
    }

    /// Interprets a PUT that took effect: an opening record proves what its writer recovered, and an update
    /// of the head renews the lease of its sender.
    pub(super) fn landed(&mut self, process: Process, sent_at: Time, key: &str, body: &Bytes) {
        let slot = match Keys::new(self.volume).parse(key) {
            Some(Parsed::Record(slot)) => slot,
            Some(Parsed::Head) => {
                let state = self.processes.get_mut(&process).expect("it sent a request");
                state.leased_at = state.leased_at.max(sent_at);
                return;
            }
            Some(Parsed::Root(id)) => return self.table_lands(id, body),
            _ => return,
        };
        self.check_bound(key, body);
        if slot.n != 1 || self.history.newest() >= slot.epoch {
            return;
        }
        let decoded = Record::decode(Sealing::new(self.volume), slot, body);
        if !decoded.is_ok_and(|(record, _)| record.kind == RecordKind::Opening) {
            return;
        }
        if let Some(image) = self.check_now() {
            self.history.begin(slot.epoch, Arc::new(image));
        }
    }

    /// Checks that a record is within its limit, or contains just what one command needs. Chunks that a WRITE
    /// fills are objects of their own, so less than two chunks of it remain.
    fn check_bound(&mut self, key: &str, body: &Bytes) {
        let command = 2 * self.plan.layout.chunk;
        let most = self.plan.options.commit_max_bytes.max(command + command / 64) + 1024;
        if body.len() as u64 > most {
            self.broken(format!("{key} has {} bytes, more than {most}", body.len()));
        }
    }

    /// Checks that a read issued at that time may be answered: a strict volume reads nothing once its lease
    /// has expired, by a clock that may be slower than the world's.
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

    /// Checks what an opener would recover now. Returns the image.
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
        self.check_snapshots(&objects, &found);
        for kept in found.table.roots.iter().rev().take(GRACED) {
            if kept.snapshot.is_some() || !self.is_within_grace(kept) {
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

    /// Whether a kept root must not be deleted yet, whatever the gateways' clocks say.
    fn is_within_grace(&self, kept: &KeptRoot) -> bool {
        let now = DAWN + self.now / 1000;
        let ends = kept.retired_at_seconds + self.plan.options.deletion_grace.as_secs();
        kept.retired_at_seconds == 0 || now + 2 * MAX_SKEW < ends
    }

    /// Registers a gateway that starts.
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
