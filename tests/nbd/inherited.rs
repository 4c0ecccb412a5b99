//! Sockets that others opened: socket activation by systemd and by libnbd, and standard input and output.

use crate::support::cairn::{Store, program};
use crate::support::files::noise;
use crate::support::process::{Process, command, finish, free_port, listens_at, run};

use super::Files;

const MIB: usize = 1 << 20;

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// libnbd's tools pass a listening socket as systemd does.
#[tokio::test]
#[ignore = "needs libnbd"]
async fn libnbd_starts_a_server_by_socket_activation() {
    let files = Files::new();
    let image = files.write("image", &noise(1, MIB));
    let cairn = env!("CARGO_BIN_EXE_cairn");
    let line = format!("nbdinfo --size -- [ {cairn} nbd serve --no-tls {image} ]");
    assert_eq!(run(&mut command(words(&line))).await.trim(), "1048576");
    let line = format!("nbdcopy -- [ {cairn} nbd serve --no-tls {image} ] {}", files.text("out"));
    run(&mut command(words(&line))).await;
    assert_eq!(std::fs::read(files.path("out")).unwrap(), noise(1, MIB));
}

/// libnbd's other way: one end of a socket pair is standard input and output.
#[tokio::test]
#[ignore = "needs libnbd"]
async fn a_client_on_standard_input_and_output_is_served_until_it_leaves() {
    let files = Files::new();
    let image = files.write("image", &noise(1, MIB));
    let cairn = env!("CARGO_BIN_EXE_cairn");
    let script = format!(
        "h.connect_command(['{cairn}', 'nbd', 'serve', '--no-tls', '--stdio', '{image}'])\n\
         assert h.get_size() == 1048576\nh.pwrite(b'by stdio', 5000)\nh.flush()\nh.shutdown()"
    );
    run(command(["nbdsh", "-c", &script]).env("PATH", "/usr/bin:/bin")).await;
    assert_eq!(&std::fs::read(files.path("image")).unwrap()[5000..5008], b"by stdio");
}

/// A socket that is requested besides standard input and output would never be served, so it is refused.
#[tokio::test]
async fn standard_input_and_output_exclude_an_address() {
    let files = Files::new();
    let image = files.sparse("image", 1 << 20);
    for more in [vec!["--socket", "s"], vec!["--port", "0"], vec!["--address", "127.0.0.1"]] {
        let words = [vec!["serve", &image, "--no-tls", "--stdio"], more].concat();
        let refused = super::ends_with(2, &words).await;
        assert!(refused.stdout.is_empty() && refused.stderr.contains("--stdio"), "{refused:?}");
    }
}

/// A requested socket is served as well as those that are passed.
#[tokio::test]
#[ignore = "needs libnbd, systemd"]
async fn a_requested_socket_is_served_beside_a_passed_one() {
    let files = Files::new();
    let (image, port, socket) = (files.write("image", &noise(1, MIB)), free_port(), files.text("socket"));
    let mut line = words(&format!("systemd-socket-activate --listen=127.0.0.1:{port}"));
    let cairn = env!("CARGO_BIN_EXE_cairn");
    line.extend(words(&format!("{cairn} nbd serve --no-tls {image} --socket {socket}")));
    let mut process = Process::spawn("systemd-socket-activate", &mut command(line));
    process.wait_for("the socket", |line| line.contains("Listening on").then_some(())).await;
    // The first client starts the server.
    for uri in [format!("nbd://127.0.0.1:{port}"), format!("nbd+unix:///?socket={socket}")] {
        assert_eq!(run(&mut command(["nbdinfo", "--size", &uri])).await.trim(), "1048576", "{uri}");
    }
}

/// Two pipes work as well as a socket.
#[tokio::test]
async fn two_pipes_work_like_a_socket() {
    let files = Files::new();
    let image = files.sparse("image", 1 << 20);
    // The client requests fixed newstyle and sends ABORT.
    let line = format!(
        "printf '\\0\\0\\0\\3IHAVEOPT\\0\\0\\0\\2\\0\\0\\0\\0' | {} nbd serve --no-tls --stdio {image}",
        env!("CARGO_BIN_EXE_cairn")
    );
    // Its standard output is a pipe to this test.
    let said = finish(&mut command(["sh", "-c", &line])).await;
    assert!(said.status.success(), "{said:?}");
    assert!(said.stdout.starts_with("NBDMAGICIHAVEOPT\0\x03"), "{said:?}");
}

