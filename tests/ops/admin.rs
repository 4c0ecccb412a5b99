//! The admin server over volumes in memory, asked over a socket: what it answers, and that its description says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use cairn::admin::{Access, Admin, Options};
use cairn::effect::Durability::Volatile;
use cairn::gateway::Gateway;
use cairn::metrics::Metrics;
use cairn::server::{ListenAddress, Listener};
use cairn::volume::catalog;
use serde_json::{Value, json};

use super::client::{Answer, Client};
use super::house::{House, MIB};

/// An admin server: over a Unix socket for one user alone, which lets all pass, or elsewhere.
pub(super) struct Bench {
    pub(super) house: Arc<House>,
    pub(super) metrics: Metrics,
    admin: Admin,
    pub(super) client: Client,
    _directory: tempfile::TempDir,
}

impl Bench {
    pub(super) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listen = ListenAddress::Unix(directory.path().join("admin"));
        Self::listening(listen, None, directory).await
    }

    /// What the API says about stored data: live bytes, garbage, bytes in packs, number of packs.
    async fn data_of(&self, volume: &str) -> serde_json::Value {
        let open = self.ask("GET", &format!("/api/v1/volumes/{volume}"), None).await.1["open"].clone();
        json!([open["live_bytes"], open["garbage_bytes"], open["overlaid_bytes"], open["packs"]])
    }

    async fn over_tcp(host: &str, token: Option<&str>) -> Self {
        let listen = ListenAddress::Tcp(format!("{host}:0"));
        Self::listening(listen, token, tempfile::tempdir().unwrap()).await
    }

    async fn listening(listen: ListenAddress, token: Option<&str>, directory: tempfile::TempDir) -> Self {
        let listener = match &listen {
            ListenAddress::Unix(path) => Listener::bind_private(path).await.unwrap(),
            tcp => Listener::bind(tcp).await.unwrap(),
        };
        let access = Access::at(listener.address(), token.map(|token| token.parse().unwrap()));
        Self::with_access(listener, access, directory)
    }

    fn with_access(listener: Listener, access: Access, directory: tempfile::TempDir) -> Self {
        let (house, metrics) = (House::new(), Metrics::new());
        let gateway = Arc::clone(&house) as Arc<dyn Gateway>;
        let admin = Admin::start(listener, metrics.clone(), gateway, access, Options::default());
        let client = Client::of(admin.address());
        Self { house, metrics, admin, client, _directory: directory }
    }

    pub(super) async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let answer = self.client.send(method, path, &[], body.as_ref()).await;
        (answer.status, answer.json())
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.client.send("GET", path, &[], None).await
    }
}

#[tokio::test]
async fn a_volume_is_made_shown_and_deleted() {
    let bench = Bench::new().await;
    assert_eq!(bench.ask("GET", "/api/v1/volumes", None).await, (200, json!([])));
    let new = json!({ "name": "disk", "size_bytes": 1 << 30 });
    let (status, made) = bench.ask("POST", "/api/v1/volumes", Some(new.clone())).await;
    assert_eq!(status, 201);
    let expected = json!({
        "name": "disk", "id": made["id"], "size_bytes": 1 << 30, "chunk_bytes": 4 << 20,
        "created_at": "2027-01-15T08:00:00Z", "epoch": 0, "holder": null, "clone_of": null, "stored_bytes": null,
        "problem": null, "open": null,
    });
    assert_eq!(made, expected);
    assert_eq!(bench.ask("GET", "/api/v1/volumes", None).await, (200, json!([expected])));
    assert_eq!(bench.ask("GET", "/api/v1/volumes/disk", None).await, (200, expected));
    assert_eq!(bench.ask("POST", "/api/v1/volumes", Some(new)).await.0, 409);
    assert_eq!(bench.ask("DELETE", "/api/v1/volumes/disk", None).await, (204, Value::Null));
    assert_eq!(bench.ask("DELETE", "/api/v1/volumes/disk", None).await.0, 404);
    assert_eq!(bench.ask("GET", "/api/v1/volumes/disk", None).await.0, 404);
}

