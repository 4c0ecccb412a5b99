//! `cairn backup`: copies of snapshots in another store, first as a whole, then by what has changed.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::tempdir;

use super::{Gateway, cairn, connection, fail, succeed};
use crate::support::files::noise;
use crate::support::process::Process;

const MIB: usize = 1 << 20;
/// The store of the copies, in the flags of other commands.
const THERE: &str = "--store file://./backup";

/// Some random bytes and zeros: three chunks of 4 MiB.
fn picture() -> Vec<u8> {
    let mut bytes = vec![0; 12 * MIB];
    bytes[..3 * MIB].copy_from_slice(&noise(1, 3 * MIB));
    bytes[5 * MIB..6 * MIB + 12_345].copy_from_slice(&noise(2, MIB + 12_345));
    bytes[9 * MIB + 512..10 * MIB].copy_from_slice(&noise(3, MIB - 512));
    bytes
}

/// Makes a volume `disk` with this content and a snapshot `a`.
fn disk(at: &Path, content: &[u8]) {
    std::fs::write(at.join("in.img"), content).unwrap();
    succeed(at, "import in.img disk");
    succeed(at, "snapshot create disk@a");
}

/// Writes to a volume through a gateway, each range at once.
fn write(at: &Path, store: &str, volume: &str, ranges: &[(usize, Vec<u8>)]) {
    let mut serve = cairn(at, &format!("serve --listen unix:nbd.sock {store}"));
    serve.env("CAIRN_VOLUMES__OPEN", volume);
    let gateway = Gateway::start(serve);
    let client = async {
        let socket = at.join("nbd.sock");
        let uri = format!("nbd+unix:///{volume}?socket={}", socket.display()).parse().unwrap();
        let client = cairn::client::Client::connect(&uri, &cairn::client::Options::default()).await.unwrap();
        for (offset, bytes) in ranges {
            let durability = cairn::effect::Durability::Volatile;
            client.write(*offset as u64, bytes.clone().into(), durability).await.unwrap();
        }
        client.flush().await.unwrap();
        client.disconnect().await;
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(client);
    gateway.terminate();
}

/// Changes the volume `disk` and takes a snapshot. Returns its content.
fn change(at: &Path, old: &[u8], ranges: &[(usize, Vec<u8>)], snapshot: &str) -> Vec<u8> {
    write(at, "", "disk", ranges);
    succeed(at, &format!("snapshot create disk@{snapshot}"));
    let mut new = old.to_vec();
    for (offset, bytes) in ranges {
        new[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    new
}

/// What a volume or a snapshot of a store has.
fn content(at: &Path, of: &str, store: &str) -> Vec<u8> {
    succeed(at, &format!("export {of} check.img --quiet {store}"));
    std::fs::read(at.join("check.img")).unwrap()
}

/// Asserts that the copy is sound, and that a snapshot of it and the copy itself have this content.
fn copy_has(at: &Path, expected: &[u8], snapshot: &str) {
    succeed(at, &format!("check disk --data {THERE}"));
    assert!(content(at, &format!("disk@{snapshot}"), THERE) == expected, "the snapshot {snapshot}");
    assert!(content(at, "disk", THERE) == expected, "the copy");
}

/// The names of the snapshots of a copy, without those by which Cairn knows what it has.
fn snapshots(at: &Path, volume: &str, store: &str) -> Vec<String> {
    let listed = succeed(at, &format!("snapshot list {volume} --json {store}"));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let names = listed.as_array().unwrap().iter().map(|found| found["name"].as_str().unwrap().to_owned());
    names.filter(|name| !name.starts_with("copy-of-")).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The files of all chunk objects of a store.
fn chunks(store: &Path) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![store.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.to_string_lossy().contains("/chunk/") => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

/// Takes objects away from a store for a while.
struct Lost(Vec<(PathBuf, PathBuf)>);

impl Lost {
    fn take(at: &Path, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let numbered = paths.into_iter().enumerate();
        let moved: Vec<_> = numbered.map(|(n, path)| (path, at.join(format!("lost-{n}")))).collect();
        assert!(!moved.is_empty(), "there is something to take");
        for (from, to) in &moved {
            std::fs::rename(from, to).unwrap();
        }
        Self(moved)
    }

    fn bring_back(self) {
        for (from, to) in self.0 {
            std::fs::rename(to, from).unwrap();
        }
    }
}

#[test]
fn a_first_backup_is_complete_and_the_next_one_sends_what_has_changed() {
    let at = tempdir().unwrap();
    let at = at.path();
    let first = picture();
    disk(at, &first);
    let said = succeed(at, "backup disk@a file://./backup");
    assert!(said.starts_with("backed up disk@a to file://./backup: "), "{said}");
    assert!(said.ends_with(" bytes of zeros; the first backup\n"), "{said}");
    copy_has(at, &first, "a");
    let info = json(&succeed(at, &format!("volume info disk --json {THERE}")));
    assert_eq!(info["chunk_bytes"], json(&succeed(at, "volume info disk --json"))["chunk_bytes"]);
    // The source may be in use, and holes and zeros are not sent.
    let ranges = [(MIB, noise(4, 4096)), (7 * MIB, noise(5, 8192)), (2 * MIB, vec![0; 65_536])];
    let second = change(at, &first, &ranges, "b");
    let mut serve = cairn(at, "serve --listen unix:nbd.sock");
    serve.env("CAIRN_VOLUMES__OPEN", "disk");
    let gateway = Gateway::start(serve);
    let said = succeed(at, "backup disk@b file://./backup");
    gateway.terminate();
    let expected = "backed up disk@b to file://./backup: ";
    assert!(said.starts_with(expected) && said.ends_with("; incremental since disk@a\n"), "{said}");
    copy_has(at, &second, "b");
    assert!(content(at, "disk@a", THERE) == first, "the first backup is still there");
    // The same once more, in JSON.
    let third = change(at, &second, &[(8 * MIB, noise(6, 4096))], "c");
    let report = json(&succeed(at, "backup disk@c file://./backup --json --digest"));
    assert_eq!((&report["kind"], &report["base"]), (&"incremental".into(), &"b".into()), "{report}");
    assert_eq!((&report["volume"], &report["snapshot"]), (&"disk".into(), &"c".into()), "{report}");
    let sent = report["data_bytes"].as_u64().unwrap();
    assert!((4096..=256 << 10).contains(&sent), "only what has changed: {report}");
    for (key, store) in [("volume_id", ""), ("target_volume_id", THERE)] {
        assert_eq!(report[key], json(&succeed(at, &format!("volume info disk --json {store}")))["id"]);
    }
    copy_has(at, &third, "c");
    assert_eq!(snapshots(at, "disk", THERE), ["a", "b", "c"]);
    // Whoever goes back sends the way back.
    succeed(at, "volume restore disk@a");
    succeed(at, "snapshot create disk@d");
    let said = succeed(at, "backup disk@d file://./backup --quiet");
    assert!(said.contains("incremental since disk@c"), "{said}");
    copy_has(at, &first, "d");
}

/// Whoever schedules backups relies on the exit status and on these fields.
#[test]
fn the_report_in_json_has_every_field_and_a_failure_has_none() {
    let at = tempdir().unwrap();
    let at = at.path();
    let first = picture();
    disk(at, &first);
    let id = |store: &str, volume: &str| {
        json(&succeed(at, &format!("volume info {volume} --json {store}")))["id"].clone()
    };
    let line = |snapshot: &str| format!("backup disk@{snapshot} file://./backup --as copy --json");
    let report = |snapshot: &str, kind: &str, base: Value| {
        let report = json(&succeed(at, &line(snapshot)));
        let sent = ["extents", "data_bytes", "zero_bytes"].map(|field| report[field].as_u64().unwrap());
        let expected = serde_json::json!({
            "volume": "disk", "volume_id": id("", "disk"), "snapshot": snapshot,
            "target": "file://./backup", "target_volume": "copy", "target_volume_id": id(THERE, "copy"),
            "kind": kind, "base": base, "extents": sent[0], "data_bytes": sent[1], "zero_bytes": sent[2],
        });
        assert_eq!(report, expected);
        sent
    };
    let [extents, data_bytes, zero_bytes] = report("a", "first", Value::Null);
    assert!(extents > 0 && data_bytes >= 5 * MIB as u64, "{extents}, {data_bytes}");
    assert_eq!(data_bytes + zero_bytes, 12 * MIB as u64, "all of the disk");
    change(at, &first, &[(8 * MIB, noise(18, 4096))], "b");
    let [_, data_bytes, _] = report("b", "incremental", "a".into());
    assert!((4096..=256 << 10).contains(&data_bytes), "{data_bytes}");
    assert_eq!(report("b", "present", Value::Null), [0; 3]);
    // `fail` checks that nothing is printed to standard output.
    let failed = fail(at, &line("none"), 1);
    assert!(failed.contains("no snapshot named \"none\""), "{failed}");
}

#[test]
fn a_backup_that_is_there_is_not_made_again() {
    let at = tempdir().unwrap();
    let at = at.path();
    let first = picture();
    disk(at, &first);
    succeed(at, "backup disk@a file://./backup");
    assert_eq!(succeed(at, "backup disk@a file://./backup"), "file://./backup has disk@a already\n");
    // That only reads, so a gateway may serve the copy.
    let mut serve = cairn(at, &format!("serve --listen unix:there.sock {THERE}"));
    serve.env("CAIRN_VOLUMES__OPEN", "disk");
    let gateway = Gateway::start(serve);
    for flags in ["", "--resume", "--full", "--digest", "--resume --digest"] {
        let report = json(&succeed(at, &format!("backup disk@a file://./backup --json {flags}")));
        assert_eq!(report["kind"], "present", "{flags}: {report}");
    }
    let second = change(at, &first, &[(0, noise(7, 4096))], "b");
    let held = fail(at, "backup disk@b file://./backup", 1);
    assert!(held.contains("backup to file://./backup: ") && held.contains("is in use by"), "{held}");
    gateway.terminate();
    succeed(at, "backup disk@b file://./backup");
    copy_has(at, &second, "b");
    // Of an older one, nothing but its content shows that it is the same.
    let refused = fail(at, "backup disk@a file://./backup", 1);
    assert!(refused.contains("it has a snapshot named \"a\"") && refused.contains("--digest"), "{refused}");
    let report = json(&succeed(at, "backup disk@a file://./backup --json --digest"));
    assert_eq!(report["kind"], "present");
    // Another snapshot of that name.
    succeed(at, "snapshot delete disk@a");
    succeed(at, "snapshot create disk@a");
    let refused = fail(at, "backup disk@a file://./backup", 1);
    assert!(refused.contains("it has a snapshot named \"a\""), "{refused}");
    let refused = fail(at, "backup disk@a file://./backup --digest", 1);
    assert!(refused.contains("the SHA-256 of its snapshot \"a\" is "), "{refused}");
    assert!(content(at, "disk@a", THERE) == first, "it is unchanged");
    copy_has(at, &second, "b");
}

#[test]
fn a_backup_is_restored_cloned_and_backed_up_without_the_source() {
    let at = tempdir().unwrap();
    let at = at.path();
    let first = picture();
    disk(at, &first);
    succeed(at, "backup disk@a file://./backup --as web");
    let second = change(at, &first, &[(11 * MIB, noise(8, 10_000))], "b");
    let said = succeed(at, "backup disk@b file://./backup --as web");
    assert!(said.starts_with("backed up disk@b to file://./backup as web: "), "{said}");
    assert_eq!(
        succeed(at, "backup disk@b file://./backup --as web"),
        "file://./backup as web has disk@b already\n"
    );
    std::fs::remove_dir_all(at.join("cairn-data")).unwrap();
    succeed(at, &format!("check web --data {THERE}"));
    succeed(at, &format!("clone web@a old {THERE}"));
    assert!(content(at, "old", THERE) == first);
    // Into a third store, under the first name, with both snapshots.
    succeed(at, &format!("backup web@a file://./third --as disk {THERE}"));
    let said = succeed(at, &format!("backup web@b file://./third --as disk --digest {THERE}"));
    assert!(said.ends_with("; incremental since web@a\n"), "{said}");
    let third = "--store file://./third";
    succeed(at, &format!("check disk --data {third}"));
    assert!(content(at, "disk@a", third) == first && content(at, "disk@b", third) == second);
    assert_eq!(snapshots(at, "disk", third), ["a", "b"]);
    // In place.
    succeed(at, &format!("volume restore web@a {THERE}"));
    assert!(content(at, "web", THERE) == first);
    write(at, third, "disk", &[(0, noise(9, 512))]);
    let mut changed = second;
    changed[..512].copy_from_slice(&noise(9, 512));
    assert!(content(at, "disk", third) == changed, "the restored volume is a volume like any other");
}

#[test]
fn a_first_backup_that_was_cut_short_is_noticed_and_goes_on() {
    let at = tempdir().unwrap();
    let at = at.path();
    let first = picture();
    disk(at, &first);
    let source = chunks(&at.join("cairn-data"));
    assert_eq!(source.len(), 3);
    // The last chunk cannot be read for a while.
    let is_last =
        |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("2-"));
    let last: Vec<PathBuf> = source.iter().filter(is_last).cloned().collect();
    assert_eq!(last.len(), 1, "{source:?}");
    let lost = Lost::take(at, last);
    let failed = fail(at, "backup disk@a file://./backup", 1);
    assert!(failed.contains("add --resume to go on") && failed.contains("snapshot \"disk@a\""), "{failed}");
    assert_eq!(succeed(at, &format!("volume list --json {THERE}")).trim(), "[]", "it has no name");
    let unfinished = fail(at, "backup disk@a file://./backup", 1);
    assert!(unfinished.contains("was cut short, or is still running: add --resume"), "{unfinished}");
    assert!(unfinished.contains(&format!(" {THERE}")), "the advice is complete: {unfinished}");
    lost.bring_back();
    let left = json(&succeed(at, &format!("volume list --unnamed --json {THERE}")));
    assert_eq!(left.as_array().unwrap().len(), 1, "it does not begin again by itself: {left}");
    let report = json(&succeed(at, "backup disk@a file://./backup --resume --digest --json"));
    assert_eq!(report["kind"], "first", "{report}");
    assert_eq!(report["target_volume_id"], left[0]["id"], "it goes on with what is there");
    copy_has(at, &first, "a");
    // Without anything to go on with, --resume begins.
    succeed(at, "backup disk@a file://./another --resume");
    assert!(content(at, "disk@a", "--store file://./another") == first);
}

#[test]
fn an_incremental_backup_that_was_cut_short_is_noticed_and_repeated() {
    let at = tempdir().unwrap();
    let at = at.path();
    let first = picture();
    disk(at, &first);
    succeed(at, "backup disk@a file://./backup");
    let before = chunks(&at.join("cairn-data"));
    // A small change, and a chunk that gets an object of its own.
    let second = change(at, &first, &[(4096, noise(10, 4096)), (8 * MIB, noise(11, 4 * MIB))], "b");
    let new = chunks(&at.join("cairn-data")).into_iter().filter(|path| !before.contains(path));
    let lost = Lost::take(at, new);
    let failed = fail(at, "backup disk@b file://./backup", 1);
    assert!(failed.contains("disk has a part of the stream: to go on, repeat the command"), "{failed}");
    let back = failed.rsplit_once("cairn ").map(|(_, line)| line.trim().to_owned()).unwrap();
    assert!(back.starts_with("volume restore disk@receiving-") && back.ends_with(THERE), "{failed}");
    lost.bring_back();
    assert!(!snapshots(at, "disk", THERE).contains(&"b".to_owned()), "it does not count as a backup");
    let refused = fail(at, "backup disk@b file://./backup", 1);
    assert!(refused.contains("was cut short: add --resume"), "{refused}");
    succeed(at, "backup disk@b file://./backup --resume --digest");
    copy_has(at, &second, "b");
    assert_eq!(snapshots(at, "disk", THERE), ["a", "b"]);
    assert!(content(at, "disk@a", THERE) == first);
}

#[tokio::test]
async fn a_signal_ends_a_backup_that_waits_for_the_other_store() {
    let at = tempdir().unwrap();
    let at = at.path();
    disk(at, &picture());
    // It accepts connections, and answers nothing.
    let store = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = format!(
        "[store]\nendpoint = \"http://{}\"\nregion = \"us-east-1\"\npath_style = true\n",
        store.local_addr().unwrap()
    );
    std::fs::write(at.join("there.toml"), settings).unwrap();
    let mut backup = cairn(at, "backup disk@a s3://copies --target-config there.toml");
    backup.env("AWS_ACCESS_KEY_ID", "guest").env("AWS_SECRET_ACCESS_KEY", "guest-guest");
    let mut backup = Process::spawn("cairn backup", &mut backup.into());
    let connection = connection(&store, &mut backup).await;
    backup.signal(Signal::INT);
    let (status, said) = (backup.exit().await, backup.output());
    drop(connection);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("backup to s3://copies: stopped by SIGINT"), "{said}");
    assert!(!said.contains("backed up"), "{said}");
}

#[test]
fn a_volume_that_is_no_backup_of_the_source_is_left_alone() {
    let at = tempdir().unwrap();
    let at = at.path();
    let first = picture();
    disk(at, &first);
    let other = noise(12, 12 * MIB);
    std::fs::write(at.join("other.img"), &other).unwrap();
    succeed(at, &format!("import other.img disk {THERE}"));
    succeed(at, &format!("snapshot create disk@mine {THERE}"));
    for flags in ["", "--full", "--full --digest"] {
        let refused = fail(at, &format!("backup disk@a file://./backup {flags}"), 1);
        assert!(refused.contains("nothing shows that it is a backup of disk"), "{flags}: {refused}");
    }
    for flags in ["--resume", "--resume --full"] {
        let refused = fail(at, &format!("backup disk@a file://./backup {flags}"), 1);
        assert!(refused.contains("is no copy of the snapshot"), "{flags}: {refused}");
    }
    // A backup of another volume of that name is no backup of this one.
    succeed(at, &format!("backup disk@mine file://./backup --as second {THERE}"));
    let refused = fail(at, "backup disk@a file://./backup --as second", 1);
    assert!(refused.contains("nothing shows that it is a backup of disk"), "{refused}");
    copy_has(at, &other, "mine");
    // Neither is the volume itself, whatever its store is called.
    for url in ["file://./cairn-data", "file://cairn-data/../cairn-data"] {
        let refused = fail(at, &format!("backup disk@a {url}"), 2);
        assert!(refused.contains("it is the volume that is to be backed up"), "{refused}");
    }
    succeed(at, "backup disk@a file://./cairn-data --as beside");
    assert!(content(at, "beside@a", "") == first, "another name in the same store");
}

#[test]
fn a_complete_copy_becomes_a_backup_once_it_was_compared() {
    let at = tempdir().unwrap();
    let at = at.path();
    let first = picture();
    disk(at, &first);
    // As a first backup leaves it that ends between its last two steps.
    succeed(at, &format!("import in.img disk {THERE}"));
    let refused = fail(at, "backup disk@a file://./backup", 1);
    assert!(refused.contains("add --resume, which compares all of it"), "{refused}");
    let said = succeed(at, "backup disk@a file://./backup --resume");
    assert!(said.ends_with("; the copy was there, and has the same SHA-256\n"), "{said}");
    assert_eq!(snapshots(at, "disk", THERE), ["a"]);
    let second = change(at, &first, &[(6 * MIB, noise(13, 4096))], "b");
    assert!(succeed(at, "backup disk@b file://./backup").contains("incremental since disk@a"));
    copy_has(at, &second, "b");
}

#[test]
fn without_a_base_all_of_it_is_sent_on_request() {
    let at = tempdir().unwrap();
    let at = at.path();
    let first = picture();
    disk(at, &first);
    succeed(at, "backup disk@a file://./backup");
    let second = change(at, &first, &[(0, vec![0; MIB]), (10 * MIB, noise(14, 4096))], "b");
    succeed(at, "snapshot delete disk@a");
    let refused = fail(at, "backup disk@b file://./backup", 1);
    assert!(refused.contains("nothing shows what has changed since: add --full"), "{refused}");
    let report = json(&succeed(at, "backup disk@b file://./backup --full --digest --json"));
    assert_eq!((&report["kind"], &report["base"]), (&"full".into(), &Value::Null), "{report}");
    copy_has(at, &second, "b");
    assert!(content(at, "disk@a", THERE) == first, "the older backup is still there");
    // From then on, changes are enough.
    let third = change(at, &second, &[(MIB, noise(15, 512))], "c");
    assert!(succeed(at, "backup disk@c file://./backup").contains("incremental since disk@b"));
    copy_has(at, &third, "c");
    // Somebody writes to the copy. All of it is sent again, or the change is taken back.
    write(at, THERE, "disk", &[(3 * MIB, noise(16, 4096))]);
    let fourth = change(at, &third, &[(2 * MIB, noise(17, 512))], "d");
    let refused = fail(at, "backup disk@d file://./backup", 1);
    assert!(refused.contains("the volume has changed since its snapshot"), "{refused}");
    assert!(succeed(at, "backup disk@d file://./backup --full").contains("all of it was replaced"));
    copy_has(at, &fourth, "d");
    assert_eq!(snapshots(at, "disk", THERE), ["a", "b", "c", "d"]);
}

#[test]
fn a_file_says_how_to_use_the_other_store() {
    let at = tempdir().unwrap();
    let at = at.path();
    let first = picture();
    disk(at, &first);
    // What is not about the store does not count, nor does the URL.
    let settings =
        "[store]\nurl = \"file://./elsewhere\"\nconcurrency = 3\n[admin]\ntoken_file = \"/none\"\n";
    std::fs::write(at.join("there.toml"), settings).unwrap();
    succeed(at, "backup disk@a file://./backup --target-config there.toml");
    copy_has(at, &first, "a");
    assert!(!at.join("elsewhere").exists());
    for (settings, part) in [
        ("[store]\nconcurency = 3\n", "concurency"),
        ("[store]\nendpoint = \"minio:9000\"\n", "store.endpoint"),
        ("[store]\nretry_base = \"10s\"\n", "store.retry_cap"),
    ] {
        std::fs::write(at.join("wrong.toml"), settings).unwrap();
        let refused = fail(at, "backup disk@a file://./other --target-config wrong.toml", 2);
        assert!(refused.contains(part) && refused.contains("wrong.toml"), "{refused}");
    }
    assert!(fail(at, "backup disk@a file://./other --target-config none.toml", 2).contains("none.toml"));
    assert!(!at.join("other").exists());
}

#[test]
fn mistakes_are_refused_and_make_nothing() {
    let at = tempdir().unwrap();
    let at = at.path();
    for line in [
        "backup disk@a",
        "backup disk file://./backup",
        "backup disk@a ./backup",
        "backup disk@a http://backup",
        "backup disk@.a file://./backup",
        "backup disk@a file://./backup --as a/b",
        "backup disk@a file://./backup extra",
    ] {
        fail(at, line, 2);
    }
    assert!(fail(at, "backup disk@a file://./backup", 1).contains("does not contain a store"));
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 0);
    succeed(at, "volume create disk 1MiB");
    assert!(fail(at, "backup disk@a file://./backup", 1).contains("no snapshot named \"a\""));
    assert!(fail(at, "backup none@a file://./backup", 1).contains("no volume named \"none\""));
    assert!(!at.join("backup").exists(), "the source is opened first");
    succeed(at, "snapshot create disk@a");
    std::fs::write(at.join("file"), "x").unwrap();
    assert!(fail(at, "backup disk@a file://./file", 1).contains("backup to file://./file: cannot open"));
    // A disk of zeros, whose size is no multiple of a block.
    succeed(at, "volume create odd 1049088");
    succeed(at, "snapshot create odd@a");
    let report = json(&succeed(at, "backup odd@a file://./backup --json"));
    assert_eq!((&report["data_bytes"], &report["kind"]), (&0.into(), &"first".into()), "{report}");
    assert!(content(at, "odd@a", THERE) == vec![0; 1_049_088]);
}
