//! Values of every kind of object, at random, within the rules of `docs/FORMAT.md`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use cairn::volume::format::codec::Checksum;
use cairn::volume::format::first_reads::FirstReads;
use cairn::volume::format::geometry::{BlockIndex, ChunkIndex, Geometry, PAGE_BYTES, PageIndex};
use cairn::volume::format::head::{Checkpoint, Head, HolderName, Kept, Lease, Names, VolumeState};
use cairn::volume::format::identity::{Identity, NameBinding};
use cairn::volume::format::interval::IntervalMap;
use cairn::volume::format::keys::{ObjectId, Slot};
use cairn::volume::format::map::{Base, ChunkSet, Damage, Entry, OverlayPlace, OverlayRef};
use cairn::volume::format::overlay::{PackRef, Target};
use cairn::volume::format::page_set::PageSet;
use cairn::volume::format::record::{Change, RecordKind, RecordWriter};
use cairn::volume::format::root::{BlockCounts, KeptRoot, MapPageRef, PackUse, Root, RootTable};
use cairn::volume::format::snapshot::Snapshot;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use uuid::Uuid;

use super::objects::{Object, geometry, page_set};
use super::parts::OverlayParts;
use super::samples::{SEALING, VOLUME};

fn id() -> impl Strategy<Value = ObjectId> {
    (any::<u32>(), any::<u64>()).prop_map(|(epoch, k)| ObjectId { epoch, k })
}

fn slot() -> impl Strategy<Value = Slot> {
    (any::<u32>(), any::<u64>()).prop_map(|(epoch, n)| Slot { epoch, n })
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn checksum() -> impl Strategy<Value = Checksum> {
    any::<[u8; 16]>().prop_map(Checksum)
}

pub(super) fn pages_per_chunk() -> impl Strategy<Value = u16> {
    (0_u32..=9).prop_map(|shift| 1 << shift)
}

fn pages(pages_per_chunk: u16) -> impl Strategy<Value = PageSet> {
    prop_oneof![
        vec(0..pages_per_chunk, 0..8).prop_map(page_set),
        Just(PageSet::first(pages_per_chunk)),
        Just(PageSet::EMPTY),
    ]
}

fn identity() -> impl Strategy<Value = Object> {
    (pages_per_chunk(), any::<u64>(), NAME).prop_map(|(pages, created_at_seconds, name)| {
        let (features, write_features, codec, cipher) = (0, 0, 0, 0);
        let geometry = geometry(pages);
        let volume = VOLUME;
        Object::Identity(Identity {
            volume,
            features,
            write_features,
            geometry,
            codec,
            cipher,
            created_at_seconds,
            name,
        })
    })
}

/// Names of volumes.
const NAME: &str = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}";

fn name() -> impl Strategy<Value = Object> {
    (any::<u64>(), proptest::option::of(NAME))
        .prop_map(|(version, name)| Object::Name(NameBinding { version, volume: VOLUME, name }))
}

