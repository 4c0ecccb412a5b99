//! Snapshots: each has what was answered before it and nothing of later, stays as it is, and goes as a whole.

mod content;
mod cost;
mod crash;
mod deletion;
mod reading;

use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::volume::{SnapshotDisk, Volume, catalog};

use super::bench::{Bench, MIB, bytes_of, pattern};
use super::engine::{Model, Numbers};

const KIB: u64 = 1 << 10;
const BLOCK: u64 = 4096;
/// Longer than the collector needs if there is no grace period.
const COLLECTED: Duration = Duration::from_secs(60);

/// Opens a snapshot by a gateway of its own, with a cache of the given size.
async fn disk_with_cache(bench: &Bench, name: &str, cache_bytes: u64) -> Arc<SnapshotDisk> {
    let env = bench.env(cache_bytes);
    let volume = catalog::resolve(&env, "disk").await.unwrap();
    SnapshotDisk::open(&env, &bench.options, volume, name).await.unwrap()
}

async fn disk(bench: &Bench, name: &str) -> Arc<SnapshotDisk> {
    disk_with_cache(bench, name, 64 * MIB).await
}

/// Asserts that a snapshot contains what these models say.
async fn expect(bench: &Bench, name: &str, models: &[Model], when: &str) {
    let disk = disk(bench, name).await;
    assert_eq!(disk.snapshot().name, name, "{when}");
    for model in models {
        let found = disk.read(model.start, model.bytes.len() as u64).await.unwrap();
        assert!(bytes_of(&found) == model.bytes, "snapshot {name} at {}: {when}", model.start);
    }
}

/// Whether a volume contains what these models say.
async fn has(volume: &Volume, models: &[Model]) -> bool {
    for model in models {
        let found = volume.read(model.start, model.bytes.len() as u64).await.unwrap();
        if bytes_of(&found) != model.bytes {
            return false;
        }
    }
    true
}

/// A disk of 1 MiB in chunks of 64 KiB, with small packs and few overlays, so that checkpoints pack,
/// consolidate, relocate and merge all the time. Nothing waits for a grace period.
async fn small_bench() -> Bench {
    let mut bench = Bench::with_chunks(MIB, 64 * KIB).await;
    bench.options.pack_bytes = 8 * BLOCK;
    bench.options.overlays = 2;
    bench.options.embed_bytes = 0;
    bench.options.deletion_grace = Duration::ZERO;
    bench
}

/// Changes a disk of 1 MiB in some places: parts of blocks, blocks, whole chunks and zeros.
async fn change(volume: &Volume, model: &mut Model, numbers: &mut Numbers) {
    for _ in 0..12 {
        let seed = numbers.below(1 << 40);
        let block = numbers.below(MIB / BLOCK - 16) * BLOCK;
        match numbers.below(8) {
            0 => model.zero(volume, block, 8192, seed.is_multiple_of(2)).await,
            1 => model.write(volume, block / (64 * KIB) * 64 * KIB, seed, 64 << 10).await,
            2 => model.write(volume, block + 512, seed, 1536).await,
            3 => model.write(volume, block, seed, 5 * 4096).await,
            _ => model.write(volume, block, seed, 4096).await,
        }
    }
}

async fn write_block(volume: &Volume, block: u64, seed: u64) {
    volume.write(block * BLOCK, pattern(seed, 4096), Volatile).await.unwrap();
}
