//! README and guide: every command in them is run as it is printed, or says which test runs it, or why none can.
//!
//! A comment in front of each block of commands says which:
//!
//! * `<!-- run -->`: it is run in its chapter's order, in a directory and a network of its own, and must succeed. After a colon
//!   may follow `serves` (it is left running until the next that serves), `with a bucket` (a store is in the environment) and
//!   `after the gateway has ended`.
//! * `<!-- run by MODULE::TEST -->`: that test runs the same command, or all but its names and addresses.
//! * `<!-- not run: REASON -->`.
//!
//! A table with commands in its cells has `<!-- commands: … -->` in front, which says the same in words.

mod blocks;
mod book;
mod bucket;
mod chapters;
mod figures;
mod quotes;

use std::path::Path;

/// Every document, with its path from the crate's root: the README, that of the chart, and all chapters.
pub(crate) fn documents() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec!["README.md".to_owned(), "helm/cairn/README.md".to_owned()];
    for entry in std::fs::read_dir(root.join("docs")).expect("the guide can be read") {
        let name = entry.expect("an entry").file_name().into_string().expect("a plain name");
        if name.ends_with(".md") {
            files.push(format!("docs/{name}"));
        }
    }
    files.sort();
    files.into_iter().map(|file| (file.clone(), read(&file))).collect()
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"))
}
