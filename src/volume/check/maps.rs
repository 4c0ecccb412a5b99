//! Map pages and overlays: what they reference, and whether their counts and places are right.
//!
//! Must not know listings. Invariants: one map page with its overlays is in memory at a time. What a damaged
//! object would have said is not counted, so no count is called wrong because of another object's damage.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _};
use uuid::Uuid;

use super::context::{Context, Owned, Stop};
use super::frames::{self, Expected};
use super::packs::Indexes;
use super::references::References;
use super::report::{Depth, Purpose, Trouble};
use super::suspects::{Loss, Part, Suspects};
use crate::volume::cache::index::{LoadedOverlay, MapView};
use crate::volume::error::Error;
use crate::volume::format::chunk;
use crate::volume::format::geometry::{BLOCKS_PER_PAGE, BlockIndex, ChunkIndex, PageIndex};
use crate::volume::format::keys::{Keys, ObjectId, Parsed};
use crate::volume::format::map::{Base, Entry, OverlayPlace, OverlayRef};
use crate::volume::format::overlay::Overlay;
use crate::volume::format::page_set::PageSet;
use crate::volume::format::root::{BlockCounts, MapPageRef, Root};
use crate::volume::read::base::{LoadedMapPage, Located, located};

/// Number of objects whose data is read at a time.
pub(super) const DATA_AT_ONCE: usize = 8;

/// Loads a map page with its overlays. Notes those that are lost; a lost overlay is part of the result.
pub(super) async fn load(
    context: &Context<'_>,
    root: &Root,
    number: u32,
    reference: MapPageRef,
    suspects: &mut Suspects,
) -> Result<Option<LoadedMapPage>, Stop> {
    let owner = context.owner(root, reference.origin);
    let object = (owner, Parsed::MapPage(number, reference.id));
    let read = context.map_page(root, number, reference).await;
    let page = match context.unless_replaced(object, read).await? {
        Ok(page) => page,
        Err(loss) => {
            context.note(suspects, object, loss, Part::Whole);
            return Ok(None);
        }
    };
    let map = LoadedMapPage { view: Arc::new(MapView { page, overlays: Vec::new() }), owner };
    // What a clone shares is counted by block.
    if context.depth == Depth::References && root.origins.is_empty() {
        return Ok(Some(map));
    }
    let loads =
        map.view.page.overlays().iter().map(|overlay| load_overlay(context, root, &map, number, overlay));
    let mut overlays = Vec::new();
    for (overlay, loss) in try_join_all(loads).await? {
        if let (Some(loss), Some(id)) = (loss, overlay.id) {
            context.note(suspects, (overlay.owner, Parsed::Overlay(number, id)), loss, Part::Whole);
        }
        overlays.push(overlay);
    }
    let MapView { page, .. } = Arc::unwrap_or_clone(map.view);
    Ok(Some(LoadedMapPage { view: Arc::new(MapView { page, overlays }), owner }))
}

async fn load_overlay(
    context: &Context<'_>,
    root: &Root,
    map: &LoadedMapPage,
    number: u32,
    reference: &OverlayRef,
) -> Result<(LoadedOverlay, Option<Loss>), Stop> {
    let chunks = reference.chunks.clone();
    let (owner, id) = match &reference.place {
        OverlayPlace::Embedded(overlay) => {
            let overlay = Ok(Arc::clone(overlay));
            return Ok((LoadedOverlay { overlay, owner: map.owner, id: None, chunks }, None));
        }
        OverlayPlace::Object { origin, id } => (map.origin(*origin), *id),
    };
    let object = (owner, Parsed::Overlay(number, id));
    let decode = |bytes: &[u8]| Overlay::decode(owner.sealing(), number, id, root.geometry, bytes);
    let (overlay, loss) = match context.fetch(object, decode).await? {
        Ok(overlay) => (Ok(Arc::new(overlay)), None),
        Err(loss) => (Err(Error::lost(context.key_of(object))), Some(loss)),
    };
    Ok((LoadedOverlay { overlay, owner, id: Some(id), chunks }, loss))
}

/// Adds what a map page references.
pub(super) fn add_references(
    context: &Context<'_>,
    root: &Root,
    (number, map): (u32, &LoadedMapPage),
    purpose: Purpose,
    references: &mut References,
) {
    for overlay in map.view.page.overlays() {
        if let OverlayPlace::Object { origin, id } = overlay.place
            && map.origin(origin) == context.keys
        {
            references.overlay(number, id, purpose);
        }
    }
    for ChunkAt { owner, index, id, stored } in bases(map, number) {
        let bytes = chunk::object_bytes(root.geometry.pages_per_chunk(), stored.len());
        if owner == context.keys {
            references.chunk(index, id, bytes, purpose);
        } else if purpose == Purpose::Live && context.depth != Depth::References {
            references.shared_chunk(owner.volume(), index, id, bytes);
        }
    }
}

/// A chunk object, and the pages that it stores.
pub(super) struct ChunkAt {
    pub(super) owner: Keys,
    pub(super) index: ChunkIndex,
    pub(super) id: ObjectId,
    pub(super) stored: PageSet,
}

