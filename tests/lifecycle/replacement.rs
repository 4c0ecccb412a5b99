//! A gateway is replaced by another while clients write to it, and no command fails.

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::process::{Process, command, run};

const REPLACEMENTS: usize = 5;

/// Puts QEMU's block layer between a client that does not reconnect and a gateway that exits. It serves at a
/// Unix socket, and reconnects to the gateway by itself.
async fn reconnecting(gateway: &Gateway, files: &TempDir) -> (Process, String) {
    let socket = files.path().join("qemu.sock");
    let gateway = format!(
        "driver=nbd,node-name=disk,export=disk,reconnect-delay=300,server.type=inet,server.host=127.0.0.1,server.port={}",
        gateway.port()
    );
    let mut qemu = command(["qemu-storage-daemon", "--blockdev", &gateway]);
    qemu.args(["--nbd-server", &format!("addr.type=unix,addr.path={}", socket.display())]);
    qemu.args(["--export", "type=nbd,id=disk,node-name=disk,name=disk,writable=on"]);
    // The monitor greets when everything else is set up.
    let monitor = files.path().join("monitor");
    qemu.args(["--chardev", &format!("file,id=monitor,path={}", monitor.display()), "--monitor", "monitor"]);
    let process = Process::spawn("qemu-storage-daemon", &mut qemu);
    crate::support::process::until("qemu-storage-daemon serves", || {
        std::fs::read_to_string(&monitor).is_ok_and(|said| said.contains("QMP"))
    })
    .await;
    crate::support::process::listens_at(&socket).await;
    (process, format!("nbd+unix:///disk?socket={}", socket.display()))
}

/// Replaces the gateway repeatedly under fio, which verifies what it wrote. Then ends fio and reads its
/// report.
async fn replaced_under_load(
    store: Store,
    replace: impl AsyncFn(&Store, Gateway) -> Gateway,
    first: Gateway,
) {
    let files = tempfile::tempdir().expect("a directory for the test");
    let mut gateway = first;
    let (qemu, uri) = reconnecting(&gateway, &files).await;
    let report = files.path().join("report.json");
    let mut fio = command(["fio", "--name=load", "--ioengine=nbd", "--thread", "--rw=randwrite", "--bs=16k"]);
    fio.args(["--iodepth=8", "--size=256m", "--fsync=32", "--verify=crc32c", "--verify_backlog=64"]);
    fio.args([
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--time_based",
        "--runtime=1200",
        "--status-interval=1",
    ]);
    fio.arg(format!("--uri={uri}"))
        .args(["--output-format=json"])
        .arg(format!("--output={}", report.display()));
    let mut load = Process::spawn("fio", &mut fio);
    for round in 0..REPLACEMENTS {
        writes_go_on(&report, &load).await;
        gateway = replace(&store, gateway).await;
        println!("replacement {}: the next gateway serves", round + 1);
    }
    writes_go_on(&report, &load).await;
    load.signal(Signal::INT);
    load.exit().await;
    let last = last_report(&report).expect("fio reports at its end");
    let job = &last["jobs"][0];
    assert_eq!(job["error"], 0, "{}\n{job}", load.output());
    assert!(!load.output().contains("verify"), "{}", load.output());
    let longest = ["read", "write", "sync"].iter().filter_map(|kind| {
        let of = if *kind == "sync" { &job["sync"]["lat_ns"] } else { &job[kind]["clat_ns"] };
        of["max"].as_u64()
    });
    let milliseconds = longest.max().expect("fio measures") / 1_000_000;
    let writes = job["write"]["total_ios"].as_u64().expect("fio counts");
    println!(
        "{REPLACEMENTS} replacements under {writes} writes, none failed; the longest stall was {milliseconds} ms"
    );
    drop(qemu);
    // A gateway without any knowledge of the others finds the disk intact.
    drop(run(command(["nbdinfo", "--json"]).arg(gateway.uri("disk"))).await);
}

/// Returns the last complete report in fio's output.
fn last_report(path: &std::path::Path) -> Option<Value> {
    let text = std::fs::read_to_string(path).ok()?;
    text.rsplit("\n}\n").find_map(|part| {
        let report = &part[part.find('{')?..];
        serde_json::from_str(&format!("{report}\n}}")).ok()
    })
}

