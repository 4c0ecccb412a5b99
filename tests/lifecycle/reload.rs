//! SIGHUP: what can change without a restart changes, the rest is named, and a mistake changes nothing.

use rustix::process::Signal;

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::files::noise;
use crate::support::process::{command, finish, run};

/// Signals, and waits for a line with these words that was not there before.
async fn reloads(gateway: &mut Gateway, words: &str) {
    let count = |lines: &[String]| lines.iter().filter(|line| line.contains(words)).count();
    let before = count(&gateway.process.output().lines().map(str::to_owned).collect::<Vec<_>>());
    gateway.process.signal(Signal::HUP);
    gateway.process.wait_until(words, |lines| (count(lines) > before).then_some(())).await;
}

#[tokio::test]
async fn a_reload_takes_what_it_can_and_names_the_rest() {
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
    reloads(&mut gateway, "settings read again: cache.dirty, log.level, volumes.create changed").await;
    let output = gateway.process.output();
    assert!(output.contains("cache.clean, lease.ttl changed, which takes a restart"), "{output}");
    assert_eq!(size(&gateway, "b").await.as_deref(), Some("33554432"));
    assert_eq!(size(&gateway, "").await, None, "of two volumes none is the default");
    gateway.process.wait_for("debug is logged", |line| line.contains("DEBUG").then_some(())).await;

    // More than may be dirty goes through all the same.
    let image = files.path().join("image");
    std::fs::write(&image, noise(1, 24 << 20)).expect("an image can be written");
    run(command(["nbdcopy", "--flush"]).arg(&image).arg(gateway.uri("b"))).await;

    for wrong in ["[volumes]\ncreate = [\"a=1G\"]\n", "[volume]\nopen = []\n", "[cache]\ndirty = 0\n"] {
        write(wrong);
        reloads(&mut gateway, "the settings stay as they are").await;
    }
    write("[volumes]\ncreate = [\"b=32MiB\"]\n");
    reloads(&mut gateway, "settings read again").await;
    assert_eq!(size(&gateway, "").await.as_deref(), Some("33554432"), "one is left");
}

/// The size of an export in bytes, if it is there.
async fn size(gateway: &Gateway, export: &str) -> Option<String> {
    let done = finish(command(["nbdinfo", "--size"]).arg(gateway.uri(export))).await;
    done.status.success().then(|| done.stdout.trim().to_owned())
}
