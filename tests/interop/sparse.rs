//! Sparse data stays sparse: maps report what was written, and copying a huge disk only reads what it
//! contains.

use std::collections::BTreeMap;

use crate::support::cairn::{Setup, Store};
use crate::support::process::{command, run};
use crate::support::proxy::Proxy;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Returns offset, length and whether it is data, as `nbdinfo --map` reports it. Adjacent extents of a kind
/// are joined.
async fn map(uri: &str) -> Vec<(u64, u64, bool)> {
    let mut map: Vec<(u64, u64, bool)> = Vec::new();
    for line in run(&mut command(["nbdinfo", "--map", uri])).await.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (offset, length) = (words[0].parse().unwrap(), words[1].parse::<u64>().unwrap());
        let data = words[2] == "0";
        match map.last_mut() {
            Some((_, before, same)) if *same == data => *before += length,
            _ => map.push((offset, length, data)),
        }
    }
    map
}

/// Returns the expected map after data was written to these ranges, at this granularity.
fn expected(written: &[(u64, u64)], size: u64, unit: u64) -> Vec<(u64, u64, bool)> {
    let units = written.iter().flat_map(|(offset, length)| offset / unit..(offset + length).div_ceil(unit));
    let units: BTreeMap<u64, ()> = units.map(|unit| (unit, ())).collect();
    let mut map: Vec<(u64, u64, bool)> = Vec::new();
    let mut push = |offset, length, data| match map.last_mut() {
        _ if length == 0 => {}
        Some((_, before, same)) if *same == data => *before += length,
        _ => map.push((offset, length, data)),
    };
    let mut at = 0;
    for start in units.keys().map(|number| number * unit) {
        push(at, start - at, false);
        push(start, unit, true);
        at = start + unit;
    }
    push(at, size - at, false);
    map
}

/// In memory, in the journal, after a restart, and when folded, the map always shows what was written, to a
/// granularity of 64 KiB.
#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn the_map_shows_what_was_written() {
    let store = Store::minio().await;
    let size = 1 << 30;
    let written = [
        (0, 4096),
        (MIB, 64 * KIB),
        (10 * MIB + 5, 1),
        (100 * MIB, 9 * MIB),
        (512 * MIB + 65_535, 2),
        (size - 512, 512),
    ];
    let script: String =
        written.iter().map(|(offset, length)| format!("h.pwrite(b'x' * {length}, {offset})\n")).collect();
    // Trimmed and zeroed ranges are holes again.
    let script = format!(
        "{script}h.pwrite(b'y' * 1048576, 734003200)\nh.trim(1048576, 734003200)\n\
                          h.pwrite(b'y' * 1048576, 838860800)\nh.zero(1048576, 838860800)\nh.flush()"
    );
    let expected = expected(&written, size, 64 * KIB);
    let gateway = Setup::new(&store).create("disk", "1GiB").tcp().start().await;
    run(command(["nbdsh", "-u", &gateway.uri("disk"), "-c", &script]).env("PATH", "/usr/bin:/bin")).await;
    assert_map(&gateway.uri("disk"), &expected).await;
    let mut process = gateway.process;
    process.kill().await;
    let mut again = Setup::new(&store).create("disk", "1GiB").takeover().tcp().start().await;
    assert_map(&again.uri("disk"), &expected).await;
    // SIGTERM folds the journal.
    again.process.signal(rustix::process::Signal::TERM);
    assert!(again.process.exit().await.success(), "{}", again.process.output());
    let folded = Setup::new(&store).create("disk", "1GiB").tcp().start().await;
    assert_map(&folded.uri("disk"), &expected).await;
}

/// The map may be finer than 64 KiB, but not coarser, and never reports data as a hole.
async fn assert_map(uri: &str, expected: &[(u64, u64, bool)]) {
    let found = map(uri).await;
    let rounded: Vec<(u64, u64)> =
        found.iter().filter(|(.., data)| *data).map(|(offset, length, _)| (*offset, *length)).collect();
    let size = found.iter().map(|(_, length, _)| length).sum();
    assert_eq!(self::expected(&rounded, size, 64 * KIB), expected, "{found:?}");
}

/// Returns the bytes that were read, without what a checkpoint reads of the journal at the same time.
fn got_bytes(proxy: &Proxy) -> u64 {
    let requests = proxy.requests();
    let got = requests.iter().filter(|request| request.method == "GET" && !request.key.contains("/journal/"));
    got.map(|request| request.received).sum()
}

/// Copying 1 TiB that contains 100 MB reads about 100 MB from the store, with either program.
#[tokio::test]
#[ignore = "needs MinIO, QEMU, libnbd"]
async fn copying_a_sparse_tebibyte_reads_only_its_data() {
    let store = Store::minio().await;
    let proxy = store.proxy().await;
    let files = tempfile::tempdir().unwrap();
    let gateway = Setup::new(&store).create("disk", "1TiB").tcp().start().await;
    // 100 pieces of a megabyte each, spread over the disk.
    let script = "import os\nfor i in range(100): h.pwrite(os.urandom(1000000), i * 10995116277 // 4096 * 4096)\nh.flush()";
    run(command(["nbdsh", "-u", &gateway.uri("disk"), "-c", script]).env("PATH", "/usr/bin:/bin")).await;
    let mut process = gateway.process;
    process.signal(rustix::process::Signal::TERM);
    assert!(process.exit().await.success(), "{}", process.output());
    let copies = [
        ("qemu", vec!["qemu-img", "convert", "-f", "raw", "-O", "raw"]),
        ("nbdcopy", vec!["nbdcopy", "--connections=4"]),
    ];
    for (name, line) in copies {
        // Each program gets its own gateway, so that nothing is cached.
        let gateway = Setup::new(&store).through(&proxy).create("disk", "1TiB").tcp().start().await;
        proxy.forget();
        let out = files.path().join(name);
        run(command(line).arg(gateway.uri("disk")).arg(&out)).await;
        let read = got_bytes(&proxy);
        println!("{name} read {read} bytes from the store");
        assert!((100_000_000..150_000_000).contains(&read), "{name} read {read} bytes");
        let mut process = gateway.process;
        process.signal(rustix::process::Signal::TERM);
        assert!(process.exit().await.success(), "{}", process.output());
    }
    proxy.stop().await;
    let [one, other] = ["qemu", "nbdcopy"].map(|name| files.path().join(name));
    run(command(["qemu-img", "compare", "-f", "raw", "-F", "raw"]).arg(one).arg(other)).await;
}
