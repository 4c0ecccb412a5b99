//! SIGHUP: settings that can change at run time take effect, the log names the others, and a mistake changes
//! nothing.

use rustix::process::Signal;

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::certificates::Authority;
use crate::support::files::noise;
use crate::support::process::{command, finish, free_port, run};

/// Sends SIGHUP, and waits for a new line with these words.
async fn reloads(gateway: &mut Gateway, words: &str) {
    let count = |lines: &[String]| lines.iter().filter(|line| line.contains(words)).count();
    let before = count(&gateway.process.output().lines().map(str::to_owned).collect::<Vec<_>>());
    gateway.process.signal(Signal::HUP);
    gateway.process.wait_until(words, |lines| (count(lines) > before).then_some(())).await;
}

#[tokio::test]
#[ignore = "needs libnbd"]
async fn a_reload_applies_what_it_can_and_names_the_rest() {
    let store = Store::directory();
    let files = tempfile::tempdir().expect("a directory for the settings");
    let path = files.path().join("cairn.toml");
    let write = |text: &str| std::fs::write(&path, text).expect("the settings can be written");
    write("[volumes]\ncreate = [\"a=64MiB\"]\n");
    let mut gateway = Setup::new(&store).tcp().config(&path).start().await;
    assert_eq!(size(&gateway, "").await.as_deref(), Some("67108864"), "one volume is the default");
    assert_eq!(size(&gateway, "b").await, None);

    write(
        "[volumes]\ncreate = [\"a=64MiB\", \"b=32MiB\"]\n[log]\nlevel = \"debug\"\n\
         [cache]\ndirty = \"8MiB\"\nclean = \"32MiB\"\n[lease]\nttl = \"20s\"\n",
    );
    reloads(&mut gateway, "settings reloaded: cache.clean, cache.dirty, log.level, volumes.create changed")
        .await;
    let output = gateway.process.output();
    assert!(output.contains("lease.ttl changed; restart the gateway to apply this"), "{output}");
    assert_eq!(size(&gateway, "b").await.as_deref(), Some("33554432"));
    assert_eq!(size(&gateway, "").await, None, "of two volumes none is the default");
    gateway.process.wait_for("debug is logged", |line| line.contains("DEBUG").then_some(())).await;

    // More data than may be dirty can still be written.
    let image = files.path().join("image");
    std::fs::write(&image, noise(1, 24 << 20)).expect("an image can be written");
    run(command(["nbdcopy", "--flush"]).arg(&image).arg(gateway.uri("b"))).await;

    for wrong in ["[volumes]\ncreate = [\"a=1G\"]\n", "[volume]\nopen = []\n", "[cache]\ndirty = 0\n"] {
        write(wrong);
        reloads(&mut gateway, "the settings were not changed").await;
    }
    write("[volumes]\ncreate = [\"b=32MiB\"]\n");
    reloads(&mut gateway, "settings reloaded").await;
    assert_eq!(size(&gateway, "").await.as_deref(), Some("33554432"), "one is left");
}

/// A volume that cannot be opened does not prevent other changes, and the next reload tries it again.
#[tokio::test]
#[ignore = "needs libnbd"]
async fn a_volume_that_cannot_be_opened_is_named_and_retried() {
    let store = Store::directory();
    let files = tempfile::tempdir().expect("a directory for the settings");
    let path = files.path().join("cairn.toml");
    let write = |text: &str| std::fs::write(&path, text).expect("the settings can be written");
    write("[volumes]\ncreate = [\"a=64MiB\"]\n");
    let admin = format!("127.0.0.1:{}", free_port());
    let setup = Setup::new(&store).tcp().config(&path).env("CAIRN_ADMIN__LISTEN", &admin);
    let mut gateway = setup.start().await;
    let health = async || finish(&mut store.cairn(["health", &format!("http://{admin}/health/ready")])).await;
    assert!(health().await.status.success());
    write("[volumes]\ncreate = [\"a=64MiB\"]\nopen = [\"later\"]\n[cache]\ndirty = \"8MiB\"\n");
    reloads(&mut gateway, "settings reloaded: cache.dirty, volumes.open changed").await;
    gateway
        .process
        .wait_for("the volume is named", |line| {
            (line.contains("not every configured volume is open") && line.contains("later")).then_some(())
        })
        .await;
    let unready = health().await;
    assert!(!unready.status.success() && unready.stderr.contains("later"), "{unready:?}");
    run(&mut store.cairn(["volume", "create", "later", "32MiB", "--store", &store.url()])).await;
    reloads(&mut gateway, "settings reloaded: no setting that can change at run time has changed").await;
    assert_eq!(size(&gateway, "later").await.as_deref(), Some("33554432"));
    assert!(health().await.status.success());
}

