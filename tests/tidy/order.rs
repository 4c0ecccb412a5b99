//! The order of the folders and files of `src/volume`, and the drawing of all arrows in ARCHITECTURE.md.
//!
//! Both come from the imports. Code that only tests see is left out.

use std::collections::{BTreeMap, BTreeSet};

use super::layers::LAYERS;
use super::paths::{Mention, Target, survey};
use super::survey_of_src;

/// The parts of `src/volume`, lowest first: a part imports from earlier rows only. Parts of one row import nothing
/// from each other.
const VOLUME: &[&[&str]] = &[
    &["format", "info", "options", "signal"],
    &["error", "census"],
    &["store_exact", "state"],
    &["held", "cache"],
    &["budget"],
    &["environment"],
    &["objects", "shared"],
    &["clones", "read", "keeper"],
    &["write", "warming"],
    &["collect", "snapshot"],
    &["fold"],
    &["pins", "flatten"],
    &["disk"],
    &["open", "diff"],
    &["catalog"],
    &["check", "import", "incremental"],
    &["gc"],
];

/// Columns of the drawing's first column, with the space behind it.
const NAME_COLUMNS: usize = 12;

type Arrows = BTreeMap<String, BTreeSet<String>>;

/// Arrows between the children of a module, and every child that one of them starts or ends at.
fn arrows(mentions: &[Mention], parent: &[&str], is_child: impl Fn(&str) -> bool) -> (Arrows, Vec<String>) {
    let (mut arrows, mut places) = (Arrows::new(), Vec::new());
    for mention in mentions.iter().filter(|mention| !mention.in_tests) {
        let Target::Here(to) = &mention.target else { continue };
        let child = |path: &[String]| {
            let rest = path.strip_prefix(&parent.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..])?;
            rest.first().cloned()
        };
        let (Some(from), Some(to)) = (child(&mention.module), child(to)) else { continue };
        if to == "*" {
            places.push(format!("{}:{}: {from} → everything, by a glob", mention.file, mention.line));
        }
        if from != to && is_child(&to) {
            places.push(format!("{}:{}: {from} → {to}", mention.file, mention.line));
            arrows.entry(to.clone()).or_default();
            arrows.entry(from).or_default().insert(to);
        }
    }
    (arrows, places)
}

/// Modules that are files or folders directly within one.
fn children(sources: &[String], folder: &str) -> BTreeSet<String> {
    let within = sources.iter().filter_map(|file| file.strip_prefix(folder)?.strip_prefix('/'));
    let names = within.map(|rest| rest.split('/').next().expect("a path has a first part"));
    names.map(|name| name.trim_end_matches(".rs").to_owned()).filter(|name| name != "mod").collect()
}

/// What is wrong with the order of `src/volume`, one line each.
fn out_of_order(mentions: &[Mention], parts: &BTreeSet<String>) -> Vec<String> {
    let row = |part: &str| VOLUME.iter().position(|row| row.contains(&part));
    let listed: BTreeSet<String> = VOLUME.concat().into_iter().map(str::to_owned).collect();
    let mut wrong: Vec<String> = parts
        .symmetric_difference(&listed)
        .map(|part| format!("{part} is in the list or in src/volume, and not in both"))
        .collect();
    let (_, places) = arrows(mentions, &["volume"], |to| parts.contains(to));
    for place in places {
        let (_, arrow) = place.rsplit_once(": ").expect("a place precedes an arrow");
        let (from, to) = arrow.split_once(" → ").expect("it is an arrow");
        if row(from).zip(row(to)).is_none_or(|(from, to)| to >= from) {
            wrong.push(place);
        }
    }
    wrong
}

/// How many arrows it takes at most from each node to one without any.
///
/// # Errors
/// The nodes from which a circle is reached, if there is one.
fn heights(arrows: &Arrows) -> Result<BTreeMap<&str, usize>, Vec<&str>> {
    let mut heights: BTreeMap<&str, usize> = BTreeMap::new();
    for height in 0.. {
        let is_left = |node: &str| !heights.contains_key(node);
        let left: Vec<&str> = arrows.keys().map(String::as_str).filter(|node| is_left(node)).collect();
        if left.is_empty() {
            break;
        }
        let ready = left.iter().filter(|node| !arrows[**node].iter().any(|to| is_left(to)));
        let ready: Vec<&str> = ready.copied().collect();
        if ready.is_empty() {
            return Err(left);
        }
        heights.extend(ready.into_iter().map(|node| (node, height)));
    }
    Ok(heights)
}

/// Whether a node is reached from another by one arrow or more. There is no circle.
fn reaches(arrows: &Arrows, from: &str, to: &str) -> bool {
    arrows.get(from).into_iter().flatten().any(|next| next == to || reaches(arrows, next, to))
}

