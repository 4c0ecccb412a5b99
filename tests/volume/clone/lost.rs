//! A volume is never deleted while a clone needs it, whatever of the volume is lost.

use bytes::Bytes;
use cairn::store::MemoryStore;
use cairn::volume::format::root::RootTable;

use super::*;

/// What is lost of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Head,
    Table,
    HeadAndTables,
    HeadAndRoots,
}

/// How it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Missing,
    Damaged,
}

fn spoil(memory: &MemoryStore, key: &str, how: How) {
    let bytes = memory.remove(key).expect("it exists");
    if how == How::Damaged {
        let mut bytes = bytes.to_vec();
        *bytes.last_mut().expect("some bytes") ^= 1;
        memory.insert(key, Bytes::from(bytes));
    }
}

fn lose(bench: &Bench, volume: Uuid, lost: Lost, how: How) {
    let (keys, objects) = (Keys::new(volume), bench.memory.objects());
    let head = Head::decode(volume, &objects[&keys.head()]).expect("a head");
    let roots = objects.iter().filter(|(key, _)| key.starts_with(&keys.roots()));
    let is_table = |key: &str, bytes: &[u8]| {
        let ids = objects.keys().filter_map(|key| match keys.parse(key) {
            Some(cairn::volume::format::keys::Parsed::Root(id)) => Some(id),
            _ => None,
        });
        let mut named = ids.filter(|id| keys.root(*id) == key);
        named.any(|id| RootTable::decode(keys.sealing(), id, bytes).is_ok())
    };
    if lost != Lost::Table {
        spoil(&bench.memory, &keys.head(), how);
    }
    match lost {
        Lost::Head => {}
        Lost::Table => spoil(&bench.memory, &keys.root(head.root_table), how),
        Lost::HeadAndTables => roots
            .filter(|(key, bytes)| is_table(key, bytes))
            .for_each(|(key, _)| spoil(&bench.memory, key, how)),
        Lost::HeadAndRoots => roots.for_each(|(key, _)| spoil(&bench.memory, key, how)),
    }
}

const CASES: [(Lost, How); 8] = [
    (Lost::Head, How::Missing),
    (Lost::Head, How::Damaged),
    (Lost::Table, How::Missing),
    (Lost::Table, How::Damaged),
    (Lost::HeadAndTables, How::Missing),
    (Lost::HeadAndTables, How::Damaged),
    (Lost::HeadAndRoots, How::Missing),
    (Lost::HeadAndRoots, How::Damaged),
];

/// A closed disk with a snapshot and a clone of that, and what the clone has.
async fn cloned(bench: &Bench, env: &Environment) -> (Uuid, Uuid, Model) {
    let (parent, model) = golden(bench, env).await;
    let clone = catalog::clone(&parent, "golden", "clone").await.unwrap().volume;
    catalog::create(env, &bench.options, "unrelated", MIB, ChunkBytes(64 * KIB)).await.unwrap();
    parent.close().await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    (parent.id(), clone, model)
}

/// Deletes a volume in every way that there is.
async fn deleted(bench: &Bench, env: &Environment, id: Uuid, takeover: bool) -> [Result<(), OpenError>; 2] {
    let options = &bench.options;
    let by_name = catalog::delete(env, options, "disk", takeover).await;
    [by_name, catalog::delete_by_id(env, options, id, takeover).await]
}

#[tokio::test(start_paused = true)]
async fn a_parent_is_not_deleted_whatever_of_it_is_damaged() {
    for (lost, how) in CASES {
        let bench = small_bench().await;
        let env = process(&bench, 77);
        let (parent, clone, model) = cloned(&bench, &env).await;
        lose(&bench, parent, lost, how);
        let before = bench.memory.objects();
        for takeover in [false, true] {
            for refused in deleted(&bench, &env, parent, takeover).await {
                let refused = refused.expect_err("a clone needs it");
                let what = format!("{lost:?} {how:?}: {refused}");
                let names_clone = |clones: &[String]| clones == ["clone"];
                match &refused {
                    OpenError::HasClones { clones } => assert!(names_clone(&clones.names), "{what}"),
                    // Whoever holds it comes first.
                    OpenError::Unclear { .. } => assert!(!takeover && how == How::Damaged, "{what}"),
                    _ => panic!("{what}"),
                }
            }
        }
        assert!(bench.memory.objects() == before, "{lost:?} {how:?}: nothing was changed");
        let opened = open(&env, &bench.options, "clone").await;
        model.check(&opened, "a clone of a damaged volume").await;
        opened.close().await.unwrap();

        catalog::delete(&env, &bench.options, "clone", false).await.unwrap();
        catalog::delete(&env, &bench.options, "disk", true).await.unwrap();
        let of_them = |key: &String| key.contains(&parent.to_string()) || key.contains(&clone.to_string());
        let left: Vec<String> = bench.memory.objects().into_keys().filter(of_them).collect();
        assert_eq!(left, [""; 0], "{lost:?} {how:?}");
    }
}

