//! READ, CACHE and BLOCK_STATUS: from the changes in memory down to a ranged GET.
//!
//! Invariant: a byte is given only if it is in memory or has passed its check; an object that is gone is
//! looked up anew, since a checkpoint may have moved its bytes.

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
use crate::volume::cache::fetch::{CacheKey, Check, Fetch, Source, Unit};
use crate::volume::error::Error;
use crate::volume::format::frame::Place;
use crate::volume::format::geometry::PAGE_BYTES;
use crate::volume::format::root::Stretch;
use crate::volume::shared::Shared;
use crate::volume::state::piece::{ChunkRef, InMemory, Piece, part};
use crate::volume::state::{Resolved, Status};

/// A part of what a read gives, in order and without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes.
    Data(Bytes),
    /// So many zeros.
    Zero(u64),
}

/// Allocation of a part of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub length: u64,
    /// Nothing is allocated.
    pub hole: bool,
    /// Reads as zeros.
    pub zero: bool,
}

/// Pieces of each layer that are looked at at once.
pub(super) const PIECES: usize = 1024;
/// As [`PIECES`], where the pages of each piece are listed: a chunk has up to 512.
const CACHE_PIECES: usize = 16;
/// Bytes of what a map page covers that are looked at at once: 4,096 pages.
const WINDOW_BYTES: u64 = 256 << 20;
/// Parts of the volume that one BLOCK_STATUS looks at.
const STATUS_WINDOWS: usize = 64;
/// Map pages that one CACHE looks at.
const CACHE_MAP_PAGES: usize = 64;

/// A part of the volume that is looked at at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// The part.
    pub(super) range: Range<u64>,
    /// The map page that must be loaded for it.
    pub(super) map_page: Option<u32>,
}

/// Counts the map pages that a command loads.
#[derive(Debug)]
pub(super) struct Loads {
    left: usize,
    last: Option<u32>,
}

impl Loads {
    /// At most so many.
    pub(super) fn new(most: usize) -> Self {
        Self { left: most, last: None }
    }

    /// Takes what a window needs; whether there is that much.
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
    /// From this byte of the n-th fetch.
    Fetched(usize, u64),
}

impl Shared {
    /// Looks a range up and asks `of` for it; again whenever an object is gone, since a checkpoint may have
    /// moved its bytes. One that is named once more after it was gone is lost.
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

    /// Reads a range within the volume.
    pub(super) async fn read(&self, range: Range<u64>) -> Result<Vec<Segment>, Error> {
        let begun = tokio::time::Instant::now();
        let (segments, source) = self.look_up(&range, |resolved| self.read_segments(resolved)).await?;
        self.metrics.read_duration.of(source).observe(begun.elapsed().as_secs_f64());
        Ok(segments)
    }

    /// Reads what a range was resolved to as one piece of memory.
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

    /// Reads what a range was resolved to, and says from where at the farthest.
    async fn read_segments(&self, resolved: Resolved) -> Result<(Vec<Segment>, ReadSource), Error> {
        let (sources, fetches) = self.plan(resolved).await?;
        let changed = sources.iter().any(|(_, source)| matches!(source, Origin::Ready(InMemory::Bytes(_))));
        let farthest = match fetches.iter().all(|fetch| self.env.cache.contains(&fetch.key)) {
            false => ReadSource::Store,
            true if fetches.is_empty() && changed => ReadSource::Dirty,
            true => ReadSource::Memory,
        };
        let fetched = self.env.cache.fetch(&self.env.store, &fetches).await;
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

    /// Where each part comes from, in order, and what must be fetched for it.
    async fn plan(&self, resolved: Resolved) -> Result<(Vec<(Range<u64>, Origin)>, Vec<Fetch>), Error> {
        let mut parts = Vec::with_capacity(resolved.pieces.len());
        let mut fetches = Vec::new();
        for (range, piece) in resolved.pieces {
            for (range, piece) in at_pages(range, piece) {
                let source = match piece.in_memory(range.end - range.start) {
                    Some(memory) => Origin::Ready(memory),
                    None => {
                        let (fetch, at) = self.piece_fetch(&piece);
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
                    BasePart::Lost { map_page } => {
                        let why = format!("the object that located the bytes at {} was lost", range.start);
                        let key = format!("{}{map_page}", self.keys.map_pages());
                        return Err(Error::damaged(key, why).first_at(range.start));
                    }
                    BasePart::Page { fetch, at, damage } => {
                        if let Some(damage) = damage
                            && !damage.spares(at..at + (range.end - range.start))
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

    /// How to have a piece that left memory, and where in what is fetched it begins.
    pub(super) fn piece_fetch(&self, piece: &Piece) -> (Fetch, u64) {
        match piece {
            Piece::Data { record, change, at } => (Fetch::change(self.keys.volume(), record, *change), *at),
            Piece::Chunk(chunk, at) => (self.chunk_fetch(chunk, *at), at % PAGE_BYTES),
            Piece::Block(..) | Piece::Zero { .. } => unreachable!("always in memory"),
        }
    }

    /// How to have the page at byte `at` of a chunk that a commit names.
    pub(super) fn chunk_fetch(&self, chunk: &ChunkRef, at: u64) -> Fetch {
        let volume = self.keys.volume();
        let page = u16::try_from(at / PAGE_BYTES).expect("within a chunk");
        Fetch {
            key: CacheKey { volume, unit: Unit::page(chunk.index, chunk.id, page) },
            object: Source::Chunk(chunk.index, chunk.id),
            at: crate::volume::format::chunk::frame_offset(chunk.pages_per_chunk, chunk.stored.rank(page)),
            length: u32::try_from(PAGE_BYTES).expect("64 KiB"),
            check: Check::Frame(Place::chunk(volume, chunk.index.0, chunk.id), u32::from(page)),
        }
    }

    /// The first part of a range, not empty, that is looked at at once: of one kind in the map, with at most
    /// `pieces` pieces in each layer, and at most `mapped_bytes` bytes of what a map page covers. It bounds
    /// the work; what the part is when it is looked at may have changed.
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

    /// Starts fetching what a client that reads in sequence will read next.
    pub(super) async fn read_ahead(&self, range: Range<u64>) -> Result<(), Error> {
        let (_, fetches) = self.look_up(&range, |resolved| self.plan(resolved)).await?;
        self.env.cache.prefetch(&self.env.store, &fetches);
        Ok(())
    }

    /// Brings a range into the cache: piece by piece, as much as the cache can hold, and no more than
    /// [`CACHE_MAP_PAGES`] map pages of it. Ends early where the volume is being closed. What cannot be
    /// fetched is left to the READ that needs it.
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

    /// Allocation of a range: at most `limit` extents, adjacent ones alike merged; may end before the range
    /// does: one call looks at [`STATUS_WINDOWS`] parts at most, and so loads no more map pages than that.
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
                // A client that copies the disk goes on behind what is lost, and its READ says that it is.
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

    /// The parts of what a range was resolved to, in order, each with whether it is a hole and whether it is
    /// zeros.
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
                    BasePart::Page { .. } | BasePart::Lost { .. } => (range, false, false),
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

/// A piece cut at pages where its bytes are had page by page.
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

/// The bytes of segments, one after the other.
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
