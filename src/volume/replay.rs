//! Replay: from a checkpoint through the logs of all older epochs, each ended by a seal.
//!
//! Invariants: records apply in order and each names the checksum of the one before; a log ends only where a seal
//! stands, ours or another's; a seal of a later epoch than ours means that we are fenced.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::time::Instant;
use uuid::Uuid;

use super::codec::{Checksum, DecodeError};
use super::commit::insert_data;
use super::error::OpenError;
use super::geometry::{ChunkIndex, Geometry};
use super::head::{Checkpoint, Head};
use super::interval::IntervalMap;
use super::keys::{Epoch, Keys, ObjectId, Parsed, Slot};
use super::open::fetch_if_present;
use super::piece::{ChunkRef, Piece, RecordRef};
use super::record::{Change, Record, RecordKind, RecordWriter};
use super::root::Root;
use super::shared::Environment;
use super::state::{Committed, Sent};
use super::store_exact::{Placed, create_exact};
use crate::mutant::{self, Mutant};
use crate::store::{self, Pages};

/// Records fetched ahead of the one that is applied.
const FETCHED_AHEAD: usize = 4;

/// Reads the journal.
#[derive(Debug)]
pub(super) struct Replay<'a> {
    env: &'a Environment,
    keys: Keys,
    geometry: Geometry,
    size_bytes: u64,
    /// Our epoch.
    epoch: Epoch,
    /// Checksum of the last record or seal.
    previous: Checksum,
    committed: Committed,
}

/// A record of the journal, read and verified.
struct Entry {
    record: Record,
    checksum: Checksum,
    /// Bytes of its object.
    bytes: u64,
}

impl Entry {
    fn decode(volume: Uuid, slot: Slot, body: &[u8]) -> Result<Self, DecodeError> {
        let (record, checksum) = Record::decode(volume, slot, body)?;
        Ok(Self { record, checksum, bytes: body.len() as u64 })
    }
}

/// What stood in a slot.
enum Found {
    Record,
    Seal,
}

impl<'a> Replay<'a> {
    pub(super) fn new(env: &'a Environment, keys: Keys, root: &Root, epoch: Epoch, from: Checkpoint) -> Self {
        let (geometry, size_bytes) = (root.geometry, root.size_bytes);
        Self {
            env,
            keys,
            geometry,
            size_bytes,
            epoch,
            previous: from.checksum,
            committed: Committed::default(),
        }
    }

    /// Replays everything after `from` below our epoch, seals what is not sealed, and puts our opening record; gives
    /// the changes and the opening record's checksum.
    pub(super) async fn run(mut self, from: Checkpoint) -> Result<(Committed, Checksum), OpenError> {
        let listed = self.list(from.slot).await?;
        let end = if mutant::is(Mutant::OneLogReplayed) { from.slot.epoch + 1 } else { self.epoch };
        for epoch in from.slot.epoch..end {
            let first = if epoch == from.slot.epoch { from.slot.n + 1 } else { 1 };
            self.replay_log(epoch, first, &listed).await?;
        }
        let opening = self.open_log().await?;
        Ok((self.committed, opening))
    }

    /// The slots that a listing shows after the checkpoint: a hint of what to fetch ahead.
    async fn list(&self, from: Slot) -> Result<BTreeSet<Slot>, OpenError> {
        let mut slots = BTreeSet::new();
        let (journal, after) = (self.keys.journal(), self.keys.record(from));
        let mut pages = Pages::after(self.env.store.as_ref(), &journal, &after);
        while let Some(entries) = pages.next().await? {
            for entry in entries {
                if let Some(Parsed::Record(slot)) = self.keys.parse(&entry.key) {
                    slots.insert(slot);
                }
            }
        }
        Ok(slots)
    }

    async fn replay_log(
        &mut self,
        epoch: Epoch,
        first: u64,
        listed: &BTreeSet<Slot>,
    ) -> Result<(), OpenError> {
        let (env, keys) = (self.env, self.keys);
        let run = (first..).map(|n| Slot { epoch, n }).take_while(|slot| listed.contains(slot));
        let fetches = run.map(|slot| fetch_entry(env, keys, slot));
        let mut entries = stream::iter(fetches).buffered(FETCHED_AHEAD);
        let mut next = first;
        while let Some(entry) = entries.next().await {
            // Listed but gone: another opener deleted it, which the seal or the opening record will tell.
            let Some(entry) = entry? else { break };
            if let Found::Seal = self.apply(Slot { epoch, n: next }, &entry)? {
                return Ok(());
            }
            next += 1;
        }
        loop {
            let slot = Slot { epoch, n: next };
            if mutant::is(Mutant::GapIgnored)
                && !listed.contains(&slot)
                && listed.range(slot..).next().is_some_and(|later| later.epoch == epoch)
            {
                next += 1;
                continue;
            }
            if mutant::is(Mutant::LogUnsealed) {
                let Some(entry) = fetch_entry(env, keys, slot).await? else { return Ok(()) };
                if let Found::Seal = self.apply(slot, &entry)? {
                    return Ok(());
                }
                next += 1;
                continue;
            }
            let (bytes, checksum) = self.record(RecordKind::Seal, slot);
            match create_exact(self.env.store.as_ref(), &self.keys.record(slot), &bytes).await? {
                Placed::Ours => {
                    self.previous = checksum;
                    return Ok(());
                }
                Placed::Other(body) => {
                    let entry = Entry::decode(keys.volume(), slot, &body)
                        .map_err(|source| OpenError::Damaged { key: keys.record(slot), source })?;
                    if let Found::Seal = self.apply(slot, &entry)? {
                        return Ok(());
                    }
                }
            }
            next += 1;
        }
    }

