//! Every kind of object as one type, so that a test is written once for all of them.
//!
//! Invariant: [`Object::decode`] and [`Object::encode`] only pass on to the codecs of the library.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn::volume::format::chunk::{self, ChunkObject, ChunkWriter};
use cairn::volume::format::codec::DecodeError;
use cairn::volume::format::first_reads::FirstReads;
use cairn::volume::format::geometry::{BLOCK_LEN, BlockIndex, ChunkIndex, Geometry, PAGE_BYTES, PageIndex};
use cairn::volume::format::head::Head;
use cairn::volume::format::identity::{Identity, NameBinding};
use cairn::volume::format::keys::{ObjectId, Slot};
use cairn::volume::format::map::{Entry, MapPage, OverlayRef};
use cairn::volume::format::overlay::Overlay;
use cairn::volume::format::pack::{self, Pack, PackWriter};
use cairn::volume::format::page_set::PageSet;
use cairn::volume::format::record::{Change, Record, RecordWriter};
use cairn::volume::format::root::{Root, RootTable};
use cairn::volume::format::sealing::Sealing;
use uuid::Uuid;

/// What a reader knows of an object before it reads it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Expected {
    Identity,
    Name,
    Head,
    FirstReads,
    Record(Slot),
    Root(ObjectId),
    RootTable(ObjectId),
    MapPage(u32, ObjectId, Geometry),
    Overlay(u32, ObjectId, Geometry),
    Chunk,
    Pack,
}

/// An object's content.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Object {
    Identity(Identity),
    Name(NameBinding),
    Head(Head),
    FirstReads(FirstReads),
    /// A record, and the bytes of its data changes in order.
    Record(Record, Vec<Bytes>),
    Root(Root),
    RootTable(RootTable),
    MapPage {
        page: u32,
        id: ObjectId,
        geometry: Geometry,
        origins: Vec<Uuid>,
        overlays: Vec<OverlayRef>,
        entries: BTreeMap<u16, Entry>,
    },
    Overlay {
        page: u32,
        id: ObjectId,
        geometry: Geometry,
        overlay: Overlay,
    },
    Chunk {
        index: ChunkIndex,
        id: ObjectId,
        pages_per_chunk: u16,
        pages: BTreeMap<u16, Vec<u8>>,
    },
    Pack {
        id: ObjectId,
        blocks: BTreeMap<u64, Vec<u8>>,
    },
}

impl Expected {
    /// Has the library read an object of a volume, and do nothing with it.
    pub(super) fn read(self, sealing: Sealing, bytes: &[u8]) {
        match self {
            Self::Identity => drop(Identity::decode(sealing.volume(), bytes)),
            Self::Name => drop(NameBinding::decode(bytes)),
            Self::Head => drop(Head::decode(sealing.volume(), bytes)),
            Self::FirstReads => drop(FirstReads::decode(sealing, bytes)),
            Self::Root(id) => drop(Root::decode(sealing, id, bytes)),
            Self::RootTable(id) => drop(RootTable::decode(sealing, id, bytes)),
            Self::Record(slot) => drop(Record::decode(sealing, slot, bytes)),
            Self::MapPage(page, id, geometry) => drop(MapPage::decode(sealing, page, id, geometry, bytes)),
            Self::Overlay(page, id, geometry) => drop(Overlay::decode(sealing, page, id, geometry, bytes)),
            Self::Chunk => drop(ChunkObject::decode(sealing, bytes)),
            Self::Pack => drop(Pack::decode(sealing, bytes)),
        }
    }
}

