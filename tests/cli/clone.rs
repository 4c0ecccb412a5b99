//! `cairn clone`: in a store that no gateway serves, and by a gateway.

use serde_json::Value;
use tempfile::tempdir;

use super::{Gateway, cairn, fail, run, succeed};

#[test]
fn a_clone_from_creation_to_deletion() {
    let at = tempdir().unwrap();
    let at = at.path();
    let content = [vec![7; 1 << 20], vec![0; 1 << 20]].concat();
    std::fs::write(at.join("image"), &content).unwrap();
    succeed(at, "import image golden");
    succeed(at, "snapshot create golden@v1");
    assert_eq!(succeed(at, "clone golden@v1 web"), "created web of 2MiB, a clone of golden@v1\n");
    let made: Value = serde_json::from_str(&succeed(at, "clone golden@v1 db --json")).unwrap();
    let golden: Value = serde_json::from_str(&succeed(at, "volume info golden --json")).unwrap();
    assert_eq!((&made["name"], &made["clone_of"]), (&Value::from("db"), &golden["id"]));
    assert_eq!(golden["clone_of"], Value::Null);
    let shown = succeed(at, "volume info web");
    let parent = golden["id"].as_str().expect("an id");
    assert!(shown.lines().any(|line| line == format!("clone of    golden ({parent})")), "{shown}");
    succeed(at, "export web out.img");
    assert!(std::fs::read(at.join("out.img")).unwrap() == content, "it has what the snapshot has");
    succeed(at, "check web --data");
    succeed(at, "snapshot create web@mine");
    succeed(at, "clone web@mine web-2");

    let error = fail(at, "snapshot delete golden@v1", 1);
    assert!(error.contains("\"v1\" is needed by its clones web, db"), "{error}");
    let error = fail(at, "volume delete golden --now", 1);
    assert!(error.contains("the volume is needed by its clones web, db"), "{error}");
    let error = fail(at, "volume delete web --now --takeover", 1);
    assert!(error.contains("its clone web-2"), "whoever holds it: {error}");
    // A clone that can be brought back needs the snapshot still.
    succeed(at, "volume delete db");
    let error = fail(at, "snapshot delete golden@v1", 1);
    assert!(error.contains("\"v1\" is needed by its clones web, "), "{error}");
    assert!(error.contains("(deleted db)"), "{error}");
    succeed(at, "volume undelete db");
    for clone in ["web-2", "web", "db"] {
        succeed(at, &format!("volume delete {clone} --now"));
    }
    assert_eq!(succeed(at, "snapshot delete golden@v1"), "deleted golden@v1\n");
    succeed(at, "check golden --data");
    succeed(at, "volume delete golden --now");
}

#[test]
fn mistakes_are_refused_and_create_nothing() {
    let at = tempdir().unwrap();
    let at = at.path();
    assert!(fail(at, "clone disk new", 2).contains("VOLUME@NAME"));
    let error = fail(at, "clone disk@x new --store file://./typo", 1);
    assert!(error.contains("the directory ./typo does not contain a store"), "{error}");
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 0);
    succeed(at, "volume create disk 1MiB");
    succeed(at, "snapshot create disk@x");
    assert!(fail(at, "clone other@x new", 1).contains("no volume named \"other\""));
    assert!(fail(at, "clone disk@y new", 1).contains("no snapshot named \"y\""));
    assert!(fail(at, "clone disk@x disk", 1).contains("exists already"));
    assert!(fail(at, "clone disk@x a/b", 2).contains("not a volume name"));
    let listed: Vec<Value> = serde_json::from_str(&succeed(at, "volume list --json")).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(succeed(at, "volume list --unnamed --json").trim(), "[]");
}

/// Only the gateway that holds the volume can keep its snapshot for a clone.
#[test]
fn while_a_gateway_holds_the_volume_it_makes_the_clones() {
    let at = tempdir().unwrap();
    let at = at.path();
    let socket = at.join("admin.sock");
    let mut serve = cairn(at, "serve --listen 127.0.0.1:0 --create disk=1MiB");
    serve.env("CAIRN_ADMIN__SOCKET", &socket);
    let gateway = Gateway::start(serve);
    let by = format!("--gateway={}", socket.display());
    succeed(at, &format!("snapshot create disk@v1 {by}"));
    assert!(fail(at, "clone disk@v1 new", 1).contains("--gateway"), "the message says how to ask it");
    let told = succeed(at, &format!("clone disk@v1 new {by}"));
    assert_eq!(told, "created new of 1MiB, a clone of disk@v1\n");
    assert!(fail(at, &format!("clone disk@v1 new {by}"), 1).contains("exists already"));
    assert!(fail(at, &format!("clone disk@v2 new2 {by}"), 1).contains("no snapshot named"));
    let listens = gateway.lines.iter().find_map(|line| line.strip_prefix("listening on "));
    let uri = listens.and_then(|rest| rest.split_whitespace().next()).expect("it listens");
    succeed(at, &format!("nbd copy {}/new new.img", uri.trim_end_matches('/')));
    assert_eq!(std::fs::read(at.join("new.img")).unwrap(), vec![0; 1 << 20]);
    assert!(fail(at, &format!("snapshot delete disk@v1 {by}"), 1).contains("its clone new"));
    gateway.terminate();
    succeed(at, "volume delete new --now");
    succeed(at, "snapshot delete disk@v1");
}

#[test]
fn a_clone_is_flattened_and_its_parent_can_go() {
    let at = tempdir().unwrap();
    let at = at.path();
    std::fs::write(at.join("disk.img"), vec![7; 1 << 20]).unwrap();
    succeed(at, "import disk.img golden --quiet");
    succeed(at, "snapshot create golden@v1");
    succeed(at, "clone golden@v1 web");
    assert!(succeed(at, "volume info web").contains("clone of"));
    assert!(fail(at, "snapshot delete golden@v1", 1).contains("its clone web"));
    // What it replaces is kept for the grace period.
    let said = succeed(at, "volume flatten web");
    assert!(said.contains("all data of web is its own") && said.contains("repeat the command"), "{said}");
    let at_once = || {
        let mut flatten = cairn(at, "volume flatten web");
        flatten.env("CAIRN_STORE__DELETION_GRACE", "0s");
        let done = run(flatten);
        assert_eq!(done.code, Some(0), "{}", done.err);
        done.out == "web needs no other volume\n"
    };
    // The next opening deletes them.
    assert!((0..20).any(|_| at_once()), "it waits for ever");
    assert!(!succeed(at, "volume info web").contains("clone of"));
    succeed(at, "snapshot delete golden@v1");
    succeed(at, "volume delete golden --now");
    succeed(at, "check web --data");
    succeed(at, "export web again.img --quiet");
    assert!(std::fs::read(at.join("again.img")).unwrap() == vec![7; 1 << 20]);
    assert!(fail(at, "volume flatten none", 1).contains("no volume named"));
}
