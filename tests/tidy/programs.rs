//! A test that needs another program says which: `cargo test` leaves it out and lists it, `tests/run.sh` runs it.
//!
//! It must not know what a test does with a program: `tests/tools/bare.sh` runs every test without a mark where no
//! program can be found.

use std::collections::BTreeSet;

use super::read_tree;

/// What a test can need, and the word in `tests/tools/install.sh` that installs it.
const PROGRAMS: &[(&str, &str)] = &[
    ("Chromium", "chromium"),
    ("Helm", "install_helm"),
    ("MinIO", "install_s3"),
    ("PostgreSQL", "postgresql-15"),
    ("Python", "python3"),
    ("QEMU", "qemu-utils"),
    ("SQLite", "sqlite3"),
    ("Schemathesis", "install_python schemathesis"),
    ("btrfs-progs", "btrfs-progs"),
    ("cpio", "cpio"),
    ("curl", "curl"),
    ("e2fsprogs", "e2fsprogs"),
    ("fio", "fio"),
    ("iproute2", "iproute2"),
    ("jq", " jq "),
    ("libnbd", "libnbd-bin"),
    ("mdBook", "install_python mdbook"),
    ("nbd-client", "nbd-client"),
    ("nbd-server", "nbd-server"),
    ("nbdkit", "nbdkit"),
    ("s3backer", "s3backer"),
    ("systemd", "systemd"),
    ("util-linux", "util-linux"),
    ("xfsprogs", "xfsprogs"),
];

/// What a mark begins with, put together here so that this file has none.
fn mark() -> String {
    ["#[", "ignore"].concat()
}

/// The programs of each mark in a text; a mark of another form is a complaint.
fn marks(file: &str, text: &str) -> (BTreeSet<String>, Vec<String>) {
    let (mut programs, mut complaints) = (BTreeSet::new(), Vec::new());
    for (at, _) in text.match_indices(&mark()) {
        let rest = &text[at + mark().len()..];
        let named = rest.strip_prefix(" = \"needs ").and_then(|rest| rest.split_once("\"]"));
        let named: Vec<&str> = named.map_or_else(Vec::new, |(names, _)| names.split(", ").collect());
        let is_known = |name: &&str| PROGRAMS.iter().any(|(known, _)| known == name);
        if !named.is_empty() && named.iter().all(is_known) && named.is_sorted() {
            programs.extend(named.into_iter().map(str::to_owned));
        } else {
            let line = text[..at].matches('\n').count() + 1;
            complaints.push(format!("{file}:{line}: a test is left out, but not as needing listed programs"));
        }
    }
    (programs, complaints)
}

#[test]
fn a_test_that_is_left_out_names_the_programs_that_it_needs() {
    let (mut programs, mut complaints) = (BTreeSet::new(), Vec::new());
    for (file, text) in [read_tree("src"), read_tree("tests")].concat() {
        let found = marks(&file, &text);
        programs.extend(found.0);
        complaints.extend(found.1);
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    let listed: BTreeSet<String> = PROGRAMS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(programs, listed, "every program of the list is needed somewhere");
}

#[test]
fn what_a_test_can_need_is_installed() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/install.sh");
    let script = std::fs::read_to_string(path).expect("the script can be read");
    for (name, word) in PROGRAMS {
        assert!(script.contains(word), "{name}: tests/tools/install.sh installs no {word}");
    }
}

#[test]
fn a_mark_that_names_no_program_is_found() {
    let mark = mark();
    let marked = |rest: &str| marks("a.rs", &format!("//! Head.\n{mark}{rest}\nfn f() {{}}"));
    for wrong in
        ["]", " = \"slow\"]", " = \"needs \"]", " = \"needs nothing\"]", " = \"needs nbdkit, QEMU\"]"]
    {
        let complaints = marked(wrong).1;
        assert!(complaints.len() == 1 && complaints[0].starts_with("a.rs:2: "), "{wrong}: {complaints:?}");
    }
    let (programs, complaints) = marked(" = \"needs QEMU, nbdkit\"]");
    assert_eq!((programs.len(), complaints.len()), (2, 0));
}
