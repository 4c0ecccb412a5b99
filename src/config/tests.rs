//! Tests of the configuration as a whole: sources, precedence and errors.

use std::ffi::OsString;
use std::time::Duration;

use super::*;

fn from_env(pairs: &[(&str, &str)]) -> Result<Config, Errors> {
    load(None, env(pairs), [])
}

fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn from_file(text: &str) -> Result<Config, Errors> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    load(Some(file.path()), env(&[]), [])
}

#[test]
fn without_any_source_the_defaults_apply() {
    let config = from_env(&[("HOME", "/root"), ("CAIRN_PORT", "tcp://10.0.0.1:10809")]).unwrap();
    assert_eq!(config.store.url, "file://./cairn-data");
    assert_eq!(config.store.concurrency, 64);
    assert_eq!(config.store.request_timeout, Duration::from_secs(10));
    assert_eq!((config.store.deadline, config.store.read_deadline), (None, Some(Duration::from_secs(60))));
    assert_eq!(config.store.deletion_grace, Duration::from_secs(3600));
    assert_eq!(config.server.listen, ["127.0.0.1:10809"]);
    assert_eq!((config.server.handshake_timeout, config.server.connections), (Duration::from_secs(10), 1024));
    assert_eq!((config.server.requests_in_flight, config.server.bytes_in_flight), (256, Size(64 << 20)));
    assert_eq!(config.server.total_bytes_in_flight, Size(256 << 20));
    assert_eq!(config.server.stall_timeout, Duration::from_secs(60));
    assert_eq!((config.cache.clean, config.cache.dirty), (Size(256 << 20), Size(128 << 20)));
    assert_eq!((config.commit.max_age, config.commit.max_bytes), (Duration::from_secs(5), Size(16 << 20)));
    assert_eq!(config.commit.in_flight, 8);
    assert_eq!((config.journal.max_bytes, config.journal.max_records), (Size(256 << 20), 4096));
    assert_eq!(config.lease.ttl, Duration::from_secs(30));
    assert_eq!(config.volumes.chunk_size, Size(4 << 20));
    assert!(!config.is_given("store.url"));
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "[store]\nurl = \"file:///a\"\nconcurrency = 1\nregion = \"here\"\n\
        [server]\nlisten = [\"[::1]:1\", \"unix:/s\"]\n[lease]\nttl=\"1s\"\n";
    std::fs::write(file.path(), text).unwrap();
    let variables = env(&[("CAIRN_STORE__URL", "file:///b"), ("CAIRN_STORE__CONCURRENCY", "2")]);
    let url = FlagValue::One("file:///c".to_owned());
    let listen = FlagValue::Many(vec!["[::1]:2".to_owned()]);
    let flags = [
        Flag { key: "store.url", flag: "--store", value: url },
        Flag { key: "server.listen", flag: "--listen", value: listen },
    ];
    let config = load(Some(file.path()), variables, flags).unwrap();
    assert_eq!(config.store.url, "file:///c");
    assert_eq!(config.store.concurrency, 2);
    assert_eq!(config.store.region, "here");
    assert_eq!(config.server.listen, ["[::1]:2"]);
    let refused = config.refuse("store.url", "no such place").to_string();
    assert_eq!(refused, "store.url = \"file:///c\": no such place (flag --store)");
    assert!(config.refuse("lease.ttl", "x").to_string().contains(file.path().to_str().unwrap()));
}

#[test]
fn the_environment_can_contain_text_numbers_and_lists() {
    let config = from_env(&[
        ("CAIRN_STORE__REGION", "123"),
        ("CAIRN_STORE__URL", "true"),
        ("CAIRN_STORE__ENDPOINT", "[x]"),
        ("CAIRN_SERVER__LISTEN", "127.0.0.1:1, unix:/run/cairn.sock"),
        ("CAIRN_VOLUMES__CREATE", "a=1GiB,b=2GiB"),
        ("CAIRN_CACHE__CLEAN", "1048576"),
        ("CAIRN_STORE__READ_DEADLINE", "never"),
        ("CAIRN_LEASE__TTL", "1h 30m"),
    ])
    .unwrap();
    assert_eq!((&*config.store.region, &*config.store.url, &*config.store.endpoint), ("123", "true", "[x]"));
    assert_eq!(config.server.listen, ["127.0.0.1:1", "unix:/run/cairn.sock"]);
    assert_eq!(config.volumes.create, ["a=1GiB", "b=2GiB"]);
    assert_eq!(config.cache.clean, Size(1 << 20));
    assert_eq!(config.store.read_deadline, None);
    assert_eq!(config.lease.ttl, Duration::from_secs(5400));
}

