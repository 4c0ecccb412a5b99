//! The state of an open volume, under one lock that is never held across an await.
//!
//! The layers, from newest to oldest: the dirty layer, commits in flight, committed changes, changes that
//! are being folded, and the root. The state must not know about stores and tasks. Invariants: `in_flight`
//! is in order of slot. [`State::resolve`] returns what a client must read. A cut takes the whole dirty
//! layer at one instant.

pub mod layer;
pub mod piece;
pub mod segments;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;

use self::layer::DirtyLayer;
use self::piece::{Piece, RecordRef};
use self::segments::{Committed, Segments};
use crate::mutant::{self, Mutant};
use crate::volume::format::geometry::{ChunkIndex, Geometry};
use crate::volume::format::head::Checkpoint;
use crate::volume::format::interval::{IntervalMap, Value as _, gaps};
use crate::volume::format::keys::ObjectId;
use crate::volume::format::record::{RESIZE_CHANGE_BYTES, snapshot_change_bytes};
use crate::volume::format::root::Root;
use crate::volume::format::snapshot::Snapshot;

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

/// Amounts of dirty and unfolded data of a volume, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Dirty blocks of 4 KiB that are not in a commit yet.
    pub dirty_blocks: usize,
    /// Commits that were cut and are not durable yet.
    pub commits_in_flight: usize,
    /// Total size in bytes of the records after the last checkpoint.
    pub journal_bytes: u64,
    /// Number of records after the last checkpoint.
    pub journal_records: u64,
    /// The value that the journal's limit applies to, in bytes: the size of the records after the last
    /// checkpoint plus the memory that their changes take, plus an upper bound of the same for the records in
    /// flight and those still to be made.
    pub journal_weight_bytes: u64,
    /// Number of checkpoints published since the volume was opened.
    pub checkpoints: u64,
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
    /// The size in bytes that the commit gives the volume, if it changes it.
    pub resized: Option<u64>,
    /// The snapshot that the commit ends with, if any.
    pub snapshot: Option<Snapshot>,
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
    /// The size in bytes that the commit gives the volume, if it changes it.
    pub resized: Option<u64>,
    /// The snapshot that the commit ends with, if any.
    pub snapshot: Option<Snapshot>,
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
    /// Size of the volume in bytes, after all changes that were accepted. No change lies beyond it.
    pub size_bytes: u64,
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
    pub committed: Segments,
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
            let place =
                if mutant::is(Mutant::OldestCommitFirst) { self.in_flight.len() - 1 - place } else { place };
            match &self.in_flight[place].stage {
                Stage::Frozen(layer) => {
                    let gaps = std::mem::take(&mut left);
                    left =
                        gaps.into_iter().flat_map(|gap| layer.resolve(geometry, gap, &mut pieces)).collect();
                }
                Stage::Sent(sent) => left = overlay(&sent.pieces, left, &mut pieces),
            }
        }
        let uncommitted = pieces.len();
        for segment in self.unfolded().rev() {
            left = overlay(&segment.pieces, left, &mut pieces);
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
        let unfolded = self.unfolded().map(|segment| segment.pieces.reach(range.clone(), most));
        let dirty = self.dirty.reach(geometry, range.clone(), most);
        commits.chain(unfolded).fold(dirty, u64::min)
    }

    /// The segments of durable changes that are not in the root, the oldest first.
    pub fn unfolded(&self) -> impl DoubleEndedIterator<Item = &Committed> {
        self.folding.as_deref().into_iter().chain(self.committed.oldest_first())
    }

    /// Whether a snapshot of this name is not in a root yet.
    #[must_use]
    pub fn has_snapshot(&self, name: &str) -> bool {
        let in_flight = self.in_flight.iter().map(|commit| &commit.snapshot);
        let mut all = in_flight.chain(self.unfolded().map(|segment| &segment.snapshot)).flatten();
        all.any(|snapshot| snapshot.name == name)
    }

    /// Number of snapshots that are not in a root yet.
    #[must_use]
    pub fn waiting_snapshots(&self) -> usize {
        let in_flight = self.in_flight.iter().filter(|commit| commit.snapshot.is_some()).count();
        in_flight + self.unfolded().filter(|segment| segment.snapshot.is_some()).count()
    }

    /// Number of commits that wait for a root of their own, because they end with a snapshot or a new size.
    #[must_use]
    pub fn waiting_roots(&self) -> usize {
        let ends = |commit: &&InFlight| commit.resized.is_some() || commit.snapshot.is_some();
        self.in_flight.iter().filter(ends).count()
            + self.unfolded().filter(|segment| segment.is_closed()).count()
    }

    /// Whether another layer may be cut if at most `records` records may be in flight.
    #[must_use]
    pub fn may_cut(&self, records: usize) -> bool {
        self.in_flight.len() < records + WAITING_CUTS
    }

    /// Turns the dirty layer into the next commit, which ends with a snapshot if one is given.
    pub fn cut(&mut self, geometry: Geometry, now: Instant, snapshot: Option<Snapshot>) {
        let named = snapshot.as_ref().map_or(0, snapshot_change_bytes);
        let weight = self.dirty.weight(geometry) + named;
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
            resized: None,
            snapshot,
        });
        self.next_n += 1;
        self.dirty_since = None;
        self.filled_at = None;
    }

    /// Changes the size: makes the range between the old and the new size unallocated, and cuts a commit that
    /// ends with the change. That range must not cover only a part of a filled chunk.
    pub fn resize(&mut self, geometry: Geometry, now: Instant, size_bytes: u64) {
        let between = self.size_bytes.min(size_bytes)..self.size_bytes.max(size_bytes);
        if !mutant::is(Mutant::ResizeUnzeroed) {
            self.dirty.zero(geometry, between, true);
        }
        self.cut(geometry, now, None);
        let commit = self.in_flight.back_mut().expect("just cut");
        commit.resized = Some(size_bytes);
        commit.weight += RESIZE_CHANGE_BYTES;
        self.size_bytes = size_bytes;
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
        self.unfolded().map(|segment| segment.weight).sum()
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
        let add = |(bytes, records), segment: &Committed| {
            (bytes + segment.bytes, records + segment.slots.len() as u64)
        };
        self.unfolded().fold((0, 0), add)
    }
}

/// Appends the pieces of `map` that cover ranges in `left` to `found`. Returns what is left. `left` must be
/// in order of offset, and so is the result.
pub fn overlay(
    map: &IntervalMap<Piece>,
    mut left: Vec<Range<u64>>,
    found: &mut Vec<(Range<u64>, Piece)>,
) -> Vec<Range<u64>> {
    if map.is_empty() {
        return left;
    }
    let mut cut = Vec::new();
    left.retain(|gap| {
        // One piece often covers all of a short range, and then one lookup finds it.
        if let Some((range, piece)) = map.at(gap.start)
            && range.end >= gap.end
        {
            found.push((gap.clone(), piece.advanced(gap.start - range.start)));
            return false;
        }
        let before = found.len();
        found.extend(map.overlaps(gap.clone()));
        let is_whole = found.len() == before;
        if !is_whole {
            cut.extend(gaps(gap.clone(), found[before..].iter().map(|(part, _)| part.clone())));
        }
        is_whole
    });
    if !cut.is_empty() {
        left.append(&mut cut);
        left.sort_unstable_by_key(|gap| gap.start);
    }
    left
}
