//! Map pages: where the pages of each chunk are stored. One object contains the entries of 4,096 chunks.
//!
//! A loaded map page keeps its entries encoded, with an index, so that its memory is in proportion to the
//! size of its object. Must not know how map pages are loaded. Invariants: all entries are checked when the
//! page is decoded. Encoding decoded entries results in the same bytes.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use uuid::Uuid;

use super::codec::{DecodeError, Decoder, Encoder, Kind, invalid};
use super::geometry::{Geometry, MAP_PAGE_ENTRIES, SECTOR_BYTES};
use super::keys::{ObjectId, Slot};
use super::page_set::PageSet;
use super::root::{decode_origins, encode_origins};

/// Limit on the packs that one entry references.
pub const MAX_PACKS_PER_ENTRY: usize = 64;
/// Length in bytes of a mask of intact sectors: one bit for each of the 128 sectors of a page.
pub const SECTOR_MASK_BYTES: usize = 16;

/// The reference of an entry to its chunk object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The owner of the object: 0 for the volume that owns the map page, otherwise an index into the page's
    /// origins, counted from 1.
    pub origin: u16,
    /// Id of the chunk object.
    pub id: ObjectId,
    /// Pages that the object stores, in order. The other pages are zeros.
    pub stored: PageSet,
}

/// The pages of a chunk that one pack stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InPack {
    /// The owner of the pack, as in [`Base::origin`].
    pub origin: u16,
    /// Id of the pack.
    pub id: ObjectId,
    /// Number of the frame of the first page. The frames of the other pages follow it.
    pub first_frame: u32,
    /// Pages of the chunk that the pack stores.
    pub pages: PageSet,
}

/// A page with sectors that could not be read when the page was rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Number of the page in its chunk.
    pub page: u16,
    /// One bit for each sector, lowest first. It is set if the sector is intact.
    pub good_sectors: [u8; SECTOR_MASK_BYTES],
}

impl Damage {
    /// Whether all sectors that overlap `range`, in bytes within the page, are intact.
    #[must_use]
    pub fn spares(&self, range: Range<u64>) -> bool {
        (range.start / SECTOR_BYTES..range.end.div_ceil(SECTOR_BYTES)).all(|sector| self.is_good(sector))
    }

    /// Whether a sector of the page is intact.
    #[must_use]
    pub fn is_good(&self, sector: u64) -> bool {
        let sector = usize::try_from(sector).expect("128 sectors");
        self.good_sectors[sector / 8] >> (sector % 8) & 1 == 1
    }
}

/// Where the pages of one chunk are stored.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Entry {
    /// The commit at which the chunk last changed.
    pub birth: Option<Slot>,
    /// The chunk object, if there is one.
    pub base: Option<Base>,
    /// Pages that were written and not discarded, including pages of zeros. BLOCK_STATUS
    /// reports them as allocated.
    pub allocated: PageSet,
    /// Pages in packs. They take precedence over the base. No page is in two packs.
    pub packs: Vec<InPack>,
    /// Pages with damaged sectors, in order of page.
    pub damage: Vec<Damage>,
    /// Pages whose location is unknown, because the map page that contained it was lost. They are in neither
    /// the base nor a pack.
    pub lost: PageSet,
}

impl Entry {
    /// Whether the entry is equivalent to no entry.
    #[must_use]
    pub fn is_hole(&self) -> bool {
        self.base.is_none()
            && self.packs.is_empty()
            && self.allocated.is_empty()
            && self.damage.is_empty()
            && self.lost.is_empty()
    }

    /// Returns the damage of a page, if it has any.
    #[must_use]
    pub fn damage_of(&self, page: u16) -> Option<&Damage> {
        self.damage.iter().find(|d| d.page == page)
    }

    fn encode(&self, pages: u16, to: &mut Encoder) {
        let has_base = u8::from(self.base.is_some());
        let has_birth = u8::from(self.birth.is_some()) << 1;
        let has_packs = u8::from(!self.packs.is_empty()) << 2;
        let has_damage = u8::from(!self.damage.is_empty()) << 3;
        let has_lost = u8::from(!self.lost.is_empty()) << 4;
        to.u8(has_base | has_birth | has_packs | has_damage | has_lost);
        self.allocated.encode(pages, to);
        if let Some(birth) = self.birth {
            birth.encode(to);
        }
        if let Some(base) = &self.base {
            to.u16(base.origin);
            base.id.encode(to);
            base.stored.encode(pages, to);
        }
        if !self.packs.is_empty() {
            to.len(self.packs.len());
            for pack in &self.packs {
                to.u16(pack.origin);
                pack.id.encode(to);
                to.u32(pack.first_frame);
                pack.pages.encode(pages, to);
            }
        }
        if !self.damage.is_empty() {
            to.len(self.damage.len());
            for damage in &self.damage {
                to.u16(damage.page);
                to.raw(&damage.good_sectors);
            }
        }
        if !self.lost.is_empty() {
            self.lost.encode(pages, to);
        }
    }