/// The clone is not ready yet, and only its creator and the lost table know of it.
#[tokio::test(start_paused = true)]
async fn a_parent_whose_table_is_lost_is_not_deleted_while_a_clone_is_being_made() {
    for lost in [Lost::Table, Lost::HeadAndTables] {
        let bench = small_bench().await;
        let (parent, gate, creator) = held_at(&bench, "/root/0-1").await;
        lose(&bench, parent.id(), lost, How::Damaged);
        let env = process(&bench, 78);
        let [unnamed] = &catalog::unnamed(&env).await.unwrap()[..] else { panic!("one volume") };
        let refused = catalog::delete(&env, &bench.options, "disk", true).await.unwrap_err();
        let is_named = |others: &[String]| others == [unnamed.volume.to_string()];
        assert!(
            matches!(&refused, OpenError::MayHaveClones { others } if is_named(&others.names)),
            "{refused}"
        );
        gate.release();
        assert!(creator.await.unwrap(), "it is made");
        let refused = catalog::delete(&env, &bench.options, "disk", true).await.unwrap_err();
        assert!(matches!(&refused, OpenError::HasClones { .. }), "{refused}");
        parent.abandon().await;
    }
}

/// It is not known what it is a clone of.
#[tokio::test(start_paused = true)]
async fn a_parent_whose_table_is_lost_is_not_deleted_while_another_volume_cannot_be_read() {
    for how in [How::Missing, How::Damaged] {
        let bench = small_bench().await;
        let env = process(&bench, 77);
        let (parent, clone, _) = cloned(&bench, &env).await;
        lose(&bench, parent, Lost::Table, How::Damaged);
        let all = bench.memory.objects().into_keys();
        let roots = Keys::new(clone).roots();
        let roots: Vec<String> = all.filter(|key| key.starts_with(&roots)).collect();
        let kept = roots.iter().map(|key| (key, bench.memory.objects()[key].clone())).collect::<Vec<_>>();
        roots.iter().for_each(|key| spoil(&bench.memory, key, how));
        if how == How::Missing {
            spoil(&bench.memory, &Keys::new(clone).head(), how);
        }
        let refused = catalog::delete(&env, &bench.options, "disk", true).await.unwrap_err();
        let is_named = |others: &[String]| others.len() == 1;
        assert!(
            matches!(&refused, OpenError::MayHaveClones { others } if is_named(&others.names)),
            "{refused}"
        );
        assert!(refused.to_string().contains("restore or delete those first"), "{refused}");
        kept.into_iter().for_each(|(key, bytes)| bench.memory.insert(key, bytes));
        let refused = catalog::delete(&env, &bench.options, "disk", true).await.unwrap_err();
        assert!(matches!(&refused, OpenError::HasClones { .. }), "{refused}");
        // Never opened, so it has no clones itself.
        catalog::delete_by_id(&env, &bench.options, clone, true).await.unwrap();
        catalog::delete(&env, &bench.options, "disk", true).await.unwrap();
    }
}

/// What is left of a creation has no clones, whatever other volumes say.
#[tokio::test(start_paused = true)]
async fn what_was_never_opened_is_deleted_without_asking_others() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let (parent, _, _) = cloned(&bench, &env).await;
    lose(&bench, parent, Lost::HeadAndRoots, How::Damaged);
    let made = catalog::create(&env, &bench.options, "new", MIB, ChunkBytes(64 * KIB)).await.unwrap();
    let keys = Keys::new(made.volume);
    for (lost, how) in [(keys.head(), How::Missing), (keys.head(), How::Damaged)] {
        let kept = bench.memory.objects();
        spoil(&bench.memory, &lost, how);
        bench.memory.reset_tallies();
        catalog::delete_by_id(&env, &bench.options, made.volume, true).await.unwrap();
        let asked = bench.memory.tally(Operation::List, |key| key.contains(&parent.to_string())).requests;
        assert_eq!(asked, 0);
        let of_it =
            kept.into_iter().filter(|(key, _)| key.contains(&made.volume.to_string()) || key == "name/new");
        of_it.for_each(|(key, bytes)| bench.memory.insert(&key, bytes));
    }
}

/// Of a volume that was deleted, only records are left, which its holder sent late. No clone reads those, so it does
/// not matter what cannot be read of others.
#[tokio::test(start_paused = true)]
async fn late_records_of_a_deleted_volume_are_deleted_although_others_are_damaged() {
    let bench = small_bench().await;
    let env = process(&bench, 78);
    let (parent, _) = golden(&bench, &env).await;
    parent.write(0, Bytes::from_static(&[7; 4096]), cairn::effect::Durability::Durable).await.unwrap();
    let id = parent.id();
    parent.abandon().await;
    let journal = Keys::new(id).journal();
    let late: Vec<(String, Bytes)> =
        bench.memory.objects().into_iter().filter(|(key, _)| key.starts_with(&journal)).collect();
    assert!(!late.is_empty(), "a flushed write is in the journal");
    catalog::delete(&env, &bench.options, "disk", true).await.unwrap();
    late.iter().for_each(|(key, bytes)| bench.memory.insert(key, bytes.clone()));
    // Nobody can say of what it is a clone.
    let unknown = Uuid::from_u128(0x00ff_0000_0000_4000_8000_0000_0000_0001);
    bench.memory.insert(&Keys::new(unknown).identity(), Bytes::from_static(b"damaged"));

    catalog::delete_by_id(&env, &bench.options, id, false).await.unwrap();
    let left: Vec<String> =
        bench.memory.objects().into_keys().filter(|key| key.contains(&id.to_string())).collect();
    assert_eq!(left, [""; 0]);
}
