//! Many clients create, delete, list and open volumes with the same few names at once. Afterwards, the
//! invariants of names and volumes are checked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn::effect::Durability::Durable;
use cairn::store::fault::{Action, Fault, Rule};
use cairn::store::{Classes, MemoryStore, Store};
use cairn::volume::catalog::{self, Progress};
use cairn::volume::{DirtyBudget, Entropy, Environment, OpenError, Options, PageCache, Volume};
use futures::future::join_all;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

use super::bench::{MIB, read};

pub(crate) const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const CLIENTS: u64 = 16;
/// Bytes of a block. Each client writes its own block.
const BLOCK: u64 = 4096;

/// The last value that each client flushed, by volume and client.
type Flushed = Mutex<BTreeMap<Uuid, BTreeMap<u64, u8>>>;

fn environment(store: Arc<dyn Store>, seed: u64) -> Environment {
    Environment {
        store: Classes::one(store),
        cache: PageCache::new(MIB, MIB),
        budget: DirtyBudget::new(16 * MIB),
        entropy: Entropy::seeded(seed),
        wall_clock: Arc::new(|| 1_800_000_000),
    }
}

/// How a crowd behaves.
#[derive(Clone, Copy)]
pub(crate) struct Manners {
    pub(crate) seed: u64,
    /// Number of actions of each client.
    pub(crate) rounds: u32,
    /// One in this many actions is dropped in the middle, as if its process had died; 0 for none.
    pub(crate) dies_once_in: u32,
}

struct Client {
    number: u64,
    env: Environment,
    options: Options,
    random: SmallRng,
}

impl Client {
    fn new(store: Arc<dyn Store>, number: u64, seed: u64) -> Self {
        let options = Options {
            holder_name: format!("client {number}"),
            lease_ttl: Duration::from_secs(2),
            head_interval: Duration::from_millis(1),
            ..Options::default()
        };
        let seed = seed * 1000 + number;
        Self { number, env: environment(store, seed), options, random: SmallRng::seed_from_u64(seed) }
    }

    async fn act(&mut self, flushed: &Flushed) {
        let name = NAMES[self.random.random_range(0..NAMES.len())];
        match self.random.random_range(0..8) {
            0 | 1 => {
                let created =
                    catalog::create(&self.env, &self.options, name, MIB, catalog::ChunkBytes(MIB)).await;
                expected(created.map(drop), |e| matches!(e, OpenError::Exists(_) | OpenError::Contended(_)));
            }
            2 | 3 => {
                let deleted = catalog::delete(&self.env, &self.options, name, false).await;
                expected(deleted, |e| matches!(e, OpenError::NoSuchVolume(_) | OpenError::Held { .. }));
            }
            4 => {
                let listed = catalog::volumes(&self.env).await.expect("a list is never refused");
                for listed in listed {
                    let error = listed.found.err();
                    assert!(error.as_deref().is_none_or(|e| matches!(e, OpenError::Deleting)), "{error:?}");
                }
                catalog::unnamed(&self.env).await.expect("a list is never refused");
            }
            _ => self.open(name, flushed).await,
        }
    }

    async fn open(&mut self, name: &str, flushed: &Flushed) {
        let opened = match catalog::resolve(&self.env, name).await {
            Ok(id) => Volume::open(&self.env, self.options.clone(), id, false).await,
            Err(error) => Err(error),
        };
        let volume = match opened {
            Ok(volume) => volume,
            Err(error) => {
                return expected(Err(error), |e| {
                    matches!(
                        e,
                        OpenError::NoSuchVolume(_)
                            | OpenError::Held { .. }
                            | OpenError::Lost(_)
                            | OpenError::Deleting
                            | OpenError::Incomplete { .. }
                    )
                });
            }
        };
        let stamp = self.random.random();
        let data = Bytes::from(vec![stamp; usize::try_from(BLOCK).unwrap()]);
        let wrote = volume.write(self.number * BLOCK, data, Durable).await;
        if wrote.is_ok() {
            flushed.lock().entry(volume.id()).or_default().insert(self.number, stamp);
            drop(volume.close().await);
        }
        volume.abandon().await;
    }
}

fn expected(result: Result<(), OpenError>, allowed: impl Fn(&OpenError) -> bool) {
    if let Err(error) = result {
        assert!(allowed(&error), "{error}");
    }
}

