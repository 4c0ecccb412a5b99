//! Roots, which contain the size and the map pages of a volume at one commit, and the root table, which lists
//! every root that is kept.
//!
//! Must not know how roots are made or when they are deleted. Invariant: no map page is both an object and
//! part of a uniform run, and none lies beyond the end of the volume.

use std::collections::BTreeMap;
use std::ops::Range;

use uuid::Uuid;

use super::codec::{DecodeError, Decoder, Encoder, Kind, invalid};
use super::geometry::{Geometry, MAX_MAP_PAGES};
use super::interval::{IntervalMap, Value};
use super::keys::{ObjectId, Slot};
use super::pack::MAX_FRAMES;
use super::sealing::Sealing;
use super::snapshot::Snapshot;

/// The content of a volume at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Id of this root.
    pub id: ObjectId,
    /// The last commit whose changes the root contains.
    pub commit: Slot,
    /// Size of the volume in bytes.
    pub size_bytes: u64,
    /// How the volume is divided into chunks.
    pub geometry: Geometry,
    /// The other volumes whose map pages the root references. Each map page has its own list for the objects
    /// that it references.
    pub origins: Vec<Uuid>,
    /// The map pages that are objects, by number.
    pub map_pages: BTreeMap<u32, MapPageRef>,
    /// The packs of this volume of which a frame is in use.
    pub packs: BTreeMap<ObjectId, PackUse>,
    /// Runs of uniform map pages, by number. All their chunks are allocated and read as zeros, since the
    /// commit that is the value. A map page that is neither here nor an object consists of holes.
    pub zeroed: IntervalMap<Slot>,
}

impl Value for Slot {
    fn advanced(&self, _by: u64) -> Self {
        *self
    }
}

/// The content of neighbouring map pages, according to a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// No chunk is allocated.
    Holes,
    /// All chunks are allocated and read as zeros, since this commit.
    Zeroed(Slot),
    /// A single map page, which is an object.
    Page(MapPageRef),
}

/// How much of a pack is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackUse {
    /// Number of frames of the pack.
    pub frames: u32,
    /// How many of them are located by a map page and not replaced since.
    pub live: u32,
}

/// How many blocks a volume stores itself, and how many of them are in use. What it shares with other volumes
/// is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Blocks in chunk objects and packs.
    pub stored: u64,
    /// Those that a read can return.
    pub live: u64,
}

/// Numbers of blocks of a map page, which show how much of what is stored is in use. Chunk objects of other
/// volumes than the owner of the map page do not count as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockCounts {
    /// Blocks that chunk objects store.
    pub stored: u32,
    /// Blocks that overlays locate or zero.
    pub overlaid: u32,
    /// Blocks that chunk objects store and overlays replace.
    pub hidden: u32,
}

/// The reference of a root to a map page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MapPageRef {
    /// The owner of the object: 0 for the volume itself, otherwise an index into the root's
    /// origins, counted from 1.
    pub origin: u16,
    /// Id of the map page.
    pub id: ObjectId,
    /// How many blocks are where.
    pub counts: BlockCounts,
}

const MAP_PAGE_REF_BYTES: usize = 4 + 2 + ObjectId::BYTES + 3 * 4;
const PACK_USE_BYTES: usize = ObjectId::BYTES + 4 + 4;
const ZEROED_RUN_BYTES: usize = 4 + 4 + 4 + 8;

/// Limit on the origins of a root or of a map page.
pub const MAX_ORIGINS: usize = 1024;

/// Appends a list of origins to an object.
pub(crate) fn encode_origins(origins: &[Uuid], to: &mut Encoder) {
    to.len(origins.len());
    for origin in origins {
        to.raw(origin.as_bytes());
    }
}

/// Reads a list of origins from an object.
pub(crate) fn decode_origins(from: &mut Decoder<'_>) -> Result<Vec<Uuid>, DecodeError> {
    let count = from.count(16)?;
    if count > MAX_ORIGINS {
        return Err(invalid("origins", format!("{count} are more than {MAX_ORIGINS}")));
    }
    (0..count).map(|_| Ok(Uuid::from_bytes(from.array()?))).collect()
}

