//! Overlays and packs as the fields that `docs/FORMAT.md` lists, written without the library's encoders.
//!
//! So tests can write what the library never would. Invariant: checksums and tags fit, whatever the fields
//! are.

use cairn::volume::format::codec::{Checksum, DecodeError};
use cairn::volume::format::frame::Place;
use cairn::volume::format::geometry::Geometry;
use cairn::volume::format::keys::ObjectId;
use cairn::volume::format::overlay::{Overlay, PackRef, Target};
use uuid::Uuid;

use super::samples::{SEALING, VOLUME};

/// A run: its first block in the map page, its number of blocks, and where they are.
pub(super) type RunParts = (u32, u32, Target);

/// The fields of an overlay.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct OverlayParts {
    pub origins: Vec<Uuid>,
    pub packs: Vec<PackRef>,
    pub runs: Vec<RunParts>,
}

impl OverlayParts {
    /// The runs as they are in an overlay and in a map page.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = count(self.origins.len());
        self.origins.iter().for_each(|origin| bytes.extend_from_slice(origin.as_bytes()));
        bytes.extend(count(self.packs.len()));
        for pack in &self.packs {
            bytes.extend_from_slice(&pack.origin.to_le_bytes());
            bytes.extend(id_bytes(pack.id));
        }
        bytes.extend(count(self.runs.len()));
        self.runs.iter().for_each(|run| bytes.extend_from_slice(&run_bytes(*run)));
        bytes
    }

    /// The object of this overlay.
    pub(super) fn object(&self, page: u32, id: ObjectId) -> Vec<u8> {
        object(*b"CAIRNOVL", &[&page.to_le_bytes()[..], &id_bytes(id), &self.bytes()].concat())
    }

    /// What a reader finds in the object of this overlay.
    pub(super) fn decode(&self, geometry: Geometry) -> Result<Overlay, DecodeError> {
        let id = ObjectId { epoch: 1, k: 2 };
        Overlay::decode(SEALING, 3, id, geometry, &self.object(3, id))
    }
}

/// A run as it is stored.
pub(super) fn run_bytes((first, blocks, target): RunParts) -> [u8; 8] {
    let (pack, frame) = match target {
        Target::Frame { pack, frame } => (pack, frame),
        Target::Zero { hole: false } => (65_534, 0),
        Target::Zero { hole: true } => (65_535, 0),
    };
    let low = u64::from(blocks - 1) << 32 | u64::from(pack) << 16 | u64::from(frame);
    (u64::from(first) << 38 | low).to_le_bytes()
}

/// The object of a pack with these blocks, each of which repeats one byte.
pub(super) fn pack_object(id: ObjectId, blocks: &[(u64, u8)]) -> Vec<u8> {
    let place = Place::pack(SEALING, id);
    let mut fields = [id_bytes(id), vec![0; 2], count(blocks.len())].concat();
    for (block, byte) in blocks {
        let payload = [*byte; 4096];
        fields.extend_from_slice(&payload);
        fields.extend_from_slice(&place.tag(*block, &payload).0);
    }
    let index: Vec<u8> = blocks.iter().flat_map(|(block, _)| block.to_le_bytes()).collect();
    fields.extend_from_slice(&index);
    fields.extend_from_slice(&place.tag(u64::MAX, &index).0);
    object(*b"CAIRNPAK", &fields)
}

/// An object with these fields.
pub(super) fn object(magic: [u8; 8], fields: &[u8]) -> Vec<u8> {
    let mut bytes = [&magic[..], &2_u16.to_le_bytes(), VOLUME.as_bytes(), fields].concat();
    let checksum = Checksum::of(&bytes);
    bytes.extend_from_slice(&checksum.0);
    bytes
}

fn count(items: usize) -> Vec<u8> {
    u32::try_from(items).unwrap().to_le_bytes().to_vec()
}

fn id_bytes(id: ObjectId) -> Vec<u8> {
    [&id.epoch.to_le_bytes()[..], &id.k.to_le_bytes()].concat()
}
