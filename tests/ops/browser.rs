//! The admin server of a running gateway, seen by programs of others: a browser, and a fuzzer of APIs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::minio::tools;
use crate::support::process::{Process, command, free_port, run, within};

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
fn pictures_directory(otherwise: &Path) -> PathBuf {
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

/// A client that writes, reads and flushes pages of the first half of the disk, a few at a time, for two minutes
/// at most.
fn busy_client(uri: &str) -> Process {
    let script = "import random, time\n\
        end = time.monotonic() + 120\n\
        pick = random.Random(1)\n\
        while time.monotonic() < end:\n\
        \x20   for _ in range(pick.randrange(1, 8)):\n\
        \x20       at = pick.randrange(512) * 65536\n\
        \x20       h.pwrite(bytes([pick.randrange(256)]) * 65536, at)\n\
        \x20       h.pread(65536, pick.randrange(512) * 65536)\n\
        \x20   time.sleep(pick.random() / 5)\n\
        \x20   h.flush()\n\
        \x20   h.pwrite(b'x' * 4096, (64 << 20) - 4096)\n";
    Process::spawn("nbdsh", &mut command(["/usr/bin/python3", "-m", "nbd", "-u", uri, "-c", script]))
}

/// Opens the page in a browser and checks it. Each of these pictures must be taken.
async fn look(scenario: &str, url: &str, pictures: &[&str]) {
    let files = tempfile::tempdir().expect("a directory for pictures");
    let directory = pictures_directory(files.path());
    let mut look = command([tools().join("playwright/bin/python")]);
    run(look.args([PAGE, scenario, url]).arg(&directory).arg(TOKEN)).await;
    for name in pictures {
        let bytes = std::fs::read(directory.join(format!("{name}.png"))).expect("a picture was taken");
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 4096, "{name} has {} bytes", bytes.len());
    }
}

#[tokio::test]
#[ignore = "needs Chromium, libnbd"]
async fn the_status_page_shows_the_disk_in_a_browser() {
    let store = Store::directory();
    let (gateway, url) = gateway(&store, "64MiB", None).await;
    let client = client(&gateway.uri("disk")).await;
    let pictures = ["list-light", "list-dark", "list-phone", "volume-light", "volume-dark", "volume-phone"];
    look("load", &url, &pictures).await;
    drop(client);
}

/// The picture that the README shows.
#[tokio::test]
#[ignore = "needs Chromium, libnbd"]
async fn the_status_page_shows_a_disk_under_load() {
    let store = Store::directory();
    let port = free_port();
    let setup = Setup::new(&store).create("disk", "64MiB").tcp();
    let setup = setup.env("CAIRN_ADMIN__LISTEN", &format!("127.0.0.1:{port}"));
    // Less than what is stored.
    let gateway = setup.env("CAIRN_CACHE__CLEAN", "16MiB").start().await;
    let url = format!("http://127.0.0.1:{port}/");
    let client = busy_client(&gateway.uri("disk"));
    reaches(&url, "cairn_commits_total", 1.0).await;
    look("busy", &url, &["busy-list-light", "busy-list-dark", "busy-light", "busy-dark"]).await;
    drop(client);
}

/// Flush, checkpoint, create, delete and drain: each is confirmed on the page with the token, and takes effect.
#[tokio::test]
#[ignore = "needs Chromium, libnbd"]
async fn every_action_of_the_status_page_is_confirmed_and_takes_effect() {
    let store = Store::directory();
    let files = tempfile::tempdir().expect("a directory for the token");
    let token = files.path().join("token");
    std::fs::write(&token, TOKEN).expect("the token can be written");
    let port = free_port();
    let mut setup = Setup::new(&store).create("disk", "64MiB").tcp();
    for (setting, value) in [
        ("ADMIN__LISTEN", format!("127.0.0.1:{port}")),
        ("ADMIN__TOKEN_FILE", token.display().to_string()),
        ("ADMIN__READ_WITHOUT_TOKEN", "true".to_owned()),
        // Nothing is committed or folded unless somebody asks for it.
        ("COMMIT__MAX_AGE", "1h".to_owned()),
        ("JOURNAL__MAX_AGE", "1h".to_owned()),
        ("SERVER__FAREWELL", "hang-up".to_owned()),
    ] {
        setup = setup.env(&format!("CAIRN_{setting}"), &value);
    }
    let mut gateway = setup.start().await;
    let client = client(&gateway.uri("disk")).await;
    look("actions", &format!("http://127.0.0.1:{port}/"), &["sign-in"]).await;
    let status = gateway.process.exit().await;
    assert!(status.success(), "the gateway has ended: {status}: {}", gateway.process.output());
    drop(client);
}

