//! The bytes of every object of a volume: golden files, and properties of the decoders.
//!
//! The golden files are the output of `codec.py`, a program written from `docs/FORMAT.md` alone; what each holds is in
//! `golden.json` there and in [`samples`] here. Invariant: the files of a format version never change. What changes an
//! object's bytes takes the next version, and a directory of its own.

mod objects;
mod properties;
mod refusals;
mod samples;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use cairn::volume::format::codec::{Checksum, DecodeError, FORMAT_VERSION};
use uuid::Uuid;

use objects::Object;
use samples::{Sample, VOLUME, samples};

/// The files of every version, and their XXH3-128: lines are only ever added.
const FILES: &[(u16, &str, u128)] = &[
    (1, "chunk.bin", 0xae1b_c7d5_5ea7_f1f0_6512_b0b4_fa6e_60a7),
    (1, "head-fresh.bin", 0xb2c7_911c_0ce6_ba9a_56c0_d5ce_d010_b23e),
    (1, "head-full.bin", 0xc0ec_d1fc_2332_e7a6_bce2_1ba8_6f19_1291),
    (1, "head-unswept.bin", 0x516e_bc76_961a_84cf_5935_206d_8771_931a),
    (1, "identity.bin", 0x4122_3848_d32d_d8e0_46ed_4d59_05ea_a080),
    (1, "map-page-lost.bin", 0x93a0_83da_63e8_78af_174b_0c91_742e_24f3),
    (1, "map-page-of-large-chunks.bin", 0x826f_622c_e2b2_d917_a3b2_779b_c900_119d),
    (1, "map-page.bin", 0xad02_1cbd_65d0_8df2_d0e0_a512_5227_5698),
    (1, "name-free.bin", 0xe930_7f6c_929a_bf01_1b65_3271_3af3_dc3c),
    (1, "name.bin", 0xc0cf_3f60_f63d_3166_aa94_22ae_33d8_008f),
    (1, "record-commit.bin", 0x5c8e_2b1b_0df3_ec99_9a6a_c112_15de_2a7f),
    (1, "record-opening.bin", 0x9521_7758_a8e6_3f63_8e79_382f_487f_6145),
    (1, "record-seal.bin", 0xa415_3bb9_677e_5d3a_0ccb_fd88_4393_6a54),
    (1, "root-table.bin", 0xa539_23d4_bd00_3348_dbac_0156_d297_4c66),
    (1, "root.bin", 0x2c42_8dfb_7d08_834e_665d_312b_04f8_f490),
];

/// Bytes of the payload of a chunk object that are flipped one bit each, not eight.
const LONG_BYTES: usize = 8192;

fn directory(version: u16) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{version}"))
}

fn read(version: u16, file: &str) -> Vec<u8> {
    let path = directory(version).join(file);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}: a format version has golden files", path.display()))
}

/// Each golden file of the version that this program writes, and what it holds.
fn golden() -> Vec<(Sample, Vec<u8>)> {
    samples()
        .into_iter()
        .map(|sample| (read(FORMAT_VERSION, sample.file), sample))
        .map(|(b, s)| (s, b))
        .collect()
}

fn decode(sample: &Sample, bytes: &[u8]) -> Result<Object, DecodeError> {
    Object::decode(VOLUME, sample.object.expected(), bytes)
}

#[test]
fn each_file_decodes_to_its_value() {
    for (sample, bytes) in golden() {
        assert_eq!(decode(&sample, &bytes).as_ref(), Ok(&sample.object), "{}", sample.file);
    }
}

#[test]
fn each_value_encodes_to_its_file() {
    for (sample, bytes) in golden() {
        let encoded = sample.object.encode(VOLUME);
        assert!(
            encoded == bytes,
            "{}: what changes the bytes of an object takes a new format version",
            sample.file
        );
    }
}

#[test]
fn keys_are_the_peers() {
    let json = read(FORMAT_VERSION, "golden.json");
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json.as_object().unwrap().len(), samples().len());
    for sample in samples() {
        assert_eq!(json[sample.file]["key"], sample.key, "{}", sample.file);
    }
}

