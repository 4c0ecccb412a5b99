//! The same disk as source and target: it is refused if the program can tell, and harmless if it cannot.

use crate::support::files::{make_pipe, noise};
use crate::support::process::run;

use super::{Files, Other, Served, ends_with};

const MIB: usize = 1 << 20;

async fn refused(words: &[&str]) {
    let said = ends_with(1, words).await.stderr;
    assert!(said.contains("are the same disk, or overlap"), "{words:?}: {said}");
}

#[tokio::test]
async fn a_file_is_not_copied_onto_itself_under_any_name() {
    let files = Files::new();
    let image = files.write("image", &noise(1, MIB));
    std::os::unix::fs::symlink("image", files.path("symlink")).unwrap();
    std::fs::hard_link(&image, files.path("hard link")).unwrap();
    let other_way = files.text("../").replace("../", &format!("../{}/image", file_name(&files)));
    for again in [image.clone(), files.text("symlink"), files.text("hard link"), other_way] {
        for (source, target) in [(&image, &again), (&again, &image)] {
            refused(&["copy", source, target]).await;
            refused(&["mirror", source, target, "--no-tls", "--port", "0"]).await;
            assert!(std::fs::read(&image).unwrap() == noise(1, MIB), "{source} to {target} lost data");
        }
    }
}

fn file_name(files: &Files) -> String {
    files.path("image").parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_file_is_not_copied_to_or_from_a_server_of_it() {
    let files = Files::new();
    let (image, other) = (files.write("image", &noise(1, MIB)), files.write("other", &noise(2, MIB)));
    std::fs::hard_link(&image, files.path("link")).unwrap();
    let served = Served::start(&["serve", &image]).await;
    let read_only = Served::start(&["serve", &files.text("link"), "--read-only"]).await;
    let by_name = served.uri.replace("127.0.0.1", "localhost");
    for (source, target) in [
        (&served.uri, &image),
        (&image, &served.uri),
        (&read_only.uri, &image),
        (&served.uri, &served.uri),
        (&served.uri, &by_name),
        (&read_only.uri, &served.uri),
    ] {
        refused(&["copy", source, target]).await;
        refused(&["mirror", source, target, "--no-tls", "--port", "0"]).await;
        assert!(std::fs::read(&image).unwrap() == noise(1, MIB), "{source} to {target} lost data");
    }
    // A mirror serves both of its disks.
    let (third, fourth) = (files.sparse("third", 1 << 20), files.sparse("fourth", 1 << 20));
    let mirror = Served::start(&["mirror", &third, &fourth]).await;
    refused(&["copy", &mirror.uri, &third]).await;
    refused(&["copy", &fourth, &mirror.uri]).await;
    // Two different disks are not affected.
    ends_with(0, &["copy", &served.uri, &other]).await;
    assert!(std::fs::read(&other).unwrap() == noise(1, MIB));
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn an_export_is_not_copied_onto_itself() {
    let files = Files::new();
    let image = files.write("image", &noise(1, MIB));
    let server = Other::qemu(&["--export-name=disk", &image]).await;
    std::os::unix::fs::symlink(&server.socket, files.path("socket")).unwrap();
    let by_link = format!("nbd+unix:///disk?socket={}", files.text("socket"));
    refused(&["copy", &server.uri("disk"), &server.uri("disk")]).await;
    refused(&["copy", &server.uri("disk"), &by_link]).await;
    refused(&["mirror", &by_link, &server.uri("disk"), "--no-tls", "--port", "0"]).await;
    assert!(std::fs::read(&image).unwrap() == noise(1, MIB));
}

/// Servers of other programs do not report which file they serve.
#[tokio::test]
#[ignore = "needs nbdkit"]
async fn nothing_is_lost_if_the_same_disk_is_not_recognised() {
    let files = Files::new();
    let mut bytes = noise(1, 4 * MIB);
    bytes[MIB..2 * MIB].fill(0);
    let image = files.write("image", &bytes);
    let server = Other::nbdkit(&["file", &image]).await;
    ends_with(0, &["copy", &server.uri(""), &image]).await;
    assert!(std::fs::read(&image).unwrap() == bytes);
    ends_with(0, &["copy", &image, &server.uri("")]).await;
    assert!(std::fs::read(&image).unwrap() == bytes);
}

#[tokio::test]
async fn a_source_that_cannot_be_opened_leaves_the_target_unchanged() {
    let files = Files::new();
    let image = files.write("image", &noise(1, MIB));
    let nowhere = format!("nbd+unix:///?socket={}", files.text("none"));
    for source in [files.text("missing"), nowhere, files.text("")] {
        ends_with(1, &["copy", &source, &image]).await;
        assert!(std::fs::read(&image).unwrap() == noise(1, MIB), "{source}");
    }
}

/// Waiting for the other end of a pipe could take forever.
#[tokio::test]
async fn a_pipe_is_refused_without_waiting() {
    let files = Files::new();
    let image = files.write("image", &noise(1, MIB));
    make_pipe(&files.path("pipe"));
    for words in [["copy", &files.text("pipe"), &image], ["copy", &image, &files.text("pipe")]] {
        assert!(ends_with(1, &words).await.stderr.contains("neither a file nor a block device"));
    }
    assert!(std::fs::read(&image).unwrap() == noise(1, MIB));
}

#[tokio::test]
async fn standard_input_and_output_are_not_disks_and_no_such_file_is_created() {
    let files = Files::new();
    let image = files.write("image", &noise(1, MIB));
    for words in [["copy", "-", &image], ["copy", &image, "-"]] {
        let mut cairn = super::cairn_nbd(words);
        let done = crate::support::process::finish(cairn.current_dir(files.path(""))).await;
        assert_eq!(done.status.code(), Some(2), "{done:?}");
        assert!(done.stderr.contains("./-"), "{done:?}");
    }
    assert!(!files.path("-").exists());
    let mut cairn = super::cairn_nbd(["copy", &image, "./-"]);
    run(cairn.current_dir(files.path(""))).await;
    assert!(std::fs::read(files.path("-")).unwrap() == noise(1, MIB));
}
