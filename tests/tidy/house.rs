//! Rules of the house that are not about layers: what files look like, and what code does not do.
//!
//! Each rule is a function from sources to complaints, so that each is shown to find what it looks for. The words
//! that a rule looks for are put together here, so that this file passes it.

use super::layers::covers;
use super::paths::{Survey, Target, survey};
use super::{read_tree, survey_of_src};

/// Lines of a file at most.
const MAX_LINES: usize = 600;

/// What would start a task or thread that nobody owns. `src/task.rs` owns them all.
const SPAWNERS: &[&str] = &[
    "tokio::spawn",
    "tokio::task::spawn",
    "tokio::task::spawn_blocking",
    "tokio::task::spawn_local",
    "tokio::task::block_in_place",
    "tokio::task::JoinSet",
    "tokio::task::LocalSet",
    "tokio::task::Builder",
    "tokio::runtime::Handle",
    "tokio_util::task",
    "futures::executor",
    "std::thread::spawn",
    "std::thread::scope",
    "std::thread::Builder",
];

/// The file that may.
const SPAWNING_FILE: &str = "src/task.rs";

/// Parts of names that say nothing of what a module is for.
const EMPTY_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "manager", "managers"];

/// What stands at the top of the repository, and what building and serving there leave.
const TOP: &[&str] = &[
    ".ci",
    ".dockerignore",
    ".editorconfig",
    ".git",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "benches",
    "cairn-data",
    "clippy.toml",
    "deny.toml",
    "deploy",
    "docker-compose.yml",
    "docs",
    "examples",
    "fuzz",
    "helm",
    "rustfmt.toml",
    "src",
    "target",
    "tests",
];

type Source<'a> = (&'a str, &'a str);

/// Marks of what is not finished.
fn marks() -> [String; 4] {
    [["TO", "DO"], ["FIX", "ME"], ["todo", "!("], ["unimplemented", "!("]].map(|p| p.concat())
}

