//! What the admin server serves from memory: the status, and metrics in the format and encoding that is asked for.

use std::io::Read as _;

use cairn::gateway::Known;
use cairn::metrics::{StoreOperation, StoreOutcome};
use flate2::read::GzDecoder;
use serde_json::json;

use super::admin::Bench;
use super::house::MIB;
use cairn::volume::catalog;

#[tokio::test]
async fn the_status_has_what_is_open_and_what_was_known_of_the_rest() {
    let bench = Bench::new().await;
    bench.house.opened(&bench.metrics, "disk").await;
    let idle = catalog::create(&bench.house.env, &bench.house.options, "idle", MIB, catalog::ChunkBytes(MIB))
        .await
        .unwrap();
    let (_, status) = bench.ask("GET", "/api/v1/status", None).await;
    let names = |status: &serde_json::Value| -> Vec<String> {
        let volumes = status["volumes"].as_array().unwrap().iter();
        volumes.map(|volume| volume["name"].as_str().unwrap().to_owned()).collect()
    };
    // The store has not been asked.
    assert_eq!((names(&status), &status["counted_at"]), (vec!["disk".to_owned()], &json!(null)));
    let listed = catalog::volumes(&bench.house.env).await.unwrap();
    *bench.house.known.lock() = Some(Known { listed, at_seconds: 1_800_000_000 });
    bench.metrics.gateway().set_stored([("idle".to_owned(), 77)].into(), 1_800_000_000);
    let (_, status) = bench.ask("GET", "/api/v1/status", None).await;
    assert_eq!(names(&status), ["disk", "idle"]);
    assert_eq!(status["volumes"][0]["open"]["state"], "serving");
    let closed = &status["volumes"][1];
    assert_eq!((&closed["open"], &closed["stored_bytes"]), (&json!(null), &json!(77)));
    assert_eq!(closed["id"], json!(idle.volume));
    assert_eq!(status["counted_at"], "2027-01-15T08:00:00Z");
    assert_eq!(status["connect"], json!(["nbd://127.0.0.1:10809/{name}"]));
    assert_eq!(status["store_failing_seconds"], json!(null));
    let store = bench.metrics.store();
    store.ended(StoreOperation::Get, StoreOutcome::Timeout, 0, std::time::Duration::ZERO);
    let (_, status) = bench.ask("GET", "/api/v1/status", None).await;
    assert!(status["store_failing_seconds"].as_f64().is_some(), "{status}");
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let bench = Bench::new().await;
    let text = "text/plain; version=0.0.4; charset=utf-8";
    let open = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    // As Prometheus 2 and 3 ask.
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
        text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for (accept, kind) in [
        ("*/*", text),
        ("text/plain;version=0.0.4", text),
        ("application/openmetrics-text;q=0, text/plain", text),
        (prometheus, open),
    ] {
        let answer = bench.client.send("GET", "/metrics", &[("Accept", accept)], None).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, kind), "{accept}");
        assert_eq!(answer.body.ends_with("# EOF\n"), kind == open);
        assert_eq!(answer.body.contains("# TYPE cairn_log_lines_lost counter"), kind == open);
        assert!(answer.body.contains("cairn_log_lines_lost_total{reason=\"full\"} 0\n"));
    }
}

#[tokio::test]
async fn metrics_are_compressed_for_whoever_takes_that() {
    let bench = Bench::new().await;
    let plain = bench.client.fetch("/metrics", "Accept-Encoding: gzip;q=0, br").await;
    let packed = bench.client.fetch("/metrics", "Accept-Encoding: gzip").await;
    let split = |answer: &[u8]| {
        let at = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        (String::from_utf8(answer[..at].to_vec()).unwrap().to_lowercase(), answer[at + 4..].to_vec())
    };
    let ((head, body), (packed_head, packed_body)) = (split(&plain), split(&packed));
    assert!(!head.contains("content-encoding"), "{head}");
    assert!(packed_head.contains("content-encoding: gzip"), "{packed_head}");
    let mut unpacked = String::new();
    GzDecoder::new(&*packed_body).read_to_string(&mut unpacked).unwrap();
    // Times of the process have moved on.
    let names = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    };
    assert_eq!(names(&unpacked), names(std::str::from_utf8(&body).unwrap()));
    assert!(packed_body.len() * 4 < body.len(), "{} of {} bytes", packed_body.len(), body.len());
}
