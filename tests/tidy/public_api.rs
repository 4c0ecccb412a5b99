//! The public interface of the library, as a list that is compared with the sources:
//! `tests/tidy/public-api.txt`.
//!
//! The library is what is public without the feature `gateway`, and not `#[doc(hidden)]`. Whoever changes the
//! interface changes the list in the same commit, so that a change is seen in a review. It reads the sources
//! and resolves no types: an `impl` belongs to the type whose name it has, within its layer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::read_tree;

const LISTED: &str = "tests/tidy/public-api.txt";

/// The parsed sources by path, such as `src/protocol/mod.rs`.
struct Sources(BTreeMap<String, syn::File>);

impl Sources {
    fn parse(sources: &[(String, String)]) -> Self {
        let parse = |(path, text): &(String, String)| {
            (path.clone(), syn::parse_file(text).expect("a source is Rust"))
        };
        Self(sources.iter().map(parse).collect())
    }

    /// The file of a module: `a/b.rs` or `a/b/mod.rs`.
    fn module(&self, path: &[String]) -> &syn::File {
        let joined = path.join("/");
        let found = if path.is_empty() { self.0.get("src/lib.rs") } else { None };
        found
            .or_else(|| self.0.get(&format!("src/{joined}.rs")))
            .or_else(|| self.0.get(&format!("src/{joined}/mod.rs")))
            .unwrap_or_else(|| panic!("the module {joined} has a file"))
    }

    /// Every `impl` of a type in the layer of a module, outside of tests.
    fn impls(&self, layer: &str, name: &str) -> Vec<&syn::ItemImpl> {
        let within =
            |path: &str| path.starts_with(&format!("src/{layer}/")) || path == format!("src/{layer}.rs");
        let files = self.0.iter().filter(|(path, _)| within(path));
        files
            .flat_map(|(_, file)| &file.items)
            .filter_map(|item| match item {
                syn::Item::Impl(item) if self_name(item).is_some_and(|found| found == name) => Some(item),
                _ => None,
            })
            .collect()
    }
}

fn self_name(item: &syn::ItemImpl) -> Option<String> {
    match &*item.self_ty {
        syn::Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
        _ => None,
    }
}

/// Source text in one line, however it was broken.
fn flat(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = text.replace("( ", "(").replace(", )", ")").replace(" )", ")");
    text.replace("< ", "<").replace(", >", ">").replace(" >", ">").replace(" ->", "->").replace("->", " ->")
}

/// The text of a piece of source.
fn text(piece: &impl syn::spanned::Spanned) -> String {
    flat(&piece.span().source_text().expect("spans have locations"))
}

fn is_public(visibility: &syn::Visibility) -> bool {
    matches!(visibility, syn::Visibility::Public(_))
}

fn says(attributes: &[syn::Attribute], wanted: &str) -> bool {
    attributes.iter().any(|attribute| text(attribute).replace(' ', "") == wanted.replace(' ', ""))
}

/// Whether an item is no part of the library.
fn is_left_out(attributes: &[syn::Attribute]) -> bool {
    ["#[cfg(feature = \"gateway\")]", "#[doc(hidden)]", "#[cfg(test)]"].iter().any(|it| says(attributes, it))
}

/// Derives and `#[non_exhaustive]`, one line each.
fn attributes(attributes: &[syn::Attribute]) -> Vec<String> {
    let shown = ["derive", "cfg_attr", "non_exhaustive", "cfg"];
    let kept = attributes.iter().filter(|it| shown.iter().any(|name| it.path().is_ident(name)));
    kept.map(text).collect()
}

/// The fields that others can name; `..` where there are more.
fn fields(fields: &syn::Fields, in_enum: bool) -> String {
    let mut parts = Vec::new();
    let mut hidden = false;
    for field in fields {
        if !in_enum && !is_public(&field.vis) {
            hidden = true;
            continue;
        }
        let of_type = text(&field.ty);
        parts.push(field.ident.as_ref().map_or_else(|| of_type.clone(), |name| format!("{name}: {of_type}")));
    }
    if hidden {
        parts.push("..".to_owned());
    }
    match fields {
        syn::Fields::Unit => String::new(),
        syn::Fields::Named(_) => format!(" {{ {} }}", parts.join(", ")),
        syn::Fields::Unnamed(_) => format!("({})", parts.join(", ")),
    }
}

struct Listing<'a> {
    sources: &'a Sources,
    lines: Vec<String>,
}