    fn decode(pages: u16, origins: usize, from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let origin_of = |origin: u16| {
            if usize::from(origin) > origins {
                return Err(invalid("origin", format!("{origin} is beyond the {origins} origins")));
            }
            Ok(origin)
        };
        let has = from.u8()?;
        if has & !0x1f != 0 {
            return Err(invalid("entry", format!("fields {has:#x} are unknown")));
        }
        let allocated = PageSet::decode(pages, from)?;
        let birth = match has & 2 != 0 {
            true => Some(Slot::decode(from)?),
            false => None,
        };
        let base = match has & 1 != 0 {
            true => Some(Base {
                origin: origin_of(from.u16()?)?,
                id: ObjectId::decode(from)?,
                stored: PageSet::decode(pages, from)?,
            }),
            false => None,
        };
        let packs = match has & 4 != 0 {
            true => decode_packs(pages, origin_of, from)?,
            false => Vec::new(),
        };
        let damage = match has & 8 != 0 {
            true => decode_damage(pages, from)?,
            false => Vec::new(),
        };
        let mut lost = PageSet::EMPTY;
        if has & 16 != 0 {
            lost = PageSet::decode(pages, from)?;
            let is_stored = |page| {
                base.is_some_and(|base| base.stored.contains(page))
                    || packs.iter().any(|pack| pack.pages.contains(page))
            };
            if lost.is_empty() || lost.iter().any(is_stored) {
                return Err(invalid("lost", "announced but empty, or a page is stored too"));
            }
        }
        Ok(Self { birth, base, allocated, packs, damage, lost })
    }
}

/// Reads the packs of an entry. `pages` is the number of pages in a chunk.
fn decode_packs(
    pages: u16,
    origin_of: impl Fn(u16) -> Result<u16, DecodeError>,
    from: &mut Decoder<'_>,
) -> Result<Vec<InPack>, DecodeError> {
    let count = from.count(18 + PageSet::encoded_bytes(pages))?;
    if count == 0 || count > MAX_PACKS_PER_ENTRY {
        return Err(invalid("packs", format!("{count} is not 1 to {MAX_PACKS_PER_ENTRY}")));
    }
    let mut packs = Vec::new();
    let mut packed = PageSet::EMPTY;
    for _ in 0..count {
        let pack = InPack {
            origin: origin_of(from.u16()?)?,
            id: ObjectId::decode(from)?,
            first_frame: from.u32()?,
            pages: PageSet::decode(pages, from)?,
        };
        if pack.pages.iter().any(|page| packed.contains(page)) {
            return Err(invalid("packs", "a page is in two"));
        }
        pack.pages.iter().for_each(|page| packed.insert(page));
        packs.push(pack);
    }
    Ok(packs)
}

/// Reads the damage of an entry. `pages` is the number of pages in a chunk.
fn decode_damage(pages: u16, from: &mut Decoder<'_>) -> Result<Vec<Damage>, DecodeError> {
    let count = from.count(2 + SECTOR_MASK_BYTES)?;
    let mut damage = Vec::new();
    let mut least = 0;
    for _ in 0..count {
        let page = from.u16()?;
        if page < least || page >= pages {
            return Err(invalid("damage", format!("page {page} is out of order or beyond the chunk")));
        }
        least = page + 1;
        damage.push(Damage { page, good_sectors: from.array()? });
    }
    if damage.is_empty() {
        return Err(invalid("damage", "announced but empty"));
    }
    Ok(damage)
}

/// The entries of 4,096 chunks, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPage {
    /// Number of the map page in its volume.
    page: u32,
    pages_per_chunk: u16,
    origins: Vec<Uuid>,
    /// The entries as the object contains them, each preceded by its slot.
    entries: Bytes,
    /// The slot of each entry, and the offset in `entries` at which the entry begins, after its slot.
    index: Vec<(u16, u32)>,
}

const LEAST_ENTRY_BYTES: usize = 2 + 1 + 8;

