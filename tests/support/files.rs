//! Files that tests write and compare: reproducible random bytes, and checksums of directory trees.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::process::{command, run};

/// Returns `length` incompressible bytes that only depend on the seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Creates a named pipe.
pub(crate) fn make_pipe(path: &Path) {
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)
        .expect("a pipe can be made");
}

/// Panics at the first byte where two files differ.
pub(crate) fn assert_same(left: &Path, right: &Path) {
    let open = |path| BufReader::new(File::open(path).expect("both files can be read"));
    let (mut one, mut other, mut offset) = (open(left), open(right), 0);
    loop {
        let a = one.fill_buf().expect("both files can be read");
        let b = other.fill_buf().expect("both files can be read");
        let length = a.len().min(b.len());
        if a[..length] != b[..length] || length == 0 && a.len() != b.len() {
            let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
            panic!("{} and {} differ at byte {}", left.display(), right.display(), offset + same);
        }
        if length == 0 {
            return;
        }
        one.consume(length);
        other.consume(length);
        offset += length;
    }
}

/// Returns the lines of `sha256sum` for every regular file below a directory, in order of name.
pub(crate) async fn checksums(directory: &Path) -> String {
    let script = "find . -xdev -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
    run(command(["bash", "-o", "pipefail", "-c", script]).current_dir(directory)).await
}

/// Asserts that the file system in an image is clean according to `e2fsck -fn`.
pub(crate) async fn assert_clean_ext4(image: &Path) {
    run(command(["/sbin/e2fsck", "-fn"]).arg(image)).await;
}

/// Copies a directory out of an ext4 image without mounting it.
pub(crate) async fn extract_ext4(image: &Path, from: &str, to: &Path) {
    let request = format!("rdump {from} {}", to.display());
    let said = super::process::finish(command(["/sbin/debugfs", "-R", &request]).arg(image)).await;
    assert!(said.status.success(), "debugfs {request}: {said:?}");
}