/// The chunk objects that a map page references.
fn bases(map: &LoadedMapPage, number: u32) -> Vec<ChunkAt> {
    let entries = map.view.page.entries();
    let bases = entries.into_iter().filter_map(|(slot, entry)| {
        let Base { origin, id, stored } = entry.base?;
        let (owner, index) = (map.origin(origin), ChunkIndex::at(number, slot));
        (!stored.is_empty()).then_some(ChunkAt { owner, index, id, stored })
    });
    bases.collect()
}

/// Counts the blocks of a map page that a read gets from objects of other volumes.
pub(super) fn shared_blocks(context: &Context<'_>, root: &Root, map: &LoadedMapPage) -> u64 {
    let blocks = u32::try_from(root.geometry.blocks_per_chunk()).expect("at most 8,192");
    let mut count = 0;
    for (slot, entry) in map.view.page.entries() {
        let first = u32::from(slot) * blocks;
        let base = entry.base.filter(|base| map.origin(base.origin) != context.keys);
        let stored = base.map(|base| base.stored);
        let mut shared = stored.map_or(0, |stored| stored.len()) * BLOCKS_PER_PAGE;
        for (run, place) in located(&map.view.overlays, slot, first..first + blocks) {
            shared -= hidden(stored.as_ref(), first, &run);
            if let Located::Frames(owner, ..) = place
                && owner != context.keys
            {
                shared += run.end - run.start;
            }
        }
        count += u64::from(shared);
    }
    count
}

/// What is counted over all map pages of a root.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// Frames in use, by pack.
    live: BTreeMap<ObjectId, u32>,
    /// The packs of other volumes of which a frame is in use.
    pub(super) shared_packs: BTreeSet<(Uuid, ObjectId)>,
    /// Whether a map page or an overlay is lost, so that the counts are too low.
    is_partial: bool,
}

/// Checks the content of a map page of the current root.
pub(super) fn check(
    context: &Context<'_>,
    root: &Root,
    (number, reference): (u32, MapPageRef),
    map: &LoadedMapPage,
    indexes: &Indexes,
    (counted, suspects): (&mut Counted, &mut Suspects),
) {
    let mut page =
        PageCheck { context, number, reference, map, indexes, suspects, counts: BlockCounts::default() };
    let blocks = u32::try_from(root.geometry.blocks_per_chunk()).expect("at most 8,192");
    for (slot, entry) in map.view.page.entries() {
        page.entry(blocks, slot, &entry, counted);
    }
    if map.view.is_incomplete() {
        counted.is_partial = true;
        return;
    }
    let (found, told) = (page.counts, reference.counts);
    // After a loss, the count of hidden blocks may be too high.
    if (found.stored, found.overlaid) != (told.stored, told.overlaid) || found.hidden > told.hidden {
        let why = format!("map page {number} has {found:?}, not {told:?}");
        wrong_count(context, suspects, Parsed::Root(root.id), why);
    }
}

fn wrong_count(context: &Context<'_>, suspects: &mut Suspects, object: impl Into<Owned>, why: String) {
    context.note(suspects, object, Loss { trouble: Trouble::WrongCount, why }, Part::Unread);
}

struct PageCheck<'a> {
    context: &'a Context<'a>,
    number: u32,
    reference: MapPageRef,
    map: &'a LoadedMapPage,
    indexes: &'a Indexes,
    suspects: &'a mut Suspects,
    counts: BlockCounts,
}