/// systemd's own tool passes sockets to `cairn serve`. The name of each determines its purpose.
#[tokio::test]
#[ignore = "needs curl, libnbd, systemd"]
async fn systemd_passes_sockets_by_name() {
    let (store, files) = (Store::directory(), Files::new());
    let (nbd, old, admin) = (free_port(), free_port(), files.text("admin.sock"));
    let mut line = words("systemd-socket-activate --fdname=cairn.socket:oldstyle=disk:admin");
    line.extend([nbd, old].map(|port| format!("--listen=127.0.0.1:{port}")));
    line.push(format!("--listen={admin}"));
    line.extend(words(&format!(
        "{} serve --create disk=64MiB --store {}",
        env!("CARGO_BIN_EXE_cairn"),
        store.url()
    )));
    let mut process = Process::spawn("systemd-socket-activate", &mut command(line));
    listens_at(&files.path("admin.sock")).await;
    // The first client starts the gateway.
    let uri = format!("nbd://127.0.0.1:{nbd}/disk");
    assert_eq!(run(&mut command(["nbdinfo", "--size", &uri])).await.trim(), "67108864");
    let oldstyle = run(&mut command(["nbdinfo", &format!("nbd://127.0.0.1:{old}")])).await;
    assert!(oldstyle.contains("oldstyle") && oldstyle.contains("67108864"), "{oldstyle}");
    let ready = ["curl", "--silent", "--fail", "--unix-socket", &admin, "http://cairn/health/ready"];
    run(&mut command(ready)).await;
    let said = process
        .wait_for("the welcome", |line| line.starts_with("listening on ").then(|| line.to_owned()))
        .await;
    assert_eq!(said, format!("listening on nbd://127.0.0.1:{nbd}"));
    process.signal(rustix::process::Signal::TERM);
    assert!(process.exit().await.success(), "{}", process.output());
}

/// One connection per process, as with `Accept=yes`.
#[tokio::test]
#[ignore = "needs libnbd, systemd"]
async fn systemd_passes_a_connection() {
    let files = Files::new();
    let (image, port) = (files.write("image", &noise(1, MIB)), free_port());
    let mut line = words("systemd-socket-activate --accept");
    line.push(format!("--listen=127.0.0.1:{port}"));
    line.extend(words(&format!("{} nbd serve --no-tls {image}", env!("CARGO_BIN_EXE_cairn"))));
    let mut process = Process::spawn("systemd-socket-activate", &mut command(line));
    process.wait_for("the socket", |line| line.contains("Listening on").then_some(())).await;
    for _ in 0..2 {
        let out = files.text("out");
        run(&mut command(["nbdcopy", "--connections=1", &format!("nbd://127.0.0.1:{port}"), &out])).await;
        assert_eq!(std::fs::read(out).unwrap(), noise(1, MIB));
    }
}

/// Inherited sockets that cannot be used are reported, and not left open.
#[tokio::test]
async fn unusable_sockets_are_refused() {
    let files = Files::new();
    let image = files.sparse("image", 1 << 20);
    let line = format!(
        "exec 3</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=stray; exec {} nbd serve --no-tls {image}",
        env!("CARGO_BIN_EXE_cairn")
    );
    let done = finish(&mut command(["sh", "-c", &line])).await;
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(done.stderr.contains("file descriptor 3") && done.stderr.contains("stray"), "{done:?}");
    // Sockets that were passed to another process do not concern this one.
    let mut others = program();
    others.args(["nbd", "size", "127.0.0.1", "1"]).env("LISTEN_PID", "1").env("LISTEN_FDS", "nonsense");
    assert!(!finish(&mut others).await.stderr.contains("inherited"));
}
