//! `cairn snapshot diff`, `cairn export --since` and `cairn import --onto`: what has changed, and copies that
//! are brought up to date by it.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::tempdir;

use super::{Gateway, Run, cairn, fail, run, succeed};
use crate::support::files::noise;

const MIB: usize = 1 << 20;

/// Makes a volume `disk` with a snapshot of each content, and returns the contents.
fn days(at: &Path) -> [Vec<u8>; 3] {
    let monday = [noise(1, 3 * MIB), vec![0; 5 * MIB]].concat();
    let mut tuesday = monday.clone();
    tuesday[MIB..MIB + 4096].copy_from_slice(&noise(2, 4096));
    tuesday[2 * MIB..2 * MIB + 65_536].fill(0);
    let mut wednesday = tuesday.clone();
    wednesday[7 * MIB + 100..7 * MIB + 200].copy_from_slice(&noise(3, 100));
    let days = [monday, tuesday, wednesday];
    std::fs::write(at.join("0.img"), &days[0]).unwrap();
    succeed(at, "import 0.img disk");
    succeed(at, "snapshot create disk@d0");
    for (n, pair) in (1..).zip(days.windows(2)) {
        change(at, &pair[0], &pair[1]);
        succeed(at, &format!("snapshot create disk@d{n}"));
    }
    days
}

/// Writes the blocks that differ to the volume, through a gateway.
fn change(at: &Path, old: &[u8], new: &[u8]) {
    let mut serve = cairn(at, "serve --listen unix:nbd.sock");
    serve.env("CAIRN_VOLUMES__OPEN", "disk");
    let gateway = Gateway::start(serve);
    // Only blocks that differ are written: a copy of the whole would change every block.
    let client = async {
        let socket = at.join("nbd.sock");
        let uri = format!("nbd+unix:///disk?socket={}", socket.display()).parse().unwrap();
        let client = cairn::client::Client::connect(&uri, &cairn::client::Options::default()).await.unwrap();
        for (block, (old, new)) in (0_u64..).zip(old.chunks(4096).zip(new.chunks(4096))) {
            let durability = cairn::effect::Durability::Volatile;
            if old != new {
                client.write(block * 4096, new.to_vec().into(), durability).await.unwrap();
            }
        }
        client.flush().await.unwrap();
        client.disconnect().await;
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(client);
    gateway.terminate();
}

fn exported(at: &Path, of: &str) -> Vec<u8> {
    succeed(at, &format!("export {of} check.img --quiet"));
    std::fs::read(at.join("check.img")).unwrap()
}

#[test]
fn a_comparison_is_text_or_json_and_covers_what_differs() {
    let at = tempdir().unwrap();
    let at = at.path();
    days(at);
    let shown = succeed(at, "snapshot diff disk@d0 disk@d1");
    let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["OFFSET", "LENGTH", "CONTENT"]);
    assert!(lines.iter().any(|line| line[..] == ["1048576", "4096", "data"]), "{shown}");
    assert!(shown.lines().last().unwrap().contains(" ranges, "), "{shown}");
    let json: Value = serde_json::from_str(&succeed(at, "snapshot diff disk@d0 disk@d1 --json")).unwrap();
    assert_eq!((&json["from"], &json["to"]), (&"disk@d0".into(), &"disk@d1".into()));
    assert_eq!((&json["from_size_bytes"], &json["to_size_bytes"]), (&(8 << 20).into(), &(8 << 20).into()));
    let ranges = json["ranges"].as_array().unwrap();
    let lengths = ranges.iter().map(|range| range["length"].as_u64().unwrap());
    assert_eq!(json["changed_bytes"].as_u64(), Some(lengths.sum()));
    assert_eq!(ranges.len() + 2, lines.len(), "both show the same");
    let same: Value = serde_json::from_str(&succeed(at, "snapshot diff disk@d1 disk@d1 --json")).unwrap();
    assert_eq!((&same["ranges"], &same["changed_bytes"]), (&Value::Array(Vec::new()), &0.into()));
    // The volume as it is now, and a clone.
    let now: Value = serde_json::from_str(&succeed(at, "snapshot diff disk@d1 disk --json")).unwrap();
    assert_eq!(now["ranges"][0]["offset"].as_u64(), Some(7 << 20));
    succeed(at, "clone disk@d1 web");
    let clone: Value = serde_json::from_str(&succeed(at, "snapshot diff disk@d1 web --json")).unwrap();
    assert_eq!(clone["changed_bytes"], 0);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let at = tempdir().unwrap();
    let at = at.path();
    for line in ["snapshot diff disk@a", "snapshot diff disk disk@a", "snapshot diff disk@a disk@.b"] {
        fail(at, line, 2);
    }
    assert!(fail(at, "snapshot diff disk@a disk@b", 1).contains("does not contain a store"));
    succeed(at, "volume create disk 1MiB");
    succeed(at, "snapshot create disk@a");
    succeed(at, "volume create other 1MiB");
    succeed(at, "snapshot create other@a");
    assert!(fail(at, "snapshot diff disk@a disk@b", 1).contains("no snapshot named \"b\""));
    assert!(fail(at, "snapshot diff disk@b disk@a", 1).contains("no snapshot named \"b\""));
    assert!(fail(at, "snapshot diff disk@a other@a", 1).contains("nothing in common"));
    let mut serve = cairn(at, "serve --listen 127.0.0.1:0");
    serve.env("CAIRN_VOLUMES__OPEN", "disk");
    let gateway = Gateway::start(serve);
    let refused = fail(at, "snapshot diff disk@a disk", 1);
    assert!(refused.contains("is in use by"), "{refused}");
    assert!(refused.contains("cairn snapshot create disk@NAME"), "{refused}");
    gateway.terminate();
}