impl Root {
    /// Returns the content of map page `number`, and the first map page after it that
    /// may have another content. Beyond the end of the volume there are holes.
    #[must_use]
    pub fn stretch(&self, number: u32) -> (Stretch, u32) {
        if let Some(reference) = self.map_pages.get(&number) {
            return (Stretch::Page(*reference), number + 1);
        }
        let as_number = |at: u64| u32::try_from(at).expect("a volume has at most 65,536 map pages");
        if let Some((run, birth)) = self.zeroed.at(u64::from(number)) {
            return (Stretch::Zeroed(*birth), as_number(run.end));
        }
        let page = self.map_pages.range(number..).next().map(|(page, _)| *page);
        let run = self.zeroed.next_start(u64::from(number)).map(as_number);
        let end = page.into_iter().chain(run).min();
        (Stretch::Holes, end.unwrap_or(MAX_MAP_PAGES).max(number + 1))
    }

    /// The references to the map pages that the volume owns.
    pub(crate) fn own_pages(&self) -> impl Iterator<Item = &MapPageRef> {
        self.map_pages.values().filter(|page| page.origin == 0)
    }

    /// Counts the blocks that the volume stores itself.
    #[must_use]
    pub fn space(&self) -> Space {
        let mut space = Space::default();
        for page in self.own_pages() {
            space.stored += u64::from(page.counts.stored);
            space.live += u64::from(page.counts.stored - page.counts.hidden);
        }
        for pack in self.packs.values() {
            space.stored += u64::from(pack.frames);
            space.live += u64::from(pack.live);
        }
        space
    }

    /// Makes a range of map pages uniform: allocated zeros since a commit, or holes if `zeroed` is `None`.
    /// The cost depends on how many map pages are replaced, not on how many the volume has.
    pub fn set_uniform(&mut self, numbers: Range<u32>, zeroed: Option<Slot>) {
        let mut after = self.map_pages.split_off(&numbers.start);
        self.map_pages.append(&mut after.split_off(&numbers.end));
        let run = u64::from(numbers.start)..u64::from(numbers.end);
        match zeroed {
            Some(birth) => self.zeroed.insert(run, birth),
            None => self.zeroed.remove(run),
        }
    }

    /// Changes the size. The map pages beyond the new end become holes, so that none lies beyond it.
    pub fn resize(&mut self, size_bytes: u64) {
        self.set_uniform(self.geometry.map_pages(size_bytes)..MAX_MAP_PAGES, None);
        self.size_bytes = size_bytes;
    }

    /// Makes a map page an object.
    pub fn set_page(&mut self, number: u32, reference: MapPageRef) {
        self.zeroed.remove(u64::from(number)..u64::from(number) + 1);
        self.map_pages.insert(number, reference);
    }

    /// Encodes the object.
    #[must_use]
    pub fn encode(&self, sealing: Sealing) -> Vec<u8> {
        let maps = self.map_pages.len() * MAP_PAGE_REF_BYTES + self.zeroed.len() * ZEROED_RUN_BYTES;
        let maps = maps + self.packs.len() * PACK_USE_BYTES;
        let mut to = Encoder::new(Kind::Root, sealing.volume(), 128 + maps + 16 * self.origins.len());
        self.id.encode(&mut to);
        self.commit.encode(&mut to);
        to.u64(self.size_bytes);
        to.u32(u32::try_from(self.geometry.chunk_bytes()).expect("at most 32 MiB"));
        encode_origins(&self.origins, &mut to);
        to.len(self.map_pages.len());
        for (page, reference) in &self.map_pages {
            to.u32(*page);
            to.u16(reference.origin);
            reference.id.encode(&mut to);
            to.u32(reference.counts.stored);
            to.u32(reference.counts.overlaid);
            to.u32(reference.counts.hidden);
        }
        to.len(self.zeroed.len());
        for (run, birth) in self.zeroed.iter() {
            to.u32(u32::try_from(run.start).expect("at most 65,536"));
            to.u32(u32::try_from(run.end - run.start).expect("at most 65,536"));
            birth.encode(&mut to);
        }
        to.len(self.packs.len());
        for (id, pack) in &self.packs {
            id.encode(&mut to);
            to.u32(pack.frames);
            to.u32(pack.live);
        }
        to.finish()
    }

