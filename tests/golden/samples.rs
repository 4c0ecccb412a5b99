//! What each golden file holds, and under which key it would lie.
//!
//! The values are those of `v2/golden.json`; the tags and offsets in it were computed by the peer, not by Cairn.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use cairn::volume::format::codec::Checksum;
use cairn::volume::format::first_reads::FirstReads;
use cairn::volume::format::geometry::{BlockIndex, ChunkIndex, PageIndex};
use cairn::volume::format::head::{Checkpoint, Head, HolderName, Kept, Lease, Names, VolumeState};
use cairn::volume::format::identity::{Identity, NameBinding};
use cairn::volume::format::interval::IntervalMap;
use cairn::volume::format::keys::{self, Keys, ObjectId, Slot};
use cairn::volume::format::map::{Base, ChunkSet, Damage, Entry, OverlayPlace, OverlayRef};
use cairn::volume::format::overlay::{Overlay, OverlayBuilder};
use cairn::volume::format::page_set::PageSet;
use cairn::volume::format::record::{Change, Record, RecordKind};
use cairn::volume::format::root::{BlockCounts, KeptRoot, MapPageRef, PackUse, Root, RootTable};
use cairn::volume::format::sealing::Sealing;
use cairn::volume::format::snapshot::Snapshot;
use uuid::Uuid;

use super::objects::{Object, geometry, page_set};

/// The volume of every golden file.
pub(super) const VOLUME: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
/// With what its objects are sealed.
pub(super) const SEALING: Sealing = Sealing::new(VOLUME);
const ORIGIN_A: Uuid = Uuid::from_u128(0xa0a1_a2a3_a4a5_a6a7_a8a9_aaab_acad_aeaf);
const ORIGIN_B: Uuid = Uuid::from_u128(0xb0b1_b2b3_b4b5_b6b7_b8b9_babb_bcbd_bebf);

const PREVIOUS: Checksum = Checksum([
    0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xcb, 0xcc, 0xcd, 0xce, 0xcf,
]);

/// A golden file.
pub(super) struct Sample {
    pub file: &'static str,
    pub key: String,
    pub object: Object,
}

const fn id(epoch: u32, k: u64) -> ObjectId {
    ObjectId { epoch, k }
}

const fn slot(epoch: u32, n: u64) -> Slot {
    Slot { epoch, n }
}

/// Every golden file.
pub(super) fn samples() -> Vec<Sample> {
    let keys = Keys::new(VOLUME);
    let sample = |file, key, object| Sample { file, key, object };
    vec![
        sample("identity.bin", keys.identity(), Object::Identity(identity())),
        sample(
            "name.bin",
            keys::name("Disk_1.img"),
            Object::Name(NameBinding { version: 3, volume: VOLUME, name: Some("Disk_1.img".into()) }),
        ),
        // A free name does not say which it is.
        sample(
            "name-free.bin",
            keys::name(""),
            Object::Name(NameBinding { version: 4, volume: VOLUME, name: None }),
        ),
        sample("head-fresh.bin", keys.head(), Object::Head(fresh_head())),
        sample("head-full.bin", keys.head(), Object::Head(full_head())),
        sample("head-unswept.bin", keys.head(), Object::Head(unswept_head())),
        sample("head-renamed.bin", keys.head(), Object::Head(renamed_head())),
        sample("head-renaming.bin", keys.head(), Object::Head(renaming_head())),
        sample("head-kept.bin", keys.head(), Object::Head(kept_head())),
        sample("first-reads.bin", keys.first_reads(), Object::FirstReads(first_reads())),
        sample("record-opening.bin", keys.record(slot(7, 1)), opening()),
        sample("record-seal.bin", keys.record(slot(6, 98)), seal()),
        sample("record-commit.bin", keys.record(slot(7, 2)), commit()),
        sample("root.bin", keys.root(id(7, 10)), Object::Root(root())),
        sample("root-table.bin", keys.root(id(7, 12)), Object::RootTable(root_table())),
        sample("map-page.bin", keys.map_page(2, id(7, 11)), map_page()),
        sample("map-page-of-large-chunks.bin", keys.map_page(65_535, id(1, 2)), map_page_of_large_chunks()),
        sample("map-page-lost.bin", keys.map_page(2, id(7, 14)), map_page_after_a_loss()),
        sample("map-page-of-eight-overlays.bin", keys.map_page(0, id(7, 18)), map_page_of_eight_overlays()),
        sample("overlay.bin", keys.overlay(2, id(7, 16)), overlay()),
        sample("chunk.bin", keys.chunk(ChunkIndex(70_000), id(7, 9)), chunk()),
        sample("pack.bin", keys.pack(id(7, 17)), pack()),
    ]
}

