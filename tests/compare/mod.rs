//! `benches/compare` works: its table is complete, a missing program is a failure, and it leaves nothing behind.
//!
//! It must not judge the figures: nothing fails for being slow.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::cairn::binary;
use crate::support::process::{Process, command, finish, listens_at, run, until};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare/run.sh");

/// A command that compares with the program under test. Its files are below `at`.
fn compare(at: &Path, arguments: &str) -> Command {
    let mut compare = command([SCRIPT, "--quick", "--cairn"]);
    compare.arg(binary()).arg("--output").arg(at.join("out")).args(arguments.split_whitespace());
    let files = at.join("files");
    std::fs::create_dir_all(&files).expect("a directory for its files");
    compare.env("TMPDIR", files).env_remove("CAIRN_TEST_BINARY");
    compare
}

/// Returns the command lines of all processes that mention a path.
fn processes_of(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("proc is mounted") {
        let file = entry.expect("an entry").path().join("cmdline");
        // A process may end while it is read.
        let line = std::fs::read(file).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&*path.to_string_lossy()) {
            found.push(line);
        }
    }
    found
}

fn files_of(at: &TempDir) -> usize {
    std::fs::read_dir(at.path().join("files")).expect("the directory of its files").count()
}

/// What is wrong with a cell of a quick run, which has one round.
fn fault(cell: &Value) -> Option<&'static str> {
    if cell["why_not"].is_string() {
        return None;
    }
    let values = cell["values"].as_array()?;
    let value = values.first().and_then(Value::as_f64);
    match (values.len(), value) {
        (1, Some(value)) if value.is_finite() && value >= 0.0 && cell["median"] == value => None,
        _ => Some("not one value that is its own median"),
    }
}

#[tokio::test]
#[ignore = "needs MinIO, PostgreSQL, Python, QEMU, e2fsprogs, fio, libnbd, nbdkit, s3backer, util-linux"]
async fn the_quick_size_fills_every_cell_of_the_table() {
    let at = tempfile::tempdir().unwrap();
    let socket = at.path().join("other.sock");
    let mut other = command(["nbdkit", "--foreground", "--unix"]);
    other.arg(&socket).args(["memory", "256M"]);
    let _other = Process::spawn("nbdkit", &mut other);
    listens_at(&socket).await;
    let given = format!("--nbd other=nbd+unix:///?socket={}", socket.display());
    let mut process = Process::spawn("compare", &mut compare(at.path(), &given));
    for stage in ["raw: Cairn, MinIO + 20 ms", "small: other", "hot: other", "large: other", "flush: other"] {
        process.wait_for(stage, |line| line.contains(stage).then_some(())).await;
    }
    let status = process.exit().await;
    assert!(status.success(), "{}", process.output());
    assert!(!process.output().contains("MISSING"), "{}", process.output());
    let text = std::fs::read(at.path().join("out/compare.json")).expect("it wrote JSON");
    let json: Value = serde_json::from_slice(&text).expect("it is JSON");
    let servers: Vec<_> = json["servers"].as_object().expect("the servers").keys().cloned().collect();
    assert_eq!(servers.len(), 8, "{servers:?}");
    let rows = json["rows"].as_array().expect("the rows");
    assert!(rows.len() >= 34, "{}", rows.len());
    for row in rows {
        let cells = row["cells"].as_object().expect("the cells");
        assert_eq!(cells.keys().cloned().collect::<Vec<_>>(), servers, "{row}");
        for (server, cell) in cells {
            assert_eq!(fault(cell), None, "{server}: {row}");
        }
        let (work, state) = (row["work"].as_str().unwrap(), row["state"].as_str().unwrap());
        assert!(process.output().contains(&format!("| {work} | {state} | ")), "{work} is not in the table");
        // What only a foreign address lacks is measured on each server that the tool starts.
        let lacking = cells.iter().filter(|(_, cell)| cell["why_not"].is_string()).count();
        assert!([0, 1, 4, 5].contains(&lacking), "{row}");
    }
    for part in ["machine", "versions", "command", "sizes", "samples"] {
        assert!(json[part].is_object() || json[part].is_string(), "no {part}");
    }
    for name in ["random", "sequential", "durable", "cost"] {
        let plot = std::fs::read_to_string(at.path().join(format!("out/figures/compare-{name}.svg")));
        let plot = plot.expect("a plot");
        assert!(
            plot.starts_with("<svg ") && plot.ends_with("</svg>\n") && plot.contains("Cairn, MinIO"),
            "{name}"
        );
    }
    assert_eq!(files_of(&at), 0);
    assert_eq!(processes_of(&at.path().join("files")), Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs Python, fio"]
async fn a_missing_program_is_a_failure_that_names_it() {
    let at = tempfile::tempdir().unwrap();
    let programs = at.path().join("bin");
    std::fs::create_dir(&programs).unwrap();
    for name in ["dirname", "fio"] {
        let path = run(&mut command(["sh", "-c", &format!("command -v {name}")])).await;
        std::os::unix::fs::symlink(path.trim(), programs.join(name)).unwrap();
    }
    let mut without = compare(at.path(), "--cairn /nowhere/cairn");
    let done = finish(without.env("PATH", &programs)).await;
    assert_eq!(done.status.code(), Some(1), "{}", done.stderr);
    for name in ["/nowhere/cairn", "mkfs.ext4", "nbdfuse", "nbdkit", "qemu-nbd", "s3backer", "umount"] {
        assert!(done.stderr.contains(name), "{name}: {}", done.stderr);
    }
    assert!(!done.stderr.contains("fio,"), "{}", done.stderr);
    assert!(!at.path().join("out").exists());
}

#[tokio::test]
#[ignore = "needs MinIO, Python, fio, nbdkit"]
async fn whatever_ends_it_ends_what_it_started() {
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let at = tempfile::tempdir().unwrap();
        let arguments = "--stages hot --servers nbdkit-memory,cairn-minio,cairn-minio-20ms --seconds 5";
        let mut process = Process::spawn("compare", &mut compare(at.path(), arguments));
        process.wait_for("one server is done", |line| line.contains("nbdkit memory").then_some(())).await;
        let files = at.path().join("files");
        // Cairn's socket is below it, and MinIO's directory.
        until("Cairn and MinIO run", || processes_of(&files).len() >= 2).await;
        process.signal(signal);
        let status = process.exit().await;
        until("everything has ended", || processes_of(&files).is_empty()).await;
        if signal == Signal::KILL {
            continue;
        }
        assert_eq!(status.code(), Some(1), "{}", process.output());
        assert!(process.output().contains("stopped by SIG"), "{}", process.output());
        assert_eq!(files_of(&at), 0);
        assert!(!at.path().join("out").exists(), "a run that was stopped has no results");
    }
}

#[tokio::test]
#[ignore = "needs Python"]
async fn its_parts_pass_their_own_tests() {
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare/tests.py");
    run(command(["/usr/bin/python3", tests]).env("PYTHONDONTWRITEBYTECODE", "1")).await;
}
