//! What `tests/simulation-ledger.tsv` says can be believed: each line is whole, no seed was counted twice, and some
//! state of the sources has been through all that the project claims. README claims no more than it says.

use std::collections::BTreeMap;
use std::fs;

/// Simulated commands that one state of the sources must have answered.
const COMMANDS: u64 = 100_000_000;

/// Recoveries after a crash that one state of the sources must have made.
const RECOVERIES: u64 = 1_000_000;

/// Times that the rarest fault must have met the rarest phase, in every line.
const MET: u64 = 20;

/// A line of the ledger.
struct Run {
    from: u64,
    to: u64,
    commands: u64,
    recoveries: u64,
    least: u64,
    sources: String,
}

fn run(line: &str) -> Option<Run> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [_commit, from, to, commands, _crashes, recoveries, least, sources] = fields.try_into().ok()?;
    let number = |field: &str| field.parse::<u64>().ok();
    Some(Run {
        from: number(from)?,
        to: number(to)?,
        commands: number(commands)?,
        recoveries: number(recoveries)?,
        least: number(least)?,
        sources: sources.to_owned(),
    })
}

fn faults(ledger: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut runs = Vec::new();
    for line in ledger.lines().filter(|line| !line.starts_with('#')) {
        match run(line) {
            Some(run) if run.from < run.to && run.least >= MET => runs.push(run),
            _ => faults.push(format!("no run that counts: {line}")),
        }
    }
    runs.sort_by_key(|run| run.from);
    for pair in runs.windows(2) {
        if pair[1].from < pair[0].to {
            faults.push(format!("seed {} was run twice", pair[1].from));
        }
    }
    let mut sums = BTreeMap::<&str, (u64, u64)>::new();
    // Lines from before the tree was recorded have a dash.
    for run in runs.iter().filter(|run| run.sources != "-") {
        let sum = sums.entry(&run.sources).or_default();
        *sum = (sum.0 + run.commands, sum.1 + run.recoveries);
    }
    if !sums.values().any(|sum| sum.0 >= COMMANDS && sum.1 >= RECOVERIES) {
        faults.push(format!("no sources have been through {COMMANDS} commands and {RECOVERIES} recoveries"));
    }
    faults
}

#[test]
fn the_ledger_counts_no_seed_twice_and_enough_of_them() {
    assert_eq!(faults(&read("tests/simulation-ledger.tsv")), Vec::<String>::new());
}

fn read(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The number that stands before these words.
fn number_before(text: &str, words: &str) -> Option<u64> {
    let number = text[..text.find(words)?].rsplit(' ').next()?;
    number.replace(',', "").parse().ok()
}

/// The numbers in README are not above those of the ledger, and at least nine tenths of them.
#[test]
fn the_readme_claims_what_the_ledger_says() {
    let (readme, ledger) = (read("README.md"), read("tests/simulation-ledger.tsv"));
    let runs: Vec<Run> = ledger.lines().filter_map(run).collect();
    let commands: u64 = runs.iter().map(|run| run.commands).sum();
    let recoveries: u64 = runs.iter().map(|run| run.recoveries).sum();
    for (words, counted) in [(" commands and ", commands), (" recoveries after a crash", recoveries)] {
        let claimed = number_before(&readme, words).expect("README says how many");
        assert!(
            claimed <= counted && claimed >= counted / 10 * 9,
            "{claimed}{words}: the ledger has {counted}"
        );
    }
}

/// As many faults as README says can be put into Cairn.
#[test]
fn the_readme_counts_the_deliberate_faults() {
    let list = read("src/mutant.rs");
    let mutants = list
        .lines()
        .filter(|line| line.starts_with("    ") && line.ends_with("\",") && line.contains(" = \""));
    let claimed = number_before(&read("README.md"), " faults put into Cairn on purpose");
    assert_eq!(claimed, Some(mutants.count() as u64));
}

#[test]
fn what_a_ledger_must_not_say_is_found() {
    let enough = "c\t0\t10\t100000000\t9\t1000000\t20\ttree";
    assert_eq!(faults(&format!("# a head\n{enough}")), Vec::<String>::new());
    for (said, wrong) in [
        ("c\t10\t20\t1\t1\t1\t19\ttree", "no run that counts"),
        ("c\t10\t10\t1\t1\t1\t20\ttree", "no run that counts"),
        ("c\t10\t20\t1\t1\t1\t20", "no run that counts"),
        ("c\t10\t20\tmany\t1\t1\t20\ttree", "no run that counts"),
        ("c\t9\t20\t1\t1\t1\t20\ttree", "seed 9 was run twice"),
    ] {
        let found = faults(&format!("{said}\n{enough}"));
        assert!(found.len() == 1 && found[0].contains(wrong), "{said:?}: {found:?}");
    }
    for few in ["c\t0\t10\t99999999\t9\t1000000\t20\ttree", "c\t0\t10\t100000000\t9\t999999\t20\ttree"] {
        assert!(faults(few)[0].contains("no sources have been through"));
    }
}
