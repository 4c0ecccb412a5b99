//! The base of a volume: resolves a range through a root, its map pages and their overlays.
//!
//! Map pages are loaded into the page cache when they are first needed. Must not know about changes since
//! the root. Invariant: a range resolves to zeros only where the map says so. Anything that cannot be
//! read is an error.

use std::ops::Range;
use std::sync::Arc;

use futures::future::join_all;

use crate::mutant::{self, Mutant};
use crate::volume::cache::fetch::{CacheKey, Fetch, Unit};
use crate::volume::cache::index::{LoadedOverlay, MapView};
use crate::volume::environment::Environment;
use crate::volume::error::Error;
use crate::volume::format::geometry::{BLOCK_BYTES, BLOCKS_PER_PAGE, BlockIndex, ChunkIndex, Geometry};
use crate::volume::format::interval::gaps;
use crate::volume::format::keys::{Keys, ObjectId, Slot};
use crate::volume::format::map::{Damage, Entry, MapPage, OverlayPlace, OverlayRef};
use crate::volume::format::overlay::{Overlay, Target};
use crate::volume::format::root::{MapPageRef, Root, Stretch};
use crate::volume::shared::Shared;
use crate::volume::store_exact::fetch_checked;

/// What the base contains for a part of a range.
#[derive(Clone, Debug)]
pub enum BasePart {
    /// The part reads as zeros.
    Zero {
        /// Whether the part is unallocated.
        hole: bool,
    },
    /// The part lies within stored blocks of one page.
    Stored {
        /// How to fetch and verify the blocks.
        fetch: Fetch,
        /// Offset, in the fetched bytes, at which the part begins.
        at: u64,
        /// Damaged sectors of the page, if there are any.
        damage: Option<Damage>,
    },
    /// The part is unreadable, because an object that located it is lost.
    Lost(Error),
}

/// Where blocks of a chunk are, according to the overlays.
#[derive(Clone, Debug)]
pub enum Located {
    /// In successive frames of a pack: owner, pack, first frame.
    Frames(Keys, ObjectId, u16),
    /// Nowhere: they read as zeros. Contains whether they are unallocated.
    Zero(bool),
    /// Unknown, since an overlay is lost.
    Unknown(Error),
}

/// A loaded map page, with the volume that owns it.
#[derive(Clone, Debug)]
pub struct LoadedMapPage {
    /// The map page and its overlays.
    pub view: Arc<MapView>,
    /// Keys of the volume that wrote the map page.
    pub owner: Keys,
}

impl LoadedMapPage {
    /// Returns the entry of a chunk, or `None` if the chunk is a hole.
    #[must_use]
    pub fn entry(&self, slot: u16) -> Option<Entry> {
        self.view.page.entry(slot)
    }

    /// Returns the keys of the volume that owns an object. `origin` is the value in an entry
    /// of this map page.
    #[must_use]
    pub fn origin(&self, origin: u16) -> Keys {
        owner_of(self.owner, &self.view.page, origin)
    }
}

/// Returns what the overlays that apply to a chunk say about a range of its blocks, in order of block; the
/// blocks are counted from the start of the map page. `overlays` are sorted from the oldest to the newest.
/// Blocks that no overlay covers are left out.
#[must_use]
pub fn located(overlays: &[LoadedOverlay], slot: u16, blocks: Range<u32>) -> Vec<(Range<u32>, Located)> {
    let mut found: Vec<(Range<u32>, Located)> = Vec::new();
    let mut left = vec![blocks];
    for place in (0..overlays.len()).rev() {
        let place = if mutant::is(Mutant::OverlaysReversed) { overlays.len() - 1 - place } else { place };
        let loaded = &overlays[place];
        if left.is_empty() {
            break;
        }
        if !loaded.chunks.contains(slot) {
            continue;
        }
        let overlay = match &loaded.overlay {
            Ok(overlay) => overlay,
            Err(error) => {
                let unknown = left.drain(..).map(|gap| (gap, Located::Unknown(error.clone())));
                found.extend(unknown);
                break;
            }
        };
        let mut rest = Vec::new();
        for gap in left {
            let before = found.len();
            let parts = overlay.overlaps(gap.clone());
            found.extend(parts.map(|(part, target)| (part, locate(loaded, overlay, target))));
            let wide = |part: &Range<u32>| u64::from(part.start)..u64::from(part.end);
            let covered = found[before..].iter().map(|(part, _)| wide(part));
            rest.extend(gaps(wide(&gap), covered).into_iter().map(|gap| narrow(&gap)));
        }
        left = rest;
    }
    found.sort_by_key(|(range, _)| range.start);
    found
}

