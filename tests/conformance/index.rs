//! The list of what the specification demands names tests that are there.

use std::path::Path;

const LIST: &str = include_str!("README.md");

/// What stands in backticks as `file::function`.
fn named() -> Vec<(&'static str, &'static str)> {
    LIST.split('`').skip(1).step_by(2).filter_map(|text| text.split_once("::")).collect()
}

#[test]
fn every_test_that_is_named_is_there() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    assert!(named().len() > 80, "{}", named().len());
    for (file, function) in named() {
        let found = ["conformance", "client"].iter().any(|directory| {
            let source = std::fs::read_to_string(tests.join(directory).join(format!("{file}.rs")));
            source.is_ok_and(|source| source.contains(&format!("fn {function}()")))
        });
        assert!(found, "{file}::{function} is no test");
    }
}