pub(super) fn head() -> impl Strategy<Value = Object> {
    let lease = prop_oneof![
        Just(Lease::Released),
        Just(Lease::Unswept),
        (1..u32::MAX).prop_map(|ttl_ms| Lease::Held { ttl_ms })
    ];
    let kept = (any::<u64>(), any::<u32>()).prop_map(|(deleted_at_seconds, seconds_left)| {
        VolumeState::Kept(Kept { deleted_at_seconds, seconds_left })
    });
    let state = prop_oneof![Just(VolumeState::Live), Just(VolumeState::Deleting), kept];
    let checkpoint = (slot(), checksum()).prop_map(|(slot, checksum)| Checkpoint { slot, checksum });
    let names =
        proptest::option::of(("[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", proptest::option::of("[a-z]{1,128}")));
    let names = names.prop_map(|names| {
        names.map(|(current, next)| Names { next: next.filter(|next| *next != current), current })
    });
    let strings = ("[ -~é]{0,100}", "[ -~é]{0,120}", vec(any::<u8>(), 0..=255));
    let state = (state, names);
    ((any::<u64>(), any::<u32>(), any::<u128>()), lease, checkpoint, (id(), id()), strings, state).prop_map(
        |((version, epoch, holder), lease, checkpoint, (root, root_table), strings, (state, names))| {
            let (holder_name, local_journal, wrapped_key) = strings;
            let epoch = epoch.max(checkpoint.slot.epoch);
            // A volume that is kept has its names in the head.
            let state = match state {
                VolumeState::Kept(_) if names.is_none() => VolumeState::Live,
                state => state,
            };
            Object::Head(Head {
                volume: VOLUME,
                version,
                epoch,
                holder,
                holder_name: HolderName::new(&holder_name),
                lease,
                checkpoint,
                root,
                root_table,
                wrapped_key,
                local_journal,
                state,
                names,
            })
        },
    )
}

/// How many blocks of a map page are where; a map page has `most` blocks.
fn counts(most: u32) -> impl Strategy<Value = BlockCounts> {
    let counts = (0..=most, 0..=most).prop_flat_map(|(stored, overlaid)| {
        (0..=stored.min(overlaid)).prop_map(move |hidden| BlockCounts { stored, overlaid, hidden })
    });
    prop_oneof![counts, Just(BlockCounts { stored: most, overlaid: most, hidden: most })]
}

fn pack_use() -> impl Strategy<Value = PackUse> {
    (1..=65_535_u32).prop_flat_map(|frames| (1..=frames).prop_map(move |live| PackUse { frames, live }))
}

fn root() -> impl Strategy<Value = Object> {
    let map_pages = |geometry: Geometry, most: u32, origins: usize| {
        let origins = u16::try_from(origins).unwrap();
        let reference = (0..=origins, id(), counts(geometry.map_page_blocks()));
        let reference = reference.prop_map(|(origin, id, counts)| MapPageRef { origin, id, counts });
        (btree_map(0..most, reference, 0..20), vec((0..most, 1..=most, slot()), 0..5)).prop_map(
            move |(pages, runs)| {
                let mut zeroed = IntervalMap::default();
                for (first, count, commit) in runs {
                    zeroed.insert(u64::from(first)..u64::from(first.saturating_add(count).min(most)), commit);
                }
                pages.keys().for_each(|page| zeroed.remove(u64::from(*page)..u64::from(*page) + 1));
                (pages, zeroed)
            },
        )
    };
    (pages_per_chunk(), 1_u64..=1 << 20, vec(uuid(), 0..4)).prop_flat_map(move |(pages, units, origins)| {
        let geometry = geometry(pages);
        let size_bytes = units * (geometry.max_volume_bytes() >> 20);
        let map_pages = map_pages(geometry, geometry.map_pages(size_bytes), origins.len());
        (id(), slot(), map_pages, btree_map(id(), pack_use(), 0..8)).prop_map(
            move |(id, commit, (map_pages, zeroed), packs)| {
                let origins = origins.clone();
                Object::Root(Root { id, commit, size_bytes, geometry, origins, map_pages, packs, zeroed })
            },
        )
    })
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    ("[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", any::<u64>())
        .prop_map(|(name, taken_at_seconds)| Snapshot { name, taken_at_seconds })
}

fn root_table() -> impl Strategy<Value = Object> {
    let kept = (
        id(),
        proptest::option::of(id()),
        slot(),
        proptest::option::of(snapshot()),
        vec(uuid(), 0..4),
        any::<u64>(),
    );
    let kept = kept.prop_map(|(root, parent, commit, snapshot, pins, retired_at_seconds)| KeptRoot {
        root,
        parent,
        commit,
        snapshot,
        pins,
        retired_at_seconds,
    });
    (id(), vec(kept, 0..8)).prop_map(|(id, roots)| Object::RootTable(RootTable { id, roots }))
}

