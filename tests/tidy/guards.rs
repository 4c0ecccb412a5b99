//! Faults stand where guards stand: a mutant is a condition, and no code exists for its sake alone.
//!
//! The rule has three parts. `mutant::is(Mutant::Name)` stands in the condition of an `if` or in the guard of a
//! match arm, alone or joined with `!`, `&&` and `||`; elsewhere it is joined with an honest condition by `&&` or
//! `||`. Code that only a mutant reaches is one statement. Nothing else of `mutant` is used outside `src/mutant.rs`.

use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

use super::read_tree;

/// The file that declares the mutants.
const LIST: &str = "src/mutant.rs";

/// What a file imports to ask whether it commits a fault.
const IMPORT: &str = "use crate::mutant::{self, Mutant};";

/// What a condition that asks for a mutant is made of.
#[derive(Clone, Copy, Default)]
struct Joined {
    mutants: usize,
    others: usize,
}

struct Guards<'a> {
    file: &'a str,
    guards: usize,
    found: Vec<String>,
}

/// The condition inside parentheses.
fn bare(mut condition: &syn::Expr) -> &syn::Expr {
    while let syn::Expr::Paren(inner) = condition {
        condition = &inner.expr;
    }
    condition
}

/// The condition that `!` negates, if it does.
fn negated(condition: &syn::Expr) -> Option<&syn::Expr> {
    match bare(condition) {
        syn::Expr::Unary(syn::ExprUnary { op: syn::UnOp::Not(_), expr, .. }) => Some(bare(expr)),
        _ => None,
    }
}

/// Whether an expression is `mutant::is(Mutant::Name)`.
fn is_mutant(expression: &syn::Expr) -> bool {
    let syn::Expr::Call(call) = bare(expression) else { return false };
    let (syn::Expr::Path(called), Some(syn::Expr::Path(name))) = (&*call.func, call.args.first()) else {
        return false;
    };
    let segments = |path: &syn::Path| path.segments.iter().map(|s| s.ident.to_string()).collect::<Vec<_>>();
    segments(&called.path) == ["mutant", "is"]
        && call.args.len() == 1
        && matches!(&segments(&name.path)[..], [list, _] if list == "Mutant")
}

/// Whether a condition holds only with a mutant.
fn needs_mutant(condition: &syn::Expr) -> bool {
    match bare(condition) {
        syn::Expr::Binary(syn::ExprBinary { left, op: syn::BinOp::And(_), right, .. }) => {
            needs_mutant(left) || needs_mutant(right)
        }
        syn::Expr::Binary(syn::ExprBinary { left, op: syn::BinOp::Or(_), right, .. }) => {
            needs_mutant(left) && needs_mutant(right)
        }
        other => is_mutant(other),
    }
}

/// The most statements of one block of an expression.
fn statements(expression: &syn::Expr) -> usize {
    struct Longest(usize);
    impl<'ast> Visit<'ast> for Longest {
        fn visit_block(&mut self, block: &'ast syn::Block) {
            self.0 = self.0.max(block.stmts.len());
            visit::visit_block(self, block);
        }
    }
    let mut longest = Longest(0);
    longest.visit_expr(expression);
    longest.0
}

impl Guards<'_> {
    fn complain(&mut self, span: proc_macro2::Span, why: &str) {
        self.found.push(format!("{}:{}: {why}", self.file, span.start().line));
    }

    /// Walks through a condition and accepts the mutants that it is joined from.
    fn condition(&mut self, condition: &syn::Expr) -> Joined {
        match bare(condition) {
            syn::Expr::Binary(syn::ExprBinary {
                left,
                op: syn::BinOp::And(_) | syn::BinOp::Or(_),
                right,
                ..
            }) => {
                let (left, right) = (self.condition(left), self.condition(right));
                Joined { mutants: left.mutants + right.mutants, others: left.others + right.others }
            }
            syn::Expr::Unary(syn::ExprUnary { op: syn::UnOp::Not(_), expr, .. }) => self.condition(expr),
            mutant if is_mutant(mutant) => {
                self.guards += 1;
                Joined { mutants: 1, others: 0 }
            }
            other => {
                self.visit_expr(other);
                Joined { mutants: 0, others: 1 }
            }
        }
    }

    fn check_fault(&mut self, fault: &syn::Expr) {
        if statements(fault) > 1 {
            self.complain(fault.span(), "what only a mutant reaches is more than one statement");
        }
    }
}

