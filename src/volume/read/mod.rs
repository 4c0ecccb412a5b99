//! READ, CACHE and BLOCK_STATUS: resolves a range through the changes in memory, the root and the cache, down
//! to a ranged GET.
//!
//! Must not know how changes are made or committed. Invariant: a byte is returned only if it is in memory or
//! has passed its check. If an object is gone, the range is resolved again, because a checkpoint may have
//! moved its bytes.

pub(super) mod ahead;
pub mod base;
pub(super) mod picture;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use self::base::BasePart;
use crate::metrics::labels::ReadSource;
use crate::mutant::{self, Mutant};
use crate::volume::cache::Fetched;
use crate::volume::cache::fetch::Fetch;
use crate::volume::error::Error;
use crate::volume::format::geometry::{BLOCK_BYTES, PAGE_BYTES};
use crate::volume::format::root::Stretch;
use crate::volume::shared::Shared;
use crate::volume::state::piece::{ChunkRef, InMemory, Piece, part};
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

/// Limit on the pieces of each layer that one window contains.
pub(super) const PIECES: usize = 1024;
/// As [`PIECES`], for operations that list the pages of each piece. A chunk has up to 512 pages.
const CACHE_PIECES: usize = 16;
/// Limit on the bytes of a window that a map page covers: 4,096 pages.
const WINDOW_BYTES: u64 = 256 << 20;
/// Limit on the windows that one BLOCK_STATUS examines.
const STATUS_WINDOWS: usize = 64;
/// Limit on the map pages that one CACHE loads.
const CACHE_MAP_PAGES: usize = 64;

/// A part of the volume that is examined in one step, so that each step does a bounded amount of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// The bytes of the volume that it covers.
    pub(super) range: Range<u64>,
    /// Number of the map page that must be loaded to examine it, if any.
    pub(super) map_page: Option<u32>,
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

enum Origin {
    Ready(InMemory),
    /// Index of a fetch, and the byte at which the part begins in what it returns.
    Fetched(usize, u64),
}

impl Shared {
    /// Resolves a range and calls `of` with the result. If an object is gone, both are repeated, because a
    /// checkpoint may have moved its bytes. An object that is still referenced after a second lookup is lost.
    pub(super) async fn look_up<T, F>(
        &self,
        range: &Range<u64>,
        mut of: impl FnMut(Resolved) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let mut gone = BTreeSet::new();
        loop {
            if !mutant::is(Mutant::ReadsAfterStop) {
                self.check_serving()?;
            }
            let resolved = self.state.lock().resolve(self.geometry, range.clone());
            match of(resolved).await {
                Err(Error::Lost { key, .. }) if gone.insert(key.clone()) => {
                    tracing::debug!(%key, "object is gone, looking the range up again");
                }
                outcome => return outcome,
            }
        }
    }

    /// Reads a range. The range must lie within the volume.
    pub(super) async fn read(&self, range: Range<u64>) -> Result<Vec<Segment>, Error> {
        let begun = tokio::time::Instant::now();
        let (segments, source) = self.look_up(&range, |resolved| self.read_segments(resolved)).await?;
        self.metrics.read_duration.of(source).observe(begun.elapsed().as_secs_f64());
        Ok(segments)
    }

    /// Reads a range that was already resolved, into one contiguous buffer.
    pub(super) async fn read_resolved(&self, range: Range<u64>, resolved: Resolved) -> Result<Bytes, Error> {
        let mut segments = match self.read_segments(resolved).await {
            Err(Error::Lost { .. }) => self.read(range.clone()).await?,
            outcome => outcome?.0,
        };
        if let [Segment::Data(_)] = segments[..] {
            let Some(Segment::Data(bytes)) = segments.pop() else { unreachable!("just matched") };
            return Ok(bytes);
        }
        Ok(Bytes::from(concat(&segments)))
    }

    /// Reads a range that was already resolved. Also returns the farthest source that it had to read from.
    async fn read_segments(&self, resolved: Resolved) -> Result<(Vec<Segment>, ReadSource), Error> {
        let (sources, fetches) = self.plan(resolved).await?;
        let changed = sources.iter().any(|(_, source)| matches!(source, Origin::Ready(InMemory::Bytes(_))));
        let Fetched { parts: fetched, misses } = self.env.cache.fetch(&self.env.store, &fetches).await;
        let farthest = match misses {
            1.. => ReadSource::Store,
            0 if fetches.is_empty() && changed => ReadSource::Dirty,
            0 => ReadSource::Memory,
        };
        let mut segments = Vec::with_capacity(sources.len());
        for (range, source) in sources {
            let length = range.end - range.start;
            match source {
                Origin::Ready(InMemory::Zero) => push_zero(&mut segments, length),
                Origin::Ready(InMemory::Bytes(bytes)) => segments.push(Segment::Data(bytes)),
                Origin::Fetched(number, at) => {
                    let bytes = fetched[number].clone().map_err(|error| error.first_at(range.start))?;
                    let start = usize::try_from(at).expect("within a page");
                    let end = start + usize::try_from(length).expect("within a page");
                    segments.push(Segment::Data(part(&bytes, start..end)));
                }
            }
        }
        Ok((segments, farthest))
    }