#[tokio::test]
async fn mistakes_are_answered_with_what_is_wrong() {
    let bench = Bench::new().await;
    catalog::create(&bench.house.env, &bench.house.options, "idle", MIB, catalog::ChunkBytes(MIB))
        .await
        .unwrap();
    for (method, path, body, status, word) in [
        ("POST", "/api/v1/volumes", Some(json!({ "name": "a/b", "size_bytes": 512 })), 422, "name"),
        ("POST", "/api/v1/volumes", Some(json!({ "name": "a", "size_bytes": 513 })), 422, "512"),
        ("POST", "/api/v1/volumes", Some(json!({ "name": "a" })), 422, "size_bytes"),
        ("POST", "/api/v1/volumes", Some(json!({ "name": "a", "size_bytes": 512, "x": 1 })), 422, "x"),
        (
            "POST",
            "/api/v1/volumes",
            Some(json!({ "name": "a", "size_bytes": 512, "chunk_bytes": 7 })),
            422,
            "7",
        ),
        ("POST", "/api/v1/volumes", None, 415, "Content-Type"),
        ("GET", "/api/v1/volumes/none", None, 404, "none"),
        ("POST", "/api/v1/volumes/none/flush", None, 404, "none"),
        ("POST", "/api/v1/volumes/idle/flush", None, 409, "not open"),
        ("POST", "/api/v1/volumes/idle/checkpoint", None, 409, "not open"),
        ("GET", "/api/v1/volumes/idle/map", None, 409, "not open"),
        ("PATCH", "/api/v1/volumes/none", Some(json!({ "size_bytes": MIB })), 404, "none"),
        ("PATCH", "/api/v1/volumes/idle", Some(json!({ "size_bytes": MIB })), 503, "full"),
        ("PATCH", "/api/v1/volumes/idle", Some(json!({ "size": MIB })), 422, "size"),
        ("PATCH", "/api/v1/volumes/idle", None, 415, "Content-Type"),
        ("PATCH", "/api/v1/volumes/idle", Some(json!({})), 422, "either"),
        ("PATCH", "/api/v1/volumes/idle", Some(json!({ "name": "a", "size_bytes": MIB })), 422, "either"),
        ("PATCH", "/api/v1/volumes/idle", Some(json!({ "name": "a", "shrink": false })), 422, "either"),
        ("PATCH", "/api/v1/volumes/idle", Some(json!({ "name": ".a" })), 422, "not a volume name"),
        ("PATCH", "/api/v1/volumes/none", Some(json!({ "name": "a" })), 404, "none"),
        ("GET", "/api/v1/volumes/none/snapshots", None, 404, "none"),
        ("GET", "/api/v1/volumes/.none/snapshots", None, 422, "name"),
        ("POST", "/api/v1/volumes/none/snapshots", Some(json!({ "name": "x" })), 404, "none"),
        ("POST", "/api/v1/volumes/idle/snapshots", Some(json!({ "name": "x" })), 503, "full"),
        ("POST", "/api/v1/volumes/idle/snapshots", Some(json!({ "nam": "x" })), 422, "nam"),
        ("POST", "/api/v1/volumes/idle/snapshots", None, 415, "Content-Type"),
        ("DELETE", "/api/v1/volumes/none/snapshots/x", None, 404, "none"),
        ("GET", "/api/v1/volumes/none/snapshots/x/changes?since=y", None, 404, "none"),
        ("GET", "/api/v1/volumes/idle/snapshots/x/changes?since=y", None, 404, "no snapshot"),
        ("GET", "/api/v1/volumes/idle/snapshots/x/changes", None, 400, "since"),
        ("GET", "/api/v1/volumes/idle/snapshots/x/changes?since=y&limit=0", None, 400, "limit"),
        ("POST", "/api/v1/volumes/none/snapshots/x/clones", Some(json!({ "name": "y" })), 404, "none"),
        ("POST", "/api/v1/volumes/idle/snapshots/x/clones", Some(json!({ "name": "y" })), 503, "full"),
        ("POST", "/api/v1/volumes/idle/snapshots/x/clones", Some(json!({ "nam": "y" })), 422, "nam"),
        ("POST", "/api/v1/volumes/idle/snapshots/x/clones", None, 415, "Content-Type"),
        ("DELETE", "/api/v1/volumes/idle/snapshots/read", None, 409, "connections"),
        ("GET", "/api/v1/volumes/idle/map?cells=0", None, 400, "4096"),
        ("GET", "/api/v1/volumes/idle/map?cells=4097", None, 400, "4096"),
        ("DELETE", "/api/v1/volumes/idle?takeover=perhaps", None, 400, "takeover"),
        ("DELETE", "/api/v1/volumes/idle?take=true", None, 400, "take"),
    ] {
        let (got, answer) = bench.ask(method, path, body).await;
        assert_eq!(got, status, "{method} {path}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{method} {path}: {answer}");
    }
}

