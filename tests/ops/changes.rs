//! What the API changes of a volume: its size, its name and its garbage. What is open keeps its name, and is not
//! deleted.

use std::sync::Arc;

use bytes::Bytes;
use cairn::effect::Durability::Volatile;
use cairn::gateway::Gateway;
use cairn::store::Condition;
use cairn::volume::format::keys::{Keys, ObjectId};
use cairn::volume::{Volume, catalog};
use serde_json::{Value, json};

use super::admin::{Bench, conforms, description};
use super::house::MIB;

#[tokio::test]
async fn a_volume_is_resized_and_everything_shows_it() {
    let bench = Bench::new().await;
    let volume = bench.house.opened(&bench.metrics, "disk").await;
    let path = "/api/v1/volumes/disk";
    let change = |size: u64, shrink: bool| Some(json!({ "size_bytes": size, "shrink": shrink }));
    for (size, shrink) in [(128 * MIB, false), (32 * MIB, true), (32 * MIB, false)] {
        let (status, answer) = bench.ask("PATCH", path, change(size, shrink)).await;
        assert_eq!((status, &answer["size_bytes"]), (200, &json!(size)), "{answer}");
        conforms(&answer, &description()["components"]["schemas"]["Volume"], &description(), path);
        assert_eq!(bench.ask("GET", path, None).await.1["size_bytes"], size);
        assert_eq!(bench.ask("GET", "/api/v1/status", None).await.1["volumes"][0]["size_bytes"], size);
        assert_eq!(bench.ask("GET", &format!("{path}/map"), None).await.1["size_bytes"], size);
        let shown = bench.get("/metrics").await.body;
        assert!(shown.contains(&format!("cairn_volume_size_bytes{{volume=\"disk\"}} {size}\n")), "{shown}");
        assert_eq!(volume.size_bytes(), size);
    }
    for (change, expected, word) in [
        (json!({ "size_bytes": MIB }), 409, "shrink"),
        (json!({ "size_bytes": 513, "shrink": true }), 422, "512"),
        (json!({ "shrink": true }), 422, "size_bytes"),
    ] {
        let (status, answer) = bench.ask("PATCH", path, Some(change)).await;
        assert_eq!(status, expected, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{answer}");
    }
    volume.abandon().await;
    assert_eq!(bench.ask("PATCH", path, change(MIB, true)).await.0, 409);
}

#[tokio::test]
async fn a_volume_is_renamed_and_everything_shows_it() {
    let bench = Bench::new().await;
    let info = bench.house.create("disk", MIB, None).await.unwrap();
    let id = json!(info.volume.to_string());
    let to = |name: &str| Some(json!({ "name": name }));
    let (status, answer) = bench.ask("PATCH", "/api/v1/volumes/disk", to("new")).await;
    assert_eq!((status, &answer["name"], &answer["id"]), (200, &json!("new"), &id), "{answer}");
    assert_eq!((&answer["holder"], &answer["open"]), (&Value::Null, &Value::Null), "{answer}");
    conforms(&answer, &description()["components"]["schemas"]["Volume"], &description(), "rename");
    assert_eq!(bench.ask("GET", "/api/v1/volumes/new", None).await.1["id"], id);
    assert_eq!(bench.ask("GET", "/api/v1/volumes/disk", None).await.0, 404);
    assert_eq!(bench.ask("PATCH", "/api/v1/volumes/disk", to("x")).await.0, 404);
    let other = json!({ "name": "other", "size_bytes": MIB });
    assert_eq!(bench.ask("POST", "/api/v1/volumes", Some(other)).await.0, 201);
    for (name, expected) in [("other", 409), (".x", 422), ("new", 200)] {
        let (status, answer) = bench.ask("PATCH", "/api/v1/volumes/new", to(name)).await;
        assert_eq!(status, expected, "{answer}");
    }
}

/// What is open is neither renamed nor deleted, whatever name it was opened under. The answer says who uses it.
#[tokio::test]
async fn a_volume_that_is_open_keeps_its_name_and_its_data() {
    let bench = Bench::new().await;
    let volume = bench.house.opened(&bench.metrics, "disk").await;
    for (shown_as, clients, is_configured, word) in [
        ("disk", 2, false, "connections that use it: 2"),
        ("old", 0, false, "idle_timeout"),
        ("old", 2, true, "configuration"),
    ] {
        {
            let mut open = bench.house.open.lock();
            (open[0].name, open[0].clients) = (shown_as.to_owned(), clients);
            open[0].is_configured = is_configured;
        }
        for (method, query, body) in [
            ("PATCH", "", Some(json!({ "name": "new" }))),
            ("DELETE", "", None),
            ("DELETE", "?takeover=true", None),
        ] {
            let (status, answer) = bench.ask(method, &format!("/api/v1/volumes/disk{query}"), body).await;
            assert_eq!(status, 409, "{method}{query} {shown_as}: {answer}");
            assert!(answer["error"].as_str().unwrap().contains(word), "{method} {answer}");
        }
        let (status, answer) =
            bench.ask("DELETE", &format!("/api/v1/unnamed/{}?takeover=true", volume.id()), None).await;
        assert_eq!(status, 409, "{answer}");
    }
    assert_eq!(catalog::resolve(&bench.house.env, "disk").await.unwrap(), volume.id());
    // Another volume that has got the name since is not protected by it.
    bench.house.open.lock()[0].name = "other".to_owned();
    let other = json!({ "name": "other", "size_bytes": MIB });
    assert_eq!(bench.ask("POST", "/api/v1/volumes", Some(other)).await.0, 201);
    assert_eq!(bench.ask("DELETE", "/api/v1/volumes/other", None).await.0, 204);
    volume.write(0, Bytes::from_static(b"kept"), Volatile).await.unwrap();
    volume.flush().await.unwrap();
}

#[tokio::test]
async fn garbage_is_shown_and_collected() {
    let bench = Bench::new().await;
    let volume = bench.house.opened(&bench.metrics, "disk").await;
    let stray = Keys::new(volume.id()).overlay(0, ObjectId { epoch: 0, k: 77 });
    let store = bench.house.env.store.as_ref();
    store.put(&stray, Bytes::from_static(b"left behind"), Condition::IfAbsent).await.unwrap();
    let path = "/api/v1/volumes/disk/gc";
    for (query, is_dry, deleted) in [("?dry_run=true", true, 0), ("", false, 1), ("?dry_run=false", false, 0)]
    {
        let (status, answer) = bench.ask("POST", &format!("{path}{query}"), None).await;
        assert_eq!((status, &answer["dry_run"]), (200, &json!(is_dry)), "{answer}");
        assert_eq!(answer["deleted_objects"], deleted, "{answer}");
        conforms(&answer, &description()["components"]["schemas"]["Garbage"], &description(), path);
    }
    for (path, expected, word) in [
        ("/api/v1/volumes/none/gc", 404, "no volume named"),
        ("/api/v1/volumes/none/gc?dry_run=true", 404, "no volume named"),
        ("/api/v1/volumes/.x/gc", 422, "is not a volume name"),
        ("/api/v1/volumes/disk/gc?takeover=true", 400, "takeover"),
    ] {
        let (status, answer) = bench.ask("POST", path, None).await;
        assert_eq!(status, expected, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{answer}");
    }
    volume.abandon().await;
    assert_eq!(bench.ask("POST", path, None).await.0, 409);
}

#[tokio::test]
async fn a_clone_is_flattened() {
    let bench = Bench::new().await;
    let volume = bench.house.opened(&bench.metrics, "disk").await;
    let path = "/api/v1/volumes/disk/flatten";
    let (status, answer) = bench.ask("POST", path, None).await;
    assert_eq!(
        (status, &answer["state"], &answer["seconds"]),
        (200, &json!("flat"), &Value::Null),
        "{answer}"
    );
    conforms(&answer, &description()["components"]["schemas"]["Flattened"], &description(), path);
    volume.write(0, Bytes::from(vec![7; 8192]), Volatile).await.unwrap();
    volume.snapshot("golden").await.unwrap();
    catalog::clone(&volume, "golden", "clone").await.unwrap();
    let id = catalog::resolve(&bench.house.env, "clone").await.unwrap();
    let clone = Volume::open(&bench.house.env, bench.house.options.clone(), id, false).await.unwrap();
    bench.house.open.lock()[0].volume = Arc::clone(&clone);
    bench.house.open.lock()[0].name = "clone".to_owned();
    let (status, answer) = bench.ask("POST", "/api/v1/volumes/clone/flatten", None).await;
    assert_eq!((status, &answer["state"]), (200, &json!("waits")), "{answer}");
    assert!(answer["seconds"].as_u64().is_some_and(|seconds| seconds > 3000), "{answer}");
    conforms(&answer, &description()["components"]["schemas"]["Flattened"], &description(), path);
    assert_eq!(bench.ask("POST", "/api/v1/volumes/none/flatten", None).await.0, 404);
    clone.abandon().await;
    assert_eq!(bench.ask("POST", "/api/v1/volumes/clone/flatten", None).await.0, 409);
}

#[tokio::test]
async fn a_volume_is_warmed() {
    let bench = Bench::new().await;
    let volume = bench.house.opened(&bench.metrics, "disk").await;
    volume.write(0, Bytes::from(vec![7; 8192]), Volatile).await.unwrap();
    volume.checkpoint().await.unwrap();
    let path = "/api/v1/volumes/disk/warm";
    for (query, state) in [("", "no_record"), ("?all=true", "loaded"), ("?all=false", "no_record")] {
        let (status, answer) = bench.ask("POST", &format!("{path}{query}"), None).await;
        assert_eq!(
            (status, &answer["state"], &answer["full"]),
            (200, &json!(state), &json!(false)),
            "{answer}"
        );
        conforms(&answer, &description()["components"]["schemas"]["Warmed"], &description(), path);
    }
    for (path, expected, word) in [
        ("/api/v1/volumes/none/warm", 404, "no volume named"),
        ("/api/v1/volumes/.x/warm", 422, "is not a volume name"),
        ("/api/v1/volumes/disk/warm?takeover=true", 400, "takeover"),
    ] {
        let (status, answer) = bench.ask("POST", path, None).await;
        assert_eq!(status, expected, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{answer}");
    }
    volume.abandon().await;
    assert_eq!(bench.ask("POST", path, None).await.0, 409);
}
