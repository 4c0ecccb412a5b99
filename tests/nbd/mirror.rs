//! `cairn nbd mirror`: both disks are the same at the end, whatever clients did in the meantime.

use crate::support::files::{assert_same, noise};
use crate::support::process::{command, finish, run};

use super::{Files, Other, Served, ends_with};

const MIB: usize = 1 << 20;

async fn complete(served: &mut Served) {
    served.process.wait_for("the end of the copy", |line| line.starts_with("complete").then_some(())).await;
}

async fn fio(uri: &str, directory: &Files, mib: u32) {
    let mut fio =
        command(["fio", "--name=load", "--ioengine=nbd", "--rw=randwrite", "--iodepth=16", "--thread"]);
    fio.args(["--bsrange=512-128k", "--blockalign=512", "--size=64m", "--randseed=7", "--randrepeat=1"]);
    fio.args([&format!("--io_size={mib}m"), "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"]);
    run(fio.arg(format!("--uri={uri}")).current_dir(directory.path(""))).await;
}

#[tokio::test]
#[ignore = "needs QEMU, fio, nbdkit"]
async fn both_disks_are_equal_at_the_end() {
    let files = Files::new();
    let (primary, secondary) =
        (files.write("primary", &noise(1, 64 * MIB)), files.write("secondary", &noise(2, 64 * MIB)));
    // Slow enough that clients write while it copies.
    let slow = Other::nbdkit(&["--filter=delay", "file", &secondary, "delay-write=10ms"]).await;
    let mut served = Served::start(&["mirror", &primary, &slow.uri("")]).await;
    fio(&served.uri, &files, 32).await;
    let mut io = command(["qemu-io", "-f", "raw", "--discard", "unmap"]);
    io.args(["-c", "discard 3M 5M", "-c", "write -z 20M 10M", "-c", "write -P 9 40M 100k", "-c", "flush"]);
    assert!(!run(io.arg(&served.uri)).await.contains("failed"));
    complete(&mut served).await;
    let mut io = command(["qemu-io", "-f", "raw", "-c", "write -P 5 1000000 5000", "-c", "flush"]);
    run(io.arg(&served.uri)).await;
    let said = served.terminate(0).await;
    assert_same(&files.path("primary"), &files.path("secondary"));
    let bytes = std::fs::read(files.path("secondary")).unwrap();
    assert!(bytes[1_000_000..1_005_000].iter().all(|byte| *byte == 5));
    assert!(bytes[40 * MIB..40 * MIB + 102_400].iter().all(|byte| *byte == 9));
    // The percentages increase.
    let percents: Vec<u32> = said.lines().filter_map(|line| line.strip_suffix(" %")?.parse().ok()).collect();
    assert!(percents.is_sorted_by(|a, b| a < b) && percents.len() > 5, "{percents:?}");
    assert_eq!((percents.first(), percents.last()), (Some(&0), Some(&100)));
}

#[tokio::test]
#[ignore = "needs QEMU, libnbd"]
async fn a_primary_may_be_an_export_and_is_copied_with_its_holes() {
    let files = Files::new();
    let mut bytes = vec![0; 32 * MIB];
    bytes[7 * MIB..9 * MIB].copy_from_slice(&noise(1, 2 * MIB));
    let (primary, secondary) = (files.write("primary", &bytes), files.sparse("secondary", 32 << 20));
    let server = Other::qemu(&[&primary]).await;
    let mut served = Served::start(&["mirror", &server.uri(""), &secondary, "--exportname", "disk"]).await;
    complete(&mut served).await;
    assert!(super::allocated(&files.path("secondary")) < 3 << 20);
    run(&mut command(["nbdcopy", &served.uri, &files.text("out")])).await;
    served.terminate(0).await;
    assert_same(&files.path("primary"), &files.path("secondary"));
    assert_same(&files.path("primary"), &files.path("out"));
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn unequal_sizes_and_read_only_secondaries_are_refused() {
    let files = Files::new();
    let (primary, other) = (files.sparse("primary", 2 << 20), files.sparse("other", 1 << 20));
    let refused = ends_with(1, &["mirror", &primary, &other, "--no-tls", "--port", "0"]).await;
    assert!(refused.stderr.contains("2097152") && refused.stderr.contains("1048576"), "{refused:?}");
    let read_only = Other::nbdkit(&["--readonly", "memory", "2M"]).await;
    let refused = ends_with(1, &["mirror", &primary, &read_only.uri(""), "--no-tls", "--port", "0"]).await;
    assert!(refused.stderr.contains("read-only"), "{refused:?}");
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn ending_before_it_is_complete_is_a_failure() {
    let files = Files::new();
    let primary = files.write("primary", &noise(1, 8 * MIB));
    let stuck = Other::nbdkit(&["--filter=delay", "memory", "8M", "delay-write=1000"]).await;
    let served = Served::start(&["mirror", &primary, &stuck.uri("")]).await;
    let said = served.terminate(1).await;
    assert!(said.contains("not complete"), "{said}");
}

#[tokio::test]
#[ignore = "needs QEMU, libnbd, nbdkit"]
async fn a_lost_secondary_is_reported_and_the_primary_stays_available() {
    let files = Files::new();
    let primary = files.write("primary", &noise(1, 8 * MIB));
    let mut other = Other::nbdkit(&["memory", "8M"]).await;
    let mut served = Served::start(&["mirror", &primary, &other.uri("")]).await;
    complete(&mut served).await;
    other.process.kill().await;
    let mut io = command(["qemu-io", "-f", "raw", "-c", "write -P 5 0 4096", "-c", "flush"]);
    let said = run(io.arg(&served.uri)).await;
    assert!(!said.contains("failed"), "{said}");
    served.process.wait_for("the loss", |line| line.contains("the mirror is broken").then_some(())).await;
    assert!(finish(&mut command(["nbdinfo", &served.uri])).await.status.success());
    let said = served.terminate(1).await;
    assert!(said.contains("not complete"), "{said}");
    assert!(std::fs::read(files.path("primary")).unwrap()[..4096].iter().all(|byte| *byte == 5));
}
