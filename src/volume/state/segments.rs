//! The durable changes that no fold has taken yet, cut into segments where snapshots were taken and where the
//! size changed.
//!
//! A checkpoint ends with a segment, so a snapshot gets a root of its own, and a root has the size as of its
//! commit. Must not know how records are made or folded. Invariants: every segment but the last ends with a
//! snapshot or a new size, and the last has neither. Commits are merged in the order of their slots.

use std::collections::VecDeque;
use std::ops::Range;

use tokio::time::Instant;

use super::Sent;
use super::layer::PIECE_WEIGHT;
use super::piece::{Piece, are_blocks};
use crate::mutant::{self, Mutant};
use crate::volume::format::geometry::{BLOCK_BYTES, ChunkIndex, PAGE_BYTES};
use crate::volume::format::head::Checkpoint;
use crate::volume::format::interval::IntervalMap;
use crate::volume::format::keys::{ObjectId, Slot};
use crate::volume::format::snapshot::Snapshot;

/// A segment: durable changes that one checkpoint takes as a whole.
#[derive(Debug, Default)]
pub struct Committed {
    /// The changes. Where changes overlap, the newest wins.
    pub pieces: IntervalMap<Piece>,
    /// Total size of the records in bytes.
    pub bytes: u64,
    /// Total weight, which bounds the journal: the bytes of the records, and the memory
    /// that their changes take.
    pub weight: u64,
    /// Slots of the records, in order.
    pub slots: Vec<Slot>,
    /// The last record, or `None` if there is none.
    pub end: Option<Checkpoint>,
    /// Chunk objects that the records reference, including those that a later change replaced.
    pub chunks: Vec<(ChunkIndex, ObjectId)>,
    /// Chunk objects that nothing references.
    pub superseded: Vec<(ChunkIndex, ObjectId)>,
    /// When the first of the commits was merged.
    pub since: Option<Instant>,
    /// The size in bytes that the last of the commits gives the volume, if it changes it. No commit is merged
    /// after it.
    pub resized: Option<u64>,
    /// The snapshot that the last of the commits ends with. No commit is merged after it.
    pub snapshot: Option<Snapshot>,
}

impl Committed {
    /// Whether there are no records, not even records without changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.is_none()
    }

    /// Whether the segment has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.resized.is_some() || self.snapshot.is_some()
    }

    /// The end of what the segment changes on a volume of `size_bytes`, which is beyond the end of the volume
    /// if the segment makes it smaller. What the segment leaves beyond its own size is unallocated.
    #[must_use]
    pub fn reach(&self, size_bytes: u64) -> u64 {
        self.resized.map_or(size_bytes, |resized| resized.max(size_bytes))
    }

    /// Returns the block of a change that is all of the block at `start`, in bytes, if there is one: the slot
    /// of its record, the number of the change that names it in the cache, and its place there.
    #[must_use]
    pub fn block_of_change(&self, start: u64) -> Option<(Slot, u32, u32)> {
        let (range, piece) = self.pieces.at(start)?;
        let Piece::Data { record, change, at } = piece else { return None };
        let at = at + (start - range.start);
        let is_block = at.is_multiple_of(BLOCK_BYTES) && are_blocks(record.place(*change).length);
        if range.end < start + BLOCK_BYTES || !is_block {
            return None;
        }
        let (named, blocks) = record.held_as(*change);
        let within = u32::try_from(at / BLOCK_BYTES).expect("a change is at most a page");
        Some((record.slot, named, blocks.start + within))
    }

    /// Adds a durable commit.
    ///
    /// # Panics
    /// Panics if the commit is not newer than all before it.
    fn merge(&mut self, sent: &Sent, now: Instant, replaced: &mut impl FnMut(Range<u64>, &Piece)) {
        assert!(self.end.is_none_or(|end| end.slot < sent.end.slot), "commits are taken in order");
        for (range, piece) in sent.pieces.iter() {
            self.pieces.insert_and(range, piece.clone(), replaced);
        }
        self.bytes += sent.bytes;
        self.weight += sent.bytes + sent.pieces.len() as u64 * PIECE_WEIGHT;
        self.slots.push(sent.end.slot);
        self.end = Some(sent.end);
        self.chunks.extend_from_slice(&sent.chunks);
        self.superseded.extend_from_slice(&sent.superseded);
        self.since.get_or_insert(now);
    }
}

/// All durable changes that no fold has taken yet.
#[derive(Debug, Default)]
pub struct Segments {
    /// Segments that have ended, the oldest first.
    closed: VecDeque<Committed>,
    /// The newest segment, to which commits are added.
    open: Committed,
}

impl Segments {
    /// Adds a durable commit. Calls `replaced` with each part of an earlier change that it replaces and that
    /// nothing else needs, and with the piece that contains the part.
    ///
    /// # Panics
    /// Panics if the commit is not newer than all before it.
    pub fn merge(&mut self, sent: &Sent, now: Instant, mut replaced: impl FnMut(Range<u64>, &Piece)) {
        if mutant::is(Mutant::SnapshotBeforeCommit) && sent.snapshot.is_some() {
            self.close(sent);
        }
        let segment = match self.closed.back_mut() {
            Some(last) if mutant::is(Mutant::SegmentReopened) => last,
            _ => &mut self.open,
        };
        segment.merge(sent, now, &mut replaced);
        let is_snapshot = sent.snapshot.is_some() && !mutant::is(Mutant::SnapshotBeforeCommit);
        if is_snapshot || sent.resized.is_some() {
            self.close(sent);
        }
    }

    /// Ends the open segment with what a commit ends with, and opens the next.
    fn close(&mut self, sent: &Sent) {
        let ended = std::mem::take(&mut self.open);
        self.closed.push_back(Committed { resized: sent.resized, snapshot: sent.snapshot.clone(), ..ended });
    }

    /// The size in bytes that the newest of the commits that change it gives the volume, if any does.
    #[must_use]
    pub fn resized(&self) -> Option<u64> {
        self.closed.iter().rev().find_map(|segment| segment.resized)
    }

    /// Returns the blocks of the page at `start`, in bytes, that are replaced as a whole, each by one change:
    /// one bit for each.
    #[must_use]
    pub fn replaced_in_page(&self, start: u64) -> u16 {
        let mut replaced = 0;
        for segment in self.oldest_first() {
            for (part, _) in segment.pieces.overlaps(start..start + PAGE_BYTES) {
                for block in (part.start - start).div_ceil(BLOCK_BYTES)..(part.end - start) / BLOCK_BYTES {
                    replaced |= 1 << block;
                }
            }
        }
        replaced
    }

    /// Removes and returns the oldest segment, which may be empty.
    pub fn take_oldest(&mut self) -> Committed {
        self.closed.pop_front().unwrap_or_else(|| std::mem::take(&mut self.open))
    }

    /// The segments, the oldest first.
    pub fn oldest_first(&self) -> impl DoubleEndedIterator<Item = &Committed> {
        self.closed.iter().chain([&self.open])
    }

    /// Whether there are no records, not even records without changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.closed.is_empty() && self.open.is_empty()
    }

    /// The number of segments that have ended: with a snapshot, or with a new size.
    #[must_use]
    pub fn closed(&self) -> usize {
        self.closed.len()
    }

    /// Total size of the records in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.oldest_first().map(|segment| segment.bytes).sum()
    }

    /// Total weight, which bounds the journal.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.oldest_first().map(|segment| segment.weight).sum()
    }

    /// Number of records.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.oldest_first().map(|segment| segment.slots.len() as u64).sum()
    }

    /// When the first of the commits was merged.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        self.oldest_first().find_map(|segment| segment.since)
    }
}