fn narrow(range: &Range<u64>) -> Range<u32> {
    let block = |at: u64| u32::try_from(at).expect("within a map page");
    block(range.start)..block(range.end)
}

fn locate(loaded: &LoadedOverlay, overlay: &Overlay, target: Target) -> Located {
    match target {
        Target::Zero { hole } => Located::Zero(hole),
        Target::Frame { pack, frame } => {
            let (owner, id) = overlay.pack(loaded.owner.volume(), pack);
            Located::Frames(Keys::new(owner), id, frame)
        }
    }
}

fn owner_of(owner: Keys, page: &MapPage, origin: u16) -> Keys {
    match origin {
        0 => owner,
        other => Keys::new(page.origins()[usize::from(other) - 1]),
    }
}

/// What a root records for one map page.
#[derive(Clone, Debug)]
pub enum Mapped {
    /// Every chunk is a hole.
    Holes,
    /// Every chunk is allocated and reads as zeros, since this commit.
    Zeroed(Slot),
    /// The map page is an object, which has been loaded.
    Page(LoadedMapPage),
}

/// Where a root references a map page that is an object.
struct MapPlace<'a> {
    env: &'a Environment,
    owner: Keys,
    geometry: Geometry,
    number: u32,
    id: ObjectId,
}

impl<'a> MapPlace<'a> {
    /// Returns the place of map page `number` of `root`, or what the root has instead of an object.
    fn of(
        env: &'a Environment,
        keys: Keys,
        geometry: Geometry,
        root: &Root,
        number: u32,
    ) -> Result<Self, Mapped> {
        let MapPageRef { origin, id, .. } = match root.stretch(number).0 {
            Stretch::Holes => return Err(Mapped::Holes),
            Stretch::Zeroed(birth) => return Err(Mapped::Zeroed(birth)),
            Stretch::Page(reference) => reference,
        };
        let owner = match origin {
            0 => keys,
            other => Keys::new(root.origins[usize::from(other) - 1]),
        };
        Ok(Self { env, owner, geometry, number, id })
    }

    fn cache_key(&self, unit: impl Fn(u32, ObjectId) -> Unit) -> CacheKey {
        CacheKey { volume: self.owner.volume(), unit: unit(self.number, self.id) }
    }

    /// Returns the map page with its overlays if it is in memory.
    async fn held(&self) -> Option<LoadedMapPage> {
        let view = self.env.cache.held_map_view(&self.cache_key(Unit::Map)).await?;
        Some(LoadedMapPage { view, owner: self.owner })
    }

    /// Fetches the map page, without its overlays.
    async fn fetch(&self) -> Result<MapPage, Error> {
        let Self { env, owner, geometry, number, id } = *self;
        let key = owner.map_page(number, id);
        let decode = |body: &[u8]| MapPage::decode(owner.sealing(), number, id, geometry, body);
        match Box::pin(fetch_checked(env.store.as_ref(), &key, decode)).await {
            Ok((page, _)) => Ok(page),
            Err(error) => Err(error.referenced(key)),
        }
    }
}

