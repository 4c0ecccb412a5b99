//! The guide as a book: mdBook builds it, and every link in the pages that it makes leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tempfile::TempDir;

use crate::support::minio::tools;
use crate::support::process::{Process, command, free_port, run};

/// The values of an attribute in a page, as a browser would read them.
fn values<'a>(page: &'a str, attribute: &str) -> impl Iterator<Item = &'a str> {
    let start = format!(" {attribute}=\"");
    page.split_inclusive('<').flat_map(move |tag| {
        let tag = tag.split_once('>').map_or(tag, |(tag, _)| tag);
        let value = tag.split_once(&start).and_then(|(_, rest)| rest.split_once('"'));
        value.map(|(value, _)| value)
    })
}

/// The pages of a book by file name. What mdBook makes for errors has another base, and the one for printing is all pages.
fn pages(book: &Path) -> BTreeMap<String, String> {
    let names = std::fs::read_dir(book).expect("the book can be read");
    let names = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"));
    let names =
        names.filter(|name| name.ends_with(".html") && !["404.html", "print.html"].contains(&&**name));
    let read = |name: String| {
        let page = std::fs::read_to_string(book.join(&name)).expect("a page can be read");
        (name, page)
    };
    names.map(read).collect()
}

/// Links of a book that lead nowhere: to a file that it does not have, or to a place that the page does not have.
fn broken(book: &Path) -> Vec<String> {
    let pages = pages(book);
    let mut places: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, page) in &pages {
        places.insert(name, values(page, "id").collect());
    }
    let mut found = Vec::new();
    for (name, page) in &pages {
        for link in values(page, "href").chain(values(page, "src")).filter(|link| !link.contains(':')) {
            let (path, place) = link.split_once('#').unwrap_or((link, ""));
            let path = if path.is_empty() { name } else { path };
            let has_place = place.is_empty() || places.get(path).is_none_or(|places| places.contains(place));
            if path.contains("..") || !book.join(path).is_file() || !has_place {
                found.push(format!("{name}: {link}"));
            }
        }
    }
    found
}

#[tokio::test]
#[ignore = "needs curl, jq, mdBook"]
async fn the_book_has_every_chapter_and_no_broken_link() {
    let book = TempDir::new().expect("a directory");
    let port = free_port().to_string();
    let mut serve = command([tools().join("mdbook/bin/mdbook")]);
    serve.args(["serve", "docs", "--port", &port, "--dest-dir"]).arg(book.path());
    let mut mdbook = Process::spawn("mdbook", serve.current_dir(env!("CARGO_MANIFEST_DIR")));
    mdbook.wait_for("it serves", |line| line.contains("Serving on").then_some(())).await;
    let url = format!("http://localhost:{port}/getting-started.html");
    let page = run(&mut command(["curl", "--silent", "--fail", &url])).await;
    assert!(page.contains("<h1 id=\"getting-started\""), "{page}");

    let chapters = super::documents().into_iter().filter_map(|(file, _)| {
        let name = file.strip_prefix("docs/")?.strip_suffix(".md")?.to_owned();
        (name != "SUMMARY" && name != "README").then(|| format!("{name}.html"))
    });
    let pages = pages(book.path());
    let missing: Vec<String> = chapters.filter(|page| !pages.contains_key(page)).collect();
    assert!(missing.is_empty(), "no page for {missing:?}");
    assert!(mdbook.output().lines().all(|line| !line.contains("WARN") && !line.contains("ERROR")));
    let broken = broken(book.path());
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn a_broken_link_of_a_book_is_found() {
    let book = TempDir::new().expect("a directory");
    let page = "<h1 id=\"a\">A</h1> <a href=\"b.html\">b</a> <a class=\"x\" href=\"#a\">a</a> <a href=\"b.html#b\">b</a>\
        <a href=\"https://example.org/\">there</a> <img src=\"c.png\">";
    std::fs::write(book.path().join("a.html"), page).expect("a page can be written");
    std::fs::write(
        book.path().join("b.html"),
        "<a href=\"../x.html\">x</a> <a href=\"a.html#none\">none</a>",
    )
    .expect("a page can be written");
    let expected = ["a.html: b.html#b", "a.html: c.png", "b.html: ../x.html", "b.html: a.html#none"];
    assert_eq!(broken(book.path()), expected);
}
