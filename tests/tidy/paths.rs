//! Follows every path of a crate's sources to what it names.
//!
//! Sources come as `(file, text)`; the answer is a list of [`Mention`]s. Paths are taken from `use` trees, types,
//! expressions, patterns, visibilities, attributes (strings that are paths too) and the tokens of macros, and are
//! resolved through `crate`, `self`, `super`, renamed and glob imports and re-exports. It must not know which paths
//! are allowed. Invariant: where it cannot tell which of two things a path names, it mentions both.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// Name of the library, by which `src/main.rs` and macros may call it.
const LIBRARY: &str = "cairn";

/// Imports followed for one path at most: more is a circle.
const MAX_STEPS: usize = 100;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// Something of this crate: segments from the root. A trailing `*` stands for all that is there.
    Here(Vec<String>),
    /// Something of another crate, or local to the file.
    Elsewhere(Vec<String>),
}

/// A path, where it stands, and what it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mention {
    /// File.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Module in which it stands, from the root; that of `src/main.rs` is `main`.
    pub module: Vec<String>,
    /// Whether it stands in code that only tests see.
    pub in_tests: bool,
    /// What it names.
    pub target: Target,
}

/// A module declared, or a call of `.unwrap()`: what rules other than that of the layers ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    /// File.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Name of the module; `unwrap` for a call.
    pub name: String,
}

/// All that the sources say.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Every path.
    pub mentions: Vec<Mention>,
    /// Every module: of a file, or within one.
    pub modules: Vec<Spot>,
    /// Every `.unwrap()` that is not in tests.
    pub unwraps: Vec<Spot>,
    /// What would let sources escape this survey: `#[path]`, `include!`, `#[macro_use]`.
    pub evasions: Vec<Spot>,
}

/// A path as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Written {
    module: Vec<String>,
    absolute: bool,
    segments: Vec<String>,
}

#[derive(Default)]
struct Names {
    imports: BTreeMap<(Vec<String>, String), BTreeSet<Written>>,
    globs: BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
    modules: BTreeSet<Vec<String>>,
}

struct Raw {
    file: String,
    line: usize,
    in_tests: bool,
    path: Written,
}

/// Surveys sources.
///
/// # Errors
/// If one is not Rust.
pub(super) fn survey(sources: &[(&str, &str)]) -> Result<Survey, String> {
    let mut survey = Survey::default();
    let (mut names, mut raws, mut test_modules) = (Names::default(), Vec::new(), BTreeSet::new());
    let (mut globs, mut parsed) = (Vec::new(), Vec::new());
    for (file, text) in sources {
        let syntax = syn::parse_file(text).map_err(|e| format!("{file}:{}: {e}", e.span().start().line))?;
        parsed.push((*file, module_of(file), syntax));
    }
    // A module's declaration comes before its file, so that the file is known to hold tests only.
    parsed.sort_by_key(|(_, module, _)| module.len());
    for (file, module, syntax) in &parsed {
        if let Some(name) = module.last() {
            survey.modules.push(Spot { file: (*file).into(), line: 1, name: name.clone() });
        }
        names.modules.insert(module.clone());
        let in_tests = (0..=module.len()).any(|end| test_modules.contains(&module[..end]));
        let mut walk = Walk {
            file,
            module: module.clone(),
            in_tests,
            names: &mut names,
            globs: &mut globs,
            raws: &mut raws,
            survey: &mut survey,
            test_modules: &mut test_modules,
        };
        walk.visit_file(syntax);
    }
    names.settle_globs(&globs);
    for Raw { file, line, in_tests, path } in raws {
        for target in names.resolve(&path) {
            let (file, module) = (file.clone(), path.module.clone());
            survey.mentions.push(Mention { file, line, module, in_tests, target });
        }
    }
    Ok(survey)
}

