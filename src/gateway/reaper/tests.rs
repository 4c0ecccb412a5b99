//! Tests of when deleted volumes are deleted for good, on a store in memory with a paused clock.

use std::time::Duration;

use super::*;
use crate::gateway::{Census, OpenVolumes, Options};
use crate::metrics::Metrics;
use crate::store::fault::{Action, Failure, Rule};
use crate::store::{Classes, Fault, MemoryStore, Operation};
use crate::volume::{DirtyBudget, Entropy, PageCache, catalog};

const HOUR: Duration = Duration::from_secs(3600);

fn environment(store: &MemoryStore, seed: u64) -> Environment {
    Environment {
        store: Classes::one(Arc::new(store.clone())),
        cache: PageCache::new(1 << 20, 1 << 20),
        budget: DirtyBudget::new(16 << 20),
        entropy: Entropy::seeded(seed),
        wall_clock: Arc::new(|| 1_700_000_000),
    }
}

/// A gateway with a census over a store in which one volume is in use, and one is deleted.
async fn start(store: &MemoryStore, interval: Option<Duration>) -> (Arc<Census>, Arc<Reaper>) {
    let (env, options) = (environment(store, 1), volume::Options::default());
    for name in ["used", "deleted"] {
        let chunk = catalog::ChunkBytes(4 << 20);
        catalog::create(&env, &options, name, 1 << 30, chunk).await.unwrap();
    }
    catalog::set_aside(&env, &options, "deleted", false).await.unwrap();
    let how = Options { volume: options.clone(), idle_timeout: HOUR, maximum_open: 2 };
    let volumes = OpenVolumes::new(env.clone(), how, Metrics::new());
    let reaper = Reaper::new(env.clone(), options);
    let census = Census::start(env, volumes, Metrics::new(), Arc::clone(&reaper), interval);
    (census, reaper)
}

async fn left(store: &MemoryStore) -> (usize, usize) {
    let env = environment(store, 2);
    (catalog::volumes(&env).await.unwrap().len(), catalog::deleted(&env).await.unwrap().len())
}

#[tokio::test(start_paused = true)]
async fn a_deleted_volume_is_gone_after_its_time_and_costs_no_list() {
    let store = MemoryStore::new();
    let (census, reaper) = start(&store, Some(HOUR)).await;
    tokio::time::sleep(23 * HOUR).await;
    assert_eq!(left(&store).await, (1, 1));
    store.reset_tallies();
    tokio::time::sleep(HOUR / 2).await;
    let lists = store.tally(Operation::List, |_| true).requests;
    assert!(lists <= 2, "{lists} LISTs in half an hour, as without deleted volumes");
    tokio::time::sleep(4 * HOUR).await;
    assert_eq!(left(&store).await, (1, 0));
    let keys = store.objects().into_keys().filter(|key| !key.starts_with("name/"));
    assert_eq!(keys.filter(|key| key.starts_with("identity/")).count(), 1);
    census.stop().await;
    reaper.stop().await;
}

/// Without a census nobody says which volumes have no name.
#[tokio::test(start_paused = true)]
async fn without_a_census_a_deleted_volume_stays() {
    let store = MemoryStore::new();
    let (census, reaper) = start(&store, None).await;
    tokio::time::sleep(100 * HOUR).await;
    assert_eq!(left(&store).await, (1, 1));
    census.stop().await;
    reaper.stop().await;
}

/// All its requests are of the class of background work, which leaves places for those of clients.
#[tokio::test(start_paused = true)]
async fn it_takes_no_place_from_requests_that_clients_wait_for() {
    let store = MemoryStore::new();
    let options = volume::Options { undelete: HOUR, ..volume::Options::default() };
    let env = environment(&store, 1);
    let chunk = catalog::ChunkBytes(4 << 20);
    let deleted = catalog::create(&env, &options, "deleted", 1 << 30, chunk).await.unwrap().volume;
    catalog::set_aside(&env, &options, "deleted", false).await.unwrap();
    let others = Fault::new(Arc::new(store.clone()), 1);
    others.add(Rule::new(Action::FailBefore(Failure::Rejected)));
    let classes = Classes { bulk: Arc::new(store.clone()), ..Classes::one(Arc::new(others)) };
    let reaper = Reaper::new(Environment { store: classes, ..environment(&store, 3) }, options);
    for _ in 0..4 {
        reaper.look(vec![deleted]);
        tokio::time::sleep(HOUR).await;
    }
    assert_eq!(left(&store).await, (0, 0));
    assert_eq!(store.objects().into_keys().filter(|key| !key.starts_with("name/")).count(), 0);
    reaper.stop().await;
}