/// An entry, apart from what depends on the overlays.
fn entry(pages_per_chunk: u16, origins: usize) -> impl Strategy<Value = Entry> {
    let origin = 0..=u16::try_from(origins).unwrap();
    let set = move || pages(pages_per_chunk);
    let base = (origin, id(), set()).prop_map(|(origin, id, stored)| Base { origin, id, stored });
    let damage = btree_map(0..pages_per_chunk, any::<[u8; 16]>(), 0..3);
    let optional = (proptest::option::of(slot()), proptest::option::of(base));
    let sets = (set(), proptest::option::of(set()));
    (optional, sets, 0..=16 * pages_per_chunk, damage).prop_map(
        |((birth, base), (allocated, lost), overlaid, damage)| {
            let lost = lost.unwrap_or(PageSet::EMPTY);
            let damage = damage
                .into_iter()
                .map(|(page, good_sectors)| Damage { page: PageIndex(page), good_sectors })
                .collect();
            let is_stored = |page: &PageIndex| base.is_some_and(|base: Base| base.stored.contains(*page));
            let lost = page_set(lost.iter().filter(|page| !is_stored(page)).map(|page| page.0));
            Entry { birth, base, allocated, overlaid, damage, lost }
        },
    )
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        4 => (any::<u16>(), any::<u16>()).prop_map(|(pack, frame)| Target::Frame { pack, frame }),
        1 => any::<bool>().prop_map(|hole| Target::Zero { hole }),
    ]
}

/// An overlay with runs in these chunks: any that `docs/FORMAT.md` allows, not only what the library would
/// write.
pub(super) fn overlay_parts(pages_per_chunk: u16, chunks: Vec<u16>) -> impl Strategy<Value = OverlayParts> {
    let blocks = u32::from(pages_per_chunk) * 16;
    let packs = btree_set((0..=3_u16, id()), 0..4).prop_map(Vec::from_iter).prop_shuffle();
    let runs = vec((select(chunks), 0..blocks, 1..=64_u32, target()), 1..20);
    (vec(uuid(), 3), packs, runs).prop_map(move |(origins, packs, mut seeds)| {
        let packs: Vec<PackRef> = packs.into_iter().map(|(origin, id)| PackRef { origin, id }).collect();
        let all = u16::try_from(packs.len()).unwrap();
        seeds.sort_by_key(|(chunk, block, ..)| (*chunk, *block));
        let (mut runs, mut end) = (Vec::new(), 0);
        for (chunk, block, count, target) in seeds {
            let (first, count) = (u32::from(chunk) * blocks + block, count.min(blocks - block));
            let last_frame = u16::try_from(65_535 - count).unwrap();
            let target = match target {
                Target::Frame { .. } if all == 0 => Target::Zero { hole: false },
                Target::Frame { pack, frame } => {
                    Target::Frame { pack: pack % all, frame: frame.min(last_frame) }
                }
                zeros => zeros,
            };
            if first >= end {
                runs.push((first, count, target));
                end = first + count;
            }
        }
        OverlayParts { origins, packs, runs }
    })
}

/// Chunks of a map page.
pub(super) fn chunks() -> impl Strategy<Value = Vec<u16>> {
    btree_set(prop_oneof![0..4096_u16, Just(0), Just(4095)], 1..8).prop_map(Vec::from_iter)
}

fn overlay() -> impl Strategy<Value = Object> {
    (pages_per_chunk(), chunks()).prop_flat_map(|(pages, chunks)| {
        let geometry = geometry(pages);
        (any::<u32>(), id(), overlay_parts(pages, chunks)).prop_map(move |(page, id, parts)| {
            let overlay = parts.decode(geometry).expect("an overlay that keeps the rules");
            Object::Overlay { page, id, geometry, overlay }
        })
    })
}

