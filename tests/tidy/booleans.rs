//! No public function takes a bool: at the call, `true` says nothing, and two of them can be exchanged.
//!
//! It reads signatures only: those of public functions and of the methods of public traits. Fields may be bools,
//! because they have a name where they are set. The inside of a volume is no interface; its commands are.

use syn::visit::{self, Visit};

use super::read_tree;

/// The layer whose inside is left out, and the file of it that other layers call.
const INSIDE: &str = "src/volume/";
const COMMANDS: &str = "src/volume/disk.rs";

struct Signatures<'a> {
    file: &'a str,
    found: Vec<String>,
}

impl Signatures<'_> {
    fn check(&mut self, signature: &syn::Signature) {
        let is_bool = |input: &&syn::FnArg| match input {
            syn::FnArg::Typed(input) => {
                matches!(&*input.ty, syn::Type::Path(path) if path.path.is_ident("bool"))
            }
            syn::FnArg::Receiver(_) => false,
        };
        if signature.inputs.iter().any(|input| is_bool(&input)) {
            let line = signature.ident.span().start().line;
            self.found
                .push(format!("{}:{line}: {} takes a bool: make it an enum", self.file, signature.ident));
        }
    }
}

fn is_public(visibility: &syn::Visibility) -> bool {
    matches!(visibility, syn::Visibility::Public(_))
}

impl<'ast> Visit<'ast> for Signatures<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if is_public(&item.vis) {
            self.check(&item.sig);
        }
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if is_public(&item.vis) {
            self.check(&item.sig);
        }
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        for method in &item.items {
            if let (true, syn::TraitItem::Fn(method)) = (is_public(&item.vis), method) {
                self.check(&method.sig);
            }
        }
        visit::visit_item_trait(self, item);
    }
}

fn bools(file: &str, text: &str) -> Vec<String> {
    let mut signatures = Signatures { file, found: Vec::new() };
    signatures.visit_file(&syn::parse_file(text).expect("a source is Rust"));
    signatures.found
}

#[test]
fn no_public_function_takes_a_bool() {
    let sources = read_tree("src");
    let interface = |file: &str| !file.starts_with(INSIDE) || file == COMMANDS;
    let read: Vec<_> = sources.iter().filter(|(file, _)| interface(file)).collect();
    assert!(read.len() > 100 && read.iter().any(|(file, _)| file == COMMANDS), "sources were found");
    let found: Vec<String> = read.into_iter().flat_map(|(file, text)| bools(file, text)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_bool_is_found_in_every_public_signature() {
    for text in [
        "pub fn f(a: u8, b: bool) {}",
        "impl S { pub async fn f(&self, b: bool) {} }",
        "pub trait T { fn f(&self, b: bool); }",
        "pub trait T { async fn f(&self, _b: bool) -> u8 { 0 } }",
        "pub mod m { pub const fn f(b: bool) {} }",
    ] {
        assert_eq!(bools("a.rs", text).len(), 1, "{text}");
    }
    for text in [
        "fn f(b: bool) {}",
        "pub(crate) fn f(b: bool) {}",
        "trait T { fn f(&self, b: bool); }",
        "pub fn f(a: u8) -> bool { true }",
        "pub struct S { pub b: bool }",
    ] {
        assert_eq!(bools("a.rs", text).len(), 0, "{text}");
    }
}
