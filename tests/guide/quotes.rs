//! What the guide quotes of the program, and where its links go.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cairn::volume::format::codec::FORMAT_VERSION;
use cairn::volume::format::frame::TAG_BYTES;
use cairn::volume::format::geometry::BLOCK_BYTES;

use super::{documents, read};

/// All Rust sources below `src`, with strings that go on in the next line joined.
fn sources() -> String {
    let mut directories = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut text = String::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("the sources can be read") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                text.push_str(&std::fs::read_to_string(path).expect("a source can be read"));
            }
        }
    }
    let mut parts = text.split("\\\n");
    let mut joined = parts.next().unwrap_or_default().to_owned();
    parts.for_each(|part| joined.push_str(part.trim_start()));
    joined
}

/// Messages that the chapter quotes: code with spaces in the table cells, in the parts between what differs.
fn messages(chapter: &str) -> Vec<String> {
    let rows = chapter.lines().filter(|line| line.starts_with('|'));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let parts =
        quoted.filter(|text| text.contains(' ') && !text.contains("cairn ")).flat_map(|text| text.split('…'));
    // A placeholder stands between these in the source.
    parts
        .map(str::trim)
        .filter(|part| part.contains(' ') && !part.contains(" = "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_message_in_the_chapter_on_trouble_is_the_programs() {
    let sources = sources();
    let found = messages(&read("docs/troubleshooting.md"));
    assert!(found.len() > 30, "{found:?}");
    let strange: Vec<&String> = found.iter().filter(|part| !sources.contains(part.as_str())).collect();
    assert!(strange.is_empty(), "Cairn never says: {strange:#?}");
}

/// What GitHub and mdBook make of a heading for links to it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.collect::<String>().trim().replace(' ', "-")
}

/// The anchors of a document.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        is_code ^= line.starts_with("```");
        if !is_code && line.starts_with('#') {
            found.insert(anchor(line.trim_start_matches('#').trim()));
        }
    }
    found
}

/// Targets of the links of a document, within this repository.
fn links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).map(str::to_owned).collect()
}

/// Why a link of a document leads nowhere.
fn astray(file: &str, target: &str) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (path, place) = target.split_once('#').unwrap_or((target, ""));
    let to = match path {
        "" => root.join(file),
        path => root.join(file).parent().expect("a file has a directory").join(path),
    };
    if !to.exists() {
        return Some(format!("{file}: there is no {target}"));
    }
    let has_place =
        || anchors(&std::fs::read_to_string(&to).expect("a document can be read")).contains(place);
    (!place.is_empty() && !has_place()).then(|| format!("{file}: no heading for {target}"))
}

#[test]
fn the_guide_has_the_version_and_the_checksums_of_the_format() {
    let (version, kib) = (FORMAT_VERSION, BLOCK_BYTES / 1024);
    for (file, text) in [
        ("docs/upgrading.md", format!("carries a format version; it is {version}.")),
        ("docs/upgrading.md", format!("releases so far write version {version}.")),
        ("README.md", format!("Every block of {kib} KiB carries a checksum")),
        ("docs/security.md", format!("a checksum over every block of {kib} KiB and its position")),
        ("docs/sizing.md", format!("{TAG_BYTES} bytes of checksum for each block of {kib} KiB")),
    ] {
        let said = read(file).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(&text), "{file} does not say {text:?}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    let mut lost = Vec::new();
    let more =
        ["ARCHITECTURE.md", "SECURITY.md", "tests/README.md"].map(|file| (file.to_owned(), read(file)));
    for (file, text) in documents().into_iter().chain(more) {
        lost.extend(links(&text).iter().filter_map(|target| astray(&file, target)));
    }
    assert!(lost.is_empty(), "{}", lost.join("\n"));
    assert!(astray("README.md", "docs/none.md").is_some() && astray("README.md", "#none").is_some());
}

#[test]
fn every_chapter_is_in_the_summary() {
    let summary: BTreeSet<String> = links(&read("docs/SUMMARY.md")).into_iter().collect();
    let chapters: BTreeSet<String> = documents()
        .into_iter()
        .filter_map(|(file, _)| file.strip_prefix("docs/").map(str::to_owned))
        .filter(|file| file != "SUMMARY.md")
        .collect();
    assert_eq!(summary, chapters);
}
