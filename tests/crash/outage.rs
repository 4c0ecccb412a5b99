//! The store fails while clients write. Writes wait at the limit of dirty data, reads of cached data succeed,
//! no command fails, memory stays bounded, and everything continues when the store is back.
//!
//! `CAIRN_CRASH_OUTAGE` sets the length of the outage in seconds. Without it, the outage ends when the test
//! has observed all this.

use std::time::Duration;

use super::rounds::asked;
use crate::support::cairn::{Setup, Store};
use crate::support::process::{Process, command, run, within};

const DIRTY: u64 = 16 << 20;
/// The limits of dirty and of cached data, and what the program uses besides, in KiB.
const RESIDENT_KIB: u64 = (16 + 64 + 100) * 1024;

async fn metric(url: &str, line: &str) -> u64 {
    let text = run(&mut command(["curl", "--silent", "--fail", url])).await;
    let value = text.lines().find_map(|found| found.strip_prefix(line)).expect("the metric is there");
    value.trim().parse().expect("a whole number")
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process has one");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel reports it");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

#[tokio::test]
#[ignore = "needs MinIO, curl, fio, libnbd"]
async fn an_outage_of_the_store_is_waited_out() {
    let seconds = asked("CAIRN_CRASH_OUTAGE", 0);
    let store = Store::minio().await;
    let proxy = store.proxy().await;
    let setup = Setup::new(&store).through(&proxy).create("disk", "1GiB").tcp();
    let setup = setup.env("CAIRN_CACHE__DIRTY", "16MiB").env("CAIRN_CACHE__CLEAN", "64MiB");
    let mut gateway = setup.env("CAIRN_ADMIN__LISTEN", "127.0.0.1:0").start().await;
    let address = |line: &str| line.split("metrics and health: ").nth(1).map(str::to_owned);
    let metrics = gateway.process.wait_for("the admin server's address", address).await;
    let uri = gateway.uri("disk");

    // 8 MiB that are durable and cached, and a client that has read them before.
    let warm = "h.pwrite(bytes(range(256)) * 32768, 512 << 20)\nh.flush()\nh.pread(8 << 20, 512 << 20)";
    run(&mut nbdsh(&uri, warm)).await;

    proxy.cut();
    let mut fio = command(["fio", "--name=outage", "--ioengine=nbd", "--rw=randwrite", "--bs=64k"]);
    fio.args(["--iodepth=16", "--size=256m", "--verify=crc32c", "--thread", "--end_fsync=1"]);
    fio.arg("--verify_state_save=0");
    let mut fio = Process::spawn("fio", fio.arg(format!("--uri={uri}")));
    // Less room than two writes need: the limit is reached.
    let full = async {
        let mut interval = tokio::time::interval(Duration::from_millis(50));
        while metric(&metrics, "cairn_uncommitted_bytes{volume=\"disk\"}").await < DIRTY - (128 << 10) {
            interval.tick().await;
        }
    };
    within("dirty data reaches its bound", full).await;
    let read = "import time\n\
        assert h.pread(8 << 20, 512 << 20) == bytes(range(256)) * 32768\n\
        until = time.monotonic() + SECONDS\n\
        while time.monotonic() < until:\n\
        \x20   assert h.pread(8 << 20, 512 << 20) == bytes(range(256)) * 32768\n";
    // A minute at a time, because a longer wait for one command counts as a hang.
    let mut left = seconds;
    loop {
        let slice = left.min(60);
        run(&mut nbdsh(&uri, &read.replace("SECONDS", &slice.to_string()))).await;
        left -= slice;
        if left == 0 {
            break;
        }
    }
    let (dirty, resident) = (
        metric(&metrics, "cairn_uncommitted_bytes{volume=\"disk\"}").await,
        resident_kib(gateway.process.id()),
    );
    println!("an outage of {seconds} s or more: {dirty} bytes dirty, {resident} KiB resident");
    assert!(dirty <= DIRTY, "{dirty} bytes dirty");
    assert!(resident < RESIDENT_KIB, "{resident} KiB resident");
    proxy.resume();
    assert!(fio.exit().await.success(), "{}", fio.output());

    gateway.process.kill().await;
    let next = Setup::new(&store).create("disk", "1GiB").tcp().takeover().start().await;
    let mut check = command(["fio", "--name=outage", "--ioengine=nbd", "--rw=randwrite", "--bs=64k"]);
    check.args(["--iodepth=16", "--size=256m", "--verify=crc32c", "--thread", "--verify_only"]);
    check.arg("--verify_state_save=0");
    run(check.arg(format!("--uri={}", next.uri("disk")))).await;
    proxy.stop().await;
}

fn nbdsh(uri: &str, script: &str) -> tokio::process::Command {
    let mut nbdsh = command(["nbdsh", "-u", uri, "-c", script]);
    nbdsh.env("PATH", "/usr/bin:/bin");
    nbdsh
}
