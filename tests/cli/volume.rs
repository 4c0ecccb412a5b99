//! `cairn volume` on a store in a directory.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::tempdir;

use super::{Gateway, cairn, fail, refuse, run, succeed};

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("--json prints JSON")
}

#[test]
fn a_volume_from_creation_to_deletion() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 10GiB");
    let small = json(&succeed(at, "volume create a.small_one-2 512 --chunk-size 64KiB --json"));
    assert_eq!((&small["size_bytes"], &small["chunk_bytes"]), (&json("512"), &json("65536")));
    let disk = json(&succeed(at, "volume info disk --json"));
    assert_eq!(disk["name"], "disk");
    assert_eq!(disk["size_bytes"], 10_737_418_240_u64);
    assert_eq!(disk["chunk_bytes"], 4_194_304);
    assert_eq!(disk["holder"], Value::Null);
    let created = disk["created_at"].as_str().expect("a time");
    assert!(created.starts_with("20") && created.ends_with('Z'), "{created}");
    assert_eq!(json(&succeed(at, "volume list --json")), Value::Array(vec![small, disk]));
    let table = succeed(at, "volume list");
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..4], ["NAME", "SIZE", "CHUNK", "CREATED"]);
    assert_eq!((rows[1][0], rows[2][..3].to_vec()), ("a.small_one-2", vec!["disk", "10GiB", "4MiB"]));
    assert!(succeed(at, "volume info disk").contains("10737418240 bytes"));
    succeed(at, "volume delete disk");
    assert!(fail(at, "volume info disk", 1).contains("no volume named \"disk\""));
    assert!(fail(at, "volume delete disk", 1).contains("no volume named \"disk\""));
    succeed(at, "volume create disk 1MiB");
    assert_eq!(json(&succeed(at, "volume info disk --json"))["size_bytes"], 1_048_576);
}

#[test]
fn a_name_is_taken_once() {
    let at = tempdir().unwrap();
    succeed(at.path(), "volume create disk 1GiB");
    let error = fail(at.path(), "volume create disk 2GiB", 1);
    assert!(error.contains("\"disk\" exists already"), "{error}");
    assert_eq!(json(&succeed(at.path(), "volume info disk --json"))["size_bytes"], 1_073_741_824);
}

#[test]
fn invalid_names_and_sizes_are_refused() {
    let at = tempdir().unwrap();
    for name in ["a/b", ".hidden", "..", &"x".repeat(129), "ä"] {
        let error = fail(at.path(), &format!("volume create {name} 1GiB"), 2);
        assert!(error.contains("not a volume name") && error.contains("1 to 128"), "{error}");
    }
    for (size, why) in [
        ("1G", "write 1GiB for 1073741824 bytes or 1GB for 1000000000 bytes"),
        ("10x", "not a size"),
        ("1.5", "whole number of bytes"),
        ("1000", "multiple of 512"),
        ("0", "from 512"),
        ("2PiB", "to 1125899906842624 bytes"),
    ] {
        let error = fail(at.path(), &format!("volume create disk {size}"), 2);
        assert!(error.contains(why), "{size}: {error}");
    }
    for (size, why) in [("1MB", "power of two"), ("1KiB", "64KiB to 32MiB"), ("4M", "ambiguous")] {
        let error = fail(at.path(), &format!("volume create disk 1GiB --chunk-size {size}"), 2);
        for part in ["volumes.chunk_size", "flag --chunk-size", size, why] {
            assert!(error.contains(part), "no {part} in: {error}");
        }
    }
    assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 0, "no store was made for them");
}

