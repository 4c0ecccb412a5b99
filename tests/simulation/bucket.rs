//! What an opener would recover from the current bucket, read by independent code.
//!
//! Follows head, root, map pages and chunk objects, then the journal from the checkpoint to the first free
//! slot of each log. It must share nothing with Cairn but the codecs. Invariant: everything that the head,
//! the root and the journal reference must exist and be sound; otherwise the check fails.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use cairn::volume::format::chunk::ChunkObject;
use cairn::volume::format::codec::Checksum;
use cairn::volume::format::geometry::{ChunkIndex, PAGE_BYTES};
use cairn::volume::format::head::Head;
use cairn::volume::format::keys::{Keys, ObjectId, Parsed, Slot};
use cairn::volume::format::map::{Entry, MapPage};
use cairn::volume::format::page_set::PageSet;
use cairn::volume::format::record::{Change, Record, RecordKind};
use cairn::volume::format::root::{Root, RootTable};
use uuid::Uuid;

use super::cells::{CELL, CELL_LEN, Id, Layout, TORN, identify};

/// All objects of a store, by key.
pub(super) type Objects = BTreeMap<String, Bytes>;

/// The result of a recovery.
#[derive(Debug)]
pub(super) struct Recovered {
    /// The content of every cell.
    pub(super) image: Vec<Id>,
    /// Cells that are marked as lost.
    pub(super) lost: BTreeSet<u32>,
    /// The head that the recovery began with.
    pub(super) head: Head,
    /// The root table.
    pub(super) table: RootTable,
    /// Keys of every object that the head, the current root and the journal after the checkpoint reference.
    pub(super) named: BTreeSet<String>,
}

/// The decoded content of objects, decoded once for each: objects never change, except those that are damaged
/// at rest.
#[derive(Default)]
pub(super) struct Known {
    chunks: BTreeMap<String, (Bytes, Arc<Chunk>)>,
    records: BTreeMap<String, (Bytes, Arc<Told>)>,
    maps: BTreeMap<String, (Bytes, Arc<BTreeMap<u16, Entry>>)>,
}

/// The decoded content of a chunk object.
struct Chunk {
    index: ChunkIndex,
    id: ObjectId,
    stored: PageSet,
    /// The offset of each page, and the changes that wrote its cells.
    pages: Vec<(u64, Vec<Id>)>,
}

/// The decoded content of a record.
struct Told {
    record: Record,
    checksum: Checksum,
    /// The changes that wrote the cells of each `Data` change.
    data: Vec<Vec<Id>>,
}

/// Returns the decoded content of an object. Calls `find` if its bytes are not the known ones.
fn once<T>(
    known: &mut BTreeMap<String, (Bytes, Arc<T>)>,
    key: &str,
    bytes: &Bytes,
    find: impl FnOnce() -> Result<T, String>,
) -> Result<Arc<T>, String> {
    if let Some((seen, told)) = known.get(key)
        && seen.as_ptr() == bytes.as_ptr()
        && seen.len() == bytes.len()
    {
        return Ok(Arc::clone(told));
    }
    let told = Arc::new(find()?);
    known.insert(key.to_owned(), (bytes.clone(), Arc::clone(&told)));
    Ok(told)
}

impl Known {
    /// Forgets objects that no longer exist.
    fn forget(&mut self, objects: &Objects) {
        if self.chunks.len() + self.records.len() + self.maps.len() > 4 * objects.len() + 64 {
            self.chunks.retain(|key, _| objects.contains_key(key));
            self.records.retain(|key, _| objects.contains_key(key));
            self.maps.retain(|key, _| objects.contains_key(key));
        }
    }
}

/// Reads a bucket.
struct Reader<'a> {
    objects: &'a Objects,
    known: &'a mut Known,
    layout: &'a Layout,
    keys: Keys,
    image: Vec<Id>,
    lost: BTreeSet<u32>,
    named: BTreeSet<String>,
}

/// Reads the head of the volume.
pub(super) fn head(objects: &Objects, volume: Uuid) -> Result<Head, String> {
    let key = Keys::new(volume).head();
    let bytes = objects.get(&key).ok_or_else(|| format!("{key} is gone"))?;
    Head::decode(volume, bytes).map_err(|error| format!("{key}: {error}"))
}

