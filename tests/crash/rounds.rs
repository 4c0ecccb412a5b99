//! Rounds on one volume: load, a crash, recovery, and the check of the recovered data.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use super::ends::{CRASHES, End, Serving, TAKEOVERS, end};
use super::trap::{PLACES, Trap};
use crate::checker::cells::{CELL_LEN, Id, Layout, identify};
use crate::checker::history::History;
use crate::checker::prefix;
use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::load::{Ledger, Load};
use crate::support::process::{command, run};

const SIZE: u64 = 16 << 20;
const CHUNK: u64 = 256 << 10;
/// Number of rounds, unless a run requests more.
const ROUNDS: u64 = 15;

pub(super) fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// A gateway that commits, folds and deletes much more often than by default.
fn setup(store: &Store, endpoint: &str) -> Setup {
    let settings = [
        ("AWS_ENDPOINT_URL", endpoint),
        ("CAIRN_VOLUMES__CHUNK_SIZE", "256KiB"),
        ("CAIRN_CACHE__CLEAN", "2MiB"),
        ("CAIRN_CACHE__DIRTY", "8MiB"),
        ("CAIRN_COMMIT__MAX_AGE", "200ms"),
        ("CAIRN_COMMIT__MAX_BYTES", "1MiB"),
        ("CAIRN_JOURNAL__MAX_BYTES", "2MiB"),
        ("CAIRN_JOURNAL__MAX_AGE", "1s"),
        ("CAIRN_LEASE__HEAD_INTERVAL", "100ms"),
        ("CAIRN_STORE__DELETION_GRACE", "0s"),
        ("CAIRN_STORE__REQUEST_TIMEOUT", "2s"),
        ("CAIRN_STORE__RETRY_BASE", "10ms"),
        ("CAIRN_STORE__RETRY_CAP", "200ms"),
    ];
    let setup = Setup::new(store).create("disk", "16MiB").tcp();
    settings.into_iter().fold(setup, |setup, (name, value)| setup.env(name, value))
}

/// Returns the content of every cell. libnbd's copier reads it, which shares no code with the clients that
/// wrote.
async fn image(gateway: &Gateway) -> Vec<Id> {
    let directory = tempfile::tempdir().expect("a directory for the image");
    let file = directory.path().join("image");
    run(command(["nbdcopy", &gateway.uri("disk")]).arg(&file)).await;
    let bytes = std::fs::read(&file).expect("nbdcopy wrote it");
    assert_eq!(bytes.len() as u64, SIZE);
    (0..).zip(bytes.chunks_exact(CELL_LEN)).map(|(cell, bytes)| identify(bytes, cell)).collect()
}

async fn rounds(name: &str, ends: &'static [End]) {
    let (rounds, seed) = (asked("CAIRN_CRASH_ROUNDS", ROUNDS), asked("CAIRN_CRASH_SEED", 1));
    let mut random = SmallRng::seed_from_u64(seed);
    let layout = Layout { size: SIZE, chunk: CHUNK, windows: std::iter::once(0..SIZE).collect() };
    let history = Mutex::new(History::new(layout.cells()));
    let ledger = Arc::new(Ledger { layout, history, answers: watch::channel(0).0 });
    let mut store = Store::minio().await;
    let proxy = store.proxy().await;
    let endpoint = proxy.endpoint();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut gateway = setup(&store, &endpoint).start().await;
    for round in 1..=rounds {
        proxy.pass();
        let found = image(&gateway).await;
        let epoch = u32::try_from(round).expect("rounds are few");
        {
            let mut history = ledger.history.lock();
            let before = history.newest();
            if let Err(why) = prefix::check(&history.epochs[&before], &found) {
                panic!("after round {before} of seed {seed}: {why}");
            }
            history.begin(epoch, Arc::new(found));
            history.epochs.retain(|number, _| *number == epoch);
            history.openings.clear();
        }
        let place = PLACES[random.random_range(0..PLACES.len())];
        let mut trap = Trap::set(&proxy, place, random.random_range(0..6), random.random());
        let load = Load::start(&ledger, &gateway.uri("disk"), epoch, random.random()).await;
        let what = format!("round {round}: {} of {}", place.0, place.1);
        trap.springs(&what, &gateway).await;
        let strike = ends[random.random_range(0..ends.len())];
        *counts.entry(format!("{strike:?} at {} {}", place.0, place.1)).or_default() += 1;
        let (serving, next) = (Serving { gateway, load, epoch }, setup(&store, &endpoint));
        gateway = end(strike, serving, next, &mut store, &proxy, &ledger).await;
    }
    proxy.pass();
    let found = image(&gateway).await;
    let history = ledger.history.lock();
    prefix::check(&history.epochs[&history.newest()], &found).unwrap();
    println!("{name}: seed {seed}, {rounds} rounds, {} answers", *ledger.answers.borrow());
    for (what, count) in counts {
        println!("{count:5} {what}");
    }
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn no_flushed_write_is_lost_whichever_process_is_killed() {
    rounds("crashes", &CRASHES).await;
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn no_flushed_write_is_lost_when_gateways_take_over_from_each_other() {
    rounds("takeovers", &TAKEOVERS).await;
}