/// The module that a file is.
pub(super) fn module_of(file: &str) -> Vec<String> {
    let path = file.strip_prefix("src/").unwrap_or(file).trim_end_matches(".rs");
    let mut segments: Vec<String> = path.split('/').map(str::to_owned).collect();
    if segments.last().is_some_and(|s| s == "mod") || segments == ["lib"] {
        segments.pop();
    }
    segments
}

impl Names {
    /// All that a path may name.
    fn resolve(&self, path: &Written) -> BTreeSet<Target> {
        let mut found = BTreeSet::new();
        self.follow(path, &mut BTreeSet::new(), &mut found);
        found
    }

    fn follow(&self, path: &Written, seen: &mut BTreeSet<Written>, found: &mut BTreeSet<Target>) {
        if seen.len() > MAX_STEPS || !seen.insert(path.clone()) {
            return;
        }
        let (module, segments) = (&path.module, &path.segments);
        let Some(first) = segments.first() else { return };
        let root = if module.first().is_some_and(|m| m == "main") { &module[..1] } else { &module[..0] };
        match first.as_str() {
            LIBRARY if path.absolute => self.here(segments[1..].to_vec(), seen, found),
            _ if path.absolute => drop(found.insert(Target::Elsewhere(segments.clone()))),
            "crate" => self.here([root, &segments[1..]].concat(), seen, found),
            "self" | "super" => {
                let mut base = module.clone();
                let mut rest = &segments[..];
                while let Some(step) = rest.first().filter(|s| *s == "self" || *s == "super") {
                    if step == "super" {
                        base.pop();
                    }
                    rest = &rest[1..];
                }
                self.here([&base[..], rest].concat(), seen, found);
            }
            name => {
                let child = [&module[..], &[name.to_owned()]].concat();
                let targets = self.named(module, name);
                if self.modules.contains(&child) {
                    self.here([&child[..], &segments[1..]].concat(), seen, found);
                }
                for target in &targets {
                    let segments = [&target.segments[..], &segments[1..]].concat();
                    // `use proptest::proptest` imports from the crate of that name, not from what it imports.
                    let absolute = target.absolute || target.segments[0] == name;
                    let module = target.module.clone();
                    self.follow(&Written { module, absolute, segments }, seen, found);
                }
                if name == LIBRARY {
                    self.here(segments[1..].to_vec(), seen, found);
                } else if targets.is_empty() && !self.modules.contains(&child) {
                    found.insert(Target::Elsewhere(segments.clone()));
                }
            }
        }
    }

    /// A path from the root, and what it stands for by every import that it passes.
    fn here(&self, path: Vec<String>, seen: &mut BTreeSet<Written>, found: &mut BTreeSet<Target>) {
        for at in 0..path.len() {
            for target in self.named(&path[..at], &path[at]) {
                let segments = [&target.segments[..], &path[at + 1..]].concat();
                self.follow(&Written { segments, ..target }, seen, found);
            }
        }
        found.insert(Target::Here(path));
    }

    /// What a name was imported as into a module, by name or by a glob.
    fn named(&self, module: &[String], name: &str) -> BTreeSet<Written> {
        let mut targets = BTreeSet::new();
        let (mut modules, mut at) = (vec![module.to_vec()], 0);
        while let Some(module) = modules.get(at).cloned() {
            let child = [&module[..], &[name.to_owned()]].concat();
            if at > 0 && self.modules.contains(&child) {
                let segments = [&["crate".to_owned()], &child[..]].concat();
                targets.insert(Written { module: Vec::new(), absolute: false, segments });
            }
            let globbed = self.globs.get(&module).into_iter().flatten();
            let more: Vec<_> = globbed.filter(|base| !modules.contains(base)).cloned().collect();
            modules.extend(more);
            targets.extend(self.imports.get(&(module, name.to_owned())).into_iter().flatten().cloned());
            at += 1;
        }
        targets
    }

    /// Finds the modules whose names globs take. One may be named through another, so until nothing is new.
    fn settle_globs(&mut self, globs: &[Written]) {
        loop {
            let mut grown = false;
            for glob in globs {
                for target in self.resolve(glob) {
                    if let Target::Here(base) = target {
                        grown |= self.globs.entry(glob.module.clone()).or_default().insert(base);
                    }
                }
            }
            if !grown {
                return;
            }
        }
    }
}

