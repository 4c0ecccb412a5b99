//! `cairn volume undelete`: in a store that no gateway serves, and by a gateway.

use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use super::{Gateway, cairn, fail, run, succeed};

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("--json prints JSON")
}

fn id_of(at: &Path, name: &str) -> String {
    let info = json(&succeed(at, &format!("volume info {name} --json")));
    info["id"].as_str().expect("an id").to_owned()
}

/// The ids and names of the deleted volumes, as `by` lists them: in the store, or by a gateway.
fn deleted(at: &Path, by: &str) -> Vec<(String, String)> {
    let listed = json(&succeed(at, format!("volume list --deleted --json {by}").trim_end()));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let rows = listed.as_array().expect("a list").iter();
    rows.map(|row| (text(&row["id"]), text(&row["name"]))).collect()
}

#[test]
fn a_deleted_volume_is_listed_and_brought_back_with_its_data() {
    let at = tempdir().unwrap();
    let at = at.path();
    let content = [vec![7; 1 << 20], vec![0; 1 << 20]].concat();
    std::fs::write(at.join("image"), &content).unwrap();
    succeed(at, "import image disk");
    succeed(at, "snapshot create disk@monday");
    let id = id_of(at, "disk");
    assert_eq!(
        succeed(at, "volume delete disk"),
        "deleted disk; for 1day, cairn volume undelete disk brings it back\n"
    );
    assert_eq!(json(&succeed(at, "volume list --json")), json("[]"));
    assert_eq!(succeed(at, "volume list --unnamed").lines().count(), 1, "only the heading");
    let table = succeed(at, "volume list --deleted");
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["ID", "NAME", "SIZE", "DELETED", "KEPT", "UNTIL"]);
    assert_eq!((rows.len(), &rows[1][..3]), (2, &[&*id, "disk", "2MiB"][..]));
    let listed = json(&succeed(at, "volume list --deleted --json"));
    assert_eq!((&listed[0]["id"], &listed[0]["size_bytes"]), (&id.clone().into(), &(2 << 20).into()));
    for field in ["deleted_at", "kept_until"] {
        let time = listed[0][field].as_str().expect("a time");
        assert!(time.starts_with("20") && time.ends_with('Z'), "{field}: {time}");
    }
    for line in ["volume info disk", "export disk out.img", "snapshot list disk", "volume delete disk"] {
        assert!(fail(at, line, 1).contains("no volume named \"disk\""), "{line}");
    }
    // Its name is free, and another volume may have it.
    succeed(at, "volume create disk 1MiB");
    let error = fail(at, "volume undelete disk", 1);
    assert!(error.contains("a volume named \"disk\" exists") && error.contains("--as"), "{error}");
    assert!(fail(at, "volume undelete disk --as .x", 2).contains("not a volume name"));
    let back = json(&succeed(at, "volume undelete disk --as old --json"));
    assert_eq!((&back["name"], &back["id"]), (&"old".into(), &id.clone().into()));
    succeed(at, "export old out.img");
    assert!(std::fs::read(at.join("out.img")).unwrap() == content, "it has what it had");
    assert!(succeed(at, "snapshot list old").contains("monday"));
    succeed(at, "check old --data");
    assert_eq!(deleted(at, ""), []);
    for which in ["old", "disk", &id] {
        let error = fail(at, &format!("volume undelete {which}"), 1);
        assert!(error.contains("no deleted volume") && error.contains("--deleted"), "{error}");
    }
}

