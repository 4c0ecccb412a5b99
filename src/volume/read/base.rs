//! The base of a volume: resolves a range through a root and its map pages.
//!
//! Map pages are loaded into the page cache when they are first needed. Must not know about changes since
//! the root. Invariant: a range resolves to zeros only where the map says so. Anything that cannot be
//! read is an error.

use std::ops::Range;
use std::sync::Arc;

use crate::volume::cache::fetch::{CacheKey, Check, Fetch, Source, Unit};
use crate::volume::environment::Environment;
use crate::volume::error::Error;
use crate::volume::format::chunk::frame_offset;
use crate::volume::format::frame::Place;
use crate::volume::format::geometry::{ChunkIndex, Geometry, MAP_PAGE_ENTRIES, PAGE_BYTES};
use crate::volume::format::keys::Slot;
use crate::volume::format::keys::{Keys, ObjectId};
use crate::volume::format::map::{Damage, Entry, MapPage};
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
    /// The part lies within one stored page.
    Page {
        /// How to fetch and verify the page.
        fetch: Fetch,
        /// Offset in the page at which the part begins.
        at: u64,
        /// Damaged sectors of the page, if there are any.
        damage: Option<Damage>,
    },
    /// The part is unreadable, because the map page that located it was lost.
    Lost {
        /// Number of that map page.
        map_page: u32,
    },
}

/// A loaded map page, with the volume that owns it.
#[derive(Clone, Debug)]
pub struct LoadedMapPage {
    /// The decoded map page.
    pub page: Arc<MapPage>,
    /// Keys of the volume that wrote the map page.
    pub owner: Keys,
}

impl LoadedMapPage {
    /// Returns the keys of the volume that owns an object. `origin` is the value in an entry
    /// of this map page.
    #[must_use]
    pub fn origin(&self, origin: u16) -> Keys {
        match origin {
            0 => self.owner,
            other => Keys::new(self.page.origins()[usize::from(other) - 1]),
        }
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

/// Loads map page `number` of `root` if it is an object.
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
    let MapPageRef { origin, id } = match root.stretch(number).0 {
        Stretch::Holes => return Ok(Mapped::Holes),
        Stretch::Zeroed(birth) => return Ok(Mapped::Zeroed(birth)),
        Stretch::Page(reference) => reference,
    };
    let owner = match origin {
        0 => keys,
        other => Keys::new(root.origins[usize::from(other) - 1]),
    };
    let cache_key = CacheKey { volume: owner.volume(), unit: Unit::Map(number, id) };
    let load = async {
        let key = owner.map_page(number, id);
        let decode = |body: &[u8]| MapPage::decode(owner.volume(), number, id, geometry, body);
        match Box::pin(fetch_checked(env.store.as_ref(), &key, decode)).await {
            Ok((page, _)) => Ok(Arc::new(page)),
            Err(error) => Err(error.referenced(key)),
        }
    };
    let page = env.cache.map_page(cache_key, load).await?;
    Ok(Mapped::Page(LoadedMapPage { page, owner }))
}

/// Returns the fetch for page `page` of chunk `index`, or `None` if no object stores it.
#[must_use]
pub fn page_fetch(
    map: &LoadedMapPage,
    geometry: Geometry,
    index: ChunkIndex,
    entry: &Entry,
    page: u16,
) -> Option<Fetch> {
    let length = u32::try_from(PAGE_BYTES).expect("64 KiB");
    let frame_bytes = crate::volume::format::chunk::FRAME_BYTES;
    if let Some(pack) = entry.packs.iter().find(|pack| pack.pages.contains(page)) {
        let owner = map.origin(pack.origin);
        let frame = pack.first_frame + pack.pages.rank(page);
        let unit = Unit::Packed(index.map_page(), pack.id, frame);
        let place = Place::pack(owner.volume(), index.map_page(), pack.id);
        return Some(Fetch {
            key: CacheKey { volume: owner.volume(), unit },
            object: Source::Pack(index.map_page(), pack.id),
            at: crate::volume::format::pack::HEADER_BYTES + u64::from(frame) * frame_bytes,
            length,
            check: Check::Frame(place, frame),
        });
    }
    let base = entry.base.as_ref().filter(|base| base.stored.contains(page))?;
    let owner = map.origin(base.origin);
    let place = Place::chunk(owner.volume(), index.0, base.id);
    Some(Fetch {
        key: CacheKey { volume: owner.volume(), unit: Unit::page(index, base.id, page) },
        object: Source::Chunk(index, base.id),
        at: frame_offset(geometry.pages_per_chunk(), base.stored.rank(page)),
        length,
        check: Check::Frame(place, u32::from(page)),
    })
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

fn resolve_page(
    map: &LoadedMapPage,
    geometry: Geometry,
    range: Range<u64>,
    parts: &mut Vec<(Range<u64>, BasePart)>,
) {
    let mut at = range.start;
    while at < range.end {
        let index = geometry.chunk_at(at);
        let end = range.end.min(geometry.chunk_range(index).end);
        match map.page.entry(index.slot()) {
            None => push_zero(parts, at..end, true),
            Some(entry) => {
                while at < end {
                    let page = geometry.page_at(at);
                    let page_end = end.min((at / PAGE_BYTES + 1) * PAGE_BYTES);
                    match page_fetch(map, geometry, index, &entry, page) {
                        Some(fetch) => {
                            let damage = entry.damage_of(page).copied();
                            parts.push((at..page_end, BasePart::Page { fetch, at: at % PAGE_BYTES, damage }));
                        }
                        None if entry.lost.contains(page) => {
                            parts.push((at..page_end, BasePart::Lost { map_page: index.map_page() }));
                        }
                        None => push_zero(parts, at..page_end, !entry.allocated.contains(page)),
                    }
                    at = page_end;
                }
            }
        }
        at = end;
    }
}

fn push_zero(parts: &mut Vec<(Range<u64>, BasePart)>, range: Range<u64>, hole: bool) {
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
    let map = map_page(&shared.env, shared.keys, shared.geometry, root, index.map_page()).await?;
    let Mapped::Page(map) = map else { return Ok(false) };
    assert!(u32::from(index.slot()) < MAP_PAGE_ENTRIES, "a slot is one of a map page");
    let Some(base) = map.page.entry(index.slot()).and_then(|entry| entry.base) else { return Ok(false) };
    Ok(map.origin(base.origin) == shared.keys && base.id == id)
}
