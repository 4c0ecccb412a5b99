//! `cairn nbd copy` between files and servers of every kind. Other programs read what it wrote.

use std::sync::Arc;

use cairn::effect::Durability;
use cairn::protocol::TransmissionFlags;
use cairn::server::{
    Export as _, ExportDescription, Greeting, Listener, NoMetrics, Options, Server, SingleExport,
};

use crate::support::files::{assert_same, noise};
use crate::support::memory_export::MemoryExport;
use crate::support::process::{command, run};

use super::{Files, Other, Served, allocated, assert_alike, ends_with};

const MIB: usize = 1 << 20;

/// Returns 32 MiB with random bytes, written zeros, and random bytes at unaligned offsets.
fn picture() -> Vec<u8> {
    let mut bytes = vec![0; 32 * MIB];
    bytes[..5 * MIB].copy_from_slice(&noise(1, 5 * MIB));
    bytes[17 * MIB + 4321..20 * MIB + 1].copy_from_slice(&noise(2, 3 * MIB - 4320));
    bytes[32 * MIB - 1] = 7;
    bytes
}

#[tokio::test]
async fn file_to_file_keeps_bytes_and_holes() {
    let files = Files::new();
    let source = files.write("source", &picture());
    // The previous content is gone.
    let target = files.write("target", &noise(9, 40 * MIB));
    let said = ends_with(0, &["copy", &source, &target]).await.stdout;
    assert_same(&files.path("source"), &files.path("target"));
    assert!(said.starts_with("copied 33554432 bytes, "), "{said}");
    assert!(allocated(&files.path("target")) < 10 << 20, "{}", allocated(&files.path("target")));
}

#[tokio::test]
#[ignore = "needs QEMU, libnbd, nbdkit"]
async fn a_file_is_copied_to_servers_and_back() {
    let files = Files::new();
    let source = files.write("source", &picture());
    let (one, two) = (files.write("one", &noise(8, 32 * MIB)), files.write("two", &noise(9, 32 * MIB)));
    let ours = Served::start(&["serve", &one]).await;
    let qemu = Other::qemu(&[&two]).await;
    let nbdkit = Other::nbdkit(&["memory", "33554432"]).await;
    let simple = Other::nbdkit(&["--no-sr", "memory", "33554432"]).await;
    let plain = Other::nbdkit(&["--filter=nozero", "memory", "33554432"]).await;
    let uris = [ours.uri.clone(), qemu.uri(""), nbdkit.uri(""), simple.uri(""), plain.uri("")];
    for (at, uri) in uris.iter().enumerate() {
        ends_with(0, &["copy", &source, uri]).await;
        // Read by another program than the one that wrote.
        let out = files.path(&format!("out{at}"));
        run(command(["nbdcopy", uri]).arg(&out)).await;
        assert_same(&files.path("source"), &out);
        let back = files.path(&format!("back{at}"));
        ends_with(0, &["copy", uri, back.to_str().unwrap(), "--connections", "1"]).await;
        assert_same(&files.path("source"), &back);
    }
}

#[tokio::test]
#[ignore = "needs QEMU, nbdkit"]
async fn copying_a_sparse_tebibyte_copies_only_its_data() {
    let files = Files::new();
    let data = "data=( 0x55 )*3000000 @5000000000 ( 0xaa )*2000000 @1099511627775 1";
    let server = Other::nbdkit(&["data", data]).await;
    let target = files.text("target");
    let said = ends_with(0, &["copy", &server.uri(""), &target]).await.stdout;
    assert!(said.starts_with("copied 1099511627776 bytes"), "{said}");
    assert!(allocated(&files.path("target")) < 8 << 20, "{}", allocated(&files.path("target")));
    assert_alike(&server.uri(""), &target).await;
    // Copy to a server that already has the same content, so that only a comparison remains.
    let same = files.text("same");
    ends_with(0, &["copy", &target, &same]).await;
    let ours = Served::start(&["serve", &same]).await;
    let said = ends_with(0, &["copy", &target, &ours.uri]).await.stdout;
    assert!(said.starts_with("copied 1099511627776 bytes"), "{said}");
}