    /// Decodes the object with the id `id`.
    ///
    /// # Errors
    /// Returns an error if the object is damaged, or is another object.
    pub fn decode(sealing: Sealing, id: ObjectId, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Decoder::object_of(Kind::Root, sealing.volume(), bytes)?;
        let found = ObjectId::decode(&mut from)?;
        if found != id {
            return Err(invalid("root", format!("is {found:?}, not {id:?}")));
        }
        let commit = Slot::decode(&mut from)?;
        let size_bytes = from.u64()?;
        let geometry =
            Geometry::new(u64::from(from.u32()?)).map_err(|e| invalid("chunk size", e.to_string()))?;
        geometry.check_size(size_bytes).map_err(|e| invalid("size", e.to_string()))?;
        let origins = decode_origins(&mut from)?;
        let count = from.count(MAP_PAGE_REF_BYTES)?;
        let mut map_pages = BTreeMap::new();
        let mut least = 0;
        for _ in 0..count {
            let page = from.u32()?;
            if page < least || page >= geometry.map_pages(size_bytes).min(MAX_MAP_PAGES) {
                return Err(invalid("map page", format!("{page} is out of order or beyond the size")));
            }
            least = page + 1;
            let origin = from.u16()?;
            if usize::from(origin) > origins.len() {
                return Err(invalid("origin", format!("{origin} is beyond the {} origins", origins.len())));
            }
            let id = ObjectId::decode(&mut from)?;
            let counts = BlockCounts { stored: from.u32()?, overlaid: from.u32()?, hidden: from.u32()? };
            let most = geometry.map_page_blocks();
            if counts.hidden > counts.stored.min(counts.overlaid)
                || counts.stored > most
                || counts.overlaid > most
            {
                return Err(invalid("blocks", format!("{counts:?} of {most}")));
            }
            map_pages.insert(page, MapPageRef { origin, id, counts });
        }
        let zeroed = decode_zeroed(geometry.map_pages(size_bytes), &map_pages, &mut from)?;
        let packs = decode_packs(&mut from)?;
        from.finish()?;
        Ok(Self { id, commit, size_bytes, geometry, origins, map_pages, packs, zeroed })
    }
}

/// Reads the packs in use.
fn decode_packs(from: &mut Decoder<'_>) -> Result<BTreeMap<ObjectId, PackUse>, DecodeError> {
    let mut packs = BTreeMap::new();
    for _ in 0..from.count(PACK_USE_BYTES)? {
        let id = ObjectId::decode(from)?;
        let pack = PackUse { frames: from.u32()?, live: from.u32()? };
        if packs.last_key_value().is_some_and(|(last, _)| *last >= id) {
            return Err(invalid("packs", format!("{id:?} is out of order")));
        }
        if pack.live == 0 || pack.live > pack.frames || pack.frames > MAX_FRAMES {
            return Err(invalid("packs", format!("{} of {} frames are in use", pack.live, pack.frames)));
        }
        packs.insert(id, pack);
    }
    Ok(packs)
}

/// Reads the runs of uniform map pages. `all` is the number of map pages of the volume.
fn decode_zeroed(
    all: u32,
    map_pages: &BTreeMap<u32, MapPageRef>,
    from: &mut Decoder<'_>,
) -> Result<IntervalMap<Slot>, DecodeError> {
    let mut zeroed = IntervalMap::default();
    let mut least = 0;
    for _ in 0..from.count(ZEROED_RUN_BYTES)? {
        let (first, count) = (from.u32()?, from.u32()?);
        let birth = Slot::decode(from)?;
        let end = first.checked_add(count).filter(|end| *end <= all);
        let Some(end) = end.filter(|_| first >= least && count > 0) else {
            let why = format!("{count} map pages from {first} are none, out of order or beyond the size");
            return Err(invalid("zeroed", why));
        };
        if let Some((page, _)) = map_pages.range(first..end).next() {
            return Err(invalid("zeroed", format!("map page {page} is an object too")));
        }
        least = end;
        zeroed.insert(u64::from(first)..u64::from(end), birth);
    }
    Ok(zeroed)
}

