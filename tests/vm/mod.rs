//! Linux on the disk: a virtual machine in software emulation mounts it, and loses its power together with the gateway.
//!
//! The machine (Debian's kernel, busybox) comes from `tests/tools/vm-image.sh`. What a guest has synced is known from its
//! serial console alone, so nothing that the disk says is taken for proof of itself.

mod backup;

use std::path::Path;

use crate::support::machine::Machine;
use tempfile::TempDir;

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::files::{assert_clean_ext4, checksums, extract_ext4};
use crate::support::process::{command, finish, run};

const WORKLOAD: &str = include_str!("workload.sh");

/// Cuts the power of guest and gateway while the guest writes, and checks through a new gateway that what the guest had
/// synced is there.
async fn power_cut(store: &Store, mut gateway: Gateway, mut machine: Machine) {
    machine.says("synced").await;
    machine.says("unsynced 50").await;
    let (sums, trimmed) = (machine.lines("sum "), machine.lines("trim "));
    tokio::join!(machine.cut_power(), gateway.process.kill());
    assert!(sums.len() > 100, "{sums:?}");
    assert_trimmed(&trimmed);

    let next = Setup::new(store).create("disk", "1GiB").tcp().takeover().start().await;
    let files = tempfile::tempdir().expect("a directory for the test");
    let image = copy_out(&next, &files).await;
    assert_eq!(sums, kept(&image, &files).await, "the files of before the power cut");
}

async fn copy_out(gateway: &Gateway, files: &TempDir) -> std::path::PathBuf {
    let image = files.path().join("image");
    run(command(["nbdcopy", &gateway.uri("disk")]).arg(&image)).await;
    image
}

/// Replays the file system's own journal, which a power cut leaves to do, and requires that nothing else is wrong.
async fn kept(image: &Path, files: &TempDir) -> Vec<String> {
    let replay = finish(command(["/sbin/e2fsck", "-fp"]).arg(image)).await;
    assert!(matches!(replay.status.code(), Some(0 | 1)), "{replay:?}");
    assert_clean_ext4(image).await;
    extract_ext4(image, "/kept", files.path()).await;
    checksums(&files.path().join("kept")).await.lines().map(str::to_owned).collect()
}

/// `/mnt: 1.2 GiB (1234567 bytes) trimmed`: at least what was removed.
fn assert_trimmed(lines: &[String]) {
    let bytes =
        lines.iter().find_map(|line| line.split_once('(')?.1.split_once(" bytes")?.0.parse::<u64>().ok());
    assert!(bytes.is_some_and(|bytes| bytes >= 48 << 20), "fstrim said {lines:?}");
}

/// QEMU's own NBD driver behind a virtio disk.
#[tokio::test]
#[ignore = "needs MinIO, QEMU, e2fsprogs, libnbd"]
async fn a_guest_on_qemus_nbd_driver_finds_what_it_synced_after_a_power_cut() {
    let store = Store::minio().await;
    let gateway = Setup::new(&store).create("disk", "1GiB").tcp().start().await;
    let drive = format!("file={},format=raw,if=virtio,discard=unmap", gateway.uri("disk"));
    let machine = Machine::boot(&format!("DISK=/dev/vda\n{WORKLOAD}"), &["-drive", &drive]);
    power_cut(&store, gateway, machine).await;
}

/// The kernel's `nbd.ko` with four connections, over the guest's network.
#[tokio::test]
#[ignore = "needs MinIO, QEMU, e2fsprogs, libnbd"]
async fn a_guest_with_nbd_ko_on_four_connections_finds_what_it_synced_after_a_power_cut() {
    let store = Store::minio().await;
    let gateway = Setup::new(&store).create("disk", "1GiB").tcp().start().await;
    let port = gateway.port();
    // 10.0.2.2 is the host in QEMU's user network.
    let script = format!(
        "ip link set lo up\nip link set eth0 up\nip address add 10.0.2.15/24 dev eth0\n\
         /usr/sbin/nbd-client 10.0.2.2 {port} /dev/nbd0 -name disk -connections 4 -block-size 4096\n\
         echo 'vm: connected'\nDISK=/dev/nbd0\n{WORKLOAD}"
    );
    let network = ["-smp", "4", "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="];
    let mut machine = Machine::boot(&script, &network);
    machine.says("connected").await;
    assert_eq!(established(port), 4, "connections to the gateway");
    power_cut(&store, gateway, machine).await;
}

/// How many TCP connections end at a local port.
fn established(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel has TCP");
    let local = format!(":{port:04X}");
    let mut connections = 0;
    for line in table.lines().skip(1) {
        let words: Vec<_> = line.split_whitespace().collect();
        // Local address, remote address, state; 01 is ESTABLISHED.
        if words[1].ends_with(&local) && words[3] == "01" {
            connections += 1;
        }
    }
    connections
}