    /// Returns the source of each part, in order of offset, and the fetches that these parts need.
    async fn plan(&self, resolved: Resolved) -> Result<(Vec<(Range<u64>, Origin)>, Vec<Fetch>), Error> {
        let mut parts = Vec::with_capacity(resolved.pieces.len());
        let mut fetches = Vec::new();
        for (range, piece) in resolved.pieces {
            for (range, piece) in at_pages(range, piece) {
                let source = match piece.in_memory(range.end - range.start) {
                    Some(memory) => Origin::Ready(memory),
                    None => {
                        let (fetch, at) = self.piece_fetch(&piece, range.end - range.start);
                        fetches.push((range.start, fetch));
                        Origin::Fetched(0, at)
                    }
                };
                parts.push((range, source));
            }
        }
        for gap in resolved.base {
            for (range, part) in base::resolve(&self.env, self.keys, &resolved.root, gap.clone())
                .await
                .map_err(|error| error.first_at(gap.start))?
            {
                let source = match part {
                    BasePart::Zero { .. } => Origin::Ready(InMemory::Zero),
                    BasePart::Lost(error) => return Err(error.first_at(range.start)),
                    BasePart::Stored { fetch, at, damage } => {
                        let page = range.start % PAGE_BYTES..(range.end - 1) % PAGE_BYTES + 1;
                        if let Some(damage) = damage
                            && !damage.spares(page)
                        {
                            let why =
                                format!("sectors of the {} bytes at {} were lost", fetch.length, range.start);
                            return Err(Error::damaged(fetch.object_key(), why).first_at(range.start));
                        }
                        fetches.push((range.start, fetch));
                        Origin::Fetched(0, at)
                    }
                };
                parts.push((range, source));
            }
        }
        parts.sort_by_key(|(range, _)| range.start);
        fetches.sort_by_key(|(start, _)| *start);
        let mut number = 0;
        for (_, source) in &mut parts {
            if let Origin::Fetched(place, _) = source {
                *place = number;
                number += 1;
            }
        }
        Ok((parts, fetches.into_iter().map(|(_, fetch)| fetch).collect()))
    }

    /// Returns the fetch for a piece of `length` bytes that is no longer in memory, and where in the fetched
    /// bytes the piece begins.
    pub(super) fn piece_fetch(&self, piece: &Piece, length: u64) -> (Fetch, u64) {
        match piece {
            Piece::Data { record, change, at } => (Fetch::change(self.keys.volume(), record, *change), *at),
            Piece::Chunk(chunk, at) => (self.chunk_fetch(chunk, *at, length), at % BLOCK_BYTES),
            Piece::Block(..) | Piece::Zero { .. } => unreachable!("always in memory"),
        }
    }

    /// Returns the fetch for `length` bytes at byte `at` of a chunk that a commit references. They must lie
    /// within one page.
    pub(super) fn chunk_fetch(&self, chunk: &ChunkRef, at: u64, length: u64) -> Fetch {
        let block = |at: u64| u32::try_from(at).expect("within a chunk");
        let (first, end) = (block(at / BLOCK_BYTES), block((at + length).div_ceil(BLOCK_BYTES)));
        Fetch::filled(self.keys.volume(), chunk, first, end - first)
    }

    /// Returns the first part of a range that is examined in one step. It is never empty, is of one
    /// kind in the map, has at most `pieces` pieces in each layer, and covers at most `mapped_bytes`
    /// bytes if a map page covers it. The window only bounds the work: its content may have changed by
    /// the time it is examined.
    pub(super) fn window(&self, range: Range<u64>, pieces: usize, mapped_bytes: u64) -> Window {
        let (reach, root) = {
            let state = self.state.lock();
            (state.reach(self.geometry, &range, pieces), Arc::clone(&state.root))
        };
        let number = self.geometry.chunk_at(range.start).map_page();
        let (stretch, next) = root.stretch(number);
        let end = reach.min(range.end).min(u64::from(next) * self.geometry.map_page_bytes());
        match stretch {
            Stretch::Page(_) => Window {
                range: range.start..end.min(range.start.saturating_add(mapped_bytes)),
                map_page: Some(number),
            },
            Stretch::Holes | Stretch::Zeroed(_) => Window { range: range.start..end, map_page: None },
        }
    }

    /// Starts to fetch a range that a sequential reader is expected to read next. Does not wait for the data.
    pub(super) async fn read_ahead(&self, range: Range<u64>) -> Result<(), Error> {
        let (_, fetches) = self.look_up(&range, |resolved| self.plan(resolved)).await?;
        self.env.cache.prefetch(&self.env.store, &fetches);
        Ok(())
    }

