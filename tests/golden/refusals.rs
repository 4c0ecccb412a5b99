//! What a reader refuses, rule by rule of `docs/FORMAT.md`, though the checksum fits.
//!
//! Each case edits a golden file at offsets that the document gives. Invariant: the complaint names the field.

use cairn::volume::format::codec::{DecodeError, FORMAT_VERSION};
use cairn::volume::format::geometry::ChunkIndex;
use cairn::volume::format::head::HolderName;
use cairn::volume::format::keys::{ObjectId, Slot};
use cairn::volume::format::overlay::{PackRef, Target};
use cairn::volume::format::record::{Change, Record, RecordKind, RecordWriter};
use cairn::volume::format::root::{MAX_ORIGINS, MAX_ROOTS, RootTable};
use cairn::volume::format::snapshot::Snapshot;
use uuid::Uuid;

use super::objects::{Expected, Object, geometry, page_set};
use super::parts::{OverlayParts, RunParts, pack_object};
use super::samples::{SEALING, Sample, samples};
use super::{decode, read, seal, seal_end};

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
    ("identity.bin", &[(42, &65_536_u32.to_le_bytes())], "frame size"),
    ("identity.bin", &[(46, &[1])], "codec"),
    ("identity.bin", &[(47, &[1])], "cipher"),
    ("identity.bin", &[(57, b".")], "name"),
    ("identity.bin", &[(58, &[0xff])], "name"),
    ("name.bin", &[(34, &[0])], "name"),
    ("name.bin", &[(34, &[2])], "state"),
    ("name.bin", &[(36, b".")], "name"),
    ("name.bin", &[(37, b"/")], "name"),
    ("name.bin", &[(37, &[0xff])], "name"),
    ("name-free.bin", &[(34, &[1])], "name"),
    ("head-fresh.bin", &[(59, &[1])], "checkpoint"),
    ("head-fresh.bin", &[(113, &[4])], "state"),
    ("head-renamed.bin", &[(119, &[8])], "state"),
    ("head-kept.bin", &[(119, &[7])], "state"),
    ("head-kept.bin", &[(119, &[4])], "state"),
    ("head-renamed.bin", &[(121, b".")], "name"),
    ("head-renaming.bin", &[(133, b"/")], "name"),
    ("head-renaming.bin", &[(137, b"1")], "next name"),
    ("head-full.bin", &[(56, &[0xff])], "holder"),
    ("first-reads.bin", &[(26, &[0])], "count"),
    ("first-reads.bin", &[(35, &[2])], "range"),
    ("first-reads.bin", &[(38, &[0])], "range"),
    ("first-reads.bin", &[(42, ONES)], "range"),
    ("first-reads.bin", &[(74, &[3])], "range"),
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
    ("record-commit.bin", &[(82, &[0])], "change"),
    ("record-commit.bin", &[(82, &[6])], "change"),
    ("record-commit.bin", &[(91, &0_u32.to_le_bytes())], "data"),
    ("record-commit.bin", &[(91, &511_u32.to_le_bytes())], "data"),
    ("record-commit.bin", &[(181, &513_u32.to_le_bytes())], "data"),
    ("record-commit.bin", &[(120, &0_u64.to_le_bytes())], "zero"),
    ("record-commit.bin", &[(112, ONES)], "zero"),
    ("record-commit.bin", &[(128, &[2])], "hole"),
    ("record-commit.bin", &[(68, &32_u16.to_le_bytes())], "pages"),
    ("record-commit.bin", &[(241, &[0xff])], "snapshot"),
    ("record-commit.bin", &[(241, b"/")], "snapshot"),
    ("record-commit.bin", &[(241, b".")], "snapshot"),
    ("root.bin", &[(26, &[8])], "root"),
    ("root.bin", &[(30, &[11])], "root"),
    ("root.bin", &[(50, &513_u64.to_le_bytes())], "size"),
    ("root.bin", &[(50, &0_u64.to_le_bytes())], "size"),
    ("root.bin", &[(50, &(u64::MAX - 511).to_le_bytes())], "size"),
    ("root.bin", &[(58, &65_537_u32.to_le_bytes())], "chunk size"),
    ("root.bin", &[(132, &[0])], "map page"),
    ("root.bin", &[(162, &[2])], "map page"),
    ("root.bin", &[(162, &[4])], "map page"),
    ("root.bin", &[(166, &[3])], "origin"),
    ("root.bin", &[(120, &4_194_305_u32.to_le_bytes())], "blocks"),
    ("root.bin", &[(124, &4_194_305_u32.to_le_bytes())], "blocks"),
    ("root.bin", &[(128, &70_001_u32.to_le_bytes())], "blocks"),
    ("root.bin", &[(188, &[1])], "blocks"),
    ("root.bin", &[(196, &[0])], "zeroed"),
    ("root.bin", &[(196, &[4])], "zeroed"),
    ("root.bin", &[(200, &[0])], "zeroed"),
    ("root.bin", &[(200, &[2])], "zeroed"),
    ("root.bin", &[(200, ONES)], "zeroed"),
    // Packs out of order, and the same one twice.
    ("root.bin", &[(240, &[2])], "packs"),
    ("root.bin", &[(264, &[13])], "packs"),
    ("root.bin", &[(236, &[0])], "packs"),
    ("root.bin", &[(256, &[21])], "packs"),
    ("root.bin", &[(232, &65_536_u32.to_le_bytes())], "packs"),
    ("root-table.bin", &[(26, &[8])], "root table"),
    ("root-table.bin", &[(54, &[2])], "parent"),
    ("root-table.bin", &[(68, &[0xff])], "snapshot"),
    ("root-table.bin", &[(68, b"/")], "snapshot"),
    ("root-table.bin", &[(68, b".")], "snapshot"),
    ("root-table.bin", &[(131, &[1])], "snapshot"),
    ("root-table.bin", &[(138, &[0x80])], "snapshot"),
    ("map-page.bin", &[(26, &[3])], "map page"),
    ("map-page.bin", &[(30, &[8])], "map page"),
    ("map-page.bin", &[(42, &128_u16.to_le_bytes())], "pages of a chunk"),
    ("map-page-of-eight-overlays.bin", &[(48, &[9])], "overlays"),
    ("map-page.bin", &[(65, &[2])], "overlay"),
    ("map-page.bin", &[(66, &[2])], "origin"),
    // An overlay that applies to no chunk, and one that is listed twice.
    ("map-page.bin", &[(591, &[0])], "overlay"),
    ("map-page.bin", &[(593, &[1]), (595, &[3]), (599, &[8])], "overlay"),
    // The runs that are embedded: an origin and a pack that do not exist.
    ("map-page.bin", &[(1164, &[3])], "origin"),
    ("map-page.bin", &[(1212, &[3])], "run"),
    ("map-page.bin", &[(1760, &[32])], "entry"),
    ("map-page.bin", &[(1761, &[0])], "entry"),
    ("map-page.bin", &[(1769, &[0])], "slot"),
    ("map-page.bin", &[(1816, &[5])], "slot"),
    ("map-page.bin", &[(1874, &4096_u16.to_le_bytes())], "slot"),
    ("map-page.bin", &[(1792, &[2])], "origin"),
    ("map-page.bin", &[(1814, &[0])], "overlaid"),
    ("map-page.bin", &[(1814, &1025_u16.to_le_bytes())], "overlaid"),
    // No overlay applies to the chunk; one applies to a chunk whose entry does not say so, or that has no
    // entry.
    ("map-page.bin", &[(607, &[0]), (1242, &[0x80])], "overlaid"),
    ("map-page.bin", &[(1242, &[0xe0])], "overlaid"),
    ("map-page.bin", &[(1243, &[1])], "overlay"),
    // All overlays of chunk 7 are embedded, and not all of chunk 5.
    ("map-page.bin", &[(1872, &[1])], "overlaid"),
    ("map-page.bin", &[(1872, &[3])], "overlaid"),
    ("map-page.bin", &[(1814, &[2])], "overlaid"),
    ("map-page.bin", &[(1921, &[0])], "damage"),
    ("map-page.bin", &[(1943, &[4])], "damage"),
    ("map-page.bin", &[(1943, &[64])], "damage"),
    // No page is lost; a page that the base stores; a page of which an overlay locates a block.
    ("map-page-lost.bin", &[(627, &[0; 8])], "lost"),
    ("map-page-lost.bin", &[(704, &[2])], "lost"),
    ("map-page-lost.bin", &[(704, &[1])], "lost"),
    ("overlay.bin", &[(26, &[3])], "overlay"),
    ("overlay.bin", &[(30, &[8])], "overlay"),
    ("overlay.bin", &[(34, &[17])], "overlay"),
    ("overlay.bin", &[(66, &[2])], "origin"),
    ("overlay.bin", &[(80, &[0]), (82, &[7]), (86, &[13])], "packs"),
    ("overlay.bin", &[(94, &[0])], "runs"),
    ("pack.bin", &[(38, &[1])], "codec and cipher"),
    ("pack.bin", &[(39, &[1])], "codec and cipher"),
    ("pack.bin", &[(40, &[0])], "frames"),
    ("pack.bin", &[(40, &[3])], "index"),
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
    found.as_ref().err().cloned().and_then(name)
}

