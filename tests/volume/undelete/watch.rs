//! How long a deleted volume is kept: never shorter than its head says, whatever the clocks of the gateways
//! show, and not much longer while one of them runs.

use cairn::volume::catalog::Watch;
use tokio::time::{Instant, advance};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// A gateway that looks at deleted volumes, with a time of day of its own.
struct Watcher {
    env: Environment,
    watch: Watch,
}

impl Watcher {
    fn new(bench: &Bench, wall_seconds: u64) -> Self {
        let env = Environment { wall_clock: Arc::new(move || wall_seconds), ..env(bench) };
        Self { env, watch: Watch::default() }
    }

    /// Looks at the volumes. Returns whether one was deleted for good.
    async fn looks(&mut self, bench: &Bench, volumes: &[Uuid]) -> bool {
        !self.watch.look(&self.env, &bench.options, volumes).await.is_empty()
    }
}

#[tokio::test(start_paused = true)]
async fn no_clock_shortens_the_time() {
    let (bench, id) = filled().await;
    set_aside(&bench, "disk").await.unwrap();
    let begun = Instant::now();
    let mut watchers = [0, 1 << 33, u64::MAX].map(|wall_seconds| Watcher::new(&bench, wall_seconds));
    let mut looks = 0;
    let ended_after = loop {
        advance(HOUR / 3).await;
        // One of them restarts each hour, and has seen nothing then.
        if looks % 3 == 0 {
            watchers[2].watch = Watch::default();
        }
        if watchers[looks % 3].looks(&bench, &[id]).await {
            break begun.elapsed();
        }
        looks += 1;
        assert_eq!(kept(&bench).await, owned("disk", id));
    };
    assert!(ended_after >= DAY, "{ended_after:?}");
    assert!(ended_after <= DAY + 3 * HOUR, "{ended_after:?}");
    only_free_names(&bench);
}

/// A gateway that looks once has not seen any time pass, however late it comes.
#[tokio::test(start_paused = true)]
async fn nobody_counts_time_that_they_have_not_seen() {
    let (bench, id) = filled().await;
    set_aside(&bench, "disk").await.unwrap();
    for _ in 0..10 {
        advance(10 * DAY).await;
        assert!(!Watcher::new(&bench, u64::MAX).looks(&bench, &[id]).await);
    }
    assert_eq!(kept(&bench).await, owned("disk", id));
    undelete(&bench, id, None).await.unwrap();
    holds(&bench, "disk").await;
}

/// However often volumes are created and deleted, a kept one is asked for six times an hour. The time between
/// is counted nevertheless.
#[tokio::test(start_paused = true)]
async fn looks_in_quick_succession_ask_once_and_count_all_the_time() {
    let (bench, id) = filled().await;
    set_aside(&bench, "disk").await.unwrap();
    let mut watcher = Watcher::new(&bench, 0);
    bench.memory.reset_tallies();
    for _ in 0..60 {
        assert!(!watcher.looks(&bench, &[id]).await);
        advance(HOUR / 60).await;
    }
    assert_eq!(bench.gets("/head").requests, 6);
    let counted = bench.puts("/head").requests;
    assert!((1..=6).contains(&counted), "{counted}");
    let VolumeState::Kept(kept) = head(&bench, id).state else { panic!("it is kept") };
    assert!(u64::from(kept.seconds_left) < (DAY - HOUR / 2).as_secs(), "{kept:?}");
    // Another volume is asked for at once.
    let other = create(&bench, "other").await.unwrap();
    set_aside(&bench, "other").await.unwrap();
    bench.memory.reset_tallies();
    watcher.looks(&bench, &[id, other]).await;
    watcher.looks(&bench, &[id, other]).await;
    assert_eq!(bench.gets(&format!("{other}/head")).requests, 1);
}

/// Whoever deletes a volume again has the whole time once more.
#[tokio::test(start_paused = true)]
async fn the_time_begins_anew_with_each_deletion() {
    let (bench, id) = filled().await;
    let mut watcher = Watcher::new(&bench, 0);
    for _ in 0..3 {
        set_aside(&bench, "disk").await.unwrap();
        for _ in 0..23 {
            assert!(!watcher.looks(&bench, &[id]).await);
            advance(HOUR).await;
        }
        undelete(&bench, id, None).await.unwrap();
    }
    assert!(!watcher.looks(&bench, &[id]).await, "a volume in use is left alone");
    advance(10 * DAY).await;
    assert!(!watcher.looks(&bench, &[id]).await, "a volume in use is left alone");
    holds(&bench, "disk").await;
}

