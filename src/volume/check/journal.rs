//! The journal: every record from the checkpoint to the end, as a chain.
//!
//! Writes no seal, so it may see the journal of a running gateway. Must not know roots. Invariants: records
//! count in order up to the first free slot of the last log. A free slot that no running gateway can still
//! fill, and that a later record follows, is a record that was lost.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use futures::stream::{self, StreamExt as _};

use super::context::{Context, Stop};
use super::frames;
use super::report::{Depth, ObjectKind, Purpose, Trouble, Usage};
use super::suspects::{Loss, Part, Suspects};
use crate::store::error::cause;
use crate::store::{self, ByteRange, Pages};
use crate::volume::format::codec::Checksum;
use crate::volume::format::geometry::{ChunkIndex, Geometry};
use crate::volume::format::head::Lease;
use crate::volume::format::interval::{IntervalMap, Value};
use crate::volume::format::keys::{Epoch, ObjectId, Parsed, Slot};
use crate::volume::format::page_set::PageSet;
use crate::volume::format::record::{Change, EMPTY_RECORD_BYTES, Record, RecordKind};
use crate::volume::objects::fetch_table;
use crate::volume::store_exact::{CheckedError, get_referenced};

/// Number of records fetched ahead of the one being checked.
const FETCHED_AHEAD: usize = 16;
/// How often the store may deny a record that it then returns.
const DENIALS: u32 = 10;
/// The most commits that a gateway can be set to have in flight. More records than that after a free slot
/// cannot have been sent before the record in it was durable.
const MOST_IN_FLIGHT: u64 = 64;

/// Where the last change of a range is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// Nowhere: the range reads as zeros.
    Zero,
    /// In a record, at this offset in bytes.
    Data { slot: Slot, at: u64 },
    /// In a chunk object that a record references.
    Chunk(ChunkIndex, ObjectId, Box<PageSet>),
}

impl Value for Source {
    fn advanced(&self, by: u64) -> Self {
        match self {
            Self::Data { slot, at } => Self::Data { slot: *slot, at: at + by },
            other => other.clone(),
        }
    }
}

/// The changes after the checkpoint.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// Where the changed ranges of the volume are.
    pub(super) changes: IntervalMap<Source>,
    /// Size of the volume in bytes after these records, if one of them changes it.
    pub(super) resized: Option<u64>,
    /// Chunk objects that these records reference: index, id, pages that the object stores.
    pub(super) chunks: Vec<(ChunkIndex, ObjectId, PageSet)>,
    /// Epochs with records before the checkpoint that wait for their deletion.
    pub(super) folded_epochs: BTreeSet<Epoch>,
    /// The first epoch with records that do not count, or cannot be read. Chunk objects that only they
    /// reference are not known. Each record references chunk objects of its own epoch only.
    pub(super) unread_from: Option<Epoch>,
    pub(super) usage: Usage,
    pub(super) notes: Vec<String>,
}

/// The records that a listing shows after the checkpoint, with the length of each in bytes.
type Listed = BTreeMap<Slot, u64>;

/// Checks all records. `volume` is the size of the volume in bytes and its chunk size, if they are known.
pub(super) async fn check(
    context: &Context<'_>,
    volume: Option<(u64, Geometry)>,
    suspects: &mut Suspects,
) -> Result<Journal, Stop> {
    let mut journal = Journal::default();
    let listed = list(context, &mut journal).await?;
    let later = listed.keys().next_back().is_some_and(|last| last.epoch > context.head.epoch);
    if later {
        return Err(Stop::Moved);
    }
    let chain = Chain {
        context,
        volume,
        next: after(context.head.checkpoint.slot),
        previous: context.head.checkpoint.checksum,
        journal,
    };
    let journal = chain.follow(&listed, suspects).await?;
    // Records that were folded and deleted since the head was read are missing without a trace.
    context.confirm_checkpoint().await?;
    Ok(journal)
}

fn after(slot: Slot) -> Slot {
    Slot { n: slot.n + 1, ..slot }
}

