//! Replay: reads the journal from a checkpoint through the logs of all older epochs, each of which ends with
//! a seal. Only the tables of the records are read: they contain the tags that verify the data when it is
//! needed.
//!
//! Owns the order of the journal; it does not know leases or names. Invariants: records are applied in order,
//! and each contains the checksum of the one before. A log ends only at a seal, ours or another's. A seal of
//! a later epoch than ours means that we are fenced.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::time::Instant;

use crate::mutant::{self, Mutant};
use crate::store::{self, Pages};
use crate::volume::environment::Environment;
use crate::volume::error::OpenError;
use crate::volume::format::codec::Checksum;
use crate::volume::format::geometry::{ChunkIndex, Geometry};
use crate::volume::format::head::{Checkpoint, Head};
use crate::volume::format::interval::IntervalMap;
use crate::volume::format::keys::{Epoch, Keys, ObjectId, Parsed, Slot};
use crate::volume::format::record::{Change, Record, RecordKind, RecordWriter};
use crate::volume::format::root::Root;
use crate::volume::format::snapshot::Snapshot;
use crate::volume::objects::{fetch_table, unless_damaged};
use crate::volume::state::Sent;
use crate::volume::state::piece::{ChunkRef, Piece, RecordRef, insert_data};
use crate::volume::state::segments::Segments;
use crate::volume::store_exact::{Placed, create_exact};

/// Number of records fetched ahead of the one being applied.
const FETCHED_AHEAD: usize = 16;

/// The state of a replay.
#[derive(Debug)]
pub(super) struct Replay<'a> {
    env: &'a Environment,
    keys: Keys,
    geometry: Geometry,
    /// Size of the volume in bytes, after the records that were applied.
    size_bytes: u64,
    /// The epoch that this opening has taken.
    epoch: Epoch,
    /// Checksum of the last record or seal.
    previous: Checksum,
    committed: Segments,
}

/// A record of the journal, whose table was read and verified.
struct Entry {
    record: Record,
    checksum: Checksum,
    /// Bytes of its object.
    bytes: u64,
}

/// What a record changes.
#[derive(Default)]
struct Changes {
    /// The changes by offset on the volume.
    pieces: IntervalMap<Piece>,
    /// The chunk objects that it references.
    chunks: Vec<(ChunkIndex, ObjectId)>,
    /// The size in bytes that it gives the volume, if it changes it.
    resized: Option<u64>,
    /// The snapshot that it ends with, if any.
    snapshot: Option<Snapshot>,
}

/// What was found in a slot.
enum Found {
    Record,
    Seal,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(env: &'a Environment, keys: Keys, root: &Root, epoch: Epoch, from: Checkpoint) -> Self {
        let (geometry, size_bytes) = (root.geometry, root.size_bytes);
        Self {
            env,
            keys,
            geometry,
            size_bytes,
            epoch,
            previous: from.checksum,
            committed: Segments::default(),
        }
    }

    /// Replays everything after `from` below our epoch, seals the logs that are not sealed, and puts our
    /// opening record. Returns the changes and the opening record's checksum.
    pub(crate) async fn run(mut self, from: Checkpoint) -> Result<(Segments, Checksum), OpenError> {
        // The listing is only a hint of what to fetch ahead.
        let Logs(listed) = Logs::list(self.env, self.keys, from.slot).await?;
        let end = if mutant::is(Mutant::OneLogReplayed) { from.slot.epoch + 1 } else { self.epoch };
        for epoch in from.slot.epoch..end {
            let first = if epoch == from.slot.epoch { from.slot.n + 1 } else { 1 };
            self.replay_log(epoch, first, &listed).await?;
        }
        let opening = self.open_log().await?;
        Ok((self.committed, opening))
    }

