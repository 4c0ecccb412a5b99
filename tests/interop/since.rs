//! What has changed since a snapshot, as libnbd's tools and QEMU read it from the export of a later one.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde_json::Value;

use crate::support::cairn::{Gateway, Setup, Store, program};
use crate::support::files::{assert_same, noise};
use crate::support::process::{command, finish, run};

const SIZE: u64 = 64 << 20;
/// Everything is written in units of this size, which no comparison divides.
const UNIT: u64 = 64 << 10;

/// A gateway on a Unix socket with a volume that has two snapshots, `a` and `b`.
struct Snapshots {
    gateway: Gateway,
    files: tempfile::TempDir,
    store: Store,
    /// What was written between the two, in order.
    changed: Vec<Range<u64>>,
}

impl Snapshots {
    async fn take() -> Self {
        let (store, files) = (Store::directory(), tempfile::tempdir().expect("a directory for the test"));
        let admin = files.path().join("admin.sock");
        let setup = Setup::new(&store).create("disk", "64MiB").unix(&files.path().join("nbd.sock"));
        let setup = setup.env("CAIRN_ADMIN__SOCKET", &admin.display().to_string());
        let gateway = setup.env("CAIRN_ADMIN__LISTEN", "none").start().await;
        let this = Self {
            gateway,
            files,
            store,
            changed: vec![UNIT..3 * UNIT, 10 * UNIT..11 * UNIT, (40 << 20)..(41 << 20), SIZE - UNIT..SIZE],
        };
        // Two whole chunks, of which only a part changes, so that no block is moved.
        this.write(1, &[0..4 << 20, (40 << 20)..(44 << 20)]).await;
        this.snapshot("a").await;
        this.write(2, &this.changed).await;
        this.snapshot("b").await;
        // What is written afterwards is in neither of them.
        this.write(3, &[0..UNIT, 20 * UNIT..21 * UNIT]).await;
        this
    }

    fn uri(&self, export: &str) -> String {
        self.gateway.uri(export)
    }

    /// Writes noise to these ranges of the volume, and makes it durable.
    async fn write(&self, seed: u64, ranges: &[Range<u64>]) {
        let image = self.files.path().join(format!("noise-{seed}"));
        std::fs::write(&image, noise(seed, 4 << 20)).expect("a file can be written");
        let mut script = format!("noise = open({:?}, 'rb').read()\n", image.display().to_string());
        for Range { start, end } in ranges {
            script += &format!("h.pwrite(noise[:{}], {start})\n", end - start);
        }
        script += "h.flush()\n";
        run(&mut command(["/usr/bin/python3", "-m", "nbd", "-u", &self.uri("disk"), "-c", &script])).await;
    }

    async fn snapshot(&self, name: &str) {
        let by = format!("--gateway={}", self.files.path().join("admin.sock").display());
        run(&mut self.store.cairn(["snapshot", "create", &format!("disk@{name}"), &by])).await;
    }
}

/// The ranges of a list of extents that have a mark.
fn marked(extents: &Value, keys: [&str; 2], is_marked: impl Fn(&Value) -> bool) -> Vec<Range<u64>> {
    let number = |extent: &Value, key: &str| extent[key].as_u64().expect("a number");
    let mut at = 0;
    let mut found = Vec::new();
    for extent in extents.as_array().expect("a list of extents") {
        let (start, length) = (number(extent, keys[0]), number(extent, keys[1]));
        assert_eq!(start, at, "no gap: {extents}");
        at += length;
        if is_marked(extent) {
            found.push(start..at);
        }
    }
    assert_eq!(at, SIZE, "the whole disk: {extents}");
    found
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("it is JSON")
}