/// The field that was refused.
fn name(error: DecodeError) -> Option<&'static str> {
    match error {
        DecodeError::Invalid { field, .. } => Some(field),
        _ => None,
    }
}

#[test]
fn what_breaks_a_rule_is_refused_for_that() {
    let found = CASES.iter().map(|(file, edits, expected)| (file, edits, *expected, edited(file, edits)));
    let wrong: Vec<String> = found
        .filter(|(.., expected, found)| field(found) != Some(*expected))
        .map(|(file, edits, expected, found)| {
            let found = found.map(|_| "nothing");
            format!("{file} with {edits:?} is refused for {found:?}, not for {expected}")
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_record_has_as_much_data_as_its_changes() {
    let bytes = read(FORMAT_VERSION, "record-commit.bin");
    let slot = Slot { epoch: 7, n: 2 };
    for (data, removed) in [(2047_u64, 1), (2049, 0)] {
        let mut changed = bytes.clone();
        changed[74..82].copy_from_slice(&data.to_le_bytes());
        // A byte of data less or more, so that the table ends where it did.
        let end = changed.len() - 16;
        changed.splice(end - removed..end, vec![0; 1 - removed]);
        seal(&mut changed);
        let found = Object::decode(SEALING, Expected::Record(slot), &changed);
        assert_eq!(field(&found), Some("data"), "{data} bytes: {found:?}");
        assert_eq!(
            Record::decode_table(SEALING, slot, &changed[..279]).map(drop).map_err(name),
            Err(Some("data"))
        );
    }
}

#[test]
fn a_table_is_verified_without_the_data() {
    let bytes = read(FORMAT_VERSION, "record-commit.bin");
    let slot = Slot { epoch: 7, n: 2 };
    // The first and last byte of the table, and of its checksum.
    for at in [82, 254, 255, 270] {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        let found = Record::decode_table(SEALING, slot, &changed[..279]).map(drop);
        assert_eq!(found, Err(DecodeError::Checksum), "byte {at}");
        // The checksum of the object does not make good for that of the table.
        seal_end(&mut changed);
        assert_eq!(
            Record::decode(SEALING, slot, &changed).map(drop),
            Err(DecodeError::Checksum),
            "byte {at}"
        );
    }
}

#[test]
fn data_and_frames_are_valid_under_their_own_tags_only() {
    // The first and last byte of data, of a tag in the table, of a frame and of its tag, and of an index and
    // of its tag.
    for (file, at) in [
        ("record-commit.bin", 279),
        ("record-commit.bin", 2318),
        ("record-commit.bin", 95),
        ("record-commit.bin", 110),
        ("chunk.bin", 54),
        ("chunk.bin", 54 + 4095),
        ("chunk.bin", 54 + 4096),
        ("chunk.bin", 54 + 4111),
        ("chunk.bin", 54 + 4112),
        ("chunk.bin", 54 + 32 * 4112 - 1),
        ("pack.bin", 44),
        ("pack.bin", 44 + 4095),
        ("pack.bin", 44 + 4096),
        ("pack.bin", 44 + 4111),
        ("pack.bin", 44 + 4112),
        ("pack.bin", 44 + 4 * 4112),
        ("pack.bin", 44 + 4 * 4120 - 1),
        ("pack.bin", 44 + 4 * 4120),
        ("pack.bin", 44 + 4 * 4120 + 15),
    ] {
        let byte = read(FORMAT_VERSION, file)[at] ^ 0x10;
        assert_eq!(edited(file, &[(at, &[byte])]), Err(DecodeError::Checksum), "{file}: byte {at}");
    }
    // Whole frames are valid in their own place only, of the same page or of another.
    for (file, start, other) in [("chunk.bin", 54, 1), ("chunk.bin", 54, 16), ("pack.bin", 44, 1)] {
        let bytes = read(FORMAT_VERSION, file);
        let frame = |number: usize| (start + number * 4112, &bytes[start + number * 4112..][..4112]);
        let ((first_at, first), (other_at, other)) = (frame(0), frame(other));
        assert_eq!(
            edited(file, &[(first_at, other), (other_at, first)]),
            Err(DecodeError::Checksum),
            "{file}"
        );
    }
    assert_eq!(edited("chunk.bin", &[(26, &[0])]), Err(DecodeError::Checksum), "another chunk");
    assert_eq!(edited("chunk.bin", &[(34, &[8])]), Err(DecodeError::Checksum), "another id");
    assert_eq!(edited("chunk.bin", &[(46, &[4])]), Err(DecodeError::Checksum), "another page");
    assert_eq!(edited("pack.bin", &[(30, &[18])]), Err(DecodeError::Checksum), "another id");
}

const fn frames(pack: u16, frame: u16) -> Target {
    Target::Frame { pack, frame }
}

const HOLE: Target = Target::Zero { hole: true };

#[test]
fn runs_keep_within_what_they_refer_to() {
    let pack = |k| PackRef { origin: 0, id: ObjectId { epoch: 1, k } };
    let decode = |pages_per_chunk, runs: &[RunParts]| {
        let parts = OverlayParts { origins: vec![], packs: vec![pack(1), pack(2)], runs: runs.to_vec() };
        parts.decode(geometry(pages_per_chunk)).map(drop).map_err(name)
    };
    let good: &[(u16, &[RunParts])] = &[
        (1, &[(0, 16, frames(0, 0)), (16, 16, frames(1, 0)), (65_520, 16, HOLE)]),
        (4, &[(0, 64, frames(1, 65_471)), (64, 64, frames(1, 65_471))]),
        (64, &[(0, 1, frames(1, 65_534)), (1, 1, frames(1, 65_534)), (4_194_303, 1, frames(0, 7))]),
        (512, &[(33_554_368, 64, HOLE)]),
    ];
    for (pages, runs) in good {
        assert_eq!(decode(*pages, runs), Ok(()), "{runs:?} with {pages} pages");
    }
    let refused: &[(u16, &[RunParts])] = &[
        // Out of order, the same twice, overlapping.
        (64, &[(5, 1, HOLE), (4, 1, HOLE)]),
        (64, &[(5, 1, HOLE), (5, 1, HOLE)]),
        (64, &[(5, 2, HOLE), (6, 1, HOLE)]),
        (64, &[(0, 64, HOLE), (63, 1, HOLE)]),
        // In two chunks, or beyond the map page.
        (1, &[(15, 2, HOLE)]),
        (1, &[(0, 17, HOLE)]),
        (1, &[(0, 64, HOLE)]),
        (64, &[(1023, 2, frames(0, 0))]),
        (64, &[(4_194_303, 2, HOLE)]),
        (64, &[(4_194_304, 1, HOLE)]),
        (512, &[(33_554_431, 2, HOLE)]),
        (512, &[(33_554_432, 1, HOLE)]),
        (512, &[(67_108_863, 64, HOLE)]),
        // A pack that is not in the list, and frames that no pack has.
        (64, &[(0, 1, frames(2, 0))]),
        (64, &[(0, 1, frames(65_533, 0))]),
        (64, &[(0, 1, frames(0, 65_535))]),
        (64, &[(0, 2, frames(0, 65_534))]),
        (64, &[(0, 64, frames(0, 65_472))]),
    ];
    for (pages, runs) in refused {
        assert_eq!(decode(*pages, runs), Err(Some("run")), "{runs:?} with {pages} pages");
    }
    // Zeros of either kind have no frame.
    for at in [114, 146] {
        assert_eq!(field(&edited("overlay.bin", &[(at, &[1])])), Some("run"), "byte {at}");
    }
}

#[test]
fn an_embedded_overlay_is_as_long_as_it_says() {
    for length in [0_u32, 117, 119, u32::MAX] {
        let found = edited("map-page.bin", &[(1120, &length.to_le_bytes())]);
        let is_expected = matches!(found, Err(DecodeError::Truncated { .. } | DecodeError::Trailing(_)));
        assert!(is_expected, "{length} bytes of runs: {found:?}");
    }
}

#[test]
fn the_frames_of_a_pack_are_in_order_of_block() {
    let id = ObjectId { epoch: 1, k: 2 };
    let decode = |blocks: &[u64]| {
        let blocks: Vec<(u64, u8)> = blocks.iter().copied().zip(1..).collect();
        Object::decode(SEALING, Expected::Pack, &pack_object(id, &blocks)).map(drop).map_err(name)
    };
    for blocks in [&[0][..], &[0, 1], &[3, 1 << 40, (1 << 41) - 1]] {
        assert_eq!(decode(blocks), Ok(()), "{blocks:?}");
    }
    for blocks in [&[1, 0][..], &[1, 1], &[1, 3, 2], &[1 << 41], &[0, u64::MAX]] {
        assert_eq!(decode(blocks), Err(Some("index")), "{blocks:?}");
    }
    assert_eq!(decode(&[]), Err(Some("frames")));
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
        let found = Object::decode(SEALING, Expected::Head, &bytes);
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
        let found = Object::decode(SEALING, Expected::RootTable(table.id), &pinned.encode(SEALING));
        assert_eq!(field(&found), refused.then_some("origins"));

        let long = RootTable { id: table.id, roots: vec![table.roots[0].clone(); MAX_ROOTS + more] };
        let found = Object::decode(SEALING, Expected::RootTable(table.id), &long.encode(SEALING));
        assert_eq!(field(&found), refused.then_some("roots"));

        let mut cloned = root.clone();
        cloned.origins = vec![Uuid::nil(); MAX_ORIGINS + more];
        let found = Object::decode(SEALING, Expected::Root(root.id), &cloned.encode(SEALING));
        assert_eq!(field(&found), refused.then_some("origins"));
    }

    let pack = |k| PackRef { origin: 0, id: ObjectId { epoch: 1, k } };
    let decode = |origins, packs| {
        let packs = (0..packs).map(pack).collect();
        let parts = OverlayParts { origins: vec![Uuid::nil(); origins], packs, runs: vec![(0, 1, HOLE)] };
        parts.decode(geometry(64)).map(drop).map_err(name)
    };
    assert_eq!(decode(MAX_ORIGINS, 65_534), Ok(()));
    assert_eq!(decode(MAX_ORIGINS + 1, 0), Err(Some("origins")));
    assert_eq!(decode(0, 65_535), Err(Some("packs")));
}

/// A record of these changes, decoded.
fn record_of(changes: Vec<Change>) -> Result<Object, DecodeError> {
    let slot = Slot { epoch: 1, n: 2 };
    let previous = cairn::volume::format::codec::Checksum::default();
    let mut to = RecordWriter::new(SEALING, RecordKind::Commit, slot, 1, 0, previous, 64);
    changes.into_iter().for_each(|change| to.change(change));
    Object::decode(SEALING, Expected::Record(slot), &to.finish().1)
}

#[test]
fn a_snapshot_is_the_last_change_of_its_record_and_has_a_name() {
    let snapshot = |name: &str| Change::Snapshot(Snapshot { name: name.to_owned(), taken_at_seconds: 1 });
    let zero = || Change::Zero { offset: 0, length: 512, hole: false };
    let longest = "x".repeat(128);
    for (changes, refused) in [
        (vec![snapshot("a")], None),
        (vec![zero(), snapshot("a")], None),
        (vec![snapshot(&longest)], None),
        (vec![snapshot("a"), zero()], Some("snapshot")),
        (vec![snapshot("a"), snapshot("b")], Some("snapshot")),
        (vec![snapshot("")], Some("snapshot")),
        (vec![snapshot(&(longest + "x"))], Some("snapshot")),
    ] {
        assert_eq!(field(&record_of(changes.clone())), refused, "{changes:?}");
    }
}

#[test]
fn no_page_lies_beyond_its_chunk() {
    let slot = Slot { epoch: 1, n: 2 };
    for pages_per_chunk in [1, 2, 4, 8, 16, 32] {
        for (page, refused) in [(pages_per_chunk - 1, None), (pages_per_chunk, Some("pages"))] {
            let previous = cairn::volume::format::codec::Checksum::default();
            let mut to =
                RecordWriter::new(SEALING, RecordKind::Commit, slot, 1, 0, previous, pages_per_chunk);
            let (index, id) = (ChunkIndex(0), ObjectId { epoch: 1, k: 1 });
            to.change(Change::Chunk { index, id, stored: page_set([page]) });
            let found = Object::decode(SEALING, Expected::Record(slot), &to.finish().1);
            assert_eq!(field(&found), refused, "page {page} of {pages_per_chunk}");
        }
    }
}
