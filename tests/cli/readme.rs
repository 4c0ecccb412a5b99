//! README and guide describe the program as it is: its settings and its commands.

use cairn::cli::Cli;
use clap::Parser as _;

use crate::guide::documents;

/// The chapter with all settings.
const SETTINGS: &str = include_str!("../../docs/configuration.md");

/// Returns README and guide, one after the other.
fn all() -> String {
    documents().into_iter().map(|(_, text)| text + "\n").collect()
}

#[test]
fn the_table_of_settings_matches_the_program() {
    let table = cairn::config::reference_table();
    assert!(SETTINGS.contains(&table), "docs/configuration.md lacks this table:\n\n{table}");
}

/// Returns the lines of code blocks. A line that ends in `\` is joined with the next one.
fn code_lines() -> Vec<String> {
    let all = all();
    let code = all.split("```").skip(1).step_by(2).flat_map(|block| block.lines().skip(1));
    let mut lines: Vec<String> = Vec::new();
    let mut open = false;
    for line in code {
        let part = line.trim_end_matches('\\').trim();
        match lines.last_mut().filter(|_| open) {
            Some(last) => *last = format!("{last} {part}"),
            None => lines.push(part.to_owned()),
        }
        open = line.ends_with('\\');
    }
    lines
}

/// Returns the words of a `cairn` command, without the program that runs it, variables before it, and a
/// comment or redirection after it.
fn words(line: &str) -> Option<Vec<String>> {
    let line = [" #", " > ", " | "].iter().fold(line, |line, end| line.split(end).next().unwrap_or(line));
    let line = line.trim_end_matches('&').trim();
    let mut words: Vec<&str> = line.split_whitespace().collect();
    while words.first().is_some_and(|word| word.contains('=')) {
        words.remove(0);
    }
    let rest = match &words[..] {
        ["cairn", rest @ ..] | ["cargo", "run", "--release", "--", rest @ ..] => rest,
        _ => return None,
    };
    Some(
        std::iter::once("cairn")
            .chain(rest.iter().copied())
            .map(|w| w.trim_matches(['\'', '"']).to_owned())
            .collect(),
    )
}

#[test]
fn every_command_parses() {
    let commands: Vec<Vec<String>> = code_lines().iter().filter_map(|line| words(line)).collect();
    assert!(commands.len() >= 30, "{commands:?}");
    for words in commands {
        if let Err(error) = Cli::try_parse_from(&words) {
            panic!("{}: {error}", words.join(" "));
        }
    }
}

#[test]
fn every_configuration_file_is_valid() {
    let all = all();
    let blocks: Vec<&str> =
        all.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), block).unwrap();
        if let Err(errors) = cairn::config::load(Some(file.path()), [], []) {
            panic!("{errors} in:\n{block}");
        }
    }
}

#[test]
fn every_variable_is_a_setting() {
    let known: Vec<String> = cairn::config::reference().iter().map(cairn::config::variable).collect();
    let all = all();
    let found: Vec<&str> = all
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("CAIRN_") && word.contains("__"))
        .collect();
    assert!(!found.is_empty());
    for variable in found {
        assert!(known.iter().any(|known| known == variable), "{variable} is no setting");
    }
}
