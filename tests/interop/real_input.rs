//! A real file system with real files. One client copies it in, the gateway is killed, and another client
//! copies it out.

use std::path::Path;

use crate::support::cairn::{Setup, Store};
use crate::support::files::{assert_clean_ext4, checksums, extract_ext4};
use crate::support::process::{command, run};

/// How many bytes of this machine's own files are used.
const TREE_BYTES: u64 = 520 << 20;

/// Copies files of this machine in order of name, until there are enough. It takes only every sixteenth small
/// file: tens of thousands of them would test this machine's file system rather than the disk.
async fn gather(tree: &Path) {
    let script = r#"
        find /usr/lib /usr/share /usr/bin "${HOME:-/root}/.rustup" -xdev -type f -size -64M -printf '%s\t%p\0' 2>/dev/null |
            LC_ALL=C sort -z -t $'\t' -k 2 |
            awk -v RS='\0' -v ORS='\0' -v most="$BYTES" -F '\t' 'sum < most && ($1 >= 16384 || NR % 16 == 0) { sum += $1; print $2 }' |
            cpio --quiet --null --pass-through --make-directories "$TREE"
    "#;
    let mut gather = command(["bash", "-c", script]);
    run(gather.env("BYTES", TREE_BYTES.to_string()).env("TREE", tree)).await;
}

/// The whole path of a disk image: mke2fs, nbdcopy in, FLUSH, SIGKILL, takeover with an empty cache, QEMU
/// out.
#[tokio::test]
#[ignore = "needs MinIO, QEMU, cpio, e2fsprogs, libnbd"]
async fn a_file_tree_survives_the_death_of_its_gateway() {
    let files = tempfile::tempdir().expect("a directory for the test");
    let path = |name: &str| files.path().join(name);
    std::fs::create_dir(path("tree")).expect("an empty directory");
    gather(&path("tree")).await;
    let expected = checksums(&path("tree")).await;
    println!("{} files", expected.lines().count());
    run(command(["/sbin/mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d"])
        .arg(path("tree"))
        .arg(path("image"))
        .arg("1g"))
    .await;
    std::fs::remove_dir_all(path("tree")).expect("the tree was ours");

    let store = Store::minio().await;
    let mut first = Setup::new(&store).create("disk", "1GiB").tcp().start().await;
    run(command(["nbdcopy", "--flush"]).arg(path("image")).arg(first.uri("disk"))).await;
    first.process.kill().await;
    std::fs::remove_file(path("image")).expect("the image was ours");

    let second = Setup::new(&store).create("disk", "1GiB").tcp().takeover().start().await;
    run(command(["qemu-img", "convert", "-f", "raw", "-O", "raw", &second.uri("disk")]).arg(path("out")))
        .await;
    assert_clean_ext4(&path("out")).await;
    std::fs::create_dir(path("found")).expect("an empty directory");
    extract_ext4(&path("out"), "/", &path("found")).await;
    // mke2fs created this directory, which is empty.
    std::fs::remove_dir(path("found/lost+found")).expect("lost+found is empty");
    let found = checksums(&path("found")).await;
    assert!(found.len() > 1000, "too few files were found:\n{found}");
    assert!(found == expected, "the files differ:\n{}", differences(&expected, &found));
}

fn differences(expected: &str, found: &str) -> String {
    let missing =
        expected.lines().filter(|line| !found.contains(line)).take(10).map(|line| format!("- {line}"));
    missing.collect::<Vec<_>>().join("\n")
}
