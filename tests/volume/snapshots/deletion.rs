//! A deleted snapshot takes with it what nothing else references, and nothing more.

use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::volume::SnapshotError;

use super::super::bench::{MIB, pattern};
use super::super::engine::{Model, Numbers, fill};
use super::super::stored::Kept;
use super::{COLLECTED, KIB, change, expect, has, small_bench};

/// All orders of so many things.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(count - 1);
    let with_last = |order: &Vec<usize>, place: usize| {
        let mut order = order.clone();
        order.insert(place, count - 1);
        order
    };
    shorter.iter().flat_map(|order| (0..count).map(move |place| with_last(order, place))).collect()
}

/// How the gateway ends between two deletions.
#[derive(Clone, Copy, Debug)]
enum End {
    Goes,
    Closes,
    Crashes,
}

/// The first, one in the middle, and the last, whose root may be the current one.
#[tokio::test(start_paused = true)]
async fn whatever_the_order_in_which_snapshots_go_the_others_stay_and_nothing_is_left() {
    for (number, order) in orders(4).into_iter().enumerate() {
        let end = [End::Goes, End::Closes, End::Crashes][number % 3];
        let is_current = number % 2 == 0;
        let mut bench = small_bench().await;
        let mut volume = bench.open().await;
        let (mut model, mut numbers) = (Model::new(0, MIB), Numbers(number as u64 + 1));
        fill(&volume, &mut model).await;
        let mut contents = Vec::new();
        for n in 0..4 {
            change(&volume, &mut model, &mut numbers).await;
            volume.checkpoint().await.unwrap();
            change(&volume, &mut model, &mut numbers).await;
            volume.snapshot(&format!("s{n}")).await.unwrap();
            contents.push([model.clone()]);
        }
        if !is_current {
            change(&volume, &mut model, &mut numbers).await;
            volume.checkpoint().await.unwrap();
        }
        let mut left: Vec<usize> = (0..4).collect();
        for gone in order.clone() {
            let when = format!("{end:?}, current {is_current}, {gone} of {order:?}");
            volume.delete_snapshot(&format!("s{gone}")).await.unwrap();
            left.retain(|n| *n != gone);
            match end {
                End::Goes => {}
                End::Closes => {
                    volume.close().await.unwrap();
                    volume = bench.open().await;
                }
                End::Crashes => {
                    volume.flush().await.unwrap();
                    volume.abandon().await;
                    volume = bench.open().await;
                }
            }
            tokio::time::sleep(COLLECTED).await;
            let kept = Kept::of(&bench);
            let names: Vec<String> = left.iter().map(|n| format!("s{n}")).collect();
            assert_eq!(kept.names(), names, "{when}");
            kept.assert_exact(&bench);
            for n in &left {
                expect(&bench, &format!("s{n}"), &contents[*n], &when).await;
            }
            model.check(&volume, &when).await;
            // The root of the last snapshot stays the current one until that snapshot is deleted.
            if !is_current || !left.contains(&3) {
                change(&volume, &mut model, &mut numbers).await;
                volume.checkpoint().await.unwrap();
            }
        }
        tokio::time::sleep(COLLECTED).await;
        Kept::of(&bench).assert_exact(&bench);
        model.check(&volume, "after all").await;
        volume.close().await.unwrap();
    }
}

/// Objects of a deleted snapshot are kept for the grace period, across a restart.
#[tokio::test(start_paused = true)]
async fn the_grace_period_begins_when_the_snapshot_is_deleted() {
    let mut bench = small_bench().await;
    bench.options.deletion_grace = Duration::from_secs(1000);
    let volume = bench.open().await;
    let at = |bench: &super::Bench, seconds: u64| {
        let now = 1_800_000_000 + seconds;
        bench.now_seconds.store(now, std::sync::atomic::Ordering::Relaxed);
    };
    volume.write(0, pattern(1, 64 << 10), Volatile).await.unwrap();
    volume.snapshot("a").await.unwrap();
    let old = bench.keys("/chunk/");
    volume.write(0, pattern(2, 64 << 10), Volatile).await.unwrap();
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(Duration::from_secs(5000)).await;
    at(&bench, 5000);
    assert_eq!((old.len(), bench.keys("/chunk/").len()), (1, 2));
    volume.delete_snapshot("a").await.unwrap();
    volume.close().await.unwrap();
    tokio::time::sleep(Duration::from_secs(400)).await;
    at(&bench, 5400);
    let volume = bench.open().await;
    tokio::time::sleep(Duration::from_secs(550)).await;
    assert!(bench.keys("/chunk/").contains(&old[0]), "for 950 of 1000 seconds");
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(!bench.keys("/chunk/").contains(&old[0]), "for no longer");
    drop(volume);
}

/// After a restoration, a snapshot has two successors. Both may need what neither of their own successors has.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_was_restored_goes_and_its_successors_keep_what_they_share() {
    let mut bench = small_bench().await;
    let volume = bench.open().await;
    let mut model = Model::new(0, MIB);
    model.write(&volume, 0, 1, 64 << 10).await;
    model.write(&volume, 64 * KIB, 2, 64 << 10).await;
    model.write(&volume, 512 * KIB, 3, 4096).await;
    volume.snapshot("restored").await.unwrap();
    let restored = model.clone();
    model.write(&volume, 64 * KIB, 4, 64 << 10).await;
    volume.snapshot("left").await.unwrap();
    let left = [model.clone()];
    volume.restore("restored").await.unwrap();
    let volume = bench.open().await;
    model = restored;
    model.check(&volume, "restored").await;
    model.write(&volume, 128 * KIB, 5, 64 << 10).await;
    volume.snapshot("right").await.unwrap();
    let right = [model.clone()];
    // From here on only the snapshots have what the restored one had.
    model.write(&volume, 0, 6, 64 << 10).await;
    model.write(&volume, 64 * KIB, 7, 64 << 10).await;
    model.write(&volume, 512 * KIB, 8, 4096).await;
    volume.checkpoint().await.unwrap();
    for (gone, stay) in
        [("restored", vec![("left", &left), ("right", &right)]), ("left", vec![("right", &right)])]
    {
        volume.delete_snapshot(gone).await.unwrap();
        tokio::time::sleep(COLLECTED).await;
        Kept::of(&bench).assert_exact(&bench);
        for (name, models) in stay {
            expect(&bench, name, models, gone).await;
        }
        model.check(&volume, gone).await;
    }
    let error = volume.restore("left").await.expect_err("it is gone");
    assert!(matches!(error, SnapshotError::NoSuchSnapshot(_)), "{error}");
    assert!(has(&volume, &[model]).await, "and the volume is still open");
}
