//! The queue of garbage, and the root table.
//!
//! The folder and the collector share it. It decides which roots are kept and when garbage is due; it must
//! not delete anything. Invariant: one lock protects all of it, so that what is kept and what is collected
//! always agree.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use crate::mutant::{self, Mutant};
use crate::volume::format::keys::{ObjectId, Slot};
use crate::volume::format::root::{KeptRoot, MAX_ORIGINS, MAX_ROOTS, Root, RootTable};
use crate::volume::format::snapshot::Snapshot;
use crate::volume::shared::Shared;

/// Limit on queued garbage, counted in batches. Beyond it, the oldest batch is deleted before its grace
/// period is over. The root table has room for more.
const MAX_WAITING: usize = 1024;
/// The root table has no room for another root.
#[derive(Debug)]
pub(crate) struct TableFull;

/// Objects to delete.
#[derive(Debug)]
pub(crate) enum Garbage {
    /// Object keys, deleted in this order. The next opener finds each of them again.
    Objects(Vec<String>),
    /// Object keys that no head, root or record ever referenced. Only a sweep would find them again.
    Orphans(Vec<String>),
    /// A root that a checkpoint replaced, and the objects that only it references.
    Root(ObjectId),
}

/// The queue of garbage, and the root table that the folder and the collector share.
///
/// One lock protects all of it: the table and the collected roots together determine which roots are kept,
/// and an orphan counts as unswept from the instant at which it is queued.
#[derive(Debug)]
pub(crate) struct Trash {
    state: Mutex<TrashState>,
    pub(super) wake: Notify,
    /// Held by whoever takes garbage from the queue and deletes it.
    pub(super) turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct TrashState {
    /// The root table that the head references.
    table: RootTable,
    /// The last record that no read needs any more. The head may be further ahead while the answer to its
    /// update is in flight.
    folded: Slot,
    /// Roots that are deleted or about to be deleted. The next table leaves them out.
    collected: BTreeSet<ObjectId>,
    /// Queued garbage with the time at which it is due, ordered by that time.
    queue: VecDeque<(Instant, Garbage)>,
    /// Count of what only a sweep can find: each queued batch of orphans, and the sweep itself until it has
    /// ended.
    unswept: usize,
    /// Whether the sweep that the opening asked for has not ended yet.
    is_sweep_due: bool,
    /// Whether everything that earlier epochs left behind was queued.
    has_passed: bool,
    /// Number of objects whose deletion the store has answered since the volume was opened.
    deleted: u64,
}

impl Trash {
    pub(crate) fn new(table: RootTable, folded: Slot, unswept: bool) -> Self {
        let state = TrashState {
            table,
            folded,
            collected: BTreeSet::new(),
            queue: VecDeque::new(),
            unswept: usize::from(unswept),
            is_sweep_due: unswept,
            has_passed: false,
            deleted: 0,
        };
        Self { state: Mutex::new(state), wake: Notify::new(), turn: tokio::sync::Mutex::new(()) }
    }

    /// Whether objects may exist that only a sweep finds.
    pub(crate) fn is_unswept(&self) -> bool {
        self.state.lock().unswept > 0
    }

    /// Whether the sweep that the opening asked for has not ended yet.
    pub(crate) fn is_sweep_due(&self) -> bool {
        self.state.lock().is_sweep_due
    }

    /// Whether everything that earlier epochs left behind was queued since the volume was opened.
    pub(crate) fn has_passed(&self) -> bool {
        self.state.lock().has_passed
    }

    /// Records that everything that earlier epochs left behind is queued.
    pub(crate) fn pass_is_done(&self) {
        self.state.lock().has_passed = true;
    }

    /// Records that the sweep is complete.
    pub(crate) fn sweep_is_done(&self) {
        let mut state = self.state.lock();
        state.is_sweep_due = false;
        state.unswept -= 1;
    }

    /// Records that the deletion of a batch of orphans is complete.
    pub(crate) fn swept(&self) {
        self.state.lock().unswept -= 1;
    }

    /// Records that objects were deleted.
    pub(crate) fn count_deleted(&self, objects: usize) {
        self.state.lock().deleted += objects as u64;
    }

    /// Number of objects that were deleted since the volume was opened.
    pub(crate) fn deleted(&self) -> u64 {
        self.state.lock().deleted
    }

    /// Id of the root table that the head references.
    pub(crate) fn table_id(&self) -> ObjectId {
        self.state.lock().table.id
    }

    /// The kept roots: those of the table that are not collected.
    pub(crate) fn kept(&self) -> Vec<KeptRoot> {
        self.state.lock().kept()
    }

