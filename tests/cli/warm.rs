//! `cairn volume warm`: a gateway loads into its cache what was read first after an earlier opening.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::tempdir;

use super::{Gateway, cairn, fail, succeed};

/// A gateway that has the volume `disk` open.
fn serve(at: &Path, record_reads: &str) -> Command {
    let mut serve = cairn(at, "serve --listen 127.0.0.1:0");
    serve.env("CAIRN_ADMIN__SOCKET", at.join("admin.sock")).env("CAIRN_VOLUMES__OPEN", "disk");
    serve.env("CAIRN_VOLUMES__RECORD_READS", record_reads);
    serve
}

#[test]
fn a_disk_is_warmed_by_its_gateway() {
    let at = tempdir().unwrap();
    let at = at.path();
    std::fs::write(at.join("disk.img"), vec![7; 4 << 20]).unwrap();
    succeed(at, "import disk.img disk --quiet");
    let by = format!("--gateway={}", at.join("admin.sock").display());
    let refused = fail(at, "volume warm disk", 2);
    assert!(refused.contains("cairn volume warm disk --gateway"), "it says how: {refused}");

    // The first gateway records what is read, until it ends.
    let gateway = Gateway::start(serve(at, "10m"));
    let said = succeed(at, &format!("volume warm disk {by}"));
    assert!(said.contains("no first reads of disk are recorded yet"), "{said}");
    let listens = gateway.lines.iter().find_map(|line| line.strip_prefix("listening on "));
    let uri = listens.and_then(|rest| rest.split_whitespace().next()).expect("it listens");
    succeed(at, &format!("nbd copy {}/disk copy.img", uri.trim_end_matches('/')));
    gateway.terminate();

    // The second one loads it by itself, and a third one on request.
    let mut gateway = Gateway::start(serve(at, "10m"));
    gateway.wait_for_log("loaded what was read first after an earlier opening");
    gateway.terminate();
    for more in ["", " --all"] {
        let gateway = Gateway::start(serve(at, "0s"));
        let warm = format!("volume warm disk{more} {by}");
        let answer: Value = serde_json::from_str(&succeed(at, &format!("{warm} --json"))).unwrap();
        assert_eq!((&answer["state"], answer["bytes"].as_u64()), (&Value::from("loaded"), Some(4 << 20)));
        assert!(answer["requests"].as_u64().is_some_and(|requests| (1..=8).contains(&requests)), "{answer}");
        let said = succeed(at, &warm);
        assert!(said.starts_with("loaded ") && said.ends_with("of disk in 0 requests\n"), "{said}");
        assert!(fail(at, &format!("volume warm none {by}"), 1).contains("no volume named"));
        gateway.terminate();
    }
    succeed(at, "check disk --data");
    succeed(at, "volume delete disk --now");
}