#[test]
fn the_files_of_a_version_never_change() {
    let versions: BTreeSet<u16> = FILES.iter().map(|(version, ..)| *version).collect();
    assert!(versions.contains(&FORMAT_VERSION), "version {FORMAT_VERSION} has golden files");
    for version in versions {
        let listed: BTreeSet<String> =
            FILES.iter().filter(|(v, ..)| *v == version).map(|(_, file, _)| (*file).to_owned()).collect();
        let names = fs::read_dir(directory(version)).unwrap().map(|e| e.unwrap().file_name());
        let found: BTreeSet<String> =
            names.map(|name| name.into_string().unwrap()).filter(|name| name.ends_with(".bin")).collect();
        assert_eq!(found, listed, "golden files of version {version}");
        for (_, file, checksum) in FILES.iter().filter(|(v, ..)| *v == version) {
            let found = u128::from_le_bytes(Checksum::of(&read(version, file)).0);
            assert_eq!(found, *checksum, "{file} of version {version} is frozen: {found:#034x}");
        }
    }
    let sampled: BTreeSet<&str> = samples().iter().map(|sample| sample.file).collect();
    let listed = FILES.iter().filter(|(version, ..)| *version == FORMAT_VERSION).map(|(_, file, _)| *file);
    assert_eq!(sampled, listed.collect(), "every file of this version is read by these tests");
}

#[test]
fn no_bit_can_flip() {
    for (sample, mut bytes) in golden() {
        for at in 0..bytes.len() {
            // Deep within a chunk object's pages, one bit of each byte will do.
            let deep = at > LONG_BYTES && at + LONG_BYTES < bytes.len();
            for bit in (0..8).filter(|bit| !deep || at % 8 == *bit) {
                bytes[at] ^= 1 << bit;
                assert!(decode(&sample, &bytes).is_err(), "{}: bit {bit} of byte {at}", sample.file);
                bytes[at] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn nothing_can_be_cut_off() {
    for (sample, bytes) in golden() {
        for end in 0..bytes.len() {
            assert!(decode(&sample, &bytes[..end]).is_err(), "{}: the first {end} bytes", sample.file);
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(decode(&sample, &longer).is_err(), "{}: a byte more", sample.file);
    }
}

#[test]
fn an_object_of_another_version_volume_or_kind_is_refused_for_that() {
    for (sample, bytes) in golden() {
        let mut newer = bytes.clone();
        newer[8..10].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
        seal(&mut newer);
        assert_eq!(decode(&sample, &newer), Err(DecodeError::Version(FORMAT_VERSION + 1)), "{}", sample.file);

        let mut foreign = bytes.clone();
        let other = Uuid::from_u128(1);
        foreign[10..26].copy_from_slice(other.as_bytes());
        seal(&mut foreign);
        if !matches!(sample.object, Object::Name(_)) {
            assert_eq!(decode(&sample, &foreign), Err(DecodeError::Volume(other)), "{}", sample.file);
        }

        for (another, _) in golden().iter().filter(|(s, _)| kind(s) != kind(&sample)) {
            let found = decode(another, &bytes);
            assert!(matches!(found, Err(DecodeError::Magic(_))), "{} as {}", sample.file, another.file);
        }
    }
}

#[test]
fn an_object_is_not_taken_for_another_of_its_kind() {
    use cairn::volume::format::keys::{ObjectId, Slot};
    use objects::Expected;
    let others = [
        ("record-commit.bin", Expected::Record(Slot { epoch: 7, n: 3 })),
        ("record-opening.bin", Expected::Record(Slot { epoch: 8, n: 1 })),
        ("root.bin", Expected::Root(ObjectId { epoch: 7, k: 11 })),
        ("root-table.bin", Expected::RootTable(ObjectId { epoch: 7, k: 10 })),
        ("map-page.bin", Expected::MapPage(3, ObjectId { epoch: 7, k: 11 }, objects::geometry(64))),
        ("map-page.bin", Expected::MapPage(2, ObjectId { epoch: 6, k: 11 }, objects::geometry(64))),
        ("map-page.bin", Expected::MapPage(2, ObjectId { epoch: 7, k: 11 }, objects::geometry(128))),
    ];
    for (file, expected) in others {
        let found = Object::decode(VOLUME, expected, &read(FORMAT_VERSION, file));
        assert!(matches!(found, Err(DecodeError::Invalid { .. })), "{file} as {expected:?}: {found:?}");
    }
}

fn kind(sample: &Sample) -> std::mem::Discriminant<objects::Expected> {
    std::mem::discriminant(&sample.object.expected())
}

/// Makes the checksum fit the bytes before it, so that what is wrong with them is looked at.
pub(crate) fn seal(bytes: &mut [u8]) {
    let (body, checksum) = bytes.split_at_mut(bytes.len() - Checksum::BYTES);
    checksum.copy_from_slice(&Checksum::of(body).0);
}
