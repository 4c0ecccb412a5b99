//! The house is tidy: arrows between layers go one way, and every file keeps the rules of the house.
//!
//! Reads the sources as they lie in the tree; nothing is built for it.

mod booleans;
mod circles;
mod fuzzing;
mod guards;
mod house;
mod layers;
mod ledger;
mod order;
mod paths;
mod programs;
mod public_api;
mod sizes;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use paths::{Survey, survey};

/// Every Rust file under a directory of the crate, with its path from the crate's root, in order.
fn read_tree(directory: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut files, mut directories) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(root.join(&directory)).expect("a directory of sources can be read");
        for entry in entries {
            let entry = entry.expect("a directory of sources can be read");
            let name = entry.file_name().into_string().expect("names of sources are plain");
            let path = format!("{directory}/{name}");
            if entry.file_type().expect("a source has a type").is_dir() {
                directories.push(path);
            } else if path.ends_with(".rs") {
                let text = fs::read_to_string(root.join(&path)).expect("a source can be read");
                files.push((path, text));
            }
        }
    }
    files.sort();
    assert!(!files.is_empty(), "there are sources under {directory}");
    files
}

/// The survey of `src`, made once for all tests.
fn survey_of_src() -> &'static Survey {
    static SURVEY: OnceLock<Survey> = OnceLock::new();
    SURVEY.get_or_init(|| {
        let sources = read_tree("src");
        let sources: Vec<(&str, &str)> = sources.iter().map(|(f, t)| (f.as_str(), t.as_str())).collect();
        survey(&sources).expect("the sources parse")
    })
}
