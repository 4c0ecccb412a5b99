//! The command line.
//!
//! Owns the options and their defaults. Must not know what a row measures.

use std::path::PathBuf;

use clap::Parser;

use crate::Failure;
use crate::rows::ROWS;
use crate::scale::Scale;

/// Measures write amplification, space, requests, memory and opening times of the engine.
#[derive(Debug, Parser)]
#[command(name = "amplification")]
pub(crate) struct Cli {
    /// Row of the table to measure; may be repeated. All rows by default.
    #[arg(long = "row", value_name = "ROW")]
    pub(crate) rows: Vec<String>,
    /// Size of disks, loads, caches and journal in proportion to the table, such as 1/64.
    #[arg(long, default_value = "1")]
    pub(crate) scale: Scale,
    /// Directory for the stores. They are deleted after use. A file system in memory saves the time of fsync.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    pub(crate) dir: PathBuf,
    /// Directory in which engine.json and the table of engine.md are updated. Nothing is written by default.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Seed of all addresses and contents.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Run only this phase, on the store that the phases before it left in the directory.
    #[arg(long, hide = true, requires = "result")]
    pub(crate) phase: Option<String>,
    /// File for the result of the phase.
    #[arg(long, hide = true)]
    pub(crate) result: Option<PathBuf>,
    /// `cargo bench` passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Cli {
    /// The ids of the rows to measure, in the order of the table.
    pub(crate) fn wanted(&self) -> Result<Vec<&'static str>, Failure> {
        if let Some(unknown) = self.rows.iter().find(|id| ROWS.iter().all(|row| row.id != id.as_str())) {
            return Err(format!("there is no row {unknown}").into());
        }
        let is_wanted = |id: &str| self.rows.is_empty() || self.rows.iter().any(|wanted| wanted == id);
        Ok(ROWS.iter().map(|row| row.id).filter(|id| is_wanted(id)).collect())
    }
}
