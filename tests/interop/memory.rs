//! The limit of resident memory under the worst load for it: random writes over a wide range of addresses.

use crate::support::cairn::{Setup, Store};
use crate::support::process::{command, run};

/// The bounds of the caches with the default settings, and 96 MiB for all else: a fold, the index of the
/// journal, what the allocator wastes, and the program. Both caches are full when the store is slow for a
/// second, since writes then fill the dirty cache while the clean one keeps what it has.
const LIMIT_KIB: u64 = (256 + 128 + 96) * 1024;

pub(super) fn status_kib(pid: u32, field: &str) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process has a status");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel reports it");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

/// One minute of 4 KiB writes over 64 GiB, with the default cache of 256 MiB.
#[tokio::test]
#[ignore = "needs fio"]
async fn random_writes_over_64_gib_stay_within_the_bounds_of_memory() {
    let store = Store::directory();
    let gateway = Setup::new(&store).create("disk", "64GiB").tcp().start().await;
    let mut fio =
        command(["fio", "--name=wide", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=32"]);
    fio.args(["--size=64g", "--norandommap", "--time_based", "--runtime=60", "--refill_buffers", "--thread"]);
    run(fio.arg(format!("--uri={}", gateway.uri("disk")))).await;
    let pid = gateway.process.id();
    let peak = status_kib(pid, "VmHWM");
    println!("VmHWM {} MiB, VmRSS {} MiB", peak / 1024, status_kib(pid, "VmRSS") / 1024);
    assert!(peak < LIMIT_KIB, "{} MiB of memory at the peak", peak / 1024);
}