    fn record(&self, kind: RecordKind, slot: Slot) -> (Bytes, Checksum) {
        let nonce = self.env.entropy.next_u64();
        let pages = self.geometry.pages_per_chunk();
        let volume = self.keys.volume();
        let (_, bytes, checksum) =
            RecordWriter::new(volume, kind, slot, self.epoch, nonce, self.previous, pages).finish();
        (bytes, checksum)
    }

    /// Puts our opening record: only its success proves the replay.
    async fn open_log(&mut self) -> Result<Checksum, OpenError> {
        let slot = Slot { epoch: self.epoch, n: 1 };
        let (bytes, checksum) = self.record(RecordKind::Opening, slot);
        let key = self.keys.record(slot);
        let placed = match mutant::is(Mutant::OpeningUnproved) {
            false => create_exact(self.env.store.as_ref(), &key, &bytes).await?,
            true => Placed::Ours,
        };
        match placed {
            Placed::Ours => {
                let end = Checkpoint { slot, checksum };
                self.merge(IntervalMap::default(), bytes.len() as u64, end, Vec::new());
                Ok(checksum)
            }
            Placed::Other(found) => {
                Err(OpenError::Lost(super::fence::describe(self.keys.volume(), slot, &found)))
            }
        }
    }

    fn apply(&mut self, slot: Slot, entry: &Entry) -> Result<Found, OpenError> {
        let Entry { record, checksum, bytes } = entry;
        let broken = |why: String| OpenError::BrokenJournal { key: self.keys.record(slot), why };
        if record.kind == RecordKind::Seal && record.writer > self.epoch {
            return Err(OpenError::Lost(format!("epoch {} sealed the journal", record.writer)));
        }
        let unchecked = mutant::is(Mutant::PreviousUnchecked) || mutant::is(Mutant::GapIgnored);
        if record.previous != self.previous && !unchecked {
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
        let (pieces, chunks) = self.pieces(record).map_err(broken)?;
        self.merge(pieces, *bytes, Checkpoint { slot, checksum: *checksum }, chunks);
        Ok(Found::Record)
    }

    fn merge(
        &mut self,
        pieces: IntervalMap<Piece>,
        bytes: u64,
        end: Checkpoint,
        chunks: Vec<(ChunkIndex, ObjectId)>,
    ) {
        let sent = Sent { pieces, record: None, bytes, end, chunks, superseded: Vec::new() };
        self.committed.merge(&sent, Instant::now());
    }

    #[expect(clippy::type_complexity, reason = "a pair of what a commit has")]
    fn pieces(&self, record: &Record) -> Result<(IntervalMap<Piece>, Vec<(ChunkIndex, ObjectId)>), String> {
        let mut pieces = IntervalMap::default();
        let mut chunks = Vec::new();
        for change in &record.changes {
            let end = match change {
                Change::Data { offset, length, .. } => offset.saturating_add(u64::from(*length)),
                Change::Zero { offset, length, .. } => offset.saturating_add(*length),
                Change::Chunk { index, .. } => self.geometry.chunk_range(*index).start.saturating_add(1),
                Change::Resize { .. } | Change::Snapshot { .. } => 0,
            };
            if end > self.size_bytes {
                return Err(format!("changes byte {} of a volume of {}", end - 1, self.size_bytes));
            }
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
                Change::Resize { .. } => {
                    return Err("holds a resize, which this version does not know".to_owned());
                }
                Change::Snapshot { .. } => {
                    return Err("holds a snapshot, which this version does not know".to_owned());
                }
            }
        }
        insert_data(&Arc::new(RecordRef::new(record, None)), &record.changes, &mut pieces);
        Ok((pieces, chunks))
    }
}

async fn fetch_entry(env: &Environment, keys: Keys, slot: Slot) -> Result<Option<Entry>, OpenError> {
    let decode = |body: &[u8]| Entry::decode(keys.volume(), slot, body);
    // A record that is there after all is found when the seal is refused.
    match fetch_if_present(env, &keys.record(slot), decode).await {
        Ok((entry, _)) => Ok(Some(entry)),
        Err(OpenError::Store(store::Error::NotFound { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Seals every log below the epoch of a head that is being deleted: whatever stands in them will go.
pub(super) async fn seal_all(env: &Environment, keys: Keys, head: &Head) -> Result<(), OpenError> {
    let (root, _) = super::open::load_roots(env, keys, head).await?;
    let replay = Replay::new(env, keys, &root, head.epoch, head.checkpoint);
    replay.run(head.checkpoint).await.map(|_| ())
}