/// Recovers what an opener would recover now.
pub(super) fn recover(
    objects: &Objects,
    volume: Uuid,
    layout: &Layout,
    known: &mut Known,
) -> Result<Recovered, String> {
    known.forget(objects);
    let head = head(objects, volume)?;
    let keys = Keys::new(volume);
    let image = vec![0; layout.cells() as usize];
    let (lost, named) = (BTreeSet::new(), BTreeSet::new());
    let mut reader = Reader { objects, known, layout, keys, image, lost, named };
    reader.named.extend([keys.head(), keys.identity()]);
    let root = reader.root(head.root)?;
    let table = reader.object(&keys.root(head.root_table))?;
    let table =
        RootTable::decode(volume, head.root_table, table).map_err(|error| format!("root table: {error}"))?;
    reader.apply_root(&root)?;
    reader.replay(&head)?;
    Ok(Recovered { image: reader.image, lost: reader.lost, head, table, named: reader.named })
}

/// Checks that every object that a kept root references exists and is sound.
pub(super) fn check_root(
    objects: &Objects,
    volume: Uuid,
    layout: &Layout,
    id: ObjectId,
    known: &mut Known,
) -> Result<(), String> {
    let image = vec![0; layout.cells() as usize];
    let keys = Keys::new(volume);
    let (lost, named) = (BTreeSet::new(), BTreeSet::new());
    let mut reader = Reader { objects, known, layout, keys, image, lost, named };
    let root = reader.root(id)?;
    reader.apply_root(&root)
}

impl<'a> Reader<'a> {
    fn object(&mut self, key: &str) -> Result<&'a Bytes, String> {
        self.named.insert(key.to_owned());
        self.objects.get(key).ok_or_else(|| format!("{key} is named and gone"))
    }

    fn root(&mut self, id: ObjectId) -> Result<Root, String> {
        let key = self.keys.root(id);
        let bytes = self.object(&key)?;
        Root::decode(self.keys.volume(), id, bytes).map_err(|error| format!("{key}: {error}"))
    }

    fn apply_root(&mut self, root: &Root) -> Result<(), String> {
        for (number, reference) in &root.map_pages {
            let key = self.keys.map_page(*number, reference.id);
            let bytes = self.object(&key)?;
            let volume = self.keys.volume();
            let entries = once(&mut self.known.maps, &key, bytes, || {
                let page = MapPage::decode(volume, *number, reference.id, root.geometry, bytes);
                page.map(|page| page.entries()).map_err(|error| format!("{key}: {error}"))
            })?;
            for (slot, entry) in entries.iter() {
                self.apply_entry(ChunkIndex::at(*number, *slot), entry)?;
            }
        }
        Ok(())
    }

    fn apply_entry(&mut self, index: ChunkIndex, entry: &Entry) -> Result<(), String> {
        let start = u64::from(index.0) * self.layout.chunk;
        if let Some(base) = &entry.base {
            self.apply_chunk(index, base.id, base.stored)?;
        }
        if !entry.packs.is_empty() {
            return Err(format!("chunk {} is in packs, which no writer makes yet", index.0));
        }
        for damage in &entry.damage {
            let page = start + u64::from(damage.page) * PAGE_BYTES;
            for sector in (0..PAGE_BYTES / 512).filter(|sector| !damage.is_good(*sector)) {
                let bytes = page + sector * 512..page + (sector + 1) * 512;
                self.lost.extend(self.layout.cells_of(&bytes).into_iter().flat_map(|(_, cells)| cells));
            }
        }
        Ok(())
    }

    /// A chunk object replaces the whole content of its chunk.
    fn apply_chunk(&mut self, index: ChunkIndex, id: ObjectId, stored: PageSet) -> Result<(), String> {
        let start = u64::from(index.0) * self.layout.chunk;
        self.zero(start..start + self.layout.chunk);
        if stored.is_empty() {
            return Ok(());
        }
        let key = self.keys.chunk(index, id);
        let bytes = self.object(&key)?;
        let (volume, layout) = (self.keys.volume(), self.layout);
        let chunk = once(&mut self.known.chunks, &key, bytes, || {
            let object = ChunkObject::decode(volume, bytes).map_err(|error| format!("{key}: {error}"))?;
            let pages = object.stored.iter().zip(&object.pages).map(|(page, payload)| {
                let start = start + u64::from(page) * PAGE_BYTES;
                (start, who(layout, start, payload))
            });
            let pages = pages.collect();
            Ok(Chunk { index: object.index, id: object.id, stored: object.stored, pages })
        })?;
        if (chunk.index, chunk.id, chunk.stored) != (index, id, stored) {
            return Err(format!("{key} is another object"));
        }
        for (start, ids) in &chunk.pages {
            self.data(*start..start + PAGE_BYTES, ids);
        }
        Ok(())
    }

    fn zero(&mut self, range: Range<u64>) {
        for (_, cells) in self.layout.cells_of(&range) {
            self.found(&cells);
            self.image[cells.start as usize..cells.end as usize].fill(0);
        }
    }

    /// Sets the cells of a range, in order, to these changes.
    fn data(&mut self, range: Range<u64>, mut ids: &[Id]) {
        for (_, cells) in self.layout.cells_of(&range) {
            self.found(&cells);
            let (these, rest) = ids.split_at(cells.len());
            self.image[cells.start as usize..cells.end as usize].copy_from_slice(these);
            ids = rest;
        }
    }

    fn found(&mut self, cells: &Range<u32>) {
        if !self.lost.is_empty() {
            self.lost.retain(|cell| !cells.contains(cell));
        }
    }

    fn replay(&mut self, head: &Head) -> Result<(), String> {
        let mut previous = head.checkpoint.checksum;
        let mut slot = Slot { n: head.checkpoint.slot.n + 1, ..head.checkpoint.slot };
        loop {
            let key = self.keys.record(slot);
            let Some(bytes) = self.objects.get(&key) else {
                let later = self.keys.record(Slot { epoch: slot.epoch + 1, n: 1 });
                if self.objects.contains_key(&later) {
                    return Err(format!("{key} is free, and {later} stands"));
                }
                return Ok(());
            };
            self.named.insert(key.clone());
            let (volume, layout) = (self.keys.volume(), self.layout);
            let told = once(&mut self.known.records, &key, bytes, || {
                Told::of(volume, layout, slot, bytes).map_err(|why| format!("{key}: {why}"))
            })?;
            if told.record.previous != previous {
                return Err(format!("{key} does not follow the record before it"));
            }
            previous = told.checksum;
            if told.record.kind == RecordKind::Seal {
                slot = Slot { epoch: slot.epoch + 1, n: 1 };
                continue;
            }
            self.apply_record(&told)?;
            slot.n += 1;
        }
    }

    fn apply_record(&mut self, told: &Told) -> Result<(), String> {
        let mut data = told.data.iter();
        for change in &told.record.changes {
            match change {
                Change::Data { offset, length, .. } => {
                    let ids = data.next().expect("one for each");
                    self.data(*offset..*offset + u64::from(*length), ids);
                }
                Change::Zero { offset, length, .. } => self.zero(*offset..offset + length),
                Change::Chunk { index, id, stored } => self.apply_chunk(*index, *id, *stored)?,
                Change::Resize { .. } | Change::Snapshot { .. } => {
                    return Err("a record has a change that no client asked for".to_owned());
                }
            }
        }
        Ok(())
    }
}

