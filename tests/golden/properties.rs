//! Properties of the decoders: what is encoded decodes to the same, and any bytes give a value or an error.
//!
//! Random bytes hardly pass a checksum, so most of these bytes are real objects that were mutated and sealed anew.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn::volume::codec::{Checksum, DecodeError};
use cairn::volume::geometry::{ChunkIndex, MAP_PAGE_ENTRIES, PAGE_BYTES};
use cairn::volume::head::{Checkpoint, Head, HolderName, Lease, MAX_HEAD_BYTES, VolumeState};
use cairn::volume::identity::{Identity, NameBinding};
use cairn::volume::interval::IntervalMap;
use cairn::volume::keys::{ObjectId, Slot};
use cairn::volume::map::{Base, Damage, Entry, InPack};
use cairn::volume::page_set::PageSet;
use cairn::volume::record::{Change, Record, RecordKind, RecordWriter};
use cairn::volume::root::{KeptRoot, MapPageRef, Root, RootTable};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use uuid::Uuid;

use super::objects::{Object, geometry, page_set};
use super::samples::VOLUME;
use super::{decode, golden, seal};

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

fn pages_per_chunk() -> impl Strategy<Value = u16> {
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

fn head() -> impl Strategy<Value = Object> {
    let lease = prop_oneof![
        Just(Lease::Released),
        Just(Lease::Unswept),
        (1..u32::MAX).prop_map(|ttl_ms| Lease::Held { ttl_ms })
    ];
    let state = prop_oneof![Just(VolumeState::Live), Just(VolumeState::Deleting)];
    let checkpoint = (slot(), checksum()).prop_map(|(slot, checksum)| Checkpoint { slot, checksum });
    let strings = ("[ -~é]{0,100}", "[ -~é]{0,120}", vec(any::<u8>(), 0..=255));
    ((any::<u64>(), any::<u32>(), any::<u128>()), lease, checkpoint, (id(), id()), strings, state).prop_map(
        |((version, epoch, holder), lease, checkpoint, (root, root_table), strings, state)| {
            let (holder_name, local_journal, wrapped_key) = strings;
            let epoch = epoch.max(checkpoint.slot.epoch);
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
            })
        },
    )
}

fn root() -> impl Strategy<Value = Object> {
    let map_pages = |most: u32, origins: usize| {
        let origins = u16::try_from(origins).unwrap();
        let reference = (0..=origins, id()).prop_map(|(origin, id)| MapPageRef { origin, id });
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
        let map_pages = map_pages(geometry.map_pages(size_bytes), origins.len());
        (id(), slot(), map_pages).prop_map(move |(id, commit, (map_pages, zeroed))| {
            let origins = origins.clone();
            Object::Root(Root { id, commit, size_bytes, geometry, origins, map_pages, zeroed })
        })
    })
}

