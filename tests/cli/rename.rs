//! `cairn volume rename`: in a store that no gateway serves, and by a gateway.

use serde_json::Value;
use tempfile::tempdir;

use super::{Gateway, cairn, fail, run, succeed};

#[test]
fn a_volume_gets_another_name_while_no_gateway_holds_it() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    succeed(at, "volume create other 1MiB");
    let id = |line: &str| -> Value {
        let info: Value = serde_json::from_str(&succeed(at, line)).expect("--json prints JSON");
        info["id"].clone()
    };
    let before = id("volume info disk --json");
    assert_eq!(succeed(at, "volume rename disk new"), "renamed disk to new\n");
    assert_eq!(id("volume info new --json"), before);
    assert!(fail(at, "volume info disk", 1).contains("no volume named \"disk\""));
    assert!(fail(at, "volume rename disk third", 1).contains("no volume named \"disk\""));
    assert!(fail(at, "volume rename new other", 1).contains("a volume named \"other\" exists already"));
    assert!(fail(at, "volume rename new .third", 2).contains("is not a volume name"));
    assert_eq!(id("volume rename new disk --json"), before);
    let error = fail(at, "volume rename disk new --store file://./typo", 1);
    assert!(error.contains("the directory ./typo does not contain a store"), "{error}");
    // The volume is left closed, and sound.
    let info: Value = serde_json::from_str(&succeed(at, "volume info disk --json")).unwrap();
    assert_eq!(info["holder"], Value::Null);
    succeed(at, "check disk --data");
    succeed(at, "volume delete disk");
    assert_eq!(succeed(at, "volume list --unnamed").lines().count(), 1);
}

/// Only the gateway that holds a volume can rename it, and the message says how to ask it.
#[test]
fn while_a_gateway_holds_the_volume_it_renames_it() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    let socket = at.join("admin.sock");
    let mut serve = cairn(at, "serve --listen 127.0.0.1:0 --create fixed=1MiB");
    serve.env("CAIRN_ADMIN__SOCKET", &socket).env("CAIRN_LEASE__HOLDER", "gateway-a");
    let gateway = Gateway::start(serve);
    let by = format!("--gateway={}", socket.display());
    let listens = gateway.lines.iter().find_map(|line| line.strip_prefix("listening on "));
    let uri = listens.and_then(|rest| rest.split_whitespace().next()).expect("it listens");
    let uri = uri.trim_end_matches('/');

    // A volume that is not open is opened for it, and stays open for a while.
    assert_eq!(succeed(at, &format!("volume rename disk new {by}")), "renamed disk to new\n");
    assert_eq!(succeed(at, &format!("nbd size {uri}/new")), "1048576\n");
    fail(at, &format!("nbd size {uri}/disk"), 1);
    let mut refused = cairn(at, "volume rename new disk");
    refused.env("CAIRN_LEASE__HOLDER", "gateway-a");
    let refused = run(refused);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(refused.err.contains("gateway-a") && refused.err.contains("--gateway"), "{}", refused.err);

    let error = fail(at, &format!("volume rename fixed new {by}"), 1);
    assert!(error.contains("configuration") && error.contains("reload"), "{error}");
    assert!(fail(at, &format!("volume rename new fixed {by}"), 1).contains("exists already"));
    assert!(fail(at, &format!("volume rename new .x {by}"), 2).contains("is not a volume name"));
    assert!(fail(at, &format!("volume rename none x {by}"), 1).contains("no volume named"));
    gateway.terminate();
    succeed(at, "check new --data");
}
