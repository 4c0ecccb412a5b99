//! Garbage collection: deletes objects that nothing references any more, after a grace period.
//!
//! Owns the task that deletes, and what else deletes in the same way: whoever does it takes turns with the
//! task. `trash` has the queue of garbage and the root table. It does not know how a
//! fold makes a root. The rule: when a root is deleted, those objects of this volume are deleted that it
//! references and that none of its relatives references: its parent, its children and its siblings. After
//! them goes its entry in the root table, and its children become children of its parent.
//!
//! Why this is enough: of all kept roots that reference an object, each is a relative of another. A fold adds
//! a child, so that is so at first. A root that is deleted leaves its relatives as relatives of each other.
//! Only a restored snapshot has several children, so siblings are rare.
//!
//! Invariants: only the holder of the epoch deletes. The list of objects is fixed first and the head is read
//! after it; if the head has another epoch, nothing is deleted. Seals are never deleted. An object that the
//! open volume itself knows to be in use is not deleted, no matter what reported it as garbage.

mod sweep;
mod trash;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub(super) use self::trash::{Garbage, TableFull, Trash, grace_left};
use crate::mutant::{self, Mutant};
use crate::store;
use crate::volume::error::{Error, OpenError};
use crate::volume::format::keys::{ObjectId, Parsed};
use crate::volume::format::map::Entry;
use crate::volume::format::root::{KeptRoot, Root};
use crate::volume::objects::read_head;
use crate::volume::read::base::{self, Mapped, names_chunk, names_overlay, overlays_of};
use crate::volume::shared::Shared;
use crate::volume::store_exact::{CheckedError, fetch_checked, fetch_if_present};

/// Pause before a failed scan or deletion is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Deletes the garbage of a volume.
#[derive(Debug)]
pub(super) struct Collector {
    pub(super) shared: Arc<Shared>,
    pub(super) trash: Arc<Trash>,
}

impl Collector {
    pub(super) fn new(shared: Arc<Shared>, trash: Arc<Trash>) -> Self {
        Self { shared, trash }
    }

