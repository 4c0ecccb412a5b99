//! The limits, checked whenever a gateway has run: requests of each class, records in flight, dirty and clean
//! bytes, and the journal; and the time that a refusal is waited for.
//!
//! It counts what a gateway waits for: a request that the gateway gave up no longer counts, though it may
//! still land.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cairn::metrics::StoreMetrics;
use cairn::store::retry::Patience;
use cairn::store::{
    ByteRange, Classes, Condition, ETag, Error, Hedging, ListFrom, Listing, Object, Retry, Store,
};
use cairn::volume::format::geometry::BLOCK_BYTES;
use cairn::volume::format::keys::{Keys, Parsed, Slot};
use cairn::volume::{DirtyBudget, PageCache, Usage, Volume};
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::plan::Plan;
use super::world::{Call, Inner, Process, World};

/// Limit on concurrent requests of the class `ahead`, independent of the limit on requests.
const AHEAD: usize = 8;
/// Divisor of the limit on requests: the part for background work.
const BULK: usize = 4;
/// Limit on cut commits that wait for those whose records are in flight.
const WAITING_CUTS: usize = 64;
/// Limit on the keys of one delete request.
const DELETE_KEYS: usize = 1000;
/// Limit on the bytes of a record beyond the changes that the dirty budget counts.
const RECORD_EXTRA_BYTES: u64 = 256;

/// The class of a request. Each class has its own limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Reads,
    Journal,
    Uploads,
    Ahead,
    Bulk,
}

/// In the order in which [`Classes::limited`] makes them.
const CLASSES: [Class; 5] = [Class::Reads, Class::Journal, Class::Uploads, Class::Ahead, Class::Bulk];

impl Class {
    fn most(self, requests: usize) -> usize {
        match self {
            Self::Reads | Self::Journal | Self::Uploads => requests,
            Self::Ahead => requests.min(AHEAD),
            Self::Bulk => requests.div_ceil(BULK),
        }
    }
}

tokio::task_local! {
    static CLASS: Class;
}

/// The retry layer of a process, which must learn when disks are in use.
#[derive(Clone, Default)]
pub(super) struct Control {
    retries: Vec<Arc<Retry>>,
    in_use: Arc<AtomicBool>,
}

impl Control {
    /// Notes that disks are in use: from now on refusals are waited for.
    pub(super) fn wait_out_refusals(&self) {
        self.retries.iter().for_each(|retry| retry.wait_out_refusals());
        self.in_use.store(true, Ordering::Relaxed);
    }
}

/// A process's way to the store by class, as the gateway builds it, with each class watched from above.
pub(super) fn classes(
    world: &World,
    process: Process,
    plan: &Plan,
    store: &Arc<dyn Store>,
    metrics: &StoreMetrics,
    random: &mut SmallRng,
) -> (Classes, Control) {
    let mut control = Control::default();
    let mut names = CLASSES.into_iter();
    let in_use = Arc::clone(&control.in_use);
    let hedging = Hedging::new(plan.hedge, metrics.clone());
    let store = Classes::limited(store, plan.concurrency, metrics, |class, limited| {
        let hedged = hedging.above(class, limited);
        let retry = Retry::new(hedged, plan.retry, metrics.clone(), random.random()).of_class(class);
        let retry = Arc::new(retry);
        control.retries.push(Arc::clone(&retry));
        Arc::new(Watched {
            inner: retry,
            class: names.next().expect("five classes"),
            world: world.clone(),
            process,
            in_use: Arc::clone(&in_use),
            read: plan.retry.read,
            write: plan.retry.write,
        })
    });
    (store, control)
}

/// The top of a class.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn Store>,
    class: Class,
    world: World,
    process: Process,
    in_use: Arc<AtomicBool>,
    read: Patience,
    write: Patience,
}

impl Watched {
    /// Once disks are in use, a refusal is an error only when the whole time for a request has passed.
    async fn watch<T>(
        &self,
        patience: Patience,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let begun = Instant::now();
        let answer = CLASS.scope(self.class, request).await;
        if let Err(error) = &answer
            && error.is_refusal()
            && self.in_use.load(Ordering::Relaxed)
            && begun.elapsed() < patience.deadline.unwrap_or(Duration::MAX)
        {
            let (process, waited) = (self.process, begun.elapsed());
            let why = format!("P{process} waits for a refusal to pass only for {waited:?}: {error}");
            self.world.lock().broken(why);
        }
        answer
    }
}

#[async_trait]
impl Store for Watched {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        self.watch(self.read, self.inner.get(key, range)).await
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        self.watch(self.write, self.inner.put(key, body, condition)).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        self.watch(self.write, self.inner.delete(keys)).await
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        self.watch(self.read, self.inner.list(prefix, from)).await
    }
}

/// A request whose answer a process waits for.
pub(super) struct Waiting {
    world: World,
    process: Process,
    class: Class,
    /// The record that it creates.
    record: Option<Slot>,
}

