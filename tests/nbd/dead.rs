//! Servers that stop answering: every command ends, and names the server.

use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::files::noise;
use crate::support::process::{Finished, free_port};

use super::{Files, Other, Served, ends_with};

const MIB: usize = 1 << 20;

/// Runs a command with a time limit of one second for servers.
async fn gives_up(status: i32, words: &[&str]) -> Finished {
    ends_with(status, &[words, &["--timeout", "1s"]].concat()).await
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn every_command_gives_up_on_a_silent_server() {
    let files = Files::new();
    let image = files.write("image", &noise(1, MIB));
    let server = Other::nbdkit(&["memory", "1M"]).await;
    let uri = server.uri("");
    // The socket of the stopped server still accepts connections.
    server.process.signal(Signal::STOP);
    for (status, words) in [
        (1, &["size", &uri][..]),
        (3, &["list", &uri]),
        (1, &["info", &uri]),
        (1, &["info", "--map", &uri]),
        (1, &["copy", &uri, &files.text("copy")]),
        (1, &["copy", &image, &uri]),
        (1, &["mirror", &image, &uri, "--no-tls", "--port", "0"]),
        (1, &["mirror", &uri, &image, "--no-tls", "--port", "0"]),
    ] {
        let said = gives_up(status, words).await.stderr;
        let socket = server.socket.display().to_string();
        assert!(said.contains(&socket) && said.contains("took too long"), "{words:?}: {said}");
    }
    assert!(!files.path("copy").exists(), "nothing is made before the source is there");
    server.process.signal(Signal::CONT);
    gives_up(0, &["size", &uri]).await;
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn a_command_gives_up_on_a_server_that_stops_halfway() {
    let files = Files::new();
    let image = files.write("image", &noise(1, MIB));
    for (plugin, delay) in
        [("pattern", "rdelay=1000"), ("memory", "wdelay=1000"), ("memory", "delay-extents=1000")]
    {
        let stuck = Other::nbdkit(&["--filter=delay", plugin, "1M", delay]).await;
        let uri = stuck.uri("");
        let words = match delay {
            "rdelay=1000" => ["copy", &uri, &files.text("copy")],
            "wdelay=1000" => ["copy", &image, &uri],
            _ => ["info", "--map", &uri],
        };
        let said = gives_up(1, &words).await.stderr;
        let socket = stuck.socket.display().to_string();
        assert!(said.contains(&socket) && said.contains("neither sent nor accepted a byte"), "{said}");
    }
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn a_mirror_gives_up_a_stalled_secondary_and_reports_it() {
    let files = Files::new();
    let primary = files.write("primary", &noise(1, MIB));
    let stuck = Other::nbdkit(&["--filter=delay", "memory", "1M", "wdelay=1000"]).await;
    let mut served = Served::start(&["mirror", &primary, &stuck.uri(""), "--timeout", "1s"]).await;
    let lost = |line: &str| line.contains("the mirror is broken").then(|| line.to_owned());
    let said = served.process.wait_for("the loss", lost).await;
    let socket = stuck.socket.display().to_string();
    assert!(said.contains(&socket) && said.contains("neither sent nor accepted a byte"), "{said}");
    served.terminate(1).await;
}

/// Returns a port where packets are not answered: its queue of connections is full, and nobody accepts one.
fn black_hole() -> (std::net::TcpListener, Vec<TcpStream>, String) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    rustix::net::listen(listener.as_fd(), 0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        waiting.push(stream);
        assert!(waiting.len() < 100, "the queue never fills");
    }
    (listener, waiting, address.port().to_string())
}

#[tokio::test]
async fn a_machine_that_does_not_answer_is_named() {
    let (_listener, _waiting, port) = black_hole();
    for (status, words) in [(1, &["size", "127.0.0.1", &port][..]), (3, &["list", "127.0.0.1", &port])] {
        let said = gives_up(status, words).await.stderr;
        assert!(said.contains(&format!("cannot connect to 127.0.0.1:{port}: timed out")), "{said}");
    }
}