/// Walks one file.
struct Walk<'a> {
    file: &'a str,
    module: Vec<String>,
    in_tests: bool,
    names: &'a mut Names,
    globs: &'a mut Vec<Written>,
    raws: &'a mut Vec<Raw>,
    survey: &'a mut Survey,
    test_modules: &'a mut BTreeSet<Vec<String>>,
}

impl Walk<'_> {
    fn mention(&mut self, absolute: bool, segments: Vec<String>, span: Span) {
        let path = Written { module: self.module.clone(), absolute, segments };
        let line = span.start().line;
        self.raws.push(Raw { file: self.file.to_owned(), line, in_tests: self.in_tests, path });
    }

    fn spot(&self, name: impl Into<String>, span: Span) -> Spot {
        Spot { file: self.file.to_owned(), line: span.start().line, name: name.into() }
    }

    fn unwrap(&mut self, span: Span) {
        if !self.in_tests {
            let spot = self.spot("unwrap", span);
            self.survey.unwraps.push(spot);
        }
    }

    fn within_tests(&mut self, attributes: &[syn::Attribute], walk: impl FnOnce(&mut Self)) {
        let before = self.in_tests;
        self.in_tests |= attributes.iter().any(is_for_tests);
        walk(self);
        self.in_tests = before;
    }

    fn import(&mut self, name: String, absolute: bool, segments: Vec<String>) {
        let target = Written { module: self.module.clone(), absolute, segments };
        self.names.imports.entry((self.module.clone(), name)).or_default().insert(target);
    }

    fn use_tree(&mut self, tree: &syn::UseTree, absolute: bool, prefix: &[String]) {
        let with = |ident: &syn::Ident| [prefix, &[ident.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.use_tree(&path.tree, absolute, &with(&path.ident)),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|item| self.use_tree(item, absolute, prefix));
            }
            syn::UseTree::Name(leaf) if leaf.ident == "self" => {
                if let Some(name) = prefix.last() {
                    self.import(name.clone(), absolute, prefix.to_vec());
                }
                self.mention(absolute, prefix.to_vec(), leaf.ident.span());
            }
            syn::UseTree::Name(leaf) => {
                self.import(leaf.ident.to_string(), absolute, with(&leaf.ident));
                self.mention(absolute, with(&leaf.ident), leaf.ident.span());
            }
            syn::UseTree::Rename(leaf) => {
                let path = if leaf.ident == "self" { prefix.to_vec() } else { with(&leaf.ident) };
                self.import(leaf.rename.to_string(), absolute, path.clone());
                self.mention(absolute, path, leaf.ident.span());
            }
            syn::UseTree::Glob(leaf) => {
                let segments = prefix.to_vec();
                self.globs.push(Written { module: self.module.clone(), absolute, segments });
                self.mention(absolute, [prefix, &["*".to_owned()]].concat(), leaf.star_token.spans[0]);
            }
        }
    }

    /// Paths among the tokens of a macro; `prefix` is what a `{}` group of a use tree continues.
    fn tokens(&mut self, tokens: TokenStream, prefix: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let colons = |at: usize| is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':');
        let mut at = 0;
        while at < tokens.len() {
            let absolute = colons(at) && at.checked_sub(1).is_none_or(|b| !ends_a_path(&tokens[b]));
            let start = if absolute { at + 2 } else { at };
            match tokens.get(start) {
                Some(TokenTree::Ident(first)) => {
                    let mut segments = [prefix, &[first.to_string()]].concat();
                    at = start + 1;
                    while colons(at) {
                        match tokens.get(at + 2) {
                            Some(TokenTree::Ident(next)) => segments.push(next.to_string()),
                            Some(TokenTree::Punct(p)) if p.as_char() == '*' => segments.push("*".to_owned()),
                            Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Brace => {
                                self.tokens(g.stream(), &segments);
                            }
                            _ => break,
                        }
                        at += 3;
                    }
                    if segments.len() > 1 {
                        self.mention(absolute, segments, first.span());
                    }
                    let called = start > 0 && is_punct(tokens.get(start - 1), '.');
                    let empty = matches!(tokens.get(at), Some(TokenTree::Group(g)) if g.stream().is_empty());
                    if called && empty && first == "unwrap" {
                        self.unwrap(first.span());
                    }
                }
                Some(TokenTree::Group(group)) => {
                    self.tokens(group.stream(), &[]);
                    at = start + 1;
                }
                _ => at += 1,
            }
        }
    }
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(p)) if p.as_char() == wanted)
}