impl Waiting {
    /// A process sends a request.
    pub(super) fn begin(world: &World, process: Process, call: &Call) -> Self {
        let class = CLASS.try_with(|class| *class).expect("every request has a class");
        let mut inner = world.lock();
        let record = match call {
            Call::Put(key, ..) => match Keys::new(inner.volume).parse(key) {
                Some(Parsed::Record(slot)) => Some(slot),
                _ => None,
            },
            _ => None,
        };
        inner.waits(process, class, record);
        inner.check_batch(process, call);
        Self { world: world.clone(), process, class, record }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut inner = self.world.lock();
        let state = inner.processes.get_mut(&self.process).expect("it sent a request");
        *state.waiting.get_mut(&self.class).expect("counted") -= 1;
        if let Some(slot) = self.record {
            let puts = state.records.get_mut(&slot).expect("counted");
            *puts -= 1;
            if *puts == 0 {
                state.records.remove(&slot);
            }
        }
    }
}

/// The values of an open volume that are checked.
#[derive(Debug)]
pub(super) struct Bounded {
    volume: Weak<Volume>,
    cache: Arc<PageCache>,
    budget: Arc<DirtyBudget>,
    /// Size of the journal that it replayed at its opening.
    began: Usage,
}

impl Bounded {
    pub(super) fn new(volume: &Arc<Volume>, cache: &Arc<PageCache>, budget: &Arc<DirtyBudget>) -> Self {
        let (cache, budget) = (Arc::clone(cache), Arc::clone(budget));
        Self { volume: Arc::downgrade(volume), cache, budget, began: volume.usage() }
    }
}

impl Inner {
    fn waits(&mut self, process: Process, class: Class, record: Option<Slot>) {
        let (most, records) = (class.most(self.plan.concurrency), self.plan.options.commits_in_flight);
        let state = self.processes.get_mut(&process).expect("it sends a request");
        let waiting = state.waiting.entry(class).or_default();
        *waiting += 1;
        let waiting = *waiting;
        let (of_log, of_slot) = record.map_or((0, 0), |slot| {
            let puts = state.records.entry(slot).or_default();
            *puts += 1;
            let of_slot = *puts;
            (state.records.keys().filter(|other| other.epoch == slot.epoch).count(), of_slot)
        });
        if waiting > most {
            self.broken(format!(
                "P{process} has {waiting} requests of {class:?} on their way, more than {most}"
            ));
        }
        // A slow PUT is sent a second time, if the plan hedges.
        let puts = if self.plan.hedge.percent == 0 { 1 } else { 2 };
        if of_slot > puts {
            self.broken(format!(
                "P{process} has {of_slot} PUTs of one record on their way, more than {puts}"
            ));
        }
        if of_log > records {
            self.broken(format!("P{process} has {of_log} records on their way, more than {records}"));
        }
    }

    fn check_batch(&mut self, process: Process, call: &Call) {
        if let Call::Delete(keys) = call
            && keys.len() > DELETE_KEYS
        {
            self.broken(format!("P{process} deletes {} keys with one request", keys.len()));
        }
    }

    /// Checks a gateway that has just run.
    pub(super) fn check_bounds(&mut self, process: Process) {
        let Some(state) = self.processes.get(&process) else { return };
        let Some(Bounded { volume, cache, budget, began }) = &state.bounded else { return };
        let (held, used, total) = (cache.held_bytes(), budget.used(), budget.total());
        let usage = volume.upgrade().map(|volume| volume.usage());
        let why = usage.and_then(|usage| self.plan.exceeded(&usage, began, total));
        let (cache, dirty) = (self.plan.cache_bytes, self.plan.budget_bytes.max(BLOCK_BYTES));
        let why = why.or_else(|| {
            let used = used as u64 * BLOCK_BYTES;
            let too_much = [("clean", held, cache), ("dirty", used, dirty)];
            let found = too_much.into_iter().find(|(_, is, most)| is > most);
            found.map(|(what, is, most)| format!("{is} {what} bytes, more than {most}"))
        });
        if let Some(why) = why {
            self.broken(format!("P{process} has {why}"));
        }
    }
}

impl Plan {
    /// Returns which of its own limits a volume exceeds, if any.
    fn exceeded(&self, usage: &Usage, began: &Usage, budget_blocks: usize) -> Option<String> {
        let options = &self.options;
        // One command that needs more than the budget gets all of it.
        let command = self.layout.chunk * 3 / 2 / BLOCK_BYTES + 2;
        let dirty_blocks = (budget_blocks as u64).max(command);
        let commits = options.commits_in_flight + WAITING_CUTS;
        // Below its limit, the journal takes whatever is dirty; from there on, twice the limit is all. What was replayed
        // may be more.
        let coming = dirty_blocks * (BLOCK_BYTES + RECORD_EXTRA_BYTES) + commits as u64 * RECORD_EXTRA_BYTES;
        let weight = (2 * options.journal_max_bytes).max(options.journal_max_bytes + coming);
        let records = (2 * options.journal_max_records).max(options.journal_max_records + commits as u64);
        let bounds = [
            ("dirty blocks", usage.dirty_blocks as u64, dirty_blocks),
            ("commits on their way", usage.commits_in_flight as u64, commits as u64),
            ("records in its journal", usage.journal_records, records.max(began.journal_records)),
            ("bytes of journal", usage.journal_weight_bytes, weight.max(began.journal_weight_bytes)),
        ];
        let found = bounds.into_iter().find(|(_, is, most)| is > most);
        found.map(|(what, is, most)| format!("{is} {what}, more than {most}"))
    }
}