impl Object {
    /// Reads an object of a volume.
    pub(super) fn decode(sealing: Sealing, expected: Expected, bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(match expected {
            Expected::Identity => Self::Identity(Identity::decode(sealing.volume(), bytes)?),
            Expected::Name => Self::Name(NameBinding::decode(bytes)?),
            Expected::Head => Self::Head(Head::decode(sealing.volume(), bytes)?),
            Expected::FirstReads => Self::FirstReads(FirstReads::decode(sealing, bytes)?),
            Expected::Root(id) => Self::Root(Root::decode(sealing, id, bytes)?),
            Expected::RootTable(id) => Self::RootTable(RootTable::decode(sealing, id, bytes)?),
            Expected::Record(slot) => decode_record(sealing, slot, bytes)?,
            Expected::MapPage(page, id, geometry) => decode_map_page(sealing, page, id, geometry, bytes)?,
            Expected::Overlay(page, id, geometry) => {
                let overlay = Overlay::decode(sealing, page, id, geometry, bytes)?;
                Self::Overlay { page, id, geometry, overlay }
            }
            Expected::Chunk => decode_chunk(sealing, bytes)?,
            Expected::Pack => decode_pack(sealing, bytes)?,
        })
    }

    /// The object's bytes.
    pub(super) fn encode(&self, sealing: Sealing) -> Vec<u8> {
        match self {
            Self::Identity(identity) => identity.encode(),
            Self::Name(name) => name.encode(),
            Self::Head(head) => head.encode(),
            Self::FirstReads(list) => list.encode(sealing),
            Self::Root(root) => root.encode(sealing),
            Self::RootTable(table) => table.encode(sealing),
            Self::Record(record, data) => {
                let Record { kind, slot, writer, nonce, previous, pages_per_chunk, .. } = *record;
                let mut to = RecordWriter::new(sealing, kind, slot, writer, nonce, previous, pages_per_chunk);
                let mut data = data.iter();
                for change in &record.changes {
                    match change {
                        Change::Data { offset, .. } => to.data(*offset, data.next().unwrap().clone()),
                        other => to.change(other.clone()),
                    }
                }
                let (made, bytes, _) = to.finish();
                assert_eq!(made, *record, "the writer gives the record that a reader finds");
                bytes.to_vec()
            }
            Self::MapPage { page, id, geometry, origins, overlays, entries } => {
                let (origins, overlays) = (origins.clone(), overlays.clone());
                MapPage::new(*page, *geometry, origins, overlays, entries).encode(sealing, *id)
            }
            Self::Overlay { page, id, overlay, .. } => overlay.encode(sealing, *page, *id),
            Self::Pack { id, blocks } => {
                let mut to = PackWriter::new(sealing, *id, u32::try_from(blocks.len()).unwrap());
                blocks.iter().for_each(|(block, payload)| to.block(BlockIndex(*block), payload));
                to.finish().to_vec()
            }
            Self::Chunk { index, id, pages_per_chunk, pages } => {
                let count = u32::try_from(pages.len()).unwrap();
                let mut to = ChunkWriter::new(sealing, *index, *id, *pages_per_chunk, count);
                for (page, payload) in pages {
                    to.page(PageIndex(*page), payload);
                }
                to.finish().to_vec()
            }
        }
    }

    /// What a reader of this object knows.
    pub(super) fn expected(&self) -> Expected {
        match self {
            Self::Identity(_) => Expected::Identity,
            Self::Name(_) => Expected::Name,
            Self::Head(_) => Expected::Head,
            Self::FirstReads(_) => Expected::FirstReads,
            Self::Record(record, _) => Expected::Record(record.slot),
            Self::Root(root) => Expected::Root(root.id),
            Self::RootTable(table) => Expected::RootTable(table.id),
            Self::MapPage { page, id, geometry, .. } => Expected::MapPage(*page, *id, *geometry),
            Self::Overlay { page, id, geometry, .. } => Expected::Overlay(*page, *id, *geometry),
            Self::Chunk { .. } => Expected::Chunk,
            Self::Pack { .. } => Expected::Pack,
        }
    }
}