    /// Runs until the volume stops.
    pub(super) async fn run(self) {
        self.queue_retired();
        // Roots that are due are deleted first, because the scan for leftovers checks every object against
        // every kept root.
        if self.delete_in_turn().await.is_err() {
            return;
        }
        while let Err(error) = self.pass().await {
            if self.shared.check_serving().is_err() {
                return;
            }
            tracing::warn!(volume = %self.shared.keys.volume(),
                "looking for leftovers failed, trying again: {error}");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        while self.delete_in_turn().await.is_ok() {
            match self.trash.next_due() {
                None => self.trash.wake.notified().await,
                Some(due) => tokio::select! {
                    biased;
                    () = self.trash.wake.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
            }
        }
    }

    /// Looks for what earlier epochs left behind, unless an earlier pass did, and deletes everything that is
    /// due. If the volume is unswept, it looks for all objects that nothing references.
    ///
    /// It looks once: what was found waits in the queue, and a second look would queue it again. By then, a
    /// checkpoint may also have replaced the root table of the epoch before, which waits too.
    async fn pass(&self) -> Result<(), Error> {
        let _turn = self.trash.turn.lock().await;
        if !self.trash.has_passed() {
            let unswept = self.trash.is_sweep_due();
            self.queue_leftovers(unswept).await?;
            if unswept {
                self.trash.sweep_is_done();
            }
            self.trash.pass_is_done();
        }
        self.delete_due().await
    }

    /// Makes the pass that follows the opening, if it is not made yet. Otherwise deletes what is due since. A
    /// task of the volume does it: if the caller gives up, a batch that was taken from the queue is deleted
    /// nevertheless.
    pub(super) async fn pass_again(self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let passing = shared.tasks.spawn_until_cancelled(async move { self.pass().await });
        match passing.await {
            Ok(Some(passed)) => passed,
            Ok(None) | Err(_) => {
                shared.check_serving()?;
                Err(Error::Stopped("the volume is closed".to_owned()))
            }
        }
    }

    /// Deletes objects that a check of the volume in the store took for orphans. Leaves those alone that an
    /// earlier epoch has not made, and those that the open volume knows to be in use.
    pub(super) async fn delete_orphans(&self, keys: &[String]) -> Result<(), Error> {
        let (shared, kept) = (&self.shared, self.trash.kept());
        let kept: BTreeSet<ObjectId> = kept.iter().map(|kept| kept.root).collect();
        let is_old = |key: &&String| match shared.keys.parse(key) {
            Some(Parsed::Root(id)) => id.epoch < shared.epoch && !kept.contains(&id),
            Some(
                Parsed::Chunk(_, id) | Parsed::MapPage(_, id) | Parsed::Overlay(_, id) | Parsed::Pack(id),
            ) => id.epoch < shared.epoch,
            Some(Parsed::Head | Parsed::FirstReads | Parsed::Record(_)) | None => false,
        };
        let old: Vec<String> = keys.iter().filter(is_old).cloned().collect();
        self.delete_objects(&old).await
    }

    /// Number of objects that were deleted since the volume was opened.
    pub(super) fn deleted(&self) -> u64 {
        self.trash.deleted()
    }

    /// As [`Collector::delete_due`], when nobody else deletes: the deletion of a root relies on the other
    /// roots being whole.
    async fn delete_in_turn(&self) -> Result<(), Error> {
        let _turn = self.trash.turn.lock().await;
        self.delete_due().await
    }

    /// Deletes everything that is due. A batch that fails is due again after [`RETRY_PAUSE`]. Returns an
    /// error once the volume has stopped.
    pub(super) async fn delete_due(&self) -> Result<(), Error> {
        loop {
            let Some(garbage) = self.trash.take_due() else { return Ok(()) };
            if let Err(error) = self.delete(&garbage).await {
                self.shared.check_serving()?;
                tracing::warn!(volume = %self.shared.keys.volume(), "deleting failed, trying again: {error}");
                self.trash.add_due(Instant::now() + RETRY_PAUSE, garbage);
            }
        }
    }

    /// Queues the roots that earlier epochs retired, each due at the end of its grace period.
    fn queue_retired(&self) {
        for kept in self.trash.kept() {
            if kept.is_retired() {
                let left = grace_left(&self.shared, kept.retired_at_seconds);
                self.trash.add_due(Instant::now() + left, Garbage::Root(kept.root));
            }
        }
    }

    async fn delete(&self, garbage: &Garbage) -> Result<(), Error> {
        match garbage {
            Garbage::Objects(names) => self.delete_objects(names).await,
            Garbage::Orphans(names) => {
                self.delete_objects(names).await?;
                self.trash.swept();
                Ok(())
            }
            Garbage::Root(id) => self.delete_root(*id).await,
        }
    }

    /// Deletes objects in order, as long as the epoch is still ours.
    async fn delete_objects(&self, names: &[String]) -> Result<(), Error> {
        for batch in names.chunks(store::MAXIMUM_DELETE_KEYS) {
            let batch = self.without_used(batch).await?;
            self.check_epoch().await?;
            self.shared.env.store.bulk.delete(&batch).await?;
            self.trash.count_deleted(batch.len());
        }
        Ok(())
    }

    /// Returns the objects without those that the open volume uses, which a bug or a false answer of the
    /// store may have put on the list. Objects whose use only a lost map page could tell are left out too.
    async fn without_used(&self, names: &[String]) -> Result<Vec<String>, Error> {
        let mut unused = Vec::with_capacity(names.len());
        for name in names {
            match self.is_used(name).await {
                Ok(false) => unused.push(name.clone()),
                Ok(true) => {
                    tracing::error!(key = %name, "an object in use was taken for garbage; it is not deleted");
                }
                Err(error) if error.is_loss() => self.leave_to_sweep(name, &error),
                Err(error) => return Err(error),
            }
        }
        Ok(unused)
    }

    /// Leaves garbage to the sweep of a later opening, because the object that would show what else
    /// references it is lost.
    fn leave_to_sweep(&self, key: &str, error: &Error) {
        tracing::warn!(%key, "garbage is kept, since what references it cannot be read: {error}");
        self.trash.leave_to_sweep();
    }

    /// Whether the open volume uses an object, judged by its own state: its root, and the journal after the
    /// checkpoint.
    async fn is_used(&self, name: &str) -> Result<bool, Error> {
        // These faults need two rules broken: this check would stop what they take for garbage.
        if mutant::is(Mutant::JournalForgotten)
            || mutant::is(Mutant::OverlaySharedDeleted)
            || mutant::is(Mutant::OwnEpochSwept)
            || mutant::is(Mutant::PackSharedDeleted)
            || mutant::is(Mutant::RootSkipped)
            || mutant::is(Mutant::SharedDeleted)
        {
            return Ok(false);
        }
        let shared = &self.shared;
        match shared.keys.parse(name) {
            Some(Parsed::Chunk(index, id)) => {
                let root = {
                    let state = shared.state.lock();
                    let mut in_journal = state.unfolded().flat_map(|segment| segment.chunks.iter());
                    if in_journal.any(|named| *named == (index, id)) {
                        return Ok(true);
                    }
                    Arc::clone(&state.root)
                };
                names_chunk(shared, &root, index, id).await
            }
            Some(Parsed::MapPage(number, id)) => {
                let root = Arc::clone(&shared.state.lock().root);
                Ok(root.map_pages.get(&number).is_some_and(|page| page.origin == 0 && page.id == id))
            }
            Some(Parsed::Overlay(number, id)) => {
                let root = Arc::clone(&shared.state.lock().root);
                names_overlay(shared, &root, number, id).await
            }
            Some(Parsed::Pack(id)) => Ok(shared.state.lock().root.packs.contains_key(&id)),
            Some(Parsed::Root(id)) => Ok(id == shared.state.lock().root.id || id == self.trash.table_id()),
            Some(Parsed::Record(slot)) => Ok(slot > self.trash.folded()),
            _ => Ok(false),
        }
    }

    /// Reads the head. If it has another epoch, the volume stops.
    async fn check_epoch(&self) -> Result<(), Error> {
        if mutant::is(Mutant::DeletesUnasked) {
            return Ok(());
        }
        self.shared.check_serving()?;
        let head = match read_head(&self.shared.env, self.shared.keys).await {
            Ok((head, _)) => head,
            Err(OpenError::Store(error)) => return Err(Error::Store(error)),
            Err(error) => {
                return Err(Error::damaged(self.shared.keys.head(), error.to_string()));
            }
        };
        if head.epoch != self.shared.epoch {
            let why = format!("the volume was taken over by epoch {} of {}", head.epoch, head.holder_name);
            self.shared.fence(why.clone());
            return Err(Error::Stopped(why));
        }
        Ok(())
    }

    /// Deletes the chunk objects, overlays and packs that only a retired root references. Its map pages and
    /// the root itself then become orphans.
    async fn delete_root(&self, id: ObjectId) -> Result<(), Error> {
        let shared = &self.shared;
        let kept = self.trash.kept();
        let Some(entry) = kept.iter().find(|kept| kept.root == id) else { return Ok(()) };
        if !entry.is_retired() {
            return Ok(());
        }
        let is_relative = |other: &&KeptRoot| {
            let is_parent = entry.parent == Some(other.root) && !mutant::is(Mutant::ParentSkipped);
            other.parent == Some(id) || is_parent || other.parent == entry.parent
        };
        let others = kept.iter().filter(|other| other.root != id);
        let neighbour_ids: Vec<ObjectId> = others.filter(is_relative).map(|other| other.root).collect();
        let Some(root) = self.root(id).await? else {
            self.trash.set_collected(id);
            return Ok(());
        };
        let mut neighbours = Vec::new();
        for neighbour in neighbour_ids {
            let Some(root) = self.root(neighbour).await? else {
                return Err(Error::lost(shared.keys.root(neighbour)));
            };
            neighbours.push(root);
        }
        if mutant::is(Mutant::SharedDeleted) {
            neighbours.clear();
        }
        let mut own = Vec::new();
        for (number, reference) in root.map_pages.iter().filter(|(_, reference)| reference.origin == 0) {
            if neighbours.iter().any(|other| other.map_pages.get(number) == Some(reference)) {
                continue;
            }
            let only = self.only_named_by(&root, &neighbours, *number).await?;
            self.delete_objects(&only).await?;
            own.push(shared.keys.map_page(*number, reference.id));
        }
        let is_shared = |id: &ObjectId| {
            !mutant::is(Mutant::PackSharedDeleted)
                && neighbours.iter().any(|other| other.packs.contains_key(id))
        };
        let packs = root.packs.keys().filter(|id| !is_shared(id));
        let packs: Vec<String> = packs.map(|id| shared.keys.pack(*id)).collect();
        self.delete_objects(&packs).await?;
        own.push(shared.keys.root(id));
        // From here on nothing may consult this root about shared objects: once its deletion has begun, it
        // could no longer answer for what a neighbour would leave to it.
        self.trash.set_collected(id);
        self.trash.add(shared, Garbage::Orphans(own));
        Ok(())
    }

    /// Reads a kept root. Returns `None` if the root is already deleted.
    pub(super) async fn root(&self, id: ObjectId) -> Result<Option<Root>, Error> {
        kept_root(&self.shared, id).await
    }

    /// Returns the keys of this volume's chunk objects and overlays that a map page of `root` references
    /// and the same page of no neighbour does.
    async fn only_named_by(
        &self,
        root: &Root,
        neighbours: &[Root],
        number: u32,
    ) -> Result<Vec<String>, Error> {
        let shared = &self.shared;
        let load = |root| base::map_entries(&shared.env, shared.keys, shared.geometry, root, number);
        let page = match load(root).await {
            Ok(Mapped::Page(page)) => page,
            // An earlier attempt deleted the page, after the objects that it referenced.
            Ok(Mapped::Holes | Mapped::Zeroed(_)) | Err(Error::Lost { .. }) => return Ok(Vec::new()),
            Err(error @ Error::Damaged { .. }) => {
                self.leave_to_sweep(&shared.keys.root(root.id), &error);
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let mut others = Vec::new();
        for neighbour in neighbours {
            match load(neighbour).await {
                Ok(Mapped::Page(page)) => others.push(page),
                Ok(Mapped::Holes | Mapped::Zeroed(_)) => {}
                // What this neighbour shares with the root is unknown.
                Err(error) if error.is_loss() => {
                    self.leave_to_sweep(&shared.keys.root(root.id), &error);
                    return Ok(Vec::new());
                }
                Err(error) => return Err(error),
            }
        }
        let base_of = |entry: &Entry| entry.base.filter(|base| base.origin == 0).map(|base| base.id);
        let mut names = Vec::new();
        for (slot, entry) in page.view.page.entries() {
            let Some(id) = base_of(&entry) else { continue };
            let named = others.iter().any(|other| {
                other.owner == shared.keys && other.entry(slot).as_ref().and_then(base_of) == Some(id)
            });
            if !named {
                names.push(
                    shared.keys.chunk(crate::volume::format::geometry::ChunkIndex::at(number, slot), id),
                );
            }
        }
        for id in overlays_of(&page, shared.keys) {
            let is_shared =
                others.iter().any(|other| overlays_of(other, shared.keys).any(|named| named == id));
            if !is_shared || mutant::is(Mutant::OverlaySharedDeleted) {
                names.push(shared.keys.overlay(number, id));
            }
        }
        Ok(names)
    }
}

/// Reads a kept root of the volume. Returns `None` if the root is already deleted.
pub(super) async fn kept_root(shared: &Shared, id: ObjectId) -> Result<Option<Root>, Error> {
    let key = shared.keys.root(id);
    let decode = |body: &[u8]| Root::decode(shared.keys.sealing(), id, body);
    let store = shared.env.store.bulk.as_ref();
    let fetched = if mutant::is(Mutant::RootSkipped) {
        fetch_if_present(store, &key, decode).await
    } else {
        fetch_checked(store, &key, decode).await
    };
    match fetched {
        Ok((root, _)) => Ok(Some(root)),
        Err(CheckedError::Store(store::Error::NotFound { .. })) => Ok(None),
        Err(error) => Err(error.referenced(key)),
    }
}
