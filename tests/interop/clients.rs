//! What each client does with an empty disk, and the expected result. Bytes are always read back by another
//! client than the one that wrote them.

use std::path::Path;

use serde_json::Value;

use crate::support::files::{assert_same, noise};
use crate::support::process::{command, run};

const MIB: usize = 1 << 20;

/// `nbdinfo` reports the size, every capability, the block sizes, and the volume in the list of exports.
pub(super) async fn nbdinfo_reads_size_flags_and_block_sizes(uri: &str, _files: &Path) {
    let json = run(&mut command(["nbdinfo", "--json", uri])).await;
    let info: Value = serde_json::from_str(&json).expect("nbdinfo --json prints JSON");
    assert_eq!(info["protocol"], "newstyle-fixed");
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "disk");
    assert_eq!(export["export-size"], 1_u64 << 30);
    for (flag, set) in [
        ("is_read_only", false),
        ("is_rotational", false),
        ("can_cache", true),
        ("can_fast_zero", true),
        ("can_flush", true),
        ("can_fua", true),
        ("can_multi_conn", true),
        ("can_trim", true),
        ("can_zero", true),
    ] {
        assert_eq!(export[flag], set, "{flag} in {json}");
    }
    assert_eq!(export["block_size_minimum"], 1);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 64 << 20);

    let text = run(&mut command(["nbdinfo", uri])).await;
    assert!(text.contains("export-size: 1073741824 (1G)"), "{text}");
    let list: Value = serde_json::from_str(&run(&mut command(["nbdinfo", "--list", "--json", uri])).await)
        .expect("nbdinfo --list --json prints JSON");
    let names: Vec<_> =
        list["exports"].as_array().expect("a list").iter().map(|one| &one["export-name"]).collect();
    assert_eq!(names, ["disk"]);
}

/// Returns 64 MiB with a hole, and with random bytes in an aligned and an unaligned range.
fn picture(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 64 * MIB];
    bytes[..20 * MIB].copy_from_slice(&noise(seed, 20 * MIB));
    let odd = 41 * MIB + 12_345;
    bytes[odd..odd + 7 * MIB + 1].copy_from_slice(&noise(seed + 1, 7 * MIB + 1));
    bytes
}

fn write(files: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = files.join(name);
    std::fs::write(&path, bytes).expect("the test's directory can be written");
    path
}

/// `nbdcopy` copies an image in. `qemu-img` converts it out and compares it.
pub(super) async fn nbdcopy_writes_and_qemu_img_reads(uri: &str, files: &Path) {
    let source = write(files, "source", &picture(1));
    let out = files.join("out");
    run(command(["nbdcopy", "--flush"]).arg(&source).arg(uri)).await;
    run(command(["qemu-img", "convert", "-f", "raw", "-O", "raw", uri]).arg(&out)).await;
    assert_same(&source, &out);
    run(command(["qemu-img", "compare", "-f", "raw", "-F", "raw", uri]).arg(&source)).await;
}

/// `qemu-img` converts an image in, over older data. `nbdcopy` copies it out.
pub(super) async fn qemu_img_writes_and_nbdcopy_reads(uri: &str, files: &Path) {
    let older = write(files, "older", &noise(9, 64 * MIB));
    let source = write(files, "source", &picture(3));
    let out = files.join("out");
    for image in [&older, &source] {
        run(command(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw"]).arg(image).arg(uri)).await;
    }
    run(command(["nbdcopy", "--synchronous", uri]).arg(&out)).await;
    assert_same(&source, &out);
}

/// `qemu-io` writes patterns, zeroes with and without holes, discards, and forced writes. `nbdcopy` reads the
/// result.
pub(super) async fn qemu_io_writes_zeroes_discards_and_forces(uri: &str, files: &Path) {
    let mut expected = vec![0_u8; 64 * MIB];
    let mut io = command(["qemu-io", "-f", "raw", "--discard", "unmap"]);
    let mut step = |request: &str, offset: usize, length: usize, byte: u8| {
        io.args(["-c", &format!("{request} {offset} {length}")]);
        expected[offset..offset + length].fill(byte);
    };
    step("write -P 0xa5", 0, 8 * MIB, 0xa5);
    step("write -P 0x11", 4 * MIB - 512, 1024, 0x11);
    step("write -f -P 0x22", 123_904, 4096, 0x22);
    step("write -z", MIB, 2 * MIB, 0);
    step("write -z -u", 5 * MIB + 512, MIB, 0);
    step("discard", 7 * MIB, 512 * 1024, 0);
    step("write -f -P 0x33", 7 * MIB + 4096, 8192, 0x33);
    step("write -z -f", 16 * MIB, 16 * MIB, 0);
    step("write -P 0x44", 64 * MIB - 512, 512, 0x44);
    let said = run(io.args(["-c", "flush", uri])).await;
    assert!(!said.contains("failed"), "{said}");
    let out = files.join("out");
    run(command(["nbdcopy", uri]).arg(&out)).await;
    assert_same(&write(files, "expected", &expected), &out);

    // The client's own reads agree.
    let mut io = command(["qemu-io", "-f", "raw", "-r"]);
    io.args([
        "-c",
        "read -P 0x22 123904 4096",
        "-c",
        "read -P 0 1048576 2097152",
        "-c",
        "read -P 0x44 67108352 512",
    ]);
    let said = run(io.arg(uri)).await;
    assert!(!said.contains("verification failed"), "{said}");
}

/// fio writes randomly in mixed sizes, with flushes in between, and verifies every checksum.
pub(super) async fn fio_verifies_what_it_wrote(uri: &str, files: &Path) {
    let mut fio = command(["fio", "--name=verify", "--ioengine=nbd", "--rw=randwrite", "--iodepth=32"]);
    fio.args(["--bsrange=512-128k", "--blockalign=512", "--size=256m", "--io_size=96m", "--fsync=64"]);
    fio.args(["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randseed=7", "--thread"]);
    run(fio.arg(format!("--uri={uri}")).current_dir(files)).await;
}

/// libnbd's Python binding sends every command with every flag, over several connections.
pub(super) async fn libnbd_sends_every_command(uri: &str, files: &Path) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/libnbd.py");
    run(command(["/usr/bin/python3", script, uri]).current_dir(files)).await;
    let shell = "h.pwrite(b'from nbdsh', 1000); h.flush(); print(h.pread(10, 1000).decode())";
    let said = run(command(["nbdsh", "-u", uri, "-c", shell]).env("PATH", "/usr/bin:/bin")).await;
    assert_eq!(said.trim(), "from nbdsh");
}