/// The look hangs at any request of the deletion for good, and somebody brings the volume back.
#[tokio::test(start_paused = true)]
async fn what_is_brought_back_at_the_last_moment_stays() {
    let mut stayed = 0;
    for operation in [Operation::Get, Operation::Put] {
        for nth in 0.. {
            let (mut bench, id) = filled().await;
            bench.options.undelete = HOUR;
            set_aside(&bench, "disk").await.unwrap();
            let mut watcher = Watcher::new(&bench, 0);
            assert!(!watcher.looks(&bench, &[id]).await);
            advance(2 * HOUR).await;
            let gate = Gate::new();
            bench.fault.add(Rule::new(Action::Hold(gate.clone())).on(operation).skip(nth));
            let beside = bench.beside();
            let volumes = [id];
            let (mut look, mut is_over) = (Box::pin(watcher.looks(&bench, &volumes)), false);
            if let Some(deleted) = hung(&mut look, &gate).await {
                assert!(deleted && nth > 0, "{operation:?}");
                break;
            }
            match undelete(&beside, id, None).await {
                Ok(_) => {}
                Err(OpenError::NotDeleted(_)) => is_over = true,
                Err(error) => panic!("{operation:?} {nth}: {error}"),
            }
            gate.release();
            assert_eq!(look.await, is_over, "{operation:?} {nth}");
            if is_over {
                only_free_names(&beside);
            } else {
                stayed += 1;
                assert_eq!(live(&beside).await, owned("disk", id));
                holds(&beside, "disk").await;
            }
        }
    }
    assert!(stayed > 1, "{stayed} volumes were brought back in time");
}

/// A volume that was deleted and that a clone needs stays until the clone is gone for good, deleted or not.
#[tokio::test(start_paused = true)]
async fn a_deleted_volume_stays_while_clones_need_it() {
    let (mut bench, id) = filled().await;
    bench.options.undelete = HOUR;
    let volume = open(&bench, "disk").await;
    volume.snapshot("monday").await.unwrap();
    let clone = catalog::clone(&volume, "monday", "copy").await.unwrap().volume;
    volume.close().await.unwrap();
    let mut watcher = Watcher::new(&bench, 0);
    let refused = catalog::delete(&env(&bench), &bench.options, "disk", true).await;
    assert!(matches!(refused, Err(OpenError::HasClones { .. })), "{refused:?}");
    set_aside(&bench, "disk").await.expect("nothing is deleted yet");
    for _ in 0..5 {
        advance(HOUR).await;
        assert!(!watcher.looks(&bench, &[id]).await);
    }
    holds(&bench, "copy").await;
    set_aside(&bench, "copy").await.unwrap();
    let refused = catalog::delete_by_id(&env(&bench), &bench.options, id, true).await;
    let Err(OpenError::HasClones { clones }) = refused else { panic!("{refused:?}") };
    assert_eq!(clones.names, [format!("{clone} (deleted copy)")]);
    undelete(&bench, clone, None).await.unwrap();
    holds(&bench, "copy").await;
    set_aside(&bench, "copy").await.unwrap();
    for _ in 0..5 {
        advance(HOUR).await;
        watcher.looks(&bench, &[id, clone]).await;
    }
    only_free_names(&bench);
}

/// A deletion for good that nobody finishes is finished by a gateway, as long as it finds the volume.
#[tokio::test(start_paused = true)]
async fn a_deletion_for_good_that_was_cut_short_is_finished() {
    let (bench, id) = filled().await;
    bench.fault.add(Rule::new(Action::FailBefore(Failure::Rejected)).on(Operation::Delete));
    catalog::delete(&env(&bench), &bench.options, "disk", false).await.expect_err("it is cut short");
    bench.fault.clear();
    let mut watcher = Watcher::new(&bench, 0);
    assert!(!watcher.looks(&bench, &[id]).await, "somebody may be about to finish it");
    advance(HOUR).await;
    assert!(watcher.looks(&bench, &[id]).await);
    only_free_names(&bench);
}

/// A look that fails at any request deletes nothing that should stay, and a later one goes on while there is
/// a head. An identity without a head may be that of a volume that is being made, so it is left to people.
#[tokio::test(start_paused = true)]
async fn a_look_that_is_cut_short_anywhere_is_repeated() {
    for effect in [Action::FailBefore(Failure::Rejected), Action::FailAfter(Failure::Rejected)] {
        for requests in 0.. {
            let (mut bench, id) = filled().await;
            bench.options.undelete = HOUR;
            set_aside(&bench, "disk").await.unwrap();
            let mut watcher = Watcher::new(&bench, 0);
            assert!(!watcher.looks(&bench, &[id]).await);
            advance(2 * HOUR).await;
            bench.fault.add(Rule::new(effect.clone()).skip(requests).times(1));
            bench.fault.add(Rule::new(Action::FailBefore(Failure::Rejected)).skip(requests + 1));
            let ended = watcher.looks(&bench, &[id]).await;
            bench.fault.clear();
            let mut looks = 0;
            while !ended && bench.keys("/head").len() == 1 {
                advance(2 * HOUR).await;
                watcher.looks(&bench, &[id]).await;
                looks += 1;
                assert!(looks < 5, "{requests}");
            }
            for unnamed in catalog::unnamed(&env(&bench)).await.unwrap() {
                delete_for_good(&bench, unnamed.volume).await;
            }
            only_free_names(&bench);
            if ended {
                break;
            }
        }
    }
}
