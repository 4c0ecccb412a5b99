//! Backups of the disk of a running guest: each has what the guest had synced, and moves little more than what changed.

use std::path::Path;

use serde_json::Value;

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::files::assert_same;
use crate::support::machine::Machine;
use crate::support::process::{command, run};

use super::kept;

const MIB: u64 = 1 << 20;

/// A file system with many files. Then whatever the host asks for on the second serial line.
const GUEST: &str = "/sbin/mke2fs -q -t ext4 /dev/vda\n\
    mount -t ext4 /dev/vda /mnt\n\
    mkdir /mnt/kept\n\
    for file in $(seq 1 40); do head -c 1000000 /dev/urandom >/mnt/kept/$file; done\n\
    cp -r /lib /mnt/kept/lib\n\
    sums() { sync; cd /mnt/kept; find . -type f | sort | xargs sha256sum | sed \"s/^/vm: $1 /\"; cd /; }\n\
    sums first\n\
    echo 'vm: synced first'\n\
    head -n 1 /dev/ttyS1 >/dev/null\n\
    head -c 3145728 /dev/urandom >/mnt/kept/new\n\
    head -c 500000 /dev/urandom >/mnt/kept/7\n\
    rm /mnt/kept/8\n\
    sums second\n\
    echo 'vm: synced second'\n\
    head -n 1 /dev/ttyS1 >/dev/null\n";

/// Takes a snapshot through the gateway and backs it up. Returns what the backup says.
async fn back_up(store: &Store, of: &str, admin: &Path, to: &str) -> Value {
    let by = format!("--gateway={}", admin.display());
    run(&mut store.cairn(["snapshot", "create", of, &by])).await;
    let said = run(&mut store.cairn(["backup", of, to, "--json", "--quiet", "--store", &store.url()])).await;
    serde_json::from_str(&said).expect("--json prints JSON")
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, e2fsprogs, libnbd"]
async fn backups_of_a_running_guest_move_what_changed_and_have_what_it_synced() {
    let store = Store::minio().await;
    let files = tempfile::tempdir().expect("a directory for the test");
    let [admin, serial] = ["admin.sock", "serial.sock"].map(|name| files.path().join(name));
    let to = format!("file://{}", files.path().join("backups").display());
    let setup = Setup::new(&store).create("disk", "1GiB").tcp().env("CAIRN_ADMIN__LISTEN", "none");
    let gateway = setup.env("CAIRN_ADMIN__SOCKET", &admin.display().to_string()).start().await;
    let drive = format!("file={},format=raw,if=virtio,discard=unmap", gateway.uri("disk"));
    let line = format!("unix:{},server=on,wait=off", serial.display());
    let mut machine = Machine::boot(GUEST, &["-drive", &drive, "-serial", &line]);

    machine.says("synced first").await;
    let first = back_up(&store, "disk@first", &admin, &to).await;
    let mut guest = tokio::net::UnixStream::connect(&serial).await.expect("QEMU listens");
    tokio::io::AsyncWriteExt::write_all(&mut guest, b"go on\n").await.expect("the guest reads");
    machine.says("synced second").await;
    let second = back_up(&store, "disk@second", &admin, &to).await;
    println!("first backup: {first}\nsecond backup: {second}");
    let moved = |backup: &Value| backup["data_bytes"].as_u64().expect("a number");
    assert!(moved(&first) > 40 * MIB, "{first}");
    // The new files, and what a file system writes beside them.
    assert!((3 * MIB + 500_000..8 * MIB).contains(&moved(&second)), "{second}");
    assert_eq!(second["base"], "first", "{second}");
    let sums = ["first ", "second "].map(|prefix| machine.lines(prefix));
    machine.cut_power().await;

    // The copy needs nothing of the disk.
    let copies = Setup::at(&to, []).tcp().start().await;
    run(&mut store.cairn(["check", "disk", "--data", "--store", &to])).await;
    for (name, sums) in ["first", "second"].into_iter().zip(sums) {
        let [source, image] = ["source", "image"].map(|file| files.path().join(format!("{name}.{file}")));
        let export = format!("disk@{name}");
        let read = async |gateway: &Gateway, image: &Path| {
            run(command(["nbdcopy", &gateway.uri(&export)]).arg(image)).await;
        };
        read(&gateway, &source).await;
        read(&copies, &image).await;
        assert_same(&source, &image);
        let at = tempfile::tempdir().expect("a directory for the test");
        assert!(sums.len() > 50, "{sums:?}");
        assert_eq!(sums, kept(&image, &at).await, "the files of {name}");
    }
}