impl PageCheck<'_> {
    fn object(&self) -> (Keys, Parsed) {
        (self.map.owner, Parsed::MapPage(self.number, self.reference.id))
    }

    fn entry(&mut self, blocks: u32, slot: u16, entry: &Entry, counted: &mut Counted) {
        let context = self.context;
        if !entry.lost.is_empty() || entry.damage.iter().any(|damage| !damage.spares(0..65_536)) {
            let why = "it records data that was lost earlier and not overwritten since".to_owned();
            let loss = Loss { trouble: Trouble::LostEarlier, why };
            context.note(self.suspects, self.object(), loss, Part::Whole);
        }
        let first = u32::from(slot) * blocks;
        // The counts are of what belongs to the owner of the map page.
        let stored = entry.base.filter(|base| base.origin == 0).map(|base| base.stored);
        self.counts.stored += stored.map_or(0, |stored| stored.len()) * BLOCKS_PER_PAGE;
        let (mut overlaid, mut is_known) = (0, true);
        for (run, place) in located(&self.map.view.overlays, slot, first..first + blocks) {
            let count = run.end - run.start;
            overlaid += count;
            self.counts.hidden += hidden(stored.as_ref(), first, &run);
            match place {
                Located::Zero(_) => {}
                Located::Unknown(_) => is_known = false,
                Located::Frames(owner, id, frame) => {
                    if owner == context.keys {
                        *counted.live.entry(id).or_default() += count;
                    } else {
                        counted.shared_packs.insert((owner.volume(), id));
                    }
                    self.place(slot, &run, (owner, id), frame, blocks);
                    let page = |block: u32| PageIndex::of_block(block - first);
                    if run.clone().any(|block| entry.lost.contains(page(block))) {
                        let why = format!("chunk {slot} has a lost page of which an overlay locates a block");
                        context.note(self.suspects, self.object(), Loss::damaged(why), Part::Unread);
                    }
                }
            }
        }
        self.counts.overlaid += overlaid;
        if is_known && overlaid != u32::from(entry.overlaid) {
            let why = format!("chunk {slot} has {overlaid} blocks in overlays, not {}", entry.overlaid);
            wrong_count(context, self.suspects, self.object(), why);
        }
    }

    /// Compares the frames that a run locates with the index of their pack.
    fn place(&mut self, slot: u16, run: &Range<u32>, pack: (Keys, ObjectId), frame: u16, blocks: u32) {
        let (owner, id) = pack;
        let Some(index) = self.indexes.of(owner, id) else { return };
        let start = u64::from(self.number) * 4096 * u64::from(blocks);
        for (block, frame) in run.clone().zip(usize::from(frame)..) {
            let wanted = BlockIndex(start + u64::from(block));
            let found = index.get(frame);
            if found == Some(&wanted) {
                continue;
            }
            let found = found.map_or("no block".to_owned(), |found| format!("block {}", found.0));
            let key = owner.pack(id);
            let number = wanted.0;
            let why = format!("it locates block {number} in frame {frame} of {key}, which has {found} there");
            let (object, loss) = (self.locates(slot, block), Loss::damaged(why));
            self.context.note(self.suspects, object, loss, Part::Volume(vec![wanted.range()]));
        }
    }

    /// The object that locates a block: the newest overlay that has it, or the map page that contains that
    /// overlay.
    fn locates(&self, slot: u16, block: u32) -> (Keys, Parsed) {
        let has = |overlay: &&LoadedOverlay| {
            let found = overlay.overlay.as_ref();
            overlay.chunks.contains(slot)
                && found.is_ok_and(|found| found.overlaps(block..block + 1).next().is_some())
        };
        let found = self.map.view.overlays.iter().rev().find(has);
        match found.and_then(|overlay| Some((overlay.owner, overlay.id?))) {
            Some((owner, id)) => (owner, Parsed::Overlay(self.number, id)),
            None => self.object(),
        }
    }
}

/// Number of blocks of a run that a chunk object stores too. `first` is the first block of the chunk.
fn hidden(stored: Option<&PageSet>, first: u32, run: &Range<u32>) -> u32 {
    let Some(stored) = stored else { return 0 };
    let is_stored = |block: &u32| stored.contains(PageIndex::of_block(block - first));
    u32::try_from(run.clone().filter(is_stored).count()).expect("at most 8,192")
}

impl Counted {
    /// Notes that a map page is lost.
    pub(super) fn lose(&mut self) {
        self.is_partial = true;
    }

    /// Compares the frames in use with what the root says. Returns how many packs have fewer.
    pub(super) fn check(&self, context: &Context<'_>, root: &Root, suspects: &mut Suspects) -> usize {
        for (id, live) in &self.live {
            let told = root.packs.get(id).map_or(0, |pack| pack.live);
            if told < *live {
                let key = context.keys.pack(*id);
                let why = format!("{live} frames of {key} are in use, not {told}");
                wrong_count(context, suspects, Parsed::Root(root.id), why);
            }
        }
        if self.is_partial {
            return 0;
        }
        let fewer = |(id, told): &(&ObjectId, u32)| self.live.get(id).copied().unwrap_or(0) < *told;
        root.packs.iter().map(|(id, pack)| (id, pack.live)).filter(fewer).count()
    }
}

/// Verifies every byte of the chunk objects that a map page references. Returns whether all are sound.
pub(super) async fn verify_chunks(
    context: &Context<'_>,
    root: &Root,
    (number, map): (u32, &LoadedMapPage),
    suspects: &mut Suspects,
) -> Result<bool, Stop> {
    verify_objects(context, root.geometry.pages_per_chunk(), bases(map, number), suspects).await
}

/// Verifies every byte of these chunk objects. Returns whether all are sound.
pub(super) async fn verify_objects(
    context: &Context<'_>,
    pages_per_chunk: u16,
    chunks: Vec<ChunkAt>,
    suspects: &mut Suspects,
) -> Result<bool, Stop> {
    let reads = stream::iter(chunks).map(|ChunkAt { owner, index, id, stored }| async move {
        let expected = Expected::chunk(owner.sealing(), index, id, pages_per_chunk, &stored);
        let key = owner.chunk(index, id);
        ((owner, Parsed::Chunk(index, id)), frames::verify(context.store(), &key, &expected).await)
    });
    let mut reads = reads.buffer_unordered(DATA_AT_ONCE);
    let mut are_sound = true;
    while let Some((object, read)) = reads.next().await {
        are_sound &= frames::note(context, object, read, suspects).await?;
    }
    Ok(are_sound)
}