    /// Brings a range into the cache, one window at a time. Stops when as many bytes were requested as the
    /// cache can hold, when [`CACHE_MAP_PAGES`] map pages were loaded, or when the volume is being closed.
    /// Data that cannot be fetched is left to the READ that needs it.
    pub(super) async fn prefetch(&self, range: Range<u64>) -> Result<(), Error> {
        let mut room = self.env.cache.capacity_bytes();
        let mut map_pages = Loads::new(CACHE_MAP_PAGES);
        let mut at = range.start;
        while at < range.end && self.state.lock().status == Status::Serving {
            let window = self.window(at..range.end, CACHE_PIECES, WINDOW_BYTES);
            if !map_pages.note(&window) {
                break;
            }
            at = window.range.end;
            let (_, mut fetches) = self.look_up(&window.range, |resolved| self.plan(resolved)).await?;
            let mut fits = 0;
            while let Some(fetch) = fetches.get(fits)
                && u64::from(fetch.length) <= room
            {
                room -= u64::from(fetch.length);
                fits += 1;
            }
            let is_full = fits < fetches.len();
            fetches.truncate(fits);
            self.env.cache.fetch_ahead(&self.env.store.ahead, &fetches).await;
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
    pub(super) async fn allocation(&self, range: Range<u64>, limit: usize) -> Result<Vec<Extent>, Error> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = range.start;
        for _ in 0..STATUS_WINDOWS {
            if at == range.end {
                break;
            }
            let window = self.window(at..range.end, PIECES, WINDOW_BYTES).range;
            at = window.end;
            let parts = match self.look_up(&window, |resolved| self.allocation_of(resolved)).await {
                // A client that copies the disk continues after the lost range. Its READ of that range
                // reports the loss.
                Err(error) if error.is_loss() => vec![(window, false, false)],
                parts => parts?,
            };
            for (range, hole, zero) in parts {
                let length = range.end - range.start;
                let full = extents.len() == limit;
                match extents.last_mut() {
                    Some(last) if (last.hole, last.zero) == (hole, zero) => last.length += length,
                    _ if full => return Ok(extents),
                    _ => extents.push(Extent { length, hole, zero }),
                }
            }
            tokio::task::yield_now().await;
        }
        Ok(extents)
    }

    /// Returns the parts of a range that was already resolved, in order of offset. Each has two flags:
    /// whether it is a hole, and whether it reads as zeros.
    async fn allocation_of(&self, resolved: Resolved) -> Result<Vec<(Range<u64>, bool, bool)>, Error> {
        let mut parts: Vec<(Range<u64>, bool, bool)> = Vec::new();
        for (range, piece) in resolved.pieces {
            for (range, piece) in at_pages(range, piece) {
                let (hole, zero) = match &piece {
                    Piece::Zero { hole } => (*hole, true),
                    Piece::Chunk(chunk, at) => (false, !chunk.stored.contains(page_of(*at))),
                    Piece::Block(..) | Piece::Data { .. } => (false, false),
                };
                match parts.last_mut() {
                    Some((last, was_hole, was_zero))
                        if last.end == range.start && (*was_hole, *was_zero) == (hole, zero) =>
                    {
                        last.end = range.end;
                    }
                    _ => parts.push((range, hole, zero)),
                }
            }
        }
        for gap in resolved.base {
            for (range, part) in base::resolve(&self.env, self.keys, &resolved.root, gap).await? {
                parts.push(match part {
                    BasePart::Zero { hole } => (range, hole, true),
                    BasePart::Stored { .. } | BasePart::Lost(_) => (range, false, false),
                });
            }
        }
        parts.sort_by_key(|(range, _, _)| range.start);
        Ok(parts)
    }
}

pub(super) fn page_of(at: u64) -> u16 {
    u16::try_from(at / PAGE_BYTES).expect("within a chunk")
}

/// Cuts a piece at page boundaries if its bytes are read page by page. Other pieces stay whole.
pub(super) fn at_pages(range: Range<u64>, piece: Piece) -> impl Iterator<Item = (Range<u64>, Piece)> {
    use crate::volume::format::interval::Value;
    let whole = !matches!(piece, Piece::Chunk(..));
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at == range.end {
            return None;
        }
        let end = if whole { range.end } else { range.end.min((at / PAGE_BYTES + 1) * PAGE_BYTES) };
        let part = (at..end, piece.advanced(at - range.start));
        at = end;
        Some(part)
    })
}

fn push_zero(segments: &mut Vec<Segment>, length: u64) {
    match segments.last_mut() {
        Some(Segment::Zero(last)) => *last += length,
        _ => segments.push(Segment::Zero(length)),
    }
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
