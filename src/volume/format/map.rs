//! Map pages: where the pages of each chunk are stored. One object contains the entries of 4,096 chunks.
//!
//! A loaded map page keeps its entries encoded, with an index, so that its memory is in proportion to the
//! size of its object. Must not know how map pages are loaded. Invariants: all entries are checked when the
//! page is decoded. Encoding decoded entries results in the same bytes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::codec::{DecodeError, Decoder, Encoder, Kind, invalid};
use super::geometry::{BLOCKS_PER_PAGE, Geometry, MAP_PAGE_ENTRIES, PageIndex, SECTOR_BYTES};
use super::keys::{ObjectId, Slot};
use super::overlay::{Located, Overlay};
use super::page_set::PageSet;
use super::root::{decode_origins, encode_origins};
use super::sealing::Sealing;

/// Limit on the overlays of a map page.
pub const MAX_OVERLAYS: usize = 8;
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

/// A set of chunks of one map page, by slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkSet(Box<[u64; CHUNK_SET_WORDS]>);

const CHUNK_SET_WORDS: usize = MAP_PAGE_ENTRIES as usize / 64;
const CHUNK_SET_BYTES: usize = CHUNK_SET_WORDS * 8;

impl Default for ChunkSet {
    fn default() -> Self {
        Self(Box::new([0; CHUNK_SET_WORDS]))
    }
}

impl ChunkSet {
    /// Whether the set contains a chunk.
    #[must_use]
    pub fn contains(&self, slot: u16) -> bool {
        self.0[usize::from(slot / 64)] >> (slot % 64) & 1 == 1
    }

    /// Adds a chunk.
    pub fn insert(&mut self, slot: u16) {
        self.0[usize::from(slot / 64)] |= 1 << (slot % 64);
    }

    /// Removes a chunk.
    pub fn remove(&mut self, slot: u16) {
        self.0[usize::from(slot / 64)] &= !(1 << (slot % 64));
    }

    /// Adds all chunks of another set.
    pub fn extend(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0[..]).for_each(|(word, other)| *word |= other);
    }

    /// Whether the set contains no chunk.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Returns the chunks in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        let slots = 0..u16::try_from(MAP_PAGE_ENTRIES).expect("4,096");
        slots.filter(|slot| self.contains(*slot))
    }

    fn encode(&self, to: &mut Encoder) {
        self.0.iter().for_each(|word| to.u64(*word));
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let mut set = Self::default();
        for word in &mut set.0[..] {
            *word = from.u64()?;
        }
        Ok(set)
    }
}

/// Where an overlay is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OverlayPlace {
    /// In an object of its own.
    Object {
        /// The owner of the object, as in [`Base::origin`].
        origin: u16,
        /// Id of the overlay.
        id: ObjectId,
    },
    /// In the map page itself.
    Embedded(Arc<Overlay>),
}

/// The reference of a map page to an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayRef {
    /// Where the overlay is stored.
    pub place: OverlayPlace,
    /// The chunks that the overlay applies to. Its runs for other chunks count for nothing.
    pub chunks: ChunkSet,
}

impl OverlayRef {
    fn encoded_bytes(&self) -> usize {
        let runs = match &self.place {
            OverlayPlace::Object { .. } => 0,
            OverlayPlace::Embedded(overlay) => overlay.encoded_bytes(),
        };
        1 + 2 + ObjectId::BYTES + runs + CHUNK_SET_BYTES
    }

    fn encode(&self, to: &mut Encoder) {
        match &self.place {
            OverlayPlace::Object { origin, id } => {
                to.u8(0);
                to.u16(*origin);
                id.encode(to);
            }
            OverlayPlace::Embedded(overlay) => {
                to.u8(1);
                to.len(overlay.encoded_bytes());
                overlay.encode_runs(to);
            }
        }
        self.chunks.encode(to);
    }

    fn decode(geometry: Geometry, origins: usize, from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let place = match from.u8()? {
            0 => OverlayPlace::Object {
                origin: check_origin(from.u16()?, origins)?,
                id: ObjectId::decode(from)?,
            },
            1 => {
                let length = from.length()?;
                let runs = Decoder::fields(from.raw(length)?);
                OverlayPlace::Embedded(Arc::new(Overlay::decode_runs(geometry, runs)?))
            }
            other => return Err(invalid("overlay", format!("kind {other} is unknown"))),
        };
        let chunks = ChunkSet::decode(from)?;
        match chunks.is_empty() {
            false => Ok(Self { place, chunks }),
            true => Err(invalid("overlay", "applies to no chunk")),
        }
    }
}

fn check_origin(origin: u16, origins: usize) -> Result<u16, DecodeError> {
    match usize::from(origin) > origins {
        true => Err(invalid("origin", format!("{origin} is beyond the {origins} origins"))),
        false => Ok(origin),
    }
}

/// A page with sectors that could not be read when the page was rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The page.
    pub page: PageIndex,
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
    /// Number of blocks that overlays which apply to the chunk locate or zero.
    pub overlaid: u16,
    /// Pages with damaged sectors, in order of page.
    pub damage: Vec<Damage>,
    /// Pages whose location is unknown, because the object that contained it was lost. They are not in the
    /// base, and no overlay locates a block of them.
    pub lost: PageSet,
}

