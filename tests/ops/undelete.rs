//! What the API says of deleted volumes, and how it brings them back.

use cairn::gateway::Gateway;
use serde_json::{Value, json};

use super::admin::{Bench, conforms, description};
use super::house::MIB;

/// An id that no volume has.
const NONE: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";

#[tokio::test]
async fn a_deleted_volume_is_listed_and_brought_back() {
    let bench = Bench::new().await;
    let id = bench.house.create("disk", MIB, None).await.unwrap().volume;
    let path = format!("/api/v1/deleted/{id}/undelete");
    let to = |name: &str| Some(json!({ "name": name }));
    assert_eq!(bench.ask("GET", "/api/v1/deleted", None).await, (200, json!([])));
    assert_eq!(bench.ask("POST", &path, Some(json!({}))).await.0, 404, "it is not deleted");
    assert_eq!(bench.ask("DELETE", "/api/v1/volumes/disk", None).await, (204, Value::Null));
    let (status, listed) = bench.ask("GET", "/api/v1/deleted", None).await;
    let expected = json!([{
        "id": id, "name": "disk", "size_bytes": MIB,
        "deleted_at": "2027-01-15T08:00:00Z", "kept_until": "2027-01-16T08:00:00Z",
    }]);
    assert_eq!((status, &listed), (200, &expected));
    let document = description();
    let content = &document["paths"]["/api/v1/deleted"]["get"]["responses"]["200"]["content"];
    conforms(&listed, &content["application/json"]["schema"], &document, "deleted");
    assert_eq!(bench.ask("GET", "/api/v1/unnamed", None).await, (200, json!([])));
    assert_eq!(bench.ask("GET", "/api/v1/volumes/disk", None).await.0, 404);
    let other = json!({ "name": "disk", "size_bytes": MIB });
    assert_eq!(bench.ask("POST", "/api/v1/volumes", Some(other)).await.0, 201);
    for (path, body, expected, word) in [
        (path.clone(), Some(json!({})), 409, "--as"),
        (path.clone(), to("disk"), 409, "--as"),
        (path.clone(), to(".x"), 422, "not a volume name"),
        (path.clone(), Some(json!({ "nam": "x" })), 422, "nam"),
        (path.clone(), None, 415, "Content-Type"),
        (format!("/api/v1/deleted/{NONE}/undelete"), to("x"), 404, "no deleted volume"),
        ("/api/v1/deleted/disk/undelete".to_owned(), to("x"), 422, "not an id"),
    ] {
        let (status, answer) = bench.ask("POST", &path, body).await;
        assert_eq!(status, expected, "{path}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{path}: {answer}");
    }
    let (status, answer) = bench.ask("POST", &path, to("old")).await;
    assert_eq!((status, &answer["name"], &answer["id"]), (200, &json!("old"), &json!(id)), "{answer}");
    conforms(&answer, &document["components"]["schemas"]["Volume"], &document, "undelete");
    assert_eq!(bench.ask("GET", "/api/v1/deleted", None).await, (200, json!([])));
    assert_eq!(bench.ask("GET", "/api/v1/volumes/old", None).await.1["id"], json!(id));
}

#[tokio::test]
async fn a_kept_volume_is_deleted_for_good_and_no_other() {
    let bench = Bench::new().await;
    let id = bench.house.create("disk", MIB, None).await.unwrap().volume;
    let path = format!("/api/v1/deleted/{id}");
    for (path, expected, word) in [
        (path.clone(), 404, "no deleted volume"),
        (format!("/api/v1/deleted/{NONE}"), 404, "no deleted volume"),
        ("/api/v1/deleted/disk".to_owned(), 422, "not an id"),
    ] {
        let (status, answer) = bench.ask("DELETE", &path, None).await;
        assert_eq!(status, expected, "{path}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{path}: {answer}");
    }
    assert_eq!(bench.ask("GET", "/api/v1/volumes/disk", None).await.1["id"], json!(id), "it is in use");
    assert_eq!(bench.ask("DELETE", "/api/v1/volumes/disk", None).await.0, 204);
    assert_eq!(bench.ask("DELETE", &path, None).await, (204, Value::Null));
    for list in ["deleted", "unnamed", "volumes"] {
        assert_eq!(bench.ask("GET", &format!("/api/v1/{list}"), None).await, (200, json!([])), "{list}");
    }
}

#[tokio::test]
async fn a_volume_that_is_deleted_for_good_is_not_kept() {
    let bench = Bench::new().await;
    for (name, query) in [("a", "?now=true"), ("b", "?now=true&takeover=true")] {
        bench.house.create(name, MIB, None).await.unwrap();
        let deleted = bench.ask("DELETE", &format!("/api/v1/volumes/{name}{query}"), None).await;
        assert_eq!(deleted, (204, Value::Null));
        assert_eq!(bench.ask("GET", "/api/v1/deleted", None).await, (200, json!([])));
    }
    let id = bench.house.create("c", MIB, None).await.unwrap().volume;
    assert_eq!(bench.ask("DELETE", "/api/v1/volumes/c?now=false", None).await.0, 204);
    assert_eq!(bench.ask("DELETE", "/api/v1/volumes/c?now=perhaps", None).await.0, 400);
    assert_eq!(bench.ask("DELETE", &format!("/api/v1/unnamed/{id}?now=true"), None).await.0, 400);
    assert_eq!(bench.ask("DELETE", &format!("/api/v1/unnamed/{id}"), None).await.0, 204);
    assert_eq!(bench.ask("GET", "/api/v1/deleted", None).await, (200, json!([])));
}
