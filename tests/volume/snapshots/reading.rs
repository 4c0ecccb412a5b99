//! Snapshots are read while the volume goes on, and after they are gone.

use std::sync::Arc;

use cairn::effect::Zeroing;
use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Rule};
use cairn::volume::{Error, Extent, SnapshotDisk};

use super::super::bench::{MIB, bytes_of};
use super::super::engine::{Model, Numbers, fill};
use super::super::stored::Kept;
use super::{BLOCK, COLLECTED, KIB, change, disk, disk_with_cache, small_bench, write_block};

/// Reads some ranges of a snapshot, and compares them with what it contains.
async fn read_some(disk: &Arc<SnapshotDisk>, model: &Model, numbers: &mut Numbers, when: &str) {
    for _ in 0..8 {
        let start = numbers.below(MIB / 512) * 512;
        let length = (1 + numbers.below(200)) * 512;
        let length = length.min(MIB - start);
        let found = bytes_of(&disk.read(start, length).await.unwrap());
        let place = usize::try_from(start).unwrap();
        assert!(found == model.bytes[place..place + found.len()], "{length} bytes at {start}, {when}");
        assert_eq!(found.len() as u64, length);
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_stays_as_it_is_while_the_volume_goes_on() {
    let mut bench = small_bench().await;
    // Chunks are consolidated and packs relocated as often as possible.
    bench.options.relocate_percent = 100;
    bench.options.consolidate_percent = 10;
    let mut volume = bench.open().await;
    let (mut model, mut numbers) = (Model::new(0, MIB), Numbers(77));
    fill(&volume, &mut model).await;
    change(&volume, &mut model, &mut numbers).await;
    model.zero(&volume, 300 * KIB, 100 << 10, true).await;
    model.zero(&volume, 500 * KIB, 100 << 10, false).await;
    volume.snapshot("kept").await.unwrap();
    let extents: Vec<Extent> = volume.allocation(0, MIB, 4096).await.unwrap();
    let (whole, tiny) = (disk(&bench, "kept").await, disk_with_cache(&bench, "kept", 16 * KIB).await);
    let content = model.clone();
    for round in 0..40_u64 {
        let when = format!("round {round}");
        change(&volume, &mut model, &mut numbers).await;
        match round % 5 {
            0 => volume.consolidate().await.unwrap(),
            1 => drop(volume.snapshot(&when.replace(' ', "-")).await.unwrap()),
            2 if round > 10 => {
                let name = volume.snapshots()[1].name.clone();
                volume.delete_snapshot(&name).await.unwrap();
            }
            3 => volume.checkpoint().await.unwrap(),
            _ => {
                volume.abandon().await;
                volume = bench.open().await;
                // What was not flushed is gone, or not.
                model.bytes = bytes_of(&volume.read(0, MIB).await.unwrap());
            }
        }
        tokio::time::sleep(COLLECTED).await;
        for disk in [&whole, &tiny] {
            read_some(disk, &content, &mut numbers, &when).await;
            assert_eq!(disk.allocation(0, MIB, 4096).await.unwrap(), extents, "{when}");
            assert!(disk.is_kept().await.unwrap(), "{when}");
        }
        assert!(bytes_of(&tiny.read(0, MIB).await.unwrap()) == content.bytes, "{when}");
    }
    volume.zero(0, MIB, Zeroing::Deallocate, cairn::effect::Durability::Durable).await.unwrap();
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    Kept::of(&bench).assert_exact(&bench);
    assert!(bytes_of(&tiny.read(0, MIB).await.unwrap()) == content.bytes, "the volume is empty");
    whole.prefetch(0, MIB).await.unwrap();
    assert!(bytes_of(&whole.read(0, MIB).await.unwrap()) == content.bytes, "from the cache");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_was_deleted_is_an_error_and_never_other_bytes() {
    let mut bench = small_bench().await;
    let volume = bench.open().await;
    let (mut model, mut numbers) = (Model::new(0, MIB), Numbers(5));
    fill(&volume, &mut model).await;
    change(&volume, &mut model, &mut numbers).await;
    volume.snapshot("a").await.unwrap();
    let content = model.clone();
    let [fresh, warm, told] = [disk(&bench, "a").await, disk(&bench, "a").await, disk(&bench, "a").await];
    assert!(bytes_of(&warm.read(0, MIB).await.unwrap()) == content.bytes);
    volume.delete_snapshot("a").await.unwrap();
    for block in 0..MIB / BLOCK {
        write_block(&volume, block, 1000 + block).await;
    }
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    // Another snapshot under the same name is another snapshot.
    volume.snapshot("a").await.unwrap();
    assert!(!told.is_kept().await.unwrap());
    for block in 0..MIB / BLOCK {
        for disk in [&fresh, &warm] {
            match disk.read(block * BLOCK, BLOCK).await {
                Ok(found) => {
                    let place = usize::try_from(block * BLOCK).unwrap();
                    assert!(bytes_of(&found) == content.bytes[place..place + 4096], "block {block}");
                }
                Err(Error::Stopped(why)) => assert!(why.contains("was deleted"), "{why}"),
                Err(error) => panic!("a deleted snapshot is no loss: {error}"),
            }
        }
        let error = told.read(block * BLOCK, BLOCK).await.expect_err("it is known to be deleted");
        assert!(matches!(error, Error::Stopped(_)), "{error}");
    }
    let error = fresh.read(0, MIB).await.expect_err("its chunks are gone");
    assert!(matches!(error, Error::Stopped(_)), "{error}");
    fresh.allocation(0, MIB, 4096).await.expect_err("its map is gone too");
    fresh.prefetch(0, MIB).await.expect_err("its map is gone too");
}

/// A store that denies an object for a moment does not make a snapshot deleted or lost.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_the_store_denies_once_is_not_deleted() {
    let mut bench = small_bench().await;
    let volume = bench.open().await;
    let mut model = Model::new(0, MIB);
    fill(&volume, &mut model).await;
    change(&volume, &mut model, &mut Numbers(9)).await;
    volume.snapshot("a").await.unwrap();
    for part in ["/head", "/root/", "/map/", "/overlay/", "/pack/", "/chunk/"] {
        for skip in 0..3 {
            let denial = Rule::new(Action::FailBefore(Failure::NotFound)).on(Operation::Get);
            bench.fault.add(denial.containing(part).skip(skip).times(1));
            let disk = disk(&bench, "a").await;
            assert!(disk.is_kept().await.unwrap(), "{part} {skip}");
            assert!(bytes_of(&disk.read(0, MIB).await.unwrap()) == model.bytes, "{part} {skip}");
            bench.fault.clear();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_object_of_a_snapshot_is_an_error_and_the_rest_is_read() {
    let mut bench = small_bench().await;
    let volume = bench.open().await;
    let mut model = Model::new(0, MIB);
    fill(&volume, &mut model).await;
    volume.snapshot("a").await.unwrap();
    let lost = bench.keys("/chunk/").into_iter().find(|key| key.contains("/3-")).expect("chunk 3");
    bench.memory.remove(&lost).unwrap();
    let disk = disk(&bench, "a").await;
    for chunk in 0..16_usize {
        match disk.read(chunk as u64 * 64 * KIB, 64 * KIB).await {
            Ok(found) => {
                assert!(chunk != 3 && bytes_of(&found) == model.bytes[chunk << 16..(chunk + 1) << 16])
            }
            Err(error) => assert!(chunk == 3 && error.is_loss(), "chunk {chunk}: {error}"),
        }
    }
    let error = disk.read(MIB - 512, 1024).await.expect_err("beyond the end");
    assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
}