fn identity() -> Identity {
    Identity {
        volume: VOLUME,
        features: 0,
        write_features: 0,
        geometry: geometry(64),
        codec: 0,
        cipher: 0,
        created_at_seconds: 1_700_000_000,
        name: "Disk_1.img".to_owned(),
    }
}

fn fresh_head() -> Head {
    Head {
        volume: VOLUME,
        version: 1,
        epoch: 0,
        holder: 0,
        holder_name: HolderName::default(),
        lease: Lease::Released,
        checkpoint: Checkpoint { slot: slot(0, 0), checksum: Checksum([0; 16]) },
        root: id(0, 1),
        root_table: id(0, 2),
        wrapped_key: Vec::new(),
        local_journal: String::new(),
        state: VolumeState::Live,
        names: None,
    }
}

fn unswept_head() -> Head {
    Head {
        version: 12,
        epoch: 3,
        holder: 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100,
        holder_name: HolderName::new("host-a"),
        lease: Lease::Unswept,
        checkpoint: Checkpoint { slot: slot(3, 9), checksum: PREVIOUS },
        root: id(3, 17),
        root_table: id(3, 18),
        ..fresh_head()
    }
}

fn full_head() -> Head {
    Head {
        volume: VOLUME,
        version: 0x0102_0304_0506_0708,
        epoch: 7,
        holder: 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100,
        holder_name: HolderName::new("höst-a pid 12"),
        lease: Lease::Held { ttl_ms: 30_000 },
        checkpoint: Checkpoint { slot: slot(6, 4097), checksum: PREVIOUS },
        root: id(6, 41),
        root_table: id(7, 3),
        wrapped_key: (0..40).collect(),
        local_journal: "höst-a:/var/lib/cairn".into(),
        state: VolumeState::Deleting,
        names: None,
    }
}

fn renamed_head() -> Head {
    let names = Names { current: "Disk_2.img".to_owned(), next: None };
    Head { version: 14, names: Some(names), ..unswept_head() }
}

fn renaming_head() -> Head {
    let names = Names { current: "Disk_1.img".to_owned(), next: Some("Disk_2.img".to_owned()) };
    Head { version: 15, state: VolumeState::Deleting, names: Some(names), ..unswept_head() }
}

fn kept_head() -> Head {
    let names = Names { current: "Disk_1.img".to_owned(), next: None };
    let state = VolumeState::Kept(Kept { deleted_at_seconds: 1_700_000_000, seconds_left: 86_400 });
    Head { version: 16, state, names: Some(names), ..unswept_head() }
}

fn first_reads() -> FirstReads {
    let ranges = [(0, 1), (70_000, 256), (16, 32), ((1 << 41) - 2, 2)];
    let ranges = ranges.map(|(first, count)| BlockIndex(first)..BlockIndex(first + count));
    FirstReads { ranges: ranges.to_vec() }
}

fn record(kind: RecordKind, slot: Slot, changes: Vec<Change>, data: Vec<Bytes>) -> Object {
    let data_bytes = data.iter().map(|data| data.len() as u64).sum();
    let (nonce, previous) = (0x1122_3344_5566_7788, PREVIOUS);
    let record = Record { kind, slot, writer: 7, nonce, previous, pages_per_chunk: 64, changes, data_bytes };
    Object::Record(record, data)
}