/// An entry of the root table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptRoot {
    /// Id of the root.
    pub root: ObjectId,
    /// The root that it was made from, if that root is kept too.
    pub parent: Option<ObjectId>,
    /// The last commit whose changes the root contains.
    pub commit: Slot,
    /// The snapshot that keeps the root, if any.
    pub snapshot: Option<Snapshot>,
    /// The clones that keep the root.
    pub pins: Vec<Uuid>,
    /// When a checkpoint replaced the root, in seconds since 1970. It is 0 while the root is current or is
    /// kept by a snapshot or a pin.
    pub retired_at_seconds: u64,
}

impl KeptRoot {
    /// Whether a checkpoint replaced the root and nothing else needs it. Its deletion may
    /// begin, or has begun.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired_at_seconds != 0 && !self.is_held()
    }

    /// Whether a snapshot or a clone keeps the root.
    pub(crate) fn is_held(&self) -> bool {
        self.snapshot.is_some() || !self.pins.is_empty()
    }

    /// Creates the entry for a root that a checkpoint just made. The checkpoint ends with `snapshot` if there
    /// is one.
    pub(crate) fn current(root: &Root, parent: ObjectId, snapshot: Option<Snapshot>) -> Self {
        Self {
            root: root.id,
            parent: Some(parent),
            commit: root.commit,
            snapshot,
            pins: Vec::new(),
            retired_at_seconds: 0,
        }
    }
}

/// The table of all roots that are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootTable {
    /// Id of this table.
    pub id: ObjectId,
    /// The roots in the order in which they were made. The current root is the last.
    pub roots: Vec<KeptRoot>,
}

/// Limit on the roots in a table.
pub const MAX_ROOTS: usize = 4096;
const KEPT_ROOT_BYTES: usize = 12 + 1 + 12 + 1 + 8 + 4 + 8;

impl RootTable {
    /// Encodes the object.
    #[must_use]
    pub fn encode(&self, sealing: Sealing) -> Vec<u8> {
        let mut to = Encoder::new(Kind::RootTable, sealing.volume(), 128 + self.roots.len() * 64);
        self.id.encode(&mut to);
        to.len(self.roots.len());
        for kept in &self.roots {
            kept.root.encode(&mut to);
            to.u8(u8::from(kept.parent.is_some()));
            if let Some(parent) = kept.parent {
                parent.encode(&mut to);
            }
            kept.commit.encode(&mut to);
            Snapshot::encode_optional(kept.snapshot.as_ref(), &mut to);
            encode_origins(&kept.pins, &mut to);
            to.u64(kept.retired_at_seconds);
        }
        to.finish()
    }

    /// Decodes the object with the id `id`.
    ///
    /// # Errors
    /// Returns an error if the object is damaged, or is another object.
    pub fn decode(sealing: Sealing, id: ObjectId, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Decoder::object_of(Kind::RootTable, sealing.volume(), bytes)?;
        let found = ObjectId::decode(&mut from)?;
        if found != id {
            return Err(invalid("root table", format!("is {found:?}, not {id:?}")));
        }
        let count = from.count(KEPT_ROOT_BYTES)?;
        if count > MAX_ROOTS {
            return Err(invalid("roots", format!("{count} are more than {MAX_ROOTS}")));
        }
        let mut roots = Vec::with_capacity(count);
        for _ in 0..count {
            let root = ObjectId::decode(&mut from)?;
            let parent = match from.bool("parent")? {
                true => Some(ObjectId::decode(&mut from)?),
                false => None,
            };
            let commit = Slot::decode(&mut from)?;
            let snapshot = Snapshot::decode_optional(&mut from)?;
            let pins = decode_origins(&mut from)?;
            let retired_at_seconds = from.u64()?;
            roots.push(KeptRoot { root, parent, commit, snapshot, pins, retired_at_seconds });
        }
        from.finish()?;
        Ok(Self { id, roots })
    }
}