#[test]
fn a_copy_is_brought_up_to_date_from_day_to_day() {
    let at = tempdir().unwrap();
    let at = at.path();
    let days = days(at);
    succeed(at, "import 0.img copy --store file://./backup");
    let made = succeed(at, "export --since @d0 disk@d1 1.inc --digest");
    assert!(made.starts_with("exported what differs between disk@d0 and disk@d1 to 1.inc: "), "{made}");
    assert!(std::fs::metadata(at.join("1.inc")).unwrap().len() < 200_000, "what is the same is not sent");
    succeed(at, "export --since @d1 disk@d2 2.inc");
    let onto = "--onto copy --store file://./backup";
    let refused = fail(at, &format!("import {onto} 2.inc"), 1);
    assert!(
        refused.contains("nothing shows that the volume has") && refused.contains("--digest"),
        "{refused}"
    );
    let applied = succeed(at, &format!("import {onto} 1.inc --snapshot d1"));
    assert!(applied.ends_with("copy has the content of the snapshot d1\n"), "{applied}");
    assert!(exported(at, "copy@d1 --store file://./backup") == days[1]);
    assert!(exported(at, "copy --store file://./backup") == days[1]);
    // By a pipe.
    let stream = cairn(at, "export --since @d1 disk@d2 - --quiet").output().unwrap();
    assert!(stream.status.success() && stream.stdout == std::fs::read(at.join("2.inc")).unwrap());
    let mut import = cairn(at, &format!("import {onto} -"));
    let mut import = import.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    import.stdin.take().unwrap().write_all(&stream.stdout).unwrap();
    let imported: Run = import.wait_with_output().unwrap().into();
    assert_eq!(imported.code, Some(0), "{}", imported.err);
    assert!(exported(at, "copy --store file://./backup") == days[2]);
    let again = succeed(at, &format!("import {onto} 2.inc"));
    assert_eq!(again, "copy has the content of the snapshot d2 already\n");
    succeed(at, "check copy --data --store file://./backup");
    let left: Vec<_> = std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
}

#[test]
fn a_stream_that_was_cut_off_is_noticed_and_applied_again() {
    let at = tempdir().unwrap();
    let at = at.path();
    let days = days(at);
    succeed(at, "import 0.img copy --store file://./backup");
    succeed(at, "export --since @d0 disk@d2 whole.inc --digest");
    let stream = std::fs::read(at.join("whole.inc")).unwrap();
    std::fs::write(at.join("cut.inc"), &stream[..stream.len() - 1]).unwrap();
    let onto = "--onto copy --store file://./backup";
    let failed = fail(at, &format!("import {onto} cut.inc"), 1);
    assert!(failed.contains("is not a whole stream") && failed.contains("--resume"), "{failed}");
    let refused = fail(at, &format!("import {onto} whole.inc"), 1);
    assert!(refused.contains("was cut short: add --resume"), "{refused}");
    // Whoever serves it meanwhile is told.
    let mut serve = cairn(at, "serve --listen unix:nbd.sock --store file://./backup");
    serve.env("CAIRN_VOLUMES__OPEN", "copy");
    let mut gateway = Gateway::start(serve);
    gateway.wait_for_log("a mixture of what it had and what it gets");
    gateway.terminate();
    succeed(at, &format!("import {onto} whole.inc --resume"));
    assert!(exported(at, "copy --store file://./backup") == days[2]);
}

