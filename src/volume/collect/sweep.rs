//! The sweep: finds what earlier epochs left behind, that is folded records and objects that were never
//! published.
//!
//! Owns the scan and its judgement of each object. It considers only names of older epochs, since nothing
//! that our own epoch makes is an orphan. The sweep deletes garbage while it scans, together with everything
//! else that is due, so even short-lived gateways make progress. Invariant: an object is queued for deletion
//! only if no kept root, no record after the checkpoint and no head references it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::trash::{Trash, grace_left};
use super::{Collector, Garbage};
use crate::mutant::{self, Mutant};
use crate::store::{self, Entry, Pages};
use crate::volume::error::Error;
use crate::volume::format::codec::{DecodeError, invalid};
use crate::volume::format::geometry::ChunkIndex;
use crate::volume::format::keys::{Epoch, ObjectId, Parsed, Slot};
use crate::volume::format::record::{Change, EMPTY_RECORD_BYTES, Record, RecordKind};
use crate::volume::format::root::{KeptRoot, Root};
use crate::volume::objects::fetch_table;
use crate::volume::read::base::{names_chunk, names_overlay};
use crate::volume::shared::Shared;
use crate::volume::store_exact::CheckedError;

/// Number of folded records read before their garbage is deleted.
const WINDOW: usize = 128;
/// Limit on the keys that wait to be queued together.
const GATHERED_KEYS: usize = 16 * store::MAXIMUM_DELETE_KEYS;

/// Returns the record, or an error if it references a chunk of another epoch. A record references only chunk
/// objects of its own epoch, which is over. One that seems to reference another's must not decide what is
/// deleted.
fn own_chunks_only(record: Record) -> Result<Record, DecodeError> {
    let epoch = record.slot.epoch;
    let is_foreign = |change: &Change| matches!(change, Change::Chunk { id, .. } if id.epoch != epoch);
    match record.changes.iter().any(is_foreign) {
        false => Ok(record),
        true => Err(invalid("chunk", format!("is not of epoch {epoch}"))),
    }
}

/// An object that map pages reference.
#[derive(Clone, Copy)]
enum Mapped {
    Chunk(ChunkIndex, ObjectId),
    Overlay(u32, ObjectId),
}

/// What decides which objects of older epochs are still needed.
struct Needed {
    /// Chunk objects that records after the checkpoint referenced when the scan began. If a checkpoint has
    /// folded one of them since, its root references it too.
    by_journal: BTreeSet<(ChunkIndex, ObjectId)>,
    /// Ids of the kept roots.
    kept: BTreeSet<ObjectId>,
    /// The kept roots, by id. They are read when the first object is compared with them: a volume may have
    /// thousands of snapshots, and after most openings there is nothing to compare.
    roots: BTreeMap<ObjectId, Root>,
    /// Whether all kept roots are read.
    is_read: bool,
    /// Kept roots whose deletion may have begun, so that objects they reference may be missing.
    retired: BTreeSet<ObjectId>,
    /// Id of the root table that the head references.
    table: ObjectId,
}

/// Objects that earlier epochs left behind, by the time at which they were folded (Unix time in seconds).
/// They are gathered over the pages of a listing. Queued page by page, they could be so many batches that the
/// queue could not keep any until its grace period is over.
#[derive(Default)]
struct Leftovers(BTreeMap<u64, Vec<String>>);

impl Leftovers {
    fn add(&mut self, folded_at_seconds: u64, names: impl IntoIterator<Item = String>) {
        self.0.entry(folded_at_seconds).or_default().extend(names);
    }

    /// Queues what is due, and what is enough for a request. Queues everything once it is too much to keep.
    fn queue_some(&mut self, trash: &Trash, shared: &Shared) {
        let gathered: usize = self.0.values().map(Vec::len).sum();
        for (folded_at_seconds, names) in &mut self.0 {
            let is_due = grace_left(shared, *folded_at_seconds).is_zero();
            if is_due || names.len() >= store::MAXIMUM_DELETE_KEYS || gathered > GATHERED_KEYS {
                trash.add_left(shared, std::mem::take(names), *folded_at_seconds);
            }
        }
        self.0.retain(|_, names| !names.is_empty());
    }

