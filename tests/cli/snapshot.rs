//! `cairn snapshot`: in a store that no gateway serves, and by a gateway.

use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use super::{Gateway, cairn, fail, run, succeed};

fn names(at: &Path, line: &str) -> Vec<String> {
    let listed: Vec<Value> = serde_json::from_str(&succeed(at, line)).expect("--json prints JSON");
    listed.iter().map(|snapshot| snapshot["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_snapshot_from_creation_to_deletion() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    assert_eq!(succeed(at, "snapshot list disk"), "NAME  TAKEN\n");
    assert_eq!(succeed(at, "snapshot create disk@monday"), "created disk@monday\n");
    let made: Value = serde_json::from_str(&succeed(at, "snapshot create disk@a.2_b-c --json")).unwrap();
    assert_eq!(made["name"], "a.2_b-c");
    let taken = made["taken_at"].as_str().expect("a time");
    assert!(taken.starts_with("20") && taken.ends_with('Z'), "{taken}");
    assert_eq!(names(at, "snapshot list disk --json"), ["monday", "a.2_b-c"]);
    let table = succeed(at, "snapshot list disk");
    assert!(table.lines().any(|line| line == format!("a.2_b-c  {taken}")), "{table}");
    let error = fail(at, "snapshot create disk@monday", 1);
    assert!(error.contains("\"disk@monday\"") && error.contains("exists already"), "{error}");
    assert_eq!(succeed(at, "snapshot delete disk@monday"), "deleted disk@monday\n");
    let error = fail(at, "snapshot delete disk@monday", 1);
    assert!(error.contains("no snapshot named \"monday\""), "{error}");
    assert_eq!(names(at, "snapshot list disk --json"), ["a.2_b-c"]);
    // The volume is left closed, and sound.
    let info: Value = serde_json::from_str(&succeed(at, "volume info disk --json")).unwrap();
    assert_eq!(info["holder"], Value::Null);
    succeed(at, "check disk --data");
}

#[test]
fn mistakes_are_refused_and_create_nothing() {
    let at = tempdir().unwrap();
    let at = at.path();
    for line in
        ["snapshot create disk", "snapshot create disk@.x", "snapshot delete disk@", "volume restore @x"]
    {
        let error = fail(at, line, 2);
        assert!(error.contains("VOLUME@NAME"), "{line}: {error}");
    }
    for line in
        ["snapshot create disk@x", "snapshot list disk", "snapshot delete disk@x", "volume restore disk@x"]
    {
        let error = fail(at, &format!("{line} --store file://./typo"), 1);
        assert!(error.contains("the directory ./typo does not contain a store"), "{line}: {error}");
    }
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 0);
    succeed(at, "volume create other 1MiB");
    for line in
        ["snapshot create disk@x", "snapshot list disk", "snapshot delete disk@x", "volume restore disk@x"]
    {
        assert!(fail(at, line, 1).contains("no volume named \"disk\""), "{line}");
    }
    assert!(fail(at, "snapshot list a/b", 2).contains("not a volume name"));
}

/// Only the gateway that holds a volume can change its snapshots, and the message says how to ask it.
#[test]
fn while_a_gateway_holds_the_volume_it_takes_and_deletes_the_snapshots() {
    let at = tempdir().unwrap();
    let at = at.path();
    let socket = at.join("admin.sock");
    let mut serve = cairn(at, "serve --listen 127.0.0.1:0 --create disk=1MiB");
    // The name of a gateway that a command of the same configuration must not take for its own.
    serve.env("CAIRN_ADMIN__SOCKET", &socket).env("CAIRN_LEASE__HOLDER", "gateway-a");
    let gateway = Gateway::start(serve);
    for line in ["snapshot create disk@monday", "snapshot delete disk@monday", "volume restore disk@monday"] {
        let mut refused = cairn(at, line);
        refused.env("CAIRN_LEASE__HOLDER", "gateway-a");
        let refused = run(refused);
        assert_eq!(refused.code, Some(1), "{}", refused.err);
        assert!(refused.err.contains("gateway-a") && refused.err.contains("--gateway"), "{}", refused.err);
    }
    let by = format!("--gateway={}", socket.display());
    assert_eq!(succeed(at, &format!("snapshot create disk@monday {by}")), "created disk@monday\n");
    assert!(fail(at, &format!("snapshot create disk@monday {by}"), 1).contains("exists already"));
    assert!(fail(at, &format!("snapshot create none@monday {by}"), 1).contains("no volume named"));
    // Reading the list takes no lease.
    assert_eq!(names(at, "snapshot list disk --json"), ["monday"]);
    assert_eq!(names(at, &format!("snapshot list disk --json {by}")), ["monday"]);
    // A volume that is not open is opened for it, and a snapshot of it can be read.
    succeed(at, "volume create idle 1MiB");
    succeed(at, &format!("snapshot create idle@now {by}"));
    let listens = gateway.lines.iter().find_map(|line| line.strip_prefix("listening on "));
    let uri = listens.and_then(|rest| rest.split_whitespace().next()).expect("it listens");
    let uri = uri.trim_end_matches('/');
    succeed(at, &format!("nbd copy {uri}/idle@now now.img"));
    assert_eq!(std::fs::read(at.join("now.img")).unwrap(), vec![0; 1 << 20]);
    let listed = succeed(at, &format!("nbd list {uri}"));
    assert_eq!(listed.lines().collect::<Vec<_>>(), ["disk", "idle"], "the list has volumes only");
    succeed(at, &format!("snapshot delete disk@monday {by}"));
    assert!(fail(at, &format!("snapshot delete disk@monday {by}"), 1).contains("no snapshot named"));
    gateway.terminate();
    assert_eq!(names(at, "snapshot list idle --json"), ["now"]);
    succeed(at, "snapshot delete idle@now");
}

/// What a disk contained at a snapshot comes back, and neither the snapshot nor a later one changes.
#[test]
fn a_volume_goes_back_to_a_snapshot() {
    let at = tempdir().unwrap();
    let at = at.path();
    let socket = at.join("admin.sock");
    let (monday, tuesday) = (vec![1; 1 << 20], vec![2; 1 << 20]);
    std::fs::write(at.join("monday"), &monday).unwrap();
    std::fs::write(at.join("tuesday"), &tuesday).unwrap();
    let start = || {
        let mut serve = cairn(at, "serve --listen 127.0.0.1:0 --create disk=1MiB");
        serve.env("CAIRN_ADMIN__SOCKET", &socket);
        let gateway = Gateway::start(serve);
        let listens = gateway.lines.iter().find_map(|line| line.strip_prefix("listening on "));
        let uri = listens.and_then(|rest| rest.split_whitespace().next()).expect("it listens");
        let uri = uri.trim_end_matches('/').to_owned();
        (gateway, uri)
    };
    let (gateway, uri) = start();
    let by = format!("--gateway={}", socket.display());
    for day in ["monday", "tuesday"] {
        succeed(at, &format!("nbd copy {day} {uri}/disk"));
        succeed(at, &format!("snapshot create disk@{day} {by}"));
    }
    gateway.terminate();
    assert!(fail(at, "volume restore disk@sunday", 1).contains("no snapshot named \"sunday\""));
    assert_eq!(succeed(at, "volume restore disk@monday"), "restored disk@monday\n");
    succeed(at, "check disk --data");
    let (gateway, uri) = start();
    for (export, content) in [("disk", &monday), ("disk@monday", &monday), ("disk@tuesday", &tuesday)] {
        succeed(at, &format!("nbd copy {uri}/{export} read.img"));
        assert!(std::fs::read(at.join("read.img")).unwrap() == *content, "{export}");
        std::fs::remove_file(at.join("read.img")).unwrap();
    }
    gateway.terminate();
    // The snapshot that was restored is not needed any more.
    succeed(at, "snapshot delete disk@monday");
    succeed(at, "check disk --data");
    succeed(at, "volume restore disk@tuesday");
    assert_eq!(names(at, "snapshot list disk --json"), ["tuesday"]);
}
