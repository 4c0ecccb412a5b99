//! What an opener would recover from the bucket as it lies, read by code of its own.
//!
//! Follows head, root, map pages and chunk objects, then the journal from the checkpoint to the first free slot of
//! each log. Shares with Cairn the codecs alone. Everything that the head, the root and the journal name must be
//! there and whole; whatever is not is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use cairn::volume::chunk::ChunkObject;
use cairn::volume::geometry::{ChunkIndex, PAGE_BYTES};
use cairn::volume::head::Head;
use cairn::volume::keys::{Keys, ObjectId, Parsed, Slot};
use cairn::volume::map::{Entry, MapPage};
use cairn::volume::page_set::PageSet;
use cairn::volume::record::{Change, Record, RecordKind};
use cairn::volume::root::{Root, RootTable};
use uuid::Uuid;

use super::cells::{CELL, CELL_LEN, Id, Layout, TORN, identify};

/// All objects of a store.
pub(super) type Objects = BTreeMap<String, Bytes>;

/// What an opener would find.
#[derive(Debug)]
pub(super) struct Recovered {
    /// Content of every cell.
    pub(super) image: Vec<Id>,
    /// Cells that are marked as lost.
    pub(super) lost: BTreeSet<u32>,
    /// The head.
    pub(super) head: Head,
    /// The root table.
    pub(super) table: RootTable,
    /// Every object that the head, the current root and the journal after the checkpoint name.
    pub(super) named: BTreeSet<String>,
}

/// Reads a bucket.
struct Reader<'a> {
    objects: &'a Objects,
    layout: &'a Layout,
    keys: Keys,
    image: Vec<Id>,
    lost: BTreeSet<u32>,
    named: BTreeSet<String>,
}

/// The head of the volume.
pub(super) fn head(objects: &Objects, volume: Uuid) -> Result<Head, String> {
    let key = Keys::new(volume).head();
    let bytes = objects.get(&key).ok_or_else(|| format!("{key} is gone"))?;
    Head::decode(volume, bytes).map_err(|error| format!("{key}: {error}"))
}

/// What an opener would recover now.
pub(super) fn recover(objects: &Objects, volume: Uuid, layout: &Layout) -> Result<Recovered, String> {
    let head = head(objects, volume)?;
    let keys = Keys::new(volume);
    let image = vec![0; layout.cells() as usize];
    let mut reader = Reader { objects, layout, keys, image, lost: BTreeSet::new(), named: BTreeSet::new() };
    reader.named.extend([keys.head(), keys.identity()]);
    let root = reader.root(head.root)?;
    let table = reader.object(&keys.root(head.root_table))?;
    let table =
        RootTable::decode(volume, head.root_table, table).map_err(|error| format!("root table: {error}"))?;
    reader.apply_root(&root)?;
    reader.replay(&head)?;
    Ok(Recovered { image: reader.image, lost: reader.lost, head, table, named: reader.named })
}

/// Checks that everything that a kept root names is there and whole.
pub(super) fn check_root(
    objects: &Objects,
    volume: Uuid,
    layout: &Layout,
    id: ObjectId,
) -> Result<(), String> {
    let image = vec![0; layout.cells() as usize];
    let keys = Keys::new(volume);
    let mut reader = Reader { objects, layout, keys, image, lost: BTreeSet::new(), named: BTreeSet::new() };
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
            let page = MapPage::decode(self.keys.volume(), *number, reference.id, root.geometry, bytes)
                .map_err(|error| format!("{key}: {error}"))?;
            for (slot, entry) in page.entries() {
                self.apply_entry(ChunkIndex::at(*number, slot), &entry)?;
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

    /// A chunk object takes the place of all that its chunk held.
    fn apply_chunk(&mut self, index: ChunkIndex, id: ObjectId, stored: PageSet) -> Result<(), String> {
        let start = u64::from(index.0) * self.layout.chunk;
        self.zero(start..start + self.layout.chunk);
        if stored.is_empty() {
            return Ok(());
        }
        let key = self.keys.chunk(index, id);
        let bytes = self.object(&key)?;
        let object =
            ChunkObject::decode(self.keys.volume(), bytes).map_err(|error| format!("{key}: {error}"))?;
        if (object.index, object.id, object.stored) != (index, id, stored) {
            return Err(format!("{key} is another object"));
        }
        for (page, payload) in object.stored.iter().zip(object.pages) {
            self.data(start + u64::from(page) * PAGE_BYTES, payload);
        }
        Ok(())
    }

    fn cells(&mut self, range: &Range<u64>, mut each: impl FnMut(&mut Id, u64, u32)) {
        for (offset, cells) in self.layout.cells_of(range) {
            for (cell, offset) in cells.zip((offset..).step_by(CELL_LEN)) {
                each(&mut self.image[cell as usize], offset, cell);
                self.lost.remove(&cell);
            }
        }
    }

    fn zero(&mut self, range: Range<u64>) {
        self.cells(&range, |id, _, _| *id = 0);
    }

    fn data(&mut self, start: u64, bytes: &[u8]) {
        if !start.is_multiple_of(CELL) || !(bytes.len() as u64).is_multiple_of(CELL) {
            self.cells(&(start..start + bytes.len() as u64), |id, _, _| *id = TORN);
            return;
        }
        self.cells(&(start..start + bytes.len() as u64), |id, offset, cell| {
            let at = usize::try_from(offset - start).expect("within the data");
            *id = identify(&bytes[at..at + CELL_LEN], cell);
        });
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
            let (record, checksum) =
                Record::decode(self.keys.volume(), slot, bytes).map_err(|error| format!("{key}: {error}"))?;
            if record.previous != previous {
                return Err(format!("{key} does not follow the record before it"));
            }
            previous = checksum;
            if record.kind == RecordKind::Seal {
                slot = Slot { epoch: slot.epoch + 1, n: 1 };
                continue;
            }
            self.apply_record(&record, bytes)?;
            slot.n += 1;
        }
    }

    fn apply_record(&mut self, record: &Record, bytes: &Bytes) -> Result<(), String> {
        for change in &record.changes {
            match change {
                Change::Data { offset, length, at, .. } => {
                    let at = usize::try_from(*at).expect("within the record");
                    self.data(*offset, &bytes[at..at + *length as usize]);
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

/// Objects of the volume that nothing names: not the head, the current root, the journal after the checkpoint, nor
/// a seal.
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