    fn queue_all(self, trash: &Trash, shared: &Shared) {
        for (folded_at_seconds, names) in self.0 {
            trash.add_left(shared, names, folded_at_seconds);
        }
    }
}

/// Returns when a record of an earlier epoch was folded, as Unix time in seconds: the time at which the first
/// kept root that contains the record replaced the one before it. Returns 0 if that earlier root is gone,
/// since its grace period is over, or if no root was made, since nothing changed.
fn folded_at_seconds(kept: &[KeptRoot], slot: Slot) -> u64 {
    let holder = kept.iter().filter(|kept| kept.commit >= slot).min_by_key(|kept| kept.commit);
    let replaced = holder.and_then(|holder| kept.iter().find(|kept| Some(kept.root) == holder.parent));
    replaced.map_or(0, |replaced| replaced.retired_at_seconds)
}

/// Whether a listing shows that a record has no changes and need not be read. Such a record is a seal, one
/// for each opening, or the opening record of its log.
fn is_empty(entry: &Entry) -> bool {
    entry.size_bytes == EMPTY_RECORD_BYTES && !mutant::is(Mutant::SealsDeleted)
}

impl Collector {
    /// Queues folded records that still exist and replaced root tables. If the volume is unswept, also queues
    /// all other objects that nothing references.
    pub(super) async fn queue_leftovers(&self, unswept: bool) -> Result<(), Error> {
        let shared = &self.shared;
        // Copied before the roots are read, since a checkpoint moves chunks from the journal to the root.
        let by_journal: BTreeSet<(ChunkIndex, ObjectId)> = {
            let state = shared.state.lock();
            state.unfolded().flat_map(|segment| segment.chunks.iter()).copied().collect()
        };
        let mut needed = Needed {
            by_journal,
            kept: BTreeSet::new(),
            roots: BTreeMap::new(),
            is_read: false,
            retired: BTreeSet::new(),
            table: self.trash.table_id(),
        };
        self.renew(&mut needed);
        self.queue_folded_records(self.trash.folded(), &mut needed).await?;
        self.sweep(&shared.keys.roots(), &mut needed).await?;
        if unswept {
            self.sweep(&shared.keys.chunks(), &mut needed).await?;
            self.sweep(&shared.keys.packs(), &mut needed).await?;
            self.sweep(&shared.keys.overlays(), &mut needed).await?;
            self.sweep(&shared.keys.map_pages(), &mut needed).await?;
        }
        Ok(())
    }

    /// Deletes what is due, then refreshes the list of roots: a root that is gone can no longer show what it
    /// shares with those that replaced it.
    async fn give_way(&self, needed: &mut Needed) -> Result<(), Error> {
        self.delete_due().await?;
        self.renew(needed);
        Ok(())
    }

    fn renew(&self, needed: &mut Needed) {
        let kept = self.trash.kept();
        needed.kept = kept.iter().map(|kept| kept.root).collect();
        needed.retired = kept.iter().filter(|kept| kept.is_retired()).map(|kept| kept.root).collect();
        needed.roots.retain(|id, _| needed.kept.contains(id));
        needed.is_read = false;
    }

    /// Reads the kept roots that are not read yet.
    async fn read_roots(&self, needed: &mut Needed) -> Result<(), Error> {
        if needed.is_read {
            return Ok(());
        }
        // The current root is in memory, so it is not read from the store.
        let current = Arc::clone(&self.shared.state.lock().root);
        self.renew(needed);
        if !mutant::is(Mutant::RootSkipped) {
            needed.roots.insert(current.id, Root::clone(&current));
        }
        for id in needed.kept.clone() {
            if needed.roots.contains_key(&id) {
                continue;
            }
            match self.root(id).await? {
                Some(root) => drop(needed.roots.insert(id, root)),
                // Its deletion was interrupted when only its entry in the table was left.
                None if needed.retired.contains(&id) || mutant::is(Mutant::RootSkipped) => {}
                None => return Err(Error::lost(self.shared.keys.root(id))),
            }
        }
        needed.is_read = true;
        Ok(())
    }