/// Runs a crowd of clients. Each uses its own view of one store, and the result is checked through `quiet`.
pub(crate) async fn crowd(store: impl Fn(u64) -> Arc<dyn Store>, quiet: Arc<dyn Store>, manners: Manners) {
    let flushed = Flushed::default();
    join_all((0..CLIENTS).map(|number| {
        let (store, flushed) = (store(number), &flushed);
        async move {
            let mut client = Client::new(store, number, manners.seed);
            for _ in 0..manners.rounds {
                let dies = manners.dies_once_in > 0 && client.random.random_ratio(1, manners.dies_once_in);
                let patience = Duration::from_millis(client.random.random_range(0..400));
                if dies {
                    drop(tokio::time::timeout(patience, client.act(flushed)).await);
                } else {
                    client.act(flushed).await;
                }
            }
        }
    }))
    .await;
    check(quiet, &flushed.into_inner(), manners).await;
}

/// Checks that every volume with flushed data has a name or is being deleted, and that every name is bound to
/// a complete volume.
async fn check(store: Arc<dyn Store>, flushed: &BTreeMap<Uuid, BTreeMap<u64, u8>>, manners: Manners) {
    let seed = manners.seed;
    assert!(flushed.len() >= NAMES.len(), "seed {seed}: only {} volumes were ever written", flushed.len());
    let env = environment(store, u64::MAX);
    let options = Options { lease_ttl: Duration::from_secs(2), ..Options::default() };
    let unnamed = catalog::unnamed(&env).await.unwrap();
    for volume in &unnamed {
        let live = matches!(volume.progress, Progress::Unbound | Progress::Unknown(_));
        let lost = live && flushed.contains_key(&volume.volume);
        assert!(!lost, "seed {seed}: flushed data without a name: {volume:?}");
    }
    assert!(manners.dies_once_in > 0 || unnamed.is_empty(), "seed {seed}: nobody died: {unnamed:?}");
    for listed in catalog::volumes(&env).await.unwrap() {
        let info = match listed.found {
            Ok(info) => info,
            Err(error) => {
                assert!(matches!(&*error, OpenError::Deleting), "seed {seed}: {}: {error}", listed.name);
                assert!(manners.dies_once_in > 0, "seed {seed}: nobody died");
                continue;
            }
        };
        let volume = Volume::open(&env, options.clone(), info.volume, true).await.expect("it is whole");
        for (client, stamp) in flushed.get(&info.volume).into_iter().flatten() {
            let found = read(&volume, client * BLOCK, BLOCK).await;
            assert!(found.iter().all(|byte| byte == stamp), "seed {seed}: {info:?}: client {client}");
        }
        volume.close().await.unwrap();
    }
    // Interrupted creations and deletions can be removed.
    for volume in unnamed {
        catalog::delete_by_id(&env, &options, volume.volume, true).await.unwrap();
    }
    for name in NAMES {
        match catalog::delete(&env, &options, name, true).await {
            Ok(()) | Err(OpenError::NoSuchVolume(_)) => {}
            Err(error) => panic!("seed {seed}: {name}: {error}"),
        }
    }
    assert_eq!(catalog::unnamed(&env).await.unwrap().len(), 0);
}

/// Runs a crowd over a store in memory. Each request takes a different time.
async fn in_memory(manners: Manners) {
    let memory = MemoryStore::new();
    let slow = |number: u64| -> Arc<dyn Store> {
        let fault = Fault::new(Arc::new(memory.clone()), manners.seed * 100 + number);
        let between = (Duration::ZERO, Duration::from_millis(40));
        fault.add(Rule::new(Action::Delay(between.0, between.1)));
        fault.add(Rule::new(Action::DelayAnswer(between.0, between.1)).probability(0.5));
        Arc::new(fault)
    };
    crowd(slow, Arc::new(memory.clone()), manners).await;
}

#[tokio::test(start_paused = true)]
async fn sixteen_clients_on_four_names_leave_every_volume_with_its_name() {
    for seed in 1..=6 {
        in_memory(Manners { seed, rounds: 40, dies_once_in: 0 }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_volume_keeps_its_name_when_every_fifth_action_is_cut_short() {
    for seed in 101..=106 {
        in_memory(Manners { seed, rounds: 40, dies_once_in: 5 }).await;
    }
}
