//! WRITE, TRIM and WRITE_ZEROES: changes to the dirty layer.
//!
//! Owns how a change enters the dirty layer, and when it must wait. It does not know how records are sent.
//! Invariants: a change is applied as a whole at one instant under the volume's lock, so no commit contains
//! half of it, and it lies within the size that the volume has then. A sector that a change covers only in
//! part is read first, and the bytes read are used only if the sector still reads the same.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::upload;
use crate::mutant::{self, Mutant};
use crate::volume::error::Error;
use crate::volume::format::geometry::{SECTOR_BYTES, SECTOR_LEN};
use crate::volume::format::keys::ObjectId;
use crate::volume::read::read_resolved;
use crate::volume::shared::Shared;
use crate::volume::state::layer::{Growth, PreparedWrite};
use crate::volume::state::piece::{ChunkRef, InMemory, Piece};
use crate::volume::state::{State, Status};

/// The bytes of a partly covered sector that a change replaces.
#[derive(Debug)]
struct Partial {
    sector: u64,
    from: usize,
    bytes: Vec<u8>,
}

/// A change, split at sector boundaries.
#[derive(Debug)]
pub(crate) struct Change {
    /// The bytes of the volume that it changes.
    range: Range<u64>,
    zero: Option<(Range<u64>, bool)>,
    write: PreparedWrite,
    partials: Vec<Partial>,
}

/// The content of a sector below the change, and where it was found.
struct Known {
    sector: u64,
    source: Source,
    bytes: Bytes,
}

/// Where a sector's bytes were found.
enum Source {
    Piece(Piece),
    Base(ObjectId),
}

/// Why a change cannot be applied now.
enum Obstacle {
    /// These sectors must be read first.
    Unread(Vec<u64>),
    /// The dirty layer must be cut first, and too many cut layers already wait for their records.
    Cuts,
    /// The journal is at its limit until a checkpoint is published.
    Journal,
    /// The volume no longer serves requests, for this reason.
    Stopped(String),
    /// The range ends beyond the volume, which has become smaller.
    Beyond(Error),
}

/// Splits a range into its whole sectors and the partial sectors at its ends.
fn split(range: Range<u64>) -> (Range<u64>, Vec<Range<u64>>) {
    let first = range.start.next_multiple_of(SECTOR_BYTES);
    let last = range.end / SECTOR_BYTES * SECTOR_BYTES;
    if first > last {
        return (first..first, vec![range]);
    }
    let ends = [range.start..first, last..range.end];
    (first..last, ends.into_iter().filter(|part| !part.is_empty()).collect())
}

fn within_sector(at: u64) -> usize {
    usize::try_from(at % SECTOR_BYTES).expect("less than 512")
}

impl Change {
    /// Makes the change of a WRITE of `data` at `offset`, in bytes.
    pub(crate) fn write(offset: u64, data: Bytes) -> Self {
        let range = offset..offset + data.len() as u64;
        let (whole, parts) = split(range.clone());
        let within = |at: u64| usize::try_from(at - offset).expect("within the data");
        let partials = parts
            .iter()
            .map(|part| Partial {
                sector: part.start / SECTOR_BYTES * SECTOR_BYTES,
                from: within_sector(part.start),
                bytes: data[within(part.start)..within(part.end)].to_vec(),
            })
            .collect();
        let write = match whole.is_empty() {
            true => PreparedWrite::default(),
            false if parts.is_empty() => PreparedWrite::new(offset, data),
            false => PreparedWrite::new(whole.start, data.slice(within(whole.start)..within(whole.end))),
        };
        Self { range, zero: None, write, partials }
    }

    /// Makes the change of a TRIM (`hole`) or WRITE_ZEROES of a byte range.
    pub(crate) fn zero(range: Range<u64>, hole: bool) -> Self {
        let (whole, parts) = split(range.clone());
        let partials = parts
            .iter()
            .map(|part| Partial {
                sector: part.start / SECTOR_BYTES * SECTOR_BYTES,
                from: within_sector(part.start),
                bytes: vec![0; usize::try_from(part.end - part.start).expect("less than 512")],
            })
            .collect();
        let zero = (!whole.is_empty()).then_some((whole, hole));
        let partials = if mutant::is(Mutant::TrimEdgeDropped) { Vec::new() } else { partials };
        Self { range, zero, write: PreparedWrite::default(), partials }
    }

    fn growth(&self) -> Growth<'_> {
        Growth { write: &self.write, sectors: self.partials.len(), zero: self.zero.is_some() }
    }

    /// Upper bound on the number of blocks that the change makes dirty.
    fn blocks(&self) -> usize {
        self.write.blocks() + self.partials.len() + usize::from(self.zero.is_some())
    }
}

