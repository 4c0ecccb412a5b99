//! The incremental stream: the golden file, what a decoder refuses though the checksums fit, and any bytes.
//!
//! The golden file is the output of `stream.py`, a program written from `docs/FORMAT.md` alone. Invariant:
//! the file of a format version never changes.

use std::path::Path;

use bytes::Bytes;
use cairn::volume::format::codec::{Checksum, DecodeError, FORMAT_VERSION};
use cairn::volume::format::keys::{ObjectId, Slot, is_valid_name};
use cairn::volume::format::snapshot::Snapshot;
use cairn::volume::format::stream::{
    Digest, Header, MAX_DATA_BYTES, Part, State, StreamDecoder, StreamEncoder, Totals, is_begun_name,
    is_copy_name,
};
use proptest::prelude::*;

use super::objects::geometry;
use super::samples::VOLUME;

/// The XXH3-128 of the file.
const FROZEN: u128 = 0xc9ca_6edd_8b24_c7cf_92e2_4255_9190_56fb;
/// Length in bytes of the header of the file.
const HEADER_BYTES: usize = 216;
/// The checksum that stands for the content of the base.
const BASE: u128 = 0x01cd_5da8_e6d9_487c_db0d_01a2_8408_f984;

fn golden() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = path.join(format!("tests/golden/v{FORMAT_VERSION}/incremental.stream"));
    std::fs::read(path).expect("a format version has a golden stream")
}

fn digest(first: u8) -> Digest {
    Digest(counting(first))
}

/// Bytes that count up.
fn counting<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|at| first + u8::try_from(at).unwrap())
}

fn header() -> Header {
    let snapshot = |name: &str, taken_at_seconds| Snapshot { name: name.to_owned(), taken_at_seconds };
    let base = State {
        root: ObjectId { epoch: 7, k: 10 },
        root_checksum: Checksum(counting(0x40)),
        commit: Slot { epoch: 7, n: 2 },
        size_bytes: 1 << 30,
        snapshot: snapshot("monday", 1_700_000_000),
    };
    let result = State {
        root: ObjectId { epoch: 8, k: 44 },
        root_checksum: Checksum(counting(0x60)),
        commit: Slot { epoch: 8, n: 900 },
        size_bytes: (1 << 30) + 1536,
        snapshot: snapshot("tuesday.2_b-c", 1_700_086_400),
    };
    Header { volume: VOLUME, geometry: geometry(64), base, result, base_digest: Some(digest(0)) }
}

fn parts() -> Vec<Part> {
    let data = |offset, bytes: Vec<u8>| Part::Data { offset, bytes: Bytes::from(bytes) };
    let counting: Vec<u8> = (0..=255).collect();
    vec![
        Part::Header(Box::new(header())),
        data(0, counting.repeat(16)),
        Part::Zero { offset: 4096, length: 8192 },
        data(65_536, [0xa5, 0x5a].repeat(256)),
        Part::Zero { offset: 1 << 20, length: (1 << 30) - (1 << 20) },
        data(1 << 30, vec![1; 1536]),
        Part::End { result_digest: Some(digest(0x80)) },
    ]
}

fn encode(parts: &[Part]) -> Vec<u8> {
    let Some((Part::Header(header), rest)) = parts.split_first() else { panic!("a header comes first") };
    let (encoder, mut bytes) = StreamEncoder::new(header);
    let mut encoder = Some(encoder);
    for part in rest {
        let left = encoder.as_mut().expect("nothing follows the end");
        match part {
            Part::Header(_) => panic!("one header"),
            Part::Data { offset, bytes: data } => left.data(*offset, data, &mut bytes),
            Part::Zero { offset, length } => left.zeros(*offset, *length, &mut bytes),
            Part::End { result_digest } => encoder.take().unwrap().end(*result_digest, &mut bytes),
        }
    }
    bytes
}