fn root_table() -> impl Strategy<Value = Object> {
    let kept = (id(), proptest::option::of(id()), slot(), ".{0,40}", vec(uuid(), 0..4), any::<u64>());
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

fn entry(pages_per_chunk: u16, origins: usize) -> impl Strategy<Value = Entry> {
    let origin = move || 0..=u16::try_from(origins).unwrap();
    let set = move || pages(pages_per_chunk);
    let base = (origin(), id(), set()).prop_map(|(origin, id, stored)| Base { origin, id, stored });
    let pack = (origin(), id(), any::<u32>(), vec(0..pages_per_chunk, 0..8));
    let damage = btree_map(0..pages_per_chunk, any::<[u8; 16]>(), 0..3);
    let optional = (proptest::option::of(slot()), proptest::option::of(base));
    let sets = (set(), proptest::option::of(set()));
    (optional, sets, vec(pack, 0..4), damage).prop_map(
        |((birth, base), (allocated, lost), in_packs, damage)| {
            let lost = lost.unwrap_or(PageSet::EMPTY);
            let mut taken = PageSet::EMPTY;
            let mut packs = Vec::new();
            for (origin, id, first_frame, wanted) in in_packs {
                let free: Vec<u16> = wanted.into_iter().filter(|page| !taken.contains(*page)).collect();
                free.iter().for_each(|page| taken.insert(*page));
                packs.push(InPack { origin, id, first_frame, pages: page_set(free) });
            }
            let damage =
                damage.into_iter().map(|(page, good_sectors)| Damage { page, good_sectors }).collect();
            let is_stored = |page: &u16| base.is_some_and(|base: Base| base.stored.contains(*page));
            let lost: Vec<u16> =
                lost.iter().filter(|page| !is_stored(page) && !taken.contains(*page)).collect();
            Entry { birth, base, allocated, packs, damage, lost: page_set(lost) }
        },
    )
}

fn map_page() -> impl Strategy<Value = Object> {
    (pages_per_chunk(), vec(uuid(), 0..4)).prop_flat_map(|(pages, origins)| {
        let entries = btree_map(
            (0..MAP_PAGE_ENTRIES).prop_map(|slot| u16::try_from(slot).unwrap()),
            entry(pages, origins.len()),
            0..12,
        );
        (any::<u32>(), id(), entries).prop_map(move |(page, id, mut entries)| {
            entries.retain(|_, entry| !entry.is_hole());
            Object::MapPage { page, id, geometry: geometry(pages), origins: origins.clone(), entries }
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
    let snapshot = "[a-z]{1,60}".prop_map(|name| Ok(Change::Snapshot { name }));
    prop_oneof![4 => data, 2 => zero, 1 => chunk, 1 => resize, 1 => snapshot]
}

fn record() -> impl Strategy<Value = Object> {
    let kind = prop_oneof![
        1 => any::<u32>().prop_map(|epoch| (RecordKind::Opening, Slot { epoch, n: 1 }, epoch)),
        4 => (any::<u32>(), 2_u64..).prop_map(|(epoch, n)| (RecordKind::Commit, Slot { epoch, n }, epoch)),
        1 => (0..u32::MAX, 1_u64..).prop_flat_map(|(epoch, n)| {
            (epoch + 1..=u32::MAX).prop_map(move |writer| (RecordKind::Seal, Slot { epoch, n }, writer))
        }),
    ];
    let changes = pages_per_chunk().prop_flat_map(|pages| (Just(pages), vec(change(pages), 0..20)));
    (kind, any::<u64>(), checksum(), changes).prop_map(
        |((kind, slot, writer), nonce, previous, (pages, mut changes))| {
            if kind != RecordKind::Commit {
                changes.clear();
            }
            let mut to = RecordWriter::new(VOLUME, kind, slot, writer, nonce, previous, pages);
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
            let pages: BTreeMap<u16, Vec<u8>> =
                pages.into_iter().map(|(page, byte)| (page, vec![byte; 65_536])).collect();
            Object::Chunk { index: ChunkIndex(index), id, pages_per_chunk, pages }
        })
    })
}

fn object() -> impl Strategy<Value = Object> {
    prop_oneof![identity(), name(), head(), root(), root_table(), map_page(), record(), chunk()]
}

/// What is done to an object's fields.
#[derive(Clone, Debug)]
enum Mutation {
    Set(usize, u8),
    /// A number of four bytes: counts and lengths are of that size.
    Number(usize, u32),
    Cut(usize, usize),
    Insert(usize, Vec<u8>),
    Repeat(usize, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let numbers = prop_oneof![any::<u32>(), 0_u32..16, Just(u32::MAX), Just(0xffff), Just(0x0010_0000)];
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (any::<usize>(), numbers).prop_map(|(at, number)| Mutation::Number(at, number)),
        (any::<usize>(), 0_usize..64).prop_map(|(at, length)| Mutation::Cut(at, length)),
        (any::<usize>(), vec(any::<u8>(), 1..64)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (any::<usize>(), 1_usize..200).prop_map(|(at, length)| Mutation::Repeat(at, length)),
    ]
}

/// The fields of an object, mutated, in an envelope that fits them.
fn mutated(object: &[u8], mutations: Vec<Mutation>) -> Vec<u8> {
    let (envelope, rest) = object.split_at(26);
    let mut fields = rest[..rest.len() - 16].to_vec();
    for mutation in mutations {
        let place = |at: usize| at % (fields.len() + 1);
        match mutation {
            Mutation::Set(at, byte) => {
                if let Some(found) = place(at).checked_sub(1) {
                    fields[found] = byte;
                }
            }
            Mutation::Number(at, number) => {
                let (at, bytes) = (place(at), number.to_le_bytes());
                let end = fields.len().min(at + 4);
                fields.splice(at..end, bytes[..end - at].iter().copied());
            }
            Mutation::Cut(at, length) => {
                let at = place(at);
                fields.drain(at..fields.len().min(at + length));
            }
            Mutation::Insert(at, bytes) => {
                let at = place(at);
                fields.splice(at..at, bytes);
            }
            Mutation::Repeat(at, length) => {
                let at = place(at);
                let again = fields[at..fields.len().min(at + length)].to_vec();
                fields.splice(at..at, again);
            }
        }
    }
    sealed(envelope, &fields)
}

fn sealed(envelope: &[u8], fields: &[u8]) -> Vec<u8> {
    let mut object = [envelope, fields, &[0; 16]].concat();
    seal(&mut object);
    object
}

/// What was decoded from bytes encodes to these bytes, and took memory in proportion to them.
fn check_decoded(found: Result<Object, DecodeError>, bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(object) = found {
        prop_assert_eq!(&object.encode(VOLUME)[..], bytes);
        if let Object::Record(record, _) = object {
            prop_assert!(record.changes.capacity() * size_of::<Change>() <= 128 * bytes.len());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_decodes_to_the_same(object in object()) {
        let bytes = object.encode(VOLUME);
        prop_assert_eq!(Object::decode(VOLUME, object.expected(), &bytes), Ok(object));
    }

    #[test]
    fn a_head_stays_small(object in head()) {
        prop_assert!(object.encode(VOLUME).len() <= MAX_HEAD_BYTES);
    }

    #[test]
    fn any_bytes_give_a_value_or_an_error(bytes in vec(any::<u8>(), 0..400)) {
        for (sample, _) in golden() {
            check_decoded(decode(&sample, &bytes), &bytes)?;
        }
    }

    #[test]
    fn any_fields_give_a_value_or_an_error(fields in vec(any::<u8>(), 0..400)) {
        for (sample, object) in golden() {
            let bytes = sealed(&object[..26], &fields);
            check_decoded(decode(&sample, &bytes), &bytes)?;
        }
    }

    #[test]
    fn a_mutated_object_is_refused_or_is_another_value(
        which in any::<prop::sample::Index>(),
        mutations in vec(mutation(), 1..6),
    ) {
        let golden = golden();
        let (sample, object) = which.get(&golden);
        let bytes = mutated(object, mutations);
        check_decoded(decode(sample, &bytes), &bytes)?;
    }

    #[test]
    fn a_mutated_random_object_is_refused_or_is_another_value(
        object in object(),
        mutations in vec(mutation(), 1..6),
    ) {
        let bytes = mutated(&object.encode(VOLUME), mutations);
        check_decoded(Object::decode(VOLUME, object.expected(), &bytes), &bytes)?;
    }
}

/// A count says how much memory to take before what it counts was seen: none may be believed.
#[test]
fn no_count_is_believed() {
    for (sample, object) in golden().into_iter().filter(|(_, object)| object.len() < 4096) {
        for at in 26..object.len() - 16 - 4 {
            for number in [u32::MAX, u32::MAX / 2, 1 << 24, 1 << 16] {
                let mut bytes = object.clone();
                bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
                seal(&mut bytes);
                check_decoded(decode(&sample, &bytes), &bytes).unwrap();
            }
        }
    }
}

#[test]
fn many_small_changes_take_memory_in_proportion() {
    let slot = Slot { epoch: 1, n: 2 };
    let mut to = RecordWriter::new(VOLUME, RecordKind::Commit, slot, 1, 0, Checksum::default(), 64);
    for _ in 0..100_000 {
        to.change(Change::Resize { size_bytes: 512 });
    }
    let (_, bytes, _) = to.finish();
    let (record, _) = Record::decode(VOLUME, slot, &bytes).unwrap();
    assert!(record.changes.capacity() * size_of::<Change>() <= 32 * bytes.len());
}