/// Waits until fio has written more than at the time of the call.
async fn writes_go_on(report: &std::path::Path, load: &Process) {
    let written = || last_report(report).and_then(|report| report["jobs"][0]["write"]["total_ios"].as_u64());
    let before = written().unwrap_or(0);
    crate::support::process::until("fio goes on writing", || {
        assert!(!load.output().contains("error"), "{}", load.output());
        written().is_some_and(|now| now > before + 100)
    })
    .await;
}

/// The successor gets the listening sockets over a Unix socket. The predecessor exits by itself.
#[tokio::test]
#[ignore = "needs MinIO, QEMU, fio, libnbd"]
async fn handing_the_sockets_over_fails_no_command() {
    let store = Store::minio().await;
    let directory = tempfile::tempdir().expect("a directory for the socket");
    let path = directory.path().join("handover");
    let setup = |store: &Store| Setup::new(store).create("disk", "1GiB").tcp().handover(&path);
    let first = setup(&store).start().await;
    let port = first.port();
    let replace = async |store: &Store, mut before: Gateway| {
        let next = setup(store).start().await;
        let status = before.process.exit().await;
        assert!(status.success(), "{status}: {}", before.process.output());
        assert!(before.process.output().contains("released its lease"), "{}", before.process.output());
        assert_eq!(next.port(), port, "the same socket, though any port was asked for");
        next
    };
    replaced_under_load(store, replace, first).await;
}

/// Without a handover, a gateway that hangs up is replaced by one that starts after its exit.
#[tokio::test]
#[ignore = "needs MinIO, QEMU, fio, libnbd"]
async fn hanging_up_and_starting_another_fails_no_command() {
    let store = Store::minio().await;
    let port = crate::support::process::free_port();
    let setup = |store: &Store| {
        let setup = Setup::new(store).create("disk", "1GiB").tcp_at(port);
        setup.env("CAIRN_SERVER__FAREWELL", "hang-up")
    };
    let first = setup(&store).start().await;
    let replace = async |store: &Store, mut before: Gateway| {
        before.process.signal(Signal::TERM);
        let status = before.process.exit().await;
        assert!(status.success(), "{status}: {}", before.process.output());
        setup(store).start().await
    };
    replaced_under_load(store, replace, first).await;
}

/// A successor that cannot serve leaves the gateway as it was.
#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn a_successor_that_fails_changes_nothing() {
    let store = Store::directory();
    let directory = tempfile::tempdir().expect("a directory for the socket");
    let path = directory.path().join("handover");
    let setup = |store: &Store| Setup::new(store).create("disk", "64MiB").tcp().handover(&path);
    let mut gateway = setup(&store).start().await;
    let broken = Store::minio().await;
    let (status, said) = setup(&broken).env("AWS_SECRET_ACCESS_KEY", "wrong-secret").refused().await;
    assert!(!status.success(), "{said}");
    gateway.process.wait_for("it serves on", |line| line.contains("continues to serve").then_some(())).await;
    run(command(["nbdinfo"]).arg(gateway.uri("disk"))).await;
    let next = setup(&store).start().await;
    assert!(gateway.process.exit().await.success());
    run(command(["nbdinfo"]).arg(next.uri("disk"))).await;
}

/// Changes are requested at the same socket before and after the replacement.
#[tokio::test]
async fn the_admin_socket_passes_to_the_successor() {
    let store = Store::directory();
    let directory = tempfile::tempdir().expect("a directory for the sockets");
    let (handover, admin) = (directory.path().join("handover"), directory.path().join("admin.sock"));
    let admin = admin.display().to_string();
    let setup = || {
        let setup = Setup::new(&store).create("disk", "64MiB").tcp().handover(&handover);
        setup.env("CAIRN_ADMIN__SOCKET", &admin).start()
    };
    let by = format!("--gateway={admin}");
    let mut gateway = setup().await;
    for name in ["first", "second"] {
        let next = setup().await;
        let status = gateway.process.exit().await;
        assert!(status.success(), "{status}: {}", gateway.process.output());
        run(&mut store.cairn(["volume", "create", &by, name, "1MiB"])).await;
        gateway = next;
    }
    let listed = run(&mut store.cairn(["volume", "list", &by])).await;
    assert!(["disk", "first", "second"].iter().all(|name| listed.contains(name)), "{listed}");
    gateway.process.signal(Signal::TERM);
    assert!(gateway.process.exit().await.success());
    assert!(!std::path::Path::new(&admin).exists(), "it goes with the last");
}
