//! `cairn volume resize`: in a store that no gateway serves, and by a gateway.

use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use super::{Gateway, cairn, fail, run, succeed};

const MIB: u64 = 1 << 20;

fn size(at: &Path, line: &str) -> u64 {
    let info: Value = serde_json::from_str(&succeed(at, line)).expect("--json prints JSON");
    info["size_bytes"].as_u64().expect("a size")
}

#[test]
fn a_volume_grows_and_shrinks_while_no_gateway_holds_it() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    assert_eq!(succeed(at, "volume resize disk 3MiB"), "resized disk to 3MiB\n");
    assert_eq!(size(at, "volume info disk --json"), 3 * MIB);
    let listed = succeed(at, "volume list");
    assert!(listed.contains("3MiB"), "{listed}");
    let error = fail(at, "volume resize disk 2MiB", 1);
    assert!(error.contains("3145728 bytes") && error.contains("--shrink"), "{error}");
    assert_eq!(size(at, "volume resize disk 2MiB --shrink --json"), 2 * MIB);
    assert_eq!(succeed(at, "volume resize disk 2MiB"), "resized disk to 2MiB\n");
    // The volume is left closed, and sound.
    let info: Value = serde_json::from_str(&succeed(at, "volume info disk --json")).unwrap();
    assert_eq!((&info["size_bytes"], &info["holder"]), (&Value::from(2 * MIB), &Value::Null));
    succeed(at, "check disk --data");
}

#[test]
fn mistakes_are_refused_and_create_nothing() {
    let at = tempdir().unwrap();
    let at = at.path();
    let error = fail(at, "volume resize disk 1MiB --store file://./typo", 1);
    assert!(error.contains("the directory ./typo does not contain a store"), "{error}");
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 0);
    succeed(at, "volume create other 1MiB");
    assert!(fail(at, "volume resize disk 1MiB", 1).contains("no volume named \"disk\""));
    for size in ["513", "0", "2000PiB"] {
        let error = fail(at, &format!("volume resize other {size} --shrink"), 2);
        assert!(error.contains("512"), "{error}");
    }
    assert_eq!(size(at, "volume info other --json"), MIB);
}

/// Only the gateway that holds a volume can resize it, and the message says how to ask it.
#[test]
fn while_a_gateway_holds_the_volume_it_resizes_it() {
    let at = tempdir().unwrap();
    let at = at.path();
    let socket = at.join("admin.sock");
    let mut serve = cairn(at, "serve --listen 127.0.0.1:0 --create disk=1MiB");
    serve.env("CAIRN_ADMIN__SOCKET", &socket).env("CAIRN_LEASE__HOLDER", "gateway-a");
    let gateway = Gateway::start(serve);
    let mut refused = cairn(at, "volume resize disk 2MiB");
    refused.env("CAIRN_LEASE__HOLDER", "gateway-a");
    let refused = run(refused);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(refused.err.contains("gateway-a") && refused.err.contains("--gateway"), "{}", refused.err);
    let by = format!("--gateway={}", socket.display());
    let listens = gateway.lines.iter().find_map(|line| line.strip_prefix("listening on "));
    let uri = listens.and_then(|rest| rest.split_whitespace().next()).expect("it listens");
    let uri = uri.trim_end_matches('/');
    let image: Vec<u8> = (0..MIB).map(|at| u8::try_from(at % 251).unwrap()).collect();
    std::fs::write(at.join("image"), &image).unwrap();
    succeed(at, &format!("nbd copy image {uri}/disk"));

    assert_eq!(succeed(at, &format!("volume resize disk 2MiB {by}")), "resized disk to 2MiB\n");
    // Whoever asks sees it: NBD clients, the store, the gateway.
    assert_eq!(succeed(at, &format!("nbd size {uri}/disk")), "2097152\n");
    assert_eq!(size(at, "volume info disk --json"), 2 * MIB);
    assert_eq!(size(at, &format!("volume info disk --json {by}")), 2 * MIB);
    let error = fail(at, &format!("volume resize disk 512KiB {by}"), 1);
    assert!(error.contains("--shrink"), "{error}");
    assert_eq!(size(at, &format!("volume resize disk 512KiB --shrink --json {by}")), MIB / 2);
    assert_eq!(size(at, &format!("volume resize disk 1MiB --json {by}")), MIB);
    succeed(at, &format!("nbd copy {uri}/disk read"));
    let half = image.len() / 2;
    let read = std::fs::read(at.join("read")).unwrap();
    assert!(read[..half] == image[..half] && read[half..] == vec![0; half], "the rest was discarded");

    // A volume that is not open is opened for it.
    succeed(at, "volume create idle 1MiB");
    succeed(at, &format!("volume resize idle 4GiB {by}"));
    assert_eq!(succeed(at, &format!("nbd size {uri}/idle")), "4294967296\n");
    assert!(fail(at, &format!("volume resize none 1MiB {by}"), 1).contains("no volume named"));
    assert!(fail(at, &format!("volume resize idle 513 {by}"), 2).contains("512"));
    gateway.terminate();
    succeed(at, "check disk --data");
    succeed(at, "check idle --data");
}

/// A volume that the configuration creates must have the size that is written there.
#[test]
fn the_size_in_the_configuration_must_follow() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    succeed(at, "volume resize disk 2MiB");
    let error = fail(at, "serve --listen 127.0.0.1:0 --create disk=1MiB", 1);
    assert!(error.contains("2097152 bytes"), "{error}");
    Gateway::start(cairn(at, "serve --listen 127.0.0.1:0 --create disk=2MiB")).terminate();
}
