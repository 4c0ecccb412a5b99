//! A URL that cannot be used is quoted without the user and the secret that somebody wrote into it.

use tempfile::tempdir;

use super::{cairn, fail, refuse};

#[test]
fn no_error_quotes_a_user() {
    let at = tempdir().unwrap();
    let at = at.path();
    for (line, status, host) in [
        ("backup disk@a s3://user:secret@bucket", 2, "'s3://…@bucket'"),
        ("backup disk@a s3://user:sec/secret@bucket/prefix", 2, "'s3://…@bucket/prefix'"),
        ("backup s3://user:secret@bucket disk@a", 2, "'s3://…@bucket'"),
        ("backup disk@a file://./there s3://user:secret@bucket", 2, "'s3://…@bucket'"),
        ("backup disk@a user:secret@bucket", 2, "'…@bucket'"),
        ("s3://user:secret@bucket", 2, "'s3://…@bucket'"),
        ("volume list --store s3://user:secret@bucket", 2, "store.url = \"s3://…@bucket\""),
        ("volume list --store user:secret@bucket", 2, "store.url = \"…@bucket\""),
        ("import http://user:secret@host/a disk", 2, "'http://…@host/a'"),
        ("import nbd://user:secret@host:x/a disk", 2, "'nbd://…@host:x/a'"),
        ("import nbd://user:secret@127.0.0.1:1/a disk", 1, "127.0.0.1:1/a"),
        ("nbd size nbd://user:secret@127.0.0.1:1/a@b", 1, "nbd://127.0.0.1:1/a@b"),
        ("nbd size http://user:secret@host", 2, "…@host"),
        ("nbd size nbd://user:secret@host:x", 2, "host:x"),
        ("nbd size nbd://user:secret@host 10809", 2, "nbd://…@host is a URI"),
        ("nbd size user:secret@host", 2, "…@host"),
        ("health ftp://user:secret@host/", 2, "'ftp://…@host/'"),
        ("health http://user:secret@127.0.0.1:1/", 1, "http://…@127.0.0.1:1/: "),
    ] {
        let error = fail(at, line, status);
        assert!(error.contains(host), "{line}: {error}");
        assert!(!error.contains("secret") && !error.contains("user:"), "{line}: {error}");
    }
    for (setting, host) in [("URL", "http://…@host"), ("ENDPOINT", "https://…@host")] {
        let mut list = cairn(at, "volume list");
        let scheme = host.split_once('…').unwrap().0;
        list.env(format!("CAIRN_STORE__{setting}"), format!("{scheme}user:secret@host"));
        let error = refuse(list, 2);
        assert!(error.contains(host) && !error.contains("secret"), "{setting}: {error}");
    }
}
