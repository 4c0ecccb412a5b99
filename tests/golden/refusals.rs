//! What a reader refuses, rule by rule of `docs/FORMAT.md`, though the checksum fits.
//!
//! Each case edits a golden file at offsets that the document gives. Invariant: the complaint names the field.

use cairn::volume::codec::{DecodeError, FORMAT_VERSION};
use cairn::volume::geometry::ChunkIndex;
use cairn::volume::head::HolderName;
use cairn::volume::keys::{ObjectId, Slot};
use cairn::volume::map::{Entry, InPack};
use cairn::volume::record::{Change, RecordKind, RecordWriter};
use cairn::volume::root::{MAX_ORIGINS, MAX_ROOTS, RootTable};
use uuid::Uuid;

use super::objects::{Expected, Object, geometry, page_set};
use super::samples::{Sample, VOLUME, samples};
use super::{decode, read, seal};

/// A golden file, edits of it, and the field that is then refused.
type Case = (&'static str, &'static [(usize, &'static [u8])], &'static str);

const ONES: &[u8] = &[0xff; 8];

const CASES: &[Case] = &[
    ("identity.bin", &[(26, &[1])], "features"),
    ("identity.bin", &[(29, &[0x80])], "features"),
    ("identity.bin", &[(30, &[1])], "write features"),
    ("identity.bin", &[(34, &65_537_u32.to_le_bytes())], "chunk size"),
    ("identity.bin", &[(34, &32_768_u32.to_le_bytes())], "chunk size"),
    ("identity.bin", &[(34, &67_108_864_u32.to_le_bytes())], "chunk size"),
    ("identity.bin", &[(38, &4096_u32.to_le_bytes())], "page size"),
    ("identity.bin", &[(42, &[1])], "codec"),
    ("identity.bin", &[(43, &[1])], "cipher"),
    ("identity.bin", &[(53, b".")], "name"),
    ("identity.bin", &[(54, &[0xff])], "name"),
    ("name.bin", &[(34, &[0])], "name"),
    ("name.bin", &[(34, &[2])], "state"),
    ("name.bin", &[(36, b".")], "name"),
    ("name.bin", &[(37, b"/")], "name"),
    ("name.bin", &[(37, &[0xff])], "name"),
    ("name-free.bin", &[(34, &[1])], "name"),
    ("head-fresh.bin", &[(59, &[1])], "checkpoint"),
    ("head-fresh.bin", &[(113, &[2])], "state"),
    ("head-full.bin", &[(56, &[0xff])], "holder"),
    ("record-commit.bin", &[(26, &[0])], "kind"),
    ("record-commit.bin", &[(26, &[4])], "kind"),
    ("record-commit.bin", &[(27, &[1])], "flags"),
    ("record-commit.bin", &[(28, &[8])], "slot"),
    ("record-commit.bin", &[(32, &[3])], "slot"),
    ("record-commit.bin", &[(40, &[8])], "writer"),
    ("record-commit.bin", &[(40, &[6])], "writer"),
    ("record-commit.bin", &[(26, &[1])], "writer"),
    ("record-commit.bin", &[(26, &[3])], "writer"),
    ("record-opening.bin", &[(26, &[2])], "writer"),
    ("record-opening.bin", &[(40, &[8])], "writer"),
    ("record-seal.bin", &[(40, &[6])], "writer"),
    ("record-seal.bin", &[(26, &[2])], "writer"),
    ("record-commit.bin", &[(68, &3_u16.to_le_bytes())], "pages of a chunk"),
    ("record-commit.bin", &[(68, &0_u16.to_le_bytes())], "pages of a chunk"),
    ("record-commit.bin", &[(68, &1024_u16.to_le_bytes())], "pages of a chunk"),
    ("record-commit.bin", &[(26, &[3]), (40, &[8])], "count"),
    ("record-commit.bin", &[(74, &2047_u64.to_le_bytes())], "data"),
    ("record-commit.bin", &[(74, &2049_u64.to_le_bytes())], "data"),
    ("record-commit.bin", &[(82, &[0])], "change"),
    ("record-commit.bin", &[(82, &[6])], "change"),
    ("record-commit.bin", &[(91, &0_u32.to_le_bytes())], "data"),
    ("record-commit.bin", &[(91, &511_u32.to_le_bytes())], "data"),
    ("record-commit.bin", &[(181, &513_u32.to_le_bytes())], "data"),
    ("record-commit.bin", &[(120, &0_u64.to_le_bytes())], "zero"),
    ("record-commit.bin", &[(112, ONES)], "zero"),
    ("record-commit.bin", &[(128, &[2])], "hole"),
    ("record-commit.bin", &[(68, &32_u16.to_le_bytes())], "pages"),
    ("record-commit.bin", &[(212, &[0xff])], "snapshot"),
    ("record-commit.bin", &[(212, b"/")], "snapshot"),
    ("root.bin", &[(26, &[8])], "root"),
    ("root.bin", &[(30, &[11])], "root"),
    ("root.bin", &[(50, &513_u64.to_le_bytes())], "size"),
    ("root.bin", &[(50, &0_u64.to_le_bytes())], "size"),
    ("root.bin", &[(50, &(u64::MAX - 511).to_le_bytes())], "size"),
    ("root.bin", &[(58, &65_537_u32.to_le_bytes())], "chunk size"),
    ("root.bin", &[(120, &[0])], "map page"),
    ("root.bin", &[(138, &[2])], "map page"),
    ("root.bin", &[(138, &[4])], "map page"),
    ("root.bin", &[(124, &[3])], "origin"),
    ("root.bin", &[(160, &[0])], "zeroed"),
    ("root.bin", &[(160, &[4])], "zeroed"),
    ("root.bin", &[(164, &[0])], "zeroed"),
    ("root.bin", &[(164, &[2])], "zeroed"),
    ("root.bin", &[(164, ONES)], "zeroed"),
    ("root-table.bin", &[(26, &[8])], "root table"),
    ("root-table.bin", &[(54, &[2])], "parent"),
    ("map-page.bin", &[(26, &[3])], "map page"),
    ("map-page.bin", &[(30, &[8])], "map page"),
    ("map-page.bin", &[(42, &128_u16.to_le_bytes())], "pages of a chunk"),
    ("map-page.bin", &[(79, &[0])], "slot"),
    ("map-page.bin", &[(124, &[5])], "slot"),
    ("map-page.bin", &[(157, &4096_u16.to_le_bytes())], "slot"),
    ("map-page.bin", &[(70, &[32])], "entry"),
    // No page is lost, and a page that is stored.
    ("map-page-lost.bin", &[(75, &[0; 8])], "lost"),
    ("map-page-lost.bin", &[(150, &[2])], "lost"),
    ("map-page.bin", &[(71, &[0])], "entry"),
    ("map-page.bin", &[(102, &[2])], "origin"),
    ("map-page.bin", &[(206, &[2])], "origin"),
    ("map-page.bin", &[(202, &[0])], "packs"),
    ("map-page.bin", &[(250, &[8])], "packs"),
    ("map-page.bin", &[(258, &[0])], "damage"),
    ("map-page.bin", &[(280, &[4])], "damage"),
    ("map-page.bin", &[(280, &[64])], "damage"),
    ("chunk.bin", &[(42, &3_u16.to_le_bytes())], "pages of a chunk"),
    ("chunk.bin", &[(42, &1024_u16.to_le_bytes())], "pages of a chunk"),
    ("chunk.bin", &[(42, &32_u16.to_le_bytes())], "pages"),
    ("chunk.bin", &[(44, &[1])], "codec and cipher"),
    ("chunk.bin", &[(45, &[1])], "codec and cipher"),
];

fn sample(file: &str) -> Sample {
    samples().into_iter().find(|sample| sample.file == file).expect("a golden file")
}

/// What a reader makes of a golden file with these edits.
fn edited(file: &str, edits: &[(usize, &[u8])]) -> Result<Object, DecodeError> {
    let mut bytes = read(FORMAT_VERSION, file);
    for (at, edit) in edits {
        bytes[*at..at + edit.len()].copy_from_slice(edit);
    }
    seal(&mut bytes);
    decode(&sample(file), &bytes)
}

fn field(found: &Result<Object, DecodeError>) -> Option<&'static str> {
    match found {
        Err(DecodeError::Invalid { field, .. }) => Some(field),
        _ => None,
    }
}

#[test]
fn what_breaks_a_rule_is_refused_for_that() {
    for (file, edits, expected) in CASES {
        let found = edited(file, edits);
        assert_eq!(field(&found), Some(*expected), "{file} with {edits:?}: {found:?}");
    }
}

#[test]
fn data_and_frames_are_valid_under_their_own_tags_only() {
    // The first and last byte of data, of a tag in the table, of a frame and of its tag.
    for (file, at) in [
        ("record-commit.bin", 255),
        ("record-commit.bin", 2302),
        ("record-commit.bin", 95),
        ("record-commit.bin", 110),
        ("chunk.bin", 54),
        ("chunk.bin", 54 + 65_535),
        ("chunk.bin", 54 + 65_536),
        ("chunk.bin", 54 + 65_551),
        ("chunk.bin", 54 + 65_552),
        ("chunk.bin", 54 + 2 * 65_552 - 1),
    ] {
        let byte = read(FORMAT_VERSION, file)[at] ^ 0x10;
        assert_eq!(edited(file, &[(at, &[byte])]), Err(DecodeError::Checksum), "{file}: byte {at}");
    }
    // Whole frames are valid in their own place only.
    let bytes = read(FORMAT_VERSION, "chunk.bin");
    let (first, second) = (&bytes[54..54 + 65_552], &bytes[54 + 65_552..54 + 2 * 65_552]);
    assert_eq!(edited("chunk.bin", &[(54, second), (54 + 65_552, first)]), Err(DecodeError::Checksum));
    assert_eq!(edited("chunk.bin", &[(26, &[0])]), Err(DecodeError::Checksum), "another chunk");
    assert_eq!(edited("chunk.bin", &[(46, &[4])]), Err(DecodeError::Checksum), "another page");
}

#[test]
fn a_holder_is_described_in_200_bytes_at_most() {
    let Object::Head(mut head) = sample("head-full.bin").object else { panic!("a head") };
    for (length, refused) in [(200, None), (201, Some("holder"))] {
        head.holder_name = HolderName::new(&"x".repeat(201));
        let mut bytes = head.encode();
        bytes[54] = length;
        bytes.splice(55 + 200..55 + 200, vec![b'x'; usize::from(length) - 200]);
        seal(&mut bytes);
        let found = Object::decode(VOLUME, Expected::Head, &bytes);
        assert_eq!(field(&found), refused, "{length} bytes");
        assert_eq!(found.is_err(), refused.is_some(), "{found:?}");
    }
}

#[test]
fn lists_are_no_longer_than_their_bounds() {
    let Object::RootTable(table) = sample("root-table.bin").object else { panic!("a root table") };
    let Object::Root(root) = sample("root.bin").object else { panic!("a root") };
    for (more, refused) in [(0, false), (1, true)] {
        let mut pinned = table.clone();
        pinned.roots[0].pins = vec![Uuid::nil(); MAX_ORIGINS + more];
        let found = Object::decode(VOLUME, Expected::RootTable(table.id), &pinned.encode(VOLUME));
        assert_eq!(field(&found), refused.then_some("origins"));

        let long = RootTable { id: table.id, roots: vec![table.roots[0].clone(); MAX_ROOTS + more] };
        let found = Object::decode(VOLUME, Expected::RootTable(table.id), &long.encode(VOLUME));
        assert_eq!(field(&found), refused.then_some("roots"));

        let mut cloned = root.clone();
        cloned.origins = vec![Uuid::nil(); MAX_ORIGINS + more];
        let found = Object::decode(VOLUME, Expected::Root(root.id), &cloned.encode(VOLUME));
        assert_eq!(field(&found), refused.then_some("origins"));
    }

    let id = ObjectId { epoch: 1, k: 1 };
    for (packs, refused) in [(64, None), (65, Some("packs"))] {
        let in_pack = |page| InPack { origin: 0, id, first_frame: 0, pages: page_set([page]) };
        let entry = Entry { packs: (0..packs).map(in_pack).collect(), ..Entry::default() };
        let page = Object::MapPage {
            page: 0,
            id,
            geometry: geometry(128),
            origins: Vec::new(),
            entries: [(0, entry)].into(),
        };
        assert_eq!(field(&Object::decode(VOLUME, page.expected(), &page.encode(VOLUME))), refused, "{packs}");
    }
}

#[test]
fn no_page_lies_beyond_its_chunk() {
    let slot = Slot { epoch: 1, n: 2 };
    for pages_per_chunk in [1, 2, 4, 8, 16, 32] {
        for (page, refused) in [(pages_per_chunk - 1, None), (pages_per_chunk, Some("pages"))] {
            let previous = cairn::volume::codec::Checksum::default();
            let mut to = RecordWriter::new(VOLUME, RecordKind::Commit, slot, 1, 0, previous, pages_per_chunk);
            let (index, id) = (ChunkIndex(0), ObjectId { epoch: 1, k: 1 });
            to.change(Change::Chunk { index, id, stored: page_set([page]) });
            let found = Object::decode(VOLUME, Expected::Record(slot), &to.finish().1);
            assert_eq!(field(&found), refused, "page {page} of {pages_per_chunk}");
        }
    }
}