#[tokio::test]
async fn between_servers_with_several_connections() {
    let files = Files::new();
    let (source, target) = (files.write("source", &noise(3, 64 * MIB)), files.sparse("target", 80 << 20));
    let (from, to) = (Served::start(&["serve", &source]).await, Served::start(&["serve", &target]).await);
    ends_with(0, &["copy", &from.uri, &to.uri, "--connections", "8"]).await;
    let out = std::fs::read(files.path("target")).unwrap();
    assert!(out[..64 * MIB] == noise(3, 64 * MIB)[..] && out[64 * MIB..].iter().all(|byte| *byte == 0));
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn disks_of_the_wrong_size_or_kind_are_refused() {
    let files = Files::new();
    let (source, small) = (files.write("source", &noise(3, 2 * MIB)), files.sparse("small", 1 << 20));
    let served = Served::start(&["serve", &small]).await;
    let refused = ends_with(1, &["copy", &source, &served.uri]).await;
    assert!(refused.stderr.contains("1048576") && refused.stderr.contains("2097152"), "{refused:?}");
    let read_only = Other::nbdkit(&["--readonly", "memory", "2M"]).await;
    assert!(ends_with(1, &["copy", &source, &read_only.uri("")]).await.stderr.contains("read-only"));
    assert!(ends_with(1, &["copy", "/none", &small]).await.stderr.contains("/none"));
    ends_with(2, &["copy", &source, "http://host/disk"]).await;
    assert!(!files.path("http:").exists());
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn a_disk_that_fails_is_named() {
    let files = Files::new();
    let source = files.write("source", &noise(3, MIB));
    let broken =
        Other::nbdkit(&["--filter=error", "memory", "1M", "error-pwrite=ENOSPC", "error-rate=100%"]).await;
    let failed = ends_with(1, &["copy", &source, &broken.uri("")]).await;
    assert!(failed.stderr.contains("nbd+unix") && failed.stderr.contains("ENOSPC"), "{failed:?}");
}

/// "Soft disconnects can only be initiated by the client": the server that did not fail must receive DISC,
/// too.
#[tokio::test]
#[ignore = "needs nbdkit"]
async fn a_client_sends_disc_even_after_a_failure() {
    let files = Files::new();
    let (image, small) = (files.write("image", &noise(3, MIB)), files.sparse("small", 512));
    let broken =
        Other::nbdkit(&["--filter=error", "memory", "1M", "error-pwrite=ENOSPC", "error-rate=100%"]).await;
    let nowhere = format!("nbd+unix:///?socket={}", files.text("none"));
    for target in [broken.uri(""), small, nowhere] {
        for command in ["copy", "mirror"] {
            if command == "mirror" && target == broken.uri("") {
                // It keeps serving.
                continue;
            }
            let mut served = Served::logging(&["serve", &image], "debug").await;
            let target = match command {
                "copy" if target.ends_with("small") => served.uri.clone(),
                _ => target.clone(),
            };
            let mut words = vec![command, &served.uri, &target];
            if command == "mirror" {
                words.extend(["--no-tls", "--port", "0"]);
            }
            ends_with(1, &words).await;
            let end = |line: &str| {
                let ends = ["the client disconnected", "without DISC", "connection lost"];
                ends.into_iter().find(|end| line.contains(end))
            };
            let how = served.process.wait_for("the end of the connection", end).await;
            assert_eq!(how, "the client disconnected", "{command} to {target}");
        }
    }
}

#[tokio::test]
#[ignore = "needs util-linux"]
async fn on_a_terminal_it_shows_progress() {
    let files = Files::new();
    let (source, target) = (files.write("source", &noise(3, 8 * MIB)), files.text("target"));
    let line = format!("{} nbd copy {source} {target}", env!("CARGO_BIN_EXE_cairn"));
    let mut on_terminal = command(["script", "--quiet", "--return", "--command", &line, "/dev/null"]);
    let said = run(on_terminal.env("TERM", "xterm")).await;
    assert!(said.contains(" % [") && said.contains("8.00 MiB"), "{said:?}");
    let quiet = ends_with(0, &["copy", "--quiet", &source, &target]).await;
    assert!(quiet.stderr.is_empty(), "{quiet:?}");
}

/// A server that refuses commands that are not aligned to blocks of 64 KiB.
async fn coarse_server(size_bytes: u64, flags: TransmissionFlags) -> (Server, Arc<MemoryExport>, String) {
    let disk = Arc::new(MemoryExport::described(ExportDescription {
        flags: TransmissionFlags::HAS_FLAGS | flags,
        minimum_block_bytes: 64 << 10,
        preferred_block_bytes: 64 << 10,
        ..ExportDescription::new("disk", size_bytes)
    }));
    let exports = SingleExport::new("disk", Arc::<MemoryExport>::clone(&disk));
    let server = Server::new(Arc::new(exports), Options::default(), NoMetrics);
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let uri = format!("nbd://{}/disk", server.listen(listener, Greeting::Newstyle));
    (server, disk, uri)
}

/// Data and holes of a file begin and end anywhere, and so does the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_gets_whole_blocks_whatever_the_file_has() {
    let files = Files::new();
    let mut bytes = vec![0; 900_001];
    bytes[..12_288].copy_from_slice(&noise(1, 12_288));
    bytes[299_008..400_000].copy_from_slice(&noise(2, 100_992));
    let source = files.sparse("source", 900_001);
    let file = std::fs::File::options().write(true).open(files.path("source")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[..12_288], 0).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[299_008..400_000], 299_008).unwrap();
    for flags in [TransmissionFlags::SEND_FLUSH, TransmissionFlags::SEND_WRITE_ZEROES] {
        let (server, disk, uri) = coarse_server(1 << 20, flags).await;
        let before = noise(9, MIB);
        disk.write(0, before.clone().into(), Durability::Volatile).await.unwrap();
        let said = ends_with(0, &["copy", &source, &uri]).await.stdout;
        assert!(said.starts_with("copied 900001 bytes"), "{said}");
        let back = files.text("back");
        ends_with(0, &["copy", &uri, &back]).await;
        let found = std::fs::read(&back).unwrap();
        assert!(found[..900_001] == bytes && found[900_001..] == before[900_001..], "{flags:?}");
        server.drain().await;
    }
    // There is no room for the last block.
    let (server, _, uri) = coarse_server(900_001, TransmissionFlags::empty()).await;
    let refused = ends_with(1, &["copy", &source, &uri]).await;
    assert!(refused.stderr.contains("only writes blocks of 65536 bytes"), "{refused:?}");
    let refused = ends_with(1, &["copy", &uri, &files.text("other")]).await;
    assert!(refused.stderr.contains("the last 48033 bytes"), "{refused:?}");
    server.drain().await;
}
