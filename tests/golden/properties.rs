//! Properties of the decoders: what is encoded decodes to the same, and any bytes give a value or an error.
//!
//! Random bytes hardly pass a checksum, so most of these bytes are real objects that were mutated and sealed anew.

use std::collections::BTreeMap;

use cairn::volume::format::codec::{Checksum, FORMAT_VERSION};
use cairn::volume::format::geometry::ChunkIndex;
use cairn::volume::format::head::MAX_HEAD_BYTES;
use cairn::volume::format::keys::{ObjectId, Slot};
use cairn::volume::format::overlay::Run;
use cairn::volume::format::record::{Change, Record, RecordKind, RecordWriter};
use proptest::collection::vec;
use proptest::prelude::*;

use super::allocation::measured;
use super::objects::{Expected, Object, geometry};
use super::samples::SEALING;
use super::strategies::{chunks, head, object, overlay_parts, pages_per_chunk};
use super::{decode, golden, read, seal};

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

/// Decodes bytes. What they decode to encodes to the same bytes, and decoding took memory in proportion to
/// them.
fn check(expected: Expected, bytes: &[u8]) -> Result<(), TestCaseError> {
    let ((), memory) = measured(|| expected.read(SEALING, bytes));
    prop_assert!(memory <= 128 * bytes.len() + 16_384, "{} bytes took {} of memory", bytes.len(), memory);
    if let Ok(object) = Object::decode(SEALING, expected, bytes) {
        prop_assert_eq!(&object.encode(SEALING)[..], bytes);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_decodes_to_the_same(object in object()) {
        let bytes = object.encode(SEALING);
        prop_assert_eq!(Object::decode(SEALING, object.expected(), &bytes), Ok(object));
    }

    #[test]
    fn runs_are_read_as_they_were_written(
        (pages, parts) in (pages_per_chunk(), chunks())
            .prop_flat_map(|(pages, chunks)| (Just(pages), overlay_parts(pages, chunks))),
    ) {
        let overlay = parts.decode(geometry(pages)).unwrap();
        let runs = overlay.runs().iter().map(|run| (run.first(), run.count(), run.target()));
        let runs: Vec<_> = runs.collect();
        prop_assert_eq!(&runs, &parts.runs);
        prop_assert_eq!(overlay.packs(), &parts.packs);
        prop_assert_eq!(overlay.origins(), &parts.origins);
        let made = runs.into_iter().map(|(first, count, target)| Run::new(first..first + count, target));
        prop_assert_eq!(overlay.runs(), made.collect::<Vec<_>>());
    }

    #[test]
    fn a_head_stays_small(object in head()) {
        prop_assert!(object.encode(SEALING).len() <= MAX_HEAD_BYTES);
    }

    #[test]
    fn any_bytes_give_a_value_or_an_error(bytes in vec(any::<u8>(), 0..400)) {
        for (sample, _) in golden() {
            check(sample.object.expected(), &bytes)?;
        }
    }

    #[test]
    fn any_fields_give_a_value_or_an_error(fields in vec(any::<u8>(), 0..400)) {
        for (sample, object) in golden() {
            let bytes = sealed(&object[..26], &fields);
            check(sample.object.expected(), &bytes)?;
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
        check(sample.object.expected(), &bytes)?;
    }

    #[test]
    fn a_mutated_random_object_is_refused_or_is_another_value(
        object in object(),
        mutations in vec(mutation(), 1..6),
    ) {
        let bytes = mutated(&object.encode(SEALING), mutations);
        check(object.expected(), &bytes)?;
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
                check(sample.object.expected(), &bytes).unwrap();
            }
        }
    }
}

#[test]
fn many_small_changes_take_memory_in_proportion() {
    let slot = Slot { epoch: 1, n: 2 };
    let mut to = RecordWriter::new(SEALING, RecordKind::Commit, slot, 1, 0, Checksum::default(), 64);
    for _ in 0..100_000 {
        to.change(Change::Resize { size_bytes: 512 });
    }
    let (_, bytes, _) = to.finish();
    let (record, _) = Record::decode(SEALING, slot, &bytes).unwrap();
    assert!(record.changes.capacity() * size_of::<Change>() <= 32 * bytes.len());
}

/// Runs, and what locates them, are believed only as far as their bytes go.
#[test]
fn many_runs_take_memory_in_proportion() {
    let bytes = read(FORMAT_VERSION, "overlay.bin");
    let before = &bytes[..98];
    for count in [1_usize, 1000, 100_000] {
        let mut long = before.to_vec();
        long[94..98].copy_from_slice(&u32::try_from(count).unwrap().to_le_bytes());
        for block in 0..u64::try_from(count).unwrap() {
            long.extend_from_slice(&(block << 38 | 0xffff << 16).to_le_bytes());
        }
        long.extend_from_slice(&[0; 16]);
        seal(&mut long);
        let sample = golden().into_iter().find(|(sample, _)| sample.file == "overlay.bin").unwrap().0;
        let ((), memory) = measured(|| sample.object.expected().read(SEALING, &long));
        assert!(memory <= 2 * long.len() + 4096, "{count} runs took {memory} bytes");
        assert!(decode(&sample, &long).is_ok());
    }
}

/// A chunk object without frames has no tag that its number of pages could contradict.
#[test]
fn an_empty_chunk_of_another_number_of_pages_is_another_value() {
    for (pages_per_chunk, other) in [(1, 16), (64, 1), (128, 65_535), (2, 3)] {
        let (index, id) = (ChunkIndex(7), ObjectId { epoch: 1, k: 2 });
        let object = Object::Chunk { index, id, pages_per_chunk, pages: BTreeMap::new() };
        let mut bytes = object.encode(SEALING);
        bytes[42..44].copy_from_slice(&u16::to_le_bytes(other));
        seal(&mut bytes);
        check(Expected::Chunk, &bytes).unwrap();
    }
}
