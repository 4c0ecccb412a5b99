//! Standard error is closed, on a full disk, or a pipe that nobody reads. The disk keeps working.
//!
//! `CAIRN_TEST_LOG_SECONDS` sets how long fio writes and verifies in each case; the default is a few seconds.

use std::fs::File;
use std::path::Path;

use cairn::task::Tasks;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::cairn::{Setup, Store};
use crate::support::files::make_pipe;
use crate::support::process::{command, free_port, run, within};
use crate::support::wire::{EXPORT_NAME, option};

/// Makes the gateway log all the time, by requesting exports with long names that do not exist.
async fn make_it_log(port: u16) {
    let name = "\u{1}".repeat(4096);
    loop {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return };
        let said = [&b"\0\0\0\x03"[..], &option(EXPORT_NAME, name.as_bytes())].concat();
        if stream.write_all(&said).await.is_ok() {
            // Read until the gateway closes the connection. A reset ends it, too.
            drop(stream.read_to_end(&mut Vec::new()).await);
        }
    }
}

/// Creates a named pipe, and opens it without ever reading from it.
fn pipe(path: &Path) -> File {
    make_pipe(path);
    // Opened for reading and writing, so that neither side waits for the other.
    File::options().read(true).write(true).open(path).expect("the pipe opens")
}

/// Returns the longest time that fio waited for a command, in milliseconds.
fn longest_ms(report: &serde_json::Value) -> u64 {
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "{report}");
    let longest = [&job["write"]["clat_ns"], &job["read"]["clat_ns"], &job["sync"]["lat_ns"]]
        .map(|latency| latency["max"].as_u64().expect("a number of nanoseconds"));
    longest.into_iter().max().unwrap_or_default() / 1_000_000
}

/// Writes, flushes and verifies while the log cannot be written. The gateway then ends cleanly.
async fn the_disk_works_on(redirection: &str, reader: Option<File>, reason: &str) {
    let seconds = std::env::var("CAIRN_TEST_LOG_SECONDS").unwrap_or_else(|_| "3".to_owned());
    let (store, files, admin) = (Store::directory(), tempfile::tempdir().unwrap(), free_port());
    let setup = Setup::new(&store).create("disk", "256MiB").tcp().env("CAIRN_LOG__LEVEL", "debug");
    let setup = setup.env("CAIRN_ADMIN__LISTEN", &format!("127.0.0.1:{admin}"));
    let mut gateway = setup.redirected(redirection).start().await;
    drop(reader);

    let talkers = Tasks::new();
    drop(talkers.spawn_until_cancelled(make_it_log(gateway.port())));
    let mut fio = command(["fio", "--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bs=4k"]);
    fio.args(["--iodepth=8", "--fsync=32", "--size=64m", "--verify=crc32c", "--verify_backlog=256"]);
    fio.args(["--verify_fatal=1", "--time_based", "--randseed=7", "--thread", "--output-format=json"]);
    fio.arg(format!("--runtime={seconds}")).arg(format!("--uri={}", gateway.uri("disk")));
    let report = run(fio.current_dir(files.path())).await;
    let report: serde_json::Value =
        serde_json::from_str(&report[report.find('{').expect("JSON")..]).expect("JSON");
    println!("{redirection}: longest command {} ms", longest_ms(&report));

    let lost = format!("cairn_log_lines_lost_total{{reason=\"{reason}\"}} ");
    let metrics = format!("http://127.0.0.1:{admin}/metrics");
    let some_are_lost = async {
        loop {
            let measured = run(&mut command(["curl", "--silent", "--fail", &metrics])).await;
            let lines = measured.lines().find_map(|line| line.strip_prefix(&lost)).expect("it is measured");
            if lines != "0" {
                return println!("{lines} lines of the log lost");
            }
        }
    };
    within("lines of the log are lost", some_are_lost).await;
    talkers.shutdown().await;
    gateway.process.signal(Signal::TERM);
    let status = gateway.process.exit().await;
    assert!(status.success(), "{status}: {}", gateway.process.output());
}

#[tokio::test]
#[ignore = "needs curl, fio"]
async fn the_disk_keeps_working_when_the_reader_of_the_log_is_gone() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("log");
    let reader = pipe(&path);
    the_disk_works_on(&format!("2>{}", path.display()), Some(reader), "failed").await;
}

#[tokio::test]
#[ignore = "needs curl, fio"]
async fn the_disk_keeps_working_when_the_log_is_on_a_full_disk() {
    the_disk_works_on("2>/dev/full", None, "failed").await;
}

#[tokio::test]
#[ignore = "needs curl, fio"]
async fn the_disk_keeps_working_when_nobody_reads_the_log() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("log");
    let reader = pipe(&path);
    the_disk_works_on(&format!("2>{}", path.display()), None, "full").await;
    drop(reader);
}
