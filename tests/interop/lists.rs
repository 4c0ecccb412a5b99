//! Lists of exports, old clients, and QEMU 10 with its extended headers.

use std::path::PathBuf;

use crate::support::cairn::{Setup, Store};
use crate::support::files::noise;
use crate::support::minio::tools;
use crate::support::process::{command, free_port, run};

/// Returns a program of QEMU 10, which `tests/tools/install.sh` unpacks beside the version of the
/// distribution.
fn qemu10(program: &str) -> PathBuf {
    let path = tools().join("qemu10/usr/bin").join(program);
    assert!(path.exists(), "{} is missing: tests/tools/install.sh qemu10", path.display());
    path
}

#[tokio::test]
#[ignore = "needs QEMU, nbd-client"]
async fn everyone_lists_the_same_exports() {
    let store = Store::directory();
    let setup = Setup::new(&store).create("one", "1GiB").create("two", "2GiB").create("three", "3MiB");
    let gateway = setup.tcp().start().await;
    let port = gateway.port().to_string();
    let sizes = [("one", 1_u64 << 30), ("three", 3 << 20), ("two", 2 << 30)];
    for program in [PathBuf::from("qemu-nbd"), qemu10("qemu-nbd")] {
        let said = run(command([program]).args(["--list", "-b", "127.0.0.1", "-p", &port])).await;
        for (name, size) in sizes {
            assert!(
                said.contains(&format!("export: '{name}'")) && said.contains(&format!("size:  {size}")),
                "{said}"
            );
        }
        assert!(said.contains("exports available: 3") && said.contains("base:allocation"), "{said}");
        assert!(said.contains("opt block: 4096") && said.contains("max block: 67108864"), "{said}");
    }
    let said = run(&mut command(["/usr/sbin/nbd-client", "-l", "127.0.0.1", &port])).await;
    let names: Vec<_> = said.lines().filter(|line| sizes.iter().any(|(name, _)| name == line)).collect();
    assert_eq!(names, ["one", "three", "two"], "{said}");
    let ours = run(crate::support::cairn::program().args(["nbd", "list", "127.0.0.1", &port])).await;
    assert_eq!(ours, "one\nthree\ntwo\n");
}

/// QEMU 10 requests extended headers and uses them, which its own trace shows.
#[tokio::test]
#[ignore = "needs QEMU, libnbd"]
async fn qemu_10_uses_extended_headers() {
    let (store, files) = (Store::directory(), tempfile::tempdir().unwrap());
    let gateway = Setup::new(&store).create("disk", "8GiB").tcp().start().await;
    let mut io = command([qemu10("qemu-io")]);
    io.args(["--trace", "nbd_*", "-f", "raw", "--discard", "unmap"]);
    // Zeroing more than 32 bits of length takes one command.
    for request in
        ["write -n -z 0 5G", "write -P 0x33 1G 1M", "write -z -u 6G 1G", "discard 7G 1G", "flush", "map"]
    {
        io.args(["-c", request]);
    }
    let done = crate::support::process::finish(io.arg(gateway.uri("disk"))).await;
    assert!(done.status.success() && !done.stdout.contains("failed"), "{done:?}");
    let trace = done.stderr + &done.stdout;
    assert!(trace.contains("11 (extended headers), type 1 (ack)"), "{trace}");
    assert!(
        trace.lines().any(|line| line.contains("nbd_send_request") && line.contains(".len = 5368709120")),
        "{trace}"
    );
    // An older QEMU and libnbd read the same data and the same map.
    let out = files.path().join("out");
    run(command([qemu10("qemu-img")])
        .args(["convert", "-f", "raw", "-O", "raw", &gateway.uri("disk")])
        .arg(&out))
    .await;
    run(command(["qemu-img", "compare", "-f", "raw", "-F", "raw", &gateway.uri("disk")]).arg(&out)).await;
    let map = run(&mut command(["nbdinfo", "--map", &gateway.uri("disk")])).await;
    let data: Vec<Vec<&str>> = map
        .lines()
        .filter(|line| line.ends_with("data"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(data.len(), 1, "{map}");
    assert_eq!(data[0][..2], ["1073741824", "1048576"], "{map}");
    // Our client uses extended headers with the server of QEMU 10.
    let image = files.path().join("image");
    std::fs::write(&image, noise(3, 4 << 20)).unwrap();
    let port = free_port().to_string();
    let mut serve = command([qemu10("qemu-nbd")]);
    serve.args(["-t", "-f", "raw", "-b", "127.0.0.1", "-p", &port]).arg(&image);
    let _server = crate::support::process::Process::spawn("qemu-nbd", &mut serve);
    let listens = || std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_ok();
    crate::support::process::until("qemu-nbd listens", listens).await;
    let info =
        run(crate::support::cairn::program().args(["nbd", "info", &format!("nbd://127.0.0.1:{port}")])).await;
    assert!(info.lines().any(|line| line == "headers: extended"), "{info}");
    let copy = files.path().join("copy");
    run(crate::support::cairn::program()
        .args(["nbd", "copy", &format!("nbd://127.0.0.1:{port}")])
        .arg(&copy))
    .await;
    assert_eq!(std::fs::read(copy).unwrap(), noise(3, 4 << 20));
}

/// Clients from before 2013, and from before 2011, are served as far as their protocol allows.
#[tokio::test]
#[ignore = "needs libnbd"]
async fn old_clients_are_served() {
    let (store, old) = (Store::directory(), free_port());
    let setup = Setup::new(&store).create("disk", "64MiB").create("other", "1MiB").tcp();
    let gateway = setup.env("CAIRN_SERVER__OLDSTYLE", &format!("127.0.0.1:{old}=disk")).start().await;
    let shell = |uri: &str, script: &str| {
        let mut shell = command(["nbdsh", "-c", script]);
        shell.env("PATH", "/usr/bin:/bin").env("AT", uri);
        shell
    };
    let write = "import os\nh.connect_uri(os.environ['AT'])\nassert h.get_protocol() == 'oldstyle'\n\
                 assert h.get_size() == 64 << 20\nh.pwrite(b'oldstyle', 1000)\nh.flush()\nh.trim(4096, 65536)\n\
                 print(h.get_structured_replies_negotiated())";
    let said = run(&mut shell(&format!("nbd://127.0.0.1:{old}"), write)).await;
    assert_eq!(said.trim(), "False");
    // Newstyle that is not fixed: the client's flags say so, and it only uses EXPORT_NAME.
    let read = "import os\nh.set_handshake_flags(0)\nh.connect_uri(os.environ['AT'])\n\
                assert h.get_protocol() == 'newstyle'\nassert h.get_size() == 64 << 20\n\
                print(h.pread(8, 1000).decode())";
    assert_eq!(run(&mut shell(&gateway.uri("disk"), read)).await.trim(), "oldstyle");
    // Our own client supports both.
    let size = ["nbd", "size", "127.0.0.1", &old.to_string()].map(str::to_owned);
    assert_eq!(run(crate::support::cairn::program().args(size)).await, "67108864\n");
    let none = ["nbd", "list", "127.0.0.1", &old.to_string()].map(str::to_owned);
    let none = crate::support::process::finish(crate::support::cairn::program().args(none)).await;
    assert_eq!(none.status.code(), Some(1), "{none:?}");
}
