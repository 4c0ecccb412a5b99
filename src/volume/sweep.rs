//! Finding what earlier epochs left behind: folded records, and objects that were never published.
//!
//! Looks at names of older epochs only: what our own epoch makes is never an orphan. Invariant: an object is queued
//! for deletion only if no kept root, no record after the checkpoint and no head names it.

use std::collections::BTreeSet;

use super::collect::{Collector, Garbage};
use super::error::{Error, OpenError};
use super::fold::names_chunk;
use super::geometry::ChunkIndex;
use super::keys::{ObjectId, Parsed, Slot};
use super::open::read_head;
use super::record::{Change, Record, RecordKind};
use super::root::Root;
use crate::mutant::{self, Mutant};
use crate::store::{self, ByteRange};

/// Names looked at before the garbage among them is queued.
const WINDOW: usize = 10_000;

impl Collector {
    /// Queues folded records that stand still, replaced root tables, and where the volume is unswept also all other
    /// objects that nothing names.
    pub(super) async fn queue_leftovers(&self, unswept: bool) -> Result<(), Error> {
        let shared = &self.shared;
        // What records after the checkpoint name must stay: taken before the roots, since a
        // checkpoint moves it there.
        let named: BTreeSet<(ChunkIndex, ObjectId)> = {
            let state = shared.state.lock();
            let folding = state.folding.iter().flat_map(|folding| folding.chunks.iter());
            state.committed.chunks.iter().chain(folding).copied().collect()
        };
        let named = if mutant::is(Mutant::JournalForgotten) { BTreeSet::new() } else { named };
        let (head, _) = match read_head(&shared.env, shared.keys).await {
            Ok(found) => found,
            Err(OpenError::Store(error)) => return Err(Error::Store(error)),
            Err(error) => return Err(Error::Damaged { key: shared.keys.head(), why: error.to_string() }),
        };
        let mut roots = Vec::new();
        for kept in self.trash.kept() {
            roots.extend(self.root(kept.root).await?);
        }
        self.queue_folded_records(head.checkpoint.slot, &roots, &named).await?;
        let tables = BTreeSet::from([head.root_table, self.trash.table_id()]);
        self.sweep(&shared.keys.roots(), &roots, &named, &tables).await?;
        if unswept {
            self.sweep(&shared.keys.chunks(), &roots, &named, &tables).await?;
            self.sweep(&shared.keys.map_pages(), &roots, &named, &tables).await?;
        }
        Ok(())
    }

    async fn queue_folded_records(
        &self,
        checkpoint: Slot,
        roots: &[Root],
        named: &BTreeSet<(ChunkIndex, ObjectId)>,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        let mut after = None;
        loop {
            let listing = shared.env.store.list(&shared.keys.journal(), after.as_deref()).await?;
            let mut garbage = Vec::new();
            for entry in &listing.entries {
                let Some(Parsed::Record(slot)) = shared.keys.parse(&entry.key) else { continue };
                // Only logs of older epochs: our own records are known.
                if slot > checkpoint || slot.epoch >= shared.epoch {
                    break;
                }
                let body = match shared.env.store.get(&entry.key, ByteRange::Full).await {
                    Ok(object) => object.body,
                    Err(store::Error::NotFound { .. }) => continue,
                    Err(error) => return Err(Error::Store(error)),
                };
                let Ok((record, _)) = Record::decode(shared.keys.volume(), slot, &body) else {
                    tracing::warn!(key = %entry.key, "a folded record cannot be read, left alone");
                    continue;
                };
                if record.kind == RecordKind::Seal && !mutant::is(Mutant::SealsDeleted) {
                    continue;
                }
                for change in &record.changes {
                    if let Change::Chunk { index, id, stored } = change
                        && !stored.is_empty()
                        && !named.contains(&(*index, *id))
                        && !self.is_named(roots, *index, *id).await?
                    {
                        garbage.push(shared.keys.chunk(*index, *id));
                    }
                }
                garbage.push(entry.key.clone());
            }
            let done = listing
                .entries
                .last()
                .filter(|_| listing.more)
                .filter(|last| !matches!(shared.keys.parse(&last.key), Some(Parsed::Record(slot)) if slot > checkpoint));
            self.trash.add(shared, Garbage::Objects(garbage));
            match done {
                Some(last) => after = Some(last.key.clone()),
                None => return Ok(()),
            }
        }
    }

    async fn is_named(&self, roots: &[Root], index: ChunkIndex, id: ObjectId) -> Result<bool, Error> {
        for root in roots {
            match names_chunk(&self.shared, root, index, id).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                // A retired root that an earlier attempt half deleted names nothing any more that it does not share;
                // of the current one, whatever cannot be told is kept.
                Err(Error::Lost { .. }) => {
                    if root.id == self.shared.state.lock().root.id {
                        return Ok(true);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Queues objects under a prefix, of older epochs, that nothing names.
    async fn sweep(
        &self,
        prefix: &str,
        roots: &[Root],
        named: &BTreeSet<(ChunkIndex, ObjectId)>,
        tables: &BTreeSet<ObjectId>,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        let end = shared.epoch + u32::from(mutant::is(Mutant::OwnEpochSwept));
        let mut found = 0;
        let mut after = None;
        loop {
            let listing = shared.env.store.list(prefix, after.as_deref()).await?;
            let mut garbage = Vec::new();
            for entry in &listing.entries {
                let is_garbage = match shared.keys.parse(&entry.key) {
                    Some(Parsed::Chunk(index, id)) if id.epoch < end => {
                        !named.contains(&(index, id)) && !self.is_named(roots, index, id).await?
                    }
                    Some(Parsed::MapPage(number, id)) if id.epoch < end => !roots.iter().any(|root| {
                        root.map_pages.get(&number).is_some_and(|page| page.origin == 0 && page.id == id)
                    }),
                    Some(Parsed::Root(id)) if id.epoch < end => {
                        !tables.contains(&id) && !roots.iter().any(|root| root.id == id)
                    }
                    _ => false,
                };
                if is_garbage {
                    garbage.push(entry.key.clone());
                }
                if garbage.len() == WINDOW {
                    found += garbage.len();
                    self.trash.add(shared, Garbage::Orphans(std::mem::take(&mut garbage)));
                }
            }
            found += garbage.len();
            self.trash.add(shared, Garbage::Orphans(garbage));
            match listing.entries.last() {
                Some(last) if listing.more => after = Some(last.key.clone()),
                _ => break,
            }
        }
        if found > 0 {
            tracing::info!(volume = %shared.keys.volume(), prefix, objects = found, "swept what earlier epochs left");
        }
        Ok(())
    }
}