    /// The snapshots of the root table with their roots, in the order in which they were taken.
    pub(crate) fn snapshots(&self) -> Vec<(Snapshot, ObjectId)> {
        let named = |kept: KeptRoot| Some((kept.snapshot?, kept.root));
        self.kept().into_iter().filter_map(named).collect()
    }

    /// Whether the next table has room for another root.
    ///
    /// # Errors
    /// If the table is full, until the collector has made room.
    pub(crate) fn check_room(&self) -> Result<(), TableFull> {
        if self.kept().len() >= MAX_ROOTS { Err(TableFull) } else { Ok(()) }
    }

    /// Returns the table that is valid once `root`, which was made from `parent`, has replaced `old`.
    /// `snapshot` keeps the new root, if there is one.
    ///
    /// # Errors
    /// If the table is full, until the collector has made room.
    pub(crate) fn next_table(
        &self,
        id: ObjectId,
        old: &Root,
        root: &Root,
        parent: ObjectId,
        snapshot: Option<Snapshot>,
        now_seconds: u64,
    ) -> Result<RootTable, TableFull> {
        self.check_room()?;
        let mut roots = self.kept();
        for kept in roots.iter_mut().filter(|kept| kept.root == old.id) {
            if mutant::is(Mutant::SnapshotForgotten) {
                kept.snapshot = None;
            }
            if !kept.is_held() {
                kept.retired_at_seconds = now_seconds.max(1);
            }
        }
        roots.push(KeptRoot::current(root, parent, snapshot));
        Ok(RootTable { id, roots })
    }

    /// Returns the table that is valid once the snapshot `name` is deleted, and the id of the root that the
    /// snapshot kept. That root is retired, unless it is the current root, which is the last. Returns `None`
    /// if there is no such snapshot.
    ///
    /// # Errors
    /// If a clone needs the snapshot. Contains the volumes of the clones.
    pub(crate) fn table_without(
        &self,
        id: ObjectId,
        name: &str,
        now_seconds: u64,
    ) -> Result<Option<(RootTable, ObjectId)>, Vec<Uuid>> {
        let mut roots = self.kept();
        let current = roots.last().map(|last| last.root);
        let Some(kept) = named(&mut roots, name) else { return Ok(None) };
        if !kept.pins.is_empty() && !mutant::is(Mutant::PinIgnored) {
            return Err(kept.pins.clone());
        }
        kept.pins.clear();
        kept.snapshot = None;
        if current != Some(kept.root) || mutant::is(Mutant::CurrentRootRetired) {
            kept.retired_at_seconds = now_seconds.max(1);
        }
        let root = kept.root;
        Ok(Some((RootTable { id, roots }, root)))
    }

    /// Returns the table in which the clone `clone` keeps the root of the snapshot `name`, and the id of that
    /// root. Returns `None` if there is no such snapshot.
    ///
    /// # Errors
    /// If the snapshot has as many clones as it may have. Contains their volumes.
    pub(crate) fn table_with_pin(
        &self,
        id: ObjectId,
        name: &str,
        clone: Uuid,
    ) -> Result<Option<(RootTable, ObjectId)>, Vec<Uuid>> {
        let mut roots = self.kept();
        let Some(kept) = named(&mut roots, name) else { return Ok(None) };
        if kept.pins.len() >= MAX_ORIGINS {
            return Err(kept.pins.clone());
        }
        if !mutant::is(Mutant::PinLeftOut) {
            kept.pins.push(clone);
        }
        let root = kept.root;
        Ok(Some((RootTable { id, roots }, root)))
    }

    /// Returns the table in which no clone of `gone` keeps a root. Returns `None` if none does so now.
    pub(crate) fn table_without_pins(&self, id: ObjectId, gone: &[Uuid]) -> Option<RootTable> {
        let gone: BTreeSet<&Uuid> = gone.iter().collect();
        let mut roots = self.kept();
        let count = |roots: &[KeptRoot]| roots.iter().map(|kept| kept.pins.len()).sum::<usize>();
        let before = count(&roots);
        roots.iter_mut().for_each(|kept| kept.pins.retain(|clone| !gone.contains(clone)));
        (count(&roots) < before).then_some(RootTable { id, roots })
    }

    /// Whether a clone keeps the root of the snapshot `name`.
    pub(crate) fn is_pinned(&self, name: &str) -> bool {
        named(&mut self.kept(), name).is_some_and(|kept| !kept.pins.is_empty())
    }

    /// Whether a root is kept, but nothing needs it any more.
    pub(crate) fn is_retired(&self, root: ObjectId) -> bool {
        self.kept().iter().any(|kept| kept.root == root && kept.is_retired())
    }