/// Applies a change. Returns once every later command sees it.
pub(crate) async fn apply(shared: &Arc<Shared>, change: Change) -> Result<(), Error> {
    let permits = take_budget(shared, change.blocks()).await?;
    let growth = change.growth().weight(shared.geometry);
    let mut guard = Permits { shared, permits };
    let mut change = Some(change);
    let mut known = Vec::new();
    loop {
        let obstacle = match try_apply(shared, &mut change, &known, &mut guard.permits) {
            Ok(filled) => {
                for (chunk, permits) in filled {
                    upload::start(shared, chunk, permits);
                }
                return Ok(());
            }
            Err(obstacle) => obstacle,
        };
        match obstacle {
            Obstacle::Unread(sectors) => {
                // Keep what is known of the other sectors, or two sectors could evict each other forever.
                known.retain(|known: &Known| !sectors.contains(&known.sector));
                for sector in sectors {
                    known.push(read_sector(shared, sector).await?);
                }
            }
            Obstacle::Cuts => {
                let _throttled = shared.metrics.write_throttled.begin();
                shared.wait(|_| shared.state.lock().may_cut(shared.options.commits_in_flight)).await?;
            }
            Obstacle::Journal => {
                let _throttled = shared.metrics.write_throttled.begin();
                shared.fold_wake.notify_one();
                shared.wait(|_| !journal_is_full(shared, &shared.state.lock(), growth)).await?;
            }
            Obstacle::Stopped(why) => return Err(Error::Stopped(why)),
            Obstacle::Beyond(error) => return Err(error),
        }
    }
}

async fn take_budget(shared: &Shared, blocks: usize) -> Result<usize, Error> {
    if let Some(permits) = shared.env.budget.try_take(blocks) {
        return Ok(permits);
    }
    if mutant::is(Mutant::DirtyUnbounded) {
        return Ok(0);
    }
    let _waiting = WaitingWrite::new(shared);
    let _throttled = shared.metrics.write_throttled.begin();
    let taken = shared.env.budget.take(blocks);
    tokio::pin!(taken);
    let stopped = shared.progress.wait(|now| now.stopped.then_some(()));
    let either = async {
        tokio::select! {
            biased;
            permits = &mut taken => Some(permits),
            () = stopped => None,
        }
    };
    match shared.within_deadline(either).await? {
        Some(permits) => Ok(permits),
        None => shared.check_serving().map(|()| 0),
    }
}

/// Whether the journal, together with the records still to come and a change that adds `growth` to it,
/// would exceed twice its limit, so that folding must catch up first. Below the limit nothing folds, so
/// waiting would not help.
pub(super) fn journal_is_full(shared: &Shared, state: &State, growth: u64) -> bool {
    let (bytes, (_, records)) = (state.journal_weight(), state.journal());
    let (most_bytes, most_records) = (shared.options.journal_max_bytes, shared.options.journal_max_records);
    // The dirty layer is a record to come, and the change may have to start another.
    let coming = state.in_flight.len() as u64 + 1 + u64::from(!state.dirty.is_empty());
    if mutant::is(Mutant::JournalUnbounded) {
        return false;
    }
    (bytes >= most_bytes && bytes + state.coming_weight(shared.geometry) + growth > 2 * most_bytes)
        || (records >= most_records && records + coming > 2 * most_records)
}

/// Whether a change needs a new layer: it would overwrite part of a filled chunk, or the record would be
/// too long.
fn needs_a_cut(shared: &Shared, state: &State, change: &Change) -> bool {
    if let Some((range, _)) = &change.zero
        && state.dirty.cuts_filled_chunk(shared.geometry, range)
    {
        return true;
    }
    let most = shared.options.commit_max_bytes;
    !state.dirty.is_empty()
        && !mutant::is(Mutant::RecordUnbounded)
        && !state.dirty.has_room(shared.geometry, change.growth(), most)
}

fn try_apply(
    shared: &Shared,
    change: &mut Option<Change>,
    known: &[Known],
    permits: &mut usize,
) -> Result<Vec<(Arc<ChunkRef>, usize)>, Obstacle> {
    let mut state = shared.state.lock();
    match &state.status {
        Status::Serving => {}
        Status::Draining => return Err(Obstacle::Stopped("the volume is being closed".to_owned())),
        Status::Stopped(why) => return Err(Obstacle::Stopped(why.clone())),
    }
    let pending = change.as_mut().expect("applied once");
    // Checked again under the lock: the volume may have become smaller while the change waited.
    let Range { start: offset, end } = pending.range;
    if end > state.size_bytes && !mutant::is(Mutant::ShrinkOvertaken) {
        return Err(Obstacle::Beyond(Error::OutOfRange {
            offset,
            length: end - offset,
            size: state.size_bytes,
        }));
    }
    if journal_is_full(shared, &state, pending.growth().weight(shared.geometry)) {
        return Err(Obstacle::Journal);
    }
    let mut edges = Vec::with_capacity(pending.partials.len());
    let mut unread = Vec::new();
    for partial in &pending.partials {
        match sector_below(shared, &state, partial.sector, known) {
            Some(mut sector) => {
                sector[partial.from..partial.from + partial.bytes.len()].copy_from_slice(&partial.bytes);
                edges.push((partial.sector, sector));
            }
            None => unread.push(partial.sector),
        }
    }
    if !unread.is_empty() {
        return Err(Obstacle::Unread(unread));
    }
    let now = Instant::now();
    if needs_a_cut(shared, &state, pending) {
        if !state.may_cut(shared.options.commits_in_flight) {
            return Err(Obstacle::Cuts);
        }
        state.cut(shared.geometry, now, None);
        shared.gauge(&state);
        shared.commit_wake.notify_one();
    }
    let Change { zero, mut write, .. } = change.take().expect("checked above");
    for (sector, bytes) in edges {
        write.add_sector(sector, bytes);
    }
    Ok(enter(shared, &mut state, zero, write, permits, now))
}

