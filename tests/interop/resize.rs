//! A disk that is resized, with libnbd's tools and QEMU: who connects sees the new size, and who is connected
//! keeps the one it knows.

use std::io::Write as _;
use std::path::Path;

use rustix::fs::{FileType, Mode};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::process::{Process, command, listens_at, run};

const MIB: u64 = 1 << 20;

async fn resize(store: &Store, size: &str, socket: &Path) {
    let by = format!("--gateway={}", socket.display());
    run(&mut store.cairn(["volume", "resize", "disk", size, "--shrink", &by])).await;
}

async fn size(uri: &str) -> u64 {
    run(&mut command(["nbdinfo", "--size", uri])).await.trim().parse().expect("a size")
}

#[tokio::test]
#[ignore = "needs QEMU, libnbd"]
async fn tools_see_the_new_size_and_a_client_that_is_connected_keeps_working() {
    let store = Store::directory();
    let files = tempfile::tempdir().expect("a directory for the test");
    let socket = files.path().join("admin.sock");
    let setup = Setup::new(&store).tcp().create("disk", "1MiB");
    let setup = setup.env("CAIRN_ADMIN__SOCKET", &socket.display().to_string());
    let gateway = setup.env("CAIRN_ADMIN__LISTEN", "none").start().await;
    let uri = gateway.uri("disk");
    // It goes on with each line that it reads, and says what the requests at the place in it return.
    let asked = files.path().join("asked");
    rustix::fs::mknodat(rustix::fs::CWD, &asked, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    let script = "import sys\n\
        h.set_strict_mode(0)\n\
        h.pwrite(b'a' * 4096, 0)\n\
        h.pwrite(b'z' * 4096, (1 << 20) - 4096)\n\
        print('connected', h.get_size(), flush=True)\n\
        for step, line in enumerate(open(sys.argv[1])):\n\
        \x20   at, said = int(line), []\n\
        \x20   for ask in (lambda: h.pread(512, at), lambda: h.pwrite(b'x' * 512, at), lambda: h.zero(512, at),\n\
        \x20               lambda: h.trim(512, at), lambda: h.flush()):\n\
        \x20       try:\n\
        \x20           ask()\n\
        \x20           said.append('done')\n\
        \x20       except nbd.Error as error:\n\
        \x20           said.append(error.errno)\n\
        \x20   print('step', step, *said, flush=True)\n";
    let script = script.replace("sys.argv[1]", &format!("'{}'", asked.display()));
    let mut connected =
        Process::spawn("nbdsh", &mut command(["/usr/bin/python3", "-m", "nbd", "-u", &uri, "-c", &script]));
    connected.wait_for("it is connected", |line| (line == "connected 1048576").then_some(())).await;
    let mut asked = std::fs::OpenOptions::new().write(true).open(&asked).expect("it reads the pipe");
    let beyond = "EINVAL ENOSPC ENOSPC EINVAL done";
    let steps = [
        ("3MiB", 0, "done done done done done"),
        // What it does not know of is beyond the end that it was told.
        ("3MiB", 2 * MIB, beyond),
        ("512KiB", MIB / 2, beyond),
        ("512KiB", MIB / 2 - 512, "done done done done done"),
        ("1MiB", MIB / 2, "done done done done done"),
    ];
    for (step, (to, at, expected)) in steps.into_iter().enumerate() {
        resize(&store, to, &socket).await;
        writeln!(asked, "{at}").expect("it reads the pipe");
        let prefix = format!("step {step} ");
        let answers = |line: &str| line.strip_prefix(&prefix).map(str::to_owned);
        let said = connected.wait_for("it has asked", answers).await;
        assert_eq!(said, expected, "at {at} after {to}");
    }
    for (to, bytes) in [("64MiB", 64 * MIB), ("8MiB", 8 * MIB)] {
        resize(&store, to, &socket).await;
        assert_eq!(size(&uri).await, bytes);
        let info = run(&mut command(["qemu-img", "info", "--output=json", &uri])).await;
        let info: Value = serde_json::from_str(&info).expect("qemu-img prints JSON");
        assert_eq!(info["virtual-size"], bytes);
        let (last, end) =
            (format!("write -P 7 {} 4096", bytes - 4096), format!("read -P 7 {} 4096", bytes - 4096));
        run(command(["qemu-io", "-f", "raw", "-c", &last, "-c", "flush", "-c", &end]).arg(&uri)).await;
    }
    resize(&store, "1MiB", &socket).await;
    resize(&store, "8MiB", &socket).await;
    let zeros = ["qemu-io", "-f", "raw", "-c", "read -P 0 1048576 7340032"];
    run(command(zeros).arg(&uri)).await;
}

/// QEMU's storage daemon with a monitor.
struct Qemu {
    _process: Process,
    monitor: BufReader<UnixStream>,
    /// Where it exports its disk.
    uri: String,
}

impl Qemu {
    async fn start(gateway: &Path, files: &Path) -> Self {
        let (served, monitor) = (files.join("qemu.sock"), files.join("monitor.sock"));
        let disk = format!(
            "driver=nbd,node-name=disk,export=disk,reconnect-delay=60,server.type=unix,\
            server.path={}",
            gateway.display()
        );
        let mut qemu = command(["qemu-storage-daemon", "--blockdev", &disk]);
        qemu.args(["--nbd-server", &format!("addr.type=unix,addr.path={}", served.display())]);
        let socket = format!("socket,id=monitor,server=on,wait=off,path={}", monitor.display());
        qemu.args(["--chardev", &socket, "--monitor", "monitor"]);
        let process = Process::spawn("qemu-storage-daemon", &mut qemu);
        listens_at(&served).await;
        listens_at(&monitor).await;
        let stream = UnixStream::connect(&monitor).await.expect("it listens");
        let uri = format!("nbd+unix:///disk?socket={}", served.display());
        let mut qemu = Self { _process: process, monitor: BufReader::new(stream), uri };
        qemu.ask("qmp_capabilities", json!({})).await;
        qemu
    }

    async fn tell(&mut self, what: &str, arguments: Value) {
        let line = json!({ "execute": what, "arguments": arguments }).to_string() + "\n";
        self.monitor.write_all(line.as_bytes()).await.expect("the monitor listens");
    }

    /// Asks its monitor, and returns the answer.
    async fn ask(&mut self, what: &str, arguments: Value) -> Value {
        self.tell(what, arguments).await;
        self.hear(|said| said.get("return").is_some() || said.get("error").is_some()).await
    }

    /// Returns the next thing of some kind that its monitor says.
    async fn hear(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let mut line = String::new();
            let length = self.monitor.read_line(&mut line).await.expect("the monitor answers");
            assert!(length > 0, "QEMU has ended");
            let said: Value = serde_json::from_str(&line).expect("QMP is JSON");
            if is_it(&said) {
                return said;
            }
        }
    }

    /// Makes requests of the disk. It cannot be resized while it is exported for them.
    async fn io<const COUNT: usize>(&mut self, requests: [&str; COUNT]) {
        let export =
            json!({ "type": "nbd", "id": "io", "node-name": "disk", "name": "disk", "writable": true });
        assert_eq!(self.ask("block-export-add", export).await, json!({ "return": {} }));
        let mut io = command(["qemu-io", "-f", "raw"]);
        for request in requests {
            io.args(["-c", request]);
        }
        run(io.arg(&self.uri)).await;
        self.tell("block-export-del", json!({ "id": "io" })).await;
        // The answer and the event come in any order.
        let (mut is_answered, mut is_deleted) = (false, false);
        while !(is_answered && is_deleted) {
            let said = self.hear(|_| true).await;
            assert!(said.get("error").is_none(), "{said}");
            is_answered |= said.get("return").is_some();
            is_deleted |= said["event"] == "BLOCK_EXPORT_DELETED";
        }
    }

    async fn resize(&mut self, bytes: u64) -> Value {
        self.ask("block_resize", json!({ "node-name": "disk", "size": bytes })).await
    }

    async fn size(&mut self) -> u64 {
        let nodes = self.ask("query-named-block-nodes", json!({})).await;
        let nodes = nodes["return"].as_array().expect("a list").clone();
        let disk = nodes.into_iter().find(|node| node["node-name"] == "disk").expect("the disk");
        disk["image"]["virtual-size"].as_u64().expect("a size")
    }
}

