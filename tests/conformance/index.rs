//! The table of what the specification demands, generated from the citations in the sources and in the tests.
//!
//! A citation is a comment, `//= ` with the title of a section of `doc/proto.md`, a colon and words of the
//! section, and goes on in lines that begin with `//# `. In `src` it stands in the function that does what is
//! demanded, at the line that does it; in the tests it stands before the test that shows it. Both have the
//! same words. README.md is their table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

const TABLE: &str = "tests/conformance/README.md";

/// Where tests that show a demand are: those of a server, those of a client.
const TESTS: &[&str] = &["tests/conformance", "tests/client"];

/// The sections that are cited, in the order of the specification.
const SECTIONS: &[&str] = &[
    "Conventions",
    "Newstyle negotiation",
    "Termination of the session during option haggling",
    "Transmission",
    "Ordering of messages and writes",
    "Structured reply chunk message",
    "Extended reply chunk message",
    "Terminating the transmission phase",
    "Server-side requirements",
    "NOTLS mode",
    "FORCEDTLS mode",
    "SELECTIVETLS mode",
    "Client-side requirements",
    "TLS versions",
    "Metadata querying",
    "The `base:` metadata namespace",
    "Handshake flags",
    "Client flags",
    "Transmission flags",
    "Option types",
    "Option reply types",
    "Command flags",
    "Structured and extended header reply flags",
    "Structured reply types",
    "Request types",
    "Baseline",
];

const HEAD: &str = "\
# What the specification demands, where that is done, and which test shows it

By the sections of NBD's [`doc/proto.md`](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md),
and of its branch `extension-ext-header` for extended headers. This table is generated from the citations
(`//= section: words`) in [`src`](../../src), in the tests of a server, which are in this directory, and in
those of a client, in [`client`](../client). All tests are driven by raw bytes. [`index.rs`](index.rs)
compares the table with the citations.
";

/// What is demanded: the place of its section in [`SECTIONS`], and its words.
type Demand = (usize, String);

#[derive(Debug, Default, PartialEq, Eq)]
struct Places {
    enforced: BTreeSet<String>,
    shown: BTreeSet<String>,
}

/// A citation as it was found.
#[derive(Debug, PartialEq, Eq)]
struct Citation {
    section: String,
    words: String,
    /// The line after its last, from 1.
    next_line: usize,
}

fn citations(text: &str) -> Vec<Citation> {
    let mut found: Vec<Citation> = Vec::new();
    let mut open = false;
    for (at, line) in text.lines().map(str::trim).enumerate() {
        if let Some(first) = line.strip_prefix("//= ") {
            let of =
                |section: &&'static str| Some((*section, first.strip_prefix(*section)?.strip_prefix(": ")?));
            let (section, words) =
                SECTIONS.iter().find_map(of).unwrap_or_else(|| panic!("no section of the list: {line}"));
            found.push(Citation { section: section.to_owned(), words: words.to_owned(), next_line: at + 2 });
            open = true;
        } else if let Some(more) = line.strip_prefix("//# ") {
            assert!(open, "the end of a citation without its start: {line}");
            let citation = found.last_mut().expect("a citation is open");
            citation.words = format!("{} {more}", citation.words);
            citation.next_line = at + 2;
        } else {
            open = false;
        }
    }
    found
}

/// A function of a source: its name, its lines, whether it is a test.
struct Function {
    name: String,
    lines: std::ops::RangeInclusive<usize>,
    is_test: bool,
}

#[derive(Default)]
struct Functions(Vec<Function>);

impl Functions {
    fn of(text: &str) -> Self {
        let mut functions = Self::default();
        functions.visit_file(&syn::parse_file(text).expect("a source is Rust"));
        functions
    }

    fn push(&mut self, name: &syn::Ident, attributes: &[syn::Attribute], span: proc_macro2::Span) {
        let is_test =
            attributes.iter().any(|it| it.path().segments.last().is_some_and(|s| s.ident == "test"));
        let lines = span.start().line..=span.end().line;
        self.0.push(Function { name: name.to_string(), lines, is_test });
    }

    /// The innermost function that has this line.
    fn around(&self, line: usize) -> Option<&Function> {
        self.0.iter().filter(|it| it.lines.contains(&line)).min_by_key(|it| it.lines.end() - it.lines.start())
    }

    /// The function that begins at this line, or after further citations.
    fn from(&self, line: usize) -> Option<&Function> {
        self.0.iter().filter(|it| *it.lines.start() >= line).min_by_key(|it| *it.lines.start())
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.push(&item.sig.ident, &item.attrs, item.span());
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.push(&item.sig.ident, &item.attrs, item.span());
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.push(&item.sig.ident, &item.attrs, item.span());
        visit::visit_trait_item_fn(self, item);
    }
}

