//! Group commit: cuts the dirty layer, makes the record, sends it, and settles commits in order.
//!
//! Owns the order and the fate of commits. It does not know commands, nor what a fold makes of its records.
//! One task decides when to cut, and it makes the records one after another because each contains the
//! checksum of the one before. Every record is sent by its own task, which puts the same bytes into the same
//! slot until the outcome is known. Invariants: a record is sent only when the chunk objects that it
//! references are durable. A commit is settled only when all before it are. No flush succeeds before its
//! commit is settled.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::change::{Permits, record_is_full};
use crate::metrics::labels::ObjectKind;
use crate::mutant::{self, Mutant};
use crate::volume::cache::fetch::{CacheKey, Unit};
use crate::volume::cache::held::{Held, mask_of};
use crate::volume::error::Error;
use crate::volume::format::codec::Checksum;
use crate::volume::format::geometry::{BLOCK_BYTES, BLOCK_LEN, PAGE_BYTES, PAGE_LEN};
use crate::volume::format::head::Checkpoint;
use crate::volume::format::interval::{IntervalMap, gaps};
use crate::volume::format::keys::Slot;
use crate::volume::format::record::{Change, RecordKind, RecordWriter};
use crate::volume::format::root::Root;
use crate::volume::format::snapshot::Snapshot;
use crate::volume::read::replaced::{self, Blocks};
use crate::volume::shared::{Progress, Shared};
use crate::volume::state::layer::DirtyLayer;
use crate::volume::state::piece::{ChunkRef, DataPlace, Piece, RecordRef, are_blocks, insert_data};
use crate::volume::state::segments::Committed;
use crate::volume::state::{InFlight, Sent, Stage, State, Status};
use crate::volume::store_exact::{Placed, create_exact};

/// Weight of the newest sample in the moving average of PUT latency.
const LATENCY_WEIGHT: u32 = 8;
/// Divisor: after the last cut, a flush waits for this fraction of the recent PUT latency so that more
/// flushes can share the commit.
const GATHER_PART: u32 = 8;

/// The task that cuts and makes records.
#[derive(Debug)]
pub(crate) struct Committer {
    shared: Arc<Shared>,
    sender: Arc<Sender>,
    /// Checksum of the last record made.
    previous: Checksum,
    last_cut: Option<Instant>,
}

/// Sends records and settles their commits: what the committer shares with the tasks that send.
#[derive(Debug)]
struct Sender {
    shared: Arc<Shared>,
    /// Moving average of the duration of a record's PUT.
    put_latency: Mutex<Duration>,
}

/// What the committer does next.
enum Next {
    Cut,
    Wait(Option<Instant>),
    End,
}

impl Committer {
    pub(crate) fn new(shared: Arc<Shared>, previous: Checksum) -> Self {
        let put_latency = Mutex::new(Duration::ZERO);
        let sender = Arc::new(Sender { shared: Arc::clone(&shared), put_latency });
        Self { shared, sender, previous, last_cut: None }
    }

