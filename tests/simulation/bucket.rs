//! What an opener would recover from the current bucket, read by independent code.
//!
//! Follows head, root, map pages, overlays, packs and chunk objects, then the journal from the checkpoint to the first free
//! slot of each log. It must share nothing with Cairn but the codecs. Invariant: everything that the head,
//! the root and the journal reference must exist and be sound; otherwise the check fails.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use cairn::volume::format::chunk::ChunkObject;
use cairn::volume::format::codec::Checksum;
use cairn::volume::format::geometry::{BLOCK_BYTES, ChunkIndex, PAGE_BYTES, PageIndex};
use cairn::volume::format::head::Head;
use cairn::volume::format::keys::{Keys, ObjectId, Parsed, Slot};
use cairn::volume::format::map::{Entry, MapPage, OverlayPlace, OverlayRef};
use cairn::volume::format::overlay::{Overlay, Target};
use cairn::volume::format::pack::Pack;
use cairn::volume::format::page_set::PageSet;
use cairn::volume::format::record::{Change, Record, RecordKind};
use cairn::volume::format::root::{BlockCounts, PackUse, Root, RootTable};
use cairn::volume::format::sealing::Sealing;
use cairn::volume::format::snapshot::Snapshot;
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
    /// The snapshots in the journal after the checkpoint, with the slots of their records and what they contain.
    pub(super) snapshots: Vec<(Slot, Snapshot, Vec<Id>)>,
}

/// What a kept root has.
pub(super) struct Whole {
    /// The last commit that it contains.
    pub(super) commit: Slot,
    /// The content of every cell.
    pub(super) image: Vec<Id>,
    /// Keys of the root and of every object that it references.
    pub(super) named: BTreeSet<String>,
}

/// The decoded content of objects, decoded once for each: objects never change, except those that are damaged
/// at rest.
#[derive(Default)]
pub(super) struct Known {
    chunks: BTreeMap<String, (Bytes, Arc<Chunk>)>,
    records: BTreeMap<String, (Bytes, Arc<Told>)>,
    maps: BTreeMap<String, (Bytes, Arc<MapPage>)>,
    overlays: BTreeMap<String, (Bytes, Arc<Overlay>)>,
    packs: BTreeMap<String, (Bytes, Arc<Packed>)>,
    /// Whether objects are damaged or lost at rest. The counts in the root are estimates afterwards.
    rots: bool,
}

/// The decoded content of a pack: the block of each frame, and the changes that wrote its cells.
struct Packed(Vec<(u64, Vec<Id>)>);

/// Numbers of blocks that were counted while a map page was read.
#[derive(Default)]
struct Counted {
    page: BlockCounts,
    /// Frames in use, by pack.
    live: BTreeMap<ObjectId, u32>,
}

/// The decoded content of a chunk object.
struct Chunk {
    index: ChunkIndex,
    id: ObjectId,
    stored: PageSet,
    /// The offset of each block, and the changes that wrote its cells.
    blocks: Vec<(u64, Vec<Id>)>,
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
    /// Knows nothing yet. `rots` says whether objects are damaged or lost at rest.
    pub(super) fn new(rots: bool) -> Self {
        Self { rots, ..Self::default() }
    }