/// A mistake in the URL of the store is reported, and does not leave a directory behind.
#[test]
fn only_creating_a_volume_creates_a_store() {
    let at = tempdir().unwrap();
    let at = at.path();
    for line in [
        "volume list",
        "volume list --json",
        "volume list --unnamed",
        "volume list --deleted",
        "volume info disk",
        "volume delete disk",
        "volume undelete disk",
        "volume delete --id 6f9619ff-8b86-4011-b42d-00c04fc964ff",
        "volume delete --deleted 6f9619ff-8b86-4011-b42d-00c04fc964ff",
        "serve --listen 127.0.0.1:0",
        "bench",
    ] {
        let line = match line {
            "bench" => "bench store file://./typo".to_owned(),
            _ => format!("{line} --store file://./typo"),
        };
        let error = fail(at, &line, 1);
        assert!(error.contains("the directory ./typo does not contain a store"), "{line}: {error}");
        assert_eq!(std::fs::read_dir(at).unwrap().count(), 0, "{line}");
    }
    // A directory with other content is not turned into a store either.
    std::fs::create_dir(at.join("other")).unwrap();
    for line in ["volume list", "volume info disk", "volume delete disk"] {
        let error = fail(at, &format!("{line} --store file://./other"), 1);
        assert!(error.contains("the directory ./other does not contain a store"), "{line}: {error}");
        assert_eq!(std::fs::read_dir(at.join("other")).unwrap().count(), 0, "{line}");
    }
    succeed(at, "volume create disk 1MiB --store file://./made");
    succeed(at, "volume delete disk --store file://./made");
    assert_eq!(json(&succeed(at, "volume list --json --store file://./made")), json("[]"));
    let serve = "serve --listen 127.0.0.1:0 --store file://./served --create disk=1MiB";
    Gateway::start(cairn(at, serve)).terminate();
    // An empty directory, such as a mount point, is enough for a gateway whose volumes are created later.
    Gateway::start(cairn(at, "serve --listen 127.0.0.1:0 --store file://./other")).terminate();
}

/// Returns the path of the head of this volume, in a store in the default directory.
fn head_of(at: &Path, name: &str) -> PathBuf {
    let info = json(&succeed(at, &format!("volume info {name} --json")));
    at.join(format!("cairn-data/volume/{}/head", info["id"].as_str().expect("an id")))
}

#[test]
fn a_broken_volume_is_listed_with_the_others_and_can_be_deleted() {
    let at = tempdir().unwrap();
    let at = at.path();
    for name in ["a", "b", "c"] {
        succeed(at, &format!("volume create {name} 1MiB"));
    }
    std::fs::remove_file(head_of(at, "b")).unwrap();
    let listed = json(&succeed(at, "volume list --json"));
    assert_eq!((&listed[0]["name"], &listed[2]["name"]), (&"a".into(), &"c".into()));
    assert!(listed[1]["problem"].as_str().is_some_and(|why| why.contains("incomplete")), "{listed}");
    let table = succeed(at, "volume list");
    assert!(table.lines().any(|line| line.starts_with("b ") && line.contains("incomplete")), "{table}");
    assert!(fail(at, "volume info b", 1).contains("incomplete"));
    let error = fail(at, "volume delete b", 1);
    assert!(error.contains("cannot be kept") && error.contains("--now"), "{error}");
    succeed(at, "volume delete b --now");
    assert_eq!(json(&succeed(at, "volume list --json")).as_array().map(Vec::len), Some(2));
    succeed(at, "volume create b 2MiB");
    // A damaged head does not contain the holder of the volume.
    let head = head_of(at, "c");
    let mut bytes = std::fs::read(&head).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&head, bytes).unwrap();
    assert!(fail(at, "volume delete c --takeover", 1).contains("--now"));
    assert!(fail(at, "volume delete c --now", 1).contains("take over"));
    succeed(at, "volume delete c --now --takeover");
    assert_eq!(succeed(at, "volume list --unnamed").lines().count(), 1, "only the heading");
}

