//! The admin server of a running gateway, seen by programs of others: a browser, and a fuzzer of APIs.

use std::path::{Path, PathBuf};

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::minio::tools;
use crate::support::process::{Process, command, free_port, run};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ops/page.py");

const TOKEN: &str = "correct-horse-battery";

/// A gateway with one volume, and where its admin server is; a file with a token makes it ask for that.
async fn gateway(store: &Store, size: &str, token: Option<&Path>) -> (Gateway, String) {
    let port = free_port();
    let setup = Setup::new(store).create("disk", size).tcp();
    let mut setup = setup.env("CAIRN_ADMIN__LISTEN", &format!("127.0.0.1:{port}"));
    if let Some(token) = token {
        setup = setup.env("CAIRN_ADMIN__TOKEN_FILE", &token.display().to_string());
    }
    (setup.start().await, format!("http://127.0.0.1:{port}/"))
}

/// Where pictures go: `CAIRN_TEST_PICTURES`, to be looked at, or nowhere that stays.
fn pictures(otherwise: &Path) -> PathBuf {
    std::env::var_os("CAIRN_TEST_PICTURES").map_or_else(|| otherwise.to_owned(), PathBuf::from)
}

/// A client that stays, writes the first quarter, flushes, and writes the last block.
async fn client(uri: &str) -> Process {
    let script = "import time\n\
        for at in range(0, 16 << 20, 1 << 20): h.pwrite(b'x' * (1 << 20), at)\n\
        h.flush()\n\
        h.pwrite(b'x' * 4096, (64 << 20) - 4096)\n\
        print('written', flush=True)\n\
        while True: time.sleep(3600)\n";
    let mut process =
        Process::spawn("nbdsh", &mut command(["/usr/bin/python3", "-m", "nbd", "-u", uri, "-c", script]));
    process.wait_for("it has written", |line| line.contains("written").then_some(())).await;
    process
}

#[tokio::test]
#[ignore = "needs Chromium, libnbd"]
async fn the_status_page_shows_the_disk_in_a_browser() {
    let (store, files) = (Store::directory(), tempfile::tempdir().expect("a directory for pictures"));
    let (gateway, url) = gateway(&store, "64MiB", None).await;
    let client = client(&gateway.uri("disk")).await;
    let directory = pictures(files.path());
    let picture = |name: &str| directory.join(name);
    let mut look = command([tools().join("playwright/bin/python")]);
    look.args([PAGE, &url, "disk"]).arg(picture("light.png")).arg(picture("dark.png"));
    run(&mut look).await;
    for name in ["light.png", "dark.png"] {
        let bytes = std::fs::read(picture(name)).expect("a picture was taken");
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 4096, "{name} has {} bytes", bytes.len());
    }
    drop(client);
}

/// Whatever the description allows, and what it does not, is answered as it says.
#[tokio::test]
#[ignore = "needs Schemathesis, libnbd"]
async fn the_api_keeps_to_its_description_under_a_fuzzer() {
    let store = Store::directory();
    let Store::Directory(directory) = &store else { unreachable!("it is one") };
    for n in 0..8 {
        // What a creator that died leaves.
        let name = format!("unnamed-{n}");
        run(&mut store.cairn(["volume", "create", &name, "1MiB", "--store", &store.url()])).await;
        std::fs::remove_file(directory.path().join("name").join(name)).expect("it had a name");
    }
    let files = tempfile::tempdir().expect("a directory for its notes");
    // Nothing is changed over TCP without one.
    let token = files.path().join("token");
    std::fs::write(&token, TOKEN).expect("the token can be written");
    let (gateway, url) = gateway(&store, "64MiB", Some(&token)).await;
    let mut fuzz = command([tools().join("schemathesis/bin/schemathesis")]);
    fuzz.args(["run", &format!("{url}api/v1/openapi.json"), "--checks", "all", "--seed", "1"]);
    fuzz.args(["--header", &format!("Authorization: Bearer {TOKEN}")]);
    // It would end, as it should.
    fuzz.args(["--max-examples", "40", "--exclude-path", "/api/v1/drain", "--no-color"]);
    let said = run(fuzz.current_dir(files.path())).await;
    assert!(said.contains("No issues found"), "{said}");
    run(command(["nbdinfo"]).arg(gateway.uri("disk"))).await;
}
