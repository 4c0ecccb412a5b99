//! Folding: turns all commits up to an exact one, and nothing newer, into new objects under a new root.
//!
//! Owns the folding task. Reads, writes and commits continue during a fold: the changes being folded stay in
//! effect above the old root until the new one is published. It does not delete anything; `collect` does.
//! Invariants: the new root is the volume at exactly the checkpoint's commit. A head references only durable
//! objects. Nothing is handed to the collector before the head that replaces it is durable.

mod made;
mod rewrite;
mod uniform;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::sync::{mpsc, oneshot};

use self::made::{FoldedPage, Made};
use crate::metrics::labels::{FoldResult, ObjectKind};
use crate::mutant::{self, Mutant};
use crate::volume::cache::fetch::{CacheKey, Unit};
use crate::volume::collect::{Collector, Garbage, TableFull, Trash};
use crate::volume::error::Error;
use crate::volume::format::geometry::ChunkIndex;
use crate::volume::format::head::Checkpoint;
use crate::volume::format::keys::{ObjectId, Slot};
use crate::volume::format::map::{Base, Entry, MapPage};
use crate::volume::format::page_set::PageSet;
use crate::volume::format::root::{MapPageRef, Root, RootTable};
use crate::volume::keeper::HeadHandle;
use crate::volume::read::base::{self, LoadedMapPage, Mapped, names_chunk};
use crate::volume::shared::Shared;
use crate::volume::state::piece::Piece;
use crate::volume::state::{Committed, Stage, State};
use crate::volume::store_exact::{Placed, confirm_gone, create_exact};

/// Limit on waiting requests to the folding task.
const REQUESTS: usize = 16;
/// Pause after the first failure of a fold. It doubles with each further one.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause after a fold that failed.
const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(10);

/// A request to the folding task.
#[derive(Debug)]
enum Request {
    /// Fold what is committed, and answer when the checkpoint is published.
    Fold(oneshot::Sender<()>),
    /// Fold nothing more, and answer when no fold is running.
    Rest(oneshot::Sender<()>),
}

/// Sends requests to the folding task.
#[derive(Clone, Debug)]
pub(super) struct FoldHandle {
    requests: mpsc::Sender<Request>,
    trash: Arc<Trash>,
}

impl FoldHandle {
    /// Folds everything that is committed now. Returns once the checkpoint is published.
    pub(super) async fn fold(&self, shared: &Shared) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        if mutant::is(Mutant::CheckpointUnawaited) {
            return self.requests.try_send(Request::Fold(done)).or(Ok(()));
        }
        if self.requests.send(Request::Fold(done)).await.is_err() || answer.await.is_err() {
            shared.check_serving()?;
            return Err(Error::Stopped("the volume is closed".to_owned()));
        }
        Ok(())
    }

    /// Stops folding. Returns once no fold is running; none will start after that.
    pub(super) async fn rest(&self) {
        let (done, answer) = oneshot::channel();
        // If there is no answer, the task has already ended.
        if self.requests.send(Request::Rest(done)).await.is_err() || answer.await.is_err() {
            tracing::debug!("the folder rests already");
        }
    }

    /// Whether objects may exist that only a sweep finds.
    pub(super) fn is_unswept(&self) -> bool {
        self.trash.is_unswept()
    }
}

/// The folding task.
#[derive(Debug)]
pub(super) struct Folder {
    shared: Arc<Shared>,
    head: HeadHandle,
    trash: Arc<Trash>,
    unswept: bool,
    requests: mpsc::Receiver<Request>,
    sender: mpsc::Sender<Request>,
}

impl Shared {
    /// Whether the journal is over its limit.
    pub(super) fn wants_fold(&self, state: &State) -> bool {
        let (bytes, records) = (state.committed.weight, state.committed.slots.len() as u64);
        state.folding.is_none()
            && (bytes >= self.options.journal_max_bytes || records >= self.options.journal_max_records)
    }
}

impl Folder {
    pub(super) fn new(
        shared: Arc<Shared>,
        head: HeadHandle,
        table: RootTable,
        folded: Slot,
        unswept: bool,
    ) -> Self {
        let (sender, requests) = mpsc::channel(REQUESTS);
        let trash = Arc::new(Trash::new(table, folded, unswept));
        Self { shared, head, trash, unswept, requests, sender }
    }

