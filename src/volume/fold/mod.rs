//! Folding: turns all commits up to an exact one, and nothing newer, into new objects under a new root.
//!
//! Owns the folding task. Small changes go to packs, which overlays locate; chunks that have many of them are
//! rewritten whole. `map_page` does that for one map page after the other. Reads, writes and commits
//! continue during a fold: the changes being folded stay in effect above the old root until the new one is
//! published. It does not delete anything; `collect` does. Invariants: the new root is the volume at
//! exactly the checkpoint's commit. A head references only durable objects. Nothing is handed to the
//! collector before the head that replaces it is durable.

mod adopt;
mod background;
mod compose;
mod detach;
mod handle;
mod made;
mod map_page;
mod merge;
mod origins;
mod own_pages;
mod packing;
mod page;
mod patience;
mod pins;
mod plan;
mod rewrite;
pub(super) mod snapshots;
mod uniform;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use self::background::{Eagerness, packs_after, victims};
pub(super) use self::handle::{Detached, FoldHandle, Refused};
use self::handle::{REQUESTS, Request, Scope, answer};
use self::made::{Background, Content, Made};
use self::patience::Step;
use crate::metrics::labels::{FoldResult, ObjectKind};
use crate::mutant::{self, Mutant};
use crate::store::ByteRange;
use crate::volume::cache::fetch::{CacheKey, Unit};
use crate::volume::collect::{Collector, Garbage, TableFull, Trash};
use crate::volume::error::Error;
use crate::volume::format::geometry::{BLOCK_BYTES, ChunkIndex};
use crate::volume::format::head::Checkpoint;
use crate::volume::format::keys::ObjectId;
use crate::volume::format::pack;
use crate::volume::format::root::{MapPageRef, Root, RootTable};
use crate::volume::keeper::HeadHandle;
use crate::volume::read::base::names_chunk;
use crate::volume::read::replaced;
use crate::volume::shared::Shared;
use crate::volume::state::piece::Piece;
use crate::volume::state::segments::{Committed, Segments};
use crate::volume::state::{Stage, Status};
use crate::volume::store_exact::{Placed, create_exact, fetch_part_checked};

/// Pause after the first failure of a fold. It doubles with each further one.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause after a fold that failed.
const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Limit on the bytes of chunks that one step of a consolidation rewrites.
const STEP_BYTES: u64 = 256 << 20;

/// The folding task.
#[derive(Debug)]
pub(super) struct Folder {
    shared: Arc<Shared>,
    head: HeadHandle,
    trash: Arc<Trash>,
    requests: mpsc::Receiver<Request>,
    sender: mpsc::Sender<Request>,
    /// The checkpoint in the head.
    last: Mutex<Checkpoint>,
    /// The first chunk that the next consolidation may rewrite. Chunks are consolidated in order of offset,
    /// because then all packs of a range go at once.
    cursor: Mutex<ChunkIndex>,
    /// The map pages that the next adoption is about.
    adopting: Mutex<BTreeSet<u32>>,
}

impl Folder {
    pub(super) fn new(
        shared: Arc<Shared>,
        head: HeadHandle,
        table: RootTable,
        last: Checkpoint,
        unswept: bool,
    ) -> Self {
        let (sender, requests) = mpsc::channel(REQUESTS);
        let trash = Arc::new(Trash::new(table, last.slot, unswept));
        let (last, cursor) = (Mutex::new(last), Mutex::new(ChunkIndex::default()));
        Self { shared, head, trash, requests, sender, last, cursor, adopting: Mutex::default() }
    }

    pub(super) fn handle(&self) -> FoldHandle {
        FoldHandle { requests: self.sender.clone(), trash: Arc::clone(&self.trash) }
    }

