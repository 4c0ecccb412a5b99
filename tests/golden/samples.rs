//! What each golden file holds, and under which key it would lie.
//!
//! The values are those of `v1/golden.json`; the tags and offsets in it were computed by the peer, not by Cairn.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn::volume::codec::Checksum;
use cairn::volume::geometry::ChunkIndex;
use cairn::volume::head::{Checkpoint, Head, HolderName, Lease, VolumeState};
use cairn::volume::identity::{Identity, NameBinding};
use cairn::volume::interval::IntervalMap;
use cairn::volume::keys::{self, Keys, ObjectId, Slot};
use cairn::volume::map::{Base, Damage, Entry, InPack};
use cairn::volume::page_set::PageSet;
use cairn::volume::record::{Change, Record, RecordKind};
use cairn::volume::root::{KeptRoot, MapPageRef, Root, RootTable};
use uuid::Uuid;

use super::objects::{Object, geometry, page_set};

/// The volume of every golden file.
pub(super) const VOLUME: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
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
        sample("record-opening.bin", keys.record(slot(7, 1)), opening()),
        sample("record-seal.bin", keys.record(slot(6, 98)), seal()),
        sample("record-commit.bin", keys.record(slot(7, 2)), commit()),
        sample("root.bin", keys.root(id(7, 10)), Object::Root(root())),
        sample("root-table.bin", keys.root(id(7, 12)), Object::RootTable(root_table())),
        sample("map-page.bin", keys.map_page(2, id(7, 11)), map_page()),
        sample("map-page-of-large-chunks.bin", keys.map_page(65_535, id(1, 2)), map_page_of_large_chunks()),
        sample("map-page-lost.bin", keys.map_page(2, id(7, 14)), map_page_after_a_loss()),
        sample("chunk.bin", keys.chunk(ChunkIndex(70_000), id(7, 9)), chunk()),
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
    }
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
        data(66_048, 512, 255, 0xd68c_a343_6769_177f_5e92_bbba_3d75_c717),
        Change::Zero { offset: 1 << 20, length: 10 << 40, hole: true },
        Change::Chunk { index: ChunkIndex(70_000), id: id(7, 9), stored: page_set([0, 1, 31, 32, 63]) },
        Change::Zero { offset: 512, length: 512, hole: false },
        data(130_560, 512, 767, 0x3334_6330_4c4d_44cf_7df1_e161_28dd_0d31),
        Change::Resize { size_bytes: 20 << 40 },
        Change::Snapshot { name: "before-upgrade".into() },
        data(0, 1024, 1279, 0x3bde_3107_8b9e_0264_6bbb_88cc_a310_2a4d),
    ];
    let pattern = |first: u8, length: usize| -> Bytes {
        std::iter::successors(Some(first), |byte| Some(byte.wrapping_add(7))).take(length).collect()
    };
    record(RecordKind::Commit, slot(7, 2), changes, vec![pattern(1, 512), pattern(2, 512), pattern(3, 1024)])
}

fn root() -> Root {
    let map_page = |origin, epoch, k| MapPageRef { origin, id: id(epoch, k) };
    Root {
        id: id(7, 10),
        commit: slot(7, 2),
        size_bytes: (64 << 30) - 512,
        geometry: geometry(64),
        origins: vec![ORIGIN_A, ORIGIN_B],
        map_pages: BTreeMap::from([
            (0, map_page(0, 7, 11)),
            (2, map_page(1, 3, 5)),
            (3, map_page(2, 9, 1 << 40)),
        ]),
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
    let kept = |root, parent, commit, snapshot: &str, pins: &[Uuid], retired_at_seconds| KeptRoot {
        root,
        parent,
        commit,
        snapshot: snapshot.into(),
        pins: pins.to_vec(),
        retired_at_seconds,
    };
    RootTable {
        id: id(7, 12),
        roots: vec![
            kept(id(2, 4), None, slot(2, 30), "first", &[], 0),
            kept(id(6, 41), Some(id(2, 4)), slot(6, 97), "", &[ORIGIN_A, ORIGIN_B], 0),
            kept(id(7, 1), Some(id(6, 41)), slot(6, 98), "", &[], 1_700_003_600),
            kept(id(7, 10), Some(id(6, 41)), slot(7, 2), "", &[], 0),
        ],
    }
}

fn map_page() -> Object {
    let mut lost_last = [0xff; 16];
    lost_last[15] = 0x7f;
    let mut lost_first = [0xff; 16];
    lost_first[0] = 0xfe;
    let entries = BTreeMap::from([
        (0, Entry { allocated: page_set([0, 1, 2]), ..Entry::default() }),
        (
            5,
            Entry {
                birth: Some(slot(7, 2)),
                base: Some(Base { origin: 0, id: id(7, 9), stored: page_set([0, 63]) }),
                allocated: page_set([0, 31, 63]),
                ..Entry::default()
            },
        ),
        (
            6,
            Entry {
                base: Some(Base { origin: 1, id: id(3, 5), stored: page_set(0..64) }),
                allocated: page_set(0..64),
                ..Entry::default()
            },
        ),
        (
            4095,
            Entry {
                birth: Some(slot(7, 2)),
                base: Some(Base { origin: 1, id: id(3, 6), stored: page_set([1, 2]) }),
                allocated: page_set([1, 2, 3, 4, 5, 40]),
                packs: vec![
                    InPack { origin: 0, id: id(7, 13), first_frame: 0, pages: page_set([2, 3]) },
                    InPack { origin: 1, id: id(3, 7), first_frame: 70_000, pages: page_set([5]) },
                ],
                damage: vec![
                    Damage { page: 4, good_sectors: lost_last },
                    Damage { page: 40, good_sectors: lost_first },
                ],
                lost: PageSet::EMPTY,
            },
        ),
    ]);
    Object::MapPage { page: 2, id: id(7, 11), geometry: geometry(64), origins: vec![ORIGIN_A], entries }
}

fn map_page_of_large_chunks() -> Object {
    let entry = Entry {
        birth: Some(slot(1, 1)),
        base: Some(Base { origin: 0, id: id(1, 1), stored: page_set([64, 511]) }),
        allocated: page_set([0, 63, 64, 200, 511]),
        ..Entry::default()
    };
    Object::MapPage {
        page: 65_535,
        id: id(1, 2),
        geometry: geometry(512),
        origins: Vec::new(),
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
                damage: vec![Damage { page: 1, good_sectors: first_is_good }],
                lost: page_set([2, 63]),
                ..Entry::default()
            },
        ),
    ]);
    Object::MapPage { page: 2, id: id(7, 14), geometry: geometry(64), origins: Vec::new(), entries }
}

fn chunk() -> Object {
    let counting: Vec<u8> = (0..=255).cycle().take(65_536).collect();
    let pages = BTreeMap::from([(1, counting), (63, [0xa5, 0x5a].repeat(32_768))]);
    Object::Chunk { index: ChunkIndex(70_000), id: id(7, 9), pages_per_chunk: 64, pages }
}
