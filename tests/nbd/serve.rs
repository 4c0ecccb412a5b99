//! `cairn nbd serve`: files and block devices as exports.

use crate::support::certificates::Authority;
use crate::support::files::noise;
use crate::support::process::{command, finish, run};

use super::{Files, Served, assert_alike, ends_with};

const MIB: usize = 1 << 20;

#[tokio::test]
#[ignore = "needs QEMU, libnbd"]
async fn writes_of_clients_are_in_the_file() {
    let files = Files::new();
    let (image, source) = (files.sparse("image", 8 << 20), files.write("source", &noise(1, 8 * MIB)));
    let served = Served::start(&["serve", &image, "--exportname", "disk"]).await;
    assert!(served.uri.ends_with("/disk"), "{}", served.uri);
    run(&mut command(["nbdcopy", "--flush", &source, &served.uri])).await;
    assert_alike(&source, &image).await;
    let mut io = command(["qemu-io", "-f", "raw", "--discard", "unmap"]);
    io.args(["-c", "discard 1M 2M", "-c", "write -z 4M 64k", "-c", "write -f -P 7 5000 100"]);
    let said = run(io.args(["-c", "flush", &served.uri])).await;
    assert!(!said.contains("failed"), "{said}");
    let written = std::fs::read(files.path("image")).unwrap();
    assert!(written[MIB..3 * MIB].iter().chain(&written[4 * MIB..4 * MIB + 65_536]).all(|byte| *byte == 0));
    assert!(written[5000..5100].iter().all(|byte| *byte == 7));
    assert_eq!(written[5100..MIB], noise(1, 8 * MIB)[5100..MIB]);
    served.terminate(0).await;
}

#[tokio::test]
#[ignore = "needs libnbd"]
async fn the_map_of_an_export_equals_that_of_the_file() {
    let files = Files::new();
    let image = files.sparse("image", 16 << 20);
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::File::options().write(true).open(&image).unwrap(),
        &noise(2, 2 * MIB),
        4 << 20,
    )
    .unwrap();
    let served = Served::start(&["serve", &image]).await;
    let map = run(&mut command(["nbdinfo", "--map", &served.uri])).await;
    let found: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(found, [["0", "4194304", "3"], ["4194304", "2097152", "0"], ["6291456", "10485760", "3"]]);
}

#[tokio::test]
#[ignore = "needs libnbd"]
async fn an_export_is_available_by_its_name_and_the_empty_name() {
    let files = Files::new();
    let image = files.sparse("image", 1 << 20);
    let served = Served::start(&["serve", &image, "--exportname", "disk"]).await;
    let at = served.uri.trim_end_matches("disk");
    for (name, status) in [("disk", true), ("", true), ("other", false)] {
        let done = finish(&mut command(["nbdinfo", &format!("{at}{name}")])).await;
        assert_eq!(done.status.success(), status, "{name}: {done:?}");
    }
    let list = run(&mut command(["nbdinfo", "--list", at])).await;
    assert!(list.contains("export=\"disk\""), "{list}");
}

#[tokio::test]
#[ignore = "needs libnbd"]
async fn a_file_can_be_served_read_only() {
    let files = Files::new();
    let image = files.write("image", &noise(3, MIB));
    let served = Served::start(&["serve", &image, "--read-only"]).await;
    let info = run(&mut command(["nbdinfo", "--is", "read-only", &served.uri])).await;
    assert_eq!(info, "");
    assert!(!finish(&mut command(["nbdcopy", "--", &image, &served.uri])).await.status.success());
    assert_eq!(std::fs::read(files.path("image")).unwrap(), noise(3, MIB));
}

