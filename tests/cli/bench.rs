//! `cairn bench store` on a store in a directory.

use std::collections::BTreeSet;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::tempdir;

use super::{Gateway, cairn, fail, succeed};

/// Returns the paths of all files and directories below a directory. The store keeps its lock files.
fn tree(at: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(at).expect("a directory") {
        let path = entry.expect("an entry").path();
        found.insert(path.display().to_string());
        if path.is_dir() && !path.ends_with("~lock") {
            found.extend(tree(&path));
        }
    }
    found
}

#[test]
fn put_and_get_are_measured_and_nothing_is_left() {
    let at = tempdir().unwrap();
    let at = at.path();
    succeed(at, "volume create disk 1MiB");
    let before = tree(at);
    let line = "bench store file://./cairn-data --size 64KiB --concurrency 4 --bytes 1MiB --seconds 60";
    let json: Value = serde_json::from_str(&succeed(at, &format!("{line} --json"))).expect("JSON");
    assert_eq!(json["store"], "file://./cairn-data");
    assert_eq!((&json["size_bytes"], &json["range_bytes"]), (&65_536.into(), &4_096.into()));
    assert_eq!(json["concurrency"], 4);
    for (name, requests) in [("put", 16), ("get", 16), ("get_range", 256)] {
        let found = &json[name];
        assert_eq!((&found["requests"], &found["bytes"]), (&requests.into(), &1_048_576.into()), "{name}");
        assert_eq!(found["retries"], 0, "{name}");
        let number = |value: &Value| value.as_f64().expect("a number");
        let seconds = number(&found["seconds"]);
        let rates = [(1_048_576.0, "bytes_per_second"), (f64::from(requests), "requests_per_second")];
        for (amount, rate) in rates {
            assert!((number(&found[rate]) * seconds / amount - 1.0).abs() < 1e-6, "{name} {rate}: {found}");
        }
        let latency = ["p50", "p90", "p99", "max"].map(|name| number(&found["latency_seconds"][name]));
        assert!(latency[0] > 0.0 && latency.is_sorted() && latency[3] <= seconds, "{name}: {latency:?}");
    }
    let table = succeed(at, line);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0].join(" "), "file://./cairn-data, 4 requests at a time");
    assert_eq!(lines[1][..3], ["REQUEST", "SIZE", "REQUESTS"]);
    assert_eq!((&lines[2][..3], &lines[3][..3]), (&["PUT", "64KiB", "16"][..], &["GET", "64KiB", "16"][..]));
    assert_eq!(lines[4][..4], ["GET", "range", "4KiB", "256"]);
    assert_eq!(tree(at), before);
}

#[test]
fn a_signal_ends_it_early_and_nothing_is_left() {
    for (signal, name) in [(Signal::INT, "SIGINT"), (Signal::TERM, "SIGTERM"), (Signal::HUP, "SIGHUP")] {
        let at = tempdir().unwrap();
        let at = at.path();
        succeed(at, "volume create disk 1MiB");
        let before = tree(at);
        let line = "bench store file://./cairn-data --size 4KiB --concurrency 2 --seconds 600";
        let mut bench = Gateway::spawn(cairn(at, line));
        let probes = at.join("cairn-data/probe");
        let of_bench = |path: &String| path.contains("/bench-");
        while !tree(&probes).iter().any(of_bench) {
            std::thread::yield_now();
        }
        bench.signal(signal);
        let (_, run) = bench.end();
        assert_eq!((run.code, run.out.as_str()), (Some(1), ""), "{}", run.err);
        assert!(run.err.contains(&format!("stopped by {name}")), "{}", run.err);
        assert_eq!(tree(at), before);
    }
}

#[test]
fn arguments_that_contradict_a_setting_or_each_other_are_refused() {
    let at = tempdir().unwrap();
    let at = at.path();
    std::fs::write(at.join("cairn.toml"), "[store]\nconcurrency = 8\n").unwrap();
    for (arguments, why) in [
        ("--concurrency 9 --config cairn.toml", "store.concurrency, which is 8"),
        ("--size 2MiB --bytes 1MiB", "less than one object"),
        ("--size 64MiB --concurrency 64", "more than 1GiB"),
        ("--size 4M", "ambiguous"),
    ] {
        let error = fail(at, &format!("bench store file://./absent {arguments}"), 2);
        assert!(error.contains(why), "{arguments}: {error}");
    }
    assert!(fail(at, "bench store http://x/y", 2).contains("s3://bucket/prefix"));
    assert!(!at.join("absent").exists());
}