fn decode(bytes: &[u8]) -> Result<Vec<Part>, DecodeError> {
    let (mut decoder, mut parts) = (StreamDecoder::default(), Vec::new());
    decoder.push(bytes);
    while let Some(part) = decoder.next_part()? {
        parts.push(part);
    }
    decoder.check_end()?;
    Ok(parts)
}

#[test]
fn the_golden_stream_is_what_the_peer_wrote() {
    let bytes = golden();
    let found = u128::from_le_bytes(Checksum::of(&bytes).0);
    assert_eq!(found, FROZEN, "it is frozen: {found:#034x}");
    assert_eq!(decode(&bytes), Ok(parts()));
    assert!(encode(&parts()) == bytes, "what changes the bytes of a stream takes a new format version");
    assert_eq!(Header::decode(&bytes[..HEADER_BYTES]), Ok(header()));
    assert_eq!(header().id().0, bytes[HEADER_BYTES - 16..HEADER_BYTES]);
    assert_eq!(header().base.checksum().0, BASE.to_le_bytes());
    let name = header().copy_name(&header().base);
    assert_eq!(name, format!("copy-of-00112233445566778899aabbccddeeff-{BASE:032x}"));
    assert!(is_copy_name(&name) && is_valid_name(&name) && !is_copy_name("copy-of-mine"));
    assert!(is_begun_name(&header().begun_name()) && !is_begun_name("receiving-mail"));
    assert_eq!(Checksum::of(&bytes[34..34 + 57 + 6]).0, BASE.to_le_bytes());
    let mut decoder = StreamDecoder::default();
    decoder.push(&bytes);
    while let Ok(Some(_)) = decoder.next_part() {}
    let zero_bytes = 8192 + (1 << 30) - (1 << 20);
    assert_eq!(decoder.totals(), Totals { extents: 5, data_bytes: 4096 + 512 + 1536, zero_bytes });
}

/// The checksum of a snapshot tells it from one of another history of the volume, which has the same ids.
#[test]
fn whatever_is_known_of_a_snapshot_counts() {
    let base = header().base;
    let others = [
        State { root: ObjectId { epoch: 7, k: 11 }, ..base.clone() },
        State { root_checksum: Checksum(counting(0x41)), ..base.clone() },
        State { commit: Slot { epoch: 7, n: 3 }, ..base.clone() },
        State { size_bytes: 512, ..base.clone() },
        State { snapshot: Snapshot { name: "tuesday".to_owned(), ..base.snapshot.clone() }, ..base.clone() },
        State {
            snapshot: Snapshot { taken_at_seconds: 1_700_000_001, ..base.snapshot.clone() },
            ..base.clone()
        },
    ];
    for other in others {
        assert_ne!(other.checksum(), base.checksum(), "{other:?}");
    }
}

#[test]
fn no_bit_can_flip_and_nothing_can_be_cut_off() {
    let mut bytes = golden();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(decode(&bytes).is_err(), "bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
        assert!(decode(&bytes[..at]).is_err(), "the first {at} bytes");
    }
    bytes.push(0);
    assert_eq!(decode(&bytes), Err(DecodeError::Trailing(1)));
}

#[test]
fn no_extent_can_be_left_out_repeated_or_taken_from_another_stream() {
    let bytes = golden();
    let zero = 1 + 8 + 8 + 16;
    let first = HEADER_BYTES + 1 + 8 + 4 + 4096 + 16;
    let (before, rest) = bytes.split_at(first);
    let (extent, after) = rest.split_at(zero);
    assert_eq!(decode(&[before, after].concat()), Err(DecodeError::Checksum), "left out");
    assert_eq!(decode(&[before, extent, extent, after].concat()), Err(DecodeError::Checksum), "repeated");
    let mut other = parts();
    other[0] = Part::Header(Box::new(Header { base_digest: None, ..header() }));
    let foreign = encode(&other);
    let first = first - Digest::BYTES;
    let mixed = [before, &foreign[first..first + zero], after].concat();
    assert_eq!(decode(&mixed), Err(DecodeError::Checksum), "of another stream");
}