    pub(super) fn handle(&self) -> FoldHandle {
        FoldHandle { requests: self.sender.clone(), trash: Arc::clone(&self.trash) }
    }

    /// Runs until the volume stops, or until [`FoldHandle::rest`] is called.
    pub(super) async fn run(mut self) {
        let collector = Collector::new(Arc::clone(&self.shared), Arc::clone(&self.trash), self.unswept);
        self.shared.tasks.spawn_until_cancelled(collector.run());
        loop {
            let age = self.shared.options.journal_max_age;
            let due = self.shared.state.lock().committed.since.map(|since| since + age);
            let due = due.unwrap_or_else(|| tokio::time::Instant::now() + age);
            let mut done = None;
            tokio::select! {
                biased;
                request = self.requests.recv() => match request {
                    Some(Request::Fold(asker)) => done = Some(asker),
                    Some(Request::Rest(asker)) => {
                        if asker.send(()).is_err() {
                            tracing::debug!("nobody waits for the folder to rest any more");
                        }
                        return;
                    }
                    None => {}
                },
                () = self.shared.fold_wake.notified() => {}
                () = tokio::time::sleep_until(due) => {}
            }
            if self.shared.check_serving().is_err() {
                return;
            }
            let wanted = done.is_some() || {
                let state = self.shared.state.lock();
                self.shared.wants_fold(&state)
                    || state.committed.since.is_some_and(|since| since.elapsed() >= age)
            };
            if wanted && self.fold_until_done().await.is_err() {
                // Callers that wait for the checkpoint notice when this task ends and drops its channel.
                return;
            }
            if let Some(done) = done
                && done.send(()).is_err()
            {
                tracing::debug!("nobody waits for the checkpoint any more");
            }
        }
    }

