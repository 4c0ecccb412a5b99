//! READ, CACHE and BLOCK_STATUS: resolves a range through the changes in memory, the root and the cache, down
//! to a ranged GET.
//!
//! Must not know how changes are made or committed. Invariant: a byte is returned only if it is in memory or
//! has passed its check. If an object is gone, the range is resolved again, because a checkpoint may have
//! moved its bytes.

pub(super) mod ahead;
pub mod base;
pub(super) mod picture;
pub(super) mod reader;
pub(super) mod replaced;

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;

use self::reader::{Allocated, Reader};
use crate::mutant::{self, Mutant};
use crate::volume::error::Error;
use crate::volume::format::root::{Root, Stretch};
use crate::volume::shared::Shared;
use crate::volume::state::{Resolved, Status};

/// A part of the result of a read. The segments of a read are in order of offset and leave no gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes that were in memory, or were fetched and verified.
    Data(Bytes),
    /// A run of zeros, with its length in bytes.
    Zero(u64),
}

/// Allocation status of a part of the volume, as BLOCK_STATUS reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length of the part in bytes.
    pub length: u64,
    /// Whether the part is unallocated.
    pub hole: bool,
    /// Whether the part reads as zeros.
    pub zero: bool,
}

impl Extent {
    /// Appends parts in order of offset, merging equal neighbours. Breaks off when `limit` extents are full.
    pub(super) fn push_all(to: &mut Vec<Self>, parts: Vec<Allocated>, limit: usize) -> ControlFlow<()> {
        for (range, hole, zero) in parts {
            let length = range.end - range.start;
            let is_full = to.len() == limit;
            match to.last_mut() {
                Some(last) if (last.hole, last.zero) == (hole, zero) => last.length += length,
                _ if is_full => return ControlFlow::Break(()),
                _ => to.push(Self { length, hole, zero }),
            }
        }
        ControlFlow::Continue(())
    }
}

/// Limit on the pieces of each layer that one window contains.
pub(super) const PIECES: usize = 1024;
/// As [`PIECES`], for operations that list the pages of each piece. A chunk has up to 512 pages.
pub(super) const CACHE_PIECES: usize = 16;
/// Limit on the bytes of a window that a map page covers: 4,096 pages.
pub(super) const WINDOW_BYTES: u64 = 256 << 20;
/// Limit on the windows that one BLOCK_STATUS examines.
pub(super) const STATUS_WINDOWS: usize = 64;
/// Limit on the map pages that one CACHE or one warming loads.
pub(super) const CACHE_MAP_PAGES: usize = 64;

/// A part of the volume that is examined in one step, so that each step does a bounded amount of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// The bytes of the volume that it covers.
    pub(super) range: Range<u64>,
    /// Number of the map page that must be loaded to examine it, if any.
    pub(super) map_page: Option<u32>,
}

impl Window {
    /// Returns the first part of a range that is of one kind in the map. It covers at most `mapped_bytes`
    /// bytes if a map page covers it.
    pub(super) fn of(root: &Root, range: Range<u64>, mapped_bytes: u64) -> Self {
        let geometry = root.geometry;
        let number = geometry.chunk_at(range.start).map_page();
        let (stretch, next) = root.stretch(number);
        let end = range.end.min(u64::from(next) * geometry.map_page_bytes());
        match stretch {
            Stretch::Page(_) => Self {
                range: range.start..end.min(range.start.saturating_add(mapped_bytes)),
                map_page: Some(number),
            },
            Stretch::Holes | Stretch::Zeroed(_) => Self { range: range.start..end, map_page: None },
        }
    }
}

/// Limits how many map pages a command loads.
#[derive(Debug)]
pub(super) struct Loads {
    left: usize,
    last: Option<u32>,
}

impl Loads {
    /// Allows at most `most` map pages to be loaded.
    pub(super) fn new(most: usize) -> Self {
        Self { left: most, last: None }
    }

    /// Counts the map page that a window needs. Returns `false` if the limit is reached.
    pub(super) fn note(&mut self, window: &Window) -> bool {
        if window.map_page.is_some() && window.map_page != self.last {
            let Some(left) = self.left.checked_sub(1) else { return false };
            self.left = left;
            self.last = window.map_page;
        }
        true
    }
}

/// Returns what reads ranges of an open volume that are already resolved.
pub(super) fn reader_of(shared: &Shared) -> Reader<'_> {
    Reader { env: &shared.env, keys: shared.keys }
}