fn opening() -> Object {
    record(RecordKind::Opening, slot(7, 1), Vec::new(), Vec::new())
}

fn seal() -> Object {
    record(RecordKind::Seal, slot(6, 98), Vec::new(), Vec::new())
}

fn commit() -> Object {
    // Offsets within the record, and tags, are the peer's.
    let data = |offset, length, at, tag: u128| {
        let tag = Checksum(tag.to_be_bytes());
        Change::Data { offset, length, at, tag }
    };
    let changes = vec![
        data(66_048, 512, 279, 0x6613_bc36_faab_2c1e_eac0_2289_0ba5_da83),
        Change::Zero { offset: 1 << 20, length: 10 << 40, hole: true },
        Change::Chunk { index: ChunkIndex(70_000), id: id(7, 9), stored: page_set([0, 1, 31, 32, 63]) },
        Change::Zero { offset: 512, length: 512, hole: false },
        data(130_560, 512, 791, 0xca1c_0990_b1d4_0de1_822e_bc90_fe3c_0236),
        Change::Resize { size_bytes: 20 << 40 },
        data(0, 1024, 1303, 0x2ad5_e770_4a29_129b_b6e5_a0d6_a3ba_ffdc),
        Change::Snapshot(Snapshot { name: "before-upgrade".into(), taken_at_seconds: 1_700_000_123 }),
    ];
    let pattern = |first: u8, length: usize| -> Bytes {
        std::iter::successors(Some(first), |byte| Some(byte.wrapping_add(7))).take(length).collect()
    };
    record(RecordKind::Commit, slot(7, 2), changes, vec![pattern(1, 512), pattern(2, 512), pattern(3, 1024)])
}

fn root() -> Root {
    let map_page = |origin, epoch, k, stored, overlaid, hidden| MapPageRef {
        origin,
        id: id(epoch, k),
        counts: BlockCounts { stored, overlaid, hidden },
    };
    let pack = |epoch, k, frames, live| (id(epoch, k), PackUse { frames, live });
    Root {
        id: id(7, 10),
        commit: slot(7, 2),
        size_bytes: (64 << 30) - 512,
        geometry: geometry(64),
        origins: vec![ORIGIN_A, ORIGIN_B],
        map_pages: BTreeMap::from([
            (0, map_page(0, 7, 11, 1_000_000, 70_000, 65_536)),
            (2, map_page(1, 3, 5, 4_194_304, 4_194_304, 4_194_304)),
            (3, map_page(2, 9, 1 << 40, 0, 1, 0)),
        ]),
        packs: BTreeMap::from([pack(2, 1 << 40, 65_535, 1), pack(7, 13, 20, 20), pack(7, 17, 4, 3)]),
        zeroed: runs([(1..2, slot(6, 98))]),
    }
}

/// Runs of uniform map pages.
fn runs<const N: usize>(runs: [(std::ops::Range<u64>, Slot); N]) -> IntervalMap<Slot> {
    let mut map = IntervalMap::default();
    runs.into_iter().for_each(|(run, commit)| map.insert(run, commit));
    map
}

fn root_table() -> RootTable {
    let first = Snapshot { name: "first".into(), taken_at_seconds: 1_690_000_000 };
    let kept = |root, parent, commit, snapshot, pins: &[Uuid], retired_at_seconds| KeptRoot {
        root,
        parent,
        commit,
        snapshot,
        pins: pins.to_vec(),
        retired_at_seconds,
    };
    RootTable {
        id: id(7, 12),
        roots: vec![
            kept(id(2, 4), None, slot(2, 30), Some(first), &[], 0),
            kept(id(6, 41), Some(id(2, 4)), slot(6, 97), None, &[ORIGIN_A, ORIGIN_B], 0),
            kept(id(7, 1), Some(id(6, 41)), slot(6, 98), None, &[], 1_700_003_600),
            kept(id(7, 10), Some(id(6, 41)), slot(7, 2), None, &[], 0),
        ],
    }
}