#[tokio::test]
async fn an_open_volume_is_shown_flushed_folded_and_not_deleted() {
    let bench = Bench::new().await;
    let volume = bench.house.opened(&bench.metrics, "disk").await;
    volume.write(4 * MIB, Bytes::from(vec![7; 65_536]), Volatile).await.unwrap();
    volume.read(0, 4096).await.unwrap();

    let open = bench.ask("GET", "/api/v1/volumes/disk", None).await.1["open"].clone();
    assert_eq!(
        (&open["state"], &open["dirty_bytes"], &open["clients"]),
        (&json!("serving"), &json!(65_536), &json!(1))
    );
    let totals = &open["totals"];
    assert_eq!((&totals["writes"], &totals["write_bytes"]), (&json!(1), &json!(65_536)));
    assert_eq!((&totals["reads"], &totals["read_bytes"]), (&json!(1), &json!(4096)));
    let map = bench.ask("GET", "/api/v1/volumes/disk/map?cells=4", None).await.1;
    // What was just written is in memory, too.
    let expected = |stored: u64, dirty: u64| {
        json!({ "size_bytes": 64 * MIB, "cell_bytes": 16 * MIB, "stored_bytes": [stored, 0, 0, 0],
        "cached_bytes": [stored, 0, 0, 0], "dirty_bytes": [dirty, 0, 0, 0] })
    };
    assert_eq!(map, expected(0, 65_536));

    assert_eq!(bench.ask("POST", "/api/v1/volumes/disk/flush", None).await.0, 204);
    assert_eq!(bench.ask("GET", "/api/v1/volumes/disk/map?cells=4", None).await.1, expected(65_536, 0));
    assert!(volume.usage().journal_records > 0);
    assert_eq!(bench.ask("POST", "/api/v1/volumes/disk/checkpoint", None).await.0, 204);
    assert_eq!(volume.usage().journal_records, 0);
    // The page went to a pack. Then half of it is written again, so half of the pack is garbage.
    assert_eq!(bench.data_of("disk").await, json!([65_536, 0, 65_536, 1]));
    volume.write(4 * MIB, Bytes::from(vec![8; 32_768]), Volatile).await.unwrap();
    assert_eq!(bench.ask("POST", "/api/v1/volumes/disk/checkpoint", None).await.0, 204);
    assert_eq!(bench.data_of("disk").await, json!([65_536, 32_768, 65_536, 2]));

    let (status, answer) = bench.ask("DELETE", "/api/v1/volumes/disk?takeover=true", None).await;
    assert_eq!(status, 409, "{answer}");
    volume.abandon().await;
    let (_, shown) = bench.ask("GET", "/api/v1/volumes/disk", None).await;
    assert_eq!(shown["open"]["state"], "stopped");
    assert_eq!(bench.ask("POST", "/api/v1/volumes/disk/flush", None).await.0, 409);
}

