//! The state of an open volume, under one lock that is never held across an await.
//!
//! The layers, from newest to oldest: the dirty layer, commits in flight, committed changes, changes that
//! are being folded, and the root. The state must not know about stores and tasks. Invariants: `in_flight`
//! is in order of slot. [`State::resolve`] returns what a client must read. A cut takes the whole dirty
//! layer at one instant.

pub mod layer;
pub mod piece;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;

use self::layer::{DirtyLayer, PIECE_WEIGHT};
use self::piece::{Piece, RecordRef};
use crate::mutant::{self, Mutant};
use crate::volume::format::geometry::{ChunkIndex, Geometry};
use crate::volume::format::head::Checkpoint;
use crate::volume::format::interval::{IntervalMap, gaps};
use crate::volume::format::keys::{ObjectId, Slot};
use crate::volume::format::root::Root;

/// Limit on the layers that are cut and wait for earlier records to be sent. Every read
/// searches each of them.
const WAITING_CUTS: usize = 64;

/// Whether the volume serves commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It serves all commands.
    Serving,
    /// It is being closed and accepts no new changes.
    Draining,
    /// It serves nothing. Contains the reason.
    Stopped(String),
}

/// A commit that was cut, and that is not durable yet or waits for an earlier one.
#[derive(Debug)]
pub struct InFlight {
    /// Number of its slot in the journal.
    pub n: u64,
    /// How far the commit has come.
    pub stage: Stage,
    /// Whether its record is durable.
    pub durable: bool,
    /// Number of permits of the dirty budget that the commit holds.
    pub permits: usize,
    /// Limit on the weight that its record adds to the journal.
    pub weight: u64,
    /// When the layer was cut.
    pub cut_at: Instant,
    /// When the oldest of its changes was made.
    pub dirty_since: Instant,
    /// Number of flushes that wait for the commit.
    pub flushes: u32,
}

/// How far a commit in flight has come.
#[derive(Clone, Debug)]
pub enum Stage {
    /// The layer was cut, and its record has not been made yet.
    Frozen(Arc<DirtyLayer>),
    /// The record has been made, and is in flight or durable.
    Sent(Arc<Sent>),
}

/// A commit whose record has been made.
#[derive(Debug)]
pub struct Sent {
    /// Its changes, by offset on the volume.
    pub pieces: IntervalMap<Piece>,
    /// The record, if it contains data that is read from it.
    pub record: Option<Arc<RecordRef>>,
    /// Size of the record in bytes.
    pub bytes: u64,
    /// The slot and checksum of the record.
    pub end: Checkpoint,
    /// Chunk objects that the record references.
    pub chunks: Vec<(ChunkIndex, ObjectId)>,
    /// Chunk objects that were uploaded for the commit, but that nothing references.
    pub superseded: Vec<(ChunkIndex, ObjectId)>,
}

/// Durable changes that are not in a root yet.
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
}