/// An overlay of this volume, with chunks of so many pages.
fn built(pages_per_chunk: u16, build: impl FnOnce(&mut OverlayBuilder)) -> Overlay {
    let mut builder = OverlayBuilder::new(VOLUME, geometry(pages_per_chunk));
    build(&mut builder);
    builder.finish()
}

fn chunk_set(chunks: &[u16]) -> ChunkSet {
    let mut set = ChunkSet::default();
    chunks.iter().for_each(|chunk| set.insert(*chunk));
    set
}

fn overlay_object(origin: u16, id: ObjectId, chunks: &[u16]) -> OverlayRef {
    OverlayRef { place: OverlayPlace::Object { origin, id }, chunks: chunk_set(chunks) }
}

fn embedded(overlay: Overlay, chunks: &[u16]) -> OverlayRef {
    OverlayRef { place: OverlayPlace::Embedded(Arc::new(overlay)), chunks: chunk_set(chunks) }
}

/// Blocks of a chunk of 64 pages, counted from the start of the map page.
fn blocks(chunk: u32, blocks: std::ops::Range<u32>) -> std::ops::Range<u32> {
    chunk * 1024 + blocks.start..chunk * 1024 + blocks.end
}

fn overlay() -> Object {
    let overlay = built(64, |builder| {
        builder.frames(blocks(5, 3..5), VOLUME, id(7, 13), 0);
        builder.frames(blocks(5, 5..6), ORIGIN_A, id(3, 7), 65_534);
        builder.zeros(blocks(5, 16..32), false);
        builder.frames(blocks(5, 1008..1024), VOLUME, id(7, 13), 2);
        builder.frames(blocks(6, 0..1), VOLUME, id(7, 13), 18);
        builder.frames(blocks(4095, 64..128), ORIGIN_A, id(3, 7), 7);
        builder.zeros(blocks(4095, 1020..1024), true);
    });
    Object::Overlay { page: 2, id: id(7, 16), geometry: geometry(64), overlay }
}

fn map_page() -> Object {
    let newest = built(64, |builder| {
        builder.frames(blocks(5, 4..5), ORIGIN_B, id(9, 4), 0);
        builder.zeros(blocks(5, 40..42), true);
        builder.frames(blocks(7, 0..1), VOLUME, id(7, 13), 19);
        builder.frames(blocks(7, 1..2), ORIGIN_A, id(3, 7), 2);
    });
    Object::MapPage {
        page: 2,
        id: id(7, 11),
        geometry: geometry(64),
        origins: vec![ORIGIN_A],
        overlays: vec![
            overlay_object(1, id(3, 8), &[4095]),
            overlay_object(0, id(7, 16), &[5, 4095]),
            embedded(newest, &[5, 7]),
        ],
        entries: map_page_entries(),
    }
}

fn map_page_entries() -> BTreeMap<u16, Entry> {
    let mut lost_last = [0xff; 16];
    lost_last[15] = 0x7f;
    let mut lost_first = [0xff; 16];
    lost_first[0] = 0xfe;
    let birth = Some(slot(7, 2));
    let base = |origin, epoch, k, stored| Some(Base { origin, id: id(epoch, k), stored });
    BTreeMap::from([
        (0, Entry { allocated: page_set([0, 1, 2]), ..Entry::default() }),
        (
            5,
            Entry {
                birth,
                base: base(0, 7, 9, page_set([0, 63])),
                allocated: page_set([0, 1, 31, 63]),
                overlaid: 37,
                ..Entry::default()
            },
        ),
        (6, Entry { base: base(1, 3, 5, page_set(0..64)), allocated: page_set(0..64), ..Entry::default() }),
        (7, Entry { birth, allocated: page_set([0]), overlaid: 2, ..Entry::default() }),
        (
            4095,
            Entry {
                birth,
                base: base(1, 3, 6, page_set([1, 2])),
                allocated: page_set([1, 2, 3, 4, 5, 6, 7, 40]),
                overlaid: 70,
                damage: vec![
                    Damage { page: PageIndex(4), good_sectors: lost_last },
                    Damage { page: PageIndex(40), good_sectors: lost_first },
                ],
                lost: PageSet::EMPTY,
            },
        ),
    ])
}