#[tokio::test]
async fn snapshots_are_taken_listed_and_deleted() {
    let bench = Bench::new().await;
    let volume = bench.house.opened(&bench.metrics, "disk").await;
    let path = "/api/v1/volumes/disk/snapshots";
    assert_eq!(bench.ask("GET", path, None).await, (200, json!([])));
    let monday = json!({ "name": "monday", "taken_at": "2027-01-15T08:00:00Z" });
    let new = |name: &str| Some(json!({ "name": name }));
    assert_eq!(bench.ask("POST", path, new("monday")).await, (201, monday.clone()));
    let made = bench.client.send("POST", path, &[], new("evening").as_ref()).await;
    assert_eq!(made.header("location"), "/api/v1/volumes/disk/snapshots/evening");
    let evening = json!({ "name": "evening", "taken_at": "2027-01-15T08:00:00Z" });
    assert_eq!(bench.ask("GET", path, None).await, (200, json!([monday, evening])));
    for (name, status, word) in [("monday", 409, "exists"), ("a@b", 422, "name"), ("", 422, "name")] {
        let (got, answer) = bench.ask("POST", path, new(name)).await;
        assert!(got == status && answer["error"].as_str().unwrap().contains(word), "{name}: {got} {answer}");
    }
    assert_eq!(bench.ask("DELETE", &format!("{path}/monday"), None).await, (204, Value::Null));
    assert_eq!(bench.ask("DELETE", &format!("{path}/monday"), None).await.0, 404);
    assert_eq!(bench.ask("GET", path, None).await, (200, json!([evening])));
    volume.abandon().await;
    assert_eq!(bench.ask("POST", path, new("late")).await.0, 409);
}

#[tokio::test]
async fn snapshots_are_cloned_and_stay_while_their_clones_do() {
    let bench = Bench::new().await;
    let volume = bench.house.opened(&bench.metrics, "disk").await;
    volume.snapshot("v1").await.unwrap();
    let path = "/api/v1/volumes/disk/snapshots/v1/clones";
    let new = |name: &str| Some(json!({ "name": name }));
    let made = bench.client.send("POST", path, &[], new("copy").as_ref()).await;
    assert_eq!((made.status, made.header("location")), (201, "/api/v1/volumes/copy"));
    let (status, info) = bench.ask("GET", "/api/v1/volumes/copy", None).await;
    assert_eq!((status, &info["clone_of"]), (200, &json!(volume.id())));
    let none = "/api/v1/volumes/disk/snapshots/none/clones";
    for (path, name, status, word) in
        [(path, "copy", 409, "exists"), (path, "a@b", 422, "name"), (none, "other", 404, "no snapshot named")]
    {
        let (got, answer) = bench.ask("POST", path, new(name)).await;
        assert!(got == status && answer["error"].as_str().unwrap().contains(word), "{name}: {got} {answer}");
    }
    let (status, answer) = bench.ask("DELETE", "/api/v1/volumes/disk/snapshots/v1", None).await;
    assert!(status == 409 && answer["error"].as_str().unwrap().contains("its clone copy"), "{answer}");
    volume.abandon().await;
    assert_eq!(bench.ask("POST", path, new("late")).await.0, 409);
}

#[tokio::test]
async fn health_says_what_is_in_the_way() {
    let bench = Bench::new().await;
    assert_eq!(bench.get("/health/live").await.status, 200);
    assert_eq!(bench.ask("GET", "/health/ready", None).await, (200, json!({ "ready": true, "reasons": [] })));
    bench.house.obstacles.lock().push("disk is not open".to_owned());
    let expected = json!({ "ready": false, "reasons": ["disk is not open"] });
    assert_eq!(bench.ask("GET", "/health/ready", None).await, (503, expected));
    assert_eq!(bench.get("/health/live").await.status, 200);
}

