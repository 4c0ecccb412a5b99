//! A comparison of two snapshots lists every byte that differs, nothing that lies in the same place, and
//! reads no data.

mod model;
mod portions;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::effect::Zeroing;
use cairn::store::Operation;
use cairn::volume::{Change, Diff, DiffError, Error, Flattened, Shrink, Side, SnapshotDisk, Volume, catalog};

use super::bench::{Bench, MIB, pattern};
use super::engine::{Model, fill};

const KIB: u64 = 1 << 10;
const BLOCK: u64 = 4096;
const CHUNK: u64 = 64 * KIB;
const MAP_PAGE: u64 = 4096 * CHUNK;

/// A snapshot of a volume, as a process of its own sees it.
async fn disk_of(bench: &Bench, volume: &str, name: &str) -> Arc<SnapshotDisk> {
    let env = bench.env(64 * MIB);
    let volume = catalog::resolve(&env, volume).await.unwrap();
    SnapshotDisk::open(&env, &bench.options, volume, name).await.unwrap()
}

async fn side(bench: &Bench, name: &str) -> Side {
    Side::of_snapshot(&disk_of(bench, "disk", name).await)
}

/// Everything that a comparison lists. The ranges must be in order and merged.
async fn all(diff: Result<Diff, DiffError>) -> Vec<Change> {
    let mut diff = diff.unwrap();
    let mut changes: Vec<Change> = Vec::new();
    while let Some(change) = diff.next_change().await.unwrap() {
        assert!(!change.range.is_empty());
        if let Some(last) = changes.last() {
            let touches = last.range.end == change.range.start;
            assert!(last.range.end <= change.range.start && !(touches && last.zero == change.zero));
        }
        changes.push(change);
    }
    changes
}

async fn listed(bench: &Bench, before: &str, after: &str) -> Vec<Change> {
    all(Diff::between(side(bench, before).await, side(bench, after).await)).await
}

fn data(range: Range<u64>) -> Change {
    Change { range, zero: false }
}

fn zeros(range: Range<u64>) -> Change {
    Change { range, zero: true }
}

async fn write(volume: &Volume, offset: u64, seed: u64, length: u64) {
    volume.write(offset, pattern(seed, usize::try_from(length).unwrap()), Volatile).await.unwrap();
}