impl Entry {
    /// Whether the entry is equivalent to no entry.
    #[must_use]
    pub fn is_hole(&self) -> bool {
        self.base.is_none()
            && self.overlaid == 0
            && self.allocated.is_empty()
            && self.damage.is_empty()
            && self.lost.is_empty()
    }

    /// Returns the damage of a page, if it has any.
    #[must_use]
    pub fn damage_of(&self, page: PageIndex) -> Option<&Damage> {
        self.damage.iter().find(|d| d.page == page)
    }

    fn encode(&self, pages: u16, to: &mut Encoder) {
        let has_base = u8::from(self.base.is_some());
        let has_birth = u8::from(self.birth.is_some()) << 1;
        let has_overlaid = u8::from(self.overlaid > 0) << 2;
        let has_damage = u8::from(!self.damage.is_empty()) << 3;
        let has_lost = u8::from(!self.lost.is_empty()) << 4;
        to.u8(has_base | has_birth | has_overlaid | has_damage | has_lost);
        self.allocated.encode(pages, to);
        if let Some(birth) = self.birth {
            birth.encode(to);
        }
        if let Some(base) = &self.base {
            to.u16(base.origin);
            base.id.encode(to);
            base.stored.encode(pages, to);
        }
        if self.overlaid > 0 {
            to.u16(self.overlaid);
        }
        if !self.damage.is_empty() {
            to.len(self.damage.len());
            for damage in &self.damage {
                to.u16(damage.page.0);
                to.raw(&damage.good_sectors);
            }
        }
        if !self.lost.is_empty() {
            self.lost.encode(pages, to);
        }
    }

    fn decode(pages: u16, origins: usize, from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
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
                origin: check_origin(from.u16()?, origins)?,
                id: ObjectId::decode(from)?,
                stored: PageSet::decode(pages, from)?,
            }),
            false => None,
        };
        let mut overlaid = 0;
        if has & 4 != 0 {
            overlaid = from.u16()?;
            if !(1..=u32::from(pages) * BLOCKS_PER_PAGE).contains(&u32::from(overlaid)) {
                return Err(invalid("overlaid", format!("{overlaid} blocks of a chunk of {pages} pages")));
            }
        }
        let damage = match has & 8 != 0 {
            true => decode_damage(pages, from)?,
            false => Vec::new(),
        };
        let mut lost = PageSet::EMPTY;
        if has & 16 != 0 {
            lost = PageSet::decode(pages, from)?;
            let is_stored = |page| base.is_some_and(|base| base.stored.contains(page));
            if lost.is_empty() || lost.iter().any(is_stored) {
                return Err(invalid("lost", "announced but empty, or a page is stored too"));
            }
        }
        Ok(Self { birth, base, allocated, overlaid, damage, lost })
    }
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
        damage.push(Damage { page: PageIndex(page), good_sectors: from.array()? });
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
    /// The overlays, oldest first.
    overlays: Vec<OverlayRef>,
    /// The entries as the object contains them, each preceded by its slot.
    entries: Bytes,
    /// The slot of each entry, and the offset in `entries` at which the entry begins, after its slot.
    index: Vec<(u16, u32)>,
}

const LEAST_ENTRY_BYTES: usize = 2 + 1 + 8;

impl MapPage {
    /// Creates a map page with these entries. Entries that are equivalent to no entry are left out, and so
    /// are overlays that apply to no chunk.
    ///
    /// # Panics
    /// Panics if there are more than [`MAX_OVERLAYS`] overlays.
    #[must_use]
    pub fn new(
        page: u32,
        geometry: Geometry,
        origins: Vec<Uuid>,
        mut overlays: Vec<OverlayRef>,
        entries: &BTreeMap<u16, Entry>,
    ) -> Self {
        overlays.retain(|overlay| !overlay.chunks.is_empty());
        assert!(overlays.len() <= MAX_OVERLAYS, "a map page has at most {MAX_OVERLAYS} overlays");
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
        Self { page, pages_per_chunk, origins, overlays, entries, index }
    }

    /// Encodes the object with the id `id`.
    #[must_use]
    pub fn encode(&self, sealing: Sealing, id: ObjectId) -> Vec<u8> {
        let overlays = self.overlays.iter().map(OverlayRef::encoded_bytes).sum::<usize>();
        let bytes = 128 + self.entries.len() + 16 * self.origins.len() + overlays;
        let mut to = Encoder::new(Kind::MapPage, sealing.volume(), bytes);
        to.u32(self.page);
        id.encode(&mut to);
        to.u16(self.pages_per_chunk);
        encode_origins(&self.origins, &mut to);
        to.u8(u8::try_from(self.overlays.len()).expect("at most 8"));
        self.overlays.iter().for_each(|overlay| overlay.encode(&mut to));
        to.len(self.index.len());
        to.raw(&self.entries);
        to.finish()
    }