    /// Runs until the volume stops, or until [`FoldHandle::rest`] is called.
    pub(super) async fn run(mut self) {
        let collector = Collector::new(Arc::clone(&self.shared), Arc::clone(&self.trash));
        self.shared.tasks.spawn_until_cancelled(collector.run());
        loop {
            let age = self.shared.options.journal_max_age;
            let due = self.shared.state.lock().committed.since().map(|since| since + age);
            let due = due.unwrap_or_else(|| tokio::time::Instant::now() + age);
            let request = tokio::select! {
                biased;
                request = self.requests.recv() => request,
                () = self.shared.fold_wake.notified() => None,
                () = tokio::time::sleep_until(due) => None,
            };
            if self.shared.check_serving().is_err() {
                return;
            }
            // Callers that wait for an answer notice when this task ends and drops their channel.
            let served = match request {
                Some(Request::Fold(scope, done)) => self.fold_all(scope).await.map(|()| answer(done, ())),
                Some(Request::FoldClosed(done)) => self.fold_closed().await.map(|()| answer(done, ())),
                Some(Request::DeleteSnapshot(name, done)) => self.serve_deletion(&name, done).await,
                Some(Request::Pin(name, clone, done)) => self.serve_pin(&name, clone, done).await,
                Some(Request::Unpin(gone, done)) => self.serve_unpinning(&gone, done).await,
                Some(Request::Adopt(from, done)) => self.serve_adoption(from, done).await,
                Some(Request::Detach(own, done)) => self.serve_detachment(own, done).await,
                Some(Request::Restore(name, done)) => self.serve_restoration(&name, done).await,
                Some(Request::Rest(done)) => return answer(done, ()),
                None => self.fold_due(age).await,
            };
            if served.is_err() {
                return;
            }
        }
    }

    /// Folds what is committed now, and every segment that has ended before it.
    async fn fold_all(&self, scope: Scope) -> Result<(), Error> {
        self.fold_closed().await?;
        self.fold_until_done(scope, Made::default()).await
    }

    /// Folds the segments that have ended, with a snapshot or with a new size.
    async fn fold_closed(&self) -> Result<(), Error> {
        while self.shared.state.lock().committed.closed() > 0 {
            self.fold_until_done(Scope::Committed, Made::default()).await?;
        }
        Ok(())
    }

    /// Folds what is due: segments that have ended, and the rest of the journal once it is over its limit or
    /// `age` old.
    async fn fold_due(&self, age: Duration) -> Result<(), Error> {
        self.fold_closed().await?;
        let is_due = {
            let state = self.shared.state.lock();
            let is_old = |since: tokio::time::Instant| since.elapsed() >= age;
            self.shared.wants_fold(&state) || state.committed.since().is_some_and(is_old)
        };
        if is_due { self.fold_until_done(Scope::Committed, Made::patient()).await } else { Ok(()) }
    }

    /// Folds the oldest segment, with retries. Returns an error only once the volume has stopped.
    async fn fold_until_done(&self, scope: Scope, made: Made) -> Result<(), Error> {
        let Some(folding) = self.begin(scope) else { return Ok(()) };
        let begun = tokio::time::Instant::now();
        let mut pause = RETRY_PAUSE;
        loop {
            let Err(error) = self.fold(scope, &folding, &made).await else { break };
            if mutant::is(Mutant::CleansUpWhenFenced) && self.shared.check_serving().is_err() {
                self.shared.env.store.delete(&made.take_unfinished()).await?;
            }
            self.shared.check_serving()?;
            // Nothing was published, so nothing references these objects.
            self.trash.add(&self.shared, Garbage::Orphans(made.take_unfinished()));
            self.shared.metrics.folds.of(FoldResult::Failed).inc();
            tracing::warn!(volume = %self.shared.keys.volume(),
                ?pause, finished_chunks = made.finished_chunks(),
                "checkpoint failed, trying again with what is finished: {error}");
            // Jitter: gateways that failed together should not retry together.
            let share = u32::try_from(self.shared.env.entropy.next_u64() % 256).expect("below 256");
            tokio::time::sleep(pause / 2 + pause * share / 512).await;
            pause = LONGEST_RETRY_PAUSE.min(pause * 2);
        }
        self.shared.metrics.folds.of(FoldResult::Done).inc();
        self.shared.metrics.fold_duration.observe(begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Begins a step of a fold. Reads of clients go first if they wait for the store or occupy the
    /// processors, unless somebody waits for the fold: a request, a snapshot, the end of the volume, or soon
    /// writes, because the journal grows.
    async fn step<'a>(&self, made: &'a Made) -> Option<Step<'a>> {
        let is_pressed = || {
            let options = &self.shared.options;
            let state = self.shared.state.lock();
            let newer = state.committed.weight() + state.coming_weight(self.shared.geometry);
            !self.requests.is_empty()
                || !matches!(state.status, Status::Serving)
                || state.committed.closed() > 0
                || newer >= options.journal_max_bytes / 2
                || state.committed.records() >= options.journal_max_records / 2
        };
        let patience = made.patience.as_ref()?;
        Some(patience.step(self.shared.env.cache.reads(), is_pressed).await)
    }

