//! What a gateway writes to its standard streams: streams that are missing or full at its start, and log
//! lines with text from clients.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use rustix::process::Signal;

use crate::support::cairn::{Setup, Store, program};
use crate::support::files::make_pipe;
use crate::support::process::{command, finish, free_port, run, within};
use crate::support::wire::{EXPORT_NAME, option};

/// Creates a named pipe that is full and that nobody reads.
fn full_pipe(path: &Path) -> File {
    make_pipe(path);
    let mut pipe = File::options().read(true).write(true).open(path).expect("the pipe opens");
    rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::NONBLOCK).expect("a pipe can be told not to block");
    while pipe.write(&[b'x'; 4096]).is_ok() {}
    while pipe.write(b"x").is_ok() {}
    // The flag only applies to this open file. The gateway opens the pipe itself.
    pipe
}

/// Waits until a gateway reports that it is ready.
async fn is_ready(admin: u16) {
    let url = format!("http://127.0.0.1:{admin}/health/ready");
    let asked = async { while !finish(program().args(["health", &url])).await.status.success() {} };
    within("the gateway is ready", asked).await;
}

/// As after a restart under a supervisor that has stopped reading, or in a container whose log cannot be
/// written.
#[tokio::test]
#[ignore = "needs libnbd"]
async fn a_gateway_starts_serves_and_ends_although_nobody_reads_its_output() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("full");
    let _reader = full_pipe(&path);
    let (store, admin, port) = (Store::directory(), free_port(), free_port());
    let setup = Setup::new(&store).create("disk", "64MiB").tcp_at(port);
    let setup = setup.env("CAIRN_ADMIN__LISTEN", &format!("127.0.0.1:{admin}"));
    let mut gateway = setup.redirected(&format!(">{0} 2>{0}", path.display())).spawn();
    is_ready(admin).await;
    let uri = format!("nbd://127.0.0.1:{port}/disk");
    assert_eq!(run(&mut command(["nbdinfo", "--size", &uri])).await.trim(), "67108864");
    gateway.signal(Signal::TERM);
    assert!(gateway.exit().await.success());
}

/// Errors of the command line are dropped as well if nobody reads them.
#[tokio::test]
async fn a_failed_start_exits_although_nobody_reads_why() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("full");
    let _reader = full_pipe(&path);
    let store = Store::directory();
    let wrong = Setup::new(&store).tcp().env("CAIRN_LOG__FORMAT", "none");
    let (status, _) = wrong.redirected(&format!("2>{}", path.display())).refused().await;
    assert_eq!(status.code(), Some(2));
}

/// Without standard error, the first socket must not get its file descriptor and receive the log.
#[tokio::test]
#[ignore = "needs libnbd"]
async fn a_missing_standard_error_is_not_replaced_by_another_file() {
    let store = Store::directory();
    let setup = Setup::new(&store).create("disk", "64MiB").tcp().redirected("2>&-");
    let mut gateway = setup.start().await;
    let second = std::fs::read_link(format!("/proc/{}/fd/2", gateway.process.id())).expect("it is open");
    assert_eq!(second, Path::new("/dev/null"));
    run(&mut command(["nbdinfo", "--size", &gateway.uri("disk")])).await;
    gateway.process.signal(Signal::TERM);
    assert!(gateway.process.exit().await.success());
}

/// A name that a client makes up has a bounded length in the log, in both formats. It adds no line end and no
/// escape sequence.
#[tokio::test]
async fn text_from_clients_in_the_log_is_short_and_harmless() {
    for format in ["human", "json"] {
        let store = Store::directory();
        let setup = Setup::new(&store).create("disk", "64MiB").tcp().env("CAIRN_LOG__LEVEL", "debug");
        let mut gateway = setup.env("CAIRN_LOG__FORMAT", format).start().await;
        let name = "\x1b]0;\n\u{9b}2J\u{202e}".repeat(400);
        let said = [&b"\0\0\0\x03"[..], &option(EXPORT_NAME, &name.as_bytes()[..4096])].concat();
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", gateway.port())).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, &said).await.unwrap();
        let ended = |line: &str| line.contains("handshake ended").then(|| line.to_owned());
        let line = gateway.process.wait_for("the refusal", ended).await;
        assert!(line.len() <= 4200, "{} bytes", line.len());
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
        if format == "json" {
            let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            assert!(
                line["message"].as_str().is_some_and(|message| message.contains("bytes more)")),
                "{line}"
            );
        }
    }
}