/// Each node, the highest first, with the nodes that it uses and does not reach through another of them.
///
/// # Errors
/// As [`heights`].
fn draw(arrows: &Arrows) -> Result<String, Vec<&str>> {
    let heights = heights(arrows)?;
    let mut nodes: Vec<(&String, &BTreeSet<String>)> = arrows.iter().collect();
    nodes.sort_by_key(|(node, _)| (std::cmp::Reverse(heights[node.as_str()]), (*node).clone()));
    let mut text = String::new();
    for (node, to) in nodes {
        let direct = to.iter().filter(|to_| !to.iter().any(|other| reaches(arrows, other, to_)));
        let direct: Vec<&str> = direct.map(String::as_str).collect();
        let arrow =
            if direct.is_empty() { String::new() } else { format!(" ──► {}", direct.join(", ")) };
        text += format!("{node:<NAME_COLUMNS$}{arrow}").trim_end();
        text.push('\n');
    }
    Ok(text)
}

/// Both drawings, as ARCHITECTURE.md has them.
fn drawings(mentions: &[Mention], parts: &BTreeSet<String>) -> [String; 2] {
    let is_layer = |to: &str| LAYERS.iter().any(|(layer, _)| *layer == to);
    let (layers, _) = arrows(mentions, &[], is_layer);
    let (volume, _) = arrows(mentions, &["volume"], |to| parts.contains(to));
    [layers, volume].map(|arrows| {
        let drawn = draw(&arrows);
        drawn.unwrap_or_else(|nodes| panic!("no drawing: {} lead to a circle", nodes.join(", ")))
    })
}

fn parts() -> BTreeSet<String> {
    let sources: Vec<String> = super::read_tree("src").into_iter().map(|(file, _)| file).collect();
    children(&sources, "src/volume")
}

#[test]
fn the_parts_of_volume_import_from_lower_ones_only() {
    let wrong = out_of_order(&survey_of_src().mentions, &parts());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_import_against_the_order_is_found() {
    let wrong = |file: &str, text: &str| {
        let lib = ("src/lib.rs", "pub mod volume;");
        let root = ("src/volume/mod.rs", "mod cache; mod fold; mod open; pub use open::Opened;");
        let survey = survey(&[lib, root, (file, text)]).expect("the sources parse");
        let parts = VOLUME.concat().into_iter().map(str::to_owned).collect();
        out_of_order(&survey.mentions, &parts)
    };
    let upward = "use crate::volume::fold::Folder;";
    assert_eq!(wrong("src/volume/cache/mod.rs", upward), ["src/volume/cache/mod.rs:1: cache → fold"]);
    assert_eq!(wrong("src/volume/cache/deep.rs", "use super::super::Opened;").len(), 1, "by a re-export");
    assert_eq!(wrong("src/volume/read/mod.rs", "use crate::volume::keeper::f;").len(), 1, "within a row");
    assert_eq!(wrong("src/volume/read/mod.rs", "use crate::volume::*;").len(), 1, "by a glob");
    assert_eq!(wrong("src/volume/open.rs", "use super::fold::Folder;"), Vec::<String>::new());
    let tests = "#[cfg(test)] mod tests { use crate::volume::fold::Folder; }";
    assert_eq!(wrong("src/volume/cache/mod.rs", tests), Vec::<String>::new());
    let unlisted = out_of_order(&[], &BTreeSet::from(["attic".to_owned()]));
    assert!(unlisted.iter().any(|line| line.starts_with("attic is in")), "{unlisted:?}");
}

#[test]
fn architecture_md_has_the_drawings() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).expect("there is an ARCHITECTURE.md");
    let blocks =
        drawings(&survey_of_src().mentions, &parts()).map(|drawing| format!("```text\n{drawing}```\n"));
    let missing: Vec<&str> =
        blocks.iter().filter(|block| !text.contains(*block)).map(String::as_str).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md lacks this, or has an old one:\n{}", missing.join("\n"));
}

#[test]
fn a_drawing_leaves_out_what_is_reached_through_another() {
    let node = |to: &[&str]| to.iter().map(|s| (*s).to_owned()).collect();
    let arrows = [("a", node(&["b", "c"])), ("b", node(&["c"])), ("c", node(&[])), ("d", node(&["c"]))];
    let arrows = arrows.into_iter().map(|(from, to)| (from.to_owned(), to)).collect();
    let drawn = "a            ──► b\nb            ──► c\nd            ──► c\nc\n";
    assert_eq!(draw(&arrows).as_deref(), Ok(drawn));
    let circle = [("a", node(&["b"])), ("b", node(&["c"])), ("c", node(&["b", "d"])), ("d", node(&[]))];
    let circle = circle.into_iter().map(|(from, to)| (from.to_owned(), to)).collect();
    assert_eq!(draw(&circle), Err(vec!["a", "b", "c"]), "a circle has no drawing");
}