/// Lists the journal. Counts what lies before the checkpoint.
async fn list(context: &Context<'_>, journal: &mut Journal) -> Result<Listed, Stop> {
    let from = context.head.checkpoint.slot;
    let prefix = context.keys.journal();
    let mut listed = Listed::new();
    let mut pages = Pages::new(context.store(), &prefix);
    while let Some(entries) = pages.next().await? {
        for entry in entries {
            let Some(Parsed::Record(slot)) = context.keys.parse(&entry.key) else { continue };
            if slot > from {
                journal.usage.add(ObjectKind::Record, Purpose::Live, entry.size_bytes);
                listed.insert(slot, entry.size_bytes);
            } else if entry.size_bytes == EMPTY_RECORD_BYTES {
                // A seal, which is kept as long as the volume, or the opening record of a log that has a
                // seal.
                journal.usage.add(ObjectKind::Record, Purpose::Live, entry.size_bytes);
            } else {
                journal.usage.add(ObjectKind::Record, Purpose::Waiting, entry.size_bytes);
                journal.folded_epochs.insert(slot.epoch);
            }
        }
    }
    Ok(listed)
}

/// The chain of records, up to where it has been followed.
struct Chain<'a> {
    context: &'a Context<'a>,
    volume: Option<(u64, Geometry)>,
    next: Slot,
    /// Table checksum of the record before `next`.
    previous: Checksum,
    journal: Journal,
}