    /// Moves the oldest segment into the state of being folded.
    fn begin(&self, scope: Scope) -> Option<Arc<Committed>> {
        let mut state = self.shared.state.lock();
        assert!(state.folding.is_none(), "one task folds");
        if state.committed.is_empty() && scope == Scope::Committed {
            return None;
        }
        let mut folding = state.committed.take_oldest();
        folding.end.get_or_insert(*self.last.lock());
        if mutant::is(Mutant::FoldsNewer)
            && let Some(Stage::Sent(newest)) = state.in_flight.back().map(|commit| &commit.stage)
        {
            for (range, piece) in newest.pieces.iter().step_by(2) {
                folding.pieces.insert(range, piece.clone());
            }
        }
        if mutant::is(Mutant::SegmentsMixed)
            && folding.snapshot.is_some()
            && let Some(next) = state.committed.oldest_first().next()
        {
            for (range, piece) in next.pieces.iter() {
                folding.pieces.insert(range, piece.clone());
            }
        }
        let folding = Arc::new(folding);
        state.folding = Some(Arc::clone(&folding));
        Some(folding)
    }

    /// Folds and publishes. `made` collects the names of the objects that this attempt makes.
    async fn fold(&self, scope: Scope, folding: &Committed, made: &Made) -> Result<(), Error> {
        let shared = &self.shared;
        let checkpoint = folding.end.expect("what is folded has records");
        let old = Arc::clone(&shared.state.lock().root);
        assert!(checkpoint.slot >= old.commit, "a checkpoint goes forward");
        let (root, table) = match self.make_root(scope, &old, folding, checkpoint, made).await? {
            Some(root) => {
                let now = (shared.env.wall_clock)();
                let snapshot = folding.snapshot.clone();
                let table = self.trash.next_table(shared.next_id(), &old, &root, old.id, snapshot, now);
                let table = table.map_err(|TableFull| self.table_full())?;
                (Arc::new(root), Some(table))
            }
            None => (Arc::clone(&old), None),
        };
        let old_table = self.trash.table_id();
        if mutant::is(Mutant::HeadBeforeRoot)
            && let Some(table) = &table
        {
            self.head.publish(shared, checkpoint, root.id, table.id).await?;
        }
        if let Some(table) = &table {
            let sealing = shared.keys.sealing();
            for (id, bytes) in [(root.id, root.encode(sealing)), (table.id, table.encode(sealing))] {
                put_new(shared, ObjectKind::Root, made.note(shared.keys.root(id)), bytes).await?;
            }
        }
        let table_id = table.as_ref().map_or(old_table, |table| table.id);
        self.head.publish(shared, checkpoint, root.id, table_id).await?;
        // The table keeps the new root before the changes that it contains leave the state, so a scan for
        // leftovers finds each chunk here or there.
        let replaced_table = table.as_ref().map(|_| old_table);
        if let Some(table) = table {
            self.trash.set_table(table);
        }
        {
            let mut state = shared.state.lock();
            state.root = Arc::clone(&root);
            state.folding = None;
            if mutant::is(Mutant::NewerDropped) {
                state.committed = Segments::default();
            }
            shared.gauge(&state);
        }
        self.trash.set_folded(checkpoint.slot);
        *self.last.lock() = checkpoint;
        *self.cursor.lock() =
            made.background.lock().as_ref().map_or(ChunkIndex::default(), |background| background.cursor);
        shared.progress.update(|progress| progress.checkpoints += 1);
        let now = (shared.env.wall_clock)();
        shared.metrics.checkpoint_time.set(i64::try_from(now).unwrap_or(i64::MAX));
        tracing::debug!(volume = %shared.keys.volume(), ?checkpoint.slot, records = folding.slots.len(),
            bytes = folding.bytes, "checkpoint published");
        shared.gauge_root(&root);
        self.forget_folded(&old, &root, folding).await;
        self.discard(&old, &root, replaced_table, folding).await;
        shared.rest_buffers();
        Ok(())
    }

