//! Measures the engine: what it uploads, stores, fetches and holds in memory for each byte that a client writes or reads.
//!
//! Owns the table of docs/engine.md. Every experiment prepares a disk of its own in a directory store and measures it in
//! phases. Each phase runs in a process of its own, so that no phase inherits the memory of the one before it. Must not
//! know how the engine works: it uses the public interface of a volume, and counts what reaches the store. Invariant:
//! sizes, addresses and contents depend on nothing but the options. Every read is compared with what was written.
//!
//! `tests/tools/amplification.sh` builds and runs this program.

mod content;
mod counted;
mod delayed;
mod disk;
mod experiment;
mod machine;
mod options;
mod phases;
mod plan;
mod process;
mod report;
mod rows;
mod scale;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::Parser;
use serde_json::Value;

use crate::experiment::EXPERIMENTS;
use crate::options::Cli;
use crate::rows::ROWS;

/// Why a measurement failed. A person reads it; no code depends on it.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The results of all phases that ran, by `experiment/phase`.
type Results = BTreeMap<String, Value>;

fn main() -> ExitCode {
    process::tune_allocator();
    let cli = Cli::parse();
    let done = match &cli.phase {
        Some(phase) => phases::run(&cli, phase),
        None => measure(&cli),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("amplification: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all phases that the wanted rows need, and reports the rows.
fn measure(cli: &Cli) -> Result<(), Failure> {
    let wanted = cli.wanted()?;
    let mut results = Results::new();
    for experiment in EXPERIMENTS {
        let phases = experiment.phases_for(&wanted);
        if phases.is_empty() {
            continue;
        }
        let directory = tempfile::Builder::new().prefix("cairn-amplification-").tempdir_in(&cli.dir)?;
        for phase in phases {
            let name = format!("{}/{}", experiment.name, phase.name());
            let result = in_own_process(cli, &name, directory.path())?;
            results.insert(name, result);
        }
    }
    let rows: Vec<_> = ROWS.iter().filter(|row| wanted.contains(&row.id)).collect();
    report::write(cli, &rows, &results)
}

/// Runs one phase, and returns what it measured.
fn in_own_process(cli: &Cli, name: &str, directory: &Path) -> Result<Value, Failure> {
    println!("== {name}");
    let result = directory.join("result.json");
    let status = Command::new(std::env::current_exe()?)
        .args(["--phase", name, "--scale", &cli.scale.to_string(), "--seed", &cli.seed.to_string()])
        .arg("--dir")
        .arg(directory)
        .arg("--result")
        .arg(&result)
        .status()?;
    if !status.success() {
        return Err(format!("{name} failed: {status}").into());
    }
    Ok(serde_json::from_slice(&std::fs::read(&result)?)?)
}