impl Listing<'_> {
    fn module(&mut self, path: &[String]) {
        let file = self.sources.module(path);
        let (mut items, mut modules) = (Vec::new(), Vec::new());
        let mut child_is_public = BTreeMap::new();
        for item in &file.items {
            if let syn::Item::Mod(item) = item {
                let public = is_public(&item.vis) && !is_left_out(&item.attrs);
                child_is_public.insert(item.ident.to_string(), public);
                if public {
                    modules.push([path, &[item.ident.to_string()]].concat());
                }
            }
        }
        if !path.is_empty() {
            self.lines.push(format!("mod {}", path.join("::")));
        }
        for item in &file.items {
            match item {
                syn::Item::Use(item) if is_public(&item.vis) && !is_left_out(&item.attrs) => {
                    for (from, name, original) in leaves(&item.tree, &[]) {
                        let first = from.first().cloned().unwrap_or_default();
                        if child_is_public.get(&first).copied().unwrap_or(true) {
                            items.push((
                                name.clone(),
                                vec![format!("use {}", [&from[..], &[name]].concat().join("::"))],
                            ));
                        } else {
                            let module = [path, &from[..]].concat();
                            items.extend(self.find(&module, &original));
                        }
                    }
                }
                item => items.extend(self.item(&path[..path.len().min(1)], item)),
            }
        }
        items.sort();
        for (_, lines) in items {
            self.lines.extend(lines.into_iter().map(|line| format!("    {line}")));
        }
        modules.sort();
        for module in modules {
            self.module(&module);
        }
    }

    /// An item of a module that is private, and what it re-exports.
    fn find(&self, module: &[String], name: &str) -> Vec<(String, Vec<String>)> {
        let file = self.sources.module(module);
        for item in &file.items {
            if let syn::Item::Use(item) = item {
                let found = leaves(&item.tree, &[]).into_iter().find(|(_, leaf, _)| leaf == name);
                if let (true, Some((from, _, original))) = (is_public(&item.vis), found) {
                    return self.find(&[module, &from[..]].concat(), &original);
                }
            }
        }
        let items = file.items.iter().flat_map(|item| self.item(&module[..1], item));
        let found: Vec<_> = items.filter(|(found, _)| found == name).collect();
        assert!(!found.is_empty(), "{}::{name} is re-exported and found", module.join("::"));
        found
    }

    /// The lines of a public item, by its name.
    fn item(&self, layer: &[String], item: &syn::Item) -> Vec<(String, Vec<String>)> {
        let Some(layer) = layer.first() else { return Vec::new() };
        match item {
            syn::Item::Struct(it) if is_public(&it.vis) && !is_left_out(&it.attrs) => {
                let name = it.ident.to_string();
                let mut lines = attributes(&it.attrs);
                let generics = if it.generics.params.is_empty() { String::new() } else { text(&it.generics) };
                lines.push(format!("struct {name}{generics}{}", fields(&it.fields, false)));
                lines.extend(self.implemented(layer, &name));
                vec![(name, lines)]
            }
            syn::Item::Enum(it) if is_public(&it.vis) && !is_left_out(&it.attrs) => {
                let name = it.ident.to_string();
                let mut lines = attributes(&it.attrs);
                lines.push(format!("enum {name}"));
                for variant in &it.variants {
                    lines.push(format!("    {}{}", variant.ident, fields(&variant.fields, true)));
                }
                lines.extend(self.implemented(layer, &name));
                vec![(name, lines)]
            }
            syn::Item::Fn(it) if is_public(&it.vis) && !is_left_out(&it.attrs) => {
                vec![(it.sig.ident.to_string(), vec![text(&it.sig)])]
            }
            syn::Item::Const(it) if is_public(&it.vis) && !is_left_out(&it.attrs) => {
                let line = format!("const {}: {} = {}", it.ident, text(&it.ty), text(&it.expr));
                vec![(it.ident.to_string(), vec![line])]
            }
            syn::Item::Type(it) if is_public(&it.vis) && !is_left_out(&it.attrs) => {
                vec![(it.ident.to_string(), vec![format!("type {} = {}", it.ident, text(&it.ty))])]
            }
            syn::Item::Trait(it) if is_public(&it.vis) && !is_left_out(&it.attrs) => {
                let name = it.ident.to_string();
                let bounds = if it.supertraits.is_empty() {
                    String::new()
                } else {
                    format!(": {}", text(&it.supertraits))
                };
                let mut lines = vec![format!("trait {name}{bounds}")];
                for item in &it.items {
                    if let syn::TraitItem::Fn(item) = item {
                        let provided = if item.default.is_some() { "    (has a default)" } else { "" };
                        lines.push(format!("    {}{provided}", text(&item.sig)));
                    }
                }
                vec![(name, lines)]
            }
            syn::Item::Macro(it) if it.mac.path.is_ident("wire_flags") => flags(&it.mac.tokens),
            _ => Vec::new(),
        }
    }

    /// What is implemented for a type: traits, then methods and constants, in order of name.
    fn implemented(&self, layer: &str, name: &str) -> Vec<String> {
        let (mut traits, mut members) = (BTreeSet::new(), BTreeSet::new());
        for item in self.sources.impls(layer, name) {
            if is_left_out(&item.attrs) {
                continue;
            }
            if let Some((_, path, _)) = &item.trait_ {
                traits.insert(format!("    impl {}", text(path)));
                continue;
            }
            for member in &item.items {
                match member {
                    syn::ImplItem::Fn(it) if is_public(&it.vis) && !is_left_out(&it.attrs) => {
                        members.insert(format!("    {}", text(&it.sig)));
                    }
                    syn::ImplItem::Const(it) if is_public(&it.vis) => {
                        members.insert(format!("    const {}: {}", it.ident, text(&it.ty)));
                    }
                    _ => {}
                }
            }
        }
        traits.into_iter().chain(members).collect()
    }
}