    /// Removes from the cache what reads find under a new name from now on.
    async fn forget_folded(&self, old: &Root, root: &Root, folding: &Committed) {
        let (cache, volume) = (&self.shared.env.cache, self.shared.keys.volume());
        let mut folded: BTreeSet<Unit> = BTreeSet::new();
        for (_, piece) in folding.pieces.iter() {
            if let Piece::Data { record, change, .. } = piece {
                folded.insert(Unit::Change(record.slot, record.held_as(*change).0));
                folded.insert(Unit::Run(record.slot, record.run_of(*change)));
            }
        }
        cache.remove(folded.into_iter().map(|unit| CacheKey { volume, unit })).await;
        let newer: Vec<Range<u64>> = {
            let state = self.shared.state.lock();
            let pieces = state.committed.oldest_first().flat_map(|segment| segment.pieces.iter());
            // The others may cover all of the disk.
            pieces.filter(|(_, piece)| matches!(piece, Piece::Data { .. })).map(|(range, _)| range).collect()
        };
        cache.let_go(replaced::in_base(&self.shared.env, self.shared.keys, root, &newer).await).await;
        cache.settle().await;
        for (number, replaced) in &old.map_pages {
            if replaced.origin == 0 && root.map_pages.get(number).is_none_or(|page| page.id != replaced.id) {
                let unit = Unit::Map(*number, replaced.id);
                cache.remove_map_view(&CacheKey { volume, unit }).await;
            }
        }
    }

    fn table_full(&self) -> Error {
        Error::TableFull { key: self.shared.keys.root(self.trash.table_id()) }
    }

    /// Hands what the checkpoint replaced to the collector.
    async fn discard(&self, old: &Root, root: &Root, replaced_table: Option<ObjectId>, folding: &Committed) {
        let shared = &self.shared;
        let mut names = Vec::new();
        if let Some(table) = replaced_table {
            names.push(shared.keys.root(table));
            // A snapshot or a clone may keep the old root.
            if self.trash.is_retired(old.id) {
                self.trash.add(shared, Garbage::Root(old.id));
            }
        }
        let superseded = folding.superseded.iter().map(|(index, id)| shared.keys.chunk(*index, *id));
        self.trash.add(shared, Garbage::Orphans(superseded.collect()));
        for (index, id) in &folding.chunks {
            match names_chunk(shared, root, *index, *id).await {
                Ok(true) => {}
                Ok(false) => names.push(shared.keys.chunk(*index, *id)),
                // Left to the sweep, together with the records that reference it.
                Err(error) => {
                    tracing::warn!("folded records are kept until the next opening: {error}");
                    self.trash.add(shared, Garbage::Objects(names));
                    return;
                }
            }
        }
        // Chunk objects that only folded records reference are deleted before those records.
        names.extend(folding.slots.iter().map(|slot| shared.keys.record(*slot)));
        self.trash.add(shared, Garbage::Objects(names));
    }