impl Committed {
    /// Whether there are no records, not even records without changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.is_none()
    }

    /// Adds a durable commit.
    ///
    /// # Panics
    /// Panics if the commit is not newer than all before it.
    pub fn merge(&mut self, sent: &Sent, now: Instant) {
        assert!(self.end.is_none_or(|end| end.slot < sent.end.slot), "commits are taken in order");
        for (range, piece) in sent.pieces.iter() {
            self.pieces.insert(range, piece.clone());
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

/// The layers' answer for a range: which pieces cover it, and which parts are left to the root.
#[derive(Debug)]
pub struct Resolved {
    /// Parts that changed since the root, in no particular order.
    pub pieces: Vec<(Range<u64>, Piece)>,
    /// How many of the `pieces`, counted from the front, are not part of a settled commit.
    pub uncommitted: usize,
    /// Parts that only the root covers.
    pub base: Vec<Range<u64>>,
    /// The root that covers `base`.
    pub root: Arc<Root>,
}

/// The state of an open volume: all its layers, and what is waiting for them.
#[derive(Debug)]
pub struct State {
    /// Whether the volume serves commands.
    pub status: Status,
    /// Changes that are not part of a commit yet.
    pub dirty: DirtyLayer,
    /// When the oldest of these changes was made.
    pub dirty_since: Option<Instant>,
    /// Number of permits of the dirty budget that these changes hold.
    pub dirty_permits: usize,
    /// When a chunk was last filled, which means that a sequential stream is being written.
    pub filled_at: Option<Instant>,
    /// Number of flushes that wait for the next cut.
    pub flushes: u32,
    /// Number of writes that wait for the dirty budget.
    pub waiting_writes: usize,
    /// Slot number of the next commit.
    pub next_n: u64,
    /// Commits in flight, the oldest first.
    pub in_flight: VecDeque<InFlight>,
    /// Durable changes that no fold has taken yet.
    pub committed: Committed,
    /// Durable changes that a fold is writing to a new root.
    pub folding: Option<Arc<Committed>>,
    /// The root of the last checkpoint.
    pub root: Arc<Root>,
}

impl State {
    /// Resolves `range` through all layers, the newest first, down to the root.
    #[must_use]
    pub fn resolve(&self, geometry: Geometry, range: Range<u64>) -> Resolved {
        let mut pieces = Vec::new();
        let mut left = self.dirty.resolve(geometry, range, &mut pieces);
        for place in (0..self.in_flight.len()).rev() {
            if left.is_empty() {
                break;
            }
            let commit = match mutant::is(Mutant::OldestCommitFirst) {
                false => &self.in_flight[place],
                true => &self.in_flight[self.in_flight.len() - 1 - place],
            };
            match &commit.stage {
                Stage::Frozen(layer) => {
                    let gaps = std::mem::take(&mut left);
                    left =
                        gaps.into_iter().flat_map(|gap| layer.resolve(geometry, gap, &mut pieces)).collect();
                }
                Stage::Sent(sent) => left = overlay(&sent.pieces, left, &mut pieces),
            }
        }
        let uncommitted = pieces.len();
        left = overlay(&self.committed.pieces, left, &mut pieces);
        if let Some(folding) = &self.folding {
            left = overlay(&folding.pieces, left, &mut pieces);
        }
        Resolved { pieces, uncommitted, base: left, root: Arc::clone(&self.root) }
    }

    /// Returns the end of the longest prefix of `range` in which each layer has at most `most` pieces of each
    /// kind. It is never empty. This bounds the work of one step. `most` must not be 0.
    #[must_use]
    pub fn reach(&self, geometry: Geometry, range: &Range<u64>, most: usize) -> u64 {
        let commits = self.in_flight.iter().map(|commit| match &commit.stage {
            Stage::Frozen(layer) => layer.reach(geometry, range.clone(), most),
            Stage::Sent(sent) => sent.pieces.reach(range.clone(), most),
        });
        let folding = self.folding.iter().map(|folding| folding.pieces.reach(range.clone(), most));
        let committed = self.committed.pieces.reach(range.clone(), most);
        let dirty = self.dirty.reach(geometry, range.clone(), most);
        commits.chain(folding).fold(committed.min(dirty), u64::min)
    }

    /// Whether another layer may be cut if at most `records` records may be in flight.
    #[must_use]
    pub fn may_cut(&self, records: usize) -> bool {
        self.in_flight.len() < records + WAITING_CUTS
    }

    /// Turns the dirty layer into the next commit.
    pub fn cut(&mut self, geometry: Geometry, now: Instant) {
        let weight = self.dirty.weight(geometry);
        let layer = Arc::new(std::mem::take(&mut self.dirty));
        let permits = std::mem::take(&mut self.dirty_permits);
        self.in_flight.push_back(InFlight {
            n: self.next_n,
            stage: Stage::Frozen(layer),
            durable: false,
            permits,
            weight,
            cut_at: now,
            dirty_since: self.dirty_since.unwrap_or(now),
            flushes: std::mem::take(&mut self.flushes),
        });
        self.next_n += 1;
        self.dirty_since = None;
        self.filled_at = None;
    }

    /// Discards the dirty layer. Returns the number of permits that it and the commits in flight held.
    pub fn give_up(&mut self) -> usize {
        self.dirty = DirtyLayer::default();
        self.dirty_since = None;
        let in_flight = self.in_flight.iter_mut().map(|commit| std::mem::take(&mut commit.permits));
        in_flight.sum::<usize>() + std::mem::take(&mut self.dirty_permits)
    }

    /// Weight of the records in the journal that are not in a root yet.
    #[must_use]
    pub fn journal_weight(&self) -> u64 {
        self.committed.weight + self.folding.as_ref().map_or(0, |folding| folding.weight)
    }

    /// Limit on the weight of the records that the journal is still to receive.
    #[must_use]
    pub fn coming_weight(&self, geometry: Geometry) -> u64 {
        let in_flight: u64 = self.in_flight.iter().map(|commit| commit.weight).sum();
        // Without a change there is no record: the change that begins one counts it.
        let dirty = if self.dirty.is_empty() { 0 } else { self.dirty.weight(geometry) };
        in_flight + dirty
    }

    /// Total bytes and number of the records in the journal that are not in a root yet.
    #[must_use]
    pub fn journal(&self) -> (u64, u64) {
        let folding = self.folding.as_ref().map_or((0, 0), |f| (f.bytes, f.slots.len()));
        let records = self.committed.slots.len() + folding.1;
        (self.committed.bytes + folding.0, records as u64)
    }
}

/// Appends the pieces of `map` that cover ranges in `left` to `found`. Returns what is left.
pub fn overlay(
    map: &IntervalMap<Piece>,
    left: Vec<Range<u64>>,
    found: &mut Vec<(Range<u64>, Piece)>,
) -> Vec<Range<u64>> {
    if map.is_empty() {
        return left;
    }
    let mut rest = Vec::new();
    for gap in left {
        let before = found.len();
        found.extend(map.overlaps(gap.clone()));
        rest.extend(gaps(gap, found[before..].iter().map(|(part, _)| part.clone())));
    }
    rest
}