#[tokio::test]
async fn metrics_connections_and_drain() {
    let bench = Bench::new().await;
    let answer = bench.get("/metrics").await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, "text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(answer.body.contains("cairn_build_info{version="));
    let expected = json!([{ "id": 7, "peer": "127.0.0.1:4711", "export": "disk" }]);
    assert_eq!(bench.ask("GET", "/api/v1/connections", None).await, (200, expected));
    assert!(!*bench.house.drained.lock());
    assert_eq!(bench.ask("POST", "/api/v1/drain", None).await.0, 202);
    assert!(*bench.house.drained.lock());
}

/// An id that no volume has.
const ID: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";

/// A path of the description, with names in place of its parameters.
fn path_of(path: &str, volume: &str) -> String {
    let query = if path.ends_with("/changes") { "?since=monday" } else { "" };
    format!("{}{query}", path.replace("{name}", volume).replace("{id}", ID).replace("{snapshot}", "monday"))
}

/// Every method and path of the description, with a name for the volume.
fn operations() -> Vec<(String, String)> {
    let document = description();
    let paths = document["paths"].as_object().unwrap().iter();
    paths.flat_map(|(path, of)| methods(of).into_iter().map(|m| (m, path_of(path, "disk")))).collect()
}

/// What needs no secret: metrics, health, and a page that holds nothing of the gateway.
const OPEN: [&str; 7] =
    ["/metrics", "/health/live", "/health/ready", "/", "/status.css", "/status.js", "/volume.js"];

#[tokio::test]
async fn beyond_loopback_and_without_a_token_the_api_is_not_served() {
    let bench = Bench::over_tcp("0.0.0.0", None).await;
    for (method, path) in operations() {
        let (status, answer) = bench.ask(&method, &path, None).await;
        assert_eq!(status, 403, "{method} {path}");
        assert!(answer["error"].as_str().unwrap().contains("token"), "{answer}");
    }
    for path in OPEN {
        assert_eq!(bench.get(path).await.status, 200, "{path}");
    }
    assert!(!*bench.house.drained.lock());
}

#[tokio::test]
async fn with_a_token_the_api_is_served_to_whoever_has_it() {
    let bench = Bench::over_tcp("0.0.0.0", Some("correct-horse-battery")).await;
    for (method, path) in operations() {
        let answer = bench.client.send(&method, &path, &[], None).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Bearer"), "{method} {path}");
        let wrong = [("Authorization", "Bearer correct-horse-batterx")];
        assert_eq!(bench.client.send(&method, &path, &wrong, None).await.status, 401, "{method} {path}");
    }
    for path in OPEN {
        assert_eq!(bench.get(path).await.status, 200, "{path}");
    }
    let right = [("Authorization", "Bearer correct-horse-battery")];
    let answer = bench.client.send("GET", "/api/v1/volumes", &right, None).await;
    assert_eq!((answer.status, answer.json()), (200, json!([])));
}

/// As in a container, whose port the host publishes on its own loopback: the demo, and the chart.
#[tokio::test]
async fn beyond_loopback_everybody_reads_where_the_operator_says_so_and_the_token_changes() {
    for (token, refusal) in [(None, 403), (Some("correct-horse-battery"), 401)] {
        let listener = Listener::bind(&ListenAddress::Tcp("0.0.0.0:0".to_owned())).await.unwrap();
        let access = Access::at(listener.address(), token.map(|token| token.parse().unwrap()));
        let bench = Bench::with_access(listener, access.read_by_everybody(), tempfile::tempdir().unwrap());
        bench.house.snapshotted(&bench.metrics).await;
        for (method, path) in operations() {
            let (status, answer) = bench.ask(&method, &path, None).await;
            assert_eq!(status, if method == "GET" { 200 } else { refusal }, "{method} {path}: {answer}");
            let told = status == 200 || answer["error"].as_str().unwrap().contains("token");
            assert!(told, "{method} {path}: {answer}");
            let foreign = bench.client.named("elsewhere.example").send(&method, &path, &[], None).await;
            assert_eq!(foreign.status, if method == "GET" { 403 } else { refusal }, "{method} {path}");
        }
        for path in OPEN {
            assert_eq!(bench.get(path).await.status, 200, "{path}");
        }
        assert!(!*bench.house.drained.lock());
        assert_eq!(catalog::list(&bench.house.env).await.unwrap(), ["disk"]);
    }
}

/// Every user of this machine reaches loopback: they read, and nobody without the token changes anything.
#[tokio::test]
async fn on_loopback_and_without_a_token_everything_is_read_and_nothing_changed() {
    for host in ["127.0.0.1", "127.0.0.2"] {
        let bench = Bench::over_tcp(host, None).await;
        bench.house.snapshotted(&bench.metrics).await;
        catalog::create(&bench.house.env, &bench.house.options, "idle", MIB, catalog::ChunkBytes(MIB))
            .await
            .unwrap();
        let mut changes = operations();
        changes.push(("DELETE".to_owned(), "/api/v1/volumes/idle?takeover=true".to_owned()));
        for (method, path) in changes {
            let body = (method == "POST").then(|| json!({ "name": "new", "size_bytes": 512 }));
            let (status, answer) = bench.ask(&method, &path, body).await;
            let expected = if method == "GET" { 200 } else { 403 };
            assert_eq!(status, expected, "{method} {path}: {answer}");
            let told = status == 200 || answer["error"].as_str().unwrap().contains("admin.socket");
            assert!(told, "{method} {path}: {answer}");
        }
        for path in OPEN {
            assert_eq!(bench.get(path).await.status, 200, "{path}");
        }
        assert!(!*bench.house.drained.lock());
        assert_eq!(catalog::list(&bench.house.env).await.unwrap(), ["disk", "idle"]);
    }
}

/// A Unix socket that more than one user can open, as a service manager may pass it, is like loopback.
#[tokio::test]
async fn over_a_unix_socket_of_many_users_nothing_is_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin");
    let listener = Listener::bind(&ListenAddress::Unix(path.clone())).await.unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let (house, access) = (House::new(), Access::at(listener.address(), None));
    let gateway = Arc::clone(&house) as Arc<dyn Gateway>;
    let admin = Admin::start(listener, Metrics::new(), gateway, access, Options::default());
    let client = Client::of(admin.address());
    assert_eq!(client.send("GET", "/api/v1/volumes", &[], None).await.status, 200);
    let refused = client.send("POST", "/api/v1/drain", &[], None).await;
    assert!(refused.status == 403 && refused.body.contains("0600"), "{refused:?}");
    assert!(!*house.drained.lock());
}