    /// Runs until the volume stops.
    pub(crate) async fn run(mut self) {
        loop {
            let now = Instant::now();
            let next = {
                let mut state = self.shared.state.lock();
                let next = self.next(&state, now);
                if matches!(next, Next::Cut) {
                    state.cut(self.shared.geometry, now, None);
                    self.shared.gauge(&state);
                }
                next
            };
            self.send_frozen();
            match next {
                Next::Cut => self.last_cut = Some(now),
                Next::Wait(None) => self.shared.commit_wake.notified().await,
                Next::Wait(Some(until)) => {
                    tokio::select! {
                        biased;
                        () = self.shared.commit_wake.notified() => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
                Next::End => return,
            }
        }
    }

    fn next(&self, state: &State, now: Instant) -> Next {
        let options = &self.shared.options;
        if matches!(state.status, Status::Stopped(_)) {
            return Next::End;
        }
        let Some(since) = state.dirty_since else { return Next::Wait(None) };
        if state.in_flight.len() >= options.commits_in_flight {
            return Next::Wait(None);
        }
        if state.flushes > 0 || record_is_full(&self.shared, state) || self.writes_starve(state) {
            let gather = *self.sender.put_latency.lock() / GATHER_PART;
            return match self.last_cut.map(|last| last + gather) {
                Some(earliest) if !state.in_flight.is_empty() && now < earliest => Next::Wait(Some(earliest)),
                _ => Next::Cut,
            };
        }
        let due = since + options.commit_max_age;
        if now < due {
            return Next::Wait(Some(due));
        }
        // A stream is filling chunks: the cut waits until the next one is full, so that each chunk is sent
        // once.
        let deadline = due + options.commit_chunk_wait;
        match state.filled_at {
            Some(filled) if filled < due && now < deadline => Next::Wait(Some(deadline)),
            _ => Next::Cut,
        }
    }

    /// Whether writes wait for the dirty budget and a cut would free a good part of it.
    fn writes_starve(&self, state: &State) -> bool {
        let most = self.shared.options.commit_max_bytes / BLOCK_BYTES;
        let share = most.min(self.shared.env.budget.total() as u64).div_ceil(4);
        state.waiting_writes > 0 && state.dirty.block_count() as u64 >= share
    }

    /// Makes the records of commits that were cut, in order, and starts sending them.
    fn send_frozen(&mut self) {
        loop {
            let frozen = {
                let state = self.shared.state.lock();
                let is_sent = |commit: &&InFlight| matches!(commit.stage, Stage::Sent(_));
                if state.in_flight.iter().filter(is_sent).count() >= self.shared.options.commits_in_flight {
                    return;
                }
                state.in_flight.iter().find_map(|commit| match &commit.stage {
                    Stage::Frozen(layer) => {
                        Some((commit.n, Arc::clone(layer), commit.resized, commit.snapshot.clone()))
                    }
                    Stage::Sent(_) => None,
                })
            };
            let Some((n, layer, resized, snapshot)) = frozen else { return };
            let slot = Slot { epoch: self.shared.epoch, n };
            let ending = (resized, snapshot.as_ref());
            let (sent, body) = make_record(&self.shared, slot, self.previous, &layer, ending);
            self.previous = sent.end.checksum;
            let sent = Arc::new(sent);
            {
                let mut state = self.shared.state.lock();
                let commit = state.in_flight.iter_mut().find(|commit| commit.n == n);
                commit.expect("only settled commits leave, and this was not sent").stage =
                    Stage::Sent(Arc::clone(&sent));
            }
            // Waits for superseded chunks too: they are deleted later, which must not happen before they
            // exist.
            let chunks = layer.chunks().chain(layer.superseded()).map(Arc::clone).collect();
            let sender = Arc::clone(&self.sender);
            self.shared.tasks.spawn_until_cancelled(sender.send(slot, chunks, body));
        }
    }
}

/// Makes the record of a frozen layer: zeros first, then chunks, then data, from the bottom up. What the
/// commit ends with is last: a new size, or a snapshot, which contains all of them.
fn make_record(
    shared: &Shared,
    slot: Slot,
    previous: Checksum,
    layer: &DirtyLayer,
    (resized, snapshot): (Option<u64>, Option<&Snapshot>),
) -> (Sent, Bytes) {
    let (sealing, nonce) = (shared.keys.sealing(), shared.env.entropy.next_u64());
    let pages = shared.geometry.pages_per_chunk();
    let mut writer = RecordWriter::new(sealing, RecordKind::Commit, slot, slot.epoch, nonce, previous, pages);
    let mut pieces = IntervalMap::default();
    for (range, hole) in layer.zeros() {
        writer.change(Change::Zero { offset: range.start, length: range.end - range.start, hole });
        pieces.insert(range, Piece::Zero { hole });
    }
    for chunk in layer.chunks() {
        writer.change(Change::Chunk { index: chunk.index, id: chunk.id, stored: chunk.stored });
        pieces.insert(shared.geometry.chunk_range(chunk.index), Piece::Chunk(Arc::clone(chunk), 0));
    }
    if mutant::is(Mutant::ZerosAfterChunks) {
        for (range, hole) in layer.zeros() {
            writer.change(Change::Zero { offset: range.start, length: range.end - range.start, hole });
        }
    }
    let mut run: Vec<(Range<u64>, Bytes)> = Vec::new();
    for (range, bytes) in layer.runs() {
        let joins = run
            .last()
            .is_some_and(|(last, _)| last.end == range.start && !range.start.is_multiple_of(PAGE_BYTES));
        if !joins && !run.is_empty() {
            add_run(&mut writer, std::mem::take(&mut run));
        }
        run.push((range, bytes));
    }
    if !run.is_empty() {
        add_run(&mut writer, run);
    }
    if let Some(size_bytes) = resized {
        writer.change(Change::Resize { size_bytes });
    }
    if let Some(snapshot) = snapshot {
        writer.change(Change::Snapshot(snapshot.clone()));
    }
    let (record, body, checksum) = writer.finish_within(|bytes| shared.buffers().take(bytes));
    let body = shared.buffers().lend(body);
    let reference = Arc::new(RecordRef::new(&record, Some(body.clone())));
    insert_data(&reference, &record.changes, &mut pieces);
    let record = (record.data_bytes > 0).then_some(reference);
    let chunks = layer.chunks().filter(|c| !c.stored.is_empty()).map(|c| (c.index, c.id)).collect();
    let superseded =
        layer.superseded().iter().filter(|c| !c.stored.is_empty()).map(|c| (c.index, c.id)).collect();
    let sent = Sent {
        pieces,
        record,
        bytes: body.len() as u64,
        end: Checkpoint { slot, checksum },
        chunks,
        superseded,
        resized,
        snapshot: snapshot.cloned(),
    };
    (sent, body)
}

fn add_run(writer: &mut RecordWriter, mut run: Vec<(Range<u64>, Bytes)>) {
    let start = run[0].0.start;
    let bytes = match run.len() {
        1 => run.remove(0).1,
        _ => Bytes::from(run.iter().map(|(_, bytes)| &bytes[..]).collect::<Vec<_>>().concat()),
    };
    writer.data(start, bytes);
}

impl Sender {
    /// Sends a record until its outcome is known, then settles it.
    async fn send(self: Arc<Self>, slot: Slot, chunks: Vec<Arc<ChunkRef>>, body: Bytes) {
        let shared = &self.shared;
        for chunk in chunks {
            if !mutant::is(Mutant::RecordBeforeChunks) {
                chunk.uploaded.wait(|uploaded| uploaded.then_some(())).await;
            }
        }
        let begun = Instant::now();
        let key = shared.keys.record(slot);
        let journal = shared.env.store.journal.as_ref();
        let body = if mutant::is(Mutant::SlotRecut)
            && tokio::time::timeout(Duration::from_millis(500), create_exact(journal, &key, &body))
                .await
                .is_err()
        {
            make_record(shared, slot, Checksum::default(), &DirtyLayer::default(), (None, None)).1
        } else {
            body
        };
        loop {
            match create_exact(journal, &key, &body).await {
                Ok(Placed::Other(_) | Placed::Larger(_)) if mutant::is(Mutant::TakenSlotIgnored) => break,
                Ok(Placed::Ours) => {
                    shared.metrics.put_bytes.of(ObjectKind::Journal).inc_by(body.len() as u64);
                    break;
                }
                Ok(Placed::Other(found)) => {
                    let what = crate::volume::format::fence::describe(shared.keys.sealing(), slot, &found);
                    return shared
                        .fence(format!("another gateway took the volume over: {what} stands at {key}"));
                }
                Ok(Placed::Larger(bytes)) => {
                    return shared.fence(format!("another's record of {bytes} bytes stands at {key}"));
                }
                Err(error) => {
                    tracing::error!(%key, "commit record not durable yet, sending it again: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        let took = begun.elapsed();
        drop(body);
        {
            let mut latency = self.put_latency.lock();
            *latency = match latency.is_zero() {
                true => took,
                false => (*latency * (LATENCY_WEIGHT - 1) + took) / LATENCY_WEIGHT,
            };
        }
        self.settle(slot.n).await;
    }

    /// Marks a commit durable. Merges it and the durable commits after it into the committed state, up to the
    /// first gap.
    async fn settle(&self, n: u64) {
        let shared = &self.shared;
        // Each with the parts that changes which are not folded yet had replaced already.
        let mut settled: Vec<(InFlight, Vec<Range<u64>>)> = Vec::new();
        let mut replaced = Blocks::new();
        let now = Instant::now();
        let (fold, below);
        {
            let mut state = shared.state.lock();
            if matches!(state.status, Status::Stopped(_)) {
                return;
            }
            let commit = state.in_flight.iter_mut().find(|commit| commit.n == n);
            commit.expect("only settled commits leave, and this one is settled now").durable = true;
            while state.in_flight.front().is_some_and(|commit| commit.durable) {
                let commit = state.in_flight.pop_front().expect("just seen");
                let Stage::Sent(sent) = &commit.stage else { panic!("durable before it was sent") };
                let mut known = Vec::new();
                state.committed.merge(sent, now, |range, piece| {
                    note_replaced(&mut replaced, shared, &range, piece);
                    known.push(range);
                });
                settled.push((commit, known));
            }
            below = (state.folding.clone(), Arc::clone(&state.root));
            fold = shared.wants_fold(&state);
            shared.gauge(&state);
        }
        if mutant::is(Mutant::AnsweredOutOfOrder) {
            shared.progress.update(|progress| progress.durable_n = progress.durable_n.max(n));
        }
        let Some((last, _)) = settled.last() else { return };
        let durable_n = last.n;
        shared.progress.update(|progress| progress.durable_n = progress.durable_n.max(durable_n));
        shared.commit_wake.notify_one();
        if fold {
            shared.fold_wake.notify_one();
        }
        // The permits are returned however this ends: a task may be cancelled at any await.
        let held =
            |(commit, known): (InFlight, _)| (Permits { shared, permits: commit.permits }, commit, known);
        let settled: Vec<_> = settled.into_iter().map(held).collect();
        shared.env.cache.let_go(replaced).await;
        for (_permits, commit, known) in settled {
            if let Stage::Sent(sent) = &commit.stage {
                self.let_go_below(sent, known, &below).await;
                shared.metrics.commits.inc();
                shared.metrics.commit_bytes.inc_by(sent.bytes);
                shared.metrics.commit_duration.observe((now - commit.cut_at).as_secs_f64());
                shared.metrics.commit_group.observe(f64::from(commit.flushes));
                self.leave_memory(sent).await;
            }
        }
        shared.rest_buffers();
    }

    /// Lets go of the blocks that a commit has replaced in what is `below` the commits that are not folded
    /// yet. `known` are the parts of the commit below which it replaces nothing.
    async fn let_go_below(
        &self,
        sent: &Sent,
        known: Vec<Range<u64>>,
        below: &(Option<Arc<Committed>>, Arc<Root>),
    ) {
        let Shared { env, keys, .. } = &*self.shared;
        let (folding, root) = below;
        let first = first_changes(sent, known);
        env.cache.let_go(replaced::in_base(env, *keys, root, &first).await).await;
        // The fold still needs these. It can fetch them, if otherwise what clients read had to go.
        if let Some(folding) = folding
            && !env.cache.has_room(sent.bytes)
        {
            env.cache.let_go(replaced::in_changes(*keys, folding, &first)).await;
        }
    }

    /// Moves the data of a durable record from its body into the page cache.
    async fn leave_memory(&self, sent: &Sent) {
        let shared = &self.shared;
        let Some(record) = &sent.record else { return };
        let body = record.body.lock().clone().expect("only this drops it");
        for (change, held) in held_of(record, &body) {
            let key = CacheKey { volume: shared.keys.volume(), unit: Unit::Change(record.slot, change) };
            shared.env.cache.insert(key, held).await;
        }
        shared.env.cache.settle().await;
        *record.body.lock() = None;
    }
}

/// Returns the pieces of the cache that a record consists of, each with the number of the change that names
/// it. Changes that are replaced are left out. `body` is the bytes of the record.
fn held_of<'a>(record: &'a RecordRef, body: &'a [u8]) -> impl Iterator<Item = (u32, Held)> + 'a {
    let mut left = record.left().peekable();
    std::iter::from_fn(move || {
        let (change, place) = left.next()?;
        let bytes = |place: DataPlace| {
            let start = usize::try_from(place.at).expect("within the record");
            &body[start..start + place.length as usize]
        };
        let (named, blocks) = record.held_as(change);
        if !are_blocks(place.length) {
            return Some((named, Held::whole(Bytes::copy_from_slice(bytes(place)))));
        }
        if blocks.len() == PAGE_LEN / BLOCK_LEN {
            return Some((named, Held::new(mask_of(&blocks), Bytes::copy_from_slice(bytes(place)))));
        }
        let (mut mask, mut apart) = (0, Vec::with_capacity(PAGE_LEN / BLOCK_LEN));
        let mut next = Some((place, blocks));
        while let Some((place, blocks)) = next {
            mask |= mask_of(&blocks);
            apart.extend(bytes(place).chunks(BLOCK_LEN).map(Bytes::copy_from_slice));
            let more = left
                .next_if(|(change, place)| are_blocks(place.length) && record.held_as(*change).0 == named);
            next = more.map(|(change, place)| (place, record.held_as(change).1));
        }
        Some((named, Held::apart(mask, apart)))
    })
}

/// Returns the parts of a commit's small changes that no change had replaced before which is not folded yet.
/// `known` are the others, in order. Zeros and chunks are left out: they may cover all of a disk.
fn first_changes(sent: &Sent, known: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut known = known.into_iter().peekable();
    let mut first = Vec::new();
    for (range, piece) in sent.pieces.iter() {
        let within = std::iter::from_fn(|| known.next_if(|part| part.end <= range.end));
        let parts = gaps(range.clone(), within);
        if let Piece::Data { .. } = piece {
            first.extend(parts);
        }
    }
    first
}

/// Records which blocks in the cache nobody will read again, because a later change has replaced them, or the
/// last part of what they belong to. `range` is the part of `piece` that was replaced.
fn note_replaced(blocks: &mut Blocks, shared: &Shared, range: &Range<u64>, piece: &Piece) {
    match piece {
        Piece::Data { record, change, .. } if record.replace(*change, range.end - range.start) => {
            let (named, replaced) = record.held_as(*change);
            let key = CacheKey { volume: shared.keys.volume(), unit: Unit::Change(record.slot, named) };
            *blocks.entry(key).or_default() |= mask_of(&replaced);
        }
        // Zeros may replace all of a disk. A small change is at most a page.
        Piece::Chunk(chunk, _) if range.end - range.start <= PAGE_BYTES => {
            let start = shared.geometry.chunk_range(chunk.index).start;
            replaced::add_chunk(blocks, shared.keys, chunk, &(range.start - start..range.end - start));
        }
        _ => {}
    }
}

/// Returns when every change applied before the call is as durable as the answer to a FLUSH promises.
pub(crate) async fn flush(shared: &Shared) -> Result<(), Error> {
    commit_all(shared, Progress::answers_flush).await
}

/// Returns when every change applied before the call is in the bucket.
pub(crate) async fn into_bucket(shared: &Shared) -> Result<(), Error> {
    commit_all(shared, Progress::is_in_bucket).await
}

/// Commits every change applied before the call. Returns once the progress is `enough` for the last commit.
async fn commit_all(shared: &Shared, enough: fn(&Progress, u64) -> bool) -> Result<(), Error> {
    let target = {
        let mut state = shared.state.lock();
        if let Status::Stopped(why) = &state.status {
            return Err(Error::Stopped(why.clone()));
        }
        if state.dirty.is_empty() {
            state.next_n - 1
        } else {
            state.flushes += 1;
            shared.commit_wake.notify_one();
            state.next_n
        }
    };
    if mutant::is(Mutant::FlushAnsweredEarly) {
        return Ok(());
    }
    let target = if mutant::is(Mutant::FlushAnsweredByFirst) {
        shared.state.lock().in_flight.front().map_or(target, |first| first.n)
    } else {
        target
    };
    let outcome = shared.wait(|progress| enough(progress, target)).await;
    if outcome.is_err() && mutant::is(Mutant::CleanAfterFailure) {
        shared.state.lock().dirty = DirtyLayer::default();
    }
    outcome
}
