//! Files that lie side by side in a folder use each other one way only.
//!
//! A folder's `mod.rs` is no part of it: it declares and re-exports what the others hold, and they may use what it
//! defines. Code that only tests see is left out.

use std::collections::{BTreeMap, BTreeSet};

use super::paths::{Mention, Target, survey};
use super::survey_of_src;

/// A folder whose circles are being removed by the change that orders it; to be deleted with them.
const EXEMPT: Option<&str> = Some("volume");

type Arrows<'a> = BTreeMap<&'a str, BTreeMap<&'a str, String>>;

/// Arrows between the modules of each folder, each with a place where it is drawn.
fn arrows<'a>(
    mentions: &'a [Mention],
    modules: &BTreeSet<Vec<String>>,
) -> BTreeMap<&'a [String], Arrows<'a>> {
    let mut folders: BTreeMap<&[String], Arrows<'_>> = BTreeMap::new();
    for mention in mentions.iter().filter(|mention| !mention.in_tests) {
        let Target::Here(to) = &mention.target else { continue };
        let from = &mention.module;
        let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
        let (Some(here), Some(there)) = (from.get(common), to.get(common)) else { continue };
        if modules.contains(&from[..=common]) && modules.contains(&to[..=common]) {
            let folder = folders.entry(&from[..common]).or_default();
            let place = format!("{}:{}", mention.file, mention.line);
            folder.entry(here).or_default().entry(there).or_insert(place);
        }
    }
    folders
}

/// The shortest way along arrows from a module back to itself.
fn way_back<'a>(arrows: &Arrows<'a>, start: &'a str) -> Option<Vec<&'a str>> {
    let (mut ways, mut seen) = (vec![vec![start]], BTreeSet::new());
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            let last = way.last().expect("a way begins somewhere");
            for next in arrows.get(last).into_iter().flat_map(BTreeMap::keys) {
                if *next == start {
                    return Some([&way[..], &[start]].concat());
                }
                if seen.insert(*next) {
                    longer.push([&way[..], &[*next]].concat());
                }
            }
        }
        ways = longer;
    }
    None
}

/// One line for each circle: the modules, and where each uses the next.
fn circles(mentions: &[Mention], modules: &BTreeSet<Vec<String>>) -> Vec<String> {
    let (mut found, mut reported) = (Vec::new(), BTreeSet::new());
    for (folder, arrows) in arrows(mentions, modules) {
        for start in arrows.keys() {
            let Some(way) = way_back(&arrows, start) else { continue };
            if !reported.insert((folder, way.iter().copied().collect::<BTreeSet<_>>())) {
                continue;
            }
            let places: Vec<&str> = way.windows(2).map(|pair| arrows[pair[0]][pair[1]].as_str()).collect();
            let name = if folder.is_empty() { "src".to_owned() } else { folder.join("::") };
            found.push(format!("{name}: {} ({})", way.join(" → "), places.join(", ")));
        }
    }
    found
}

/// Modules that are files.
fn files(sources: impl Iterator<Item = impl AsRef<str>>) -> BTreeSet<Vec<String>> {
    sources
        .flat_map(|file| {
            let module = super::paths::module_of(file.as_ref());
            (1..=module.len()).map(move |end| module[..end].to_vec()).collect::<Vec<_>>()
        })
        .collect()
}

fn circles_of(sources: &[(&str, &str)]) -> Vec<String> {
    let survey = survey(sources).expect("the sources parse");
    circles(&survey.mentions, &files(sources.iter().map(|(file, _)| file)))
}

#[test]
fn files_of_a_folder_use_each_other_one_way() {
    let sources = super::read_tree("src");
    let all = circles(&survey_of_src().mentions, &files(sources.iter().map(|(file, _)| file)));
    let exempt = |circle: &&String| EXEMPT.is_some_and(|folder| circle.starts_with(&format!("{folder}: ")));
    let found: Vec<&String> = all.iter().filter(|circle| !exempt(circle)).collect();
    assert!(found.is_empty(), "{}", found.into_iter().cloned().collect::<Vec<_>>().join("\n"));
    assert!(EXEMPT.is_none() || all.iter().any(|circle| exempt(&circle)), "{EXEMPT:?} has no circle left");
}

#[test]
fn a_circle_is_found_and_named() {
    let sources = [
        ("src/store/mod.rs", "mod a; mod b; mod c; pub use a::Item;"),
        ("src/store/a.rs", "use super::b::Thing; pub struct Item;"),
        ("src/store/b.rs", "fn f() { super::c::g() } pub struct Thing;"),
        ("src/store/c/mod.rs", "mod inner;"),
        ("src/store/c/inner.rs", "use crate::store::Item;"),
    ];
    let expected = "store: a → b → c → a (src/store/a.rs:1, src/store/b.rs:1, src/store/c/inner.rs:1)";
    assert_eq!(circles_of(&sources), [expected], "through a folder, and through a re-export");
    let one_way = [
        ("src/store/mod.rs", "mod a; mod b; pub struct Options;"),
        ("src/store/a.rs", "use super::b::Thing; use super::Options;"),
        ("src/store/b.rs", "pub struct Thing; #[cfg(test)] mod tests { use crate::store::a; }"),
    ];
    assert_eq!(circles_of(&one_way), Vec::<String>::new());
    let layers = [("src/store.rs", "use crate::volume::Map;"), ("src/volume.rs", "use crate::store::Key;")];
    assert_eq!(circles_of(&layers).len(), 1, "between layers");
}