#[tokio::test]
async fn on_loopback_a_page_of_another_site_learns_nothing() {
    let bench = Bench::over_tcp("127.0.0.1", None).await;
    for path in ["/api/v1/volumes", "/metrics", "/health/live", "/health/ready"] {
        assert_eq!(bench.get(path).await.status, 200, "{path}");
        let foreign = [("Origin", "http://elsewhere.example")];
        assert_eq!(bench.client.send("GET", path, &foreign, None).await.status, 403, "{path}");
        // A name of another site that was made to resolve to this machine.
        let rebound = bench.client.named("elsewhere.example:9180").send("GET", path, &[], None).await;
        assert_eq!(rebound.status, 403, "{path}");
        assert!(!rebound.body.contains("cairn_") && !rebound.body.contains("live"), "{rebound:?}");
    }
}

/// Every address of loopback is this machine's, under each of its names.
#[tokio::test]
async fn on_any_address_of_loopback_its_own_names_are_served() {
    for host in ["127.0.0.1", "127.0.0.2", "[::1]"] {
        let bench = Bench::over_tcp(host, None).await;
        for name in [host, "localhost", "LOCALHOST:80", "127.0.0.1", "127.9.9.9:1", "[::1]:9180"] {
            for path in ["/api/v1/volumes", "/metrics", "/health/ready"] {
                let answer = bench.client.named(name).send("GET", path, &[], None).await;
                assert_eq!(answer.status, 200, "{path} on {host} as {name}: {answer:?}");
            }
        }
    }
}