/// After a reload, a token that was changed in its file is valid, and the old one is not.
#[tokio::test]
#[ignore = "needs curl"]
async fn a_new_token_replaces_the_old_one() {
    let store = Store::directory();
    let files = tempfile::tempdir().expect("a directory for the token");
    let path = files.path().join("token");
    let write = |token: &str| std::fs::write(&path, token).expect("the token can be written");
    write("the-first-of-two-tokens\n");
    let admin = format!("127.0.0.1:{}", free_port());
    let setup = Setup::new(&store).create("a", "64MiB").tcp().env("CAIRN_ADMIN__LISTEN", &admin);
    let mut gateway = setup.env("CAIRN_ADMIN__TOKEN_FILE", &path.display().to_string()).start().await;
    let ask = async |token: &str| {
        let mut curl = command(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}"]);
        curl.args(["-H", &format!("Authorization: Bearer {token}")]);
        run(curl.arg(format!("http://{admin}/api/v1/volumes"))).await
    };
    assert_eq!(ask("the-first-of-two-tokens").await, "200");
    write("the-second-of-two-tokens\n");
    assert_eq!(ask("the-second-of-two-tokens").await, "401");
    reloads(&mut gateway, "settings reloaded").await;
    assert_eq!(ask("the-second-of-two-tokens").await, "200");
    assert_eq!(ask("the-first-of-two-tokens").await, "401");
    write("short\n");
    reloads(&mut gateway, "the settings were not changed").await;
    assert_eq!(ask("the-second-of-two-tokens").await, "200");
}

/// The listener for clients that cannot use TLS remains, although the settings no longer contain it. Removing
/// it takes a restart.
#[tokio::test]
#[ignore = "needs libnbd"]
async fn tls_is_not_required_while_oldstyle_clients_are_served() {
    let (store, authority) = (Store::directory(), Authority::new());
    let files = tempfile::tempdir().expect("a directory for the settings");
    let path = files.path().join("cairn.toml");
    let own = authority.server();
    let write = |server: &str, tls: &str| {
        let (certificate, key) = (own.certificate.display(), own.key.display());
        let tls = format!("{tls}\ncertificate = \"{certificate}\"\nkey = \"{key}\"");
        let text = format!("[volumes]\ncreate = [\"a=64MiB\"]\n[server]\n{server}\n[tls]\n{tls}\n");
        std::fs::write(&path, text).expect("the settings can be written");
    };
    let port = free_port();
    write(&format!("oldstyle = [\"127.0.0.1:{port}=a\"]"), "mode = \"allowed\"");
    let mut gateway = Setup::new(&store).tcp().config(&path).start().await;
    write("", "mode = \"required\"");
    reloads(&mut gateway, "the settings were not changed: server.oldstyle").await;
    assert_eq!(size(&gateway, "a").await.as_deref(), Some("67108864"), "plain clients are served on");
}

/// Returns the resident memory of the process in MiB.
fn resident_mib(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process.id()));
    let status = status.expect("a running process has a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel reports it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of KiB") / 1024
}

#[tokio::test]
#[ignore = "needs libnbd"]
async fn a_smaller_cache_releases_memory() {
    let store = Store::directory();
    let files = tempfile::tempdir().expect("a directory for the settings");
    let path = files.path().join("cairn.toml");
    let write = |clean: &str| {
        let text = format!("[volumes]\ncreate = [\"a=1GiB\"]\n[cache]\nclean = \"{clean}\"\n");
        std::fs::write(&path, text).expect("the settings can be written");
    };
    write("256MiB");
    let mut gateway = Setup::new(&store).tcp().config(&path).start().await;
    let image = files.path().join("image");
    std::fs::write(&image, noise(1, 192 << 20)).expect("an image can be written");
    run(command(["nbdcopy", "--flush"]).arg(&image).arg(gateway.uri("a"))).await;
    let full = resident_mib(&gateway);
    assert!(full > 192, "the cache is full of what was written: {full} MiB");
    write("16MiB");
    reloads(&mut gateway, "settings reloaded: cache.clean changed").await;
    let small = resident_mib(&gateway);
    println!("{full} MiB resident with 192 MiB cached, {small} MiB with a bound of 16 MiB");
    assert!(small < full - 128, "{small} MiB of {full} MiB stay");
    let copy = files.path().join("copy");
    run(command(["nbdcopy"]).arg(gateway.uri("a")).arg(&copy)).await;
    let read = std::fs::read(&copy).expect("a copy was made");
    assert!(read.starts_with(&std::fs::read(&image).expect("the image")), "all of it is there");
}

/// Returns the size of an export in bytes, if it exists.
async fn size(gateway: &Gateway, export: &str) -> Option<String> {
    let done = finish(command(["nbdinfo", "--size"]).arg(gateway.uri(export))).await;
    done.status.success().then(|| done.stdout.trim().to_owned())
}
