//! Reads ranges that are already resolved: plans the fetches, and joins the bytes.
//!
//! Open volumes and snapshots are read through it. Must not know which of the two is read, nor what has
//! changed since. Invariant: a byte is returned only if it is in memory or has passed its check.

use std::ops::Range;

use bytes::Bytes;

use super::Segment;
use super::base::{self, BasePart};
use crate::metrics::labels::ReadSource;
use crate::volume::cache::Fetched;
use crate::volume::cache::fetch::Fetch;
use crate::volume::environment::Environment;
use crate::volume::error::Error;
use crate::volume::format::geometry::{BLOCK_BYTES, PAGE_BYTES, PageIndex};
use crate::volume::format::keys::Keys;
use crate::volume::state::Resolved;
use crate::volume::state::piece::{ChunkRef, InMemory, Piece, part};

/// Reads what belongs to one volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    /// The store, and the cache in front of it.
    pub(crate) env: &'a Environment,
    /// Keys of the volume.
    pub(crate) keys: Keys,
}

enum Origin {
    Ready(InMemory),
    /// Index of a fetch, and the byte at which the part begins in what it returns.
    Fetched(usize, u64),
}

/// A part of a volume with its allocation: the range, whether it is a hole, and whether it reads as zeros.
pub(crate) type Allocated = (Range<u64>, bool, bool);

impl Reader<'_> {
    /// Reads a range that was already resolved. Also returns the farthest source that it had to read from.
    pub(crate) async fn read_segments(self, resolved: Resolved) -> Result<(Vec<Segment>, ReadSource), Error> {
        let (sources, fetches) = self.plan(resolved).await?;
        let changed = sources.iter().any(|(_, source)| matches!(source, Origin::Ready(InMemory::Bytes(_))));
        let Fetched { parts: mut fetched, misses } = match fetches.is_empty() {
            true => Fetched { parts: Vec::new(), misses: 0 },
            false => self.env.cache.fetch(&self.env.store, &fetches).await,
        };
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
                    let fetched = std::mem::replace(&mut fetched[number], Ok(Bytes::new()));
                    let bytes = fetched.map_err(|error| error.first_at(range.start))?;
                    let start = usize::try_from(at).expect("within a page");
                    let end = start + usize::try_from(length).expect("within a page");
                    let is_all = start == 0 && end == bytes.len();
                    segments.push(Segment::Data(if is_all { bytes } else { part(&bytes, start..end) }));
                }
            }
        }
        Ok((segments, farthest))
    }

    /// Returns the source of each part, in order of offset, and the fetches that these parts need, in the
    /// same order.
    async fn plan(self, resolved: Resolved) -> Result<(Vec<(Range<u64>, Origin)>, Vec<Fetch>), Error> {
        let mut parts = Vec::with_capacity(resolved.pieces.len() + resolved.base.len());
        let mut fetches = Vec::new();
        for (range, piece) in resolved.pieces {
            for (range, piece) in at_pages(range, piece) {
                let source = match piece.in_memory(range.end - range.start) {
                    Some(memory) => Origin::Ready(memory),
                    None => {
                        let (fetch, at) = self.piece_fetch(&piece, range.end - range.start);
                        fetches.push(fetch);
                        Origin::Fetched(fetches.len() - 1, at)
                    }
                };
                parts.push((range, source));
            }
        }
        for gap in resolved.base {
            for (range, part) in base::resolve(self.env, self.keys, &resolved.root, gap.clone())
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
                        fetches.push(fetch);
                        Origin::Fetched(fetches.len() - 1, at)
                    }
                };
                parts.push((range, source));
            }
        }
        Ok(in_order(parts, fetches))
    }

    /// Returns the fetches that a range needs which was already resolved, in order of offset.
    pub(crate) async fn fetches(self, resolved: Resolved) -> Result<Vec<Fetch>, Error> {
        Ok(self.plan(resolved).await?.1)
    }

    /// Returns the fetch for a piece of `length` bytes that is no longer in memory, and where in the fetched
    /// bytes the piece begins.
    pub(crate) fn piece_fetch(self, piece: &Piece, length: u64) -> (Fetch, u64) {
        match piece {
            Piece::Data { record, change, at } => {
                Fetch::change(self.keys.sealing(), record, *change, *at..*at + length)
            }
            Piece::Chunk(chunk, at) => (self.chunk_fetch(chunk, *at, length), at % BLOCK_BYTES),
            Piece::Block(..) | Piece::Zero { .. } => unreachable!("always in memory"),
        }
    }

    /// Returns the fetch for `length` bytes at byte `at` of a chunk that a commit references. They must lie
    /// within one page.
    pub(crate) fn chunk_fetch(self, chunk: &ChunkRef, at: u64, length: u64) -> Fetch {
        let block = |at: u64| u32::try_from(at).expect("within a chunk");
        let (first, end) = (block(at / BLOCK_BYTES), block((at + length).div_ceil(BLOCK_BYTES)));
        Fetch::filled(self.keys.sealing(), chunk, first..end)
    }

    /// Returns the parts of a range that was already resolved, in order of offset. Each has two flags:
    /// whether it is a hole, and whether it reads as zeros.
    pub(crate) async fn allocation_of(self, resolved: Resolved) -> Result<Vec<Allocated>, Error> {
        let mut parts: Vec<Allocated> = Vec::new();
        for (range, piece) in resolved.pieces {
            for (range, piece) in at_pages(range, piece) {
                let (hole, zero) = match &piece {
                    Piece::Zero { hole } => (*hole, true),
                    Piece::Chunk(chunk, at) => (false, !chunk.stored.contains(PageIndex::at(*at))),
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
            for (range, part) in base::resolve(self.env, self.keys, &resolved.root, gap).await? {
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

/// Sorts parts by offset, and fetches in the order of the parts that need them.
fn in_order(
    mut parts: Vec<(Range<u64>, Origin)>,
    fetches: Vec<Fetch>,
) -> (Vec<(Range<u64>, Origin)>, Vec<Fetch>) {
    if parts.is_sorted_by_key(|(range, _)| range.start) {
        return (parts, fetches);
    }
    parts.sort_unstable_by_key(|(range, _)| range.start);
    let mut unsorted: Vec<Option<Fetch>> = fetches.into_iter().map(Some).collect();
    let mut sorted = Vec::with_capacity(unsorted.len());
    for (_, source) in &mut parts {
        if let Origin::Fetched(place, _) = source {
            sorted.push(unsorted[*place].take().expect("each part has a fetch of its own"));
            *place = sorted.len() - 1;
        }
    }
    (parts, sorted)
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
