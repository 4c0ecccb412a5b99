//! `cairn import` and `cairn export`: files, pipes and servers to volumes and back, whole or not at all.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::tempdir;

use super::{Gateway, Run, cairn, fail, refuse, succeed};
use crate::support::files::noise;

const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;

/// Some random bytes, zeros and unaligned ends.
fn picture() -> Vec<u8> {
    let mut bytes = vec![0; 40 * MIB + 1536];
    bytes[..5 * MIB + 3].copy_from_slice(&noise(1, 5 * MIB + 3));
    bytes[17 * MIB + 4321..20 * MIB + 1].copy_from_slice(&noise(2, 3 * MIB - 4320));
    bytes[40 * MIB + 1535] = 7;
    bytes
}

/// As the disk reads: rounded up to whole blocks.
fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    bytes
}

/// The checksum that a command printed.
fn sha256(said: &str) -> &str {
    said.lines().find_map(|line| line.strip_prefix("sha256 ")).expect("it prints a checksum")
}

fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).expect("the file exists").blocks() * 512
}

fn files(at: &Path) -> Vec<String> {
    let entries =
        std::fs::read_dir(at).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

/// The files of all chunk objects, in order of size.
fn chunks(at: &Path) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![at.join("cairn-data")], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a directory") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.to_string_lossy().contains("/chunk/") => found.push(path),
                false => {}
            }
        }
    }
    found.sort_by_key(|path| std::fs::metadata(path).expect("the file exists").len());
    found
}

#[test]
fn a_file_becomes_a_volume_and_a_file_again() {
    let at = tempdir().unwrap();
    let at = at.path();
    std::fs::write(at.join("in.img"), picture()).unwrap();
    let imported = succeed(at, "import in.img disk");
    assert!(imported.starts_with("imported 41944576 bytes of in.img and 2560 zeros as disk\n"), "{imported}");
    let info: Value = serde_json::from_str(&succeed(at, "volume info disk --json")).unwrap();
    assert_eq!((info["size_bytes"].as_u64(), &info["holder"]), (Some(41_947_136), &Value::Null));
    succeed(at, "check disk --data");
    let exported = succeed(at, "export disk out.img");
    assert!(exported.starts_with("exported 41947136 bytes of disk to out.img\n"), "{exported}");
    assert_eq!(sha256(&exported), sha256(&imported));
    assert!(std::fs::read(at.join("out.img")).unwrap() == padded(picture()));
    assert!(allocated(&at.join("out.img")) < 10 * MIB as u64, "holes stay holes");
    // A snapshot is exported too, over the older file.
    succeed(at, "snapshot create disk@monday");
    let exported = succeed(at, "export disk@monday out.img --quiet");
    assert_eq!(sha256(&exported), sha256(&imported));
    assert!(std::fs::read(at.join("out.img")).unwrap() == padded(picture()));
    assert_eq!(files(at), ["cairn-data", "in.img", "out.img"]);
}

#[test]
fn holes_of_a_file_are_neither_read_nor_stored() {
    let at = tempdir().unwrap();
    let at = at.path();
    let file = std::fs::File::create(at.join("in.img")).unwrap();
    file.set_len(5 * GIB).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &noise(3, 100_000), 3 * GIB + 12_345).unwrap();
    let imported = succeed(at, "import in.img disk --chunk-size 1MiB");
    assert_eq!(chunks(at).len(), 1);
    assert!(allocated(&chunks(at)[0]) < 300_000, "only whole pages with data");
    let exported = succeed(at, "export disk out.img");
    assert_eq!(sha256(&exported), sha256(&imported));
    assert!(allocated(&at.join("out.img")) < MIB as u64);
    let found = std::fs::File::open(at.join("out.img")).unwrap();
    let mut bytes = vec![0; 100_000];
    std::os::unix::fs::FileExt::read_exact_at(&found, &mut bytes, 3 * GIB + 12_345).unwrap();
    assert!(bytes == noise(3, 100_000));
}

#[test]
fn standard_input_and_output_are_streams() {
    let at = tempdir().unwrap();
    let at = at.path();
    let mut import = cairn(at, "import - disk").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    import.stdin.take().unwrap().write_all(&picture()).unwrap();
    let imported: Run = import.wait_with_output().unwrap().into();
    assert_eq!(imported.code, Some(0), "{}", imported.err);
    assert!(
        imported.out.starts_with("imported 41944576 bytes of - and 2560 zeros as disk\n"),
        "{}",
        imported.out
    );
    let exported = cairn(at, "export disk -").output().unwrap();
    assert!(exported.status.success());
    assert!(exported.stdout == padded(picture()));
    let said = String::from_utf8(exported.stderr).unwrap();
    assert_eq!(sha256(&said), sha256(&imported.out));
}

