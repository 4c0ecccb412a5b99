//! Volumes with damaged or missing objects are listed as such and can be deleted, and harm no other.

use bytes::Bytes;
use cairn::effect::Durability::Durable;
use cairn::store::Operation;
use cairn::volume::{OpenError, Volume, catalog};
use uuid::Uuid;

use super::super::bench::{Bench, MIB, pattern};
use super::{create, delete, delete_id, only_free_names};

/// The ways to spoil a volume: a part of a key, and whether the object is damaged (true) or removed (false).
const WRONG: [(&str, bool); 8] = [
    ("identity/", false),
    ("identity/", true),
    ("/head", false),
    ("/head", true),
    ("/root/0-1", false),
    ("/root/0-1", true),
    ("name/bad", true),
    ("/journal/0000000001/00000000000000000002", true),
];

/// Removes or damages an object of the volume `bad` at rest.
fn spoil(bench: &Bench, bad: Uuid, part: &str, damage: bool) {
    let key = match part {
        "name/bad" => part.to_owned(),
        "identity/" => format!("identity/{bad}"),
        _ => format!("volume/{bad}{part}"),
    };
    let body = bench.memory.remove(&key).unwrap_or_else(|| panic!("{key}"));
    if damage {
        let mut body = body.to_vec();
        body[40] ^= 1;
        bench.memory.insert(&key, Bytes::from(body));
    }
}

/// Creates a second volume, `bad`, with a record in its journal.
async fn bad_volume(bench: &Bench) -> Uuid {
    let bad = create(bench, "bad").await.unwrap().volume;
    let volume = Volume::open(&bench.env(MIB), bench.options.clone(), bad, false).await.unwrap();
    volume.write(0, pattern(7, 8192), Durable).await.unwrap();
    volume.abandon().await;
    bad
}

#[tokio::test(start_paused = true)]
async fn one_volume_that_is_damaged_or_incomplete_keeps_no_other_from_being_listed() {
    for (part, damage) in WRONG {
        let bench = Bench::new(64 * MIB).await;
        let bad = bad_volume(&bench).await;
        create(&bench, "zero").await.unwrap();
        spoil(&bench, bad, part, damage);
        let listed = catalog::volumes(&bench.env(MIB)).await.unwrap();
        let names: Vec<&str> = listed.iter().map(|listed| &*listed.name).collect();
        assert_eq!(names, ["bad", "disk", "zero"], "{part}");
        let wrong = listed[0].found.is_err();
        assert_eq!(wrong, !part.contains("journal"), "{part}: {:?}", listed[0]);
        assert!(listed[1].found.is_ok() && listed[2].found.is_ok(), "{part}: {listed:?}");
        catalog::unnamed(&bench.env(MIB)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_with_any_damaged_or_missing_object_can_be_deleted() {
    for (part, damage) in WRONG {
        let bench = Bench::new(64 * MIB).await;
        let bad = bad_volume(&bench).await;
        spoil(&bench, bad, part, damage);
        if part == "name/bad" {
            let error = delete(&bench, "bad", true).await.expect_err("its name cannot be read");
            assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
            delete_id(&bench, bad, true).await.unwrap();
        } else {
            if part == "/head" && damage {
                let error = delete(&bench, "bad", false).await.expect_err("who holds it cannot be read");
                assert!(matches!(error, OpenError::Unclear { .. }), "{error}");
            }
            delete(&bench, "bad", true).await.unwrap_or_else(|e| panic!("{part}, {damage}: {e}"));
        }
        let left = bench.keys(&bad.to_string());
        assert_eq!(left, Vec::<String>::new(), "{part}, {damage}");
        create(&bench, "bad").await.unwrap_or_else(|e| panic!("{part}, {damage}: {e}"));
        assert_eq!(catalog::unnamed(&bench.env(MIB)).await.unwrap().len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_by_its_id() {
    for (part, damage) in WRONG {
        let bench = Bench::new(64 * MIB).await;
        let bad = bad_volume(&bench).await;
        spoil(&bench, bad, part, damage);
        delete_id(&bench, bad, true).await.unwrap_or_else(|e| panic!("{part}, {damage}: {e}"));
        assert_eq!(bench.keys(&bad.to_string()), Vec::<String>::new(), "{part}, {damage}");
        create(&bench, "bad").await.unwrap_or_else(|e| panic!("{part}, {damage}: {e}"));
        let again = delete_id(&bench, bad, true).await;
        assert!(matches!(again, Err(OpenError::NoSuchId(_))), "{again:?}");
    }
}

/// While a volume with a damaged record is being deleted, its writer cannot get a flush answered any more.
#[tokio::test(start_paused = true)]
async fn deleting_a_volume_with_a_damaged_record_seals_its_log() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    for n in 0..4_u64 {
        volume.write(n * 4096, pattern(n, 4096), Durable).await.unwrap();
    }
    let record = bench.keys("/journal/0000000001/00000000000000000003").pop().unwrap();
    let mut body = bench.memory.remove(&record).unwrap().to_vec();
    body[100] ^= 1;
    bench.memory.insert(&record, body.into());
    let gate = bench.fault.hold(Operation::Delete, "/journal/");
    let (deleted, ()) = tokio::join!(delete(&bench, "disk", true), async {
        gate.reached(1).await;
        volume.write(0, pattern(9, 4096), Durable).await.expect_err("its log is sealed");
        gate.release();
    });
    deleted.unwrap();
    only_free_names(&bench);
}
