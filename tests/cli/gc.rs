//! `cairn gc`: in a store that no gateway serves, and by a gateway.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::tempdir;

use super::{Gateway, Run, cairn, fail, run, succeed};

fn answer(at: &Path, line: &str) -> Value {
    serde_json::from_str(&succeed(at, line)).expect("--json prints JSON")
}

/// Makes an object of a volume that nothing references. Returns its file.
fn litter(at: &Path, name: &str) -> PathBuf {
    let id = answer(at, &format!("volume info {name} --json"))["id"].as_str().expect("an id").to_owned();
    let folder = at.join("cairn-data/volume").join(id).join("map");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("0-0-77");
    std::fs::write(&file, "left behind").unwrap();
    file
}

#[test]
fn what_nothing_references_goes_and_a_dry_run_only_shows_it() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    succeed(at, "volume create other 1MiB");
    let (of_disk, of_other) = (litter(at, "disk"), litter(at, "other"));
    assert_eq!(succeed(at, "gc disk --dry-run"), "disk: 1 objects (11) that nothing references\n");
    let shown = answer(at, "gc --dry-run --json");
    assert_eq!((&shown["dry_run"], &shown["unnamed"]), (&json!(true), &json!([])));
    assert_eq!(shown["volumes"].as_array().map(Vec::len), Some(2));
    assert_eq!(shown["volumes"][1]["name"], "other");
    assert_eq!(shown["volumes"][1]["before"]["orphan_bytes"], 11);
    assert!(of_disk.exists() && of_other.exists());
    assert_eq!(answer(at, "volume info disk --json")["epoch"], 0, "it was not opened");

    let line = succeed(at, "gc disk");
    assert!(line.starts_with("disk: deleted 1 objects; 4 objects ("), "{line}");
    assert!(!of_disk.exists() && of_other.exists());
    let done = answer(at, "gc --json");
    assert!(!of_other.exists());
    assert_eq!(
        (&done["dry_run"], &done["volumes"][1]["after"]["orphan_objects"]),
        (&json!(false), &json!(0))
    );
    // The volumes are left closed, and sound.
    for name in ["disk", "other"] {
        assert_eq!(answer(at, &format!("volume info {name} --json"))["holder"], Value::Null);
        succeed(at, &format!("check {name} --data"));
    }
}

#[test]
fn volumes_without_a_name_are_left_alone_and_it_says_what_to_type() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    let id = answer(at, "volume info disk --json")["id"].as_str().expect("an id").to_owned();
    std::fs::remove_file(at.join("cairn-data/name/disk")).unwrap();
    let said = succeed(at, "gc");
    assert!(said.starts_with("the store has no volumes\nvolumes without a name"), "{said}");
    assert!(
        said.contains(&format!("\n  cairn volume delete --id {id}    made for disk, created 20")),
        "{said}"
    );
    let shown = answer(at, "gc --json");
    assert_eq!(shown["unnamed"][0]["id"], id.as_str());
    let typed = shown["unnamed"][0]["delete_with"].as_str().expect("a command").to_owned();
    succeed(at, typed.strip_prefix("cairn ").expect("it is one of ours"));
    assert_eq!(succeed(at, "gc"), "the store has no volumes\n");
}

#[test]
fn mistakes_are_refused() {
    let at = tempdir().unwrap();
    let at = at.path();
    assert!(fail(at, "gc --store file://./typo", 1).contains("does not contain a store"));
    assert!(fail(at, "gc --dry-run --store file://./typo", 1).contains("does not contain a store"));
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 0);
    succeed(at, "volume create disk 1MiB");
    for line in ["gc none", "gc none --dry-run", "gc none --json"] {
        assert!(fail(at, line, 1).contains("no volume named \"none\""), "{line}");
    }
    assert!(fail(at, "gc a/b", 2).contains("is not a volume name"));
    // The others are collected nevertheless.
    let Run { code, out, err } = run(cairn(at, "gc none disk"));
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("no volume named \"none\"\ndisk: deleted 0 objects"), "{out}");
    assert!(err.contains("the garbage of 1 of 2 volumes was not collected"), "{err}");
}

/// Only the gateway that holds a volume can delete objects of it, and the message says how to ask it.
#[test]
fn while_a_gateway_holds_the_volume_it_collects_the_garbage() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    succeed(at, "volume create idle 1MiB");
    let socket = at.join("admin.sock");
    let mut serve = cairn(at, "serve --listen 127.0.0.1:0 --create disk=1MiB");
    serve.env("CAIRN_ADMIN__SOCKET", &socket).env("CAIRN_LEASE__HOLDER", "gateway-a");
    let gateway = Gateway::start(serve);
    let (of_disk, of_idle) = (litter(at, "disk"), litter(at, "idle"));
    let mut refused = cairn(at, "gc disk");
    refused.env("CAIRN_LEASE__HOLDER", "gateway-a");
    let refused = run(refused);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(refused.err.contains("gateway-a") && refused.err.contains("--gateway"), "{}", refused.err);
    let by = format!("--gateway={}", socket.display());
    for line in ["gc disk --dry-run", &format!("gc disk --dry-run {by}")] {
        assert!(succeed(at, line).starts_with("disk: 1 objects (11) that nothing references"), "{line}");
    }
    assert!(of_disk.exists());
    assert!(succeed(at, &format!("gc disk {by}")).starts_with("disk: deleted 1 objects; "));
    assert!(!of_disk.exists() && of_idle.exists());
    // A volume that is not open is opened for it.
    let done = answer(at, &format!("gc --json {by}"));
    assert_eq!(done["volumes"].as_array().map(Vec::len), Some(2));
    assert!(!of_idle.exists());
    assert!(fail(at, &format!("gc none {by}"), 1).contains("no volume named"));
    gateway.terminate();
    succeed(at, "check disk --data");
    succeed(at, "check idle --data");
}