#[test]
fn servers_are_sources_and_targets() {
    let at = tempdir().unwrap();
    let at = at.path();
    std::fs::write(at.join("in.img"), picture()).unwrap();
    // More room than the volume needs, and something else in it.
    std::fs::write(at.join("out.img"), noise(9, 50 * MIB)).unwrap();
    let serve = |file: &str| {
        let gateway = Gateway::start(cairn(at, &format!("nbd serve --no-tls --port 0 {file}")));
        let uri = gateway.lines.iter().find_map(|line| line.strip_prefix("listening on ")).map(str::to_owned);
        (gateway, uri.expect("it listens"))
    };
    let ((source, from), (target, to)) = (serve("in.img"), serve("out.img"));
    let imported = succeed(at, &format!("import {from} disk"));
    let exported = succeed(at, &format!("export disk {to}"));
    assert_eq!(sha256(&exported), sha256(&imported));
    source.terminate();
    target.terminate();
    let (out, expected) = (std::fs::read(at.join("out.img")).unwrap(), padded(picture()));
    assert!(
        out[..expected.len()] == expected && out[expected.len()..] == noise(9, 50 * MIB)[expected.len()..]
    );
}

#[test]
fn mistakes_are_refused_and_make_nothing() {
    let at = tempdir().unwrap();
    let at = at.path();
    std::fs::write(at.join("empty"), []).unwrap();
    std::fs::write(at.join("in.img"), noise(1, MIB)).unwrap();
    assert!(fail(at, "import none disk", 1).contains("none: No such file"));
    assert!(fail(at, "import empty disk", 1).contains("empty is empty"));
    assert!(fail(at, "import . disk", 1).contains("neither a file nor a block device"));
    assert!(fail(at, "import nbd+unix:///?socket=none disk", 1).contains("none"));
    assert!(fail(at, "import in.img .disk", 2).contains("not a volume name"));
    assert!(fail(at, "import in.img disk --chunk-size 5MiB", 2).contains("chunk"));
    for line in ["import - disk --format qcow2", "import nbd://127.0.0.1/disk disk --format qcow2"] {
        assert!(fail(at, line, 2).contains("only a file can"), "{line}");
    }
    for line in ["export disk out.img", "export disk@monday out.img"] {
        assert!(fail(at, line, 1).contains("does not contain a store"), "{line}");
    }
    assert_eq!(files(at), ["empty", "in.img"]);
    assert!(fail(at, "import in.img disk --resume", 1).contains("no import of \"disk\" to resume"));
    succeed(at, "import in.img disk");
    for line in ["import in.img disk", "import in.img disk --resume"] {
        assert!(fail(at, line, 1).contains("a volume named \"disk\" exists already"), "{line}");
    }
    // Standard input ends at once.
    assert!(fail(at, "import - other", 1).contains("volume size 0"));
    assert_eq!(succeed(at, "volume list --unnamed --json").trim(), "[]");
    assert!(fail(at, "export none out.img", 1).contains("no volume named \"none\""));
    assert!(fail(at, "export disk@none out.img", 1).contains("no snapshot named \"none\""));
    assert!(fail(at, "export disk - --resume", 2).contains("--resume is only possible with a raw file"));
    assert!(fail(at, "export disk out.img --resume", 2).contains("a volume may have changed"));
    assert!(fail(at, "export disk no/such/folder", 1).contains("no/such/folder"));
    assert!(fail(at, "export disk cairn-data", 1).contains("neither a file nor a block device"));
    std::fs::write(at.join("qcow2"), [&b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\0\x68"[..], &[0; 4096]].concat())
        .unwrap();
    assert!(fail(at, "import qcow2 other", 2).contains("a backing file"));
    std::fs::write(at.join("qcow2"), [&b"QFI\xfb\0\0\0\x03"[..], &[0; 4096]].concat()).unwrap();
    let mut without = cairn(at, "import qcow2 other");
    without.env("PATH", at);
    assert!(refuse(without, 1).contains("qemu-nbd is not installed: it is in the package qemu-utils"));
    let left = files(at);
    assert!(left.iter().all(|name| !name.contains("out.img")), "{left:?}");
}

/// Nobody knows what a volume contains that changes while it is read.
#[test]
fn a_volume_that_a_gateway_holds_is_exported_by_a_snapshot() {
    let at = tempdir().unwrap();
    let at = at.path();
    std::fs::write(at.join("in.img"), picture()).unwrap();
    let imported = succeed(at, "import in.img disk");
    let socket = at.join("admin.sock");
    let mut serve = cairn(at, "serve --listen 127.0.0.1:0");
    serve.env("CAIRN_ADMIN__SOCKET", &socket).env("CAIRN_VOLUMES__OPEN", "disk");
    let gateway = Gateway::start(serve);
    let refused = fail(at, "export disk out.img", 1);
    assert!(
        refused.contains("is in use by") && refused.contains("cairn snapshot create disk@NAME"),
        "{refused}"
    );
    succeed(at, &format!("snapshot create disk@now --gateway={}", socket.display()));
    let exported = succeed(at, "export disk@now out.img");
    assert_eq!(sha256(&exported), sha256(&imported));
    assert!(std::fs::read(at.join("out.img")).unwrap() == padded(picture()));
    // An import beside a gateway needs no gateway.
    succeed(at, "import out.img another");
    gateway.terminate();
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id")).expect("not 0");
    kill_process(pid, signal).expect("it is there");
}

#[test]
fn an_import_that_was_stopped_goes_on_and_compares_what_is_there() {
    let at = tempdir().unwrap();
    let at = at.path();
    let content = noise(4, 100 * MIB);
    std::fs::write(at.join("in.img"), &content).unwrap();
    let mut other = content.clone();
    other[5] ^= 1;
    std::fs::write(at.join("other.img"), other).unwrap();
    let mut import = cairn(at, "import - disk");
    let mut import =
        import.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = import.stdin.take().unwrap();
    // No more than 16 chunks are on their way, so some are in the store when this is written.
    input.write_all(&content[..90 * MIB]).unwrap();
    signal(&import, Signal::TERM);
    let stopped: Run = import.wait_with_output().unwrap().into();
    drop(input);
    assert_eq!(stopped.code, Some(1));
    assert!(
        stopped.err.contains("stopped by SIGTERM") && stopped.err.contains("--resume"),
        "{}",
        stopped.err
    );
    assert_eq!(succeed(at, "volume list --json").trim(), "[]");
    let unnamed: Value = serde_json::from_str(&succeed(at, "volume list --unnamed --json")).unwrap();
    assert_eq!((&unnamed[0]["made_for"], &unnamed[0]["state"]), (&"disk".into(), &"incomplete".into()));
    let before = chunks(at);
    assert!((4..=22).contains(&before.len()), "{} chunks", before.len());
    let refused = fail(at, "import other.img disk --resume", 1);
    assert!(
        refused.contains("the source has changed") && refused.contains("volume delete --id"),
        "{refused}"
    );
    let times = |paths: &[PathBuf]| -> Vec<_> {
        paths.iter().map(|path| std::fs::metadata(path).unwrap().ino()).collect()
    };
    let inodes = times(&before);
    let imported = succeed(at, "import in.img disk --resume");
    assert_eq!(times(&before), inodes, "what was there was not written again");
    assert_eq!(chunks(at).len(), 25);
    assert_eq!(sha256(&succeed(at, "export disk out.img")), sha256(&imported));
    assert!(std::fs::read(at.join("out.img")).unwrap() == content);
    succeed(at, "check disk --data");
}

#[test]
fn an_export_that_failed_leaves_no_file_and_goes_on() {
    let at = tempdir().unwrap();
    let at = at.path();
    let file = std::fs::File::create(at.join("in.img")).unwrap();
    file.set_len(3 * GIB).unwrap();
    let write =
        |bytes: &[u8], offset| std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).unwrap();
    write(&noise(1, MIB), 4096);
    write(&noise(2, 3 * MIB), 2 * GIB + (100 << 20));
    let imported = succeed(at, "import in.img disk");
    succeed(at, "snapshot create disk@monday");
    std::fs::write(at.join("out.img"), "older").unwrap();
    // The object of the last data is unreadable for a while.
    let lost = chunks(at).pop().expect("it is the largest");
    std::fs::rename(&lost, at.join("lost")).unwrap();
    let failed = fail(at, "export disk@monday out.img", 1);
    assert!(failed.contains("add --resume to go on"), "{failed}");
    assert_eq!(std::fs::read(at.join("out.img")).unwrap(), b"older");
    // A volume cannot be resumed, so nothing of it is kept.
    let failed = fail(at, "export disk whole.img", 1);
    assert!(!failed.contains("--resume"), "{failed}");
    assert!(files(at).iter().all(|name| !name.starts_with("whole")), "{:?}", files(at));
    std::fs::rename(at.join("lost"), &lost).unwrap();

    let partial = std::fs::OpenOptions::new().write(true).open(at.join("out.img.partial")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&partial, &[0], 5000).unwrap();
    let refused = fail(at, "export disk@monday out.img --resume", 2);
    assert!(refused.contains("was changed since"), "{refused}");
    let byte = noise(1, MIB)[5000 - 4096];
    std::os::unix::fs::FileExt::write_all_at(&partial, &[byte], 5000).unwrap();
    succeed(at, "snapshot create disk@tuesday");
    let refused = fail(at, "export disk@tuesday out.img --resume", 2);
    assert!(refused.contains("a part of something else"), "{refused}");
    let exported = succeed(at, "export disk@monday out.img --resume");
    assert_eq!(sha256(&exported), sha256(&imported));
    assert!(std::fs::metadata(at.join("out.img")).unwrap().len() == 3 * GIB);
    assert_eq!(files(at), ["cairn-data", "in.img", "out.img"]);
    // Every byte, as a new import sees it.
    assert_eq!(sha256(&succeed(at, "import out.img again")), sha256(&imported));
    let refused = fail(at, "export disk@monday out.img --resume", 2);
    assert!(refused.contains("there is no export to"), "{refused}");
}
