//! Roots (size and map pages of a volume at one commit) and the root table (every root that is kept).

use std::collections::BTreeMap;
use std::ops::Range;

use uuid::Uuid;

use super::codec::{DecodeError, Decoder, Encoder, Kind, invalid};
use super::geometry::{Geometry, MAX_MAP_PAGES};
use super::interval::{IntervalMap, Value};
use super::keys::{ObjectId, Slot};

/// A volume's content at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Name of this object.
    pub id: ObjectId,
    /// The last commit that is in it.
    pub commit: Slot,
    /// Size of the volume in bytes.
    pub size_bytes: u64,
    /// Division into chunks.
    pub geometry: Geometry,
    /// Other volumes whose map pages it names; map pages name their own.
    pub origins: Vec<Uuid>,
    /// The map pages that are objects.
    pub map_pages: BTreeMap<u32, MapPageRef>,
    /// Runs of uniform map pages, by number: all their chunks are allocated and zeros, as of the commit that
    /// is named. One that is neither here nor an object is all holes.
    pub zeroed: IntervalMap<Slot>,
}

impl Value for Slot {
    fn advanced(&self, _by: u64) -> Self {
        *self
    }
}

/// What a root says of neighbouring map pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// Nothing is allocated.
    Holes,
    /// All is allocated and zeros, as of this commit.
    Zeroed(Slot),
    /// One map page, which is an object.
    Page(MapPageRef),
}

/// A map page as a root names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MapPageRef {
    /// Whose object it is: 0 for the volume's own, else a place in the origins, counted from 1.
    pub origin: u16,
    /// Its name.
    pub id: ObjectId,
}

const MAP_PAGE_REF_BYTES: usize = 4 + 2 + 4 + 8;
const ZEROED_RUN_BYTES: usize = 4 + 4 + 4 + 8;

/// Origins of a root or map page at most.
pub const MAX_ORIGINS: usize = 1024;

/// Appends a list of origins.
pub(crate) fn encode_origins(origins: &[Uuid], to: &mut Encoder) {
    to.len(origins.len());
    for origin in origins {
        to.raw(origin.as_bytes());
    }
}

/// Takes a list of origins.
pub(crate) fn decode_origins(from: &mut Decoder<'_>) -> Result<Vec<Uuid>, DecodeError> {
    let count = from.count(16)?;
    if count > MAX_ORIGINS {
        return Err(invalid("origins", format!("{count} are more than {MAX_ORIGINS}")));
    }
    (0..count).map(|_| Ok(Uuid::from_bytes(from.array()?))).collect()
}

impl Root {
    /// What it says of map page `number`, and up to which map page (exclusive) it says so.
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
        (Stretch::Holes, end.unwrap_or_else(|| self.geometry.map_pages(self.size_bytes)))
    }

    /// Makes map pages uniform: zeros allocated at a commit, or holes. Costs what goes, not how many there
    /// are.
    pub fn set_uniform(&mut self, numbers: Range<u32>, zeroed: Option<Slot>) {
        let mut after = self.map_pages.split_off(&numbers.start);
        self.map_pages.append(&mut after.split_off(&numbers.end));
        let run = u64::from(numbers.start)..u64::from(numbers.end);
        match zeroed {
            Some(birth) => self.zeroed.insert(run, birth),
            None => self.zeroed.remove(run),
        }
    }

    /// Names an object for a map page.
    pub fn set_page(&mut self, number: u32, reference: MapPageRef) {
        self.zeroed.remove(u64::from(number)..u64::from(number) + 1);
        self.map_pages.insert(number, reference);
    }

    /// The object's bytes.
    #[must_use]
    pub fn encode(&self, volume: Uuid) -> Vec<u8> {
        let maps = self.map_pages.len() * MAP_PAGE_REF_BYTES + self.zeroed.len() * ZEROED_RUN_BYTES;
        let mut to = Encoder::new(Kind::Root, volume, 128 + maps + 16 * self.origins.len());
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
        }
        to.len(self.zeroed.len());
        for (run, birth) in self.zeroed.iter() {
            to.u32(u32::try_from(run.start).expect("at most 65,536"));
            to.u32(u32::try_from(run.end - run.start).expect("at most 65,536"));
            birth.encode(&mut to);
        }
        to.finish()
    }

    /// Reads the object named `id`.
    ///
    /// # Errors
    /// If it is damaged or another object.
    pub fn decode(volume: Uuid, id: ObjectId, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Decoder::object_of(Kind::Root, volume, bytes)?;
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
            map_pages.insert(page, MapPageRef { origin, id });
        }
        let zeroed = decode_zeroed(geometry.map_pages(size_bytes), &map_pages, &mut from)?;
        from.finish()?;
        Ok(Self { id, commit, size_bytes, geometry, origins, map_pages, zeroed })
    }
}

/// Takes the runs of uniform map pages, of a volume of so many map pages.
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

/// A root that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptRoot {
    /// The root.
    pub root: ObjectId,
    /// The root from which it was made, if that is kept.
    pub parent: Option<ObjectId>,
    /// Its commit.
    pub commit: Slot,
    /// Name of the snapshot that keeps it; empty for none.
    pub snapshot: String,
    /// Clones that keep it.
    pub pins: Vec<Uuid>,
    /// When a checkpoint replaced it, in seconds since 1970; 0 while it is current or kept by a snapshot or
    /// pin.
    pub retired_at_seconds: u64,
}

impl KeptRoot {
    /// Whether a checkpoint replaced it and nothing else needs it: its deletion may begin, or has begun.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired_at_seconds != 0 && self.snapshot.is_empty() && self.pins.is_empty()
    }

    /// A root that a checkpoint just made.
    pub(crate) fn current(root: &Root, parent: ObjectId) -> Self {
        Self {
            root: root.id,
            parent: Some(parent),
            commit: root.commit,
            snapshot: String::new(),
            pins: Vec::new(),
            retired_at_seconds: 0,
        }
    }
}

/// Every root that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootTable {
    /// Name of this object.
    pub id: ObjectId,
    /// In order of their making; the current root is the last.
    pub roots: Vec<KeptRoot>,
}

/// Roots kept at most.
pub const MAX_ROOTS: usize = 4096;
const KEPT_ROOT_BYTES: usize = 12 + 1 + 12 + 1 + 4 + 8;

impl RootTable {
    /// The object's bytes.
    #[must_use]
    pub fn encode(&self, volume: Uuid) -> Vec<u8> {
        let mut to = Encoder::new(Kind::RootTable, volume, 128 + self.roots.len() * 64);
        self.id.encode(&mut to);
        to.len(self.roots.len());
        for kept in &self.roots {
            kept.root.encode(&mut to);
            to.u8(u8::from(kept.parent.is_some()));
            if let Some(parent) = kept.parent {
                parent.encode(&mut to);
            }
            kept.commit.encode(&mut to);
            to.short_string(&kept.snapshot);
            encode_origins(&kept.pins, &mut to);
            to.u64(kept.retired_at_seconds);
        }
        to.finish()
    }

    /// Reads the object named `id`.
    ///
    /// # Errors
    /// If it is damaged or another object.
    pub fn decode(volume: Uuid, id: ObjectId, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Decoder::object_of(Kind::RootTable, volume, bytes)?;
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
            let snapshot = from.short_string("snapshot")?;
            let pins = decode_origins(&mut from)?;
            let retired_at_seconds = from.u64()?;
            roots.push(KeptRoot { root, parent, commit, snapshot, pins, retired_at_seconds });
        }
        from.finish()?;
        Ok(Self { id, roots })
    }
}