/// Resolves a range and calls `of` with the result. If an object is gone, both are repeated, because a
/// checkpoint may have moved its bytes. An object that is still referenced after a second lookup is lost.
pub(super) async fn look_up<T, F>(
    shared: &Shared,
    range: &Range<u64>,
    mut of: impl FnMut(Resolved) -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>> + Send,
{
    let mut gone = BTreeSet::new();
    loop {
        if !mutant::is(Mutant::ReadsAfterStop) {
            shared.check_serving()?;
        }
        let resolved = shared.state.lock().resolve(shared.geometry, range.clone());
        match of(resolved).await {
            Err(Error::Lost { key, .. }) if gone.insert(key.clone()) => {
                tracing::debug!(%key, "object is gone, looking the range up again");
            }
            outcome => return outcome,
        }
    }
}

/// Reads a range. The range must lie within the volume.
pub(super) async fn read_range(shared: &Shared, range: Range<u64>) -> Result<Vec<Segment>, Error> {
    let begun = tokio::time::Instant::now();
    let (segments, source) =
        look_up(shared, &range, |resolved| reader_of(shared).read_segments(resolved)).await?;
    let took = begun.elapsed();
    shared.env.cache.reads().took(took);
    shared.metrics.read_duration.of(source).observe(took.as_secs_f64());
    Ok(segments)
}

/// Reads a range that was already resolved, into one contiguous buffer.
pub(super) async fn read_resolved(
    shared: &Shared,
    range: Range<u64>,
    resolved: Resolved,
) -> Result<Bytes, Error> {
    // Boxed, because every change contains this future, and few changes need it.
    let mut segments = match Box::pin(reader_of(shared).read_segments(resolved)).await {
        Err(Error::Lost { .. }) => Box::pin(read_range(shared, range.clone())).await?,
        outcome => outcome?.0,
    };
    if let [Segment::Data(_)] = segments[..] {
        let Some(Segment::Data(bytes)) = segments.pop() else { unreachable!("just matched") };
        return Ok(bytes);
    }
    Ok(Bytes::from(concat(&segments)))
}

/// Returns the first part of a range that is examined in one step. It is never empty, is of one
/// kind in the map, has at most `pieces` pieces in each layer, and covers at most `mapped_bytes`
/// bytes if a map page covers it. The window only bounds the work: its content may have changed by
/// the time it is examined.
pub(super) fn first_window(shared: &Shared, range: Range<u64>, pieces: usize, mapped_bytes: u64) -> Window {
    let (reach, root) = {
        let state = shared.state.lock();
        (state.reach(shared.geometry, &range, pieces), Arc::clone(&state.root))
    };
    Window::of(&root, range.start..reach.min(range.end), mapped_bytes)
}

/// Starts to fetch a range that a sequential reader is expected to read next. Does not wait for the data.
pub(super) async fn read_ahead(shared: &Shared, range: Range<u64>) -> Result<(), Error> {
    let fetches = look_up(shared, &range, |resolved| reader_of(shared).fetches(resolved)).await?;
    shared.env.cache.prefetch(&shared.env.store, &fetches).await;
    Ok(())
}

/// Brings a range into the cache, one window at a time. Stops when as many bytes were requested as the
/// cache can hold, when [`CACHE_MAP_PAGES`] map pages were loaded, or when the volume is being closed.
/// Data that cannot be fetched is left to the READ that needs it.
pub(super) async fn prefetch(shared: &Shared, range: Range<u64>) -> Result<(), Error> {
    let mut room = shared.env.cache.capacity_bytes();
    let mut map_pages = Loads::new(CACHE_MAP_PAGES);
    let mut at = range.start;
    while at < range.end && shared.state.lock().status == Status::Serving {
        let window = first_window(shared, at..range.end, CACHE_PIECES, WINDOW_BYTES);
        if !map_pages.note(&window) {
            break;
        }
        at = window.range.end;
        let mut fetches =
            look_up(shared, &window.range, |resolved| reader_of(shared).fetches(resolved)).await?;
        let mut fits = 0;
        while let Some(fetch) = fetches.get(fits)
            && u64::from(fetch.length) <= room
        {
            room -= u64::from(fetch.length);
            fits += 1;
        }
        let is_full = fits < fetches.len();
        fetches.truncate(fits);
        shared.env.cache.fetch_ahead(&shared.env.store.ahead, &fetches).await;
        if is_full {
            break;
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Returns the allocation of a range as at most `limit` extents; adjacent extents of the same kind are
/// merged. The extents may end before the range does: one call examines at most [`STATUS_WINDOWS`]
/// windows, and so loads at most that many map pages.
pub(super) async fn allocation(
    shared: &Shared,
    range: Range<u64>,
    limit: usize,
) -> Result<Vec<Extent>, Error> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = range.start;
    for _ in 0..STATUS_WINDOWS {
        if at == range.end {
            break;
        }
        let window = first_window(shared, at..range.end, PIECES, WINDOW_BYTES).range;
        at = window.end;
        let parts = match look_up(shared, &window, |resolved| reader_of(shared).allocation_of(resolved)).await
        {
            // A client that copies the disk continues after the lost range. Its READ of that range
            // reports the loss.
            Err(error) if error.is_loss() => vec![(window, false, false)],
            parts => parts?,
        };
        if Extent::push_all(&mut extents, parts, limit).is_break() {
            break;
        }
        tokio::task::yield_now().await;
    }
    Ok(extents)
}

/// Concatenates the bytes of segments.
#[must_use]
pub fn concat(segments: &[Segment]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments {
        match segment {
            Segment::Data(data) => bytes.extend_from_slice(data),
            Segment::Zero(length) => {
                bytes.resize(bytes.len() + usize::try_from(*length).expect("a read fits into memory"), 0);
            }
        }
    }
    bytes
}