/// Each name that a `use` brings in: its module, its name here, its name there.
fn leaves(tree: &syn::UseTree, prefix: &[String]) -> Vec<(Vec<String>, String, String)> {
    match tree {
        syn::UseTree::Path(path) if path.ident == "self" => leaves(&path.tree, prefix),
        syn::UseTree::Path(path) => leaves(&path.tree, &[prefix, &[path.ident.to_string()]].concat()),
        syn::UseTree::Group(group) => group.items.iter().flat_map(|item| leaves(item, prefix)).collect(),
        syn::UseTree::Name(leaf) => vec![(prefix.to_vec(), leaf.ident.to_string(), leaf.ident.to_string())],
        syn::UseTree::Rename(leaf) => {
            vec![(prefix.to_vec(), leaf.rename.to_string(), leaf.ident.to_string())]
        }
        syn::UseTree::Glob(_) => panic!("the public interface lists what it re-exports by name"),
    }
}

/// A type that `wire_flags!` declares: its name, its bits, its flags. The macro's own methods are the same
/// for all.
fn flags(tokens: &proc_macro2::TokenStream) -> Vec<(String, Vec<String>)> {
    let source: String = tokens.to_string();
    // Doc comments are tokens here: `#[doc = "..."]`.
    let mut plain = String::new();
    let mut rest = source.as_str();
    while let Some((before, after)) = rest.split_once("#[doc").or_else(|| rest.split_once("# [doc")) {
        plain.push_str(before);
        rest = after.split_once("\"]").map_or("", |(_, rest)| rest);
    }
    plain.push_str(rest);
    let (head, body) = plain.split_once('{').expect("flags stand in braces");
    let (name, bits) = head.split_once(':').expect("flags have a type");
    let (name, bits) = (name.trim().to_owned(), bits.trim());
    let mut lines = vec![format!("flags {name}: {bits}")];
    for flag in body.trim_end_matches('}').split(';').map(str::trim).filter(|flag| !flag.is_empty()) {
        lines.push(format!("    {}", flag.trim_end_matches('}').trim()));
    }
    vec![(name, lines)]
}

fn listing(sources: &[(String, String)]) -> Vec<String> {
    let sources = Sources::parse(sources);
    let mut listing = Listing { sources: &sources, lines: Vec::new() };
    listing.module(&[]);
    listing.lines
}

fn of_the_tree() -> Vec<String> {
    listing(&read_tree("src"))
}

/// Lines that only one side has, with their mark, in order.
fn difference(listed: &[&str], found: &[String]) -> Vec<String> {
    let count = |lines: &[&str]| {
        let mut counts: BTreeMap<String, isize> = BTreeMap::new();
        lines.iter().for_each(|line| *counts.entry((*line).to_owned()).or_default() += 1);
        counts
    };
    let (mut listed_only, found_all) = (count(listed), found.iter().map(String::as_str).collect::<Vec<_>>());
    let mut lines = Vec::new();
    for line in &found_all {
        match listed_only.get_mut(*line) {
            Some(left) if *left > 0 => *left -= 1,
            _ => lines.push(format!("+ {line}")),
        }
    }
    let gone = listed_only.into_iter().filter(|(_, left)| *left > 0);
    lines.extend(gone.map(|(line, _)| format!("- {line}")));
    lines
}

