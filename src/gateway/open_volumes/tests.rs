//! Tests of when volumes are opened and closed, on a store in memory with a paused clock.

use bytes::Bytes;

use super::*;
use crate::effect::Durability::Volatile;
use crate::gateway::OpenSnapshots;
use crate::gateway::catalogue::Catalogue;
use crate::gateway::exports::VolumeExports;
use crate::gateway::status::{GatewayStatus, Serving};
use crate::gateway::store_check::StoreCheck;
use crate::gateway::{Fate, Gateway as _, IfHeld};
use crate::metrics::{Label as _, StoreMetrics, StoreOutcome};
use crate::protocol::Error as Value;
use crate::server::{Exports as _, OpenError as Refusal, Segment};
use crate::store::fault::{Action, Failure as Refused, Rule};
use crate::store::{Classes, Fault, Instrument, MemoryStore, Operation};
use crate::volume::{DirtyBudget, Entropy, PageCache};

const IDLE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(600);
const SIZE: u64 = 1 << 30;

struct Gateway {
    volumes: Arc<OpenVolumes>,
    snapshots: Arc<OpenSnapshots>,
    exports: VolumeExports,
    metrics: Metrics,
}

fn environment(store: &MemoryStore, seed: u64) -> Environment {
    Environment {
        store: crate::store::Classes::one(Arc::new(store.clone())),
        cache: PageCache::new(16 << 20, 1 << 20),
        budget: DirtyBudget::new(16 << 20),
        entropy: Entropy::seeded(seed),
        wall_clock: Arc::new(|| 1_700_000_000),
    }
}

/// Creates a gateway on a store. The number distinguishes it from other gateways.
fn gateway(store: &MemoryStore, number: u64, default: Option<&str>) -> Gateway {
    gateway_on(environment(store, number), number, default)
}

fn gateway_on(env: Environment, number: u64, default: Option<&str>) -> Gateway {
    let volume = volume::Options { holder_name: format!("gateway {number}"), ..volume::Options::default() };
    let options = Options { volume: volume.clone(), idle_timeout: IDLE, maximum_open: 2 };
    let metrics = Metrics::new();
    let volumes = OpenVolumes::new(env.clone(), options, metrics.clone());
    let snapshots = OpenSnapshots::new(env.clone(), volume, metrics.clone(), Arc::clone(&volumes));
    let catalogue = Arc::new(Catalogue::new(env, Duration::from_secs(5)));
    let default = default.map(str::to_owned);
    let exports = VolumeExports::new(Arc::clone(&volumes), Arc::clone(&snapshots), catalogue, default);
    Gateway { volumes, snapshots, exports, metrics }
}

async fn store_of(names: &[&str]) -> MemoryStore {
    let store = MemoryStore::new();
    let env = environment(&store, 99);
    for name in names {
        catalog::create(&env, &volume::Options::default(), name, SIZE, catalog::ChunkBytes(4 << 20))
            .await
            .unwrap();
    }
    store
}

/// The interface of a gateway for its admin server, over the store of `env`.
fn serving(gateway: &Gateway, env: Environment) -> Arc<GatewayStatus> {
    let catalogue = Arc::new(Catalogue::new(env.clone(), Duration::ZERO));
    let exports = VolumeExports::new(
        Arc::clone(&gateway.volumes),
        Arc::clone(&gateway.snapshots),
        Arc::clone(&catalogue),
        None,
    );
    let server = server::Server::new(Arc::new(exports), server::Options::default(), Metrics::new().server());
    let volumes = Arc::clone(&gateway.volumes);
    let status = GatewayStatus::starting();
    let reaper = super::super::Reaper::new(env.clone(), volume::Options::default());
    status.serves(Serving {
        census: super::super::census::Census::start(env.clone(), volumes, Metrics::new(), reaper, None),
        connect: Vec::new(),
        store_check: StoreCheck::new(Arc::clone(&env.store.reads), Duration::ZERO),
        env,
        volumes: Arc::clone(&gateway.volumes),
        snapshots: Arc::clone(&gateway.snapshots),
        catalogue,
        server: Arc::new(server),
        options: volume::Options { holder_name: "admin".to_owned(), ..volume::Options::default() },
        chunk_bytes: 4 << 20,
    });
    status
}

