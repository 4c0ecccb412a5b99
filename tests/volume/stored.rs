//! What the root that the head references has in the bucket, decoded from its objects.
//!
//! Every count that the root and its map pages contain is compared with what their overlays and entries say.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use cairn::volume::cache::index::LoadedOverlay;
use cairn::volume::format::geometry::{BLOCKS_PER_PAGE, ChunkIndex, PageIndex};
use cairn::volume::format::head::Head;
use cairn::volume::format::keys::{Keys, ObjectId, volume_of};
use cairn::volume::format::map::{Base, MapPage, OverlayPlace};
use cairn::volume::format::overlay::Overlay;
use cairn::volume::format::pack;
use cairn::volume::format::root::{BlockCounts, PackUse, Root, RootTable};
use cairn::volume::format::snapshot::Snapshot;
use cairn::volume::read::base::{Located, located};

use super::bench::Bench;

/// The current root and what it references.
pub(crate) struct Stored {
    pub(crate) root: Root,
    /// Keys of the root, of its table, and of all objects that it references.
    pub(crate) keys: BTreeSet<String>,
    /// The overlays of each map page.
    pub(crate) overlays: BTreeMap<u32, usize>,
    /// Where each block is: the key of its object, and which of the object's blocks it is. The others are
    /// zeros.
    pub(crate) places: BTreeMap<u64, (String, u64)>,
    /// How many frames of each pack are in use.
    in_use: BTreeMap<ObjectId, u32>,
}

impl Stored {
    /// Reads the objects of the only volume of a bench.
    pub(crate) fn of(bench: &Bench) -> Self {
        let objects = bench.memory.objects();
        let head = objects.keys().find(|key| key.ends_with("/head")).expect("one volume");
        let keys = Keys::new(volume_of(head).expect("a volume's head"));
        let head = Head::decode(keys.volume(), &objects[head]).expect("a head");
        let mut stored = Self::of_root(&objects, keys, head.root);
        stored.keys.insert(keys.root(head.root_table));
        stored
    }

    fn of_root(objects: &BTreeMap<String, bytes::Bytes>, keys: Keys, id: ObjectId) -> Self {
        let root_key = keys.root(id);
        let root = Root::decode(keys.sealing(), id, &objects[&root_key]).expect("a root");
        let named = BTreeSet::from([root_key]);
        let (overlays, in_use, places) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut stored = Self { root, keys: named, overlays, places, in_use };
        let pages: Vec<_> = stored.root.map_pages.iter().map(|(number, page)| (*number, *page)).collect();
        for (number, reference) in pages {
            let owner = owner(keys, &stored.root.origins, reference.origin);
            let counts = stored.add_page(objects, (keys, owner), number, reference.id);
            assert_eq!(counts, reference.counts, "map page {number}");
        }
        for (id, in_use) in &stored.root.packs {
            let key = keys.pack(*id);
            assert_eq!(objects[&key].len() as u64, pack::object_bytes(in_use.frames), "{key}");
            stored.keys.insert(key);
        }
        stored
    }

    fn add_page(
        &mut self,
        objects: &BTreeMap<String, bytes::Bytes>,
        (ours, of_page): (Keys, Keys),
        number: u32,
        id: ObjectId,
    ) -> BlockCounts {
        let geometry = self.root.geometry;
        let key = of_page.map_page(number, id);
        let page = MapPage::decode(of_page.sealing(), number, id, geometry, &objects[&key]);
        let page = page.expect("a map page");
        self.keys.insert(key);
        let mut overlays = Vec::new();
        for reference in page.overlays() {
            let (overlay, owner, id) = match &reference.place {
                OverlayPlace::Embedded(overlay) => (Arc::clone(overlay), of_page, None),
                OverlayPlace::Object { origin, id } => {
                    let owner = owner(of_page, page.origins(), *origin);
                    let key = owner.overlay(number, *id);
                    let overlay = Overlay::decode(owner.sealing(), number, *id, geometry, &objects[&key]);
                    self.keys.insert(key);
                    (Arc::new(overlay.expect("an overlay")), owner, Some(*id))
                }
            };
            overlays.push(LoadedOverlay {
                overlay: Ok(overlay),
                owner,
                id,
                chunks: reference.chunks.clone(),
            });
        }
        self.overlays.insert(number, overlays.len());
        let blocks = u32::try_from(geometry.blocks_per_chunk()).expect("at most 8,192");
        let mut counts = BlockCounts::default();
        for (slot, entry) in page.entries() {
            let first = u32::from(slot) * blocks;
            let mut overlaid = 0;
            // The counts are of what belongs to the owner of the map page.
            let own = entry.base.filter(|base| base.origin == 0);
            let start = u64::from(number) * u64::from(geometry.map_page_blocks()) + u64::from(first);
            if let Some(base) = entry.base {
                let owner = owner(of_page, page.origins(), base.origin);
                let key = owner.chunk(ChunkIndex::at(number, slot), base.id);
                for block in base.stored.iter().flat_map(|page| page.first_block()..page.first_block() + 16) {
                    self.places.insert(start + u64::from(block), (key.clone(), u64::from(block)));
                }
            }
            for (run, place) in located(&overlays, slot, first..first + blocks) {
                overlaid += run.end - run.start;
                counts.hidden += stored_blocks(own, blocks, &run);
                for block in run.clone() {
                    let at = start + u64::from(block - first);
                    match &place {
                        Located::Frames(owner, id, frame) => {
                            let frame = u64::from(*frame) + u64::from(block - run.start);
                            self.places.insert(at, (owner.pack(*id), frame));
                        }
                        Located::Zero(_) | Located::Unknown(_) => drop(self.places.remove(&at)),
                    }
                }
                match place {
                    Located::Frames(owner, id, _) if owner == ours => {
                        *self.in_use.entry(id).or_default() += run.end - run.start;
                    }
                    Located::Frames(owner, id, _) => {
                        let key = owner.pack(id);
                        assert!(objects.contains_key(&key), "{key}");
                        self.keys.insert(key);
                    }
                    Located::Zero(_) | Located::Unknown(_) => {}
                }
            }
            assert_eq!(overlaid, u32::from(entry.overlaid), "chunk {slot} of map page {number}");
            counts.overlaid += overlaid;
            if let Some(base) = entry.base {
                counts.stored += own.map_or(0, |own| own.stored.len()) * BLOCKS_PER_PAGE;
                let owner = owner(of_page, page.origins(), base.origin);
                let key = owner.chunk(ChunkIndex::at(number, slot), base.id);
                assert!(objects.contains_key(&key), "{key}");
                self.keys.insert(key);
            }
        }
        counts
    }