    async fn queue_folded_records(&self, checkpoint: Slot, needed: &mut Needed) -> Result<(), Error> {
        let shared = &self.shared;
        let journal = shared.keys.journal();
        let mut pages = Pages::new(shared.env.store.bulk.as_ref(), &journal);
        let (mut begun, mut leftovers) = (BTreeSet::new(), Leftovers::default());
        while let Some(entries) = pages.next().await? {
            for window in entries.chunks(WINDOW) {
                let kept = self.trash.kept();
                for entry in window {
                    // Only logs of older epochs are scanned, since our own records are known.
                    match shared.keys.parse(&entry.key) {
                        Some(Parsed::Record(slot)) if slot <= checkpoint && slot.epoch < shared.epoch => {
                            if !is_empty(entry) {
                                let left = self.left_by(slot, entry, needed).await?;
                                leftovers.add(folded_at_seconds(&kept, slot), left);
                            } else if slot.n == 1 {
                                begun.insert(slot.epoch);
                            }
                        }
                        _ => {}
                    }
                }
                leftovers.queue_some(&self.trash, shared);
                self.give_way(needed).await?;
            }
        }
        leftovers.queue_all(&self.trash, shared);
        if begun.is_empty() { Ok(()) } else { self.queue_opening_records(begun).await }
    }

    /// Queues the opening records of the logs that continue after them. If the first record of a log is its
    /// last, the log was sealed before it began.
    async fn queue_opening_records(&self, mut begun: BTreeSet<Epoch>) -> Result<(), Error> {
        let shared = &self.shared;
        let journal = shared.keys.journal();
        let mut pages = Pages::new(shared.env.store.bulk.as_ref(), &journal);
        let mut leftovers = Leftovers::default();
        while let Some(entries) = pages.next().await? {
            let kept = self.trash.kept();
            for entry in &entries {
                if let Some(Parsed::Record(Slot { epoch, n: 2.. })) = shared.keys.parse(&entry.key)
                    && begun.remove(&epoch)
                {
                    let opening = Slot { epoch, n: 1 };
                    leftovers.add(folded_at_seconds(&kept, opening), [shared.keys.record(opening)]);
                }
            }
            leftovers.queue_some(&self.trash, shared);
        }
        leftovers.queue_all(&self.trash, shared);
        Ok(())
    }

    /// Returns what can be deleted with a folded record: the chunk objects that nothing else references, and
    /// last the record.
    async fn left_by(&self, slot: Slot, entry: &Entry, needed: &mut Needed) -> Result<Vec<String>, Error> {
        // Whoever took the volume over deletes these records. Each that is gone would be asked for again and
        // again.
        self.shared.check_serving()?;
        let record = match self.folded_record(slot, entry).await {
            Ok(record) => record,
            Err(CheckedError::Store(store::Error::NotFound { .. })) => return Ok(Vec::new()),
            Err(CheckedError::Store(error)) => return Err(Error::Store(error)),
            Err(CheckedError::Damaged(error)) => {
                tracing::warn!(key = %entry.key, "a folded record cannot be read, left alone: {error}");
                return Ok(Vec::new());
            }
        };
        if record.kind == RecordKind::Seal && !mutant::is(Mutant::SealsDeleted) {
            return Ok(Vec::new());
        }
        let mut garbage = Vec::new();
        for change in &record.changes {
            if let Change::Chunk { index, id, stored } = change
                && !stored.is_empty()
                && !self.is_needed(needed, Mapped::Chunk(*index, *id)).await?
            {
                garbage.push(self.shared.keys.chunk(*index, *id));
            }
        }
        garbage.push(entry.key.clone());
        Ok(garbage)
    }