fn heads(sources: &[Source<'_>]) -> Vec<String> {
    let bare = sources.iter().filter(|(_, text)| !text.starts_with("//! "));
    bare.map(|(file, _)| format!("{file} does not open with //!")).collect()
}

fn lengths(sources: &[Source<'_>]) -> Vec<String> {
    let long =
        sources.iter().map(|(file, text)| (file, text.lines().count())).filter(|(_, n)| *n > MAX_LINES);
    long.map(|(file, n)| format!("{file} has {n} lines, more than {MAX_LINES}")).collect()
}

fn unfinished(sources: &[Source<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    for (file, text) in sources {
        for (number, line) in text.lines().enumerate() {
            for mark in marks().iter().filter(|mark| line.contains(mark.as_str())) {
                found.push(format!("{file}:{}: {mark}", number + 1));
            }
        }
    }
    found
}

/// The file that writes to standard output and standard error.
const PRINTING_FILE: &str = "src/cli/output/mod.rs";

/// What ends or stops the program where standard output or standard error is closed, full or not read.
fn prints(sources: &[Source<'_>]) -> Vec<String> {
    let print = ["pri", "nt"].concat();
    let words = [
        format!("{print}!("),
        format!("{print}ln!("),
        ["std", "err()"].concat(),
        ["std", "out().lock()"].concat(),
    ];
    let mut found = Vec::new();
    for (file, text) in sources.iter().filter(|(file, _)| *file != PRINTING_FILE) {
        for (number, line) in text.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(word.as_str())) {
                found.push(format!("{file}:{}: {word} outside {PRINTING_FILE}", number + 1));
            }
        }
    }
    found
}

fn names(survey: &Survey) -> Vec<String> {
    let empty = survey.modules.iter().filter(|m| m.name.split('_').any(|part| EMPTY_NAMES.contains(&part)));
    empty.map(|m| format!("{}:{}: a module named {}", m.file, m.line, m.name)).collect()
}

fn unwraps(survey: &Survey) -> Vec<String> {
    survey.unwraps.iter().map(|spot| format!("{}:{}: .unwrap()", spot.file, spot.line)).collect()
}

fn evasions(survey: &Survey) -> Vec<String> {
    survey
        .evasions
        .iter()
        .map(|spot| format!("{}:{}: {} hides sources", spot.file, spot.line, spot.name))
        .collect()
}

fn spawns(survey: &Survey) -> Vec<String> {
    let mut found = Vec::new();
    for mention in survey.mentions.iter().filter(|m| m.file != SPAWNING_FILE) {
        if let Target::Elsewhere(path) = &mention.target
            && SPAWNERS.iter().any(|rule| covers(rule, path))
        {
            found.push(format!("{}:{}: {}", mention.file, mention.line, path.join("::")));
        }
    }
    found
}

/// The one file that puts an NBD URI together, and encodes what goes into it.
const URI_FILE: &str = "src/client/uri.rs";
/// Schemes of other URIs, which programs put together from what needs no encoding.
const OTHER_SCHEMES: &[&str] = &["http", "https", "file", "s3"];

/// Formats of NBD URIs beside that of [`URI_FILE`], which would print a path or a name as it is.
fn own_uris(sources: &[Source<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    for (file, text) in sources.iter().filter(|(file, _)| *file != URI_FILE) {
        // Examples in documentation show what a user types.
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        for (number, line) in text.lines().enumerate().filter(|(_, line)| is_code(line)) {
            let formatted = line.match_indices("://").any(|(at, _)| {
                let is_of_a_scheme = |c: char| c.is_ascii_alphanumeric() || "+{}".contains(c);
                let scheme = line[..at].rsplit(|c| !is_of_a_scheme(c)).next().unwrap_or_default();
                let rest = line[at..].split([' ', '"', '\'']).next().unwrap_or_default();
                !OTHER_SCHEMES.contains(&scheme) && (rest.contains('{') || scheme.contains('{'))
            });
            if formatted || line.contains("socket={") {
                found.push(format!("{file}:{}: an NBD URI that is not a Uri's Display", number + 1));
            }
        }
    }
    found
}

/// The folder that knows where frames lie in their objects.
const FORMAT: &str = "src/volume/format/";
/// What tells where a frame lies, and the files outside [`FORMAT`] that may ask. An index of compressed objects
/// would have to be asked in each of them. `cache/fetch.rs` decides for everything that is fetched.
/// `cache/load.rs` limits the length of a GET, and `check/frames.rs` compares whole objects with what it expects
/// in them.
const PLACES_OF_FRAMES: &[(&str, &[&str])] = &[
    ("frame_offset", &["src/volume/cache/fetch.rs"]),
    ("FRAME_BYTES", &["src/volume/cache/fetch.rs", "src/volume/cache/load.rs", "src/volume/check/frames.rs"]),
    ("FRAME_LEN", &["src/volume/cache/fetch.rs", "src/volume/check/frames.rs"]),
];

/// Files that decide where a frame lies and are not on the list, and entries of the list that are not needed.
fn frame_places(sources: &[Source<'_>]) -> Vec<String> {
    let outside = || sources.iter().filter(|(file, _)| !file.starts_with(FORMAT));
    let mut found = Vec::new();
    for (word, may) in PLACES_OF_FRAMES {
        let files: Vec<&str> =
            outside().filter(|(_, text)| text.contains(word)).map(|(file, _)| *file).collect();
        let other = files.iter().filter(|file| !may.contains(file));
        found.extend(other.map(|file| format!("{file}: {word} outside {may:?}")));
        let unused = may.iter().filter(|file| !files.contains(file));
        found.extend(unused.map(|file| format!("{file}: it does not need {word}")));
    }
    found
}

/// Where the order of events must depend on nothing but the events: what a simulation runs.
const ORDERED: &[&str] = &["src/client/", "src/server/", "src/store/", "src/volume/"];

/// `select!` without `biased;`, which draws who is asked first.
fn drawn_selects(sources: &[Source<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    for (file, text) in sources.iter().filter(|(file, _)| ORDERED.iter().any(|of| file.starts_with(of))) {
        for (at, _) in text.match_indices("select!") {
            let body = text[at..].split_once('{').map_or("", |(_, body)| body.trim_start());
            if !body.starts_with("biased;") {
                let line = text[..at].lines().count();
                found.push(format!("{file}:{line}: select! without biased"));
            }
        }
    }
    found
}

/// Names of tests in a document, in backticks, of which no source has the function.
fn missing_tests(document: &str, sources: &[Source<'_>]) -> Vec<String> {
    let quoted = document.split('`').skip(1).step_by(2).filter_map(|name| name.rsplit("::").next());
    let named = quoted.filter(|name| name.matches('_').count() > 1 && name.chars().all(is_of_a_name));
    let missing = named.filter(|name| {
        let function = format!("fn {name}(");
        !sources.iter().any(|(_, text)| text.contains(&function))
    });
    missing.map(|name| format!("no test is named {name}")).collect()
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

fn complain(complaints: &[String]) {
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

fn all_sources() -> Vec<(String, String)> {
    [read_tree("benches"), read_tree("src"), read_tree("tests")].concat()
}

fn borrowed(sources: &[(String, String)]) -> Vec<Source<'_>> {
    sources.iter().map(|(file, text)| (file.as_str(), text.as_str())).collect()
}

#[test]
fn every_file_says_what_it_is() {
    complain(&heads(&borrowed(&all_sources())));
}

#[test]
fn no_file_is_longer_than_600_lines() {
    complain(&lengths(&borrowed(&all_sources())));
}

#[test]
fn nothing_is_marked_unfinished() {
    complain(&unfinished(&borrowed(&all_sources())));
}

#[test]
fn only_tests_unwrap() {
    complain(&unwraps(survey_of_src()));
}

#[test]
fn only_task_rs_spawns() {
    complain(&spawns(survey_of_src()));
}

#[test]
fn nothing_prints_but_what_never_waits_or_fails() {
    complain(&prints(&borrowed(&read_tree("src"))));
    let print = ["pri", "nt"].concat();
    for text in [format!("e{print}ln!(\"x\");"), format!("{print}!()"), ["io::std", "err().lock()"].concat()]
    {
        assert_eq!(prints(&[("src/a.rs", &text)]).len(), 1, "{text}");
        assert_eq!(prints(&[(PRINTING_FILE, &text)]).len(), 0, "{text}");
    }
}

#[test]
fn who_is_asked_first_is_not_drawn() {
    complain(&drawn_selects(&borrowed(&read_tree("src"))));
}

#[test]
fn nbd_uris_are_put_together_in_one_place() {
    complain(&own_uris(&borrowed(&read_tree("src"))));
}

#[test]
fn one_module_decides_where_a_frame_lies() {
    complain(&frame_places(&borrowed(&read_tree("src"))));
    let right = [
        ("src/volume/cache/fetch.rs", "chunk::frame_offset(), FRAME_BYTES, FRAME_LEN"),
        ("src/volume/cache/load.rs", "FRAME_BYTES"),
        ("src/volume/check/frames.rs", "FRAME_BYTES, FRAME_LEN"),
        ("src/volume/format/pack.rs", "frame_offset, FRAME_BYTES, FRAME_LEN"),
    ];
    complain(&frame_places(&right));
    for (word, _) in PLACES_OF_FRAMES {
        let wrong = [&right[..], &[("src/volume/fold/mod.rs", *word)]].concat();
        assert_eq!(frame_places(&wrong).len(), 1, "{word}");
    }
    assert_eq!(frame_places(&right[1..]).len(), 3, "the list is too long");
}

#[test]
fn modules_are_named_for_what_they_are() {
    complain(&names(survey_of_src()));
    complain(&names(&survey(&borrowed(&read_tree("tests"))).expect("the tests parse")));
}

#[test]
fn no_source_hides() {
    complain(&evasions(survey_of_src()));
}

#[test]
fn every_test_that_the_architecture_names_exists() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md");
    let document = std::fs::read_to_string(path).expect("the architecture can be read");
    complain(&missing_tests(&document, &borrowed(&all_sources())));
    let sources = [("a.rs", "fn one_of_them() {}")];
    let document = "`x::one_of_them`, `one_of_those` and `local_journal`, `a_b_c()`";
    assert_eq!(missing_tests(document, &sources), ["no test is named one_of_those"]);
}

fn strays(names: &[String]) -> Vec<String> {
    let strays = names.iter().filter(|name| !TOP.contains(&name.as_str()));
    strays.map(|name| format!("{name}: does not belong at the top of the repository")).collect()
}

/// Programs under test leave files where they run: they are not to become part of the repository.
#[test]
fn nothing_strays_to_the_top() {
    let top = std::fs::read_dir(env!("CARGO_MANIFEST_DIR")).expect("the repository can be read");
    let names = top.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    complain(&strays(&names.collect::<Vec<_>>()));
    assert_eq!(strays(&["src".to_owned(), "local-outage-0-verify.state".to_owned()]).len(), 1);
}

/// Complaints of a rule about one file of the layer `store`.
fn of(rule: fn(&Survey) -> Vec<String>, text: &str) -> usize {
    let lib = ("src/lib.rs", "pub mod store;");
    rule(&survey(&[lib, ("src/store.rs", text)]).expect("the source parses")).len()
}

#[test]
fn each_rule_finds_what_it_looks_for() {
    assert_eq!(
        heads(&[("a.rs", "//! Head.\n"), ("b.rs", "use x;\n"), ("c.rs", ""), ("d.rs", "// x\n")]).len(),
        3
    );
    let (long, short) = ("x\n".repeat(MAX_LINES + 1), "x\n".repeat(MAX_LINES));
    assert_eq!(lengths(&[("a.rs", &long), ("b.rs", &short)]).len(), 1);
    for mark in marks() {
        let text = format!("//! Head.\nfn f() {{ {mark} }}\n");
        assert_eq!(unfinished(&[("a.rs", &text)]), [format!("a.rs:2: {mark}")]);
    }
    for text in ["mod utils {}", "mod test_helper {}", "mod a { mod lock_manager {} }"] {
        assert_eq!(of(names, text), 1, "{text}");
    }
    assert_eq!(names(&survey(&[("src/store/util.rs", "")]).expect("it parses")).len(), 1);
    let select = |body: &str| format!("fn f() {{ tokio::select! {{{body}}} }}");
    assert_eq!(drawn_selects(&[("src/volume/a.rs", &select(" a = b => {} "))]).len(), 1);
    assert_eq!(drawn_selects(&[("src/volume/a.rs", &select("\n    biased;\n a = b => {}"))]).len(), 0);
    assert_eq!(drawn_selects(&[("src/cli/a.rs", &select(" a = b => {} "))]).len(), 0);
    for text in [
        r#"format!("{scheme}://{address}/{export}")"#,
        r#"format!("nbd://127.0.0.1:{port}/disk")"#,
        r#"format!("x nbds+unix:///{export}?tls=1")"#,
        r#"format!("nbd+unix:///disk?socket={path}")"#,
    ] {
        assert_eq!(own_uris(&[("src/cli/a.rs", text)]).len(), 1, "{text}");
        assert_eq!(own_uris(&[(URI_FILE, text)]).len(), 0, "{text}");
    }
    for text in [r#"format!("http://{address}/")"#, r#""nbd://host/disk", "{}""#, r#"write!(f, "s3://{b}")"#]
    {
        assert_eq!(own_uris(&[("src/cli/a.rs", text)]).len(), 0, "{text}");
    }
    assert_eq!(of(names, "mod manage {} mod helping {}"), 0);
    for text in ["#[path = \"x.rs\"] mod a;", "include!(\"x.rs\");", "#[macro_use] mod a {}"] {
        assert_eq!(of(evasions, text), 1, "{text}");
    }
}

#[test]
fn an_unwrap_is_found_and_those_of_tests_are_not() {
    for text in [
        "fn f() { x.unwrap(); }",
        "impl S { fn f(&self) { self.0.lock().unwrap().x() } }",
        "fn f() { assert_eq!(x.unwrap(), 1); }",
        "fn f() { select! { a = b.unwrap() => {} } }",
        "#[cfg(not(test))] fn f() { x.unwrap(); }",
        "#[cfg(test)] mod tests {} fn f() { x.unwrap(); }",
    ] {
        assert_eq!(of(unwraps, text), 1, "{text}");
    }
    for text in [
        "fn f() { x.unwrap_or(1); x.expect(\"y\"); }",
        "#[cfg(test)] mod tests { fn f() { x.unwrap(); } mod more { fn g() { assert!(x.unwrap()); } } }",
        "#[test] fn f() { x.unwrap(); }",
        "#[tokio::test(start_paused = true)] async fn f() { x.unwrap(); }",
        "impl S { #[cfg(test)] fn f() { x.unwrap(); } }",
    ] {
        assert_eq!(of(unwraps, text), 0, "{text}");
    }
    let sources = [
        ("src/store/tests.rs", "fn f() { x.unwrap(); }"),
        ("src/store/tests/more.rs", "fn f() { x.unwrap(); }"),
        ("src/store.rs", "#[cfg(test)] mod tests;"),
    ];
    assert_eq!(unwraps(&survey(&sources).expect("they parse")), Vec::<String>::new(), "a file of tests");
    assert_eq!(unwraps(&survey(&sources[..2]).expect("they parse")).len(), 2, "not declared as tests");
}

#[test]
fn spawning_is_found_however_it_is_written() {
    for text in [
        "fn f() { tokio::spawn(x); }",
        "fn f() { ::tokio::spawn(x); }",
        "use tokio::task; fn f() { task::spawn_blocking(x); }",
        "use tokio as t; fn f() { t::spawn(x); }",
        "use tokio::task::{spawn_local as go};",
        "use tokio::task::*;",
        "fn f() { let s = tokio::task::JoinSet::new(); }",
        "use std::thread; fn f() { thread::Builder::new(); }",
        "fn f() { join!(tokio::spawn(x)); }",
        "fn f() { tokio_util::task::TaskTracker::new(); }",
        "#[cfg(test)] mod tests { fn f() { tokio::spawn(x); } }",
    ] {
        assert!(of(spawns, text) > 0, "{text}");
    }
    for text in ["fn f(t: &Tasks) { t.spawn(x); }", "use tokio::task::JoinHandle; fn f() { spawn(x); }"] {
        assert_eq!(of(spawns, text), 0, "{text}");
    }
    assert_eq!(
        spawns(&survey(&[(SPAWNING_FILE, "fn f() { tokio::spawn(x); }")]).expect("it parses")).len(),
        0
    );
}
