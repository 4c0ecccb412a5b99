//! The layers and the arrows between them: this list is the truth.
//!
//! It must not know how paths are found. Invariant: whatever a path of one layer names in another is an arrow in
//! [`LAYERS`], and the head of `src/lib.rs` shows the same list.

use std::collections::{BTreeMap, BTreeSet};

use super::paths::{Mention, Target, survey};
use super::{read_tree, survey_of_src};

/// Each layer, and the layers that it may name.
pub(super) const LAYERS: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("task", &[]),
    ("metrics", &[]),
    ("config", &[]),
    ("mutant", &[]),
    ("effect", &[]),
    ("buffers", &[]),
    ("store", &["metrics", "task", "mutant", "buffers"]),
    ("volume", &["store", "metrics", "task", "mutant", "effect", "buffers"]),
    ("server", &["protocol", "task", "mutant", "effect", "buffers"]),
    ("client", &["protocol", "task", "effect"]),
    ("gateway", &["volume", "server", "protocol", "store", "metrics", "task", "effect"]),
    ("admin", &["gateway", "volume", "server", "metrics", "task"]),
    (
        "cli",
        &[
            "protocol", "task", "metrics", "config", "mutant", "store", "volume", "server", "client",
            "gateway", "admin", "effect", "buffers",
        ],
    ),
    ("main", &["cli"]),
];

/// What a layer may not name of other crates: layer, paths, why.
const FOREIGN: &[(&str, &[&str], &str)] = &[
    (
        "protocol",
        &["tokio", "tokio_util", "futures", "tracing", "rand", "std::time", "std::net", "std::fs", "std::io"],
        "the protocol has no I/O, no clock and no log",
    ),
    (
        "metrics",
        &["tokio::net", "tokio::fs", "tokio::io", "tokio::task", "tokio::sync", "tracing"],
        "metrics count, and know the time of the runtime, no more",
    ),
];

/// Whether two paths, of which either may end in `*`, can name the same or one something within the other.
pub(super) fn covers(rule: &str, path: &[String]) -> bool {
    let rule: Vec<&str> = rule.split("::").collect();
    let glob = path.last().is_some_and(|s| s == "*");
    let path = if glob { &path[..path.len() - 1] } else { path };
    let common = rule.iter().zip(path).take_while(|(a, b)| *a == b).count();
    common == rule.len() || glob && common == path.len()
}

/// Every arrow that is not in the list, one line each.
fn forbidden_arrows(mentions: &[Mention]) -> BTreeSet<String> {
    let layers: BTreeMap<&str, &[&str]> = LAYERS.iter().copied().collect();
    let mut wrong = BTreeSet::new();
    for mention in mentions {
        let at = format!("{}:{}", mention.file, mention.line);
        // The root only declares and re-exports; a re-export is followed to what it stands for.
        let Some(from) = mention.module.first().map(String::as_str) else { continue };
        let Some(allowed) = layers.get(from) else {
            wrong.insert(format!("{at}: {from} is not a layer"));
            continue;
        };
        match &mention.target {
            Target::Here(path) => match path.first().map(String::as_str) {
                Some("*") => drop(wrong.insert(format!("{at}: {from} → everything, by a glob of the root"))),
                Some(to) if to != from && layers.contains_key(to) && !allowed.contains(&to) => {
                    wrong.insert(format!("{at}: {from} → {to}, by {}", path.join("::")));
                }
                _ => {}
            },
            Target::Elsewhere(path) => {
                for (_, rules, why) in FOREIGN.iter().filter(|(layer, ..)| *layer == from) {
                    if rules.iter().any(|rule| covers(rule, path)) {
                        wrong.insert(format!("{at}: {from} names {}: {why}", path.join("::")));
                    }
                }
            }
        }
    }
    wrong
}

