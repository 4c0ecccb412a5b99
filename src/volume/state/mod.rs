//! The state of an open volume, under one lock that is never held across an await.
//!
//! From the newest down: the dirty layer, commits on their way, committed changes, the ones being folded, and
//! the root. Knows nothing of stores and tasks. Invariants: `in_flight` is in order of slot; what `resolve`
//! gives is what a client must read; a cut takes the whole dirty layer at one instant.

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

/// Layers that are cut and whose records wait for those on their way, at most. Each is asked by every read.
const WAITING_CUTS: usize = 64;

/// Whether the volume serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Serving,
    /// It is being closed: no new changes.
    Draining,
    /// It does not, and why.
    Stopped(String),
}

/// A commit that was cut and is not known to be durable, or waits for an earlier one.
#[derive(Debug)]
pub struct InFlight {
    /// Its slot's number.
    pub n: u64,
    /// How far it is.
    pub stage: Stage,
    /// Whether its record is known to be durable.
    pub durable: bool,
    /// Permits of the dirty budget that it holds.
    pub permits: usize,
    /// What the journal weighs more with its record, at most.
    pub weight: u64,
    /// When it was cut.
    pub cut_at: Instant,
    /// When the oldest of its changes was made.
    pub dirty_since: Instant,
    /// Flushes that wait for it.
    pub flushes: u32,
}

/// How far a commit is.
#[derive(Clone, Debug)]
pub enum Stage {
    /// Cut, its record not yet made.
    Frozen(Arc<DirtyLayer>),
    /// Its record is made, and on its way.
    Sent(Arc<Sent>),
}

/// A commit whose record is made.
#[derive(Debug)]
pub struct Sent {
    /// Its changes.
    pub pieces: IntervalMap<Piece>,
    /// The record, where it has data that is read from it.
    pub record: Option<Arc<RecordRef>>,
    /// Bytes of the record.
    pub bytes: u64,
    /// The record's slot and checksum.
    pub end: Checkpoint,
    /// Chunk objects that the record names.
    pub chunks: Vec<(ChunkIndex, ObjectId)>,
    /// Chunk objects that were uploaded for it and that nothing names.
    pub superseded: Vec<(ChunkIndex, ObjectId)>,
}

/// Durable changes that no root has yet.
#[derive(Debug, Default)]
pub struct Committed {
    /// The changes, newest first won.
    pub pieces: IntervalMap<Piece>,
    /// Bytes of the records.
    pub bytes: u64,
    /// What bounds the journal: the records' bytes, and what their changes take of memory.
    pub weight: u64,
    /// The records, in order.
    pub slots: Vec<Slot>,
    /// The last record, or `None` where there is none.
    pub end: Option<Checkpoint>,
    /// Chunk objects that the records name, superseded ones too.
    pub chunks: Vec<(ChunkIndex, ObjectId)>,
    /// Chunk objects that nothing names.
    pub superseded: Vec<(ChunkIndex, ObjectId)>,
    /// When the first of them was merged.
    pub since: Option<Instant>,
}

impl Committed {
    /// Whether there are no changes, not even records without any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.is_none()
    }

    /// Takes a durable commit in.
    ///
    /// # Panics
    /// If it is not newer than those before.
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

/// What a range resolves to.
#[derive(Debug)]
pub struct Resolved {
    /// Parts that changed since the root, in no order.
    pub pieces: Vec<(Range<u64>, Piece)>,
    /// How many of them, at the front, are in no commit that was answered.
    pub uncommitted: usize,
    /// Parts that the root has.
    pub base: Vec<Range<u64>>,
    /// The root to ask.
    pub root: Arc<Root>,
}

/// State of an open volume.
#[derive(Debug)]
pub struct State {
    /// Whether it serves.
    pub status: Status,
    /// Changes that no commit has yet.
    pub dirty: DirtyLayer,
    /// When the oldest of them was made.
    pub dirty_since: Option<Instant>,
    /// Permits of the dirty budget that they hold.
    pub dirty_permits: usize,
    /// When a chunk was last filled: a sequential stream is under way.
    pub filled_at: Option<Instant>,
    /// Flushes that wait for a cut.
    pub flushes: u32,
    /// Writes that wait for the dirty budget.
    pub waiting_writes: usize,
    /// Slot of the next commit.
    pub next_n: u64,
    /// Commits on their way, the oldest first.
    pub in_flight: VecDeque<InFlight>,
    /// Durable changes that no fold has taken.
    pub committed: Committed,
    /// Durable changes that a fold has taken.
    pub folding: Option<Arc<Committed>>,
    /// The root.
    pub root: Arc<Root>,
}

impl State {
    /// What `range` reads as now.
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

    /// The end of the first part of `range`, not empty, of which each layer holds at most `most` pieces of a
    /// kind; so what is looked at at once is bounded. `most` is not 0.
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

    /// Whether one more layer may be cut, where so many records are on their way at most.
    #[must_use]
    pub fn may_cut(&self, records: usize) -> bool {
        self.in_flight.len() < records + WAITING_CUTS
    }

    /// Takes the dirty layer as the next commit.
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

    /// Forgets what no commit has, and takes the permits of all that is not settled.
    pub fn give_up(&mut self) -> usize {
        self.dirty = DirtyLayer::default();
        self.dirty_since = None;
        let in_flight = self.in_flight.iter_mut().map(|commit| std::mem::take(&mut commit.permits));
        in_flight.sum::<usize>() + std::mem::take(&mut self.dirty_permits)
    }

    /// What the journal that no root has weighs.
    #[must_use]
    pub fn journal_weight(&self) -> u64 {
        self.committed.weight + self.folding.as_ref().map_or(0, |folding| folding.weight)
    }

    /// Weight at most of the records that the journal is still to take.
    #[must_use]
    pub fn coming_weight(&self, geometry: Geometry) -> u64 {
        let in_flight: u64 = self.in_flight.iter().map(|commit| commit.weight).sum();
        // Without a change there is no record: the change that begins one counts it.
        let dirty = if self.dirty.is_empty() { 0 } else { self.dirty.weight(geometry) };
        in_flight + dirty
    }

    /// Bytes and records of the journal that no root has.
    #[must_use]
    pub fn journal(&self) -> (u64, u64) {
        let folding = self.folding.as_ref().map_or((0, 0), |f| (f.bytes, f.slots.len()));
        let records = self.committed.slots.len() + folding.1;
        (self.committed.bytes + folding.0, records as u64)
    }
}

/// Appends what `map` has of the ranges `left` to `found`; gives the rest.
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