#[tokio::test]
#[ignore = "needs libnbd"]
async fn with_a_certificate_clients_must_use_tls() {
    let (files, authority) = (Files::new(), Authority::new());
    let pair = authority.server();
    let both = [std::fs::read(&pair.certificate).unwrap(), std::fs::read(&pair.key).unwrap()].concat();
    let (image, pem) = (files.write("image", &noise(4, MIB)), files.write("both.pem", &both));
    let served = Served::encrypted(&["serve", &image, "--certfile", &pem]).await;
    assert!(served.uri.starts_with("nbds://127.0.0.1:"), "{}", served.uri);
    std::fs::copy(authority.certificate(), files.path("ca-cert.pem")).unwrap();
    let trusting = |uri: &str| {
        // The certificate is for this name.
        let uri = uri.replace("127.0.0.1", "localhost");
        format!("{uri}?tls-certificates={}", files.text(""))
    };
    let out = files.text("out");
    run(&mut command(["nbdcopy", &trusting(&served.uri), &out])).await;
    assert_eq!(std::fs::read(out).unwrap(), noise(4, MIB));
    let info = ends_with(0, &["info", &trusting(&served.uri)]).await;
    assert!(info.stdout.contains("over TLS"), "{info:?}");
    // Without TLS, and with another authority.
    let plain = served.uri.replace("nbds:", "nbd:");
    assert!(!finish(&mut command(["nbdinfo", &plain])).await.status.success());
    ends_with(1, &["info", &plain]).await;
    std::fs::copy(Authority::new().certificate(), files.path("ca-cert.pem")).unwrap();
    let refused = ends_with(1, &["info", &trusting(&served.uri)]).await;
    assert!(refused.stderr.contains("certificate"), "{refused:?}");
}

/// A loop device with sectors of 4096 bytes. Dropping it removes the device.
struct LoopDevice(String);

impl LoopDevice {
    async fn over(image: &str) -> Self {
        let line = ["losetup", "--find", "--show", "--sector-size", "4096", image];
        Self(run(&mut command(line)).await.trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(detached.is_ok_and(|status| status.success()), "{} stays", self.0);
    }
}

/// "The values of 2^9 (512) or 2^12 (4,096) are more typical for an export backed by a block device": the
/// minimum is that of the device.
#[tokio::test]
#[ignore = "needs libnbd, util-linux"]
async fn a_block_device_reports_its_sectors_and_accepts_any_alignment() {
    let files = Files::new();
    let image = files.write("image", &vec![7; MIB]);
    let device = LoopDevice::over(&image).await;
    let served = Served::start(&["serve", &device.0]).await;
    let info = run(&mut command(["nbdinfo", "--json", &served.uri])).await;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let export = &info["exports"][0];
    assert_eq!(
        (&export["block_size_minimum"], &export["block_size_preferred"]),
        (&4096.into(), &4096.into())
    );
    // libnbd takes the length before the offset. The ranges are less than a sector, sectors with partial
    // edges, and the edges of a whole; as holes, as zeros, and discarded.
    let script = "h.set_strict_mode(0)\n\
        h.zero(512, 512)\n\
        h.zero(9500, 20000, nbd.CMD_FLAG_NO_HOLE)\n\
        h.zero(4097, 50000, nbd.CMD_FLAG_FAST_ZERO)\n\
        h.zero(65536 + 512, 16384)\n\
        h.trim(2, 8191)\n\
        h.trim(8192, 3 * 65536 - 512)\n\
        h.pwrite(b'unaligned', 262143)\n\
        assert h.pread(11, 262142) == bytearray(b'\\x07unaligned\\x07')\n\
        h.flush()";
    let mut shell = command(["nbdsh", "--uri", &served.uri, "--command", script]);
    run(shell.env("PATH", "/usr/bin:/bin")).await;
    let mut expected = vec![7; MIB];
    for zeros in [512..1024, 20_000..29_500, 50_000..54_097, 16_384..82_432] {
        expected[zeros].fill(0);
    }
    // Whole discarded sectors read as zeros on this device, and partial ones keep their content.
    expected[3 * 65_536..3 * 65_536 + 4096].fill(0);
    expected[262_143..262_152].copy_from_slice(b"unaligned");
    served.terminate(0).await;
    assert!(std::fs::read(&device.0).unwrap() == expected);
    // The device lies on that file.
    for (source, target) in [(&device.0, &image), (&image, &device.0)] {
        let refused = ends_with(1, &["copy", source, target]).await.stderr;
        assert!(refused.contains("same disk"), "{refused}");
    }
    assert!(std::fs::read(&device.0).unwrap() == expected);
}

#[tokio::test]
async fn unusable_files_are_refused_before_it_listens() {
    let files = Files::new();
    let image = files.sparse("image", 1 << 20);
    assert!(ends_with(1, &["serve", "/none", "--no-tls"]).await.stderr.contains("/none"));
    assert!(ends_with(1, &["serve", "/dev/null", "--no-tls"]).await.stderr.contains("neither a file"));
    assert!(ends_with(1, &["serve", &image, "--certfile", &image]).await.stderr.contains(&image));
    assert!(ends_with(2, &["serve", &image]).await.stderr.contains("--no-tls"));
}
