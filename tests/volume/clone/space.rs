//! What a clone shares is not counted as its own, and no checkpoint copies it.

use cairn::volume::check::{Depth, Purpose, Report, check};
use cairn::volume::format::geometry::BlockIndex;

use super::*;

async fn usage(env: &Environment, name: &str) -> Report {
    check(env, name, Depth::References).await.unwrap()
}

/// The chunk objects and packs of a volume.
fn own(bench: &Bench, volume: Uuid) -> Vec<String> {
    let is_own = |key: &String| key.contains(&volume.to_string());
    data(bench)
        .into_iter()
        .filter(|key| is_own(key) && (key.contains("/chunk/") || key.contains("/pack/")))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_clone_takes_no_space_and_shares_what_its_snapshot_has() {
    let bench = small_bench().await;
    let env = process(&bench, 77);
    let (parent, mut model) = golden(&bench, &env).await;
    let made = catalog::clone(&parent, "golden", "clone").await.unwrap();
    parent.close().await.unwrap();
    let of_parent = usage(&env, "disk").await.usage;
    assert_eq!(of_parent.shared_blocks, 0);
    let of_clone = usage(&env, "clone").await.usage;
    assert_eq!((of_clone.space.stored, of_clone.space.live), (0, 0));
    assert_eq!(of_clone.shared_blocks, of_parent.space.live);

    let clone = open(&env, &bench.options, "clone").await;
    model.write(&clone, 0, 77, 8 * 4096).await;
    clone.checkpoint().await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    let after = usage(&env, "clone").await.usage;
    assert!(after.space.live >= 8 && after.space.live <= 16, "{after:?}");
    // The checkpoint may have rewritten the whole chunk.
    let blocks = after.shared_blocks + after.space.live;
    assert_eq!(blocks, of_clone.shared_blocks, "each block is either shared or the clone's own");
    for chunk in 0..16 {
        model.write(&clone, chunk * 64 * KIB, chunk + 100, 64 << 10).await;
    }
    clone.checkpoint().await.unwrap();
    tokio::time::sleep(COLLECTED).await;
    let all = usage(&env, "clone").await.usage;
    assert_eq!((all.shared_blocks, all.space.live), (0, MIB / BLOCK));
    let live = all.sum(|_, purpose| purpose == Purpose::Live);
    assert!(live.bytes > MIB);
    model.check(&clone, "at the end").await;
    clone.close().await.unwrap();
    assert!(!own(&bench, made.volume).is_empty());
    assert_exact_for_all(&bench);
}

/// Overlays decide about most blocks of the parent, so that it would consolidate all of its chunks.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_of_a_clone_copies_no_chunk_that_clients_left_alone() {
    let mut bench = small_bench().await;
    bench.options.background_percent = 0;
    let env = process(&bench, 77);
    let parent = open(&env, &bench.options, "disk").await;
    let mut model = Model::new(0, MIB);
    fill(&parent, &mut model).await;
    parent.checkpoint().await.unwrap();
    for block in (0..MIB / BLOCK).filter(|block| block % 16 < 7) {
        model.write(&parent, block * BLOCK, block, 4096).await;
    }
    parent.snapshot("golden").await.unwrap();
    let made = catalog::clone(&parent, "golden", "clone").await.unwrap();
    parent.close().await.unwrap();

    // As eager as can be.
    bench.options.background_percent = 100_000;
    bench.options.consolidate_percent = 1;
    let clone = open(&env, &bench.options, "clone").await;
    for round in 0..4 {
        model.write(&clone, 3 * BLOCK, round + 1000, 4096).await;
        clone.checkpoint().await.unwrap();
    }
    model.check(&clone, "after the checkpoints").await;
    tokio::time::sleep(COLLECTED).await;
    let (keys, objects) = (Keys::new(made.volume), bench.memory.objects());
    for key in own(&bench, made.volume) {
        use cairn::volume::format::keys::Parsed;
        match keys.parse(&key).expect("a key") {
            Parsed::Chunk(index, _) => assert_eq!(index.0, 0, "{key}"),
            Parsed::Pack(_) => {
                let pack = cairn::volume::format::pack::Pack::decode(keys.sealing(), &objects[&key]).unwrap();
                let blocks: Vec<BlockIndex> = pack.blocks.iter().map(|(block, _)| *block).collect();
                assert_eq!(blocks, [BlockIndex(3)], "{key}");
            }
            other => panic!("{other:?}"),
        }
    }
    clone.close().await.unwrap();
    assert_exact_for_all(&bench);
}