    async fn replay_log(
        &mut self,
        epoch: Epoch,
        first: u64,
        listed: &BTreeMap<Slot, u64>,
    ) -> Result<(), OpenError> {
        let (env, keys) = (self.env, self.keys);
        let slots = (first..).map(|n| Slot { epoch, n });
        let run = slots.map_while(|slot| listed.get(&slot).map(|size_bytes| (slot, *size_bytes)));
        let fetches = run.map(|(slot, size_bytes)| fetch_entry(env, keys, slot, size_bytes));
        let mut entries = stream::iter(fetches).buffered(FETCHED_AHEAD);
        let mut next = first;
        while let Some(entry) = entries.next().await {
            // Listed but missing: another opener deleted it, as the seal or the opening record will show.
            let Some(entry) = entry? else { break };
            if let Found::Seal = self.apply(Slot { epoch, n: next }, &entry)? {
                return Ok(());
            }
            next += 1;
        }
        // Fetches that nothing waits for would keep their share of the limit on store requests.
        drop(entries);
        loop {
            if mutant::is(Mutant::GapIgnored)
                && let Some((later, _)) = listed.range(Slot { epoch, n: next }..).next()
                && later.epoch == epoch
            {
                next = later.n;
            }
            let slot = Slot { epoch, n: next };
            if !listed.contains_key(&slot) && mutant::is(Mutant::LogUnsealed) {
                return Ok(());
            }
            let (bytes, checksum) = self.record(RecordKind::Seal, slot);
            let entry =
                match create_exact(self.env.store.journal.as_ref(), &self.keys.record(slot), &bytes).await? {
                    Placed::Ours => {
                        self.previous = checksum;
                        return Ok(());
                    }
                    Placed::Other(body) => {
                        let (record, checksum) = Record::decode_table_of(keys.sealing(), slot, &body)
                            .map_err(|source| OpenError::Damaged { key: keys.record(slot), source })?;
                        Entry { record, checksum, bytes: body.len() as u64 }
                    }
                    Placed::Larger(size_bytes) => fetch(env, keys, slot, size_bytes).await?,
                };
            if let Found::Seal = self.apply(slot, &entry)? {
                return Ok(());
            }
            next += 1;
        }
    }

    fn record(&self, kind: RecordKind, slot: Slot) -> (Bytes, Checksum) {
        let nonce = self.env.entropy.next_u64();
        let pages = self.geometry.pages_per_chunk();
        let sealing = self.keys.sealing();
        let (_, bytes, checksum) =
            RecordWriter::new(sealing, kind, slot, self.epoch, nonce, self.previous, pages).finish();
        (bytes, checksum)
    }

    /// Puts our opening record. Only its success proves that the replay was complete.
    async fn open_log(&mut self) -> Result<Checksum, OpenError> {
        let slot = Slot { epoch: self.epoch, n: 1 };
        let (bytes, checksum) = self.record(RecordKind::Opening, slot);
        let key = self.keys.record(slot);
        let placed = if mutant::is(Mutant::OpeningUnproved) {
            Placed::Ours
        } else {
            create_exact(self.env.store.journal.as_ref(), &key, &bytes).await?
        };
        match placed {
            Placed::Ours => {
                let end = Checkpoint { slot, checksum };
                self.merge(Changes::default(), bytes.len() as u64, end);
                Ok(checksum)
            }
            Placed::Other(found) => Err(OpenError::Lost(crate::volume::format::fence::describe(
                self.keys.sealing(),
                slot,
                &found,
            ))),
            Placed::Larger(bytes) => Err(OpenError::Lost(format!("a record of {bytes} bytes"))),
        }
    }

    fn apply(&mut self, slot: Slot, entry: &Entry) -> Result<Found, OpenError> {
        let Entry { record, checksum, bytes } = entry;
        let broken = |why: String| OpenError::BrokenJournal { key: self.keys.record(slot), why };
        if record.kind == RecordKind::Seal && record.writer > self.epoch {
            return Err(OpenError::Lost(format!("epoch {} sealed the journal", record.writer)));
        }
        if record.previous != self.previous
            && !mutant::is(Mutant::PreviousUnchecked)
            && !mutant::is(Mutant::GapIgnored)
        {
            let why =
                format!("follows record {:?}, but {:?} stands before it", record.previous, self.previous);
            return Err(broken(why));
        }
        if record.pages_per_chunk != self.geometry.pages_per_chunk() {
            return Err(broken("was written for another chunk size".to_owned()));
        }
        self.previous = *checksum;
        if record.kind == RecordKind::Seal {
            return Ok(if mutant::is(Mutant::SealPassed) { Found::Record } else { Found::Seal });
        }
        let changes = self.changes(record).map_err(broken)?;
        self.merge(changes, *bytes, Checkpoint { slot, checksum: *checksum });
        Ok(Found::Record)
    }

    fn merge(&mut self, changes: Changes, bytes: u64, end: Checkpoint) {
        let Changes { pieces, chunks, resized, snapshot } = changes;
        self.size_bytes = resized.unwrap_or(self.size_bytes);
        let sent =
            Sent { pieces, record: None, bytes, end, chunks, superseded: Vec::new(), resized, snapshot };
        self.committed.merge(&sent, Instant::now(), |_, _| ());
    }

