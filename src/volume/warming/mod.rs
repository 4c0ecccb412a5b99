//! Warming: what clients read first after an opening is recorded, and the next opening loads it.
//!
//! Owns the recording, the object that keeps it, and what is loaded when. It must not know how a block is
//! fetched. Invariants: the record is only a hint, so no damage to it and no failure here costs data or stops
//! the volume. What is loaded takes at most one part of [`SHARE`] of the cache, and only room that is free.

mod recording;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::recording::Recorder;
use super::cache::Brought;
use super::cache::fetch::Fetch;
use super::error::Error;
use super::format::codec::invalid;
use super::format::first_reads::FirstReads;
use super::format::geometry::BLOCK_BYTES;
use super::format::keys::Keys;
use super::read::{self, Segment};
use super::shared::Shared;
use super::state::Status;
use super::store_exact::CheckedError;
use crate::metrics::labels::ObjectKind;
use crate::store::{self, ByteRange, Condition, Store};

/// Share of the clean cache that is recorded and loaded at most: one part of this many.
const SHARE: u64 = 2;
/// Bytes that are loaded in one step. The steps keep the order of the first reads. Within a step, neighbours
/// in an object share a GET, whatever that order.
const STEP_BYTES: u64 = 16 << 20;
/// Bytes that clients must have read for a record, so that whoever only looks at a partition table replaces
/// none. Of a small disk, one part of [`LEAST_SHARE`] suffices.
const LEAST_BYTES: u64 = 1 << 20;
/// See [`LEAST_BYTES`].
const LEAST_SHARE: u64 = 16;
/// How long a closing waits for the store to take the record.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be loaded into the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warm {
    /// What clients read first after an earlier opening of the volume or, if that is not recorded, of the
    /// volume that it is a clone of.
    FirstReads,
    /// The data of the disk, from its beginning.
    Everything,
}

/// What was loaded into the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warmed {
    /// What was fetched.
    pub brought: Brought,
    /// Whether there was more to load, but no room for it.
    pub is_full: bool,
}

/// The recording of an open volume.
#[derive(Clone, Debug)]
pub(super) struct Warming {
    recorder: Arc<Recorder>,
}

impl Warming {
    /// Begins to record, and to load what an earlier opening recorded. Does neither if that is switched off.
    pub(super) fn begin(shared: &Arc<Shared>) -> Self {
        let time = shared.options.record_reads;
        let most_blocks = match time.is_zero() {
            true => 0,
            false => (shared.env.cache.capacity_bytes() / SHARE / BLOCK_BYTES).min(u64::from(u32::MAX)),
        };
        let this = Self { recorder: Arc::new(Recorder::new(most_blocks)) };
        if !time.is_zero() {
            let of_task = Arc::clone(shared);
            shared.tasks.spawn_until_cancelled(async move { warm_at_opening(&of_task).await });
            let (recording, of_task) = (this.clone(), Arc::clone(shared));
            shared.tasks.spawn_until_cancelled(async move {
                tokio::time::sleep(time).await;
                recording.store(&of_task).await;
            });
        }
        this
    }

    /// Notes a read that began at `offset` and returned these segments.
    pub(super) fn note(&self, offset: u64, segments: &[Segment]) {
        self.recorder.note(offset, segments);
    }

    /// Ends the recording and replaces the record in the store, unless hardly anything was read. Only the
    /// holder of the volume does so. If it was deposed meanwhile, its request may replace a newer record,
    /// which costs the next opening some speed and no data.
    pub(super) async fn store(&self, shared: &Shared) {
        let size_bytes = shared.state.lock().size_bytes;
        let least = LEAST_BYTES.min(size_bytes / LEAST_SHARE) / BLOCK_BYTES;
        let Some(list) = self.recorder.take(least) else { return };
        if shared.check_serving().is_err() {
            return;
        }
        let (key, bytes) = (shared.keys.first_reads(), Bytes::from(list.encode(shared.keys.sealing())));
        let length = bytes.len() as u64;
        let put = shared.env.store.bulk.put(&key, bytes, Condition::Always);
        match tokio::time::timeout(PATIENCE, put).await {
            Ok(Ok(_)) => {
                shared.metrics.put_bytes.of(ObjectKind::Other).inc_by(length);
                tracing::debug!(%key, ranges = list.ranges.len(), "recorded the first reads");
            }
            Ok(Err(error)) => tracing::warn!(%key, "the first reads are not recorded: {error}"),
            Err(_) => tracing::warn!(%key, "the first reads are not recorded within {PATIENCE:?}"),
        }
    }
}

/// Loads what an earlier opening recorded. Nobody waits for it.
async fn warm_at_opening(shared: &Shared) {
    let volume = shared.keys.volume();
    match warm(shared, Warm::FirstReads).await {
        Ok(Some(Warmed { brought: Brought { bytes, requests }, .. })) => {
            tracing::info!(%volume, bytes, requests, "loaded what was read first after an earlier opening");
        }
        Ok(None) => tracing::debug!(%volume, "no first reads are recorded"),
        Err(error) => tracing::debug!(%volume, "the first reads are not loaded: {error}"),
    }
}

