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

/// A gateway would create an empty volume under a configured name.
#[test]
fn a_volume_that_the_configuration_names_keeps_its_name() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    for (setting, value) in [("CREATE", "disk=1MiB"), ("OPEN", "disk")] {
        let mut refused = cairn(at, "volume rename disk new");
        refused.env(format!("CAIRN_VOLUMES__{setting}"), value);
        let refused = run(refused);
        assert_eq!(refused.code, Some(2), "{}", refused.err);
        assert!(refused.err.contains("first remove \"disk\" from volumes.create"), "{}", refused.err);
    }
    succeed(at, "volume info disk");
    let mut renamed = cairn(at, "volume rename disk new");
    renamed.env("CAIRN_VOLUMES__CREATE", "new=1MiB");
    assert_eq!(run(renamed).out, "renamed disk to new\n");
}

#[test]
fn a_gateway_renames_what_it_has_not_open_and_says_who_uses_the_rest() {
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

    assert_eq!(succeed(at, &format!("volume rename disk new {by}")), "renamed disk to new\n");
    assert!(fail(at, &format!("volume rename new fixed {by}"), 1).contains("exists already"));
    assert!(fail(at, &format!("volume rename new .x {by}"), 2).contains("is not a volume name"));
    assert!(fail(at, &format!("volume rename none x {by}"), 1).contains("no volume named"));
    let error = fail(at, &format!("volume rename fixed other {by}"), 1);
    assert!(error.contains("the configuration names it") && error.contains("reload"), "{error}");

    // Now a client opens it, and it stays open for a while.
    assert_eq!(succeed(at, &format!("nbd size {uri}/new")), "1048576\n");
    fail(at, &format!("nbd size {uri}/disk"), 1);
    let error = fail(at, &format!("volume rename new disk {by}"), 1);
    assert!(error.contains("is open in this gateway") && error.contains("idle_timeout"), "{error}");
    for name in ["new", "fixed"] {
        // Even under the name of the gateway, whose own volumes a gateway takes back.
        let mut refused = cairn(at, &format!("volume rename {name} disk"));
        refused.env("CAIRN_LEASE__HOLDER", "gateway-a");
        let refused = run(refused);
        assert_eq!(refused.code, Some(1), "{}", refused.err);
        for word in ["gateway-a", "disconnect its clients", "end the gateway", "volumes.create"] {
            assert!(refused.err.contains(word), "{word}: {}", refused.err);
        }
    }
    gateway.terminate();
    assert_eq!(succeed(at, "volume rename fixed other"), "renamed fixed to other\n");
    succeed(at, "check new --data");
    succeed(at, "check other --data");
}