/// Prometheus and the kubelet name a pod by its address, others by a service or by what a proxy makes of it.
#[tokio::test]
async fn beyond_loopback_scrapers_and_probes_may_use_any_name() {
    for token in [None, Some("correct-horse-battery")] {
        let bench = Bench::over_tcp("0.0.0.0", token).await;
        for name in ["10.42.0.7:9180", "[fd00::7]:9180", "disks-a.storage.svc.cluster.local:9180", "cairn"] {
            for path in ["/metrics", "/health/live", "/health/ready"] {
                let answer = bench.client.named(name).send("GET", path, &[], None).await;
                assert_eq!(answer.status, 200, "{path} as {name}: {answer:?}");
            }
        }
    }
}

/// RFC 9110, section 11.1: the name of a scheme has no case.
#[tokio::test]
async fn the_scheme_of_a_token_is_written_in_any_case() {
    let bench = Bench::over_tcp("127.0.0.1", Some("correct-horse-battery")).await;
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let given = [("Authorization", &*format!("{scheme} correct-horse-battery"))];
        assert_eq!(bench.client.send("GET", "/api/v1/volumes", &given, None).await.status, 200, "{scheme}");
        assert_eq!(bench.client.send("POST", "/api/v1/drain", &given, None).await.status, 202, "{scheme}");
    }
}

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere_and_runs_nothing_inline() {
    let bench = Bench::new().await;
    for path in ["/", "/status.css", "/status.js", "/volume.js"] {
        let answer = bench.get(path).await;
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        for outside in ["http://", "https://", "//cdn", "url(", "@import", "style=", "onclick", "innerHTML"] {
            assert!(!answer.body.contains(outside), "{path} has {outside}");
        }
    }
}

#[tokio::test]
async fn it_ends_and_takes_its_socket_with_it() {
    let bench = Bench::new().await;
    let ListenAddress::Unix(path) = bench.admin.address().clone() else { panic!("not a Unix socket") };
    assert!(path.exists());
    bench.admin.stop().await;
    assert!(!path.exists());
}

pub(super) fn description() -> Value {
    serde_json::from_str(include_str!("../../src/admin/openapi.json")).unwrap()
}

fn methods(operations: &Value) -> Vec<String> {
    let known = operations.as_object().unwrap().keys().filter(|key| *key != "parameters");
    known.map(|method| method.to_uppercase()).collect()
}

/// The routes that `api.rs` makes, as its source has them.
fn routes_of_the_source() -> BTreeMap<String, BTreeSet<String>> {
    let source = include_str!("../../src/admin/api.rs");
    let lines = source.lines().filter_map(|line| line.trim().strip_prefix(".route(\""));
    lines
        .map(|line| {
            let (path, handlers) = line.split_once("\", ").unwrap();
            let methods =
                ["get(", "post(", "delete(", "put(", "patch("].iter().filter(|m| handlers.contains(**m));
            (path.to_owned(), methods.map(|m| m.trim_end_matches('(').to_uppercase()).collect())
        })
        .collect()
}

#[tokio::test]
async fn the_description_has_every_route_and_no_other() {
    let described: BTreeMap<String, BTreeSet<String>> = description()["paths"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(path, operations)| (path.clone(), methods(operations).into_iter().collect()))
        .collect();
    assert_eq!(described, routes_of_the_source());
    let bench = Bench::new().await;
    for (path, methods) in &described {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let answer = bench.client.send(method, &path_of(path, "x"), &[], None).await;
            assert_eq!(answer.status != 405, methods.contains(method), "{method} {path}: {}", answer.status);
        }
    }
    assert_eq!(bench.ask("GET", "/api/v1/openapi.json", None).await, (200, description()));
}