impl<'ast> Visit<'ast> for Guards<'_> {
    fn visit_expr_if(&mut self, branch: &'ast syn::ExprIf) {
        self.condition(&branch.cond);
        if needs_mutant(&branch.cond) && branch.then_branch.stmts.len() > 1 {
            self.complain(branch.span(), "what only a mutant reaches is more than one statement");
        }
        if needs_mutant(&branch.cond) {
            branch.then_branch.stmts.iter().for_each(|statement| {
                if let syn::Stmt::Expr(fault, _) = statement {
                    self.check_fault(fault);
                }
            });
        }
        if let (Some(cond), Some((_, fault))) = (negated(&branch.cond), &branch.else_branch)
            && needs_mutant(cond)
        {
            self.check_fault(fault);
        }
        self.visit_block(&branch.then_branch);
        if let Some((_, other)) = &branch.else_branch {
            self.visit_expr(other);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        self.visit_pat(&arm.pat);
        if let Some((_, guard)) = &arm.guard {
            self.condition(guard);
            if needs_mutant(guard) {
                self.check_fault(&arm.body);
            }
        }
        self.visit_expr(&arm.body);
    }

    fn visit_expr_binary(&mut self, binary: &'ast syn::ExprBinary) {
        if !matches!(binary.op, syn::BinOp::And(_) | syn::BinOp::Or(_)) {
            return visit::visit_expr_binary(self, binary);
        }
        let joined = self.condition(&syn::Expr::Binary(binary.clone()));
        if joined.mutants > 0 && joined.others == 0 {
            self.complain(binary.span(), "a value that depends on nothing but mutants");
        }
    }

    fn visit_expr(&mut self, expression: &'ast syn::Expr) {
        match is_mutant(expression) {
            true => self.complain(expression.span(), "a mutant that is no guard"),
            false => visit::visit_expr(self, expression),
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.iter().any(|segment| segment.ident == "Mutant" || segment.ident == "mutant") {
            self.complain(path.span(), "a mutant that is no guard");
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        if called.tokens.to_string().to_lowercase().contains("mutant") {
            self.complain(called.span(), "a mutant in a macro");
        }
        visit::visit_macro(self, called);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if let syn::Meta::List(list) = &attribute.meta
            && list.tokens.to_string().contains("mutant")
        {
            self.complain(attribute.span(), "code that only a build with mutants has");
        }
    }
}

/// The number of guards of a source, and what is wrong in it.
fn guards(file: &str, text: &str) -> (usize, Vec<String>) {
    let mut guards = Guards { file, guards: 0, found: Vec::new() };
    guards.visit_file(&syn::parse_file(text).expect("a source is Rust"));
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let is_import = line.starts_with("use ") || line.starts_with("pub use ");
        if is_import && line.contains("mutant") && line != IMPORT {
            guards.found.push(format!("{file}:{}: imports mutants in another way", number + 1));
        }
    }
    (guards.guards, guards.found)
}

#[test]
fn faults_stand_where_guards_stand() {
    let sources = read_tree("src");
    let (mut all, mut wrong) = (0, Vec::new());
    // The crate's root only declares the module.
    for (file, text) in sources.iter().filter(|(file, _)| file != LIST && file != "src/lib.rs") {
        let (guards, found) = guards(file, text);
        all += guards;
        wrong.extend(found);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(all >= 100, "{all} guards were found");
}

#[test]
fn a_fault_that_is_no_guard_is_found() {
    let wrong = |body: &str| guards("a.rs", &format!("fn f() {{ {body} }}")).1.len();
    for body in [
        "if mutant::is(Mutant::A) { return; }",
        "if !mutant::is(Mutant::A) { a(); b(); }",
        "if a && !(b || mutant::is(Mutant::A)) { a(); b(); }",
        "if mutant::is(Mutant::A) && let Some(x) = y && x > z { g(x); }",
        "if mutant::is(Mutant::A) { for x in y { g(x); } }",
        "let x = if mutant::is(Mutant::A) { 1 } else { 2 };",
        "let x = if !mutant::is(Mutant::A) { a(); 1 } else { 2 };",
        "match x { X if mutant::is(Mutant::A) => {} X | Y => { a(); b(); } }",
        "let x = y.filter(|z| z.a() && !mutant::is(Mutant::A));",
        "if a { b(); c(); } else if mutant::is(Mutant::A) || mutant::is(Mutant::B) { return; }",
    ] {
        assert_eq!(wrong(body), 0, "{body}");
    }
    for body in [
        "let x = mutant::is(Mutant::A);",
        "g(!mutant::is(Mutant::A));",
        "let x = mutant::is(Mutant::A) || !mutant::is(Mutant::B);",
        "match mutant::is(Mutant::A) { true => 1, false => 2 };",
        "let x = 1 + u32::from(mutant::is(Mutant::A));",
        "let x = mutant::is(Mutant::A).then(|| 1);",
        "while mutant::is(Mutant::A) {}",
        "if mutant::is(fault) {}",
        "if [Mutant::A].iter().any(|a| b(a)) {}",
        "if is(Mutant::A) { return; }",
        "assert!(a || mutant::is(Mutant::A));",
        "if mutant::is(Mutant::A) { a(); b(); }",
        "if a && mutant::is(Mutant::A) { a(); b(); }",
        "if mutant::is(Mutant::A) { for x in y { a(); b(); } }",
        "if !mutant::is(Mutant::A) { a(); } else { b(); c(); }",
        "match x { X if a && mutant::is(Mutant::A) => { a(); b(); } X => {} }",
        "#[cfg(feature = \"mutants\")] g();",
    ] {
        assert_eq!(wrong(body), 1, "{body}");
    }
    assert_eq!(guards("a.rs", "use crate::mutant::{self, Mutant};").1.len(), 0);
    for text in ["use crate::mutant::is;", "use crate::mutant::Mutant as Fault;", "fn f(mutant: Mutant) {}"] {
        assert_eq!(guards("a.rs", text).1.len(), 1, "{text}");
    }
}