/// Runs a scenario where the API also asks for the token to read.
async fn look_with_a_token(scenario: &str, pictures: &[&str]) {
    let store = Store::directory();
    let files = tempfile::tempdir().expect("a directory for the token");
    let token = files.path().join("token");
    std::fs::write(&token, TOKEN).expect("the token can be written");
    let (_gateway, url) = gateway(&store, "64MiB", Some(&token)).await;
    look(scenario, &url, pictures).await;
}

#[tokio::test]
#[ignore = "needs Chromium"]
async fn the_status_page_asks_once_for_the_token() {
    look_with_a_token("token", &[]).await;
}

#[tokio::test]
#[ignore = "needs Chromium"]
async fn whoever_cancels_the_dialog_for_the_token_is_not_asked_again() {
    look_with_a_token("declined", &["token-declined"]).await;
}

#[tokio::test]
#[ignore = "needs Chromium"]
async fn a_refused_token_does_not_change_the_dialog_that_is_open() {
    look_with_a_token("changed", &[]).await;
}

/// The sum of a metric's series whose labels have all of these.
async fn metric(url: &str, name: &str, labels: &[&str]) -> f64 {
    let text = run(&mut command(["curl", "--silent", "--fail", &format!("{url}metrics")])).await;
    let lines = text
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} ")));
    let values = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
    values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Waits until a metric is at least so high.
async fn reaches(url: &str, name: &str, least: f64) {
    let reached = async {
        let mut interval = tokio::time::interval(Duration::from_millis(100));
        while metric(url, name, &[]).await < least {
            interval.tick().await;
        }
    };
    within(name, reached).await;
}

/// One tab asks for all of them every two seconds, and the store for nothing. The page of a closed volume asks
/// once for its snapshots: the name, the head and the table of roots.
#[tokio::test]
#[ignore = "needs Chromium"]
async fn forty_volumes_fit_a_screen_and_an_open_tab_costs_the_store_nothing() {
    let store = Store::directory();
    for name in ["closed-1", "closed-2"] {
        run(&mut store.cairn(["volume", "create", name, "1MiB", "--store", &store.url()])).await;
    }
    let port = free_port();
    let mut setup = Setup::new(&store).tcp().env("CAIRN_ADMIN__LISTEN", &format!("127.0.0.1:{port}"));
    let size = |n: u32| if n == 0 { "3GiB" } else { "1GiB" };
    let names: Vec<String> = (0..40).map(|n| format!("vm-{n:02}={}", size(n))).collect();
    setup = setup.env("CAIRN_VOLUMES__CREATE", &names.join(","));
    let _gateway = setup.start().await;
    let url = format!("http://127.0.0.1:{port}/");
    // Whoever asks first has the store counted.
    run(&mut command(["curl", "--silent", "--fail", &format!("{url}api/v1/status")])).await;
    reaches(&url, "cairn_census_timestamp_seconds", 1.0).await;
    let asked = async || {
        let of = async |operation| metric(&url, "cairn_store_requests_total", &[operation]).await;
        (of("operation=\"get\"").await, of("operation=\"list\"").await)
    };
    let before = asked().await;
    look("many", &url, &["many", "delete"]).await;
    let (gets, lists) = before;
    assert_eq!(asked().await, (gets + 3.0, lists), "GET and LIST while the page is open");
    assert!(metric(&url, "cairn_stored_bytes", &["closed-2"]).await > 0.0, "closed volumes are counted");
}