/// Loads map page `number` of `root` with its overlays if it is an object. An overlay that is lost is part
/// of the result, because chunks that it does not apply to can still be read.
///
/// # Errors
/// Returns an error if the map page is lost or damaged, or if the store fails.
pub async fn map_page(
    env: &Environment,
    keys: Keys,
    geometry: Geometry,
    root: &Root,
    number: u32,
) -> Result<Mapped, Error> {
    let place = match MapPlace::of(env, keys, geometry, root, number) {
        Ok(place) => place,
        Err(mapped) => return Ok(mapped),
    };
    if let Some(held) = place.held().await {
        return Ok(Mapped::Page(held));
    }
    let load = async {
        let page = place.fetch().await?;
        load_overlays(env, place.owner, geometry, number, page).await.map(Arc::new)
    };
    // Boxed, because every read contains this future, and few reads need it.
    let view = Box::pin(env.cache.map_view(place.cache_key(Unit::Map), load)).await?;
    Ok(Mapped::Page(LoadedMapPage { view, owner: place.owner }))
}

/// Returns map page `number` of `root` with its overlays if it is an object and in memory.
pub(crate) async fn held_map_page(
    env: &Environment,
    keys: Keys,
    geometry: Geometry,
    root: &Root,
    number: u32,
) -> Option<LoadedMapPage> {
    MapPlace::of(env, keys, geometry, root, number).ok()?.held().await
}

/// As [`map_page`], but the overlays are not needed: they may be missing from the result, although the map
/// page still references them.
///
/// # Errors
/// As [`map_page`].
pub(crate) async fn map_entries(
    env: &Environment,
    keys: Keys,
    geometry: Geometry,
    root: &Root,
    number: u32,
) -> Result<Mapped, Error> {
    let place = match MapPlace::of(env, keys, geometry, root, number) {
        Ok(place) => place,
        Err(mapped) => return Ok(mapped),
    };
    if let Some(held) = place.held().await {
        return Ok(Mapped::Page(held));
    }
    let load = async { Ok(Arc::new(MapView { page: place.fetch().await?, overlays: Vec::new() })) };
    let view = env.cache.map_view(place.cache_key(Unit::Entries), load).await?;
    Ok(Mapped::Page(LoadedMapPage { view, owner: place.owner }))
}

/// Loads the overlays of a map page.
pub(crate) async fn load_overlays(
    env: &Environment,
    owner: Keys,
    geometry: Geometry,
    number: u32,
    page: MapPage,
) -> Result<MapView, Error> {
    let mut loads = Vec::with_capacity(page.overlays().len());
    for reference in page.overlays() {
        let owner = match &reference.place {
            OverlayPlace::Object { origin, .. } => owner_of(owner, &page, *origin),
            OverlayPlace::Embedded(_) => owner,
        };
        loads.push(load_overlay(env, owner, geometry, number, reference));
    }
    let overlays: Result<Vec<LoadedOverlay>, Error> = join_all(loads).await.into_iter().collect();
    Ok(MapView { overlays: overlays?, page })
}

async fn load_overlay(
    env: &Environment,
    owner: Keys,
    geometry: Geometry,
    number: u32,
    reference: &OverlayRef,
) -> Result<LoadedOverlay, Error> {
    let chunks = reference.chunks.clone();
    let id = match &reference.place {
        OverlayPlace::Embedded(overlay) => {
            return Ok(LoadedOverlay { overlay: Ok(Arc::clone(overlay)), owner, id: None, chunks });
        }
        OverlayPlace::Object { id, .. } => *id,
    };
    let key = owner.overlay(number, id);
    let decode = |body: &[u8]| Overlay::decode(owner.sealing(), number, id, geometry, body);
    let overlay = match fetch_checked(env.store.as_ref(), &key, decode).await {
        Ok((overlay, _)) => Ok(Arc::new(overlay)),
        Err(error) => match error.referenced(key) {
            lost if lost.is_loss() => Err(lost),
            error => return Err(error),
        },
    };
    Ok(LoadedOverlay { overlay, owner, id: Some(id), chunks })
}

/// Resolves `range` through `root`. The parts are in order of offset, and a part that is stored
/// lies within one page.
///
/// # Errors
/// Returns an error if a map page cannot be loaded.
pub async fn resolve(
    env: &Environment,
    keys: Keys,
    root: &Root,
    range: Range<u64>,
) -> Result<Vec<(Range<u64>, BasePart)>, Error> {
    let geometry = root.geometry;
    let mut parts = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let number = geometry.chunk_at(at).map_page();
        let next = root.stretch(number).1;
        let end = range.end.min(u64::from(next) * geometry.map_page_bytes());
        match map_page(env, keys, geometry, root, number).await? {
            Mapped::Holes => push_zero(&mut parts, at..end, true),
            Mapped::Zeroed(_) => push_zero(&mut parts, at..end, false),
            Mapped::Page(map) => resolve_page(&map, geometry, at..end, &mut parts),
        }
        at = end;
    }
    Ok(parts)
}

