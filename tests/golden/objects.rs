//! Every kind of object as one type, so that a test is written once for all of them.
//!
//! Invariant: [`Object::decode`] and [`Object::encode`] only pass on to the codecs of the library.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn::volume::format::chunk::{ChunkObject, ChunkWriter};
use cairn::volume::format::codec::DecodeError;
use cairn::volume::format::geometry::{ChunkIndex, Geometry, PAGE_BYTES};
use cairn::volume::format::head::Head;
use cairn::volume::format::identity::{Identity, NameBinding};
use cairn::volume::format::keys::{ObjectId, Slot};
use cairn::volume::format::map::{Entry, MapPage};
use cairn::volume::format::page_set::PageSet;
use cairn::volume::format::record::{Change, Record, RecordWriter};
use cairn::volume::format::root::{Root, RootTable};
use uuid::Uuid;

/// What a reader knows of an object before it reads it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Expected {
    Identity,
    Name,
    Head,
    Record(Slot),
    Root(ObjectId),
    RootTable(ObjectId),
    MapPage(u32, ObjectId, Geometry),
    Chunk { pages_per_chunk: u16 },
}

/// An object's content.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Object {
    Identity(Identity),
    Name(NameBinding),
    Head(Head),
    /// A record, and the bytes of its data changes in order.
    Record(Record, Vec<Bytes>),
    Root(Root),
    RootTable(RootTable),
    MapPage {
        page: u32,
        id: ObjectId,
        geometry: Geometry,
        origins: Vec<Uuid>,
        entries: BTreeMap<u16, Entry>,
    },
    Chunk {
        index: ChunkIndex,
        id: ObjectId,
        pages_per_chunk: u16,
        pages: BTreeMap<u16, Vec<u8>>,
    },
}

impl Object {
    /// Reads an object of a volume.
    pub(super) fn decode(volume: Uuid, expected: Expected, bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(match expected {
            Expected::Identity => Self::Identity(Identity::decode(volume, bytes)?),
            Expected::Name => Self::Name(NameBinding::decode(bytes)?),
            Expected::Head => Self::Head(Head::decode(volume, bytes)?),
            Expected::Root(id) => Self::Root(Root::decode(volume, id, bytes)?),
            Expected::RootTable(id) => Self::RootTable(RootTable::decode(volume, id, bytes)?),
            Expected::Record(slot) => {
                let (record, checksum) = Record::decode(volume, slot, bytes)?;
                assert_eq!(checksum.0, bytes[bytes.len() - 16..], "a record's checksum is its last 16 bytes");
                let data = record.changes.iter().filter_map(|change| match change {
                    Change::Data { at, length, .. } => {
                        let at = usize::try_from(*at).unwrap();
                        Some(Bytes::copy_from_slice(&bytes[at..at + usize::try_from(*length).unwrap()]))
                    }
                    _ => None,
                });
                let data = data.collect();
                Self::Record(record, data)
            }
            Expected::MapPage(page, id, geometry) => {
                let map = MapPage::decode(volume, page, id, geometry, bytes)?;
                let (origins, entries) = (map.origins().to_vec(), map.entries());
                assert_eq!(map.len(), entries.len());
                for slot in 0..4096 {
                    assert_eq!(
                        map.entry(slot).as_ref(),
                        entries.get(&slot),
                        "entry {slot} alone is as among all"
                    );
                }
                Self::MapPage { page, id, geometry, origins, entries }
            }
            Expected::Chunk { pages_per_chunk } => {
                let chunk = ChunkObject::decode(volume, bytes)?;
                assert_eq!(chunk.stored.len() as usize, chunk.pages.len());
                let pages = chunk.stored.iter().zip(chunk.pages.iter().map(|page| page.to_vec())).collect();
                Self::Chunk { index: chunk.index, id: chunk.id, pages_per_chunk, pages }
            }
        })
    }

    /// The object's bytes.
    pub(super) fn encode(&self, volume: Uuid) -> Vec<u8> {
        match self {
            Self::Identity(identity) => identity.encode(),
            Self::Name(name) => name.encode(),
            Self::Head(head) => head.encode(),
            Self::Root(root) => root.encode(volume),
            Self::RootTable(table) => table.encode(volume),
            Self::Record(record, data) => {
                let Record { kind, slot, writer, nonce, previous, pages_per_chunk, .. } = *record;
                let mut to = RecordWriter::new(volume, kind, slot, writer, nonce, previous, pages_per_chunk);
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
            Self::MapPage { page, id, geometry, origins, entries } => {
                MapPage::new(*page, *geometry, origins.clone(), entries).encode(volume, *id)
            }
            Self::Chunk { index, id, pages_per_chunk, pages } => {
                let count = u32::try_from(pages.len()).unwrap();
                let mut to = ChunkWriter::new(volume, *index, *id, *pages_per_chunk, count);
                for (page, payload) in pages {
                    to.page(*page, payload);
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
            Self::Record(record, _) => Expected::Record(record.slot),
            Self::Root(root) => Expected::Root(root.id),
            Self::RootTable(table) => Expected::RootTable(table.id),
            Self::MapPage { page, id, geometry, .. } => Expected::MapPage(*page, *id, *geometry),
            Self::Chunk { pages_per_chunk, .. } => Expected::Chunk { pages_per_chunk: *pages_per_chunk },
        }
    }
}

/// A set of these pages.
pub(super) fn page_set(pages: impl IntoIterator<Item = u16>) -> PageSet {
    let mut set = PageSet::EMPTY;
    pages.into_iter().for_each(|page| set.insert(page));
    set
}

/// Chunks of so many pages.
pub(super) fn geometry(pages_per_chunk: u16) -> Geometry {
    Geometry::new(u64::from(pages_per_chunk) * PAGE_BYTES).unwrap()
}