    /// Converts the changes of a record.
    fn changes(&self, record: &Record) -> Result<Changes, String> {
        let Changes { mut pieces, mut chunks, mut resized, mut snapshot } = Changes::default();
        record.check_within(self.geometry, self.size_bytes)?;
        for change in &record.changes {
            match change {
                Change::Zero { offset, length, hole } => {
                    pieces.insert(*offset..*offset + *length, Piece::Zero { hole: *hole });
                }
                Change::Chunk { index, id, stored } => {
                    let chunk = ChunkRef::durable(*index, *id, record.pages_per_chunk, *stored);
                    pieces.insert(self.geometry.chunk_range(*index), Piece::Chunk(Arc::new(chunk), 0));
                    if !stored.is_empty() {
                        chunks.push((*index, *id));
                    }
                }
                Change::Data { .. } => {}
                Change::Resize { .. } if mutant::is(Mutant::ResizeUnreplayed) => {}
                Change::Resize { size_bytes } => resized = Some(*size_bytes),
                Change::Snapshot(_) if mutant::is(Mutant::SnapshotUnreplayed) => {}
                Change::Snapshot(taken) => snapshot = Some(taken.clone()),
            }
        }
        insert_data(&Arc::new(RecordRef::new(record, None)), &record.changes, &mut pieces);
        Ok(Changes { pieces, chunks, resized, snapshot })
    }
}

/// Fetches the record in a slot if it exists. The size is that of the listing.
async fn fetch_entry(
    env: &Environment,
    keys: Keys,
    slot: Slot,
    size_bytes: u64,
) -> Result<Option<Entry>, OpenError> {
    match fetch(env, keys, slot, size_bytes).await {
        Ok(entry) => Ok(Some(entry)),
        // If the record exists after all, the refusal of the seal reveals it.
        Err(OpenError::Store(store::Error::NotFound { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn fetch(env: &Environment, keys: Keys, slot: Slot, size_bytes: u64) -> Result<Entry, OpenError> {
    let read = fetch_table(env.store.as_ref(), keys, slot, size_bytes).await;
    let (record, checksum) = unless_damaged(&keys.record(slot), read)?;
    Ok(Entry { record, checksum, bytes: size_bytes })
}

/// The slots in a listing, with the sizes of their objects in bytes.
#[derive(Debug)]
pub(crate) struct Logs(BTreeMap<Slot, u64>);

impl Logs {
    /// Lists the slots after `from`.
    pub(crate) async fn list(env: &Environment, keys: Keys, from: Slot) -> Result<Self, OpenError> {
        let mut slots = BTreeMap::new();
        let (journal, after) = (keys.journal(), keys.record(from));
        let mut pages = Pages::after(env.store.as_ref(), &journal, &after);
        while let Some(entries) = pages.next().await? {
            for entry in entries {
                if let Some(Parsed::Record(slot)) = keys.parse(&entry.key) {
                    slots.insert(slot, entry.size_bytes);
                }
            }
        }
        Ok(Self(slots))
    }

    /// The newest epoch that has a record in the listing.
    pub(crate) fn last_epoch(&self) -> Option<Epoch> {
        self.0.last_key_value().map(|(slot, _)| slot.epoch)
    }
}

/// Seals every log below the epoch of a head that is being deleted. All records in these logs will be
/// deleted, so none is read, and a damaged one does not get in the way.
pub(crate) async fn seal_all(env: &Environment, keys: Keys, head: &Head) -> Result<(), OpenError> {
    let from = head.checkpoint.slot;
    let logs = Logs::list(env, keys, from).await?;
    for epoch in from.epoch..head.epoch {
        let first = if epoch == from.epoch { from.n + 1 } else { 1 };
        seal_log(env, keys, head.epoch, Slot { epoch, n: first }, &logs).await?;
    }
    Ok(())
}

/// Puts a seal into the first free slot of a log, starting at a slot.
async fn seal_log(
    env: &Environment,
    keys: Keys,
    writer: Epoch,
    first: Slot,
    logs: &Logs,
) -> Result<(), OpenError> {
    let Slot { epoch, mut n } = first;
    loop {
        let slot = Slot { epoch, n };
        if logs.0.contains_key(&slot) {
            n += 1;
            continue;
        }
        // Only an opener of an earlier epoch can meet this seal while it replays. It looks at nothing but the
        // seal's writer, so the checksum of the previous record is left empty.
        let nonce = env.entropy.next_u64();
        let seal =
            RecordWriter::new(keys.sealing(), RecordKind::Seal, slot, writer, nonce, Checksum::default(), 1);
        let (_, bytes, _) = seal.finish();
        match create_exact(env.store.as_ref(), &keys.record(slot), &bytes).await {
            Ok(Placed::Ours) => return Ok(()),
            Ok(Placed::Other(body)) => match Record::decode_table_of(keys.sealing(), slot, &body) {
                Ok((record, _)) if record.kind == RecordKind::Seal => return Ok(()),
                Ok(_) | Err(_) => n += 1,
            },
            Ok(Placed::Larger(_)) => n += 1,
            // Another deletion has got further.
            Err(store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