    /// Decodes the object with the id `id`, which must be map page `page`.
    ///
    /// # Errors
    /// Returns an error if the object is damaged, or is another object.
    pub fn decode(
        sealing: Sealing,
        page: u32,
        id: ObjectId,
        geometry: Geometry,
        bytes: &[u8],
    ) -> Result<Self, DecodeError> {
        let mut from = Decoder::object_of(Kind::MapPage, sealing.volume(), bytes)?;
        let found = (from.u32()?, ObjectId::decode(&mut from)?);
        if found != (page, id) {
            return Err(invalid("map page", format!("is {found:?}, not {:?}", (page, id))));
        }
        let pages_per_chunk = from.u16()?;
        if pages_per_chunk != geometry.pages_per_chunk() {
            return Err(invalid("pages of a chunk", format!("{pages_per_chunk} is not the volume's")));
        }
        let origins = decode_origins(&mut from)?;
        let (overlays, overlaid) = decode_overlays(geometry, origins.len(), &mut from)?;
        let count = from.count(LEAST_ENTRY_BYTES)?;
        let all = from.raw(from.remaining())?;
        let mut from = Decoder::fields(all);
        let mut index = Vec::with_capacity(count);
        let (mut least, mut left) = (0, overlaid);
        for _ in 0..count {
            let slot = from.u16()?;
            if slot < least || u32::from(slot) >= MAP_PAGE_ENTRIES {
                return Err(invalid("slot", format!("{slot} is out of order or beyond the page")));
            }
            least = slot + 1;
            let at = all.len() - from.remaining();
            index.push((slot, u32::try_from(at).map_err(|_| invalid("map page", "longer than 4 GiB"))?));
            let entry = Entry::decode(pages_per_chunk, origins.len(), &mut from)?;
            if entry.is_hole() {
                return Err(invalid("entry", "says no more than its absence"));
            }
            if (entry.overlaid > 0) != left.contains(slot) {
                return Err(invalid("overlaid", format!("chunk {slot} and the overlays disagree")));
            }
            check_embedded(geometry, &overlays, slot, &entry)?;
            left.remove(slot);
        }
        if !left.is_empty() {
            return Err(invalid("overlay", "applies to a chunk without an entry"));
        }
        from.finish()?;
        Ok(Self { page, pages_per_chunk, origins, overlays, entries: Bytes::copy_from_slice(all), index })
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

    /// Returns the overlays, oldest first.
    #[must_use]
    pub fn overlays(&self) -> &[OverlayRef] {
        &self.overlays
    }

    /// Returns the memory that the map page takes, in bytes, without its overlays.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.entries.len()
            + self.index.len() * size_of::<(u16, u32)>()
            + self.origins.len() * 16
            + self.overlays.len() * (size_of::<OverlayRef>() + CHUNK_SET_BYTES)
    }
}

/// Reads the overlays of a map page. Also returns the chunks that any of them applies to.
fn decode_overlays(
    geometry: Geometry,
    origins: usize,
    from: &mut Decoder<'_>,
) -> Result<(Vec<OverlayRef>, ChunkSet), DecodeError> {
    let count = usize::from(from.u8()?);
    if count > MAX_OVERLAYS {
        return Err(invalid("overlays", format!("{count} are more than {MAX_OVERLAYS}")));
    }
    let mut chunks = ChunkSet::default();
    let mut overlays = Vec::with_capacity(count);
    for _ in 0..count {
        let overlay = OverlayRef::decode(geometry, origins, from)?;
        let is_object = matches!(overlay.place, OverlayPlace::Object { .. });
        if is_object && overlays.iter().any(|other: &OverlayRef| other.place == overlay.place) {
            return Err(invalid("overlay", format!("{:?} is listed twice", overlay.place)));
        }
        chunks.extend(&overlay.chunks);
        overlays.push(overlay);
    }
    Ok((overlays, chunks))
}

/// Checks the entry of a chunk against the embedded overlays. What overlay objects locate is not known here.
fn check_embedded(
    geometry: Geometry,
    overlays: &[OverlayRef],
    slot: u16,
    entry: &Entry,
) -> Result<(), DecodeError> {
    let applying = || overlays.iter().filter(|overlay| overlay.chunks.contains(slot));
    let embedded = || {
        applying().filter_map(|overlay| match &overlay.place {
            OverlayPlace::Embedded(overlay) => Some(&**overlay),
            OverlayPlace::Object { .. } => None,
        })
    };
    if embedded().next().is_none() {
        return Ok(());
    }
    let located = Located::new(geometry, slot, embedded());
    let (count, overlaid) = (located.count(), u32::from(entry.overlaid));
    if overlaid < count || overlaid > count && applying().count() == embedded().count() {
        return Err(invalid("overlaid", format!("{overlaid} blocks of chunk {slot}, {count} found")));
    }
    match entry.lost.iter().find(|page| located.has_frame_of(*page)) {
        Some(page) => Err(invalid("lost", format!("an overlay locates a block of page {}", page.0))),
        None => Ok(()),
    }
}