#[test]
fn volumes_that_had_the_same_name_are_chosen_by_their_ids() {
    let at = tempdir().unwrap();
    let at = at.path();
    let mut ids = Vec::new();
    for size in ["1MiB", "2MiB", "3MiB"] {
        succeed(at, &format!("volume create disk {size}"));
        ids.push(id_of(at, "disk"));
        succeed(at, "volume delete disk");
    }
    let mut expected: Vec<_> = ids.iter().map(|id| (id.clone(), "disk".to_owned())).collect();
    expected.sort();
    let mut found = deleted(at, "");
    found.sort();
    assert_eq!(found, expected);
    let error = fail(at, "volume undelete disk", 1);
    assert!(error.contains("3 deleted volumes were named \"disk\""), "{error}");
    assert_eq!(succeed(at, &format!("volume undelete {}", ids[1])), "brought back disk\n");
    assert_eq!(json(&succeed(at, "volume info disk --json"))["size_bytes"], 2 << 20);
    assert_eq!(succeed(at, &format!("volume undelete {} --as first", ids[0])), "brought back first\n");
    assert_eq!(id_of(at, "first"), ids[0]);
    // One is left, and is deleted for good. Those that were brought back are not.
    let delete = |id: &str| format!("volume delete --deleted {id}");
    assert_eq!(succeed(at, &delete(&ids[2])), format!("deleted {}\n", ids[2]));
    assert_eq!(deleted(at, ""), []);
    for id in &ids {
        let error = fail(at, &delete(id), 1);
        assert!(error.contains("no deleted volume") && error.contains("is kept"), "{error}");
    }
    assert_eq!((id_of(at, "first"), id_of(at, "disk")), (ids[0].clone(), ids[1].clone()));
}

#[test]
fn what_is_deleted_for_good_is_not_listed() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    assert_eq!(succeed(at, "volume delete disk --now"), "deleted disk\n");
    succeed(at, "volume create disk 1MiB");
    let mut delete = cairn(at, "volume delete disk");
    delete.env("CAIRN_VOLUMES__UNDELETE", "0s");
    assert_eq!(run(delete).out, "deleted disk\n");
    assert_eq!(deleted(at, ""), []);
    assert!(fail(at, "volume undelete disk", 1).contains("no deleted volume \"disk\" is kept"));
    succeed(at, "volume create disk 1MiB");
    let mut delete = cairn(at, "volume delete disk");
    delete.env("CAIRN_VOLUMES__UNDELETE", "90m");
    assert_eq!(run(delete).out, "deleted disk; for 1h 30m, cairn volume undelete disk brings it back\n");
}

#[test]
fn a_gateway_lists_deleted_volumes_and_brings_them_back() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    let id = id_of(at, "disk");
    let socket = at.join("admin.sock");
    let mut serve = cairn(at, "serve --listen 127.0.0.1:0 --create fixed=1MiB");
    serve.env("CAIRN_ADMIN__SOCKET", &socket);
    let gateway = Gateway::start(serve);
    let by = format!("--gateway={}", socket.display());
    assert_eq!(succeed(at, &format!("volume delete disk {by}")), "deleted disk\n");
    assert_eq!(deleted(at, &by), [(id.clone(), "disk".to_owned())]);
    assert_eq!(deleted(at, ""), deleted(at, &by));
    let error = fail(at, &format!("volume undelete disk --as fixed {by}"), 1);
    assert!(error.contains("a volume named \"fixed\" exists"), "{error}");
    assert!(fail(at, &format!("volume undelete disk --as .x {by}"), 2).contains("not a volume name"));
    assert!(fail(at, &format!("volume undelete none {by}"), 1).contains("no deleted volume \"none\""));
    assert_eq!(succeed(at, &format!("volume undelete disk {by}")), "brought back disk\n");
    assert_eq!(id_of(at, "disk"), id);
    let error = fail(at, &format!("volume delete --deleted {id} {by}"), 1);
    assert!(error.contains("no deleted volume") && error.contains("is kept"), "it is in use: {error}");
    assert_eq!(succeed(at, &format!("volume delete disk {by}")), "deleted disk\n");
    assert_eq!(succeed(at, &format!("volume undelete {id} --as other {by}")), "brought back other\n");
    for which in [&id, "6f9619ff-8b86-4011-b42d-00c04fc964ff"] {
        let error = fail(at, &format!("volume undelete {which} {by}"), 1);
        assert!(error.contains(&format!("no deleted volume \"{which}\"")), "{error}");
    }
    assert_eq!(succeed(at, &format!("volume delete other {by}")), "deleted other\n");
    assert_eq!(succeed(at, &format!("volume delete --deleted {id} {by}")), format!("deleted {id}\n"));
    assert_eq!(deleted(at, &by), []);
    succeed(at, "volume create disk 1MiB");
    assert_eq!(succeed(at, &format!("volume delete disk --now {by}")), "deleted disk\n");
    assert_eq!(deleted(at, &by), []);
    gateway.terminate();
}