/// The name of the field that a decoder refuses in the golden stream with this edit, though its checksums fit.
fn refused(at: usize, edit: &[u8]) -> Option<&'static str> {
    let mut bytes = golden();
    bytes[at..at + edit.len()].copy_from_slice(edit);
    let mut at = 0;
    for part in parts() {
        at += match part {
            Part::Header(_) => HEADER_BYTES - 16,
            Part::Data { bytes, .. } => 13 + bytes.len(),
            Part::Zero { .. } => 17,
            Part::End { .. } => 26 + Digest::BYTES,
        };
        let checksum = Checksum::of(&bytes[..at]);
        bytes[at..at + 16].copy_from_slice(&checksum.0);
        at += 16;
    }
    match decode(&bytes) {
        Err(DecodeError::Invalid { field, .. }) => Some(field),
        Err(error) => panic!("{edit:?}: {error}"),
        Ok(_) => None,
    }
}

#[test]
fn what_breaks_a_rule_is_refused_although_the_checksums_fit() {
    let (first, second) = (HEADER_BYTES, HEADER_BYTES + 13 + 4096 + 16);
    let end = golden().len() - 16 - Digest::BYTES - 26;
    assert_eq!(refused(0, b"C"), None, "nothing was edited");
    let cases: &[(usize, &[u8], &str)] = &[
        (26, &[10], "header"),
        (26, &[0, 4, 1], "header"),
        (30, &[1], "chunk size"),
        (74, &[1], "size"),
        (74, &[0xff; 8], "size"),
        (83, b".", "snapshot"),
        (167, &[2], "digest"),
        (first, &[0], "part"),
        (first, &[4], "part"),
        (first + 1, &[1], "extent"),
        (first + 9, &(MAX_DATA_BYTES + 1).to_le_bytes(), "data"),
        (second + 1, &4095_u64.to_le_bytes(), "extent"),
        (second + 1, &3584_u64.to_le_bytes(), "extent"),
        (second + 9, &0_u64.to_le_bytes(), "extent"),
        (second + 9, &8191_u64.to_le_bytes(), "extent"),
        (second + 9, &(1_u64 << 31).to_le_bytes(), "extent"),
        (second + 9, &[0xff; 8], "extent"),
        (end + 1, &[4], "totals"),
        (end + 9, &[1], "totals"),
        (end + 17, &[1], "totals"),
        (end + 25, &[2], "digest"),
    ];
    for (at, edit, field) in cases {
        assert_eq!(refused(*at, edit), Some(*field), "{edit:?} at {at}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_stream_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        at in 0..6700_usize,
    ) {
        prop_assert!(decode(&bytes).is_err());
        let golden = golden();
        let at = at.min(golden.len());
        prop_assert!(decode(&[&golden[..at], &bytes[..]].concat()).is_err() || bytes[..] == golden[at..]);
    }
}

/// A stream of everything says what each byte of the disk is.
#[test]
fn a_stream_of_everything_leaves_nothing_out() {
    let header = Header { base: State::anything(&header().result), base_digest: None, ..header() };
    assert!(header.is_whole());
    let size = header.result.size_bytes;
    let zeros = |offset, length| Part::Zero { offset, length };
    let stream = |extents: &[Part]| {
        let (begin, end) = (Part::Header(Box::new(header.clone())), Part::End { result_digest: None });
        encode(&[&[begin], extents, &[end]].concat())
    };
    for whole in [vec![zeros(0, size)], vec![zeros(0, 4096), zeros(4096, size - 4096)]] {
        assert!(decode(&stream(&whole)).is_ok(), "{whole:?}");
    }
    for (gap, extents) in [
        (0, vec![]),
        (0, vec![zeros(512, size - 512)]),
        (512, vec![zeros(0, 512), zeros(1024, size - 1024)]),
        (size - 512, vec![zeros(0, size - 512)]),
    ] {
        let refused = decode(&stream(&extents)).unwrap_err().to_string();
        assert!(refused.contains(&format!("nothing says what is at {gap}")), "{extents:?}: {refused}");
    }
}