/// Resolves a range that one map page covers. Appends its parts to `parts`, in order of offset.
pub(crate) fn resolve_page(
    map: &LoadedMapPage,
    geometry: Geometry,
    range: Range<u64>,
    parts: &mut Vec<(Range<u64>, BasePart)>,
) {
    let mut at = range.start;
    while at < range.end {
        let index = geometry.chunk_at(at);
        let end = range.end.min(geometry.chunk_range(index).end);
        match map.entry(index.slot()) {
            None => push_zero(parts, at..end, true),
            Some(entry) => ChunkParts { map, geometry, index, entry: &entry }.resolve(at..end, parts),
        }
        at = end;
    }
}

/// Resolves ranges of one chunk.
struct ChunkParts<'a> {
    map: &'a LoadedMapPage,
    geometry: Geometry,
    index: ChunkIndex,
    entry: &'a Entry,
}

impl ChunkParts<'_> {
    fn resolve(&self, range: Range<u64>, parts: &mut Vec<(Range<u64>, BasePart)>) {
        if self.entry.overlaid == 0 {
            return self.push_base(range, parts);
        }
        let start = u64::from(self.index.map_page()) * self.geometry.map_page_bytes();
        let block = |at: u64| u32::try_from(at / BLOCK_BYTES).expect("within a map page");
        let blocks = block(range.start - start)..block((range.end - start).next_multiple_of(BLOCK_BYTES));
        let mut at = range.start;
        for (blocks, located) in located(&self.map.view.overlays, self.index.slot(), blocks) {
            let first = start + u64::from(blocks.start) * BLOCK_BYTES;
            let part = first.max(range.start)..(start + u64::from(blocks.end) * BLOCK_BYTES).min(range.end);
            self.push_base(at..part.start, parts);
            at = part.end;
            match located {
                Located::Zero(hole) => push_zero(parts, part, hole),
                Located::Unknown(error) => parts.push((part, BasePart::Lost(error))),
                Located::Frames(owner, id, frame) => {
                    self.push_frames(owner, id, (BlockIndex::at(first), frame), part, parts);
                }
            }
        }
        self.push_base(at..range.end, parts);
    }

    /// Appends blocks in successive frames of a pack. `frame` is the frame of the block `first`.
    fn push_frames(
        &self,
        owner: Keys,
        id: ObjectId,
        (first, frame): (BlockIndex, u16),
        range: Range<u64>,
        parts: &mut Vec<(Range<u64>, BasePart)>,
    ) {
        let mut at = range.start;
        while at < range.end {
            let block = BlockIndex::at(at);
            let frame = frame + u16::try_from(block.0 - first.0).expect("within a run");
            // What is fetched together shares a cache key, and damage is recorded by page.
            let in_page = BLOCKS_PER_PAGE - u32::try_from(block.0 % 16).expect("less than 16");
            let in_group = 16 - u32::from(frame % 16);
            let end = range.end.min(block.offset() + u64::from(in_page.min(in_group)) * BLOCK_BYTES);
            let count = u32::try_from(end.div_ceil(BLOCK_BYTES) - block.0).expect("at most 16");
            let fetch = Fetch::pack(owner.sealing(), id, frame, count, block);
            let damage = self.entry.damage_of(self.geometry.page_at(at)).copied();
            parts.push((at..end, BasePart::Stored { fetch, at: at % BLOCK_BYTES, damage }));
            at = end;
        }
    }

    /// Appends a range that no overlay covers, page by page.
    fn push_base(&self, range: Range<u64>, parts: &mut Vec<(Range<u64>, BasePart)>) {
        use crate::volume::format::geometry::PAGE_BYTES;
        let chunk_start = self.geometry.chunk_range(self.index).start;
        let mut at = range.start;
        while at < range.end {
            let page = self.geometry.page_at(at);
            let end = range.end.min((at / PAGE_BYTES + 1) * PAGE_BYTES);
            let damage = self.entry.damage_of(page).copied();
            match self.entry.base.as_ref().filter(|base| base.stored.contains(page)) {
                Some(base) => {
                    let block = |at: u64| u32::try_from(at).expect("within a chunk");
                    let (first, after) =
                        ((at - chunk_start) / BLOCK_BYTES, (end - chunk_start).div_ceil(BLOCK_BYTES));
                    let owner = self.map.origin(base.origin).sealing();
                    let pages = self.geometry.pages_per_chunk();
                    let chunk = (self.index, base.id, &base.stored);
                    let fetch = Fetch::chunk(owner, pages, chunk, block(first)..block(after));
                    parts.push((at..end, BasePart::Stored { fetch, at: at % BLOCK_BYTES, damage }));
                }
                None if self.entry.lost.contains(page) => parts.push((at..end, BasePart::Lost(self.lost()))),
                None => match damage {
                    Some(damage) => self.push_unlocated(&damage, at..end, parts),
                    None => push_zero(parts, at..end, !self.entry.allocated.contains(page)),
                },
            }
            at = end;
        }
    }

    /// Appends blocks of a page with damage that are stored nowhere: they are lost, or zeros.
    fn push_unlocated(&self, damage: &Damage, range: Range<u64>, parts: &mut Vec<(Range<u64>, BasePart)>) {
        use crate::volume::format::geometry::PAGE_BYTES;
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / BLOCK_BYTES + 1) * BLOCK_BYTES);
            let block = at % PAGE_BYTES / BLOCK_BYTES * BLOCK_BYTES;
            match damage.spares(block..block + BLOCK_BYTES) {
                true => push_zero(parts, at..end, false),
                false => parts.push((at..end, BasePart::Lost(self.lost()))),
            }
            at = end;
        }
    }

    fn lost(&self) -> Error {
        let map_page = self.index.map_page();
        let why = format!("the object that located parts of chunk {} was lost", self.index.0);
        Error::damaged(format!("{}{map_page}", self.map.owner.map_pages()), why)
    }
}