#[test]
fn a_volume_without_a_name_is_shown_and_deleted_by_its_id() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    let id = json(&succeed(at, "volume info disk --json"))["id"].as_str().unwrap().to_owned();
    // This is the state that a creator leaves if it dies before it binds the name.
    std::fs::remove_file(at.join("cairn-data/name/disk")).unwrap();
    assert_eq!(json(&succeed(at, "volume list --json")), json("[]"));
    let unnamed = json(&succeed(at, "volume list --unnamed --json"));
    assert_eq!((&unnamed[0]["id"], &unnamed[0]["made_for"]), (&id.clone().into(), &"disk".into()));
    assert_eq!(unnamed[0]["state"], "not named yet");
    let table = succeed(at, "volume list --unnamed");
    assert!(table.lines().any(|line| line.starts_with(&id) && line.contains("disk")), "{table}");
    succeed(at, &format!("volume delete --id {id}"));
    assert_eq!(json(&succeed(at, "volume list --unnamed --json")), json("[]"));
    assert!(fail(at, &format!("volume delete --id {id}"), 1).contains("no volume has the id"));
}

#[test]
fn an_invalid_store_is_refused() {
    let at = tempdir().unwrap();
    for (url, why) in [("http://x/y", "s3://bucket/prefix"), ("s3://Bad", "store.url"), ("/tmp", "--store")] {
        let error = fail(at.path(), &format!("volume list --store {url}"), 2);
        assert!(error.contains(why), "{error}");
    }
    std::fs::write(at.path().join("file"), "").unwrap();
    let error = fail(at.path(), "volume list --store file://./file", 1);
    assert!(error.contains("file"), "{error}");
}

#[test]
fn the_store_can_come_from_a_file_the_environment_or_a_flag() {
    let at = tempdir().unwrap();
    let at = at.path();
    std::fs::write(at.join("cairn.toml"), "[store]\nurl = \"file://./by-file\"\n").unwrap();
    succeed(at, "volume create one 1MiB --config cairn.toml");
    let mut create = cairn(at, "volume create two 1MiB --config cairn.toml");
    create.env("CAIRN_STORE__URL", "file://./by-environment");
    assert_eq!(run(create).code, Some(0));
    let mut create = cairn(at, "volume create three 1MiB --store file://./by-flag");
    create.env("CAIRN_STORE__URL", "file://./by-environment").env("CAIRN_CONFIG", "cairn.toml");
    assert_eq!(run(create).code, Some(0));
    for (name, store) in [("one", "by-file"), ("two", "by-environment"), ("three", "by-flag")] {
        let names = json(&succeed(at, &format!("volume list --json --store file://./{store}")));
        assert_eq!((names[0]["name"].as_str(), names[1].as_str()), (Some(name), None));
    }
}

#[test]
fn a_wrong_setting_is_reported_with_its_source_and_changes_nothing() {
    let at = tempdir().unwrap();
    let mut create = cairn(at.path(), "volume create disk 1MiB");
    create
        .env("CAIRN_STORE__TYPO", "1")
        .env("CAIRN_STORE__CONCURRENCY", "0")
        .env("CAIRN_PORT", "tcp://10.0.0.1:1");
    let error = refuse(create, 2);
    for part in
        ["store.typo", "CAIRN_STORE__TYPO", "store.concurrency", "1 to 4096", "CAIRN_STORE__CONCURRENCY"]
    {
        assert!(error.contains(part), "no {part} in: {error}");
    }
    assert!(!error.contains("CAIRN_PORT"), "{error}");
    assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 0);
}

#[test]
fn a_volume_in_use_is_not_deleted_unless_taken_over() {
    let at = tempdir().unwrap();
    let at = at.path();
    let mut gateway = Gateway::start(cairn(at, "serve --listen 127.0.0.1:0 --create disk=1MiB"));
    let holder =
        json(&succeed(at, "volume info disk --json"))["holder"].as_str().expect("a holder").to_owned();
    assert!(succeed(at, "volume list").contains(&holder));
    let error = fail(at, "volume delete disk", 1);
    assert!(error.contains(&holder), "{error}");
    succeed(at, "volume delete disk --takeover");
    assert_eq!(json(&succeed(at, "volume list --json")), json("[]"));
    let (status, run) = gateway.end();
    assert_eq!(status.code(), Some(10), "{}", run.err);
    assert!(run.err.contains("no volume is left to serve"), "{}", run.err);
}
