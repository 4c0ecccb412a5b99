//! Snapshots with libnbd's tools and QEMU: `VOLUME@NAME` is a read-only disk that never changes.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use crate::support::cairn::{Gateway, Setup, Store, binary};
use crate::support::files::{assert_same, noise};
use crate::support::process::{Process, command, finish, run};

/// Starts a gateway that serves the store's volumes and has an admin socket.
async fn gateway(store: &Store, volume: Option<&str>, socket: &Path) -> Gateway {
    let mut setup = Setup::new(store).tcp().env("CAIRN_ADMIN__SOCKET", &socket.display().to_string());
    if let Some(volume) = volume {
        setup = setup.create(volume, "64MiB");
    }
    // A quarter of it is the time within which a deleted snapshot is noticed.
    let setup = setup.env("CAIRN_STORE__DELETION_GRACE", "20s").env("CAIRN_ADMIN__LISTEN", "none");
    setup.start().await
}

async fn snapshot(store: &Store, action: &str, of: &str, socket: &Path) {
    let by = format!("--gateway={}", socket.display());
    run(&mut store.cairn(["snapshot", action, of, &by])).await;
}

/// A client that overwrites the disk from its first byte to its last again and again, and flushes.
async fn overwriter(uri: &str) -> Process {
    let script = "n = 0\n\
        while True:\n\
        \x20   for at in range(0, 64 << 20, 1 << 20):\n\
        \x20       h.pwrite(bytes([n % 255 + 1]) * (1 << 20), at)\n\
        \x20   h.flush()\n\
        \x20   n += 1\n\
        \x20   print('overwritten', n, flush=True)\n";
    let mut process =
        Process::spawn("nbdsh", &mut command(["/usr/bin/python3", "-m", "nbd", "-u", uri, "-c", script]));
    overwritten(&mut process, 1).await;
    process
}

