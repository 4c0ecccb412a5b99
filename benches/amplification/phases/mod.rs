//! The phases: each measures one thing on the disk of its experiment, in a process of its own.
//!
//! Owns what is common to them: the plan, the result and the memory. Invariant: a phase that reads wrong data fails.

mod cold;
mod hot;
mod open;
mod overwrite;
mod sequential;

use std::time::Duration;

use serde_json::{Value, json};

use crate::content::Content;
use crate::disk::Disk;
use crate::experiment::{Experiment, Phase};
use crate::options::Cli;
use crate::plan::Plan;
use crate::{Failure, process};

/// A phase of an experiment, on the directory that holds its disk.
struct Stage {
    plan: Plan,
    disk: Disk,
}

/// Runs a phase, and writes its result to the file that the command line names.
pub(crate) fn run(cli: &Cli, name: &str) -> Result<(), Failure> {
    let (experiment, phase) = Experiment::find(name).ok_or_else(|| format!("there is no phase {name}"))?;
    let plan = Plan { experiment, scale: cli.scale, seed: cli.seed };
    let disk = Disk { directory: cli.dir.clone(), scale: cli.scale };
    let stage = Stage { plan, disk };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    process::end_with_parent()?;
    process::reset_peak()?;
    let result = runtime.block_on(stage.run(phase))?;
    let path = cli.result.as_ref().ok_or("a phase needs a file for its result")?;
    std::fs::write(path, serde_json::to_vec(&result)?)?;
    Ok(())
}

impl Stage {
    async fn run(&self, phase: Phase) -> Result<Value, Failure> {
        match phase {
            Phase::Fill => overwrite::fill(self).await,
            Phase::Overwrite => overwrite::overwrite(self).await,
            Phase::Cold => cold::cold(self).await,
            Phase::Open => open::open(self).await,
            Phase::Hot => hot::hot(self).await,
            Phase::ReadFresh => sequential::read(self, &self.plan.content_after_base()).await,
            Phase::Consolidate => self.consolidate().await,
            Phase::ReadOverwritten | Phase::ReadConsolidated => {
                sequential::read(self, &self.plan.content_after_load()).await
            }
        }
    }

    async fn consolidate(&self) -> Result<Value, Failure> {
        let gateway = self.disk.gateway(Duration::ZERO).await?;
        let volume = gateway.open().await?;
        let begun = tokio::time::Instant::now();
        gateway.consolidate(&volume).await?;
        let seconds = begun.elapsed().as_secs_f64();
        volume.close().await?;
        let uploaded = gateway.counted.counts().puts;
        Ok(json!({ "seconds": seconds, "uploaded": uploaded, "memory": self.memory(&Content::new(0))? }))
    }

    /// The peak of resident memory of this process so far, without the part that `content` takes.
    fn memory(&self, content: &Content) -> Result<Value, Failure> {
        let (peak, own) = (process::peak_bytes()?, content.memory_bytes());
        Ok(json!({
            "peak_bytes": peak - own.min(peak),
            "bookkeeping_bytes": own,
            "bound_bytes": self.disk.memory_bound_bytes(),
        }))
    }
}