#[test]
fn a_copy_that_a_gateway_holds_is_refused_with_its_name_and_what_to_do() {
    let at = tempdir().unwrap();
    let at = at.path();
    let days = days(at);
    let there = "--store file://./backup";
    succeed(at, &format!("import 0.img copy {there}"));
    succeed(at, "export --since @d0 disk@d1 1.inc --digest");
    let mut serve = cairn(at, &format!("serve --listen unix:there.sock {there}"));
    serve.env("CAIRN_VOLUMES__OPEN", "copy").env("CAIRN_LEASE__HOLDER", "site/b");
    let gateway = Gateway::start(serve);
    for flags in ["", "--resume", "--snapshot d1"] {
        let refused = fail(at, &format!("import --onto copy {there} 1.inc {flags}"), 1);
        assert!(refused.contains("volume \"copy\" is in use by site/b"), "{flags}: {refused}");
        assert!(refused.contains("or end the gateway"), "{flags}: {refused}");
    }
    gateway.terminate();
    assert_eq!(succeed(at, &format!("snapshot list copy --json {there}")).trim(), "[]", "nothing has begun");
    assert!(exported(at, &format!("copy {there}")) == days[0]);
    succeed(at, &format!("import --onto copy {there} 1.inc"));
    assert!(exported(at, &format!("copy {there}")) == days[1]);
}

#[test]
fn a_signal_ends_an_import_that_waits_for_its_stream() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    let (kind, mode) = (FileType::Fifo, Mode::RUSR | Mode::WUSR);
    mknodat(CWD, at.join("in.inc"), kind, mode, 0).unwrap();
    let mut import = Gateway::spawn(cairn(at, "import --onto disk in.inc"));
    // Returns once the import has opened it too, and before that, the import listens for signals.
    let source = std::fs::File::options().write(true).open(at.join("in.inc")).unwrap();
    import.signal(Signal::INT);
    let (_, run) = import.end();
    drop(source);
    assert_eq!((run.code, run.out.as_str()), (Some(1), ""), "{}", run.err);
    assert!(run.err.contains("stopped by SIGINT"), "{}", run.err);
}

#[test]
fn mistakes_are_refused_and_change_nothing() {
    let at = tempdir().unwrap();
    let at = at.path();
    for line in [
        "export --since d0 disk@d1 out.inc",
        "export --since @d0 disk@d1 out.inc --resume",
        "export --since @d0 disk@d1 out.inc --format raw",
        "export disk@d1 out.inc --digest",
        "import in.inc",
        "import in.inc disk --onto copy",
        "import in.inc disk --snapshot x",
        "import in.inc --onto copy --chunk-size 1MiB",
        "import in.inc --onto copy --snapshot .x",
        "import in.inc --onto copy --snapshot a/b",
    ] {
        fail(at, line, 2);
    }
    assert!(fail(at, "export --since @d0 disk out.inc", 2).contains("only possible with a snapshot"));
    let to_server = fail(at, "export --since @d0 disk@d1 nbd://127.0.0.1/x", 2);
    assert!(to_server.contains("a file or standard output"), "{to_server}");
    assert!(fail(at, "import nbd://127.0.0.1/x --onto copy", 2).contains("a file or standard input"));
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 0);
    succeed(at, "volume create disk 1MiB");
    succeed(at, "snapshot create disk@d0");
    assert!(fail(at, "export --since @d0 disk@d1 out.inc", 1).contains("no snapshot named \"d1\""));
    assert!(fail(at, "export --since @d1 disk@d0 out.inc", 1).contains("no snapshot named \"d1\""));
    std::fs::write(at.join("noise"), noise(1, MIB)).unwrap();
    assert!(fail(at, "import --onto disk noise", 1).contains("is not a whole stream"));
    assert!(fail(at, "import --onto disk none", 1).contains("none: No such file"));
    // Standard input ends at once.
    assert!(run(cairn(at, "import --onto disk -")).err.contains("is not a whole stream"));
    assert!(!at.join("out.inc").exists() && !at.join("out.inc.partial").exists());
}