/// The list as the head of `src/lib.rs` shows it: `a, b → c, d   what for`, one line each.
fn shown(lib: &str) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
    let head =
        lib.lines().map_while(|line| line.strip_prefix("//!")).map(|l| l.strip_prefix(' ').unwrap_or(l));
    let block = head.skip_while(|line| *line != "```text").skip(1).take_while(|line| *line != "```");
    let mut rows = Vec::new();
    for line in block {
        let (from, rest) = line.split_once('→').ok_or_else(|| format!("no arrow in {line:?}"))?;
        let to = rest.trim_start().split("  ").next().unwrap_or_default();
        let names = |list: &str| list.split(',').map(|s| s.trim().to_owned()).collect::<BTreeSet<_>>();
        rows.extend(names(from).into_iter().map(|from| (from, names(to))));
    }
    let all: BTreeSet<String> = rows.iter().map(|(from, _)| from.clone()).filter(|n| n != "main").collect();
    let mut shown = BTreeMap::new();
    for (from, mut to) in rows {
        if to.remove("all") {
            to.extend(all.iter().filter(|name| **name != from).cloned());
        }
        to.remove("nothing");
        if shown.insert(from.clone(), to).is_some() {
            return Err(format!("{from} stands twice"));
        }
    }
    Ok(shown)
}

fn listed() -> BTreeMap<String, BTreeSet<String>> {
    LAYERS
        .iter()
        .map(|(from, to)| ((*from).to_owned(), to.iter().map(|s| (*s).to_owned()).collect()))
        .collect()
}

#[test]
fn arrows_between_layers_go_one_way() {
    let survey = survey_of_src();
    assert!(survey.mentions.len() > 100, "paths were found");
    let wrong = forbidden_arrows(&survey.mentions);
    assert!(wrong.is_empty(), "{}", Vec::from_iter(wrong).join("\n"));
}

#[test]
fn the_list_has_no_circle() {
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    while placed.len() < LAYERS.len() {
        let ready = LAYERS.iter().filter(|(_, to)| to.iter().all(|t| placed.contains(t)));
        let next: BTreeSet<&str> = ready.map(|(from, _)| *from).chain(placed.iter().copied()).collect();
        assert!(next.len() > placed.len(), "the layers beside {placed:?} need one another");
        placed = next;
    }
}

#[test]
fn the_head_of_lib_rs_shows_the_list() {
    let sources = read_tree("src");
    let (_, lib) = sources.iter().find(|(file, _)| file == "src/lib.rs").expect("there is a lib.rs");
    assert_eq!(shown(lib), Ok(listed()));
}

/// Modules in backticks, `a::b`, for which there is no file and whose last part no file of the first declares.
fn missing_modules(head: &str, sources: &[(&str, &str)]) -> Vec<String> {
    let quoted = head.split('`').skip(1).step_by(2).filter(|path| path.contains("::"));
    let layers: BTreeSet<&str> = LAYERS.iter().map(|(layer, _)| *layer).collect();
    let named = quoted.filter(|path| path.split("::").next().is_some_and(|first| layers.contains(first)));
    let missing = named.filter(|path| {
        let file = format!("src/{}", path.replace("::", "/"));
        let (module, item) = file.rsplit_once('/').expect("a path has two parts");
        let declares = |text: &str| {
            ["struct", "trait", "enum", "fn"].iter().any(|kind| text.contains(&format!("pub {kind} {item}")))
        };
        !sources.iter().any(|(name, text)| {
            *name == format!("{file}.rs")
                || *name == format!("{file}/mod.rs")
                || name.starts_with(module) && declares(text)
        })
    });
    missing.map(|path| format!("src/lib.rs: there is no {path}")).collect()
}