    /// Asserts that the root lists exactly the packs that are in use, each with the number of its frames in
    /// use. After a loss these numbers may be too high.
    pub(crate) fn assert_counts(&self) {
        let listed: BTreeMap<ObjectId, u32> =
            self.root.packs.iter().map(|(id, PackUse { live, .. })| (*id, *live)).collect();
        assert_eq!(listed, self.in_use);
    }

    /// Asserts that the bucket has no object of the volume besides those that the root references, the head
    /// and the journal.
    pub(crate) fn assert_nothing_else(&self, bench: &Bench) {
        assert_holds_exactly(bench, &self.keys);
    }
}

/// The current root and the roots of the snapshots, with what they reference.
pub(crate) struct Kept {
    pub(crate) current: Stored,
    /// The snapshots in the order in which they were taken.
    pub(crate) snapshots: Vec<(Snapshot, Stored)>,
}

impl Kept {
    /// Reads the objects of the only volume of a bench.
    pub(crate) fn of(bench: &Bench) -> Self {
        let objects = bench.memory.objects();
        let head = objects.keys().find(|key| key.ends_with("/head")).expect("one volume");
        let keys = Keys::new(volume_of(head).expect("a volume's head"));
        let id = Head::decode(keys.volume(), &objects[head]).expect("a head").root_table;
        let table = RootTable::decode(keys.sealing(), id, &objects[&keys.root(id)]).expect("a root table");
        let named = table.roots.into_iter().filter_map(|kept| Some((kept.snapshot?, kept.root)));
        let snapshots = named.map(|(snapshot, root)| (snapshot, Stored::of_root(&objects, keys, root)));
        Self { current: Stored::of(bench), snapshots: snapshots.collect() }
    }

    /// Names of the snapshots in the order in which they were taken.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.snapshots.iter().map(|(snapshot, _)| snapshot.name.as_str()).collect()
    }

    /// Asserts that the counts of every kept root are right, and that the bucket has no object of the volume
    /// besides those that these roots reference, the root table, the head and the journal.
    pub(crate) fn assert_exact(&self, bench: &Bench) {
        let mut keys = self.current.keys.clone();
        self.current.assert_counts();
        for (_, stored) in &self.snapshots {
            stored.assert_counts();
            keys.extend(stored.keys.iter().cloned());
        }
        assert_holds_exactly(bench, &keys);
    }
}

/// Keys of the volume that owns an object, of which a root or a map page of `of` has the number `origin`.
fn owner(of: Keys, origins: &[uuid::Uuid], origin: u16) -> Keys {
    match origin {
        0 => of,
        other => Keys::new(origins[usize::from(other) - 1]),
    }
}

/// Asserts that the counts of every root are right that a volume of the bench keeps, and that the bucket has
/// no object besides those that these roots reference, the root tables, the heads and the journals.
pub(crate) fn assert_exact_for_all(bench: &Bench) {
    let objects = bench.memory.objects();
    let mut needed = BTreeSet::new();
    for key in objects.keys().filter(|key| key.ends_with("/head")) {
        let keys = Keys::new(volume_of(key).expect("a volume's head"));
        let id = Head::decode(keys.volume(), &objects[key]).expect("a head").root_table;
        let table = RootTable::decode(keys.sealing(), id, &objects[&keys.root(id)]).expect("a root table");
        needed.insert(keys.root(id));
        for kept in table.roots.iter().filter(|kept| kept.retired_at_seconds == 0) {
            let stored = Stored::of_root(&objects, keys, kept.root);
            stored.assert_counts();
            needed.extend(stored.keys);
        }
    }
    assert_holds_exactly(bench, &needed);
}

/// Asserts that the bucket has these objects of volumes and no other besides the head and the journal.
fn assert_holds_exactly(bench: &Bench, keys: &BTreeSet<String>) {
    let objects = bench.memory.objects();
    let apart =
        |key: &&String| volume_of(key).is_none() || key.ends_with("/head") || key.contains("/journal/");
    let found: BTreeSet<String> = objects.keys().filter(|key| !apart(key)).cloned().collect();
    let orphans: Vec<&String> = found.difference(keys).collect();
    let missing: Vec<&String> = keys.difference(&found).collect();
    assert!(orphans.is_empty() && missing.is_empty(), "orphans {orphans:?}, missing {missing:?}");
}

/// Number of blocks of a run, within one chunk, that a chunk object stores.
fn stored_blocks(base: Option<Base>, blocks_per_chunk: u32, run: &Range<u32>) -> u32 {
    let Some(base) = base else { return 0 };
    let is_stored = |block: &u32| base.stored.contains(PageIndex::of_block(block % blocks_per_chunk));
    u32::try_from(run.clone().filter(is_stored).count()).expect("few")
}
