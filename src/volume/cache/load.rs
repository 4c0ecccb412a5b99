//! Loads in flight: GETs that fetch runs of neighbouring pieces, and those who wait for them.
//!
//! Owns what is being loaded; what is held is in `clean`. Must not know what the pieces mean. Invariant:
//! when a load ends, even by cancellation, everybody who waits for it gets a result, and later readers
//! start a load of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::clean::Clean;
use super::fetch::{CacheKey, Check, Fetch};
use super::held::Held;
use crate::mutant::{self, Mutant};
use crate::store::{self, ByteRange, Store};
use crate::volume::error::Error;
use crate::volume::format::frame::FRAME_BYTES;
use crate::volume::format::geometry::{BLOCK_BYTES, PAGE_BYTES};
use crate::volume::signal::Signal;
use crate::volume::store_exact::{Doubt, Verdict, damaged_on_the_way, get_referenced};

/// Limit on the bytes between two pieces that one GET fetches without need.
const GAP_BYTES: u64 = PAGE_BYTES / 2;

/// Whether fetched pieces stay in the cache.
#[derive(Clone, Copy)]
pub(super) enum Keep {
    /// In the cache, if it admits them.
    Cached,
    /// In the cache, where nothing else needs the room: they were read ahead.
    Ahead,
    /// Not at all, unless others will need them.
    Passing,
}

/// What a load has found: the blocks that are as they were written, and why others are missing.
type Outcome = (Held, Option<Error>);

/// A load in flight. The value is its outcome, once that is known.
pub(super) type Load = Signal<Option<Outcome>>;

/// The loads in flight, by piece, each with the blocks that it loads.
pub(super) type Loading = Mutex<BTreeMap<CacheKey, Vec<(u16, Arc<Load>)>>>;

/// Whether one GET fetches a run of pieces, given by its first and last, and the piece `next`.
pub(super) fn share_a_get(first: &Fetch, last: &Fetch, next: &Fetch, get_bytes: u64) -> bool {
    // The bound counts what the blocks contain, not their tags.
    let most = (get_bytes / BLOCK_BYTES).max(1) * FRAME_BYTES;
    next.lies_behind(last, GAP_BYTES) && next.at + next.stored_bytes() - first.at <= most
}

/// Loads that have been registered and are fetched with one GET.
pub(super) struct Begun {
    loading: Arc<Loading>,
    run: Vec<(Fetch, Arc<Load>)>,
}

impl Begun {
    pub(super) fn new(loading: &Arc<Loading>, fetch: Fetch, load: Arc<Load>) -> Self {
        Self { loading: Arc::clone(loading), run: vec![(fetch, load)] }
    }

    pub(super) fn push(&mut self, fetch: Fetch, load: Arc<Load>) {
        self.run.push((fetch, load));
    }

    /// Whether a piece follows the others, and one GET can fetch them all.
    pub(super) fn is_followed_by(&self, fetch: &Fetch, get_bytes: u64) -> bool {
        share_a_get(&self.run[0].0, &self.run[self.run.len() - 1].0, fetch, get_bytes)
    }

    /// Payload of the run in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.run.iter().map(|(fetch, _)| u64::from(fetch.length)).sum()
    }

    /// The loads of the run, to wait for.
    pub(super) fn loads(&self) -> impl Iterator<Item = Arc<Load>> {
        self.run.iter().map(|(_, load)| Arc::clone(load))
    }

    /// Loads the run and inserts its pieces into the cache.
    pub(super) async fn load(mut self, store: Arc<dyn Store>, clean: Arc<Clean>, keep: Keep) {
        let fetches: Vec<Fetch> = self.run.iter().map(|(fetch, _)| fetch.clone()).collect();
        let mut outcomes = fetch_run(store.as_ref(), &fetches).await;
        for (fetch, (held, error)) in fetches.iter().zip(&mut outcomes) {
            if (mutant::is(Mutant::MissingIsZeros) && matches!(error, Some(Error::Lost { .. })))
                || (mutant::is(Mutant::FailureIsZeros) && error.is_some())
            {
                (*held, *error) = (fetch.held(vec![0; fetch.length as usize].into()), None);
            }
            let stays = !matches!(keep, Keep::Passing) || matches!(fetch.check, Check::Run(..));
            if stays && held.mask() != 0 {
                *held = std::mem::take(held).owned();
                match keep {
                    Keep::Ahead => clean.put_ahead(fetch.key, held.clone()),
                    Keep::Cached | Keep::Passing => clean.put(fetch.key, held.clone()).await,
                }
            }
        }
        self.hand_over(outcomes);
    }

    fn hand_over(&mut self, outcomes: Vec<Outcome>) {
        let run = std::mem::take(&mut self.run);
        {
            let mut loading = self.loading.lock();
            for (fetch, load) in &run {
                if let Some(loads) = loading.get_mut(&fetch.key) {
                    loads.retain(|(_, other)| !Arc::ptr_eq(other, load));
                    if loads.is_empty() {
                        loading.remove(&fetch.key);
                    }
                }
            }
        }
        for ((_, load), outcome) in run.into_iter().zip(outcomes) {
            load.set(Some(outcome));
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let stopped = Error::Stopped("the cache is shut down".to_owned());
        self.hand_over(vec![(Held::default(), Some(stopped)); self.run.len()]);
    }
}

