//! The picture of a disk: absent, stored, cached, dirty.

use cairn::effect::Durability::{Durable, Volatile};
use cairn::effect::Zeroing;
use cairn::volume::{Cell, Volume};

use super::bench::{Bench, MIB, pattern};

/// The stored and the dirty pages of 64 KiB of each cell.
fn pages(cells: &[Cell]) -> Vec<(u64, u64)> {
    cells.iter().map(|cell| (cell.stored_bytes / 65_536, cell.dirty_bytes / 65_536)).collect()
}

/// Bytes stored of the first cells, and how many of them are cached too, in blocks of 4 KiB.
async fn cached(volume: &Volume) -> Vec<(u64, u64)> {
    let picture = volume.picture(16).await.unwrap();
    picture.cells[..3].iter().map(|cell| (cell.stored_bytes / 4096, cell.cached_bytes / 4096)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_write_is_dirty_until_it_is_durable_and_absent_after_a_trim() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    let shown = async || {
        let picture = volume.picture(16).await.unwrap();
        assert_eq!(picture.cell_bytes, 4 * MIB);
        pages(&picture.cells)
    };
    let mut expected = vec![(0, 0); 16];
    assert_eq!(shown().await, expected, "a fresh disk is absent");

    // Half of the data is in one cell, half in the next.
    volume.write(8 * MIB - 65_536, pattern(1, 131_072), Volatile).await.unwrap();
    (expected[1], expected[2]) = ((0, 1), (0, 1));
    assert_eq!(shown().await, expected);

    volume.flush().await.unwrap();
    (expected[1], expected[2]) = ((1, 0), (1, 0));
    assert_eq!(shown().await, expected, "durable in the journal");
    volume.checkpoint().await.unwrap();
    assert_eq!(shown().await, expected, "durable in objects");

    volume.zero(8 * MIB, 65_536, Zeroing::Deallocate, Volatile).await.unwrap();
    expected[2] = (0, 1);
    assert_eq!(shown().await, expected, "a TRIM is a change like any other");
    volume.checkpoint().await.unwrap();
    expected[2] = (0, 0);
    assert_eq!(shown().await, expected);
}

/// In the journal, in chunk objects and in packs: what was written or read lately is in memory, block by
/// block, and what was only stored is not.
#[tokio::test(start_paused = true)]
async fn what_is_stored_is_cached_while_memory_has_it_too() {
    let mut bench = Bench::new(64 * MIB).await;
    let volume = bench.open().await;
    // A whole chunk, which is uploaded at once, and 32 blocks, which go through the journal into a pack.
    volume.write(0, pattern(1, 4 << 20), Volatile).await.unwrap();
    volume.write(8 * MIB, pattern(2, 131_072), Durable).await.unwrap();
    assert_eq!(cached(&volume).await, [(1024, 1024), (0, 0), (32, 32)], "just written");
    volume.checkpoint().await.unwrap();
    assert_eq!(bench.keys("/pack/").len(), 1);
    assert_eq!(cached(&volume).await, [(1024, 1024), (0, 0), (32, 32)], "folded, and in use");
    volume.close().await.unwrap();
    drop(volume);

    // A new gateway, whose cache is empty.
    let volume = bench.open().await;
    assert_eq!(cached(&volume).await, [(1024, 0), (0, 0), (32, 0)], "only stored");
    volume.read(8 * MIB + 4096, 4096).await.unwrap();
    volume.read(512, 8192).await.unwrap();
    assert_eq!(cached(&volume).await, [(1024, 3), (0, 0), (32, 1)], "read once");

    // A block of the chunk that is replaced is stored once, and a hole is stored nowhere.
    volume.write(4096, pattern(3, 4096), Durable).await.unwrap();
    volume.zero(8 * MIB, 65_536, Zeroing::Deallocate, Durable).await.unwrap();
    volume.checkpoint().await.unwrap();
    assert_eq!(cached(&volume).await, [(1024, 3), (0, 0), (16, 0)], "replaced and discarded");
}
