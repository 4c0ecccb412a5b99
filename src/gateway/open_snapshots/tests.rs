//! Tests of snapshots as exports, on a store in memory with a paused clock.

use bytes::Bytes;

use super::*;
use crate::effect::Durability::Durable;
use crate::gateway::open_volumes::{Next, Options};
use crate::gateway::{
    Catalogue, Census, Failure as Refused, Fate, Gateway as _, GatewayStatus, IfHeld, Reaper, Serving,
    StoreCheck, VolumeExports,
};
use crate::protocol::{Error as Value, TransmissionFlags};
use crate::server::{self, Allocation, ContextStatus, Export, Exports, OpenError as Refusal, Segment};
use crate::store::fault::{Action, Failure, Rule};
use crate::store::{Classes, Fault, MemoryStore, Operation};
use crate::volume::{DirtyBudget, Entropy, PageCache, SnapshotError, catalog};

const SIZE: u64 = 1 << 30;
const IDLE: Duration = Duration::from_secs(60);

struct Gateway {
    volumes: Arc<OpenVolumes>,
    snapshots: Arc<OpenSnapshots>,
    exports: Arc<VolumeExports>,
    catalogue: Arc<Catalogue>,
    env: Environment,
    metrics: Metrics,
    fault: Fault,
}

fn options(number: u64) -> volume::Options {
    volume::Options { holder_name: format!("gateway {number}"), ..volume::Options::default() }
}

fn environment(store: Arc<dyn crate::store::Store>, seed: u64) -> Environment {
    Environment {
        store: Classes::one(store),
        cache: PageCache::new(16 << 20, 1 << 20),
        budget: DirtyBudget::new(16 << 20),
        entropy: Entropy::seeded(seed),
        wall_clock: Arc::new(|| 1_700_000_000),
    }
}

/// Creates a gateway on a store, for at most two open volumes. The number distinguishes it from others.
fn gateway(store: &MemoryStore, number: u64) -> Gateway {
    let fault = Fault::new(Arc::new(store.clone()), 0);
    let env = environment(Arc::new(fault.clone()), number);
    let of_volume = options(number);
    let how = Options { volume: of_volume.clone(), idle_timeout: IDLE, maximum_open: 2 };
    let metrics = Metrics::new();
    let volumes = OpenVolumes::new(env.clone(), how, metrics.clone());
    let snapshots = OpenSnapshots::new(env.clone(), of_volume, metrics.clone(), Arc::clone(&volumes));
    let catalogue = Arc::new(Catalogue::new(env.clone(), Duration::from_secs(5)));
    let exports =
        VolumeExports::new(Arc::clone(&volumes), Arc::clone(&snapshots), Arc::clone(&catalogue), None);
    Gateway { volumes, snapshots, exports: Arc::new(exports), catalogue, env, metrics, fault }
}

async fn store_of(names: &[&str]) -> MemoryStore {
    let store = MemoryStore::new();
    let env = environment(Arc::new(store.clone()), 99);
    for name in names {
        catalog::create(&env, &volume::Options::default(), name, SIZE, catalog::ChunkBytes(4 << 20))
            .await
            .unwrap();
    }
    store
}

impl Gateway {
    /// Writes a text at the start of a volume, durably.
    async fn writes(&self, volume: &str, text: &'static [u8]) {
        let disk = self.exports.open(volume).await.unwrap();
        disk.write(0, Bytes::from_static(text), Durable).await.unwrap();
    }

    /// What its admin server may request.
    fn status(&self) -> Arc<GatewayStatus> {
        let metrics = Metrics::new();
        let exports = Arc::clone(&self.exports) as Arc<dyn Exports>;
        let server = server::Server::new(exports, server::Options::default(), metrics.server());
        let status = GatewayStatus::starting();
        let reaper = Reaper::new(self.env.clone(), volume::Options::default());
        status.serves(Serving {
            census: Census::start(self.env.clone(), Arc::clone(&self.volumes), metrics, reaper, None),
            connect: Vec::new(),
            env: self.env.clone(),
            volumes: Arc::clone(&self.volumes),
            snapshots: Arc::clone(&self.snapshots),
            catalogue: Arc::clone(&self.catalogue),
            store_check: StoreCheck::new(Arc::new(self.fault.clone()), Duration::ZERO),
            server: Arc::new(server),
            options: volume::Options::default(),
            chunk_bytes: 4 << 20,
        });
        status
    }