/// It is the page that one opens in an outage.
#[tokio::test]
#[ignore = "needs Chromium, MinIO"]
async fn in_an_outage_of_the_store_the_page_and_the_api_say_what_is_open() {
    let store = Store::minio().await;
    let proxy = store.proxy().await;
    let port = free_port();
    let setup = Setup::new(&store).through(&proxy).create("disk", "64MiB").tcp();
    let setup = setup.env("CAIRN_ADMIN__LISTEN", &format!("127.0.0.1:{port}"));
    let setup = setup.env("CAIRN_LEASE__TTL", "6s").env("CAIRN_STORE__REQUEST_TIMEOUT", "1s");
    let gateway = setup.start().await;
    let url = format!("http://127.0.0.1:{port}/");
    proxy.cut();
    let script = "h.pwrite(b'x' * (1 << 20), 0)\nprint('written', flush=True)\nh.flush()\n";
    let uri = gateway.uri("disk");
    let python = ["/usr/bin/python3", "-m", "nbd", "-u", &uri, "-c", script];
    let mut client = Process::spawn("nbdsh", &mut command(python));
    client.wait_for("it has written", |line| line.contains("written").then_some(())).await;
    reaches(&url, "cairn_store_failing_seconds", 5.0).await;

    let answer = |path: &str| {
        let what = "%{http_code} %{time_total}";
        command(["curl", "--silent", "--max-time", "10", "--write-out", what, &format!("{url}{path}")])
    };
    for (path, status, word) in [
        ("api/v1/status", "200", "\"name\":\"disk\""),
        ("api/v1/volumes/disk", "200", "\"uncommitted_bytes\":1048576"),
        ("api/v1/volumes", "503", "/api/v1/status"),
    ] {
        let said = run(&mut answer(path)).await;
        let mut words = said.split(' ').rev();
        let seconds: f64 = words.next().expect("the time").parse().expect("a number");
        let code = words.next().expect("the status");
        assert!(code.ends_with(status) && said.contains(word), "{path}: {said}");
        assert!(seconds < 5.0, "{path} took {seconds} s");
    }
    look("outage", &url, &["outage"]).await;
    proxy.resume();
    assert!(client.exit().await.success(), "{}", client.output());
    reaches(&url, "cairn_commits_total", 1.0).await;
    assert!(metric(&url, "cairn_store_failing_seconds", &[]).await == 0.0, "the store answers again");
}

/// Whatever the description allows, and what it does not, is answered as it says.
#[tokio::test]
#[ignore = "needs Schemathesis, libnbd"]
async fn the_api_keeps_to_its_description_under_a_fuzzer() {
    let store = Store::directory();
    let Store::Directory(directory) = &store else { unreachable!("it is one") };
    // As many as the fuzzer may delete or bring back.
    for n in 0..8 {
        // What a creator that died leaves.
        let name = format!("unnamed-{n}");
        run(&mut store.cairn(["volume", "create", &name, "1MiB", "--store", &store.url()])).await;
        std::fs::remove_file(directory.path().join("name").join(name)).expect("it had a name");
    }
    for n in 0..24 {
        let name = format!("deleted-{n}");
        run(&mut store.cairn(["volume", "create", &name, "1MiB", "--store", &store.url()])).await;
        run(&mut store.cairn(["volume", "delete", &name, "--store", &store.url()])).await;
    }
    // The volumes and snapshots that the description has as examples.
    for name in ["image", "spare"] {
        run(&mut store.cairn(["volume", "create", name, "1MiB", "--store", &store.url()])).await;
    }
    for snapshot in ["image@golden", "image@old"] {
        run(&mut store.cairn(["snapshot", "create", snapshot, "--store", &store.url()])).await;
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