/// Waits until the disk was overwritten this many times in all.
async fn overwritten(process: &mut Process, times: usize) {
    let times = format!("overwritten {times}");
    process.wait_for("it has overwritten the disk", |line| (line == times).then_some(())).await;
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, libnbd"]
async fn tools_read_a_snapshot_while_the_volume_is_overwritten_and_cannot_write_it() {
    let store = Store::minio().await;
    let files = tempfile::tempdir().expect("a directory for the test");
    let (image, copy, socket) =
        (files.path().join("image"), files.path().join("copy"), files.path().join("admin.sock"));
    std::fs::write(&image, noise(7, 64 << 20)).expect("a file can be written");
    let gateway = gateway(&store, Some("disk"), &socket).await;
    run(command(["nbdcopy", "--flush"]).arg(&image).arg(gateway.uri("disk"))).await;
    snapshot(&store, "create", "disk@monday", &socket).await;
    let uri = gateway.uri("disk@monday");
    let mut overwriter = overwriter(&gateway.uri("disk")).await;

    let info = run(&mut command(["nbdinfo", "--json", &uri])).await;
    let info: Value = serde_json::from_str(&info).expect("nbdinfo --json prints JSON");
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "disk@monday");
    assert_eq!(export["export-size"], 64 << 20);
    let flags = [("is_read_only", true), ("can_multi_conn", true), ("can_trim", false), ("can_zero", false)];
    for (flag, is_set) in flags {
        assert_eq!(export[flag], is_set, "{flag}: {info}");
    }
    for round in 2..4 {
        run(command(["nbdcopy", "--connections=4", &uri]).arg(&copy)).await;
        assert_same(&image, &copy);
        let compared = ["qemu-img", "compare", "-f", "raw", "-F", "raw", &uri];
        run(command(compared).arg(&image)).await;
        overwritten(&mut overwriter, round).await;
    }
    let write = finish(command(["nbdcopy"]).arg(&image).arg(&uri)).await;
    assert!(!write.status.success(), "{}", write.stdout);
    // With the client's own checks switched off, the server refuses.
    let script = "h.set_strict_mode(0)\n\
        for change in (lambda: h.pwrite(b'x' * 512, 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)):\n\
        \x20   try:\n\
        \x20       change()\n\
        \x20       print('changed')\n\
        \x20   except nbd.Error as error:\n\
        \x20       print(error.errno)\n\
        h.flush()\n\
        print(h.pread(16, 0).hex())\n";
    let said = run(&mut command(["/usr/bin/python3", "-m", "nbd", "-u", &uri, "-c", script])).await;
    let start: String = noise(7, 64 << 20)[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(said.lines().collect::<Vec<_>>(), ["EPERM", "EPERM", "EPERM", &start]);
    // It restores to a new volume, which is where the old content is needed.
    run(&mut store.cairn(["volume", "create", "restored", "64MiB", "--store", &store.url()])).await;
    let restored = gateway.uri("restored");
    run(&mut command(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", &uri, &restored])).await;
    run(command(["qemu-img", "compare", "-f", "raw", "-F", "raw", &restored]).arg(&image)).await;
}

/// One gateway writes the volume, and another serves its snapshot, until the first one deletes it.
#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn another_gateway_serves_a_snapshot_until_it_is_deleted() {
    let store = Store::minio().await;
    let files = tempfile::tempdir().expect("a directory for the test");
    let (image, copy) = (files.path().join("image"), files.path().join("copy"));
    let [socket_a, socket_b] = ["a.sock", "b.sock"].map(|name| files.path().join(name));
    std::fs::write(&image, noise(8, 64 << 20)).expect("a file can be written");
    let a = gateway(&store, Some("disk"), &socket_a).await;
    let mut b = gateway(&store, None, &socket_b).await;
    run(command(["nbdcopy", "--flush"]).arg(&image).arg(a.uri("disk"))).await;
    snapshot(&store, "create", "disk@x", &socket_a).await;
    let overwriter = overwriter(&a.uri("disk")).await;
    run(command(["nbdcopy", &b.uri("disk@x")]).arg(&copy)).await;
    assert_same(&image, &copy);

    // A client of B reads one block again and again; it prints how that ends.
    let script = "print('reads', flush=True)\n\
        import time\n\
        try:\n\
        \x20   while True:\n\
        \x20       h.pread(4096, 0)\n\
        \x20       time.sleep(0.05)\n\
        except nbd.Error as error:\n\
        \x20   print(error.errno, flush=True)\n";
    let uri = b.uri("disk@x");
    let line = ["/usr/bin/python3", "-m", "nbd", "-u", &uri, "-c", script];
    let mut reader = Process::spawn("nbdsh", &mut command(line));
    reader.wait_for("it reads", |line| (line == "reads").then_some(())).await;
    // B does not delete what its clients read; it could not anyway, because A holds the volume.
    let by = format!("--gateway={}", socket_b.display());
    let refused = finish(&mut store.cairn(["snapshot", "delete", "disk@x", &by])).await;
    assert!(!refused.status.success(), "{}", refused.stdout);
    snapshot(&store, "delete", "disk@x", &socket_a).await;
    reader.wait_for("its reads fail", |line| (line == "ESHUTDOWN").then_some(())).await;
    let says_why = |line: &str| line.contains("the snapshot was deleted").then_some(());
    b.process.wait_for("it says why", says_why).await;
    let unknown = finish(&mut command(["nbdinfo", &b.uri("disk@x")])).await;
    assert!(!unknown.status.success(), "{}", unknown.stdout);
    drop(overwriter);
}

/// fio and PostgreSQL write to an ext4, and are told what is synced. A snapshot is like a power cut for them: a clone of
/// it has all that was answered before, and its file system and its database recover.
#[tokio::test]
#[ignore = "needs MinIO, PostgreSQL, e2fsprogs, fio, libnbd, util-linux"]
async fn snapshots_of_a_busy_file_system_and_database_are_whole() {
    let store = Store::minio().await;
    let files = tempfile::tempdir().expect("a directory for the test");
    let [admin, nbd, work] = ["admin.sock", "nbd.sock", "work"].map(|name| files.path().join(name));
    // PostgreSQL runs as a user of its own.
    for path in [files.path(), &work] {
        std::fs::create_dir_all(path).expect("a directory can be made");
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("it belongs to the test");
    }
    let setup = Setup::new(&store).unix(&nbd).env("CAIRN_ADMIN__SOCKET", &admin.display().to_string());
    let _gateway = setup.create("disk", "512MiB").env("CAIRN_ADMIN__LISTEN", "none").start().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/busy.sh");
    let alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", script];
    let paths = [work.as_os_str(), &binary(), admin.as_os_str(), nbd.as_os_str(), "20".as_ref()];
    let mut busy = Process::spawn("busy.sh", command(alone).args(paths));
    for what in ["taken", "checked"] {
        for n in 1..=20 {
            let (step, begins) = (format!("snapshot {n} is {what}"), format!("{what} {n}:"));
            busy.wait_for(&step, |line| line.starts_with(&begins).then_some(())).await;
        }
    }
    assert!(busy.exit().await.success(), "{}", busy.output());
}