/// Fetches a single piece outside the cache. The load is not shared.
pub(super) async fn load_alone(store: &dyn Store, fetch: Fetch) -> Result<Bytes, Error> {
    let (held, error) = fetch_run(store, std::slice::from_ref(&fetch)).await.pop().expect("one for each");
    match (fetch.wanted(&held), error) {
        (Some(bytes), _) => Ok(bytes),
        (None, Some(error)) => Err(error),
        (None, None) => unreachable!("what was loaded is there, or it failed"),
    }
}

/// Fetches a run of neighbouring pieces with one GET. Repeats it while a failed check may be due
/// to damage in transit. The outcomes are in the order of the run.
async fn fetch_run(store: &dyn Store, run: &[Fetch]) -> Vec<Outcome> {
    let (first, last) = (&run[0], &run[run.len() - 1]);
    let object = first.object_key();
    let length = last.at + last.stored_bytes() - first.at;
    let failed = |error: Error| vec![(Held::default(), Some(error)); run.len()];
    let mut doubt = Doubt::default();
    loop {
        let got = get_referenced(store, &object, ByteRange::Bounded { offset: first.at, length }).await;
        let (reading, outcomes, is_short) = match got {
            Ok(object) => {
                let outcomes = run.iter().map(|fetch| open(fetch, first.at, &object.body)).collect();
                (object.body, outcomes, false)
            }
            // An object that is too short is damaged, like one with wrong bytes.
            Err(error @ store::Error::CutShort { .. }) => {
                let why = format!("is too short: {error}");
                (Bytes::from(why.clone()), failed(Error::damaged(object.clone(), why)), true)
            }
            Err(store::Error::NotFound { key }) => return failed(Error::lost(key)),
            Err(error) => return failed(Error::Store(error)),
        };
        let outcomes: Vec<Outcome> = outcomes;
        if outcomes.iter().all(|(_, error)| error.is_none()) {
            return outcomes;
        }
        match doubt.note(&object, &reading) {
            Verdict::Again => {}
            // The blocks before the damage can still be read, each with a GET of its own.
            Verdict::AtRest if is_short && (run.len() > 1 || first.has_blocks()) => {
                return one_by_one(store, run).await;
            }
            Verdict::AtRest => return outcomes,
            Verdict::OnTheWay => return failed(Error::Store(damaged_on_the_way(&object))),
        }
    }
}

/// Fetches each block of a run with a GET of its own.
async fn one_by_one(store: &dyn Store, run: &[Fetch]) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(run.len());
    for piece in run {
        let mut outcome: Outcome = (Held::default(), None);
        let parts: Vec<Fetch> = match piece.has_blocks() {
            true => {
                (piece.first..piece.first + piece.count).map(|block| piece.narrowed(1 << block)).collect()
            }
            false => vec![piece.clone()],
        };
        for block in parts {
            let alone = Box::pin(fetch_run(store, std::slice::from_ref(&block))).await;
            let (held, error) = alone.into_iter().next().expect("one for each");
            outcome = (outcome.0.joined(&held), outcome.1.or(error));
        }
        outcomes.push(outcome);
    }
    outcomes
}

/// Extracts a piece from the body of a GET that began at byte `from`, and checks it.
fn open(fetch: &Fetch, from: u64, body: &Bytes) -> Outcome {
    let within = |at: u64| usize::try_from(at - from).unwrap_or(usize::MAX).min(body.len());
    let stored = body.slice(within(fetch.at)..within(fetch.at + fetch.stored_bytes()));
    let (held, is_complete) = fetch.open(&stored);
    let damaged = || {
        let why = format!("of the {} bytes at {}, some fail their check", fetch.length, fetch.at);
        Error::damaged(fetch.object_key(), why)
    };
    (held, (!is_complete).then(damaged))
}
