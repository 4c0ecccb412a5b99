//! `cairn check` and `cairn volume usage` on a store in a directory.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::tempdir;

use super::{Gateway, Run, cairn, fail, run, succeed};

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("--json prints JSON")
}

/// The files below a directory, with their contents.
fn files(at: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(at).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push((path.clone(), std::fs::read(&path).expect("a file"))),
        }
    }
    found.sort();
    found
}

/// The only file of the volume `disk` whose path contains `part`.
fn object(at: &Path, part: &str) -> PathBuf {
    let mut found = files(&at.join("cairn-data"))
        .into_iter()
        .filter(|(path, _)| path.strip_prefix(at).expect("below").to_string_lossy().contains(part));
    let (path, _) = found.next().unwrap_or_else(|| panic!("no {part}"));
    assert!(found.next().is_none(), "more than one {part}");
    path
}

#[test]
fn a_sound_volume_is_clean_also_while_it_is_served() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1GiB");
    let before = files(at);
    let text = succeed(at, "check disk");
    assert!(text.starts_with("disk: 3 objects") && text.ends_with("read: clean\n"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    let told = json(&succeed(at, "check disk --data --json"));
    assert_eq!((&told["result"], &told["findings"]), (&"clean".into(), &json("[]")));
    assert_eq!((&told["size_bytes"], &told["data"]), (&json("1073741824"), &json("true")));
    assert_eq!(told["orphans"]["objects"], 0);
    assert!(told["requests"].as_u64().is_some_and(|requests| requests > 0), "{told}");
    assert!(files(at) == before, "it changes nothing");
    let gateway = Gateway::start(cairn(at, "serve --listen 127.0.0.1:0 --create disk=1GiB"));
    assert!(succeed(at, "check disk").ends_with("clean\n"));
    assert_eq!(json(&succeed(at, "check disk --data --json"))["epoch"], 1);
    gateway.terminate();
    assert!(succeed(at, "check disk --data").ends_with("clean\n"));
}

#[test]
fn damage_exits_with_1_and_is_the_same_in_both_formats() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    let identity = object(at, "/identity/");
    let mut bytes = std::fs::read(&identity).unwrap();
    bytes[50] ^= 1;
    std::fs::write(&identity, bytes).unwrap();
    let Run { code, out, err } = run(cairn(at, "check disk"));
    assert_eq!(code, Some(1), "{out}{err}");
    let key = format!("identity/{}", identity.file_name().unwrap().to_str().unwrap());
    assert!(out.starts_with(&format!("damaged: identity {key}\n")), "{out}");
    assert!(out.contains("\n  the volume cannot be opened\n") && out.ends_with(": damaged\n"), "{out}");
    assert!(err.contains("volume \"disk\" is damaged: 1 findings, 1048576 bytes"), "{err}");
    let Run { code, out, .. } = run(cairn(at, "check disk --json"));
    assert_eq!(code, Some(1));
    let told = json(&out);
    assert_eq!(told["result"], "damaged");
    let finding = &told["findings"][0];
    assert_eq!((&finding["key"], &finding["trouble"]), (&key.as_str().into(), &"damaged".into()));
    assert_eq!((&finding["effect"], &finding["bytes"]), (&"not opened".into(), &json("1048576")));
    assert_eq!(finding["ranges"], json(r#"[{"offset": 0, "length": 1048576}]"#));
    std::fs::remove_file(object(at, "/head")).unwrap();
    let Run { code, out, .. } = run(cairn(at, "check disk"));
    assert_eq!(code, Some(1));
    assert!(out.starts_with("missing: head volume/"), "{out}");
    // There is nothing to count.
    let Run { code, out, .. } = run(cairn(at, "volume usage disk"));
    assert_eq!((code, out.as_str()), (Some(1), ""));
}

#[test]
fn what_cannot_be_checked_exits_with_2() {
    let at = tempdir().unwrap();
    let at = at.path();
    for (line, why) in [
        ("check disk", "does not contain a store"),
        ("check disk --store file://./typo", "does not contain a store"),
        ("check disk --store http://x", "s3://bucket/prefix"),
    ] {
        let error = fail(at, line, 2);
        assert!(error.contains(why), "{line}: {error}");
        assert_eq!(std::fs::read_dir(at).unwrap().count(), 0, "{line}");
    }
    succeed(at, "volume create disk 1MiB");
    assert!(fail(at, "check other", 2).contains("no volume named \"other\""));
    assert!(fail(at, "check a/b", 2).contains("not a volume name"));
    // Other commands exit with 1 for the same.
    assert!(fail(at, "volume usage other", 1).contains("no volume named \"other\""));
}

#[test]
fn usage_shows_what_the_bucket_holds() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1GiB");
    Gateway::start(cairn(at, "serve --listen 127.0.0.1:0 --create disk=1GiB")).terminate();
    let below = files(&at.join("cairn-data/volume"));
    let bytes: u64 = below.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let told = json(&succeed(at, "volume usage disk --json"));
    assert_eq!(told["total"]["objects"], below.len() as u64, "{told}");
    assert_eq!(told["total"]["bytes"], bytes, "{told}");
    assert_eq!(told["data"], json(r#"{"stored_bytes": 0, "live_bytes": 0, "shared_bytes": 0}"#));
    let table = succeed(at, "volume usage disk");
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["KIND", "OBJECTS", "BYTES", "LIVE", "WAITING", "UNSETTLED", "ORPHANS"]);
    let total = rows.iter().find(|row| row[0] == "total").expect("a sum");
    assert_eq!(total[1], below.len().to_string());
    assert!(table.contains("\ngarbage: "), "{table}");
}
