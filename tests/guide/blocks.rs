//! The fenced blocks of a document, and what their comments say of them.

use super::{documents, read};

/// How a block of commands is tested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// In its chapter.
    Run(Vec<String>),
    /// By a test of this name.
    By(String),
    /// Not, for this reason.
    NotRun(String),
}

/// A fenced block.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) place: String,
    pub(super) language: String,
    /// What the comment right before it says.
    pub(super) comment: Option<String>,
    pub(super) text: String,
}

impl Block {
    /// Whether it is there to be typed.
    pub(super) fn is_typed(&self) -> bool {
        ["sh", "bash", "shell", "console", ""].contains(&self.language.as_str())
    }

    pub(super) fn mark(&self) -> Option<Mark> {
        let comment = self.comment.as_deref()?;
        if let Some(reason) = comment.strip_prefix("not run: ") {
            return Some(Mark::NotRun(reason.to_owned()));
        }
        if let Some(test) = comment.strip_prefix("run by ") {
            return Some(Mark::By(test.to_owned()));
        }
        let how = match comment.strip_prefix("run")? {
            "" => Vec::new(),
            rest => rest.strip_prefix(": ")?.split(", ").map(str::to_owned).collect(),
        };
        Some(Mark::Run(how))
    }
}

/// The fenced blocks of a document, in order.
pub(super) fn blocks(file: &str, text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut comment: Option<String> = None;
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            let body: Vec<&str> =
                lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```").collect();
            found.push(Block {
                place: format!("{file}:{}", number + 1),
                language: language.to_owned(),
                comment: comment.take(),
                text: body.join("\n") + "\n",
            });
        } else if !line.trim().is_empty() {
            comment = line
                .trim()
                .strip_prefix("<!-- ")
                .and_then(|rest| rest.strip_suffix(" -->"))
                .map(str::to_owned);
        }
    }
    found
}

/// The program's name for a test of ours: `MODULE::…::TEST` is a function in a file of that module.
fn exists(test: &str) -> bool {
    let Some((path, function)) = test.rsplit_once("::") else { return false };
    let file = format!("tests/{}.rs", path.replace("::", "/"));
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join(&file).is_file() && read(&file).contains(&format!("fn {function}("))
}

/// What is wrong with how a block of commands is marked.
fn fault(block: &Block) -> Option<String> {
    let Block { place, .. } = block;
    match block.mark() {
        None => Some(format!("{place}: no comment says which test runs this block, or why none does")),
        Some(Mark::NotRun(reason)) if reason.split(' ').count() < 4 => {
            Some(format!("{place}: {reason:?} is no reason"))
        }
        Some(Mark::By(test)) if !exists(&test) => Some(format!("{place}: there is no test {test}")),
        Some(Mark::Run(how)) => how
            .iter()
            .find(|how| !["serves", "with a bucket", "after the gateway has ended"].contains(&how.as_str()))
            .map(|how| format!("{place}: what is {how:?}?")),
        Some(_) => None,
    }
}

#[test]
fn every_command_is_run_by_a_test_or_says_why_not() {
    let mut faults = Vec::new();
    let mut typed = 0;
    for (file, text) in documents() {
        for block in blocks(&file, &text).iter().filter(|block| block.is_typed()) {
            typed += 1;
            faults.extend(fault(block));
        }
    }
    assert!(typed > 20, "{typed} blocks");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What commands in the cells of tables begin with. Cells also quote settings, messages and names.
const PROGRAMS: [&str; 9] =
    ["RUSTFLAGS=", "aws ", "cargo ", "docker ", "helm ", "kubectl ", "modprobe ", "nbdcopy ", "qemu-"];

/// What is wrong with the tables of a document that have commands in their cells: no comment in front says how these are
/// tested, or it names a test that does not exist.
fn faulty_tables(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut before = "";
    for part in text.split("\n\n") {
        let code = |line: &str| line.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let is_command = |code: &String| PROGRAMS.iter().any(|program| code.starts_with(program));
        let rows = part.lines().filter(|line| line.starts_with('|'));
        if let Some(command) = rows.flat_map(code).find(is_command) {
            match before.trim().strip_prefix("<!-- commands: ").and_then(|rest| rest.strip_suffix(" -->")) {
                None => found.push(format!("{file}: no comment says how `{command}` is tested")),
                Some(comment) => {
                    let named = code(comment).into_iter();
                    let is_lost = |name: &String| {
                        let is_file = name.starts_with("tests/") || name.starts_with("deploy/");
                        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
                        (is_file && !root.join(name).is_file()) || (name.contains("::") && !exists(name))
                    };
                    found.extend(named.filter(is_lost).map(|name| format!("{file}: there is no {name}")));
                }
            }
        }
        before = part;
    }
    found
}

#[test]
fn every_command_in_a_table_is_run_by_a_test_or_says_why_not() {
    let faults: Vec<String> = documents().iter().flat_map(|(file, text)| faulty_tables(file, text)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let table = "| a | b |\n|---|---|\n| x | `cargo deb` |\n";
    for bad in ["", "<!-- commands: `tests/none.sh` runs it -->", "<!-- commands: `guide::book::never` -->"] {
        assert_eq!(faulty_tables("a.md", &format!("x\n\n{bad}\n\n{table}")).len(), 1, "{bad}");
    }
    let good = "<!-- commands: `guide::blocks::exists` and\n`tests/ops/deploy.sh` run them -->";
    assert_eq!(faulty_tables("a.md", &format!("x\n\n{good}\n\n{table}")), [""; 0]);
}

#[test]
fn a_block_without_a_test_is_found() {
    let fault_of = |comment: &str| {
        let all = blocks("a.md", &format!("x\n\n{comment}\n```sh\ntrue\n```\n"));
        assert_eq!(all.len(), 1);
        fault(&all[0])
    };
    for bad in [
        "",
        "run it",
        "<!-- run: slowly -->",
        "<!-- run by nobody::ever -->",
        "<!-- run by interop::welcome::never -->",
        "<!-- not run: cannot be -->",
    ] {
        assert!(fault_of(bad).is_some(), "{bad}");
    }
    for good in [
        "<!-- run -->",
        "<!-- run: serves, with a bucket -->",
        "<!-- run by interop::welcome::over_tcp -->",
        "<!-- not run: it takes a machine that is not here -->",
    ] {
        assert_eq!(fault_of(good), None, "{good}");
    }
}