    /// Forgets objects that no longer exist.
    fn forget(&mut self, objects: &Objects) {
        if self.chunks.len() + self.records.len() + self.maps.len() > 4 * objects.len() + 64 {
            self.chunks.retain(|key, _| objects.contains_key(key));
            self.records.retain(|key, _| objects.contains_key(key));
            self.maps.retain(|key, _| objects.contains_key(key));
            self.overlays.retain(|key, _| objects.contains_key(key));
            self.packs.retain(|key, _| objects.contains_key(key));
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
    snapshots: Vec<(Slot, Snapshot, Vec<Id>)>,
    /// Blocks that an overlay locates in a pack that is gone.
    gone: BTreeMap<u64, ObjectId>,
}

/// Reads the head of the volume.
pub(super) fn head(objects: &Objects, volume: Uuid) -> Result<Head, String> {
    let key = Keys::new(volume).head();
    let bytes = objects.get(&key).ok_or_else(|| format!("{key} is gone"))?;
    Head::decode(volume, bytes).map_err(|error| format!("{key}: {error}"))
}

/// Reads the root table that the head references.
pub(super) fn table(objects: &Objects, volume: Uuid) -> Result<RootTable, String> {
    let id = head(objects, volume)?.root_table;
    let key = Keys::new(volume).root(id);
    let bytes = objects.get(&key).ok_or_else(|| format!("{key} is named and gone"))?;
    RootTable::decode(Sealing::new(volume), id, bytes).map_err(|error| format!("root table: {error}"))
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
    let mut reader = Reader::new(objects, volume, layout, known);
    reader.named.extend([keys.head(), keys.identity()]);
    let root = reader.root(head.root)?;
    let table = table(objects, volume)?;
    reader.named.insert(keys.root(head.root_table));
    reader.apply_root(&root)?;
    reader.replay(&head)?;
    let Reader { image, lost, named, snapshots, .. } = reader;
    Ok(Recovered { image, lost, head, table, named, snapshots })
}

/// Checks that every object that a kept root references exists and is sound. Returns what the root has.
pub(super) fn check_root(
    objects: &Objects,
    volume: Uuid,
    layout: &Layout,
    id: ObjectId,
    known: &mut Known,
) -> Result<Whole, String> {
    let mut reader = Reader::new(objects, volume, layout, known);
    let root = reader.root(id)?;
    reader.apply_root(&root)?;
    match reader.lost.is_empty() || reader.known.rots {
        true => Ok(Whole { commit: root.commit, image: reader.image, named: reader.named }),
        false => Err(format!("cells {:?} of {id:?} are marked as lost", reader.lost)),
    }
}

impl<'a> Reader<'a> {
    /// Begins with an empty disk.
    fn new(objects: &'a Objects, volume: Uuid, layout: &'a Layout, known: &'a mut Known) -> Self {
        let image = vec![0; layout.cells() as usize];
        let (lost, named, snapshots, gone) = Default::default();
        Self { objects, known, layout, keys: Keys::new(volume), image, lost, named, snapshots, gone }
    }

    fn object(&mut self, key: &str) -> Result<&'a Bytes, String> {
        self.named.insert(key.to_owned());
        self.objects.get(key).ok_or_else(|| format!("{key} is named and gone"))
    }

    fn root(&mut self, id: ObjectId) -> Result<Root, String> {
        let key = self.keys.root(id);
        let bytes = self.object(&key)?;
        Root::decode(self.keys.sealing(), id, bytes).map_err(|error| format!("{key}: {error}"))
    }

    fn apply_root(&mut self, root: &Root) -> Result<(), String> {
        let mut live: BTreeMap<ObjectId, u32> = BTreeMap::new();
        for (number, reference) in &root.map_pages {
            let key = self.keys.map_page(*number, reference.id);
            let bytes = self.object(&key)?;
            let sealing = self.keys.sealing();
            let page = once(&mut self.known.maps, &key, bytes, || {
                MapPage::decode(sealing, *number, reference.id, root.geometry, bytes)
                    .map_err(|error| format!("{key}: {error}"))
            })?;
            let mut overlays = Vec::new();
            for overlay in page.overlays() {
                overlays.push((overlay, self.overlay(root, *number, overlay)?));
            }
            let mut counted = Counted::default();
            for (slot, entry) in page.entries() {
                self.apply_entry(ChunkIndex::at(*number, slot), &entry, &overlays, &mut counted)?;
            }
            if counted.page != reference.counts && !self.known.rots {
                return Err(format!("{key}: has {:?}, the root says {:?}", counted.page, reference.counts));
            }
            for (pack, frames) in counted.live {
                *live.entry(pack).or_default() += frames;
            }
        }
        self.check_packs(root, &live)
    }

    /// Every pack in use is in the root's list, with the right count, and no other.
    fn check_packs(&mut self, root: &Root, live: &BTreeMap<ObjectId, u32>) -> Result<(), String> {
        for (id, used) in live {
            let frames = self.pack(*id)?.0.len() as u64;
            let told = root.packs.get(id).ok_or_else(|| format!("{id:?} is in use, and not in the root"))?;
            let is_right = told.live == *used || (self.known.rots && told.live > *used);
            if !is_right || u64::from(told.frames) != frames {
                return Err(format!("{id:?}: {used} of {frames} frames in use, the root says {told:?}"));
            }
        }
        let unused: Vec<(&ObjectId, &PackUse)> =
            root.packs.iter().filter(|(id, _)| !live.contains_key(id)).collect();
        for (id, _) in &unused {
            self.named.insert(self.keys.pack(**id));
        }
        match unused.is_empty() || self.known.rots {
            true => Ok(()),
            false => Err(format!("no block is in the packs {unused:?}")),
        }
    }

    fn overlay(&mut self, root: &Root, number: u32, overlay: &OverlayRef) -> Result<Arc<Overlay>, String> {
        let id = match &overlay.place {
            OverlayPlace::Embedded(overlay) => return Ok(Arc::clone(overlay)),
            OverlayPlace::Object { id, .. } => *id,
        };
        let key = self.keys.overlay(number, id);
        let bytes = self.object(&key)?;
        let sealing = self.keys.sealing();
        once(&mut self.known.overlays, &key, bytes, || {
            Overlay::decode(sealing, number, id, root.geometry, bytes)
                .map_err(|error| format!("{key}: {error}"))
        })
    }

    /// A pack that is in use.
    fn pack(&mut self, id: ObjectId) -> Result<Arc<Packed>, String> {
        self.named.insert(self.keys.pack(id));
        self.packed(id)
    }

    /// A pack that an overlay names. It may be garbage, if other overlays or chunks replace all of its frames.
    fn packed(&mut self, id: ObjectId) -> Result<Arc<Packed>, String> {
        let key = self.keys.pack(id);
        let bytes = self.objects.get(&key).ok_or_else(|| format!("{key} is named and gone"))?;
        let (sealing, layout) = (self.keys.sealing(), self.layout);
        once(&mut self.known.packs, &key, bytes, || {
            let pack = Pack::decode(sealing, bytes).map_err(|error| format!("{key}: {error}"))?;
            if pack.id != id {
                return Err(format!("{key} is another pack"));
            }
            let blocks = pack.blocks.iter();
            let blocks = blocks.map(|(block, payload)| (block.0, who(layout, block.offset(), payload)));
            Ok(Packed(blocks.collect()))
        })
    }

    /// Applies an overlay to a chunk. `located` collects where its blocks are.
    fn apply_overlay(
        &mut self,
        index: ChunkIndex,
        overlay: &Overlay,
        located: &mut BTreeMap<u64, Option<ObjectId>>,
    ) -> Result<(), String> {
        let blocks_per_chunk = self.layout.chunk / BLOCK_BYTES;
        let map_page = u64::from(index.map_page()) * 4096 * blocks_per_chunk;
        let chunk = u64::from(index.0) * blocks_per_chunk..(u64::from(index.0) + 1) * blocks_per_chunk;
        for run in overlay.runs() {
            for offset in 0..run.count() {
                let block = map_page + u64::from(run.first() + offset);
                if !chunk.contains(&block) {
                    continue;
                }
                let range = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
                let Target::Frame { pack, frame } = run.target() else {
                    located.insert(block, None);
                    self.zero(range);
                    continue;
                };
                let (_, id) = overlay.pack(self.keys.volume(), pack);
                located.insert(block, Some(id));
                let frame = usize::from(frame) + offset as usize;
                // A frame that a newer overlay replaced may be in a pack that was deleted.
                if !self.objects.contains_key(&self.keys.pack(id)) {
                    self.gone.insert(block, id);
                    continue;
                }
                match self.packed(id)?.0.get(frame) {
                    Some((found, ids)) if *found == block => self.data(range, ids),
                    found => {
                        let found = found.map(|(block, _)| block);
                        return Err(format!("frame {frame} of {id:?} has block {found:?}, not {block}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn apply_entry(
        &mut self,
        index: ChunkIndex,
        entry: &Entry,
        overlays: &[(&OverlayRef, Arc<Overlay>)],
        counted: &mut Counted,
    ) -> Result<(), String> {
        let start = u64::from(index.0) * self.layout.chunk;
        if let Some(base) = &entry.base {
            self.apply_chunk(index, base.id, base.stored)?;
            counted.page.stored += base.stored.len() * 16;
        }
        let mut located = BTreeMap::new();
        // The newest is applied last and decides.
        for (reference, overlay) in overlays {
            if reference.chunks.contains(index.slot()) {
                self.apply_overlay(index, overlay, &mut located)?;
            }
        }
        if located.len() != usize::from(entry.overlaid) {
            return Err(format!(
                "chunk {}: {} blocks overlaid, not {}",
                index.0,
                located.len(),
                entry.overlaid
            ));
        }
        for (block, pack) in located {
            counted.page.overlaid += 1;
            let page = PageIndex::at(block * BLOCK_BYTES - start);
            counted.page.hidden += u32::from(entry.base.is_some_and(|base| base.stored.contains(page)));
            let Some(pack) = pack else { continue };
            *counted.live.entry(pack).or_default() += 1;
            if self.gone.get(&block) == Some(&pack) {
                return Err(format!("block {block} is in {pack:?}, which is gone"));
            }
        }
        for page in entry.lost.iter() {
            let page = start + page.offset();
            let cells = self.layout.cells_of(&(page..page + PAGE_BYTES));
            self.lost.extend(cells.into_iter().flat_map(|(_, cells)| cells));
        }
        for damage in &entry.damage {
            let page = start + damage.page.offset();
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
        let (sealing, layout) = (self.keys.sealing(), self.layout);
        let chunk = once(&mut self.known.chunks, &key, bytes, || {
            let object = ChunkObject::decode(sealing, bytes).map_err(|error| format!("{key}: {error}"))?;
            let blocks = object.stored.iter().flat_map(|page| (0..16).map(move |block| (page, block)));
            let blocks = blocks.zip(&object.blocks).map(|((page, block), payload)| {
                let start = start + page.offset() + block * BLOCK_BYTES;
                (start, who(layout, start, payload))
            });
            let blocks = blocks.collect();
            Ok(Chunk { index: object.index, id: object.id, stored: object.stored, blocks })
        })?;
        if (chunk.index, chunk.id, chunk.stored) != (index, id, stored) {
            return Err(format!("{key} is another object"));
        }
        for (start, ids) in &chunk.blocks {
            self.data(*start..start + BLOCK_BYTES, ids);
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
            let (sealing, layout) = (self.keys.sealing(), self.layout);
            let told = once(&mut self.known.records, &key, bytes, || {
                Told::of(sealing, layout, slot, bytes).map_err(|why| format!("{key}: {why}"))
            })?;
            if told.record.previous != previous {
                return Err(format!("{key} does not follow the record before it"));
            }
            previous = told.checksum;
            if told.record.kind == RecordKind::Seal {
                slot = Slot { epoch: slot.epoch + 1, n: 1 };
                continue;
            }
            self.apply_record(slot, &told)?;
            slot.n += 1;
        }
    }

    fn apply_record(&mut self, slot: Slot, told: &Told) -> Result<(), String> {
        let mut data = told.data.iter();
        for change in &told.record.changes {
            match change {
                Change::Data { offset, length, .. } => {
                    let ids = data.next().expect("one for each");
                    self.data(*offset..*offset + u64::from(*length), ids);
                }
                Change::Zero { offset, length, .. } => self.zero(*offset..offset + length),
                Change::Chunk { index, id, stored } => self.apply_chunk(*index, *id, *stored)?,
                Change::Snapshot(snapshot) => {
                    self.snapshots.push((slot, snapshot.clone(), self.image.clone()));
                }
                Change::Resize { .. } => {
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
    fn of(sealing: Sealing, layout: &Layout, slot: Slot, bytes: &Bytes) -> Result<Self, String> {
        let (record, checksum) = Record::decode(sealing, slot, bytes).map_err(|error| error.to_string())?;
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

/// Returns the objects of the volume that nothing references: not the head, the current root, a snapshot, the
/// journal after the checkpoint, nor a seal. `kept` are the keys of what snapshots have.
pub(super) fn garbage(
    objects: &Objects,
    volume: Uuid,
    recovered: &Recovered,
    kept: &BTreeSet<String>,
) -> Vec<String> {
    let keys = Keys::new(volume);
    let is_kept = |key: &str| match keys.parse(key) {
        Some(Parsed::Root(id)) => id == recovered.head.root_table || recovered.named.contains(key),
        Some(Parsed::Record(slot)) => {
            let decoded = Record::decode(keys.sealing(), slot, &objects[key]);
            recovered.named.contains(key)
                || slot == recovered.head.checkpoint.slot
                || decoded.is_ok_and(|(record, _)| record.kind == RecordKind::Seal)
        }
        // A hint that nothing references.
        Some(Parsed::FirstReads) => true,
        _ => recovered.named.contains(key),
    };
    let is_left = |key: &&String| key.starts_with(&keys.prefix()) && !kept.contains(*key) && !is_kept(key);
    objects.keys().filter(is_left).cloned().collect()
}