    /// Makes the root at the checkpoint. Returns `None` if nothing changed.
    async fn make_root(
        &self,
        scope: Scope,
        old: &Root,
        folding: &Committed,
        checkpoint: Checkpoint,
        made: &Made,
    ) -> Result<Option<Root>, Error> {
        let shared = &self.shared;
        self.decide_background(scope, old, folding, made).await?;
        let mut root = Root { commit: checkpoint.slot, ..old.clone() };
        let affected = self.affected(scope, old, folding, checkpoint, &mut root, made);
        // A snapshot gets a root of its own, even if it contains the same as the one before.
        if affected.is_empty() && folding.pieces.is_empty() && !folding.is_closed() {
            return Ok(None);
        }
        // Checked before anything is made.
        self.trash.check_room().map_err(|TableFull| self.table_full())?;
        let mut released: BTreeMap<ObjectId, u32> = BTreeMap::new();
        for number in affected {
            let folded = match made.finished_map_page(number) {
                Some(folded) => folded,
                None => self.fold_map_page(old, folding, checkpoint.slot, number, made).await?,
            };
            made.finish_map_page(shared.keys, number, folded.clone());
            match folded.content {
                Content::Object(id, counts) => root.set_page(number, MapPageRef { origin: 0, id, counts }),
                Content::Uniform(zeroed) => root.set_uniform(number..number + 1, zeroed),
            }
            for (pack, frames) in folded.released {
                *released.entry(pack).or_default() += frames;
            }
        }
        if let Some(size_bytes) = folding.resized
            && !mutant::is(Mutant::ResizeUnfolded)
        {
            root.resize(size_bytes);
        }
        let mut packs = made.packs.lock().await;
        packs.close(shared).await;
        self.send_packs(&mut packs, made).await?;
        let emptied = made.background.lock().as_mut().map(|background| background.emptied.clone());
        root.packs = packs_after(&old.packs, packs.frames(), &released, &emptied.unwrap_or_default());
        root.id = shared.next_id();
        Ok(Some(root))
    }

    /// Returns the map pages that must be folded. Map pages that changes make uniform are so in `root`
    /// afterwards.
    fn affected(
        &self,
        scope: Scope,
        old: &Root,
        folding: &Committed,
        checkpoint: Checkpoint,
        root: &mut Root,
        made: &Made,
    ) -> BTreeSet<u32> {
        let shared = &self.shared;
        let is_overlaid = |page: &MapPageRef| page.counts.overlaid > 0;
        let reach = folding.reach(old.size_bytes);
        let mut affected = BTreeSet::new();
        for (range, piece) in folding.pieces.iter() {
            let touched = uniform::map_pages_of(shared.geometry, &range);
            match piece {
                Piece::Zero { hole } => {
                    let whole = uniform::whole_map_pages(shared.geometry, reach, &range);
                    affected.extend(touched.start..whole.start);
                    affected.extend(whole.end..touched.end);
                    if !whole.is_empty() {
                        // Packs that these map pages use are released one map page at a time.
                        let overlaid =
                            old.map_pages.range(whole.clone()).filter(|(_, page)| is_overlaid(page));
                        affected.extend(overlaid.map(|(number, _)| *number));
                        root.set_uniform(whole, (!hole).then_some(checkpoint.slot));
                    }
                }
                _ => affected.extend(touched),
            }
        }
        if let Some(background) = &*made.background.lock() {
            affected.extend(background.moves.keys());
            affected.extend(&background.adopts);
        }
        if scope == Scope::Consolidate {
            let overlaid = old.map_pages.iter().filter(|(_, page)| is_overlaid(page));
            affected.extend(overlaid.map(|(number, _)| *number));
        }
        affected
    }