/// QEMU learns the new size when it connects again, and passes it on when `block_resize` asks for it.
#[tokio::test]
#[ignore = "needs QEMU"]
async fn qemu_resizes_its_disk_once_it_has_connected_again() {
    let store = Store::directory();
    let files = tempfile::tempdir().expect("a directory for the test");
    let (socket, disks) = (files.path().join("admin.sock"), files.path().join("cairn.sock"));
    let start = async || -> Gateway {
        let setup = Setup::new(&store).unix(&disks).env("CAIRN_VOLUMES__OPEN", "disk");
        let setup = setup.env("CAIRN_ADMIN__SOCKET", &socket.display().to_string());
        setup.env("CAIRN_ADMIN__LISTEN", "none").start().await
    };
    run(&mut store.cairn(["volume", "create", "disk", "1MiB", "--store", &store.url()])).await;
    let mut gateway = start().await;
    let mut qemu = Qemu::start(&disks, files.path()).await;
    assert_eq!(qemu.size().await, MIB);
    resize(&store, "2MiB", &socket).await;
    let refused = qemu.resize(2 * MIB).await;
    assert_eq!(refused["error"]["desc"], "Cannot grow NBD nodes");
    gateway.process.signal(Signal::TERM);
    assert!(gateway.process.exit().await.success());
    let _gateway = start().await;
    // A command makes it connect again.
    qemu.io(["write -P 1 0 4096", "flush"]).await;
    let resized = qemu.resize(2 * MIB).await;
    assert_eq!(resized, json!({ "return": {} }));
    assert_eq!(qemu.size().await, 2 * MIB);
    qemu.io(["write -P 2 1048576 4096", "read -P 2 1048576 4096", "read -P 1 0 4096"]).await;
}
