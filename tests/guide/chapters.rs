//! The chapters are typed as they are printed: each in a directory, a network and a `/run` of its own.

use std::fmt::Write as _;
use std::path::Path;

use tempfile::TempDir;

use super::blocks::{Mark, blocks};
use super::{documents, read};
use crate::support::minio::tools;
use crate::support::process::{command, run};

/// What surrounds the blocks of a chapter: how a gateway is started, awaited and ended, and the bucket.
const FRAME: &str = r#"
set -euo pipefail
mount -t tmpfs -o mode=0755 tmpfs /run
ip link set lo up
server=
bucket() {
    mkdir bucket
    MINIO_ROOT_USER=guide MINIO_ROOT_PASSWORD=guide-guide MINIO_BROWSER=off MINIO_CI_CD=1 \
        "$MINIO" server --address 127.0.0.1:9000 bucket >minio.log 2>&1 &
    until grep -q 'API: ' minio.log; do kill -0 $!; sleep 0.1; done
}
stop() {
    [ -z "$server" ] || { kill "$server"; wait "$server" || { echo "the gateway failed: $?"; cat gateway.log; exit 1; }; }
    server=
}
serve() {
    stop
    # What the gateway before it said must not be taken for what this one says.
    : >gateway.out
    bash -eu "$1" >gateway.out 2>gateway.log &
    server=$!
    until grep -q '^listening on' gateway.out; do
        kill -0 "$server" || { cat gateway.log; exit 1; }
        sleep 0.1
    done
}
type_in() { bash -euo pipefail "$1" || { echo "$2 failed: $?"; cat gateway.log; exit 1; }; }
"#;

/// What the blocks with a bucket find in their environment.
const BUCKET: &str = "export AWS_ENDPOINT_URL=http://127.0.0.1:9000 AWS_ACCESS_KEY_ID=guide \
     AWS_SECRET_ACCESS_KEY=guide-guide AWS_REGION=us-east-1 CAIRN_STORE__PATH_STYLE=true CAIRN_STORE__CREATE_BUCKET=true\n";

/// The script that types a chapter; gives how many blocks that are.
fn script(file: &str, at: &Path) -> (String, usize) {
    let mut script = FRAME.to_owned();
    let (mut count, mut has_bucket) = (0, false);
    for block in blocks(file, &read(file)) {
        let Some(Mark::Run(how)) = block.mark() else { continue };
        let is = |what: &str| how.iter().any(|how| how == what);
        count += 1;
        let mut text = block.text.clone();
        if is("with a bucket") {
            text.insert_str(0, BUCKET);
            if !std::mem::replace(&mut has_bucket, true) {
                script.push_str("bucket\n");
            }
        }
        if is("serves") {
            // The signal that ends it is for the gateway, not for a shell around it.
            text = text.replace("\ncairn serve", "\nexec cairn serve");
            if text.starts_with("cairn serve") {
                text.insert_str(0, "exec ");
            }
        }
        let name = format!("block-{count}.sh");
        std::fs::write(at.join(&name), text).expect("a block can be written");
        let verb = match (is("serves"), is("after the gateway has ended")) {
            (true, _) => format!("serve {name}"),
            (false, true) => format!("stop\ntype_in {name} {}", block.place),
            (false, false) => format!("type_in {name} {}", block.place),
        };
        writeln!(script, "echo '== {}'\n{verb}", block.place).expect("a String takes all");
    }
    script.push_str("stop\n");
    (script, count)
}

/// Types a chapter.
async fn typed(file: &str) {
    let at = TempDir::new().expect("a directory");
    let programs = at.path().join("bin");
    std::fs::create_dir(&programs).expect("a directory");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cairn"), programs.join("cairn")).expect("a link");
    let work = at.path().join("work");
    std::fs::create_dir(&work).expect("a directory");
    let (script, count) = script(file, &work);
    assert!(count > 0, "{file} has no block to run");
    let mut unshare = command(["unshare"]);
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.args(["--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "bash", "-c", &script]);
    let path = std::env::var("PATH").expect("there is a path");
    unshare.env_clear().env("PATH", format!("{}:{path}", programs.display()));
    unshare.env("HOME", at.path()).env("MINIO", tools().join("bin/minio"));
    run(unshare.current_dir(&work)).await;
}

/// Chapters with blocks that are run, each by a test.
const CHAPTERS: [&str; 11] = [
    "docs/backup.md",
    "docs/buckets.md",
    "docs/clones.md",
    "docs/configuration.md",
    "docs/getting-started.md",
    "docs/import.md",
    "docs/monitoring.md",
    "docs/renaming.md",
    "docs/resizing.md",
    "docs/snapshots.md",
    "docs/undelete.md",
];

#[tokio::test]
#[ignore = "needs MinIO, QEMU, curl, iproute2, libnbd, util-linux"]
async fn backup() {
    typed("docs/backup.md").await;
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, curl, iproute2, libnbd, util-linux"]
async fn buckets() {
    typed("docs/buckets.md").await;
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, curl, iproute2, libnbd, util-linux"]
async fn clones() {
    typed("docs/clones.md").await;
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, curl, iproute2, libnbd, util-linux"]
async fn configuration() {
    typed("docs/configuration.md").await;
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, curl, iproute2, libnbd, util-linux"]
async fn getting_started() {
    typed("docs/getting-started.md").await;
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, curl, iproute2, libnbd, util-linux"]
async fn import_and_export() {
    typed("docs/import.md").await;
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, curl, iproute2, libnbd, util-linux"]
async fn monitoring() {
    typed("docs/monitoring.md").await;
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, curl, iproute2, libnbd, util-linux"]
async fn renaming() {
    typed("docs/renaming.md").await;
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, curl, iproute2, libnbd, util-linux"]
async fn resizing() {
    typed("docs/resizing.md").await;
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, curl, iproute2, libnbd, util-linux"]
async fn snapshots() {
    typed("docs/snapshots.md").await;
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, curl, iproute2, libnbd, util-linux"]
async fn undelete() {
    typed("docs/undelete.md").await;
}

#[test]
fn every_chapter_with_blocks_to_run_is_run() {
    let is_run = |(file, text): &(String, String)| {
        blocks(file, text).iter().any(|block| matches!(block.mark(), Some(Mark::Run(_))))
    };
    let found: Vec<String> = documents().into_iter().filter(is_run).map(|(file, _)| file).collect();
    assert_eq!(found, CHAPTERS);
}