impl MapPage {
    /// Creates a map page with these entries. Entries that are equivalent to no entry are left out.
    #[must_use]
    pub fn new(page: u32, geometry: Geometry, origins: Vec<Uuid>, entries: &BTreeMap<u16, Entry>) -> Self {
        let pages_per_chunk = geometry.pages_per_chunk();
        let mut to = Encoder::new(Kind::MapPage, Uuid::nil(), entries.len() * 48);
        let mut index = Vec::with_capacity(entries.len());
        for (slot, entry) in entries.iter().filter(|(_, entry)| !entry.is_hole()) {
            to.u16(*slot);
            index.push((
                *slot,
                u32::try_from(to.position() - Encoder::PROLOGUE_BYTES)
                    .expect("4,096 entries stay below 4 GiB"),
            ));
            entry.encode(pages_per_chunk, &mut to);
        }
        let entries = Bytes::copy_from_slice(&to.written()[Encoder::PROLOGUE_BYTES..]);
        Self { page, pages_per_chunk, origins, entries, index }
    }

    /// Encodes the object with the id `id`.
    #[must_use]
    pub fn encode(&self, volume: Uuid, id: ObjectId) -> Vec<u8> {
        let mut to = Encoder::new(Kind::MapPage, volume, 128 + self.entries.len() + 16 * self.origins.len());
        to.u32(self.page);
        id.encode(&mut to);
        to.u16(self.pages_per_chunk);
        encode_origins(&self.origins, &mut to);
        to.len(self.index.len());
        to.raw(&self.entries);
        to.finish()
    }

    /// Decodes the object with the id `id`, which must be map page `page`.
    ///
    /// # Errors
    /// Returns an error if the object is damaged, or is another object.
    pub fn decode(
        volume: Uuid,
        page: u32,
        id: ObjectId,
        geometry: Geometry,
        bytes: &[u8],
    ) -> Result<Self, DecodeError> {
        let mut from = Decoder::object_of(Kind::MapPage, volume, bytes)?;
        let found = (from.u32()?, ObjectId::decode(&mut from)?);
        if found != (page, id) {
            return Err(invalid("map page", format!("is {found:?}, not {:?}", (page, id))));
        }
        let pages_per_chunk = from.u16()?;
        if pages_per_chunk != geometry.pages_per_chunk() {
            return Err(invalid("pages of a chunk", format!("{pages_per_chunk} is not the volume's")));
        }
        let origins = decode_origins(&mut from)?;
        let count = from.count(LEAST_ENTRY_BYTES)?;
        let all = from.raw(from.remaining())?;
        let mut from = Decoder::fields(all);
        let mut index = Vec::with_capacity(count);
        let mut least = 0;
        for _ in 0..count {
            let slot = from.u16()?;
            if slot < least || u32::from(slot) >= MAP_PAGE_ENTRIES {
                return Err(invalid("slot", format!("{slot} is out of order or beyond the page")));
            }
            least = slot + 1;
            let at = all.len() - from.remaining();
            index.push((slot, u32::try_from(at).map_err(|_| invalid("map page", "longer than 4 GiB"))?));
            if Entry::decode(pages_per_chunk, origins.len(), &mut from)?.is_hole() {
                return Err(invalid("entry", "says no more than its absence"));
            }
        }
        from.finish()?;
        Ok(Self { page, pages_per_chunk, origins, entries: Bytes::copy_from_slice(all), index })
    }

    /// Returns the entry of a chunk, or `None` if the chunk is a hole.
    #[must_use]
    pub fn entry(&self, slot: u16) -> Option<Entry> {
        let place = self.index.binary_search_by_key(&slot, |(slot, _)| *slot).ok()?;
        Some(self.entry_at(place))
    }

    fn entry_at(&self, place: usize) -> Entry {
        let at = usize::try_from(self.index[place].1).expect("within the entries");
        Entry::decode(self.pages_per_chunk, self.origins.len(), &mut Decoder::fields(&self.entries[at..]))
            .expect("entries were checked when the page was made")
    }

    /// Returns all entries, in order of slot.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<u16, Entry> {
        (0..self.index.len()).map(|place| (self.index[place].0, self.entry_at(place))).collect()
    }

    /// Returns the number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether every chunk is a hole.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Returns the other volumes whose objects the entries reference.
    #[must_use]
    pub fn origins(&self) -> &[Uuid] {
        &self.origins
    }

    /// Returns the memory that the map page takes, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.entries.len()
            + self.index.len() * size_of::<(u16, u32)>()
            + self.origins.len() * 16
    }
}
