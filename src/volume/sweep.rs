//! Finding what earlier epochs left behind: folded records, and objects that were never published.
//!
//! Looks at names of older epochs only: what our own epoch makes is never an orphan. Invariant: an object is queued
//! for deletion only if no kept root, no record after the checkpoint and no head names it.

use std::collections::BTreeSet;
use std::ops::Range;

use uuid::Uuid;

use super::codec::{DecodeError, invalid};
use super::collect::{Collector, Garbage};
use super::error::{Error, OpenError};
use super::fold::names_chunk;
use super::geometry::ChunkIndex;
use super::keys::{ObjectId, Parsed, Slot};
use super::open::read_head;
use super::record::{Change, Record, RecordKind};
use super::root::Root;
use super::store_exact::{CheckedError, fetch_checked};
use crate::mutant::{self, Mutant};
use crate::store::{self, ByteRange, Entry, Store};

/// Names looked at before the garbage among them is queued.
const WINDOW: usize = 10_000;
/// Bytes from which on a record is not read whole, and that are read first for its table: that of a commit of 16 MiB
/// in blocks of 4 KiB fits.
const TABLE_BYTES: u64 = 128 << 10;

/// Reads a record up to its data.
async fn read_table(store: &dyn Store, volume: Uuid, entry: &Entry) -> Result<Vec<u8>, CheckedError> {
    let get = async |range: Range<u64>| {
        let range = ByteRange::Bounded { offset: range.start, length: range.end - range.start };
        store.get(&entry.key, range).await.map(|object| object.body).map_err(CheckedError::Store)
    };
    let mut table = get(0..TABLE_BYTES).await?.to_vec();
    let end = Record::table_bytes(volume, &table, entry.size_bytes).map_err(CheckedError::Damaged)?;
    if end > TABLE_BYTES {
        table.extend_from_slice(&get(TABLE_BYTES..end).await?);
    }
    table.truncate(usize::try_from(end).expect("a record fits into memory"));
    Ok(table)
}

/// A record names chunk objects of its own epoch alone, which is over: one that seems to name another's is not to be
/// trusted with what it tells to delete.
fn own_chunks_only(record: Record) -> Result<Record, DecodeError> {
    let epoch = record.slot.epoch;
    let is_foreign = |change: &Change| matches!(change, Change::Chunk { id, .. } if id.epoch != epoch);
    match record.changes.iter().any(is_foreign) {
        false => Ok(record),
        true => Err(invalid("chunk", format!("is not of epoch {epoch}"))),
    }
}

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
                let record = match self.folded_record(slot, entry).await {
                    Ok(record) => record,
                    Err(CheckedError::Store(store::Error::NotFound { .. })) => continue,
                    Err(CheckedError::Store(error)) => return Err(Error::Store(error)),
                    Err(CheckedError::Damaged(error)) => {
                        tracing::warn!(key = %entry.key, "a folded record cannot be read, left alone: {error}");
                        continue;
                    }
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

    /// A folded record. Of a large one only the table is read: what it tells to delete is asked about before.
    async fn folded_record(&self, slot: Slot, entry: &Entry) -> Result<Record, CheckedError> {
        let (store, volume) = (self.shared.env.store.as_ref(), self.shared.keys.volume());
        if entry.size_bytes <= TABLE_BYTES {
            let decode = |body: &[u8]| Record::decode(volume, slot, body).map(|(record, _)| record);
            return fetch_checked(store, &entry.key, decode).await.map(|(record, _)| record);
        }
        // Nothing but another reading stands for a table without its data.
        let mut last = read_table(store, volume, entry).await;
        loop {
            let next = read_table(store, volume, entry).await;
            match (last, next) {
                (Ok(last), Ok(next)) if last == next => {
                    let record =
                        Record::decode_unverified(volume, slot, &next).map_err(CheckedError::Damaged)?;
                    return own_chunks_only(record).map_err(CheckedError::Damaged);
                }
                (Err(CheckedError::Damaged(_)), Err(error)) | (_, Err(error @ CheckedError::Store(_))) => {
                    return Err(error);
                }
                (_, next) => last = next,
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
