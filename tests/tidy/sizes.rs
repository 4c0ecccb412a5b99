//! How long functions are and how wide lines are: no exception without a reason.

use std::collections::BTreeMap;

use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

use super::read_tree;

/// Lines of a function at most, from its signature to its last brace.
const MAX_FUNCTION_LINES: usize = 70;

/// Columns of a line at most.
const MAX_COLUMNS: usize = 110;

/// Functions that are longer: file or folder, name, reason.
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[];

/// Files and folders with wider lines: path, how many there are, reason. No more may come.
const WIDE_LINES: &[(&str, usize, &str)] = &[];

struct Functions {
    found: Vec<(String, usize)>,
}

impl Functions {
    fn add(&mut self, name: &syn::Ident, from: proc_macro2::Span, block: &syn::Block) {
        let lines = block.span().end().line + 1 - from.start().line;
        if lines > MAX_FUNCTION_LINES {
            self.found.push((name.to_string(), lines));
        }
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.add(&item.sig.ident, item.sig.span(), &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add(&item.sig.ident, item.sig.span(), &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.add(&item.sig.ident, item.sig.span(), block);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

fn long_functions(text: &str) -> Vec<(String, usize)> {
    let mut functions = Functions { found: Vec::new() };
    functions.visit_file(&syn::parse_file(text).expect("a source parses"));
    functions.found
}

fn wide_lines(text: &str) -> Vec<usize> {
    let wide = text.lines().enumerate().filter(|(_, line)| line.chars().count() > MAX_COLUMNS);
    wide.map(|(number, _)| number + 1).collect()
}

fn is_in(file: &str, place: &str) -> bool {
    file == place || file.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'))
}

#[test]
fn no_function_is_longer_than_a_screen() {
    let (mut wrong, mut excused) = (Vec::new(), Vec::new());
    for (file, text) in read_tree("src") {
        for (name, lines) in long_functions(&text) {
            let reason = LONG_FUNCTIONS.iter().find(|(place, of, _)| is_in(&file, place) && name == *of);
            match reason {
                Some(reason) => excused.push(reason),
                None => {
                    wrong.push(format!("{file}: {name} has {lines} lines, more than {MAX_FUNCTION_LINES}"))
                }
            }
        }
    }
    let idle = LONG_FUNCTIONS.iter().filter(|reason| !excused.contains(reason));
    wrong.extend(idle.map(|(place, name, _)| format!("{place}: {name} needs no exception")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_line_is_wider_than_a_window() {
    let (mut wrong, mut excused) = (Vec::new(), BTreeMap::new());
    for (file, text) in read_tree("src") {
        let wide = wide_lines(&text);
        match WIDE_LINES.iter().find(|(place, ..)| is_in(&file, place)) {
            Some((place, ..)) => *excused.entry(*place).or_insert(0) += wide.len(),
            None => wrong.extend(wide.iter().map(|n| format!("{file}:{n}: more than {MAX_COLUMNS} columns"))),
        }
    }
    for (place, allowed, _) in WIDE_LINES {
        let found = excused.get(place).copied().unwrap_or(0);
        if found > *allowed || found == 0 {
            wrong.push(format!(
                "{place}: {found} lines of more than {MAX_COLUMNS} columns, {allowed} are excused"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn long_functions_and_wide_lines_are_found() {
    let body = |lines: usize| "    g();\n".repeat(lines);
    let long = body(MAX_FUNCTION_LINES - 1);
    assert_eq!(long_functions(&format!("fn f() {{\n{long}}}\n")), [("f".to_owned(), MAX_FUNCTION_LINES + 1)]);
    assert_eq!(
        long_functions(&format!("/// What.\n#[x]\nfn f() {{\n{}}}\n", body(MAX_FUNCTION_LINES - 2))),
        []
    );
    assert_eq!(long_functions(&format!("impl S {{ fn f() {{\n{long}}} }}")).len(), 1, "a method");
    assert_eq!(long_functions(&format!("trait T {{ fn f() {{\n{long}}} }}")).len(), 1, "of a trait");
    let wide = "x".repeat(MAX_COLUMNS + 1);
    assert_eq!(wide_lines(&format!("{}\n{wide}\n", "→".repeat(MAX_COLUMNS))), [2]);
    assert!(is_in("src/a/b.rs", "src/a") && is_in("src/a.rs", "src/a.rs") && !is_in("src/ab.rs", "src/a"));
}