    /// Folds what is committed now, with retries. Returns an error only once the volume has stopped.
    async fn fold_until_done(&self) -> Result<(), Error> {
        let Some(folding) = self.begin() else { return Ok(()) };
        let begun = tokio::time::Instant::now();
        let (made, mut pause) = (Made::default(), RETRY_PAUSE);
        loop {
            let Err(error) = self.fold(&folding, &made).await else { break };
            if mutant::is(Mutant::CleansUpWhenFenced) && self.shared.check_serving().is_err() {
                self.shared.env.store.delete(&made.names()).await?;
            }
            self.shared.check_serving()?;
            // Nothing was published, so nothing references these objects.
            self.trash.add(&self.shared, Garbage::Orphans(made.take_unfinished(self.shared.keys)));
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

    /// Moves the committed changes into the state of being folded.
    fn begin(&self) -> Option<Arc<Committed>> {
        let mut state = self.shared.state.lock();
        assert!(state.folding.is_none(), "one task folds");
        if state.committed.is_empty() {
            return None;
        }
        let mut folding = std::mem::take(&mut state.committed);
        if mutant::is(Mutant::FoldsNewer)
            && let Some(Stage::Sent(newest)) = state.in_flight.back().map(|commit| &commit.stage)
        {
            for (range, piece) in newest.pieces.iter().step_by(2) {
                folding.pieces.insert(range, piece.clone());
            }
        }
        let folding = Arc::new(folding);
        state.folding = Some(Arc::clone(&folding));
        Some(folding)
    }

    /// Folds and publishes. `made` collects the names of the objects that this attempt makes.
    async fn fold(&self, folding: &Committed, made: &Made) -> Result<(), Error> {
        let shared = &self.shared;
        let checkpoint = folding.end.expect("what is folded has records");
        let old = Arc::clone(&shared.state.lock().root);
        assert!(checkpoint.slot > old.commit, "a checkpoint goes forward");
        if !folding.pieces.is_empty() {
            // Checked before anything is made.
            self.trash.check_room().map_err(|TableFull| self.table_full())?;
        }
        let (root, table) = match self.make_root(&old, folding, checkpoint, made).await? {
            Some(root) => {
                let now = (shared.env.wall_clock)();
                let table = self.trash.next_table(shared.next_id(), &old, &root, now);
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
            let volume = shared.keys.volume();
            for (id, bytes) in [(root.id, root.encode(volume)), (table.id, table.encode(volume))] {
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
                state.committed = Committed::default();
            }
            shared.gauge(&state);
        }
        self.trash.set_folded(checkpoint.slot);
        shared.progress.update(|progress| progress.checkpoints += 1);
        let now = (shared.env.wall_clock)();
        shared.metrics.checkpoint_time.set(i64::try_from(now).unwrap_or(i64::MAX));
        tracing::debug!(volume = %shared.keys.volume(), ?checkpoint.slot, records = folding.slots.len(),
            bytes = folding.bytes, "checkpoint published");
        // From here on reads find the folded data under its new name.
        let volume = shared.keys.volume();
        let folded: BTreeSet<Unit> = folding
            .pieces
            .iter()
            .filter_map(|(_, piece)| match piece {
                Piece::Data { record, change, .. } => Some(Unit::Run(record.slot, record.run_of(*change))),
                _ => None,
            })
            .collect();
        shared.env.cache.remove(folded.into_iter().map(|unit| CacheKey { volume, unit })).await;
        self.discard(&old, &root, replaced_table, folding).await;
        Ok(())
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
            self.trash.add(shared, Garbage::Root(old.id));
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
        old: &Root,
        folding: &Committed,
        checkpoint: Checkpoint,
        made: &Made,
    ) -> Result<Option<Root>, Error> {
        if folding.pieces.is_empty() {
            return Ok(None);
        }
        let shared = &self.shared;
        let mut root = Root { commit: checkpoint.slot, ..old.clone() };
        let mut affected = BTreeSet::new();
        for (range, piece) in folding.pieces.iter() {
            let touched = uniform::map_pages_of(shared.geometry, &range);
            match piece {
                Piece::Zero { hole } => {
                    let whole = uniform::whole_map_pages(shared.geometry, shared.size_bytes, &range);
                    affected.extend(touched.start..whole.start);
                    affected.extend(whole.end..touched.end);
                    if !whole.is_empty() {
                        root.set_uniform(whole, (!hole).then_some(checkpoint.slot));
                    }
                }
                _ => affected.extend(touched),
            }
        }
        for number in affected {
            let folded = match made.finished_map_page(number) {
                Some(folded) => folded,
                None => self.fold_map_page(old, folding, checkpoint.slot, number, made).await?,
            };
            made.finish_map_page(number, folded);
            match folded {
                FoldedPage::Object(id) => root.set_page(number, MapPageRef { origin: 0, id }),
                FoldedPage::Uniform(zeroed) => root.set_uniform(number..number + 1, zeroed),
            }
        }
        root.id = shared.next_id();
        Ok(Some(root))
    }

    async fn fold_map_page(
        &self,
        old: &Root,
        folding: &Committed,
        birth: Slot,
        number: u32,
        made: &Made,
    ) -> Result<FoldedPage, Error> {
        let shared = &self.shared;
        let geometry = shared.geometry;
        let start = u64::from(number) * geometry.map_page_bytes();
        let covers = start..(start + geometry.map_page_bytes()).min(shared.size_bytes);
        let changes: Vec<(Range<u64>, Piece)> = folding.pieces.overlaps(covers.clone()).collect();
        let chunks = (covers.end - covers.start).div_ceil(geometry.chunk_bytes());
        let mapped = base::map_page(&shared.env, shared.keys, geometry, old, number).await;
        let (map, mut entries) = match self.unless_lost(mapped, number).await? {
            None => (None, uniform::lost_entries(geometry, chunks, birth)),
            Some(mapped) => match mapped {
                Mapped::Holes => (None, BTreeMap::new()),
                Mapped::Zeroed(birth) => (None, uniform::zeroed_entries(geometry, chunks, birth)),
                Mapped::Page(map) => {
                    let entries = map.page.entries();
                    (Some(map), entries)
                }
            },
        };
        let touched = self.fold_whole_chunks(&mut entries, changes, birth);
        let jobs = touched.into_iter().map(|(index, changes)| {
            let old = entries.get(&index.slot()).cloned().unwrap_or_default();
            self.rewrite(map.as_ref(), index, old, changes, birth, made)
        });
        let parallel = shared.options.fold_bytes / (2 * geometry.chunk_bytes());
        let parallel = usize::try_from(parallel).unwrap_or(1).max(1);
        // Waits for all, even if one fails: a request in flight could take effect after its object was
        // deleted.
        let rewritten: Vec<Result<(ChunkIndex, Entry), Error>> =
            stream::iter(jobs).buffer_unordered(parallel).collect().await;
        for rewritten in rewritten {
            let (index, entry) = rewritten?;
            entries.insert(index.slot(), entry);
        }
        let origins = map.as_ref().map(|map| map.page.origins().to_vec()).unwrap_or_default();
        if let Some(birth) = uniform::zeroed_throughout(geometry, chunks, &entries) {
            return Ok(FoldedPage::Uniform(Some(birth)));
        }
        let page = MapPage::new(number, geometry, origins, &entries);
        if page.is_empty() {
            return Ok(FoldedPage::Uniform(None));
        }
        let id = shared.next_id();
        let volume = shared.keys.volume();
        let key = shared.keys.map_page(number, id);
        put_new(shared, ObjectKind::Map, made.note(key), page.encode(volume, id)).await?;
        let cache_key = CacheKey { volume, unit: Unit::Map(number, id) };
        shared.env.cache.insert_map_page(cache_key, Arc::new(page)).await;
        Ok(FoldedPage::Object(id))
    }

    /// Returns what the root has for a map page, or `None` if the page is damaged or lost for good. The
    /// location of its chunks is then unknown, so the range that no change covers is lost, and the volume
    /// continues without it.
    async fn unless_lost(&self, mapped: Result<Mapped, Error>, number: u32) -> Result<Option<Mapped>, Error> {
        let error = match mapped {
            Err(error) if error.is_loss() => error,
            mapped => return mapped.map(Some),
        };
        if let Error::Lost { key, .. } = &error {
            confirm_gone(self.shared.env.store.bulk.as_ref(), key).await?;
        }
        tracing::error!(volume = %self.shared.keys.volume(), map_page = number,
            "a map page was lost: {error}");
        Ok(None)
    }

    async fn rewrite(
        &self,
        map: Option<&LoadedMapPage>,
        index: ChunkIndex,
        old: Entry,
        changes: Vec<(Range<u64>, Piece)>,
        birth: Slot,
        made: &Made,
    ) -> Result<(ChunkIndex, Entry), Error> {
        if let Some(entry) = made.finished_chunk(index) {
            return Ok((index, entry));
        }
        let entry = self.shared.rewrite_chunk(map, index, &old, changes, birth, made).await?;
        made.finish_chunk(index, entry.clone());
        Ok((index, entry))
    }

    /// Applies the changes that replace whole chunks to the entries. Returns the rest, grouped by chunk.
    fn fold_whole_chunks(
        &self,
        entries: &mut BTreeMap<u16, Entry>,
        changes: Vec<(Range<u64>, Piece)>,
        birth: Slot,
    ) -> BTreeMap<ChunkIndex, Vec<(Range<u64>, Piece)>> {
        use crate::volume::format::interval::Value;
        let geometry = self.shared.geometry;
        let pages = geometry.pages_per_chunk();
        let mut touched: BTreeMap<ChunkIndex, Vec<(Range<u64>, Piece)>> = BTreeMap::new();
        for (range, piece) in changes {
            let mut at = range.start;
            while at < range.end {
                let index = geometry.chunk_at(at);
                let chunk = geometry.chunk_range(index);
                let part = at..range.end.min(chunk.end);
                // The last chunk of a volume may extend beyond its end, where nothing was ever written.
                let whole = part.start == chunk.start && part.end == chunk.end.min(self.shared.size_bytes);
                at = part.end;
                match &piece {
                    Piece::Zero { hole: true } if whole => {
                        entries.remove(&index.slot());
                    }
                    Piece::Zero { hole: false } if whole => {
                        let allocated = PageSet::first(pages);
                        entries.insert(
                            index.slot(),
                            Entry { birth: Some(birth), allocated, ..Entry::default() },
                        );
                    }
                    Piece::Chunk(chunk, 0) if whole => {
                        let base = (!chunk.stored.is_empty()).then_some(Base {
                            origin: 0,
                            id: chunk.id,
                            stored: chunk.stored,
                        });
                        let allocated = PageSet::first(pages);
                        let entry = Entry { birth: Some(birth), base, allocated, ..Entry::default() };
                        entries.insert(index.slot(), entry);
                    }
                    other => {
                        let piece = other.advanced(part.start - range.start);
                        touched.entry(index).or_default().push((part, piece));
                    }
                }
            }
        }
        touched
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