fn push_zero(parts: &mut Vec<(Range<u64>, BasePart)>, range: Range<u64>, hole: bool) {
    if range.is_empty() {
        return;
    }
    if let Some((last, BasePart::Zero { hole: same })) = parts.last_mut()
        && *same == hole
        && last.end == range.start
    {
        last.end = range.end;
    } else {
        parts.push((range, BasePart::Zero { hole }));
    }
}

/// Whether a root references a chunk object that this volume owns.
pub(crate) async fn names_chunk(
    shared: &Shared,
    root: &Root,
    index: ChunkIndex,
    id: ObjectId,
) -> Result<bool, Error> {
    let map = map_entries(&shared.env, shared.keys, shared.geometry, root, index.map_page()).await?;
    let Mapped::Page(map) = map else { return Ok(false) };
    let Some(base) = map.entry(index.slot()).and_then(|entry| entry.base) else { return Ok(false) };
    Ok(map.origin(base.origin) == shared.keys && base.id == id)
}

/// Whether a root references an overlay that this volume owns.
pub(crate) async fn names_overlay(
    shared: &Shared,
    root: &Root,
    number: u32,
    id: ObjectId,
) -> Result<bool, Error> {
    let map = map_entries(&shared.env, shared.keys, shared.geometry, root, number).await?;
    let Mapped::Page(map) = map else { return Ok(false) };
    Ok(overlays_of(&map, shared.keys).any(|overlay| overlay == id))
}

/// Returns the overlay objects of a map page that a volume owns.
pub(crate) fn overlays_of(map: &LoadedMapPage, keys: Keys) -> impl Iterator<Item = ObjectId> + '_ {
    map.view.page.overlays().iter().filter_map(move |overlay| match overlay.place {
        OverlayPlace::Object { origin, id } if map.origin(origin) == keys => Some(id),
        _ => None,
    })
}