fn enter(
    shared: &Shared,
    state: &mut State,
    zero: Option<(Range<u64>, bool)>,
    write: PreparedWrite,
    permits: &mut usize,
    now: Instant,
) -> Vec<(Arc<ChunkRef>, usize)> {
    if let Some((range, hole)) = zero {
        state.dirty.zero(shared.geometry, range, hole);
        if mutant::is(Mutant::ChangeTorn) && state.in_flight.len() < shared.options.commits_in_flight {
            state.cut(shared.geometry, now, None);
        }
    }
    let filled = state.dirty.write(shared.geometry, write);
    let held = state.dirty_permits + *permits;
    let needed = state.dirty.block_count();
    // A write larger than the whole budget holds fewer permits than it needs.
    state.dirty_permits = held.min(needed);
    *permits = held - state.dirty_permits;
    state.dirty_since.get_or_insert(now);
    let mut chunks = Vec::with_capacity(filled.len());
    for index in filled {
        let blocks = state.dirty.take_filled(shared.geometry, index);
        let id = shared.next_id();
        let chunk = Arc::new(ChunkRef::filled(index, id, shared.geometry.pages_per_chunk(), blocks));
        state.dirty.promote(Arc::clone(&chunk));
        state.filled_at = Some(now);
        let moved = state.dirty_permits - state.dirty_permits.min(state.dirty.block_count());
        state.dirty_permits -= moved;
        chunks.push((chunk, moved));
    }
    if !chunks.is_empty() || state.dirty_since == Some(now) || record_is_full(shared, state) {
        shared.commit_wake.notify_one();
    }
    shared.gauge_dirty(state);
    chunks
}

/// Whether the dirty layer is as large as a record may be.
pub(super) fn record_is_full(shared: &Shared, state: &State) -> bool {
    state.dirty.record_bytes(shared.geometry) >= shared.options.commit_max_bytes
}

/// Returns the current content of a sector, if it is in memory or among `known`.
fn sector_below(shared: &Shared, state: &State, sector: u64, known: &[Known]) -> Option<[u8; SECTOR_LEN]> {
    let resolved = state.resolve(shared.geometry, sector..sector + SECTOR_BYTES);
    if let Some((_, piece)) = resolved.pieces.first() {
        match piece.in_memory(SECTOR_BYTES) {
            Some(InMemory::Bytes(bytes)) => return Some(bytes[..].try_into().expect("a sector")),
            Some(InMemory::Zero) => return Some([0; SECTOR_LEN]),
            None => {}
        }
    }
    let known = known.iter().find(|known| known.sector == sector)?;
    let same = match (&known.source, resolved.pieces.first()) {
        (Source::Piece(found), Some((_, piece))) => found.is_same(piece),
        (Source::Base(root), None) => *root == resolved.root.id,
        _ => false,
    };
    let same = same || mutant::is(Mutant::StaleSector);
    same.then(|| known.bytes[..].try_into().expect("a sector"))
}

async fn read_sector(shared: &Shared, sector: u64) -> Result<Known, Error> {
    let range = sector..sector + SECTOR_BYTES;
    let resolved = shared.state.lock().resolve(shared.geometry, range.clone());
    let source = match resolved.pieces.first() {
        Some((_, piece)) => Source::Piece(piece.clone()),
        None => Source::Base(resolved.root.id),
    };
    let bytes = read_resolved(shared, range, resolved).await?;
    assert_eq!(bytes.len(), SECTOR_LEN, "a sector was asked for");
    Ok(Known { sector, source, bytes })
}

/// Permits that a command or task holds and has not passed on. They are returned when it ends, however it
/// ends.
pub(crate) struct Permits<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) permits: usize,
}

impl Drop for Permits<'_> {
    fn drop(&mut self) {
        self.shared.env.budget.give(self.permits);
    }
}

/// Counts a write that waits for the budget, which makes the committer cut.
struct WaitingWrite<'a> {
    shared: &'a Shared,
}

impl<'a> WaitingWrite<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.state.lock().waiting_writes += 1;
        shared.commit_wake.notify_one();
        Self { shared }
    }
}

impl Drop for WaitingWrite<'_> {
    fn drop(&mut self) {
        self.shared.state.lock().waiting_writes -= 1;
    }
}