/// A reference to an overlay that applies to some of these chunks.
fn overlay_ref(pages: u16, origins: usize, chunks: Vec<u16>) -> impl Strategy<Value = OverlayRef> {
    let origin = 0..=u16::try_from(origins).unwrap();
    let object =
        (origin, id(), subsequence(chunks.clone(), 1..=chunks.len())).prop_map(|(origin, id, chunks)| {
            OverlayRef { place: OverlayPlace::Object { origin, id }, chunks: chunk_set(chunks) }
        });
    let blocks = u32::from(pages) * 16;
    let embedded = (overlay_parts(pages, chunks), any::<[bool; 8]>()).prop_map(move |(parts, applies)| {
        let overlay = parts.decode(geometry(pages)).expect("an overlay that keeps the rules");
        let touched = parts.runs.iter().map(|(first, ..)| u16::try_from(first / blocks).unwrap());
        let touched: Vec<u16> = touched.collect();
        // It always applies to the first chunk that it has, and to some of the others.
        let chunks =
            touched.iter().filter(|chunk| **chunk == touched[0] || applies[usize::from(**chunk % 8)]);
        let chunks = chunk_set(chunks.copied());
        OverlayRef { place: OverlayPlace::Embedded(Arc::new(overlay)), chunks }
    });
    prop_oneof![object, embedded]
}

fn chunk_set(chunks: impl IntoIterator<Item = u16>) -> ChunkSet {
    let mut set = ChunkSet::default();
    chunks.into_iter().for_each(|chunk| set.insert(chunk));
    set
}

/// Makes the entry of a chunk fit the overlays, of which the embedded ones are known.
fn fit(entry: &mut Entry, slot: u16, pages: u16, overlays: &[OverlayRef]) {
    let blocks = u32::from(pages) * 16;
    let applying = || overlays.iter().filter(|overlay| overlay.chunks.contains(slot));
    let mut located = BTreeMap::new();
    for overlay in applying() {
        let OverlayPlace::Embedded(overlay) = &overlay.place else { continue };
        let start = u32::from(slot) * blocks;
        for (range, target) in overlay.overlaps(start..start + blocks) {
            located.extend(range.map(|block| (block - start, matches!(target, Target::Frame { .. }))));
        }
    }
    let least = u16::try_from(located.len()).unwrap();
    let is_known = applying().all(|overlay| matches!(overlay.place, OverlayPlace::Embedded(_)));
    entry.overlaid = if is_known { least } else { entry.overlaid.max(least).max(1) };
    for (block, _) in located.into_iter().filter(|(_, is_frame)| *is_frame) {
        entry.lost.remove(PageIndex::of_block(block));
    }
}

fn map_page() -> impl Strategy<Value = Object> {
    (pages_per_chunk(), vec(uuid(), 0..4), chunks()).prop_flat_map(|(pages, origins, chunks)| {
        let overlays = vec(overlay_ref(pages, origins.len(), chunks.clone()), 0..=8);
        let entries = vec(entry(pages, origins.len()), chunks.len());
        (any::<u32>(), id(), overlays, entries).prop_map(move |(page, id, overlays, entries)| {
            let mut entries: BTreeMap<u16, Entry> = chunks.iter().copied().zip(entries).collect();
            entries.iter_mut().for_each(|(slot, entry)| fit(entry, *slot, pages, &overlays));
            entries.retain(|_, entry| !entry.is_hole());
            let (geometry, origins) = (geometry(pages), origins.clone());
            Object::MapPage { page, id, geometry, origins, overlays, entries }
        })
    })
}

