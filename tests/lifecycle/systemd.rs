//! Under systemd: what `sd_notify` tells the service manager.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::cairn::{Setup, Store};
use crate::support::process::{Process, command, free_port, run, within};

/// A service manager that only receives notifications.
struct Manager {
    socket: tokio::net::UnixDatagram,
    path: std::path::PathBuf,
    _directory: TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory for the socket");
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_nonblocking(true).expect("a socket can be made so");
        let socket = tokio::net::UnixDatagram::from_std(socket).expect("a socket");
        Self { socket, path, _directory: directory }
    }

    fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next notification with this assignment, and returns all of its assignments. Earlier
    /// notifications are skipped.
    async fn is_told(&self, assignment: &str) -> BTreeSet<String> {
        let told = async {
            loop {
                let mut bytes = [0; 4096];
                let length = self.socket.recv(&mut bytes).await.expect("a datagram");
                let text = std::str::from_utf8(&bytes[..length]).expect("sd_notify sends UTF-8");
                let assignments: BTreeSet<String> = text.lines().map(str::to_owned).collect();
                if assignments.contains(assignment) {
                    return assignments;
                }
            }
        };
        within(assignment, told).await
    }
}

#[tokio::test]
async fn the_service_manager_is_notified_of_every_step() {
    let manager = Manager::new();
    let store = Store::directory();
    let setup = Setup::new(&store).create("disk", "64MiB").tcp();
    let setup = setup.env("NOTIFY_SOCKET", &manager.path().display().to_string());
    let mut gateway = setup.env("WATCHDOG_USEC", "200000").start().await;
    assert!(manager.is_told("READY=1").await.contains("STATUS=serving"));
    manager.is_told("WATCHDOG=1").await;
    manager.is_told("WATCHDOG=1").await;

    gateway.process.signal(Signal::HUP);
    let reloading = manager.is_told("RELOADING=1").await;
    assert!(reloading.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloading:?}");
    manager.is_told("READY=1").await;

    gateway.process.signal(Signal::TERM);
    manager.is_told("STOPPING=1").await;
    manager.is_told("STATUS=closing volumes").await;
    assert!(gateway.process.exit().await.success());
}

/// systemd owns the socket. The gateway starts for its first client, and when it exits, clients wait for the
/// next gateway.
#[tokio::test]
#[ignore = "needs libnbd, systemd"]
async fn a_socket_activated_gateway_starts_with_its_first_client_and_hangs_up() {
    let store = Store::directory();
    let port = free_port();
    let cairn = store.cairn(["serve", "--store", &store.url(), "--create", "disk=64MiB", "--admin", "none"]);
    let mut activate = command(["systemd-socket-activate", "--listen", &format!("127.0.0.1:{port}")]);
    activate.arg(cairn.as_std().get_program()).args(cairn.as_std().get_args());
    let mut process = Process::spawn("systemd-socket-activate", &mut activate);
    process.wait_for("it listens", |line| line.contains("Listening on").then_some(())).await;
    let uri = format!("nbd://127.0.0.1:{port}/disk");
    let write = "h.pwrite(b'kept', 0)";
    run(&mut command(["/usr/bin/python3", "-m", "nbd", "-u", &uri, "-c", write])).await;
    process.signal(Signal::TERM);
    assert!(process.exit().await.success(), "{}", process.output());

    let mut process = Process::spawn("systemd-socket-activate", &mut activate);
    process.wait_for("it listens", |line| line.contains("Listening on").then_some(())).await;
    let read = "assert h.pread(4, 0) == b'kept'";
    run(&mut command(["/usr/bin/python3", "-m", "nbd", "-u", &uri, "-c", read])).await;
    process.signal(Signal::TERM);
    assert!(process.exit().await.success(), "{}", process.output());
}
