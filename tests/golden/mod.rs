//! The bytes of every object of a volume: golden files, and properties of the decoders.
//!
//! The golden files are the output of `codec.py`, a program written from `docs/FORMAT.md` alone; what each holds is in
//! `golden.json` there and in [`samples`] here. Invariant: the files of a format version never change. What changes an
//! object's bytes takes the next version, and a directory of its own.

mod allocation;
mod objects;
mod parts;
mod properties;
mod refusals;
mod samples;
mod strategies;
mod stream;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use cairn::volume::format::codec::{Checksum, DecodeError, FORMAT_VERSION};
use uuid::Uuid;

use objects::Object;
use samples::{SEALING, Sample, samples};

/// The files of every version, and their XXH3-128: lines are only ever added.
const FILES: &[(u16, &str, u128)] = &[
    (2, "chunk.bin", 0x6357_cc32_4e15_e32d_96b9_5a6a_8d93_3c4b),
    (2, "first-reads.bin", 0x1ec7_682e_3bbf_0ff7_32af_4f13_1d04_1234),
    (2, "head-fresh.bin", 0x72e8_1291_5c9d_6907_b184_1028_9360_5ce2),
    (2, "head-full.bin", 0x56c3_0b88_7ccf_d882_e6a4_2ec8_c28f_b780),
    (2, "head-kept.bin", 0xa9f7_c8c0_6eb2_bb68_79de_2012_696f_0b89),
    (2, "head-renamed.bin", 0x22ba_fcf1_c7f7_b39e_73f9_1932_306c_6c31),
    (2, "head-renaming.bin", 0x5719_0471_1079_2aaf_bb5f_5faa_15c4_4e09),
    (2, "head-unswept.bin", 0x924e_b3b6_5997_9897_6f8e_5007_2673_eb51),
    (2, "identity.bin", 0x1d1d_7818_09f6_a6d3_f2ae_161d_2edf_00a8),
    (2, "map-page-lost.bin", 0xe7bc_f16a_5d1c_f41e_478e_d6eb_0d3e_ff89),
    (2, "map-page-of-eight-overlays.bin", 0x4a2e_5b51_2892_f6b0_91c6_8d6c_4230_fd63),
    (2, "map-page-of-large-chunks.bin", 0xee5a_94d4_ff0d_2fd5_b259_fa6e_de82_9d47),
    (2, "map-page.bin", 0x7ff4_f227_ca06_a02a_e4b9_a730_00b9_38b4),
    (2, "name-free.bin", 0x7b97_1f64_6192_768e_1eb8_0ed3_db3a_5765),
    (2, "name.bin", 0x03ff_3131_4851_1e12_998d_41ac_2427_ea0b),
    (2, "overlay.bin", 0x6ef6_865b_8e64_4ab5_8740_5e9a_90b5_2980),
    (2, "pack.bin", 0x5cdd_cd0e_3253_de0f_132c_caf2_d606_a73b),
    (2, "record-commit.bin", 0x500e_e55b_4b5f_489e_cc71_cf48_79e3_13c2),
    (2, "record-opening.bin", 0x2370_3922_adcb_144a_f1b3_e5ba_c772_b759),
    (2, "record-seal.bin", 0xb39d_41e4_5d96_8a18_81be_0131_01d5_8901),
    (2, "root-table.bin", 0x2f2c_3d10_aff3_1cb5_cac4_e3ff_f826_4d3a),
    (2, "root.bin", 0x0910_d80f_fbc3_fa98_fe34_01af_c965_2fc7),
];

/// Bytes at the beginning and at the end of an object of which every bit is flipped. One bit of each other
/// byte is.
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
    Object::decode(SEALING, sample.object.expected(), bytes)
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
        let encoded = sample.object.encode(SEALING);
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
fn the_checksums_of_tables_are_the_peers() {
    use cairn::volume::format::record::Record;
    let json: serde_json::Value = serde_json::from_slice(&read(FORMAT_VERSION, "golden.json")).unwrap();
    for (sample, bytes) in golden() {
        let Object::Record(record, _) = &sample.object else { continue };
        let (_, Checksum(found)) = Record::decode(SEALING, record.slot, &bytes).unwrap();
        let found = format!("{:032x}", u128::from_be_bytes(found));
        assert_eq!(json[sample.file]["fields"]["table_checksum"], found, "{}", sample.file);
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
            // Deep within the frames of an object, one bit of each byte is enough.
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
        ("overlay.bin", Expected::Overlay(3, ObjectId { epoch: 7, k: 16 }, objects::geometry(64))),
        ("overlay.bin", Expected::Overlay(2, ObjectId { epoch: 6, k: 16 }, objects::geometry(64))),
        ("overlay.bin", Expected::Overlay(2, ObjectId { epoch: 7, k: 16 }, objects::geometry(32))),
    ];
    for (file, expected) in others {
        let found = Object::decode(SEALING, expected, &read(FORMAT_VERSION, file));
        assert!(matches!(found, Err(DecodeError::Invalid { .. })), "{file} as {expected:?}: {found:?}");
    }
}

fn kind(sample: &Sample) -> std::mem::Discriminant<objects::Expected> {
    std::mem::discriminant(&sample.object.expected())
}

/// Makes the checksums fit the bytes before them, that of a record's table too, so that a reader gets to what
/// is wrong with these bytes.
pub(crate) fn seal(bytes: &mut [u8]) {
    if bytes.starts_with(b"CAIRNJNL")
        && let Some(data) = bytes.get(74..82)
    {
        let data = u64::from_le_bytes(data.try_into().unwrap());
        let end = usize::try_from(data).ok().and_then(|data| bytes.len().checked_sub(data.checked_add(16)?));
        if let Some(end) = end.filter(|end| *end >= 98) {
            seal_end(&mut bytes[..end]);
        }
    }
    seal_end(bytes);
}

/// Makes the checksum at the end fit the bytes before it.
fn seal_end(bytes: &mut [u8]) {
    let (body, checksum) = bytes.split_at_mut(bytes.len() - Checksum::BYTES);
    checksum.copy_from_slice(&Checksum::of(body).0);
}