#[test]
fn an_error_names_key_value_range_and_source() {
    for (name, value, parts) in [
        ("CAIRN_STORE__CONCURRENCY", "0", ["store.concurrency", "\"0\"", "1 to 4096"]),
        ("CAIRN_STORE__CONCURRENCY", "-1", ["store.concurrency", "\"-1\"", "1 to 4096"]),
        ("CAIRN_STORE__CONCURRENCY", "many", ["whole number", "\"many\"", "1 to 4096"]),
        (
            "CAIRN_CACHE__CLEAN",
            "1G",
            ["1GiB for 1073741824 bytes", "1GB for 1000000000 bytes", "1MiB to 1PiB"],
        ),
        ("CAIRN_CACHE__CLEAN", "1KiB", ["cache.clean", "\"1KiB\"", "1MiB to 1PiB"]),
        ("CAIRN_LEASE__TTL", "30", ["lease.ttl", "\"30\"", "1s to 1day"]),
        ("CAIRN_STORE__DEADLINE", "1ms", ["store.deadline", "\"1ms\"", "1s to 1day or never"]),
        ("CAIRN_STORE__PATH_STYLE", "yes", ["store.path_style", "\"yes\"", "true or false"]),
        ("CAIRN_LOG__FORMAT", "xml", ["log.format", "\"xml\"", "human, json"]),
        ("CAIRN_STORE__TYPO", "1", ["store.typo", "unknown setting", "url, endpoint"]),
        ("CAIRN_TYPO__URL", "1", ["typo.url", "unknown setting", "store, server"]),
        ("CAIRN_STORE_URL", "1", ["CAIRN_STORE_URL", "unknown setting", "CAIRN_STORE__URL"]),
    ] {
        let message = from_env(&[(name, value)]).unwrap_err().to_string();
        for part in parts.iter().chain([&name]) {
            assert!(message.contains(part), "no {part} in: {message}");
        }
    }
}

#[test]
fn a_file_is_checked_as_the_environment_is() {
    for (text, parts) in [
        ("[store]\nconcurrency = 0", vec!["store.concurrency = 0", "1 to 4096", "file "]),
        ("[store]\nconcurrency = 1.5", vec!["store.concurrency = 1.5", "whole number"]),
        ("[lease]\nttl = 30", vec!["lease.ttl = 30", "1s to 1day"]),
        ("[server]\nlisten = [1, [2]]", vec!["server.listen", "list of strings"]),
        ("[store]\nurl = [\"a\", \"b\"]", vec!["store.url", "single text"]),
        ("[store]\ntypo = 1", vec!["unknown setting store.typo", "file "]),
        ("[stor]\nurl = 1", vec!["unknown setting stor.url", "store, server"]),
        ("store = 5", vec!["unknown setting store", "section"]),
        ("[[store]]\nurl = 1", vec!["unknown setting store", "section"]),
        ("[store\n", vec!["line 1"]),
    ] {
        let message = from_file(text).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "no {part} in: {message}");
        }
    }
    let missing = load(Some("/no/such/file.toml".as_ref()), env(&[]), []).unwrap_err();
    assert!(missing.to_string().contains("/no/such/file.toml"), "{missing}");
}

#[test]
fn all_errors_are_reported_at_once() {
    let errors = from_file("[store]\nconcurrency = 0\ntypo = 1\n[lease]\nttl = \"x\"").unwrap_err();
    assert_eq!(errors.0.len(), 3, "{errors}");
    assert_eq!(errors.to_string().lines().count(), 3, "{errors}");
}

/// Every default is allowed, and reads as the same value if it is set in the environment.
#[test]
fn every_default_can_be_set_in_the_environment() {
    let shown = |c: Config| {
        format!("{:?}", (c.store, c.server, c.cache, c.commit, c.journal, c.lease, c.volumes, c.admin, c.log))
    };
    let defaults = shown(from_env(&[]).unwrap());
    let written: Vec<(String, String)> =
        reference().iter().map(|s| (variable(s), s.default.clone())).collect();
    let pairs: Vec<(&str, &str)> = written.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(shown(from_env(&pairs).unwrap()), defaults);
    assert!(reference().iter().all(|s| !s.meaning.is_empty()));
}