impl Chain<'_> {
    async fn follow(mut self, listed: &Listed, suspects: &mut Suspects) -> Result<Journal, Stop> {
        let context = self.context;
        let records: Vec<(Slot, u64)> = listed.iter().map(|(slot, bytes)| (*slot, *bytes)).collect();
        let fetches = stream::iter(records)
            .map(|(slot, bytes)| async move { (slot, bytes, table(context, slot, bytes).await) });
        let mut records = fetches.buffered(FETCHED_AHEAD);
        while let Some((slot, bytes, read)) = records.next().await {
            if slot < self.next {
                // After a seal, nothing in its log counts.
                self.journal.notes.push(format!("{}: follows the end of its log", context.keys.record(slot)));
                continue;
            }
            if slot != self.next {
                drop(records);
                self.hole(listed, suspects).await?;
                return Ok(self.journal);
            }
            match read? {
                Err(loss) => return self.broken(slot, loss, suspects).await,
                Ok((record, checksum)) => {
                    if let Err(why) = self.apply(&record, checksum) {
                        return self.broken(slot, Loss::damaged(why), suspects).await;
                    }
                    if context.depth == Depth::Data {
                        // Checked one after another, since a record may be large.
                        self.check_data(&record, bytes, suspects).await?;
                    }
                }
            }
        }
        drop(records);
        Ok(self.journal)
    }

    /// Notes a record that breaks the chain: the volume is not opened.
    async fn broken(mut self, slot: Slot, loss: Loss, suspects: &mut Suspects) -> Result<Journal, Stop> {
        self.journal.unread_from = Some(slot.epoch);
        self.context.confirm_checkpoint().await?;
        self.context.note(suspects, Parsed::Record(slot), loss, Part::Opening);
        Ok(self.journal)
    }

    /// Applies the next record. Returns why it does not continue the chain.
    fn apply(&mut self, record: &Record, checksum: Checksum) -> Result<(), String> {
        if record.previous != self.previous {
            return Err(format!("it follows record {:?}, not {:?}", record.previous, self.previous));
        }
        if let Some((size_bytes, geometry)) = self.volume
            && record.kind != RecordKind::Seal
        {
            if record.pages_per_chunk != geometry.pages_per_chunk() {
                return Err("it was written for another chunk size".to_owned());
            }
            record.check_within(geometry, size_bytes).map_err(|why| format!("it {why}"))?;
            for change in &record.changes {
                self.change(record.slot, change, size_bytes, geometry);
            }
            if let Some(size_bytes) = record.resized() {
                (self.volume, self.journal.resized) = (Some((size_bytes, geometry)), Some(size_bytes));
            }
        }
        self.previous = checksum;
        self.next = match record.kind {
            RecordKind::Seal => Slot { epoch: record.slot.epoch + 1, n: 1 },
            RecordKind::Opening | RecordKind::Commit => after(record.slot),
        };
        Ok(())
    }

    fn change(&mut self, slot: Slot, change: &Change, size_bytes: u64, geometry: Geometry) {
        let (range, source) = match change {
            Change::Data { offset, length, at, .. } => {
                (*offset..offset.saturating_add(u64::from(*length)), Source::Data { slot, at: *at })
            }
            Change::Zero { offset, length, .. } => (*offset..offset.saturating_add(*length), Source::Zero),
            Change::Chunk { index, id, stored } => {
                let range = geometry.chunk_range(*index);
                if !stored.is_empty() {
                    self.journal.chunks.push((*index, *id, *stored));
                }
                let end = range.end.min(size_bytes.max(range.start));
                (range.start..end, Source::Chunk(*index, *id, Box::new(*stored)))
            }
            Change::Resize { .. } | Change::Snapshot(_) => return,
        };
        self.journal.changes.insert(range, source);
    }

    /// The slot `next` is free, and later records exist.
    async fn hole(&mut self, listed: &Listed, suspects: &mut Suspects) -> Result<(), Stop> {
        let context = self.context;
        let hole = self.next;
        self.journal.unread_from = Some(hole.epoch);
        let key = context.keys.record(hole);
        context.confirm_checkpoint().await?;
        match get_referenced(context.store(), &key, ByteRange::Bounded { offset: 0, length: 1 }).await {
            Err(store::Error::NotFound { .. }) => {}
            // It was written since the listing.
            Ok(_) => return Err(Stop::Moved),
            Err(error) => return Err(error.into()),
        }
        context.confirm_checkpoint().await?;
        let last = *listed.keys().next_back().expect("a later record exists");
        if last.epoch > hole.epoch {
            // A log is sealed before anything is put into a later one.
            context.note(suspects, Parsed::Record(hole), Loss::missing(), Part::Opening);
            return Ok(());
        }
        let behind: Vec<(Slot, u64)> = listed.range(hole..).map(|(slot, bytes)| (*slot, *bytes)).collect();
        let is_over = hole.epoch == context.head.epoch && !matches!(context.head.lease, Lease::Held { .. });
        if !is_over && hole.n > 1 && (behind.len() as u64) < MOST_IN_FLIGHT {
            self.journal.notes.push(format!(
                "{key}: does not exist, and {} later records do; a gateway that commits or died while it did \
                 leaves this, and no flush that it answered depends on them",
                behind.len()
            ));
            return Ok(());
        }
        let mut ranges = Vec::new();
        for (slot, bytes) in behind {
            if let Ok((record, _)) = table(context, slot, bytes).await? {
                ranges.extend(record.changes.iter().filter_map(|change| self.range_of(change)));
            }
        }
        let why = "it does not exist, and later records do: the next opening ignores them".to_owned();
        let loss = Loss { trouble: Trouble::Missing, why };
        context.note(suspects, Parsed::Record(hole), loss, Part::Older(ranges));
        Ok(())
    }

    fn range_of(&self, change: &Change) -> Option<Range<u64>> {
        match change {
            Change::Data { offset, length, .. } => Some(*offset..offset.saturating_add(u64::from(*length))),
            Change::Zero { offset, length, .. } => Some(*offset..offset.saturating_add(*length)),
            Change::Chunk { index, .. } => self.volume.map(|(_, geometry)| geometry.chunk_range(*index)),
            Change::Resize { .. } | Change::Snapshot(_) => None,
        }
    }

    /// Checks the data of a record.
    async fn check_data(&self, record: &Record, bytes: u64, suspects: &mut Suspects) -> Result<(), Stop> {
        let context = self.context;
        let object = Parsed::Record(record.slot);
        let read = frames::verify_record(context, record, bytes).await;
        match context.unless_replaced(object, read).await? {
            Ok(None) => {}
            Ok(Some(bad)) => {
                context.confirm_checkpoint().await?;
                context.note(suspects, object, bad.loss, Part::Bytes(bad.bytes));
            }
            Err(loss) => context.note(suspects, object, loss, Part::Opening),
        }
        Ok(())
    }
}

/// Reads the table of a record that the listing shows.
async fn table(
    context: &Context<'_>,
    slot: Slot,
    bytes: u64,
) -> Result<Result<(Record, Checksum), Loss>, Stop> {
    let (sealing, key) = (context.keys.sealing(), context.keys.record(slot));
    if bytes < EMPTY_RECORD_BYTES {
        // No record is that short.
        let decode = |object: &[u8]| Record::decode_table_of(sealing, slot, object);
        return context.fetch(Parsed::Record(slot), decode).await;
    }
    for _ in 0..DENIALS {
        let read = fetch_table(context.store(), context.keys, slot, bytes).await;
        if !matches!(read, Err(CheckedError::Store(store::Error::NotFound { .. }))) {
            return context.unless_replaced(Parsed::Record(slot), read).await;
        }
        // A single answer is not believed.
        match get_referenced(context.store(), &key, ByteRange::Bounded { offset: 0, length: 1 }).await {
            Err(store::Error::NotFound { .. }) => {
                context.confirm_checkpoint().await?;
                return Ok(Err(Loss::missing()));
            }
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let source = cause("the store denies the record again and again, and then returns it");
    Err(store::Error::Transient { key, source }.into())
}
