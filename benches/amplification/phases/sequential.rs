//! Reads a whole disk in order with an empty cache: the rate, and the requests and bytes that it costs.

use std::time::Duration;

use cairn::volume::Volume;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Stage;
use crate::Failure;
use crate::content::Content;
use crate::counted::Tallies;
use crate::disk::{check, read as read_run};
use crate::plan::{MIB_BLOCKS, Run};

/// Each pass opens the disk anew. The fastest one counts: the others met other work of the machine.
const PASSES: usize = 3;

/// Reads the disk from end to end in parts of 1 MiB, one after another, as `dd` does.
pub(super) async fn read(stage: &Stage, content: &Content) -> Result<Value, Failure> {
    let (disk_blocks, mut passes, mut fetched) = (stage.plan.disk_blocks(), Vec::new(), Tallies::default());
    for _ in 0..PASSES {
        let gateway = stage.disk.gateway(Duration::ZERO).await?;
        let volume = gateway.open().await?;
        let (before, begun) = (gateway.counted.counts(), Instant::now());
        pass(&volume, content, disk_blocks).await?;
        passes.push(begun.elapsed().as_secs_f64());
        fetched = &gateway.counted.counts().gets - &before.gets;
        volume.close().await?;
    }
    let best = passes.iter().copied().fold(f64::INFINITY, f64::min);
    let rate = (stage.plan.disk_bytes() >> 20) as f64 / best;
    println!("{rate:.0} MiB/s; passes of {passes:.2?} s; the last fetched {}", json!(fetched));
    Ok(json!({
        "mib_per_second": rate,
        "passes_seconds": passes,
        "fetched": fetched,
        "fetched_for_each_byte": fetched.total().bytes as f64 / stage.plan.disk_bytes() as f64,
        "memory": stage.memory(content)?,
    }))
}

async fn pass(volume: &Volume, content: &Content, disk_blocks: u64) -> Result<(), Failure> {
    let mut block = 0;
    while block < disk_blocks {
        let run = Run { block, blocks: MIB_BLOCKS.min(disk_blocks - block) };
        let bytes = read_run(volume, run).await?;
        // One block of each read: to make the bytes of all of them would take longer than to read them.
        let first = Run { block, blocks: 1 };
        let expected = content.bytes(first);
        check(first, &bytes[..expected.len()], &expected)?;
        block += run.blocks;
    }
    Ok(())
}