/// What [`missing_modules`] reads: the head of `src/lib.rs`.
fn head(lib: &str) -> String {
    lib.lines().map_while(|line| line.strip_prefix("//!")).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_hop_that_lib_rs_lists_exists() {
    let sources = read_tree("src");
    let borrowed: Vec<(&str, &str)> = sources.iter().map(|(f, t)| (f.as_str(), t.as_str())).collect();
    let (_, lib) = borrowed.iter().find(|(file, _)| *file == "src/lib.rs").expect("there is a lib.rs");
    assert!(head(lib).matches("::").count() > 20, "hops were found");
    assert_eq!(missing_modules(&head(lib), &borrowed), Vec::<String>::new());
    let sources = [("src/store/s3/mod.rs", ""), ("src/server/export.rs", "pub trait Export: Send {}")];
    let text =
        "`store::s3`, `server::Export`, `server::export`, `store::s4`, `tokio::spawn`, `server::Import`";
    let missing = ["src/lib.rs: there is no store::s4", "src/lib.rs: there is no server::Import"];
    assert_eq!(missing_modules(text, &sources), missing);
}

#[test]
fn a_list_that_differs_is_seen() {
    let block = |lines: &str| format!("//! Head.\n//!\n//! ```text\n{lines}//! ```\n");
    let row = |from: &str, to: &[&str]| (from.to_owned(), to.iter().map(|s| (*s).to_owned()).collect());
    let lines =
        "//! a, b → nothing     plain\n//! c   → a, b  uses, a comma\n//! d   → all\n//! main → d  x\n";
    let expected = [
        row("a", &[]),
        row("b", &[]),
        row("c", &["a", "b"]),
        row("d", &["a", "b", "c"]),
        row("main", &["d"]),
    ];
    assert_eq!(shown(&block(lines)), Ok(expected.into_iter().collect()));
    assert!(shown(&block("//! a → b\n//! a → c\n")).is_err(), "twice");
    assert!(shown(&block("//! a b\n")).is_err(), "no arrow");
}

/// What is wrong with sources that hold the layers `store`, `volume`, `server`, `protocol` and `cli`.
fn arrows_of(file: &str, text: &str) -> Vec<String> {
    let mut sources = vec![
        ("src/lib.rs", "pub mod store; pub mod volume; pub mod server; pub mod protocol; pub mod cli;"),
        ("src/store/mod.rs", "pub mod error; pub struct Store; use crate::metrics as counters;"),
        ("src/store/error.rs", "pub struct Error;"),
        ("src/volume/mod.rs", "pub mod map; pub mod deep; pub struct Volume; pub use crate::store as below;"),
        ("src/volume/deep/mod.rs", "pub mod down;"),
        ("src/server/mod.rs", "pub use crate::protocol::Flags;"),
        ("src/protocol/mod.rs", "pub struct Flags;"),
        ("src/metrics.rs", "pub struct Counter;"),
        ("src/cli.rs", "pub fn run() {}"),
        ("src/main.rs", "fn main() {}"),
    ];
    sources.retain(|(name, _)| *name != file);
    sources.push((file, text));
    let survey = survey(&sources).expect("the sources parse");
    forbidden_arrows(&survey.mentions).into_iter().collect()
}

#[test]
fn forbidden_arrows_are_found_however_they_are_written() {
    for (file, text) in [
        ("src/store/s3.rs", "use crate::volume::Volume;"),
        ("src/store/s3.rs", "use crate::{metrics::Counter, volume::{self, map}};"),
        ("src/store/s3.rs", "use crate::{self as root}; fn f() { root::volume::open(); }"),
        ("src/store/s3.rs", "use crate as c; fn f(v: c::volume::Volume) {}"),
        ("src/store/s3.rs", "extern crate self as me; fn f(v: &me::volume::Volume) {}"),
        ("src/store/s3.rs", "fn f() { super::super::volume::open(); }"),
        ("src/store/s3.rs", "fn f() { self::super::super::volume::open(); }"),
        ("src/store/s3.rs", "use super::super as up; use up::volume as v; fn f() { v::open() }"),
        ("src/store/s3.rs", "mod inner { use super::super::super::volume::Volume; }"),
        ("src/store/s3.rs", "fn f() { fn g() { use crate::volume::Volume; } }"),
        ("src/store/s3.rs", "fn f() { crate::volume::Volume::open(); }"),
        ("src/store/s3.rs", "fn f() { <crate::volume::Volume as Clone>::clone(x); }"),
        ("src/store/s3.rs", "fn f() { <u8 as crate::volume::Trait>::call(x); }"),
        ("src/store/s3.rs", "struct S { v: Vec<Option<crate::volume::Volume>> }"),
        ("src/store/s3.rs", "impl From<crate::volume::Volume> for u8 { fn from(_: X) -> u8 { 0 } }"),
        ("src/store/s3.rs", "fn f<T: Into<crate::volume::Volume>>() {}"),
        ("src/store/s3.rs", "fn f(x: X) { match x { crate::volume::Kind::A => {} _ => {} } }"),
        ("src/store/s3.rs", "pub(in crate::volume) fn f() {}"),
        ("src/store/s3.rs", "fn f() { println!(\"{}\", crate::volume::SIZE); }"),
        ("src/store/s3.rs", "fn f() { vec![1, (2, cairn::volume::SIZE)]; }"),
        ("src/store/s3.rs", "fn f() { crate::volume::make!(1); }"),
        ("src/store/s3.rs", "macro_rules! m { () => { use $crate::{metrics, volume::Volume}; } }"),
        ("src/store/s3.rs", "macro_rules! m { () => { $crate::volume::open::<u8>() } }"),
        ("src/store/s3.rs", "#[serde(with = \"crate::volume::map\")] struct S;"),
        ("src/store/s3.rs", "#[derive(crate::volume::Derive)] struct S;"),
        ("src/store/s3.rs", "use ::cairn::volume::Volume;"),
        ("src/store/s3.rs", "use cairn::volume::*;"),
        ("src/store/s3.rs", "use crate::*;"),
        ("src/store/s3.rs", "#[cfg(test)] mod tests { use crate::volume::Volume; }"),
        ("src/metrics.rs", "use super::*;"),
        ("src/metrics.rs", "fn f() { super::store::open(); }"),
        ("src/volume/deep/down.rs", "use super::super::super::server;"),
        ("src/volume/map.rs", "use super::*; fn f() { crate::server::f() }"),
        ("src/server/export.rs", "use crate::volume::below::Store;"),
        ("src/protocol/option.rs", "use tokio::io::AsyncRead;"),
        ("src/protocol/option.rs", "use std::{fmt, time::Instant};"),
        ("src/protocol/option.rs", "use std::*;"),
        ("src/protocol/option.rs", "fn f() { tracing::info!(\"x\"); }"),
        ("src/main.rs", "fn main() { cairn::server::run(); }"),
        ("src/main.rs", "use cairn as c; fn main() { c::volume::open(); }"),
        ("src/helpers.rs", "use crate::store::Store;"),
    ] {
        assert!(!arrows_of(file, text).is_empty(), "{file}: {text}");
    }
}

#[test]
fn an_arrow_says_where_and_by_what() {
    let text = "use super::error::Error;\nuse super::super as up;\n\nfn f() { up::volume::open() }\n";
    assert_eq!(arrows_of("src/store/s3.rs", text), ["src/store/s3.rs:4: store → volume, by volume::open"]);
    let text = "use crate::server::Flags;\n";
    assert_eq!(
        arrows_of("src/admin.rs", text),
        ["src/admin.rs:1: admin → protocol, by protocol::Flags"],
        "what another layer re-exports is followed to where it is from"
    );
}

#[test]
fn allowed_arrows_pass() {
    for (file, text) in [
        ("src/store/s3.rs", "use crate::{metrics, task}; use super::error::Error; use super::*;"),
        ("src/store/s3.rs", "use super::counters::Counter; fn f() { self::g(); crate::store::h(); }"),
        (
            "src/store/s3.rs",
            "use bytes::Bytes; use ::uuid::Uuid; fn f(volume: u8) { volume; let server = 1; }",
        ),
        ("src/store/s3.rs", "use proptest::proptest; fn f() { proptest::run(); proptest!(x); }"),
        ("src/store/s3.rs", "use aws::volume; fn f() { volume::x(); } mod server {} fn g() { server::x(); }"),
        ("src/volume/map.rs", "use super::*; use crate::store::Store; fn f() { below::Error; }"),
        ("src/protocol/option.rs", "use std::fmt; use bytes::Bytes; fn f(time: u8) { time; }"),
        ("src/cli.rs", "use crate::{server, volume}; fn f() { super::store::open() }"),
        ("src/main.rs", "fn main() { cairn::cli::run() }"),
    ] {
        assert_eq!(arrows_of(file, text), Vec::<String>::new(), "{file}: {text}");
    }
}