    async fn takes(&self, volume: &str, snapshot: &str) {
        let open = self.volumes.open(volume).await.unwrap();
        open.volume.snapshot(snapshot).await.unwrap();
    }

    async fn deletes(&self, volume: &str, snapshot: &str) {
        let open = self.volumes.open(volume).await.unwrap();
        open.volume.delete_snapshot(snapshot).await.unwrap();
    }
}

async fn start_of(export: &Arc<dyn Export>) -> Vec<Segment> {
    export.read(0, 5).await.unwrap()
}

fn text(bytes: &'static [u8]) -> Vec<Segment> {
    vec![Segment::Data(Bytes::from_static(bytes))]
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_served_as_it_was_while_another_gateway_writes_the_volume() {
    let store = store_of(&["disk"]).await;
    let (writer, reader) = (gateway(&store, 1), gateway(&store, 2));
    writer.writes("disk", b"first").await;
    writer.takes("disk", "monday").await;
    let described = reader.exports.describe("disk@monday").await.unwrap();
    assert_eq!((&*described.name, described.size_bytes), ("disk@monday", SIZE));
    let flags = TransmissionFlags::READ_ONLY | TransmissionFlags::CAN_MULTI_CONN;
    assert!(described.flags.contains(flags) && !described.flags.contains(TransmissionFlags::SEND_TRIM));
    let [here, there] = [
        reader.exports.open("disk@monday").await.unwrap(),
        writer.exports.open("disk@monday").await.unwrap(),
    ];
    assert_eq!(here.description(), described);
    writer.writes("disk", b"later").await;
    for export in [&here, &there] {
        assert_eq!(start_of(export).await, text(b"first"));
        assert_eq!(export.read(SIZE - 1, 1).await.unwrap(), [Segment::Zero(1)]);
        let status = export.block_status(4 << 20, 1 << 20, 8).await.unwrap();
        assert_eq!(status, [Allocation { length_bytes: 1 << 20, hole: true, zero: true }]);
        export.cache(0, 4096).await.unwrap();
        export.flush().await.unwrap();
        let refused = export.write(0, Bytes::from_static(b"x"), Durable).await.unwrap_err();
        assert_eq!(refused.error, Value::Perm);
        assert_eq!(export.read(SIZE, 1).await.unwrap_err().error, Value::Inval);
    }
    let disk = writer.exports.open("disk").await.unwrap();
    assert_eq!(start_of(&disk).await, text(b"later"));
    let listed = reader.exports.list().await.unwrap();
    assert_eq!(listed.iter().map(|entry| &*entry.name).collect::<Vec<_>>(), ["disk"]);
}

#[tokio::test(start_paused = true)]
async fn the_clients_of_a_snapshot_share_it_and_its_place_and_its_time_series_end_with_them() {
    let store = store_of(&["a", "b"]).await;
    let gateway = gateway(&store, 1);
    gateway.writes("a", b"first").await;
    gateway.takes("a", "x").await;
    let opened = futures::future::join_all((0..4).map(|_| gateway.exports.open("a@x"))).await;
    let clients: Vec<_> = opened.into_iter().collect::<Result<_, _>>().unwrap();
    let id = gateway.volumes.serving("a").unwrap().id();
    assert_eq!((gateway.snapshots.clients(id, Some("x")), gateway.snapshots.clients(id, None)), (4, 4));
    assert_eq!(gateway.snapshots.clients(id, Some("y")), 0);
    let shown = gateway.metrics.render();
    assert!(shown.contains("cairn_volume_clients{volume=\"a@x\"} 4\n"), "{shown}");
    assert!(shown.contains("cairn_volume_size_bytes{volume=\"a@x\"} 1073741824\n"), "{shown}");
    // The volume and its snapshot take both places.
    let refused = gateway.exports.open("b").await.map(drop).unwrap_err();
    assert!(matches!(&refused, Refusal::Refused(why) if why.contains("maximum")), "{refused:?}");
    drop(clients);
    assert!(!gateway.snapshots.has_any());
    assert!(!gateway.metrics.render().contains("a@x"));
    let _b = gateway.exports.open("b").await.unwrap();
    let refused = gateway.exports.open("a@x").await.map(drop).unwrap_err();
    assert!(matches!(&refused, Refusal::Refused(why) if why.contains("maximum")), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_another_gateway_deletes_answers_eshutdown_and_no_other_does() {
    let store = store_of(&["disk"]).await;
    let (writer, reader) = (gateway(&store, 1), gateway(&store, 2));
    writer.writes("disk", b"first").await;
    writer.takes("disk", "x").await;
    let export = reader.exports.open("disk@x").await.unwrap();
    assert_eq!(start_of(&export).await, text(b"first"));
    writer.deletes("disk", "x").await;
    tokio::time::sleep(LOOK_AT_MOST * 2).await;
    for failure in [
        export.read(0, 5).await.map(drop).unwrap_err(),
        export.cache(0, 5).await.unwrap_err(),
        export.block_status(0, 5, 1).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(failure.error, Value::Shutdown, "{failure}");
        assert!(failure.message.contains("snapshot x was deleted"), "{failure}");
    }
    let shown = reader.metrics.render();
    let counted = r#"cairn_request_errors_total{command="read",errno="eshutdown",volume="disk@x"} 1"#;
    assert!(shown.contains(counted), "{shown}");
    // Another snapshot of that name is another snapshot, also while clients still use the first.
    writer.writes("disk", b"later").await;
    writer.takes("disk", "x").await;
    writer.takes("disk", "y").await;
    // The paused clock is not the one by which cached lists expire.
    reader.catalogue.forget();
    assert_eq!(start_of(&reader.exports.open("disk@y").await.unwrap()).await, text(b"later"));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_reports_what_has_changed_since_the_others_of_its_volume() {
    let store = store_of(&["disk"]).await;
    let (writer, reader) = (gateway(&store, 1), gateway(&store, 2));
    writer.writes("disk", b"first").await;
    writer.takes("disk", "a").await;
    let disk = writer.exports.open("disk").await.unwrap();
    disk.write(5 << 20, Bytes::from(vec![1; 64 << 10]), Durable).await.unwrap();
    writer.takes("disk", "b").await;
    writer.writes("disk", b"later").await;
    writer.takes("disk", "c").await;
    let offered = reader.exports.meta_contexts("disk@b").await.unwrap();
    let offers: Vec<_> = offered.iter().map(|it| (&*it.name, it.about.as_deref())).collect();
    let expected = [
        ("cairn:changed-since=c", Some("disk@c")),
        ("qemu:dirty-bitmap:c", Some("disk@c")),
        ("cairn:changed-since=a", Some("disk@a")),
        ("qemu:dirty-bitmap:a", Some("disk@a")),
    ];
    assert_eq!(offers, expected);
    for gateway in [&reader, &writer] {
        assert_eq!(gateway.exports.meta_contexts("disk").await.unwrap(), [], "its last writes are in no map");
    }
    let unknown = reader.exports.meta_contexts("disk@none").await.unwrap_err();
    assert!(matches!(unknown, Refusal::Unknown(_)), "{unknown:?}");

    let export = reader.exports.open("disk@b").await.unwrap();
    assert_eq!(export.meta_contexts(), offered);
    let extent = |length_bytes, status| ContextStatus { length_bytes, status };
    let changed = [extent(5 << 20, 0), extent(64 << 10, 1), extent((3 << 20) - (64 << 10), 0)];
    for context in ["cairn:changed-since=a", "qemu:dirty-bitmap:a"] {
        assert_eq!(export.context_status(context, 0, 8 << 20, 9).await.unwrap(), changed);
        let one = export.context_status(context, (5 << 20) + 100, 9000, 1).await.unwrap();
        assert_eq!(one, [extent(9000, 1)], "it is neither earlier nor longer than it was asked for");
        assert_eq!(export.context_status(context, 0, 4096, 1).await.unwrap(), [extent(4096, 0)]);
    }
    let id = writer.volumes.serving("disk").unwrap().id();
    assert_eq!(reader.snapshots.clients(id, Some("a")), 1, "both contexts use it once");
    // The two snapshots take both places of the gateway.
    let full = export.context_status("qemu:dirty-bitmap:c", 0, 4096, 1).await.unwrap_err();
    assert!(full.error == Value::Io && full.message.contains("maximum"), "{full:?}");
    drop(export);
    assert!(!reader.snapshots.has_any());
    // A later one is compared in the same way.
    let export = reader.exports.open("disk@b").await.unwrap();
    let since_c = async |offset: u64| export.context_status("qemu:dirty-bitmap:c", offset, 4096, 9).await;
    assert_eq!(since_c(0).await.unwrap(), [extent(4096, 1)]);
    assert_eq!(since_c(5 << 20).await.unwrap(), [extent(4096, 0)]);
}

#[tokio::test(start_paused = true)]
async fn what_has_changed_since_a_deleted_snapshot_is_eio_and_all_else_goes_on() {
    let store = store_of(&["disk"]).await;
    let (writer, reader) = (gateway(&store, 1), gateway(&store, 2));
    writer.writes("disk", b"first").await;
    writer.takes("disk", "a").await;
    writer.takes("disk", "unused").await;
    writer.writes("disk", b"later").await;
    writer.takes("disk", "b").await;
    let export = reader.exports.open("disk@b").await.unwrap();
    let since =
        async |name: &str| export.context_status(&format!("qemu:dirty-bitmap:{name}"), 0, 4096, 1).await;
    assert_eq!(since("a").await.unwrap(), [ContextStatus { length_bytes: 4096, status: 1 }]);
    writer.deletes("disk", "unused").await;
    writer.deletes("disk", "a").await;
    tokio::time::sleep(LOOK_AT_MOST * 2).await;
    for name in ["a", "unused", "none"] {
        let failure = since(name).await.unwrap_err();
        assert_eq!(failure.error, Value::Io, "{name}: {failure}");
    }
    assert_eq!(start_of(&export).await, text(b"later"));
    assert_eq!(export.block_status(0, 4096, 1).await.unwrap().len(), 1);
    let counted = r#"cairn_request_errors_total{command="block_status",errno="eio",volume="disk@b"} 3"#;
    let shown = reader.metrics.render();
    assert!(shown.contains(counted), "{shown}");
    writer.deletes("disk", "b").await;
    tokio::time::sleep(LOOK_AT_MOST * 2).await;
    let failure = since("a").await.unwrap_err();
    assert!(failure.error == Value::Shutdown && failure.message.contains("b was deleted"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_stays_served_while_the_store_is_away() {
    let store = store_of(&["disk"]).await;
    let gateway = gateway(&store, 1);
    gateway.writes("disk", b"first").await;
    gateway.takes("disk", "x").await;
    let _keeps_the_cache = gateway.exports.open("disk").await.unwrap();
    let export = gateway.exports.open("disk@x").await.unwrap();
    assert_eq!(start_of(&export).await, text(b"first"));
    gateway.fault.add(Rule::new(Action::FailBefore(Failure::Denied)).on(Operation::Get));
    tokio::time::sleep(LOOK_AT_MOST * 4).await;
    assert_eq!(start_of(&export).await, text(b"first"), "it is in the cache");
    gateway.fault.clear();
    tokio::time::sleep(LOOK_AT_MOST * 2).await;
    assert_eq!(start_of(&export).await, text(b"first"));
}

#[tokio::test(start_paused = true)]
async fn names_that_refer_to_no_snapshot_are_unknown_and_take_no_place() {
    let store = store_of(&["disk"]).await;
    let gateway = gateway(&store, 1);
    for name in ["disk@", "disk@x", "disk@x@y", "@x", "@", "none@x", "a/b@x", "disk@a/b"] {
        let described = gateway.exports.describe(name).await.unwrap_err();
        assert!(matches!(&described, Refusal::Unknown(unknown) if unknown == name), "{described:?}");
        let opened = gateway.exports.open(name).await.map(drop).unwrap_err();
        assert!(matches!(&opened, Refusal::Unknown(unknown) if unknown == name), "{opened:?}");
    }
    assert!(!gateway.snapshots.has_any());
}

/// However many names of snapshots a client makes up, the snapshots of a volume are read once in a moment.
#[tokio::test(start_paused = true)]
async fn made_up_names_of_snapshots_cost_few_requests() {
    let store = store_of(&["disk"]).await;
    let gateway = gateway(&store, 1);
    store.reset_tallies();
    for n in 0..100 {
        let refused = gateway.exports.open(&format!("disk@{n}")).await.map(drop).unwrap_err();
        assert!(matches!(refused, Refusal::Unknown(_)), "{refused:?}");
    }
    // Entries expire after a second of the system's clock, which may pass on a busy machine.
    let gets = store.tally(Operation::Get, |_| true).requests;
    assert!(gets < 40, "{gets} GETs");
}

/// A snapshot that a client may not know about costs the same requests and gets the same answer as one of a
/// volume that does not exist.
#[tokio::test(start_paused = true)]
async fn a_concealed_snapshot_is_looked_up_like_one_that_does_not_exist() {
    let store = store_of(&["secret"]).await;
    let writer = gateway(&store, 1);
    writer.takes("secret", "x").await;
    let gateway = gateway(&store, 2);
    let gets = || store.tally(Operation::Get, |_| true).requests;
    let before = gets();
    let concealed = gateway.exports.conceal("secret@x").await;
    let between = gets();
    let absent = gateway.exports.describe("absent@x").await.unwrap_err();
    assert_eq!(between - before, gets() - between);
    let said = |error: &Refusal, name: &str| format!("{error:?}").replace(name, "NAME");
    assert_eq!(said(&concealed, "secret"), said(&absent, "absent"));
}

/// As the API takes and deletes snapshots.
#[tokio::test(start_paused = true)]
async fn a_volume_is_opened_for_its_snapshots_and_what_clients_read_is_not_deleted() {
    let store = store_of(&["disk", "a", "b"]).await;
    let gateway = gateway(&store, 1);
    let status = gateway.status();
    assert!(status.snapshots("disk").await.unwrap().is_empty());
    assert!(!gateway.volumes.has("disk"), "a list opens nothing");
    let taken = status.take_snapshot("disk", "x").await.unwrap();
    assert_eq!((&*taken.name, taken.taken_at_seconds), ("x", 1_700_000_000));
    assert_eq!(status.snapshots("disk").await.unwrap(), std::slice::from_ref(&taken));
    // It is closed again, and the store says the same.
    while gateway.volumes.has("disk") {
        tokio::time::sleep(IDLE / 10).await;
    }
    assert_eq!(status.snapshots("disk").await.unwrap(), [taken]);
    let clients =
        [gateway.exports.open("disk@x").await.unwrap(), gateway.exports.open("disk@x").await.unwrap()];
    let id = status.resolve("disk").await.unwrap();
    for refused in [
        status.delete_snapshot("disk", "x").await.unwrap_err(),
        status.delete("disk", IfHeld::Refuse, Fate::Kept).await.unwrap_err(),
        status.delete_kept(id).await.unwrap_err(),
    ] {
        assert!(matches!(&refused, Refused::InUse(why) if why.ends_with(": 2")), "{refused:?}");
    }
    drop(clients);
    status.delete_snapshot("disk", "x").await.unwrap();
    let gone = status.delete_snapshot("disk", "x").await.unwrap_err();
    assert!(matches!(gone, Refused::Snapshot(SnapshotError::NoSuchSnapshot(_))), "{gone:?}");
    let unknown = gateway.exports.open("disk@x").await.map(drop).unwrap_err();
    assert!(matches!(unknown, Refusal::Unknown(_)), "{unknown:?}");
    let absent = status.take_snapshot("none", "x").await.unwrap_err();
    assert!(matches!(absent, Refused::Volume(_)), "{absent:?}");
    let _two = (gateway.exports.open("a").await.unwrap(), gateway.volumes.open("disk").await.unwrap());
    let full = status.take_snapshot("b", "x").await.unwrap_err();
    assert!(matches!(&full, Refused::NotServing(why) if why.contains("volumes.maximum")), "{full:?}");
}

#[tokio::test(start_paused = true)]
async fn no_snapshot_is_opened_after_everything_was_closed() {
    let store = store_of(&["disk"]).await;
    let gateway = gateway(&store, 1);
    gateway.takes("disk", "x").await;
    assert_eq!(gateway.volumes.close_all(IDLE, Next::Unknown).await, Vec::<String>::new());
    let refused = gateway.exports.open("disk@x").await.map(drop).unwrap_err();
    assert!(matches!(refused, Refusal::Shutdown), "{refused:?}");
}

#[test]
fn snapshots_are_looked_up_well_within_the_grace() {
    for (grace, interval) in [(0, 5), (20, 5), (100, 25), (240, 60), (3600, 60)] {
        assert_eq!(look_interval(Duration::from_secs(grace)), Duration::from_secs(interval), "{grace}");
    }
}