#[tokio::test]
#[ignore = "needs libnbd"]
async fn nbdinfo_lists_the_contexts_and_maps_what_is_dirty() {
    let snapshots = Snapshots::take().await;
    let uri = snapshots.uri("disk@b");
    let info = json(&run(&mut command(["nbdinfo", "--json", &uri])).await);
    let contexts = serde_json::json!(["base:allocation", "cairn:changed-since=a", "qemu:dirty-bitmap:a"]);
    assert_eq!(info["exports"][0]["contexts"], contexts, "{info}");
    let live = json(&run(&mut command(["nbdinfo", "--json", &snapshots.uri("disk")])).await);
    assert_eq!(live["exports"][0]["contexts"], serde_json::json!(["base:allocation"]), "{live}");

    let mut states = Vec::new();
    for context in ["qemu:dirty-bitmap:a", "cairn:changed-since=a"] {
        let map = run(&mut command(["nbdinfo", "--json", &format!("--map={context}"), &uri])).await;
        let dirty = marked(&json(&map), ["offset", "length"], |extent| extent["type"] == 1);
        assert_eq!(dirty, snapshots.changed, "{context}: {map}");
        states.push(map);
    }
    // QEMU's name is known to libnbd, which translates the status.
    assert!(states[0].contains("\"dirty\"") && states[0].contains("\"clean\""), "{}", states[0]);
    // Our own client shows the same.
    let words = ["nbd", "info", "--json", "--map=cairn:changed-since=a", &uri];
    let ours = json(&run(program().args(words)).await);
    let dirty = marked(&ours["map"], ["offset", "length"], |extent| extent["dirty"] == true);
    assert_eq!(dirty, snapshots.changed, "{ours}");
    // The other way round, the same ranges differ.
    let earlier = snapshots.uri("disk@a");
    let back = run(&mut command(["nbdinfo", "--json", "--map=qemu:dirty-bitmap:b", &earlier])).await;
    assert_eq!(marked(&json(&back), ["offset", "length"], |it| it["type"] == 1), snapshots.changed, "{back}");
    let unknown = finish(&mut command(["nbdinfo", "--map=qemu:dirty-bitmap:none", &uri])).await;
    assert!(!unknown.status.success(), "{}", unknown.stdout);
}

/// QEMU shows the dirty ranges of its option `x-dirty-bitmap` as those without data.
#[tokio::test]
#[ignore = "needs QEMU"]
async fn qemu_maps_what_is_dirty() {
    let snapshots = Snapshots::take().await;
    let socket = snapshots.files.path().join("nbd.sock");
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export=disk@b,x-dirty-bitmap=qemu:dirty-bitmap:a",
        socket.display()
    );
    let map = run(&mut command(["qemu-img", "map", "--output=json", "--image-opts", &image])).await;
    let dirty = marked(&json(&map), ["start", "length"], |extent| extent["data"] == false);
    assert_eq!(dirty, snapshots.changed, "{map}");
}

/// An incremental backup: only the dirty ranges of `b` are read, and make `b` of a copy of `a`.
#[tokio::test]
#[ignore = "needs libnbd"]
async fn the_dirty_ranges_bring_a_copy_up_to_date() {
    let snapshots = Snapshots::take().await;
    let path = |name: &str| snapshots.files.path().join(name);
    let copied = async |export: &str, to: &Path| {
        run(command(["nbdcopy", &snapshots.uri(export)]).arg(to)).await;
    };
    let (copy, whole) = (path("copy"), path("whole"));
    copied("disk@a", &copy).await;
    copied("disk@b", &whole).await;
    assert!(std::fs::read(&copy).unwrap() != std::fs::read(&whole).unwrap(), "they differ at first");
    let script = "import sys\n\
        dirty = []\n\
        def extents(context, offset, entries, error):\n\
        \x20   if context == 'qemu:dirty-bitmap:a':\n\
        \x20       for length, flags in zip(entries[::2], entries[1::2]):\n\
        \x20           if flags & 1: dirty.append((offset, length))\n\
        \x20           offset += length\n\
        \x20       global at\n\
        \x20       at = offset\n\
        h.add_meta_context('base:allocation')\n\
        h.add_meta_context('qemu:dirty-bitmap:a')\n\
        h.connect_uri(sys.argv[1])\n\
        at, size = 0, h.get_size()\n\
        while at < size:\n\
        \x20   h.block_status(size - at, at, extents)\n\
        with open(sys.argv[2], 'r+b') as copy:\n\
        \x20   for offset, length in dirty:\n\
        \x20       for part in range(offset, offset + length, 1 << 20):\n\
        \x20           copy.seek(part)\n\
        \x20           copy.write(h.pread(min(1 << 20, offset + length - part), part))\n\
        print(sum(length for _, length in dirty))\n";
    let script = format!("import nbd\nh = nbd.NBD()\n{script}");
    let uri = snapshots.uri("disk@b");
    let read = run(command(["/usr/bin/python3", "-c", &script, &uri]).arg(&copy)).await;
    let expected: u64 = snapshots.changed.iter().map(|range| range.end - range.start).sum();
    assert_eq!(read.trim(), expected.to_string());
    assert_same(&copy, &whole);
    // Not a byte more was needed: each range that was written differs.
    let (before, after) = (path("before"), File::open(&whole).unwrap());
    copied("disk@a", &before).await;
    let before = File::open(&before).unwrap();
    for range in &snapshots.changed {
        let [mut one, mut other] = [vec![0; 512], vec![0; 512]];
        before.read_exact_at(&mut one, range.start).unwrap();
        after.read_exact_at(&mut other, range.start).unwrap();
        assert!(one != other, "{range:?}");
    }
}