/// Reads a record and its data. Its table alone must say the same.
fn decode_record(sealing: Sealing, slot: Slot, bytes: &[u8]) -> Result<Object, DecodeError> {
    let (record, checksum) = Record::decode(sealing, slot, bytes)?;
    let end = Record::table_bytes(sealing, bytes, bytes.len() as u64).unwrap();
    let table = &bytes[..usize::try_from(end).unwrap()];
    assert_eq!(checksum.0, table[table.len() - 16..], "the checksum of the table is behind the table");
    assert_eq!(Record::decode_table(sealing, slot, table), Ok((record.clone(), checksum)));
    let data = record.changes.iter().filter_map(|change| match change {
        Change::Data { at, length, .. } => {
            let at = usize::try_from(*at).unwrap();
            Some(Bytes::copy_from_slice(&bytes[at..at + usize::try_from(*length).unwrap()]))
        }
        _ => None,
    });
    let data = data.collect();
    Ok(Object::Record(record, data))
}

/// Reads a map page. Each entry alone must be as among all.
fn decode_map_page(
    sealing: Sealing,
    page: u32,
    id: ObjectId,
    geometry: Geometry,
    bytes: &[u8],
) -> Result<Object, DecodeError> {
    let map = MapPage::decode(sealing, page, id, geometry, bytes)?;
    let (origins, overlays, entries) = (map.origins().to_vec(), map.overlays().to_vec(), map.entries());
    assert_eq!(map.len(), entries.len());
    for slot in 0..4096 {
        let applies = overlays.iter().any(|overlay| overlay.chunks.contains(slot));
        let entry = entries.get(&slot);
        assert_eq!(map.entry(slot).as_ref(), entry, "entry {slot} alone is as among all");
        assert_eq!(entry.is_some_and(|entry| entry.overlaid > 0), applies, "entry {slot} knows its overlays");
    }
    Ok(Object::MapPage { page, id, geometry, origins, overlays, entries })
}

/// Reads a chunk object. Each frame must be where its page and block say.
fn decode_chunk(sealing: Sealing, bytes: &[u8]) -> Result<Object, DecodeError> {
    let object = ChunkObject::decode(sealing, bytes)?;
    // A reader of the whole object takes the number of pages from it.
    let pages_per_chunk = u16::from_le_bytes(bytes[42..44].try_into().unwrap());
    assert_eq!(object.stored.len() as usize * 16, object.blocks.len());
    for (number, block) in (0..).zip(&object.blocks) {
        let at = usize::try_from(chunk::frame_offset(pages_per_chunk, number / 16, number % 16)).unwrap();
        assert_eq!(&bytes[at..at + BLOCK_LEN], *block);
    }
    let pages =
        object.stored.iter().map(|page| page.0).zip(object.blocks.chunks(16).map(<[_]>::concat)).collect();
    Ok(Object::Chunk { index: object.index, id: object.id, pages_per_chunk, pages })
}

/// Reads a pack. Its index alone must say the same.
fn decode_pack(sealing: Sealing, bytes: &[u8]) -> Result<Object, DecodeError> {
    let Pack { id, blocks } = Pack::decode(sealing, bytes)?;
    let frames = u32::try_from(blocks.len()).unwrap();
    let start = usize::try_from(pack::frame_offset(frames)).unwrap();
    let index = &bytes[start..start + usize::try_from(pack::index_bytes(frames)).unwrap()];
    let numbers: Vec<BlockIndex> = blocks.iter().map(|(block, _)| *block).collect();
    assert_eq!(pack::decode_index(sealing, id, frames, index), Ok(numbers));
    for (frame, (_, payload)) in (0..).zip(&blocks) {
        let at = usize::try_from(pack::frame_offset(frame)).unwrap();
        assert_eq!(&bytes[at..at + BLOCK_LEN], *payload);
    }
    assert_eq!(pack::object_bytes(frames), bytes.len() as u64);
    Ok(Object::Pack {
        id,
        blocks: blocks.into_iter().map(|(block, payload)| (block.0, payload.to_vec())).collect(),
    })
}

/// A set of these pages.
pub(super) fn page_set(pages: impl IntoIterator<Item = u16>) -> PageSet {
    let mut set = PageSet::EMPTY;
    pages.into_iter().for_each(|page| set.insert(PageIndex(page)));
    set
}

/// Chunks of so many pages.
pub(super) fn geometry(pages_per_chunk: u16) -> Geometry {
    Geometry::new(u64::from(pages_per_chunk) * PAGE_BYTES).unwrap()
}