fn map_page_of_large_chunks() -> Object {
    let last = 4096 * 8192;
    let overlay = built(512, |builder| builder.frames(last - 64..last, VOLUME, id(1, 3), 65_471));
    let entry = Entry {
        birth: Some(slot(1, 1)),
        base: Some(Base { origin: 0, id: id(1, 1), stored: page_set([64, 511]) }),
        allocated: page_set([0, 63, 64, 200, 511]),
        overlaid: 64,
        ..Entry::default()
    };
    Object::MapPage {
        page: 65_535,
        id: id(1, 2),
        geometry: geometry(512),
        origins: Vec::new(),
        overlays: vec![embedded(overlay, &[4095])],
        entries: BTreeMap::from([(4095, entry)]),
    }
}

fn map_page_after_a_loss() -> Object {
    let mut first_is_good = [0; 16];
    first_is_good[0] = 1;
    let all = page_set(0..64);
    let entries = BTreeMap::from([
        (0, Entry { birth: Some(slot(7, 3)), allocated: all, lost: all, ..Entry::default() }),
        (
            1,
            Entry {
                birth: Some(slot(7, 4)),
                base: Some(Base { origin: 0, id: id(7, 15), stored: page_set([1]) }),
                allocated: page_set([0, 1, 2, 63]),
                overlaid: 1,
                damage: vec![Damage { page: PageIndex(1), good_sectors: first_is_good }],
                lost: page_set([2, 63]),
            },
        ),
    ]);
    let overlay = built(64, |builder| builder.frames(blocks(1, 5..6), VOLUME, id(7, 13), 3));
    Object::MapPage {
        page: 2,
        id: id(7, 14),
        geometry: geometry(64),
        origins: Vec::new(),
        overlays: vec![embedded(overlay, &[1])],
        entries,
    }
}

fn map_page_of_eight_overlays() -> Object {
    let overlays = (0..8).map(|number| {
        let chunks = [0, 585 * number];
        overlay_object(0, id(7, 20 + u64::from(number)), &chunks)
    });
    let entry = |overlaid| Entry { allocated: page_set([0]), overlaid, ..Entry::default() };
    let others = (1..8).map(|number| (585 * number, entry(number)));
    Object::MapPage {
        page: 0,
        id: id(7, 18),
        geometry: geometry(1),
        origins: Vec::new(),
        overlays: overlays.collect(),
        entries: [(0, entry(16))].into_iter().chain(others).collect(),
    }
}

/// A block that repeats these bytes.
fn block(bytes: &[u8]) -> Vec<u8> {
    bytes.repeat(4096 / bytes.len())
}

fn counting() -> Vec<u8> {
    block(&(0..=255).collect::<Vec<u8>>())
}

fn chunk() -> Object {
    let first = (0..16).flat_map(|number| block(&[number, 0xb0 + number]));
    let last = [block(&[0xa5, 0x5a]), vec![0; 14 * 4096], counting()].concat();
    let pages = BTreeMap::from([(1, first.collect()), (63, last)]);
    Object::Chunk { index: ChunkIndex(70_000), id: id(7, 9), pages_per_chunk: 64, pages }
}

fn pack() -> Object {
    let changed = (2 * 4096 + 5) * 1024 + 3;
    let blocks = BTreeMap::from([
        (0, counting()),
        (changed, block(&[0])),
        (changed + 1, block(&[0xa5, 0x5a])),
        ((1 << 41) - 1, block(&[0, 1, 2, 3])),
    ]);
    Object::Pack { id: id(7, 17), blocks }
}