    /// Records the table that the head references from now on.
    pub(crate) fn set_table(&self, table: RootTable) {
        let mut state = self.state.lock();
        state.table = table;
        let TrashState { table, collected, .. } = &mut *state;
        // What the table leaves out no later table has.
        let listed: BTreeSet<ObjectId> = table.roots.iter().map(|kept| kept.root).collect();
        collected.retain(|root| listed.contains(root));
    }

    /// The last record that no read needs any more.
    pub(crate) fn folded(&self) -> Slot {
        self.state.lock().folded
    }

    /// Records that no read needs this record, or any before it, any more.
    pub(crate) fn set_folded(&self, folded: Slot) {
        self.state.lock().folded = folded;
    }

    /// Queues garbage for deletion after the grace period. Orphans need no grace period, because no reader
    /// knows of them.
    pub(crate) fn add(&self, shared: &Shared, garbage: Garbage) {
        match &garbage {
            Garbage::Objects(names) | Garbage::Orphans(names) if names.is_empty() => {}
            Garbage::Orphans(_) => {
                let mut state = self.state.lock();
                state.unswept += 1;
                state.add(Instant::now(), garbage);
                self.wake.notify_one();
            }
            _ if mutant::is(Mutant::GraceSkipped) => self.add_due(Instant::now(), garbage),
            _ => self.add_due(Instant::now() + shared.options.deletion_grace, garbage),
        }
    }

    /// Queues objects that an earlier epoch left behind. They are due when the grace period since
    /// `retired_at_seconds` (Unix time) is over: an opening does not restart it.
    pub(crate) fn add_left(&self, shared: &Shared, names: Vec<String>, retired_at_seconds: u64) {
        if !names.is_empty() {
            self.add_due(Instant::now() + grace_left(shared, retired_at_seconds), Garbage::Objects(names));
        }
    }

    pub(crate) fn add_due(&self, due: Instant, garbage: Garbage) {
        self.state.lock().add(due, garbage);
        self.wake.notify_one();
    }

    /// Records that a root is deleted or about to be deleted.
    pub(crate) fn set_collected(&self, root: ObjectId) {
        self.state.lock().collected.insert(root);
    }

    /// Records that garbage exists that only the sweep of a later opening deletes.
    pub(crate) fn leave_to_sweep(&self) {
        self.state.lock().unswept += 1;
    }

    /// Removes and returns the first batch that is due, if any.
    pub(crate) fn take_due(&self) -> Option<Garbage> {
        let queue = &mut self.state.lock().queue;
        match queue.front() {
            Some((due, _)) if *due <= Instant::now() => queue.pop_front().map(|(_, garbage)| garbage),
            _ => None,
        }
    }

    /// Returns when the next batch is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.state.lock().queue.front().map(|(due, _)| *due)
    }
}

impl TrashState {
    fn kept(&self) -> Vec<KeptRoot> {
        without(&self.table.roots, &self.collected)
    }

    fn add(&mut self, due: Instant, garbage: Garbage) {
        let place = self.queue.partition_point(|(other, _)| *other <= due);
        self.queue.insert(place, (due, garbage));
        if self.queue.len() > MAX_WAITING {
            // The grace period is a courtesy: if checkpoints outrun it, the oldest garbage is deleted now.
            let now = Instant::now();
            let hasty = self.queue.len() - MAX_WAITING;
            for (due, _) in self.queue.iter_mut().take(hasty) {
                *due = now.min(*due);
            }
        }
    }
}

/// Returns the root that the snapshot `name` keeps.
fn named<'a>(roots: &'a mut [KeptRoot], name: &str) -> Option<&'a mut KeptRoot> {
    roots.iter_mut().find(|kept| kept.snapshot.as_ref().is_some_and(|snapshot| snapshot.name == name))
}

/// Returns what remains of the grace period of an object retired at `retired_at_seconds` (Unix time).
pub(crate) fn grace_left(shared: &Shared, retired_at_seconds: u64) -> Duration {
    let age = (shared.env.wall_clock)().saturating_sub(retired_at_seconds);
    shared.options.deletion_grace.saturating_sub(Duration::from_secs(age))
}

/// Returns the roots without the collected ones. The children of a collected root pass to its parent.
fn without(roots: &[KeptRoot], collected: &BTreeSet<ObjectId>) -> Vec<KeptRoot> {
    let parent_of = |id: ObjectId| roots.iter().find(|kept| kept.root == id).and_then(|kept| kept.parent);
    roots
        .iter()
        .filter(|kept| !collected.contains(&kept.root))
        .map(|kept| {
            let mut kept = kept.clone();
            while let Some(parent) = kept.parent.filter(|parent| collected.contains(parent)) {
                kept.parent = parent_of(parent);
            }
            kept
        })
        .collect()
}