    /// Reads the table of a folded record.
    async fn folded_record(&self, slot: Slot, entry: &Entry) -> Result<Record, CheckedError> {
        let store = self.shared.env.store.bulk.as_ref();
        let (record, _) = fetch_table(store, self.shared.keys, slot, entry.size_bytes).await?;
        own_chunks_only(record).map_err(CheckedError::Damaged)
    }

    /// Whether the journal or a kept root references an object, or may do so.
    async fn is_needed(&self, needed: &mut Needed, object: Mapped) -> Result<bool, Error> {
        let number = match object {
            Mapped::Chunk(index, id)
                if needed.by_journal.contains(&(index, id)) && !mutant::is(Mutant::JournalForgotten) =>
            {
                return Ok(true);
            }
            Mapped::Chunk(index, _) => index.map_page(),
            Mapped::Overlay(number, _) => number,
        };
        self.read_roots(needed).await?;
        // Snapshots share most map pages. Each is asked once.
        let mut asked = BTreeSet::new();
        for root in needed.roots.values() {
            let own = root.map_pages.get(&number).filter(|page| page.origin == 0).map(|page| page.id);
            if own.is_some_and(|id| asked.contains(&id)) {
                continue;
            }
            let named = match object {
                Mapped::Chunk(index, id) => names_chunk(&self.shared, root, index, id).await,
                Mapped::Overlay(number, id) => names_overlay(&self.shared, root, number, id).await,
            };
            match named {
                Ok(true) => return Ok(true),
                Ok(false) => asked.extend(own),
                // A retired root that an earlier attempt deleted in part references nothing any more that it
                // does not share. For any other root, an object whose use is unknown is kept.
                Err(Error::Lost { .. }) if needed.retired.contains(&root.id) => {}
                Err(error) if error.is_loss() => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Queues the objects of older epochs under a prefix that nothing references.
    async fn sweep(&self, prefix: &str, needed: &mut Needed) -> Result<(), Error> {
        let shared = &self.shared;
        let mut found = 0;
        let mut pages = Pages::new(shared.env.store.bulk.as_ref(), prefix);
        while let Some(entries) = pages.next().await? {
            let mut garbage = Vec::new();
            for entry in &entries {
                if self.is_orphan(&entry.key, needed).await? {
                    garbage.push(entry.key.clone());
                }
            }
            found += garbage.len();
            self.trash.add(shared, Garbage::Orphans(garbage));
            self.give_way(needed).await?;
        }
        if found > 0 {
            tracing::info!(volume = %shared.keys.volume(), prefix, objects = found,
                "swept what earlier epochs left");
        }
        Ok(())
    }

    /// Whether an object belongs to an older epoch and nothing references it.
    async fn is_orphan(&self, key: &str, needed: &mut Needed) -> Result<bool, Error> {
        let own = self.shared.epoch;
        let end = if mutant::is(Mutant::OwnEpochSwept) { own + 1 } else { own };
        let object = self.shared.keys.parse(key);
        if matches!(object, Some(Parsed::MapPage(_, id) | Parsed::Pack(id)) if id.epoch < end) {
            self.read_roots(needed).await?;
        }
        Ok(match object {
            Some(Parsed::Chunk(index, id)) if id.epoch < end => {
                !self.is_needed(needed, Mapped::Chunk(index, id)).await?
            }
            Some(Parsed::MapPage(number, id)) if id.epoch < end => !needed.roots.values().any(|root| {
                root.map_pages.get(&number).is_some_and(|page| page.origin == 0 && page.id == id)
            }),
            Some(Parsed::Overlay(number, id)) if id.epoch < end => {
                !self.is_needed(needed, Mapped::Overlay(number, id)).await?
            }
            Some(Parsed::Pack(id)) if id.epoch < end => {
                !needed.roots.values().any(|root| root.packs.contains_key(&id))
            }
            Some(Parsed::Root(id)) if id.epoch < end => needed.table != id && !needed.kept.contains(&id),
            _ => false,
        })
    }
}