    /// Decides once, before the first attempt, which background work the fold does.
    async fn decide_background(
        &self,
        scope: Scope,
        old: &Root,
        folding: &Committed,
        made: &Made,
    ) -> Result<(), Error> {
        if made.background.lock().is_some() {
            return Ok(());
        }
        let shared = &self.shared;
        let space = old.space();
        let eagerness = Eagerness::of(space, &shared.options);
        let is_data = |piece: &Piece| matches!(piece, Piece::Data { .. } | Piece::Block(_));
        let written = folding.pieces.iter().filter(|(_, piece)| is_data(piece));
        let written: u64 = written.map(|(range, _)| range.end - range.start).sum();
        let chunk_bytes = shared.geometry.chunk_bytes();
        let mut background = match scope {
            Scope::Consolidate => Background {
                budget: STEP_BYTES.max(chunk_bytes),
                consolidate_from: 1,
                ..Background::default()
            },
            Scope::Adopt => Background {
                budget: STEP_BYTES.max(chunk_bytes),
                consolidate_from: u64::MAX,
                spares_shared: true,
                adopts: self.adopting.lock().clone(),
                ..Background::default()
            },
            Scope::Committed => Background {
                // At least one chunk, or nothing if background work is turned off.
                budget: eagerness.budget(space, written).max(chunk_bytes.min(eagerness.percent << 32)),
                consolidate_from: (shared.geometry.blocks_per_chunk() * eagerness.consolidate_percent / 100)
                    .max(1),
                spares_shared: true,
                from: *self.cursor.lock(),
                ..Background::default()
            },
        };
        if scope == Scope::Committed {
            self.choose_moves(old, eagerness, &mut background).await?;
        }
        *made.background.lock() = Some(background);
        Ok(())
    }

    /// Chooses the packs to rewrite, and finds out which blocks they have.
    async fn choose_moves(
        &self,
        old: &Root,
        eagerness: Eagerness,
        background: &mut Background,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        let frames = packing::most_frames(shared);
        for (id, pack) in victims(old, eagerness, frames, background.budget) {
            let key = shared.keys.pack(id);
            let index = pack::index_range(pack.frames);
            let range = ByteRange::Bounded { offset: index.start, length: index.end - index.start };
            let decode = |body: &[u8]| pack::decode_index(shared.keys.sealing(), id, pack.frames, body);
            let store = shared.env.store.bulk.as_ref();
            let blocks = match fetch_part_checked(store, &key, range, decode).await {
                Ok(blocks) => blocks,
                Err(error) => match error.referenced(key) {
                    lost if lost.is_loss() => {
                        tracing::warn!(volume = %shared.keys.volume(), "a pack cannot be rewritten: {lost}");
                        continue;
                    }
                    error => return Err(error),
                },
            };
            let map_page_blocks = u64::from(shared.geometry.map_page_blocks());
            for block in blocks {
                // A pack has no blocks beyond the end of the volume, unless its index lies.
                let Ok(number) = u32::try_from(block.0 / map_page_blocks) else { continue };
                if old.map_pages.contains_key(&number) {
                    background.moves.entry(number).or_default().push((block, id));
                }
            }
            background.emptied.push(id);
            let moved = u64::from(pack.live) * BLOCK_BYTES;
            background.budget = background.budget.saturating_sub(moved);
        }
        Ok(())
    }

    /// Begins a step of a fold by sending the packs that the last step completed.
    async fn sending_step<'a>(
        &self,
        packs: &mut packing::Packs,
        made: &'a Made,
    ) -> Result<Option<Step<'a>>, Error> {
        let step = self.step(made).await;
        self.send_packs(packs, made).await?;
        Ok(step)
    }

    /// Sends the complete packs. Their names are recorded before.
    async fn send_packs(&self, packs: &mut packing::Packs, made: &Made) -> Result<(), Error> {
        made.note_for_all(packs.keys(&self.shared));
        packs.send(&self.shared).await
    }
}

/// Creates an object under a name that was never used.
async fn put_new(shared: &Shared, kind: ObjectKind, key: String, bytes: Vec<u8>) -> Result<(), Error> {
    shared.metrics.put_bytes.of(kind).inc_by(bytes.len() as u64);
    match create_exact(shared.env.store.bulk.as_ref(), &key, &Bytes::from(bytes)).await? {
        Placed::Ours => Ok(()),
        Placed::Other(_) | Placed::Larger(_) => Err(Error::NameTaken { key }),
    }
}