/// Adds the citations of one source. Its path is from the crate's root.
fn collect(path: &str, text: &str, demands: &mut BTreeMap<Demand, Places>) {
    let cited = citations(text);
    if cited.is_empty() {
        return;
    }
    let functions = Functions::of(text);
    for Citation { section, words, next_line } in cited {
        let section = SECTIONS.iter().position(|known| *known == section).expect("it was found there");
        let places = demands.entry((section, words.clone())).or_default();
        if let Some(source) = path.strip_prefix("src/") {
            let function = functions.around(next_line);
            let function = function.unwrap_or_else(|| panic!("{path}: no function around: {words}"));
            assert!(!function.is_test, "{path}: a test cannot do what is demanded: {words}");
            places.enforced.insert(format!("{source}: {}", function.name));
        } else {
            let function = functions.from(next_line).filter(|function| function.is_test);
            let function = function.unwrap_or_else(|| panic!("{path}: no test after: {words}"));
            let module = Path::new(path).file_stem().and_then(|it| it.to_str()).expect("a source has a name");
            places.shown.insert(format!("{module}::{}", function.name));
        }
    }
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory of sources can be read") {
        let path = entry.expect("a directory of sources can be read").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn of_the_tree() -> BTreeMap<Demand, Places> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut demands = BTreeMap::new();
    for directory in TESTS.iter().chain(&["src"]) {
        for path in rust_files(&root.join(directory)) {
            // This file's own examples are none.
            if path.ends_with("conformance/index.rs") {
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source can be read");
            let path = path.strip_prefix(root).expect("it is below the root");
            collect(path.to_str().expect("names of sources are plain"), &text, &mut demands);
        }
    }
    demands
}

fn table(demands: &BTreeMap<Demand, Places>) -> String {
    let mut text = HEAD.to_owned();
    let mut section = None;
    let code = |places: &BTreeSet<String>| {
        places.iter().map(|place| format!("`{place}`")).collect::<Vec<_>>().join(", ")
    };
    for ((of, words), Places { enforced, shown }) in demands {
        if section != Some(of) {
            section = Some(of);
            text += &format!("\n## {}\n\n| demand | done in | shown by |\n|---|---|---|\n", SECTIONS[*of]);
        }
        text += &format!("| {words} | {} | {} |\n", code(enforced), code(shown));
    }
    text
}

/// Demands that lack one side, one line each.
fn one_sided(demands: &BTreeMap<Demand, Places>) -> Vec<String> {
    let mut lines = Vec::new();
    for ((_, words), places) in demands {
        if places.enforced.is_empty() {
            lines.push(format!("cited by {:?}, and by no source: {words}", places.shown));
        }
        if places.shown.is_empty() {
            lines.push(format!("cited in {:?}, and shown by no test: {words}", places.enforced));
        }
    }
    lines
}

#[test]
fn what_is_demanded_is_done_and_shown() {
    let demands = of_the_tree();
    assert!(demands.len() >= 85, "{} demands", demands.len());
    assert_eq!(one_sided(&demands), Vec::<String>::new());
    let cited: BTreeSet<usize> = demands.keys().map(|(section, _)| *section).collect();
    assert_eq!(cited.len(), SECTIONS.len(), "every section of the list is cited");
}

#[test]
fn the_table_is_that_of_the_citations() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE);
    let listed = fs::read_to_string(path).expect("the table can be read");
    let found = table(&of_the_tree());
    if found == listed {
        return;
    }
    let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance.md");
    fs::write(&new, &found).expect("the target directory can be written");
    let (old, found): (BTreeSet<&str>, BTreeSet<&str>) = (listed.lines().collect(), found.lines().collect());
    let gone = old.difference(&found).map(|line| format!("- {line}"));
    let added = found.difference(&old).map(|line| format!("+ {line}"));
    let difference: Vec<String> = gone.chain(added).collect();
    panic!(
        "the table is not that of the citations:\n{}\nIf this is meant:\ncp {} tests/conformance/README.md",
        difference.join("\n"),
        new.display()
    );
}

#[test]
fn citations_are_read_and_what_lacks_a_side_is_found() {
    let cite = |words: &str| format!("    //= Client flags: {words}\n    //# in two lines\n");
    let source =
        format!("impl S {{\n fn outer() {{\n fn inner() {{\n{}    close(); }} }}\n}}\n", cite("MUST drop"));
    let test = format!("fn other() {{}}\n{}#[test]\nfn closes() {{}}\n", cite("MUST drop"));
    let mut demands = BTreeMap::new();
    collect("src/server/tls.rs", &source, &mut demands);
    assert_eq!(one_sided(&demands).len(), 1, "no test shows it");
    collect("tests/client/tls.rs", &test, &mut demands);
    assert_eq!(one_sided(&demands), Vec::<String>::new());
    let row = "| MUST drop in two lines | `server/tls.rs: inner` | `tls::closes` |\n";
    assert!(table(&demands).ends_with(row), "{}", table(&demands));
    collect("tests/client/tls.rs", &test.replace("drop", "close"), &mut demands);
    assert_eq!(one_sided(&demands).len(), 1, "other words are another demand, which no source does");
    let untested = test.replace("#[test]\n", "");
    let caught = std::panic::catch_unwind(|| collect("tests/client/tls.rs", &untested, &mut BTreeMap::new()));
    assert!(caught.is_err(), "what comes after the citation is no test");
    let caught = std::panic::catch_unwind(|| citations("//= No such section: MUST"));
    assert!(caught.is_err(), "a section that is not listed");
}