/// Returns the change that wrote each cell of `bytes` at `start`, for the cells in use.
fn who(layout: &Layout, start: u64, bytes: &[u8]) -> Vec<Id> {
    let whole = start.is_multiple_of(CELL) && (bytes.len() as u64).is_multiple_of(CELL);
    let mut ids = Vec::with_capacity(bytes.len() / CELL_LEN);
    for (offset, cells) in layout.cells_of(&(start..start + bytes.len() as u64)) {
        for (cell, offset) in cells.zip((offset..).step_by(CELL_LEN)) {
            let at = usize::try_from(offset - start).expect("within the data");
            ids.push(if whole { identify(&bytes[at..at + CELL_LEN], cell) } else { TORN });
        }
    }
    ids
}

impl Told {
    fn of(volume: Uuid, layout: &Layout, slot: Slot, bytes: &Bytes) -> Result<Self, String> {
        let (record, checksum) = Record::decode(volume, slot, bytes).map_err(|error| error.to_string())?;
        let data = record.changes.iter().filter_map(|change| match change {
            Change::Data { offset, length, at, .. } => {
                let at = usize::try_from(*at).expect("within the record");
                Some(who(layout, *offset, &bytes[at..at + *length as usize]))
            }
            _ => None,
        });
        let data = data.collect();
        Ok(Self { record, checksum, data })
    }
}

/// Returns the objects of the volume that nothing references: not the head, the current root, the journal
/// after the checkpoint, nor a seal.
pub(super) fn garbage(objects: &Objects, volume: Uuid, recovered: &Recovered) -> Vec<String> {
    let keys = Keys::new(volume);
    let is_kept = |key: &str| match keys.parse(key) {
        Some(Parsed::Root(id)) => id == recovered.head.root_table || recovered.named.contains(key),
        Some(Parsed::Record(slot)) => {
            let decoded = Record::decode(volume, slot, &objects[key]);
            recovered.named.contains(key)
                || slot == recovered.head.checkpoint.slot
                || decoded.is_ok_and(|(record, _)| record.kind == RecordKind::Seal)
        }
        _ => recovered.named.contains(key),
    };
    objects.keys().filter(|key| key.starts_with(&keys.prefix()) && !is_kept(key)).cloned().collect()
}