async fn holder(store: &MemoryStore, name: &str) -> Option<String> {
    catalog::info(&environment(store, 98), name).await.unwrap().holder
}

#[tokio::test(start_paused = true)]
async fn describing_takes_no_lease_and_opening_does() {
    let store = store_of(&["a", "b"]).await;
    let gateway = gateway(&store, 1, None);
    let listed = gateway.exports.list().await.unwrap();
    assert_eq!(listed.iter().map(|e| &*e.name).collect::<Vec<_>>(), ["a", "b"]);
    let described = gateway.exports.describe("a").await.unwrap();
    assert_eq!((described.name.as_str(), described.size_bytes), ("a", SIZE));
    assert_eq!(holder(&store, "a").await, None);
    let export = gateway.exports.open("a").await.unwrap();
    assert_eq!(export.description(), described);
    assert_eq!(holder(&store, "a").await.as_deref(), Some("gateway 1"));
    assert_eq!(gateway.volumes.close_all(PATIENCE, Next::Unknown).await, Vec::<String>::new());
    assert_eq!(holder(&store, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn an_unused_volume_is_closed_and_reopened_on_request() {
    let store = store_of(&["a"]).await;
    let gateway = gateway(&store, 1, None);
    let first = gateway.exports.open("a").await.unwrap();
    let second = gateway.exports.open("a").await.unwrap();
    first.write(0, Bytes::from_static(b"kept"), Volatile).await.unwrap();
    drop(first);
    tokio::time::sleep(IDLE * 2).await;
    assert!(holder(&store, "a").await.is_some(), "the second still uses it");
    drop(second);
    let third = gateway.exports.open("a").await.unwrap();
    tokio::time::sleep(IDLE * 2).await;
    assert!(holder(&store, "a").await.is_some(), "it was used again in time");
    drop(third);
    while holder(&store, "a").await.is_some() {
        tokio::time::sleep(IDLE / 10).await;
    }
    assert!(!gateway.metrics.render().contains("volume=\"a\""), "its time series end");
    let again = gateway.exports.open("a").await.unwrap();
    assert_eq!(again.read(0, 4).await.unwrap(), [Segment::Data(Bytes::from_static(b"kept"))]);
}

#[tokio::test(start_paused = true)]
async fn concurrent_clients_share_one_volume() {
    let store = store_of(&["a"]).await;
    let gateway = gateway(&store, 1, None);
    let opened = futures::future::join_all((0..8).map(|_| gateway.exports.open("a"))).await;
    let exports: Vec<_> = opened.into_iter().collect::<Result<_, _>>().unwrap();
    exports[0].write(4096, Bytes::from_static(b"shared"), Volatile).await.unwrap();
    for export in &exports {
        assert_eq!(export.read(4096, 6).await.unwrap(), [Segment::Data(Bytes::from_static(b"shared"))]);
    }
    let info = catalog::info(&environment(&store, 98), "a").await.unwrap();
    assert_eq!(info.epoch, 1, "it was opened once");
}

#[tokio::test(start_paused = true)]
async fn a_configured_volume_stays_open_and_is_the_default() {
    let store = store_of(&["a", "b"]).await;
    let gateway = gateway(&store, 1, Some("a"));
    gateway.volumes.open_configured("a", false).await.unwrap();
    tokio::time::sleep(IDLE * 3).await;
    assert!(holder(&store, "a").await.is_some());
    assert_eq!(gateway.exports.open("").await.unwrap().description().name, "a");
    assert_eq!(gateway.exports.describe("").await.unwrap().name, "a");
}

#[tokio::test(start_paused = true)]
async fn a_volume_configured_later_stays_open_and_one_no_longer_configured_is_closed_when_unused() {
    let store = store_of(&["a"]).await;
    let gateway = gateway(&store, 1, None);
    let export = gateway.exports.open("a").await.unwrap();
    gateway.volumes.open_configured("a", false).await.unwrap();
    drop(export);
    tokio::time::sleep(IDLE * 3).await;
    assert!(holder(&store, "a").await.is_some(), "it stays");
    assert_eq!(catalog::info(&environment(&store, 98), "a").await.unwrap().epoch, 1, "it was opened once");

    let export = gateway.exports.open("a").await.unwrap();
    gateway.volumes.unpin("a");
    gateway.volumes.unpin("a");
    tokio::time::sleep(IDLE * 3).await;
    assert!(holder(&store, "a").await.is_some(), "it is in use");
    drop(export);
    while holder(&store, "a").await.is_some() {
        tokio::time::sleep(IDLE / 10).await;
    }
    gateway.volumes.open_configured("a", false).await.unwrap();
    assert!(holder(&store, "a").await.is_some());
    let nothing_left = gateway.volumes.nothing_left();
    tokio::pin!(nothing_left);
    assert!(futures::poll!(nothing_left.as_mut()).is_pending());
}

#[tokio::test(start_paused = true)]
async fn names_that_refer_to_nothing_are_unknown() {
    let store = store_of(&["a"]).await;
    let gateway = gateway(&store, 1, None);
    for name in ["", "b", "a/b", "../a", "A"] {
        let described = gateway.exports.describe(name).await.unwrap_err();
        assert!(matches!(&described, Refusal::Unknown(unknown) if unknown == name), "{described:?}");
        let opened = gateway.exports.open(name).await.map(|_| ()).unwrap_err();
        assert!(matches!(&opened, Refusal::Unknown(unknown) if unknown == name), "{opened:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_of_another_gateway_is_refused_and_the_holder_is_named() {
    let store = store_of(&["a"]).await;
    let (first, second) = (gateway(&store, 1, None), gateway(&store, 2, None));
    let _used = first.exports.open("a").await.unwrap();
    let refused = second.exports.open("a").await.map(|_| ()).unwrap_err();
    assert!(matches!(&refused, Refusal::Refused(why) if why.contains("gateway 1")), "{refused:?}");
    let configured = second.volumes.open_configured("a", false).await.unwrap_err();
    assert!(configured.to_string().contains("gateway 1"), "{configured}");
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_taken_over_answers_eshutdown_and_nothing_is_left() {
    let store = store_of(&["a"]).await;
    let (first, second) = (gateway(&store, 1, None), gateway(&store, 2, None));
    first.volumes.open_configured("a", false).await.unwrap();
    let export = first.exports.open("a").await.unwrap();
    second.volumes.open_configured("a", true).await.unwrap();
    export.write(0, Bytes::from_static(b"late"), Volatile).await.unwrap();
    let failure = export.flush().await.unwrap_err();
    assert_eq!(failure.error, Value::Shutdown, "{failure}");
    first.volumes.nothing_left().await;
    let refused = first.exports.open("a").await.map(|_| ()).unwrap_err();
    assert!(matches!(&refused, Refusal::Refused(why) if why.contains("stopped")), "{refused:?}");
    let failure = export.read(0, 1).await.unwrap_err();
    assert_eq!(failure.error, Value::Shutdown, "{failure}");
    let text = first.metrics.render();
    let counted = r#"cairn_request_errors_total{command="flush",errno="eshutdown",volume="a"} 1"#;
    assert!(text.contains(counted), "{text}");
}

#[tokio::test(start_paused = true)]
async fn it_is_ready_while_the_store_answers_and_no_configured_volume_is_lost() {
    let store = store_of(&["a", "b"]).await;
    let (first, second) = (gateway(&store, 1, None), gateway(&store, 2, None));
    first.volumes.open_configured("a", false).await.unwrap();
    let fault = Fault::new(Arc::new(store.clone()), 0);
    let env =
        Environment { store: crate::store::Classes::one(Arc::new(fault.clone())), ..environment(&store, 3) };
    let status = serving(&first, env);
    first.volumes.configure(&["a".to_owned(), "z".to_owned()]);
    assert_eq!(status.obstacles().await, ["volume \"z\" is not open"]);
    first.volumes.configure(&["a".to_owned()]);
    assert_eq!(status.obstacles().await, Vec::<String>::new());
    let _client = first.exports.open("a").await.unwrap();
    let names =
        |listed: Vec<catalog::Listed>| listed.into_iter().map(|listed| listed.name).collect::<Vec<_>>();
    assert_eq!(names(status.volumes().await.unwrap()), ["a", "b"]);
    let open = status.open_volumes();
    assert_eq!(open.iter().map(|open| (&*open.name, open.clients)).collect::<Vec<_>>(), [("a", 1)]);
    status.create("c", SIZE, None).await.unwrap();
    assert_eq!(status.volume("c").await.unwrap().chunk_bytes, 4 << 20);
    status.delete("b", IfHeld::Refuse, Fate::Kept).await.unwrap();
    assert_eq!(names(status.volumes().await.unwrap()), ["a", "c"]);
    store.reset_tallies();
    assert_eq!(status.obstacles().await, Vec::<String>::new());
    let requests = [Operation::Get, Operation::List].map(|it| store.tally(it, |_| true).requests);
    assert_eq!(requests, [1, 0], "a check is one GET");
    fault.add(Rule::new(Action::FailBefore(Refused::Denied)).on(Operation::Get));
    let obstacles = status.obstacles().await;
    assert!(matches!(&obstacles[..], [only] if only.contains("cannot read the store")), "{obstacles:?}");
    fault.clear();
    second.volumes.open_configured("a", true).await.unwrap();
    first.volumes.nothing_left().await;
    let obstacles = status.obstacles().await;
    assert!(matches!(&obstacles[..], [only] if only.contains("\"a\" stopped")), "{obstacles:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_volumes_are_open_than_configured() {
    let store = store_of(&["a", "b", "c"]).await;
    let gateway = gateway(&store, 1, None);
    let _two = (gateway.exports.open("a").await.unwrap(), gateway.exports.open("b").await.unwrap());
    let refused = gateway.exports.open("c").await.map(|_| ()).unwrap_err();
    assert!(matches!(&refused, Refusal::Refused(why) if why.contains("maximum")), "{refused:?}");
}

/// Creates a gateway whose requests to the store are counted. Faults can be injected below the counter.
fn counted(store: &MemoryStore) -> (Gateway, Fault, StoreMetrics) {
    let (metrics, fault) = (Metrics::new().store(), Fault::new(Arc::new(store.clone()), 0));
    let counting = Instrument::new(Arc::new(fault.clone()), metrics.clone());
    let env = Environment { store: Classes::one(Arc::new(counting)), ..environment(store, 1) };
    (gateway_on(env, 1, None), fault, metrics)
}

/// Returns the number of GET and LIST requests so far, including failed ones.
fn requests(metrics: &StoreMetrics) -> (u64, u64) {
    let of = |operation| StoreOutcome::ALL.iter().map(|outcome| metrics.requests(operation, *outcome)).sum();
    (of(Operation::Get), of(Operation::List))
}

#[tokio::test(start_paused = true)]
async fn unknown_names_do_not_count_as_open_volumes() {
    let store = store_of(&["a", "b"]).await;
    let (gateway, fault, _) = counted(&store);
    let held = fault.hold(Operation::Get, "name/none");
    let names: Vec<String> = (0..260).map(|n| format!("none-{n}")).collect();
    let mut unknown: Vec<_> = names.iter().map(|name| gateway.exports.open(name)).collect();
    for asked in &mut unknown {
        assert!(futures::poll!(asked.as_mut()).is_pending(), "the store does not answer");
    }
    let opened = (gateway.exports.open("a").await, gateway.exports.open("b").await);
    assert!(opened.0.is_ok() && opened.1.is_ok(), "two are allowed, and two exist");
    assert!(gateway.exports.describe("b").await.is_ok());
    held.release();
    for answer in futures::future::join_all(unknown).await {
        assert!(matches!(answer.map(drop), Err(Refusal::Unknown(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_name_is_looked_up_only_once_in_a_while() {
    let store = store_of(&["a"]).await;
    let (gateway, _, metrics) = counted(&store);
    for _ in 0..20 {
        assert!(matches!(gateway.exports.open("none").await.map(drop), Err(Refusal::Unknown(_))));
        assert!(matches!(gateway.exports.describe("none").await, Err(Refusal::Unknown(_))));
    }
    // Entries expire after a second of the system's clock, which may pass on a busy machine.
    let (gets, lists) = requests(&metrics);
    assert!(gets < 10 && lists == 0, "{gets} GETs, {lists} LISTs");
    gateway.exports.open("a").await.unwrap();
}

/// A name that a client may not know about costs the same requests and gets the same answer as a name that
/// does not exist, whether or not the volume exists, is open or was just used by others.
#[tokio::test(start_paused = true)]
async fn a_concealed_name_is_looked_up_like_one_that_does_not_exist() {
    let store = store_of(&["secret"]).await;
    for is_open in [false, true] {
        let (gateway, fault, metrics) = counted(&store);
        let _open = if is_open { Some(gateway.exports.open("secret").await.unwrap()) } else { None };
        let before = requests(&metrics);
        let concealed = gateway.exports.conceal("secret").await;
        let between = requests(&metrics);
        let absent = gateway.exports.describe("absent").await.unwrap_err();
        let after = requests(&metrics);
        let said = |error: &Refusal, name: &str| format!("{error:?}").replace(name, "NAME");
        assert_eq!(said(&concealed, "secret"), said(&absent, "absent"));
        let of_absent = (after.0 - between.0, after.1 - between.1);
        assert_eq!((between.0 - before.0, between.1 - before.1), of_absent);
        assert!(of_absent.0 > 0 && of_absent.1 == 0, "{of_absent:?}");

        fault.add(Rule::new(Action::FailBefore(Refused::Denied)).on(Operation::Get));
        let concealed = gateway.exports.conceal("secret-2").await;
        let absent = gateway.exports.describe("absent-2").await.unwrap_err();
        assert_eq!(said(&concealed, "secret-2"), said(&absent, "absent-2"));
        assert!(matches!(concealed, Refusal::Failed(_)), "{concealed:?}");
        drop(_open);
        gateway.volumes.close_all(PATIENCE, Next::Unknown).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_opened_after_everything_was_closed() {
    let store = store_of(&["a", "b"]).await;
    let gateway = gateway(&store, 1, None);
    gateway.volumes.open_configured("a", false).await.unwrap();
    let export = gateway.exports.open("a").await.unwrap();
    assert_eq!(gateway.volumes.close_all(PATIENCE, Next::Unknown).await, Vec::<String>::new());
    for name in ["a", "b"] {
        let refused = gateway.exports.open(name).await.map(|_| ()).unwrap_err();
        assert!(matches!(refused, Refusal::Shutdown), "{refused:?}");
    }
    assert_eq!(export.flush().await.unwrap_err().error, Value::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_cannot_be_opened_is_not_listed_and_hides_no_other() {
    let store = store_of(&["a", "half-deleted", "headless", "z"]).await;
    let env = environment(&store, 97);
    let fault = Fault::new(Arc::new(store.clone()), 0);
    fault.add(Rule::new(Action::FailBefore(Refused::Rejected)).on(Operation::Put).containing("name/"));
    let failing = Environment { store: Classes::one(Arc::new(fault)), ..env.clone() };
    let options = volume::Options::default();
    catalog::delete(&failing, &options, "half-deleted", false).await.expect_err("it is cut short");
    let headless = catalog::resolve(&env, "headless").await.unwrap();
    store.remove(&format!("volume/{headless}/head")).expect("it had one");
    let gateway = gateway(&store, 1, None);
    let listed = gateway.exports.list().await.unwrap();
    assert_eq!(listed.iter().map(|e| &*e.name).collect::<Vec<_>>(), ["a", "z"]);
    let opened = gateway.exports.open("half-deleted").await.map(|_| ()).unwrap_err();
    assert!(matches!(&opened, Refusal::Refused(why) if why.contains("being deleted")), "{opened:?}");
    let opened = gateway.exports.open("headless").await.map(|_| ()).unwrap_err();
    assert!(matches!(&opened, Refusal::Failed(why) if why.contains("incomplete")), "{opened:?}");
    gateway.exports.open("z").await.unwrap();
}

/// A client asked for a name. It gets the volume to which the name refers when the client gets it.
#[tokio::test(start_paused = true)]
async fn a_volume_that_is_recreated_while_it_is_opened_is_opened() {
    for held in ["/head", "/root/"] {
        let store = store_of(&["a"]).await;
        let env = environment(&store, 97);
        let fault = Fault::new(Arc::new(store.clone()), 0);
        let mut opener = environment(&store, 1);
        opener.store = Classes::one(Arc::new(fault.clone()));
        let options = Options { volume: volume::Options::default(), idle_timeout: IDLE, maximum_open: 2 };
        let volumes = OpenVolumes::new(opener, options, Metrics::new());
        let gate = fault.hold(Operation::Get, held);
        let replaces = async {
            gate.reached(1).await;
            catalog::delete(&env, &volume::Options::default(), "a", true).await.unwrap();
            let made =
                catalog::create(&env, &volume::Options::default(), "a", SIZE, catalog::ChunkBytes(4 << 20))
                    .await
                    .unwrap();
            gate.release();
            made.volume
        };
        let (opened, second) = tokio::join!(volumes.open("a"), replaces);
        assert_eq!(opened.unwrap().volume.id(), second, "{held}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_deleted_while_it_is_opened_is_unknown() {
    let store = store_of(&["a"]).await;
    let env = environment(&store, 97);
    let fault = Fault::new(Arc::new(store.clone()), 0);
    let mut opener = environment(&store, 1);
    opener.store = Classes::one(Arc::new(fault.clone()));
    let options = Options { volume: volume::Options::default(), idle_timeout: IDLE, maximum_open: 2 };
    let volumes = OpenVolumes::new(opener, options, Metrics::new());
    let gate = fault.hold(Operation::Get, "/head");
    let deletes = async {
        gate.reached(1).await;
        catalog::delete(&env, &volume::Options::default(), "a", false).await.unwrap();
        gate.release();
    };
    let (opened, ()) = tokio::join!(volumes.open("a"), deletes);
    let refused = opened.map(|_| ()).unwrap_err();
    assert!(matches!(&refused, Refusal::Unknown(name) if name == "a"), "{refused:?}");
}

/// An answer that is in flight while a volume is deleted here is not cached.
#[tokio::test(start_paused = true)]
async fn the_catalogue_caches_no_answer_requested_before_a_change() {
    let store = store_of(&["a"]).await;
    let fault = Fault::new(Arc::new(store.clone()), 0);
    let mut env = environment(&store, 1);
    env.store = Classes::one(Arc::new(fault.clone()));
    let catalogue = Catalogue::new(env, Duration::from_secs(3600));
    let gate = crate::store::fault::Gate::new();
    fault.add(Rule::new(Action::HoldAnswer(gate.clone())).on(Operation::Get).containing("/root/"));
    let deletes = async {
        gate.reached(1).await;
        catalog::delete(&environment(&store, 2), &volume::Options::default(), "a", false).await.unwrap();
        catalogue.forget();
        gate.release();
    };
    let (early, ()) = tokio::join!(catalogue.info("a"), deletes);
    early.expect("it was there when it was asked for");
    let late = catalogue.info("a").await.unwrap_err();
    assert!(matches!(&*late, OpenError::NoSuchVolume(_)), "{late}");
}

/// A process hangs while it renames a volume, before it frees the old name. A gateway takes the volume over
/// by the old name, which is configured.
#[tokio::test(start_paused = true)]
async fn a_renaming_that_was_cut_short_is_finished_before_the_volume_is_served() {
    let store = store_of(&["a", "b"]).await;
    let fault = Fault::new(Arc::new(store.clone()), 1);
    let renamer = Environment { store: Classes::one(Arc::new(fault.clone())), ..environment(&store, 1) };
    let gate = fault.hold(Operation::Put, "name/a");
    let options = volume::Options::default();
    let gateway = gateway(&store, 2, None);
    let meanwhile = async {
        gate.reached(1).await;
        let error = gateway.volumes.open_configured("a", true).await.unwrap_err();
        assert!(matches!(&*error, OpenError::Renamed { from, to } if from == "a" && to == "new"), "{error}");
        assert_eq!(holder(&store, "new").await, None);
        let client = gateway.exports.open("new").await.unwrap();
        client.write(0, Bytes::from_static(b"kept"), Volatile).await.unwrap();
        gate.release();
        client
    };
    let (renamed, client) = tokio::join!(catalog::rename(&renamer, &options, "a", "new", false), meanwhile);
    renamed.expect_err("the gateway has the volume");
    client.flush().await.unwrap();
    assert_eq!(catalog::list(&environment(&store, 98)).await.unwrap(), ["b", "new"]);
    assert_eq!(client.description().name, "new");
    let refused = gateway.exports.open("a").await.map(|_| ()).unwrap_err();
    assert!(matches!(&refused, Refusal::Unknown(name) if name == "a"), "{refused:?}");
    assert!(gateway.volumes.has("new") && !gateway.volumes.has("a"));
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_renamed_only_if_no_gateway_has_it_and_this_one_will_not_miss_it() {
    let store = store_of(&["a", "b"]).await;
    let (first, second) = (gateway(&store, 1, None), gateway(&store, 2, None));
    let status = serving(&first, environment(&store, 3));
    let refused = |failure: crate::gateway::Failure, word: &str| {
        let says = matches!(&failure, crate::gateway::Failure::InUse(why) if why.contains(word));
        assert!(says, "{failure:?}");
    };
    first.volumes.configure(&["a".to_owned()]);
    refused(status.rename("a", "new").await.unwrap_err(), "configuration");
    let client = second.exports.open("b").await.unwrap();
    refused(status.rename("b", "new").await.unwrap_err(), "gateway 2");
    client.write(0, Bytes::from_static(b"kept"), Volatile).await.unwrap();
    drop(client);
    while holder(&store, "b").await.is_some() {
        tokio::time::sleep(IDLE / 10).await;
    }
    let renamed = status.rename("b", "new").await.unwrap();
    assert_eq!((&*renamed.name, &renamed.holder), ("new", &None));
    assert!(status.volume("b").await.is_err());
    let client = first.exports.open("new").await.unwrap();
    assert_eq!(client.read(0, 4).await.unwrap(), [Segment::Data(Bytes::from_static(b"kept"))]);
}

/// Nobody uses the clone then, and it is not configured.
#[tokio::test(start_paused = true)]
async fn a_clone_stays_open_until_it_is_flattened_if_the_caller_gives_up() {
    let store = store_of(&["a"]).await;
    let fault = Fault::new(Arc::new(store.clone()), 0);
    let env = Environment { store: Classes::one(Arc::new(fault.clone())), ..environment(&store, 1) };
    let gateway = gateway_on(env.clone(), 1, None);
    let status = serving(&gateway, env);
    let client = gateway.exports.open("a").await.unwrap();
    client.write(0, Bytes::from_static(b"kept"), Volatile).await.unwrap();
    status.take_snapshot("a", "golden").await.unwrap();
    let clone = status.clone_snapshot("a", "golden", "b").await.unwrap();
    let gate = fault.hold(Operation::Put, &volume::format::keys::Keys::new(clone.volume).map_pages());
    tokio::select! {
        biased;
        flattened = status.flatten("b") => panic!("it is held: {flattened:?}"),
        () = gate.reached(1) => {}
    }
    tokio::time::sleep(IDLE * 2).await;
    assert!(gateway.volumes.serving("b").is_some(), "it is not done yet");
    gate.release();
    while holder(&store, "b").await.is_some() {
        tokio::time::sleep(IDLE / 10).await;
    }
    drop(client);
}
