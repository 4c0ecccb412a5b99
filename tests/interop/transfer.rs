//! `cairn import` and `cairn export` with the tools of others: their images go in, and they read what comes out.

use std::path::Path;

use tokio::process::Command;

use crate::support::cairn::Store;
use crate::support::files::noise;
use crate::support::process::{Process, command, finish, listens_at, run};

const MIB: usize = 1 << 20;

/// An image of 64 MiB with data, written zeros and holes.
fn picture(at: &Path) {
    let file = std::fs::File::create(at).expect("a file can be made");
    file.set_len(64 << 20).expect("a file can be sparse");
    let write = |bytes: &[u8], offset: usize| {
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset as u64).expect("a file can be written");
    };
    write(&noise(1, 5 * MIB + 17), 0);
    write(&vec![0; 3 * MIB], 10 * MIB);
    write(&noise(2, 9 * MIB), 40 * MIB - 4097);
    write(&[7], 64 * MIB - 1);
}

fn cairn<const WORDS: usize>(store: &Store, words: [&str; WORDS]) -> Command {
    let mut cairn = store.cairn(words);
    cairn.args(["--store", &store.url()]);
    cairn
}

async fn sha256sum(file: &Path) -> String {
    let said = run(command(["sha256sum"]).arg(file)).await;
    said.split_whitespace().next().expect("a checksum").to_owned()
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU"]
async fn images_of_qemu_become_volumes_and_volumes_images() {
    let store = Store::minio().await;
    let files = tempfile::tempdir().expect("a directory for the test");
    let at = |name: &str| files.path().join(name);
    let (raw, compressed, out, back) = (at("in.img"), at("in.qcow2"), at("out.qcow2"), at("back.img"));
    picture(&raw);
    run(command(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&compressed)).await;
    let (from, to) = (compressed.to_str().expect("UTF-8"), out.to_str().expect("UTF-8"));
    let imported = run(&mut cairn(&store, ["import", from, "images"])).await;
    let expected = format!("sha256 {}\n", sha256sum(&raw).await);
    assert!(imported.ends_with(&expected), "{imported} is not {expected}");
    let exported = run(&mut cairn(&store, ["export", "images", to])).await;
    assert!(exported.ends_with(&expected), "{exported} is not {expected}");
    run(command(["qemu-img", "check", "-f", "qcow2"]).arg(&out)).await;
    run(command(["qemu-img", "compare", "-f", "raw", "-F", "qcow2"]).arg(&raw).arg(&out)).await;
    let size = std::fs::metadata(&out).expect("the image exists").len();
    assert!(size < 20 << 20, "{size} bytes for 15 MiB of data");
    let exported = run(&mut cairn(&store, ["export", "images", back.to_str().expect("UTF-8")])).await;
    assert!(exported.ends_with(&expected), "{exported} is not {expected}");
    run(command(["cmp"]).arg(&raw).arg(&back)).await;
    // QEMU does not read it, and says why.
    std::fs::write(at("broken.qcow2"), b"QFI\xfb and so on").expect("a file can be written");
    let broken =
        finish(&mut cairn(&store, ["import", at("broken.qcow2").to_str().expect("UTF-8"), "x"])).await;
    assert_eq!(broken.status.code(), Some(1), "{broken:?}");
    assert!(broken.stderr.contains("qemu-nbd: "), "{broken:?}");
    let mut names: Vec<_> = std::fs::read_dir(files.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["back.img", "broken.qcow2", "in.img", "in.qcow2", "out.qcow2"]);
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, nbdkit"]
async fn disks_of_other_servers_are_imported_and_written() {
    let store = Store::minio().await;
    let files = tempfile::tempdir().expect("a directory for the test");
    let at = |name: &str| files.path().join(name);
    let image = at("in.img");
    picture(&image);
    let served = async |name: &str, words: &[&str]| {
        let socket = at(name);
        let line =
            ["nbdkit", "--foreground", "--exit-with-parent", "--unix", socket.to_str().expect("UTF-8")];
        let process = Process::spawn("nbdkit", &mut command([&line[..], words].concat()));
        listens_at(&socket).await;
        (process, format!("nbd+unix:///?socket={}", socket.display()))
    };
    let file = format!("file={}", image.display());
    let (_source, from) = served("from", &["file", &file]).await;
    let (_plain, slow) = served("slow", &["--filter=nozero", "memory", "65M"]).await;
    let coarse = ["--filter=blocksize-policy", "memory", "64M", "blocksize-minimum=4096"];
    let coarse = [&coarse[..], &["blocksize-preferred=65536", "blocksize-error-policy=error"]].concat();
    let (_coarse, blocks) = served("blocks", &coarse).await;
    let expected = format!("sha256 {}\n", sha256sum(&image).await);
    let imported = run(&mut cairn(&store, ["import", &from, "servers", "--connections", "2"])).await;
    assert!(imported.ends_with(&expected), "{imported} is not {expected}");
    run(&mut cairn(&store, ["snapshot", "create", "servers@now"])).await;
    for uri in [&slow, &blocks] {
        let exported = run(&mut cairn(&store, ["export", "servers@now", uri])).await;
        assert!(exported.ends_with(&expected), "{exported} is not {expected}");
        run(command(["qemu-img", "compare", "-f", "raw", "-F", "raw", uri]).arg(&image)).await;
    }
}

#[tokio::test]
#[ignore = "needs MinIO, util-linux"]
async fn on_a_terminal_both_show_progress() {
    let store = Store::minio().await;
    let files = tempfile::tempdir().expect("a directory for the test");
    let at = |name: &str| files.path().join(name);
    picture(&at("in.img"));
    let on_terminal = async |words: &str| {
        let url = store.url();
        let line = format!("{} {words} --store {url}", env!("CARGO_BIN_EXE_cairn"));
        // The variables of the store, for another program.
        let cairn = store.cairn([]);
        let mut script = command(["script", "--quiet", "--return", "--command", &line, "/dev/null"]);
        for (name, value) in cairn.as_std().get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        run(script.env("TERM", "xterm").current_dir(files.path())).await
    };
    for words in ["import in.img shown", "export shown out.img"] {
        let said = on_terminal(words).await;
        assert!(said.contains(" % [") && said.contains("64.00 MiB") && said.contains(" left"), "{said:?}");
        assert!(said.contains("sha256 "), "{said:?}");
    }
    let quiet = on_terminal("export shown out.img --quiet").await;
    assert!(!quiet.contains('%'), "{quiet:?}");
}