/// Loads blocks into the cache. Requests of clients take precedence: these have a class of their own. Returns
/// `None` if nothing is recorded. The future may be dropped at any time.
pub(super) async fn warm(shared: &Shared, what: Warm) -> Result<Option<Warmed>, Error> {
    shared.check_serving()?;
    let size_bytes = shared.state.lock().size_bytes;
    let ranges: Vec<Range<u64>> = match what {
        Warm::Everything => std::iter::once(0..size_bytes).collect(),
        Warm::FirstReads => {
            let Some(list) = first_reads(shared).await? else { return Ok(None) };
            // The volume may have become smaller since.
            let offset = |block: u64| (block * BLOCK_BYTES).min(size_bytes);
            list.ranges.iter().map(|range| offset(range.start.0)..offset(range.end.0)).collect()
        }
    };
    let mut loader = Loader::new(shared);
    loader.load(ranges).await?;
    Ok(Some(Warmed { brought: loader.brought, is_full: loader.is_full }))
}

/// Returns the record of the volume or, if it has none, of the volume that it is a clone of. A clone reads
/// most of what its parent reads, and its own map says where that is. A record that cannot be used counts as
/// absent.
async fn first_reads(shared: &Shared) -> Result<Option<FirstReads>, Error> {
    let parent = shared.state.lock().root.origins.first().copied();
    for keys in std::iter::once(shared.keys).chain(parent.map(Keys::new)) {
        match stored(shared.env.store.ahead.as_ref(), keys).await {
            Ok(list) => return Ok(Some(list)),
            Err(CheckedError::Store(store::Error::NotFound { .. })) => {}
            Err(CheckedError::Store(error)) => return Err(Error::Store(error)),
            Err(CheckedError::Damaged(error)) => {
                let key = keys.first_reads();
                tracing::warn!(%key, "the record of the first reads is damaged, and not used: {error}");
            }
        }
    }
    Ok(None)
}

/// Reads the record of a volume: its beginning first, which says how long it is. It is a hint, so one reading
/// is enough.
async fn stored(store: &dyn Store, keys: Keys) -> Result<FirstReads, CheckedError> {
    let (key, sealing) = (keys.first_reads(), keys.sealing());
    let start = part(store, &key, 0..FirstReads::LEAST_BYTES).await?;
    let end = FirstReads::object_bytes(sealing, &start).map_err(CheckedError::Damaged)?;
    let mut bytes = Vec::from(start);
    if end > FirstReads::LEAST_BYTES {
        bytes.extend_from_slice(&part(store, &key, FirstReads::LEAST_BYTES..end).await?);
    }
    FirstReads::decode(sealing, &bytes).map_err(CheckedError::Damaged)
}

async fn part(store: &dyn Store, key: &str, range: Range<u64>) -> Result<Bytes, CheckedError> {
    let range = ByteRange::Bounded { offset: range.start, length: range.end - range.start };
    match store.get(key, range).await {
        Ok(object) => Ok(object.body),
        Err(error @ (store::Error::CutShort { .. } | store::Error::Truncated { .. })) => {
            Err(CheckedError::Damaged(invalid("size", error.to_string())))
        }
        Err(error) => Err(CheckedError::Store(error)),
    }
}

/// Loads ranges, step by step, within the bound.
struct Loader<'a> {
    shared: &'a Shared,
    /// Bytes that may still be looked up.
    left_bytes: u64,
    /// What the next step loads.
    step: Vec<Fetch>,
    /// Bytes of it.
    step_bytes: u64,
    brought: Brought,
    is_full: bool,
}

impl<'a> Loader<'a> {
    fn new(shared: &'a Shared) -> Self {
        let left_bytes = shared.env.cache.capacity_bytes() / SHARE;
        let (step, brought) = (Vec::new(), Brought::default());
        Self { shared, left_bytes, step, step_bytes: 0, brought, is_full: false }
    }

    /// Loads ranges in order, until there is no more room, or the volume is being closed. Loads at most as
    /// many map pages as a CACHE does.
    async fn load(&mut self, ranges: Vec<Range<u64>>) -> Result<(), Error> {
        let shared = self.shared;
        let mut map_pages = BTreeSet::new();
        for range in ranges {
            let mut at = range.start;
            while at < range.end && !self.is_full {
                if shared.state.lock().status != Status::Serving {
                    return Ok(());
                }
                let window = read::first_window(shared, at..range.end, read::CACHE_PIECES, STEP_BYTES);
                at = window.range.end;
                map_pages.extend(window.map_page);
                if map_pages.len() > read::CACHE_MAP_PAGES {
                    self.step().await;
                    return Ok(());
                }
                let fetches = read::look_up(shared, &window.range, |resolved| {
                    read::reader_of(shared).fetches(resolved)
                });
                match fetches.await {
                    // The READ of that range reports the loss.
                    Err(error) if error.is_loss() => {}
                    fetches => self.add(fetches?),
                }
                if self.step_bytes >= STEP_BYTES {
                    self.step().await;
                }
                tokio::task::yield_now().await;
            }
        }
        self.step().await;
        Ok(())
    }

    /// Adds fetches to the next step, as far as the share of the cache allows.
    fn add(&mut self, fetches: Vec<Fetch>) {
        for fetch in fetches {
            let length = u64::from(fetch.length);
            let Some(left) = self.left_bytes.checked_sub(length) else {
                self.is_full = true;
                return;
            };
            self.left_bytes = left;
            self.step_bytes += length;
            self.step.push(fetch);
        }
    }

    /// Loads what was added, if the cache has free room for it.
    async fn step(&mut self) {
        let (fetches, bytes) = (std::mem::take(&mut self.step), std::mem::take(&mut self.step_bytes));
        let env = &self.shared.env;
        if !env.cache.has_room(bytes) {
            self.is_full = true;
            return;
        }
        let brought = env.cache.warm(&env.store.ahead, &fetches).await;
        self.shared.metrics.warmed_bytes.inc_by(brought.bytes);
        self.shared.metrics.warm_requests.inc_by(brought.requests);
        self.brought = self.brought.and(brought);
    }
}