/// Whether a value is as a schema says; says where it is not.
pub(super) fn conforms(value: &Value, schema: &Value, document: &Value, at: &str) {
    if let Some(path) = schema["$ref"].as_str() {
        let name = path.strip_prefix("#/components/schemas/").unwrap();
        return conforms(value, &document["components"]["schemas"][name], document, at);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let choice = choices.iter().find(|choice| (choice["type"] == "null") == value.is_null()).unwrap();
        return conforms(value, choice, document, at);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds: Vec<&str> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().unwrap()).collect(),
        kind => vec![kind.as_str().unwrap_or_else(|| panic!("{at} has no type"))],
    };
    assert!(kinds.contains(&kind), "{at} is a {kind}, not {kinds:?}");
    match value {
        Value::Array(items) => items.iter().for_each(|item| conforms(item, &schema["items"], document, at)),
        Value::Object(fields) => {
            let described: BTreeSet<&String> = schema["properties"].as_object().unwrap().keys().collect();
            assert_eq!(fields.keys().collect::<BTreeSet<_>>(), described, "fields of {at}");
            assert_eq!(
                schema["required"].as_array().unwrap().len(),
                described.len(),
                "{at} has all its fields"
            );
            for (name, field) in fields {
                conforms(field, &schema["properties"][name], document, &format!("{at}.{name}"));
            }
        }
        _ => {}
    }
}

#[tokio::test]
async fn what_differs_between_two_snapshots_is_listed_page_by_page() {
    let bench = Bench::new().await;
    let volume = bench.house.opened(&bench.metrics, "disk").await;
    volume.write(0, Bytes::from_static(&[1; 8192]), Volatile).await.unwrap();
    volume.snapshot("a").await.unwrap();
    volume.zero(0, 4096, cairn::effect::Zeroing::Deallocate, Volatile).await.unwrap();
    volume.write(12_288, Bytes::from_static(&[2; 4096]), Volatile).await.unwrap();
    volume.snapshot("b").await.unwrap();
    let range = |offset, zero| json!({ "offset": offset, "length": 4096, "zero": zero });
    let (zero, data) = (range(0, true), range(12_288, false));
    for (query, ranges, next) in [
        ("", vec![&zero, &data], Value::Null),
        ("&limit=1", vec![&zero], json!(12_288)),
        ("&offset=12288", vec![&data], Value::Null),
    ] {
        let path = format!("/api/v1/volumes/disk/snapshots/b/changes?since=a{query}");
        let (status, answer) = bench.ask("GET", &path, None).await;
        assert_eq!((status, &answer["ranges"]), (200, &json!(ranges)), "{query}");
        assert_eq!(answer["next_offset"], next, "{query}");
    }
}

#[tokio::test]
async fn answers_are_as_the_description_says() {
    let bench = Bench::new().await;
    let volume = bench.house.opened(&bench.metrics, "disk").await;
    volume.snapshot("monday").await.unwrap();
    volume.write(8192, Bytes::from_static(&[1; 4096]), Volatile).await.unwrap();
    volume.snapshot("tuesday").await.unwrap();
    let document = description();
    for (path, asked) in [
        ("/api/v1/volumes/{name}/snapshots", "/api/v1/volumes/disk/snapshots"),
        (
            "/api/v1/volumes/{name}/snapshots/{snapshot}/changes",
            "/api/v1/volumes/disk/snapshots/tuesday/changes?since=monday",
        ),
        ("/api/v1/status", "/api/v1/status"),
        ("/api/v1/volumes", "/api/v1/volumes"),
        ("/api/v1/volumes/{name}", "/api/v1/volumes/disk"),
        ("/api/v1/volumes/{name}/map", "/api/v1/volumes/disk/map"),
        ("/api/v1/connections", "/api/v1/connections"),
    ] {
        let (status, answer) = bench.ask("GET", asked, None).await;
        assert_eq!(status, 200, "{answer}");
        let content = &document["paths"][path]["get"]["responses"]["200"]["content"];
        conforms(&answer, &content["application/json"]["schema"], &document, path);
    }
    let (_, answer) = bench.ask("GET", "/api/v1/volumes/none", None).await;
    conforms(&answer, &document["components"]["schemas"]["Problem"], &document, "Problem");
}