/// A change, or bytes at an offset.
fn change(pages_per_chunk: u16) -> impl Strategy<Value = Result<Change, (u64, Bytes)>> {
    let data =
        (any::<u32>(), 0..PAGE_BYTES, vec(any::<u8>(), 1..600)).prop_map(|(page, within, mut bytes)| {
            bytes.truncate(usize::try_from(PAGE_BYTES - within).unwrap());
            Err((u64::from(page) * PAGE_BYTES + within, Bytes::from(bytes)))
        });
    let zero = (any::<u64>(), 1_u64.., any::<bool>()).prop_filter_map("ends", |(offset, length, hole)| {
        offset.checked_add(length).map(|_| Ok(Change::Zero { offset, length, hole }))
    });
    let chunk = (any::<u32>(), id(), pages(pages_per_chunk))
        .prop_map(|(index, id, stored)| Ok(Change::Chunk { index: ChunkIndex(index), id, stored }));
    let resize = any::<u64>().prop_map(|size_bytes| Ok(Change::Resize { size_bytes }));
    prop_oneof![4 => data, 2 => zero, 1 => chunk, 1 => resize]
}

fn record() -> impl Strategy<Value = Object> {
    let kind = prop_oneof![
        1 => any::<u32>().prop_map(|epoch| (RecordKind::Opening, Slot { epoch, n: 1 }, epoch)),
        4 => (any::<u32>(), 2_u64..).prop_map(|(epoch, n)| (RecordKind::Commit, Slot { epoch, n }, epoch)),
        1 => (0..u32::MAX, 1_u64..).prop_flat_map(|(epoch, n)| {
            (epoch + 1..=u32::MAX).prop_map(move |writer| (RecordKind::Seal, Slot { epoch, n }, writer))
        }),
    ];
    let changes = pages_per_chunk()
        .prop_flat_map(|pages| (Just(pages), vec(change(pages), 0..20), proptest::option::of(snapshot())));
    (kind, any::<u64>(), checksum(), changes).prop_map(
        |((kind, slot, writer), nonce, previous, (pages, mut changes, snapshot))| {
            changes.extend(snapshot.map(|snapshot| Ok(Change::Snapshot(snapshot))));
            if kind != RecordKind::Commit {
                changes.clear();
            }
            let mut to = RecordWriter::new(SEALING, kind, slot, writer, nonce, previous, pages);
            let mut data = Vec::new();
            for change in changes {
                match change {
                    Ok(change) => to.change(change),
                    Err((offset, bytes)) => {
                        to.data(offset, bytes.clone());
                        data.push(bytes);
                    }
                }
            }
            Object::Record(to.finish().0, data)
        },
    )
}

fn chunk() -> impl Strategy<Value = Object> {
    pages_per_chunk().prop_flat_map(|pages_per_chunk| {
        let pages = btree_map(0..pages_per_chunk, any::<u8>(), 0..3);
        (any::<u32>(), id(), pages).prop_map(move |(index, id, pages)| {
            let page = |byte: u8| (0..16).flat_map(|block| [byte ^ block; 4096]).collect::<Vec<u8>>();
            let pages = pages.into_iter().map(|(number, byte)| (number, page(byte))).collect();
            Object::Chunk { index: ChunkIndex(index), id, pages_per_chunk, pages }
        })
    })
}

fn pack() -> impl Strategy<Value = Object> {
    let block = prop_oneof![0..1_u64 << 41, 0..16_u64];
    (id(), btree_map(block, any::<u8>(), 1..8)).prop_map(|(id, blocks)| {
        let blocks = blocks.into_iter().map(|(block, byte)| (block, vec![byte; 4096])).collect();
        Object::Pack { id, blocks }
    })
}

/// Any object.
fn first_reads() -> impl Strategy<Value = Object> {
    let range = (0_u64..1 << 40, 1..=u64::from(u32::MAX));
    let range = range.prop_map(|(first, count)| BlockIndex(first)..BlockIndex(first + count));
    vec(range, 1..20).prop_map(|ranges| Object::FirstReads(FirstReads { ranges }))
}

pub(super) fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        identity(),
        name(),
        head(),
        first_reads(),
        root(),
        root_table(),
        map_page(),
        overlay(),
        record(),
        chunk(),
        pack()
    ]
}
