//! Tests the tests: a check of the promises must catch every mutant, except those that only the loss of a
//! machine reveals, since a memory store has nothing to sync.
//!
//! The checks know of no mutant; this file alone does. Built with the feature `mutants`, each is committed in turn,
//! seed after seed, until a promise is seen broken. The seed that the table of tests/README.md gives comes first; with
//! `CAIRN_MUTANTS_ANEW=1` it does not, to make the table anew. Without the feature, only the table is compared with the
//! list. `CAIRN_MUTANTS=name,name` says which mutants are committed; `CAIRN_MUTANTS_TURN=number` that one in four is, by turns.

use std::collections::BTreeSet;

use cairn::mutant::Mutant;

/// Seeds within which every mutant must be caught.
const WITHIN: u64 = 2000;

/// What the table says in the place of seeds where it takes the loss of a machine to catch a mutant: see
/// `tests/power/directory.rs`.
const BY_POWER_CUT: &str = "power cut";

/// A row of the table: the mutant, and how it is caught: after how many seeds, where that was measured.
fn rows() -> Vec<(String, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/README.md");
    let text = std::fs::read_to_string(path).expect("tests/README.md can be read");
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
        let mutant = cells.nth(2)?.strip_prefix('`')?.strip_suffix('`')?;
        Some((mutant.to_owned(), cells.next()?.trim().replace(',', "")))
    });
    rows.collect()
}

#[test]
fn the_table_has_every_mutant_and_no_other() {
    let rows = rows();
    let listed: BTreeSet<&str> = rows.iter().map(|(name, _)| name.as_str()).collect();
    let all: BTreeSet<&str> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
    assert_eq!(listed, all);
    assert_eq!(rows.len(), all.len(), "each stands once");
    for (name, caught) in &rows {
        let is_unsynced = Mutant::UNSYNCED.iter().any(|mutant| mutant.name() == name);
        assert_eq!(caught == BY_POWER_CUT, is_unsynced, "{name} is caught by: {caught}");
        if !is_unsynced {
            let seeds = caught.parse::<u64>().unwrap_or_else(|_| panic!("{name} is caught by: {caught}"));
            assert!((1..=WITHIN).contains(&seeds), "{name} took {seeds} seeds");
        }
    }
}

/// Sources below `folder`, without the list of the mutants itself.
fn sources(folder: &std::path::Path, all: &mut String) {
    for entry in std::fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("the sources can be listed").path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|is| is == "rs") && !path.ends_with("src/mutant.rs") {
            all.push_str(&std::fs::read_to_string(&path).expect("a source can be read"));
        }
    }
}

#[test]
fn every_mutant_is_committed_somewhere() {
    let mut all = String::new();
    sources(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut all);
    let committed: BTreeSet<&str> = all
        .split("Mutant::")
        .skip(1)
        .map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default())
        .collect();
    let idle: Vec<&str> = Mutant::ALL
        .iter()
        .filter(|mutant| !committed.contains(format!("{mutant:?}").as_str()))
        .map(|m| m.name())
        .collect();
    assert!(idle.is_empty(), "no place in the sources commits {idle:?}");
}

#[cfg(feature = "mutants")]
mod committed {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use parking_lot::Mutex;

    use super::super::driver::run;
    use super::super::seeds::{on_threads, threads};
    use super::*;

    /// Turns in which every mutant comes once.
    const TURNS: usize = 4;

    /// A seed that catches a mutant, counted from 1, and what was seen: the one that did so when the table was
    /// made, or else the first one.
    fn caught(
        mutant: Mutant,
        known: Option<u64>,
        watch: &super::super::seeds::Watch,
    ) -> Option<(u64, String)> {
        cairn::mutant::choose(Some(mutant));
        let found = known.map(|seeds| seeds - 1).into_iter().chain(0..WITHIN).find_map(|seed| {
            watch.begins(&format!("{} with seed {seed}", mutant.name()));
            let why = run(seed, false).violation?;
            Some((seed + 1, why.lines().next().unwrap_or_default().to_owned()))
        });
        cairn::mutant::choose(None);
        found
    }

    #[test]
    fn every_mutant_is_caught() {
        let chosen = std::env::var("CAIRN_MUTANTS").ok();
        let chosen: Option<Vec<&str>> = chosen.as_deref().map(|names| names.split(',').collect());
        let is_chosen = |mutant: &&Mutant| match &chosen {
            Some(names) => names.contains(&mutant.name()),
            None => !Mutant::UNSYNCED.contains(mutant),
        };
        let turn: Option<usize> =
            std::env::var("CAIRN_MUTANTS_TURN").ok().map(|turn| turn.parse().expect("turns are counted"));
        let is_due = |(place, _): &(usize, &Mutant)| turn.is_none_or(|turn| place % TURNS == turn % TURNS);
        let due = Mutant::ALL.iter().enumerate().filter(is_due).map(|(_, mutant)| mutant);
        let mutants: Vec<Mutant> = due.filter(is_chosen).copied().collect();
        assert!(!mutants.is_empty(), "CAIRN_MUTANTS names no mutant");
        println!("{} of {} mutants", mutants.len(), Mutant::ALL.len());
        // The table is made from the first seeds.
        let anew = std::env::var_os("CAIRN_MUTANTS_ANEW").is_some();
        let known: BTreeMap<String, u64> = match anew {
            true => BTreeMap::new(),
            false => {
                rows().into_iter().filter_map(|(name, seeds)| Some((name, seeds.parse().ok()?))).collect()
            }
        };
        let (next, missed) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        on_threads(threads(), |watch| {
            while let Some(&mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                match caught(mutant, known.get(mutant.name()).copied(), watch) {
                    Some((seeds, why)) => {
                        println!("{} is caught within {seeds} seeds: {why}", mutant.name());
                    }
                    None => drop(missed.lock().insert(mutant.name(), WITHIN)),
                }
            }
        });
        let missed = missed.into_inner();
        assert!(missed.is_empty(), "not caught within so many seeds: {missed:?}");
    }
}