#[test]
fn the_public_interface_is_as_listed() {
    let found = of_the_tree();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(LISTED);
    let listed = std::fs::read_to_string(path).expect("the list can be read");
    let listed: Vec<&str> = listed.lines().collect();
    if listed == found {
        return;
    }
    let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("public-api.txt");
    std::fs::write(&new, found.join("\n") + "\n").expect("the target directory can be written");
    let difference = difference(&listed, &found).join("\n");
    panic!(
        "the public interface is not what is listed:\n{difference}\nIf this is meant:\n\
         cp {} tests/tidy/public-api.txt",
        new.display()
    );
}

/// "Display for every type of the protocol": what can be logged can be read.
#[test]
fn every_type_of_the_protocol_has_display() {
    let found = of_the_tree();
    let start = found.iter().position(|line| line == "mod protocol").expect("the protocol is public");
    let names: BTreeSet<String> = found[start + 1..]
        .iter()
        .take_while(|line| !line.starts_with("mod "))
        .filter_map(|line| line.trim().strip_prefix("use "))
        .filter_map(|path| path.rsplit("::").next().map(str::to_owned))
        .collect();
    assert!(names.len() > 25, "{names:?}");
    let mut type_name = String::new();
    let mut has_error_derive = false;
    let mut shown = BTreeSet::new();
    for line in found.iter().filter(|line| line.starts_with("    ")) {
        let line = line.trim();
        if line.starts_with("#[derive") {
            has_error_derive = line.contains("thiserror::Error");
        }
        for kind in ["struct ", "enum ", "flags "] {
            if let Some(rest) = line.strip_prefix(kind) {
                type_name = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
                // `wire_flags!` and `thiserror::Error` implement it.
                if kind == "flags " || has_error_derive {
                    shown.insert(type_name.clone());
                }
                has_error_derive = false;
            }
        }
        if matches!(line, "impl fmt::Display" | "impl Display") {
            shown.insert(type_name.clone());
        }
    }
    let silent: Vec<_> = names.difference(&shown).collect();
    assert!(silent.is_empty(), "without Display: {silent:?}");
}

#[test]
fn what_changes_in_the_interface_shows() {
    let lib =
        "pub mod wire; #[cfg(feature = \"gateway\")] pub mod store; #[doc(hidden)] pub mod task; mod inner;";
    let wire = "mod deep; pub use deep::{Deep as Shown}; \
                #[derive(Clone)] #[non_exhaustive] pub enum Kind { A, B(u8), C { at: u64 } } \
                impl Kind { pub fn value(self) -> u16 { 1 } pub(crate) fn hidden(&self) {} } \
                impl std::fmt::Display for Kind {} \
                pub trait Export: Send { fn read(&self, at: u64) -> u8; fn trim(&self) {} } \
                #[cfg(test)] impl Kind { pub fn tested() {} }";
    let deep = "pub struct Deep { pub at: u64, secret: u8 } impl Deep { pub const LENGTH: usize = 8; }";
    let of = |wire: &str| {
        let sources = [
            ("src/lib.rs", lib),
            ("src/wire/mod.rs", wire),
            ("src/wire/deep.rs", deep),
            ("src/store.rs", "pub struct Store;"),
            ("src/task.rs", "pub struct Tasks;"),
            ("src/inner.rs", "pub struct Inner;"),
        ];
        listing(&sources.map(|(path, text)| (path.to_owned(), text.to_owned())))
    };
    let before = of(wire);
    assert_eq!(
        before,
        [
            "mod wire",
            "    struct Deep { at: u64, .. }",
            "        const LENGTH: usize",
            "    trait Export: Send",
            "        fn read(&self, at: u64) -> u8",
            "        fn trim(&self)    (has a default)",
            "    #[derive(Clone)]",
            "    #[non_exhaustive]",
            "    enum Kind",
            "        A",
            "        B(u8)",
            "        C { at: u64 }",
            "        impl std::fmt::Display",
            "        fn value(self) -> u16",
        ]
    );
    let lines: Vec<&str> = before.iter().map(String::as_str).collect();
    for (old, new, expected) in [
        ("A, B", "A, D, B", "+         D"),
        ("-> u16", "-> u32", "+         fn value(self) -> u32"),
        ("#[non_exhaustive]", "", "-     #[non_exhaustive]"),
        ("at: u64) -> u8", "at: u64, length: u32) -> u8", "-         fn read(&self, at: u64) -> u8"),
    ] {
        let changed = difference(&lines, &of(&wire.replace(old, new)));
        assert!(changed.iter().any(|line| line == expected), "{old} → {new}: {changed:?}");
    }
    assert_eq!(difference(&lines, &before), Vec::<String>::new());
}
