//! What a command costs at the store, counted by a proxy in front of it.

use std::path::Path;

use rustix::process::Signal;

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::process::{command, run};
use crate::support::proxy::Proxy;

const MIB: u64 = 1 << 20;

async fn nbdsh(uri: &str, script: &str) {
    run(command(["nbdsh", "-u", uri, "-c", script]).env("PATH", "/usr/bin:/bin")).await;
}

fn put_bytes(proxy: &Proxy) -> u64 {
    proxy.requests().iter().filter(|request| request.method == "PUT").map(|request| request.sent).sum()
}

/// A FLUSH takes one PUT: one journal record contains all dirty sectors, of however many chunks.
#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn a_thousand_scattered_writes_and_a_flush_are_one_put() {
    let store = Store::minio().await;
    let proxy = store.proxy().await;
    let setup = Setup::new(&store).through(&proxy).tcp();
    let gateway = setup.create("disk", "10GiB").env("CAIRN_COMMIT__MAX_AGE", "1h").start().await;
    proxy.forget();
    // The writes are 2,621 blocks apart, so that nearly every one is in a chunk of its own.
    nbdsh(
        &gateway.uri("disk"),
        "import os\nfor i in range(1000): h.pwrite(os.urandom(4096), i * 2621 * 4096)\nh.flush()",
    )
    .await;
    let requests = proxy.requests();
    let journal: Vec<_> = requests.iter().filter(|request| request.puts("/journal/")).collect();
    assert_eq!(journal.len(), 1, "{requests:#?}");
    assert_eq!(proxy.count(|request| request.puts("/chunk/")), 0, "{requests:#?}");
    assert!(journal[0].sent >= 4_096_000 && journal[0].sent <= 4_505_600, "{:?}", journal[0]);
    proxy.stop().await;
}

async fn write_in_sequence(gateway: &Gateway, mib: u64) {
    let mut fio =
        command(["fio", "--name=sequence", "--ioengine=nbd", "--rw=write", "--bs=1m", "--iodepth=4"]);
    fio.args([&format!("--size={mib}m"), "--refill_buffers", "--end_fsync=1", "--thread"]);
    run(fio.arg(format!("--uri={}", gateway.uri("disk")))).await;
}

/// Bulk data is sent once, whatever happens to it in the background. The requests are counted when the
/// gateway has drained.
#[tokio::test]
#[ignore = "needs MinIO, fio"]
async fn a_sequential_gibibyte_is_sent_once() {
    let store = Store::minio().await;
    let proxy = store.proxy().await;
    let mut gateway = Setup::new(&store).through(&proxy).create("disk", "2GiB").tcp().start().await;
    write_in_sequence(&gateway, 1024).await;
    assert!(put_bytes(&proxy) >= 1024 * MIB, "the flush came before the data: {} bytes", put_bytes(&proxy));
    gateway.process.signal(Signal::TERM);
    assert!(gateway.process.exit().await.success(), "{}", gateway.process.output());
    let sent = put_bytes(&proxy);
    println!("{sent} bytes were put");
    assert!(sent <= 1024 * MIB / 100 * 105, "{sent} bytes were put: {:?}", by_kind(&proxy));
    proxy.stop().await;
}

fn by_kind(proxy: &Proxy) -> std::collections::BTreeMap<String, (u64, u64)> {
    let mut kinds = std::collections::BTreeMap::new();
    for request in proxy.requests().iter().filter(|request| request.method == "PUT") {
        let kind = ["/journal/", "/chunk/", "/pack/", "/map/", "/root/", "/head"]
            .into_iter()
            .find(|kind| request.key.contains(kind))
            .unwrap_or("other");
        let entry: &mut (u64, u64) = kinds.entry(kind.to_owned()).or_default();
        entry.0 += 1;
        entry.1 += request.sent;
    }
    kinds
}

/// A TRIM of a full volume only changes the map. It fetches no data.
#[tokio::test]
#[ignore = "needs MinIO, fio, libnbd"]
async fn trim_of_a_full_volume_fetches_no_data() {
    let store = Store::minio().await;
    let proxy = store.proxy().await;
    let mut gateway = Setup::new(&store).through(&proxy).create("disk", "128MiB").tcp().start().await;
    write_in_sequence(&gateway, 128).await;
    proxy.forget();
    nbdsh(
        &gateway.uri("disk"),
        "h.trim(128 << 20, 0)\nh.flush()\nassert h.pread(4096, 5 << 20) == bytes(4096)",
    )
    .await;
    gateway.process.signal(Signal::TERM);
    assert!(gateway.process.exit().await.success(), "{}", gateway.process.output());
    assert_eq!(proxy.count(|request| request.gets("/chunk/")), 0, "{:#?}", proxy.requests());
    proxy.stop().await;
}

/// Trimmed objects are deleted when a checkpoint no longer references them and the grace period is over.
#[tokio::test]
#[ignore = "needs fio, libnbd"]
async fn trimmed_objects_are_deleted_after_the_next_checkpoint() {
    let store = Store::directory();
    let Store::Directory(directory) = &store else { unreachable!("a directory was asked for") };
    let setup = || Setup::new(&store).create("disk", "128MiB").tcp().env("CAIRN_STORE__DELETION_GRACE", "1s");
    let mut gateway = setup().start().await;
    write_in_sequence(&gateway, 128).await;
    assert!(chunks(directory.path()) >= 32, "{} chunk objects", chunks(directory.path()));
    nbdsh(&gateway.uri("disk"), "h.trim(128 << 20, 0)\nh.flush()").await;
    gateway.process.signal(Signal::TERM);
    assert!(gateway.process.exit().await.success(), "{}", gateway.process.output());

    let _next = setup().start().await;
    crate::support::process::until("the chunk objects are gone", || chunks(directory.path()) == 0).await;
}

/// Counts the objects in all directories `chunk` below a directory.
fn chunks(directory: &Path) -> usize {
    let mut found = 0;
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        // A directory may be removed while it is read.
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.components().any(|part| part.as_os_str() == "chunk") {
                found += 1;
            }
        }
    }
    found
}
