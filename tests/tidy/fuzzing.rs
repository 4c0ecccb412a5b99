//! Every fuzz target is built and run, and every kind of object of the format has one.

use std::collections::BTreeSet;

use super::read_tree;

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).expect("the file can be read")
}

/// The words of a list of a shell script, as in `NAME=(a b c)`.
fn listed<'a>(script: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let list = script.split_once(&format!("\n{name}=(")).and_then(|(_, rest)| rest.split_once(')'));
    list.map(|(words, _)| words.split_whitespace()).into_iter().flatten()
}

/// The variants of an enum, in lower case with underscores.
fn variants(source: &str, name: &str) -> BTreeSet<String> {
    let file = syn::parse_file(source).expect("a source is Rust");
    let variants = file.items.into_iter().filter_map(|item| match item {
        syn::Item::Enum(item) if item.ident == name => Some(item.variants),
        _ => None,
    });
    let underscored = |variant: String| {
        let letters = variant.char_indices().flat_map(|(at, letter)| {
            let gap = if at > 0 && letter.is_uppercase() { Some('_') } else { None };
            gap.into_iter().chain(letter.to_lowercase())
        });
        letters.collect()
    };
    variants.flatten().map(|variant| underscored(variant.ident.to_string())).collect()
}

#[test]
fn every_fuzz_target_is_built_and_run() {
    let file_name = |path: String| path["fuzz/fuzz_targets/".len()..path.len() - ".rs".len()].to_owned();
    let files: BTreeSet<String> =
        read_tree("fuzz/fuzz_targets").into_iter().map(|(path, _)| file_name(path)).collect();
    let manifest = read("fuzz/Cargo.toml");
    let built = manifest.split("[[bin]]\nname = \"").skip(1).filter_map(|rest| rest.split('"').next());
    assert_eq!(
        built.map(str::to_owned).collect::<BTreeSet<_>>(),
        files,
        "fuzz/Cargo.toml lists every target"
    );
    let script = read("tests/tools/fuzz.sh");
    let run = listed(&script, "MACHINES").chain(listed(&script, "DECODERS"));
    assert_eq!(
        run.map(str::to_owned).collect::<BTreeSet<_>>(),
        files,
        "tests/tools/fuzz.sh runs every target"
    );
}

#[test]
fn every_kind_of_object_has_a_fuzz_target() {
    let kinds = variants(&read("src/volume/format/codec.rs"), "Kind");
    assert!(
        kinds.contains("map_page") && kinds.contains("pack"),
        "these are the kinds of objects: {kinds:?}"
    );
    let script = read("tests/tools/fuzz.sh");
    let decoders: BTreeSet<String> = listed(&script, "DECODERS").map(str::to_owned).collect();
    let without: Vec<&String> = kinds.difference(&decoders).collect();
    assert!(without.is_empty(), "kinds of objects without a fuzz target: {without:?}");
}