/// Whether `::` after this token goes on with a path that began before it.
fn ends_a_path(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Ident(_)) || is_punct(Some(token), '>')
}

/// Whether an attribute keeps what it stands on out of the program: `#[test]`, `#[cfg(test)]` and the like.
fn is_for_tests(attribute: &syn::Attribute) -> bool {
    let path = attribute.path();
    match &attribute.meta {
        syn::Meta::List(list) if path.is_ident("cfg") => {
            let condition = list.tokens.to_string().replace(' ', "");
            condition == "test" || condition.starts_with("all(test,")
        }
        _ => path.segments.last().is_some_and(|s| s.ident == "test"),
    }
}

impl<'ast> Visit<'ast> for Walk<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes: &[syn::Attribute] = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            _ => &[],
        };
        self.within_tests(attributes, |walk| visit::visit_item(walk, item));
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.within_tests(&item.attrs, |walk| visit::visit_impl_item_fn(walk, item));
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        self.names.modules.insert(self.module.clone());
        if self.in_tests {
            self.test_modules.insert(self.module.clone());
        }
        if item.content.is_some() {
            let spot = self.spot(item.ident.to_string(), item.ident.span());
            self.survey.modules.push(spot);
        }
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.visit_visibility(&item.vis);
        self.use_tree(&item.tree, item.leading_colon.is_some(), &[]);
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        let name = item.rename.as_ref().map_or_else(|| item.ident.to_string(), |(_, name)| name.to_string());
        let real = if item.ident == "self" { "crate".to_owned() } else { item.ident.to_string() };
        self.import(name, item.ident != "self", vec![real]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter().map(|s| s.ident.to_string()).collect();
        let span = path.segments.first().map_or_else(Span::call_site, |s| s.ident.span());
        self.mention(path.leading_colon.is_some(), segments, span);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        if called.path.segments.last().is_some_and(|s| s.ident == "include") {
            let spot = self.spot("include!", called.bang_token.span);
            self.survey.evasions.push(spot);
        }
        self.tokens(called.tokens.clone(), &[]);
        visit::visit_macro(self, called);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        for name in ["path", "macro_use"].into_iter().filter(|name| attribute.path().is_ident(name)) {
            let spot = self.spot(format!("#[{name}]"), attribute.pound_token.span);
            self.survey.evasions.push(spot);
        }
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone(), &[]);
            self.strings(list.tokens.clone());
        }
        visit::visit_attribute(self, attribute);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if call.method == "unwrap" && call.args.is_empty() {
            self.unwrap(call.method.span());
        }
        visit::visit_expr_method_call(self, call);
    }
}

impl Walk<'_> {
    /// Strings that are paths, as in `#[serde(with = "crate::config::size")]`.
    fn strings(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.strings(group.stream()),
                TokenTree::Literal(literal) => {
                    let text = literal.to_string();
                    if let Ok(path) = syn::parse_str::<syn::Path>(text.trim_matches('"'))
                        && path.segments.len() > 1
                    {
                        let segments = path.segments.iter().map(|s| s.ident.to_string()).collect();
                        self.mention(path.leading_colon.is_some(), segments, literal.span());
                    }
                }
                _ => {}
            }
        }
    }
}