async fn trim(volume: &Volume, range: Range<u64>) {
    volume.zero(range.start, range.end - range.start, Zeroing::Deallocate, Volatile).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn blocks_that_were_written_and_zeroed_are_listed_and_no_others() {
    let mut bench = Bench::with_chunks(MIB, CHUNK).await;
    let volume = bench.open().await;
    write(&volume, 0, 1, 512 * KIB).await;
    volume.snapshot("monday").await.unwrap();
    write(&volume, 5 * BLOCK + 100, 2, 10).await;
    write(&volume, 6 * BLOCK, 3, BLOCK).await;
    trim(&volume, 7 * BLOCK..9 * BLOCK).await;
    // Zeros before and after, whether they are allocated or not.
    trim(&volume, 600 * KIB..700 * KIB).await;
    volume.zero(900 * KIB, 8 * KIB, Zeroing::Allocate, Volatile).await.unwrap();
    volume.snapshot("tuesday").await.unwrap();
    let expected = [data(5 * BLOCK..7 * BLOCK), zeros(7 * BLOCK..9 * BLOCK)];
    assert_eq!(listed(&bench, "monday", "tuesday").await, expected);
    assert_eq!(listed(&bench, "tuesday", "monday").await, [data(5 * BLOCK..9 * BLOCK)], "the other way");
    assert_eq!(listed(&bench, "tuesday", "tuesday").await, []);
    // The volume itself, with what is not folded yet.
    write(&volume, 20 * BLOCK, 4, BLOCK).await;
    let now = Side::of_volume(&volume).await.unwrap();
    let diff = all(Diff::between(side(&bench, "tuesday").await, now)).await;
    assert_eq!(diff, [data(20 * BLOCK..21 * BLOCK)]);
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_list_in_parts_says_the_same_from_any_offset_on() {
    let mut bench = Bench::with_chunks(2 * MAP_PAGE, CHUNK).await;
    let volume = bench.open().await;
    volume.snapshot("monday").await.unwrap();
    for n in 0..5 {
        write(&volume, n * 10 * CHUNK + 3 * BLOCK, n + 1, 2 * BLOCK).await;
    }
    write(&volume, MAP_PAGE + 5 * BLOCK, 9, BLOCK).await;
    volume.snapshot("tuesday").await.unwrap();
    let whole = listed(&bench, "monday", "tuesday").await;
    assert_eq!(whole.len(), 6);
    let page = async |offset: u64, most: usize| {
        let diff = Diff::between(side(&bench, "monday").await, side(&bench, "tuesday").await).unwrap();
        diff.page(offset, most).await.unwrap()
    };
    for most in [1, 2, 5, 6, 7] {
        let (mut found, mut next, mut parts) = (Vec::new(), Some(0), 0);
        while let Some(offset) = next {
            let part = page(offset, most).await;
            assert!(part.changes.len() <= most && part.next_offset.is_none_or(|next| next > offset));
            found.extend(part.changes);
            next = part.next_offset;
            parts += 1;
        }
        assert_eq!(found, whole, "{most} at a time");
        assert!(parts <= 6 / most + 1, "{parts} parts of {most}");
    }
    let part = page(10 * CHUNK + 4 * BLOCK + 7, 1).await;
    assert_eq!(part.changes, [data(10 * CHUNK + 4 * BLOCK..10 * CHUNK + 5 * BLOCK)]);
    assert_eq!(page(u64::MAX, 1).await.changes, []);
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn map_pages_that_are_shared_are_not_read_and_no_data_is() {
    let mut bench = Bench::with_chunks(8 * MAP_PAGE, CHUNK).await;
    let volume = bench.open().await;
    for page in [0, 3, 7] {
        write(&volume, page * MAP_PAGE, page + 1, MIB).await;
    }
    // Two map pages become uniform.
    volume.zero(5 * MAP_PAGE, 2 * MAP_PAGE, Zeroing::Allocate, Volatile).await.unwrap();
    volume.snapshot("monday").await.unwrap();
    write(&volume, 3 * MAP_PAGE + 5 * BLOCK, 9, BLOCK).await;
    trim(&volume, 5 * MAP_PAGE..6 * MAP_PAGE).await;
    volume.snapshot("tuesday").await.unwrap();
    let (before, after) = (side(&bench, "monday").await, side(&bench, "tuesday").await);
    bench.memory.reset_tallies();
    let changed = 3 * MAP_PAGE + 5 * BLOCK;
    assert_eq!(all(Diff::between(before, after)).await, [data(changed..changed + BLOCK)]);
    assert_eq!(bench.gets("/map/").requests, 2, "one map page of each side");
    let is_data = |key: &str| ["/chunk/", "/pack/", "/journal/"].iter().any(|part| key.contains(part));
    assert_eq!(bench.memory.tally(Operation::Get, is_data).requests, 0);
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_checkpoint_only_moved_is_not_listed() {
    let mut bench = Bench::with_chunks(4 * MIB, CHUNK).await;
    bench.options.pack_bytes = 8 * BLOCK;
    let volume = bench.open().await;
    let mut model = Model::new(0, 4 * MIB);
    fill(&volume, &mut model).await;
    for chunk in 0..64 {
        model.write(&volume, chunk * CHUNK + 3 * BLOCK, chunk + 1, 4096).await;
    }
    volume.snapshot("monday").await.unwrap();
    volume.consolidate().await.unwrap();
    model.write(&volume, 7 * CHUNK, 99, 4096).await;
    volume.snapshot("tuesday").await.unwrap();
    let listed = listed(&bench, "monday", "tuesday").await;
    assert!(listed.iter().all(|change| change.range.start / CHUNK == 7), "one chunk changed: {listed:?}");
    assert!(listed.iter().any(|change| change.range.start == 7 * CHUNK), "{listed:?}");
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn beyond_its_end_a_smaller_disk_counts_as_zeros() {
    let mut bench = Bench::with_chunks(MIB, CHUNK).await;
    let volume = bench.open().await;
    write(&volume, 0, 1, MIB).await;
    volume.snapshot("small").await.unwrap();
    volume.resize(MAP_PAGE + MIB + 512, Shrink::Refuse).await.unwrap();
    volume.snapshot("grown").await.unwrap();
    assert_eq!(listed(&bench, "small", "grown").await, []);
    write(&volume, MAP_PAGE + MIB, 2, 512).await;
    volume.snapshot("written").await.unwrap();
    let end = MAP_PAGE + MIB;
    assert_eq!(listed(&bench, "small", "written").await, [data(end..end + 512)], "it ends with the disk");
    assert_eq!(listed(&bench, "written", "small").await, [], "what is beyond the end is not listed");
    volume.resize(100 * KIB + 512, Shrink::Discard).await.unwrap();
    volume.resize(MIB, Shrink::Refuse).await.unwrap();
    volume.snapshot("again").await.unwrap();
    let last = 100 * KIB;
    let expected = [data(last..last + BLOCK), zeros(last + BLOCK..MIB)];
    assert_eq!(listed(&bench, "small", "again").await, expected);
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_of_a_huge_range_is_one_range() {
    let size = 64 << 40;
    let mut bench = Bench::with_chunks(size, 4 * MIB).await;
    let volume = bench.open().await;
    for n in 0..8 {
        write(&volume, n * (8 << 40), n + 1, BLOCK).await;
    }
    volume.snapshot("monday").await.unwrap();
    trim(&volume, 0..size).await;
    write(&volume, 8 << 40, 50, BLOCK).await;
    volume.snapshot("tuesday").await.unwrap();
    let listed = listed(&bench, "monday", "tuesday").await;
    assert_eq!(listed.len(), 8);
    // A chunk object stores pages, so what it stored around a block may differ, too.
    let covers = |at: u64| listed.iter().any(|change| change.range.contains(&at));
    assert!((0..8).all(|n| covers(n * (8 << 40))));
    assert!(listed.iter().all(|change| change.range.end - change.range.start <= CHUNK));
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn volumes_without_common_objects_are_refused() {
    let mut bench = Bench::with_chunks(MIB, CHUNK).await;
    let volume = bench.open().await;
    volume.snapshot("monday").await.unwrap();
    let env = bench.beside().env(64 * MIB);
    catalog::create(&env, &bench.options, "other", MIB, catalog::ChunkBytes(CHUNK)).await.unwrap();
    let other = catalog::open(&env, || bench.options.clone(), "other", false).await.unwrap();
    other.snapshot("monday").await.unwrap();
    let other_side = Side::of_snapshot(&disk_of(&bench, "other", "monday").await);
    let refused = Diff::between(side(&bench, "monday").await, other_side);
    assert!(matches!(refused, Err(DiffError::Unrelated)));
    other.close().await.unwrap();
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_map_page_located_is_listed_as_changed() {
    let mut bench = Bench::with_chunks(2 * MAP_PAGE, CHUNK).await;
    let volume = bench.open().await;
    write(&volume, 10 * CHUNK, 1, CHUNK).await;
    volume.snapshot("monday").await.unwrap();
    let lost = bench.keys("/map/");
    write(&volume, 20 * CHUNK, 2, CHUNK).await;
    volume.snapshot("tuesday").await.unwrap();
    volume.close().await.unwrap();
    for key in &lost {
        bench.memory.remove(key).expect("it exists");
    }
    let listed = listed(&bench, "monday", "tuesday").await;
    let covered: u64 = listed.iter().map(|change| change.range.end - change.range.start).sum();
    assert_eq!(covered, MAP_PAGE, "all of it, and no more");
    let stored = listed.iter().filter(|change| !change.zero).map(|change| change.range.clone());
    assert_eq!(stored.collect::<Vec<_>>(), [10 * CHUNK..11 * CHUNK, 20 * CHUNK..21 * CHUNK]);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_deleted_meanwhile_ends_the_comparison() {
    let mut bench = Bench::with_chunks(2 * MAP_PAGE, CHUNK).await;
    bench.options.deletion_grace = Duration::ZERO;
    let volume = bench.open().await;
    write(&volume, 10 * CHUNK, 1, CHUNK).await;
    volume.snapshot("monday").await.unwrap();
    write(&volume, 20 * CHUNK, 2, CHUNK).await;
    volume.snapshot("tuesday").await.unwrap();
    let mut diff = Diff::between(side(&bench, "monday").await, side(&bench, "tuesday").await).unwrap();
    volume.delete_snapshot("monday").await.unwrap();
    // Longer than the collector needs if there is no grace period.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let ended = diff.next_change().await;
    assert!(matches!(&ended, Err(Error::Stopped(why)) if why.contains("monday")), "{ended:?}");
    volume.close().await.unwrap();
}

/// The commits of a clone have the same numbers as those of its parent, and mean something else.
#[tokio::test(start_paused = true)]
async fn a_clone_is_compared_with_its_parent() {
    let mut bench = Bench::with_chunks(MIB, CHUNK).await;
    let parent = bench.open().await;
    write(&parent, 0, 1, 512 * KIB).await;
    parent.snapshot("golden").await.unwrap();
    catalog::clone(&parent, "golden", "clone").await.unwrap();
    let env = bench.beside().env(64 * MIB);
    let clone = catalog::open(&env, || bench.options.clone(), "clone", false).await.unwrap();
    clone.snapshot("fresh").await.unwrap();
    let of = async |volume: &str, name: &str| Side::of_snapshot(&disk_of(&bench, volume, name).await);
    let same = all(Diff::between(of("disk", "golden").await, of("clone", "fresh").await)).await;
    assert_eq!(same, [], "a new clone has what the snapshot has");
    for n in 0..8 {
        write(&parent, 3 * BLOCK, 100 + n, BLOCK).await;
        parent.snapshot(&format!("p{n}")).await.unwrap();
        write(&clone, 3 * BLOCK, 200 + n, BLOCK).await;
        clone.snapshot(&format!("c{n}")).await.unwrap();
    }
    for (p, c) in (0..8).flat_map(|p| (0..8).map(move |c| (format!("p{p}"), format!("c{c}")))) {
        let listed = all(Diff::between(of("disk", &p).await, of("clone", &c).await)).await;
        assert_eq!(listed, [data(3 * BLOCK..4 * BLOCK)], "{p} and {c}");
    }
    let listed = all(Diff::between(of("disk", "golden").await, of("clone", "c7").await)).await;
    assert_eq!(listed, [data(3 * BLOCK..4 * BLOCK)]);
    clone.close().await.unwrap();
    parent.close().await.unwrap();
}

/// What a clone has from its parent was written by commits of the parent. Those of the clone have the same numbers.
#[tokio::test(start_paused = true)]
async fn a_flattened_clone_is_compared_by_its_own_commits() {
    let mut bench = Bench::with_chunks(MIB, CHUNK).await;
    bench.options.deletion_grace = Duration::ZERO;
    let parent = bench.open().await;
    for n in 0..16 {
        write(&parent, n * CHUNK, n + 1, BLOCK).await;
        parent.checkpoint().await.unwrap();
    }
    parent.snapshot("golden").await.unwrap();
    catalog::clone(&parent, "golden", "clone").await.unwrap();
    let env = bench.beside().env(64 * MIB);
    let clone = catalog::open(&env, || bench.options.clone(), "clone", false).await.unwrap();
    let is_flat = async || matches!(clone.flatten().await.unwrap(), Flattened::Done | Flattened::NoClone);
    if !is_flat().await {
        // Longer than the collector needs if there is no grace period.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(is_flat().await);
    }
    clone.snapshot("flat").await.unwrap();
    let of = async |name: &str| Side::of_snapshot(&disk_of(&bench, "clone", name).await);
    for k in 0..16 {
        for n in 0..16 {
            write(&clone, n * CHUNK, 100 + 16 * k + n, BLOCK).await;
        }
        let name = format!("c{k}");
        clone.snapshot(&name).await.unwrap();
        let listed = all(Diff::between(of("flat").await, of(&name).await)).await;
        let is_listed = |at: u64| listed.iter().any(|change| change.range.contains(&at));
        assert!((0..16).all(|n| is_listed(n * CHUNK)), "{name}: {listed:?}");
    }
    clone.close().await.unwrap();
    parent.close().await.unwrap();
}
