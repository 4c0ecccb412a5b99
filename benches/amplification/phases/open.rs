//! Opening a disk whose store is 20 ms away: the time it takes, and the memory.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Stage;
use crate::disk::{check, read};
use crate::{Failure, process};

/// What each request takes at least.
const DELAY: Duration = Duration::from_millis(20);
/// Number of blocks that are read after the opening, so that every map page and overlay in use is loaded.
const READS: usize = 64;

/// Opens the disk, and reads some of the blocks of its load.
///
/// Memory is measured after `malloc_trim`, against this process with the store open and an empty cache.
pub(super) async fn open(stage: &Stage) -> Result<Value, Failure> {
    let content = stage.plan.content_after_load();
    let gateway = stage.disk.gateway(DELAY).await?;
    let idle = trimmed_bytes()?;
    let begun = Instant::now();
    let volume = gateway.open().await?;
    let seconds = begun.elapsed().as_secs_f64();
    let (requests, opened) = (gateway.counted.counts(), trimmed_bytes()?);
    let begun = Instant::now();
    let mut first_read_seconds = None;
    for run in stage.plan.load().take(READS) {
        check(run, &read(&volume, run).await?, &content.bytes(run))?;
        first_read_seconds.get_or_insert_with(|| begun.elapsed().as_secs_f64());
    }
    let fetched = &gateway.counted.counts().gets - &requests.gets;
    let loaded = trimmed_bytes()?;
    volume.close().await?;
    println!("opened in {seconds:.3} s with {requests:?}; then fetched {}", json!(fetched));
    println!("idle {} KiB, opened {} KiB, after reads {} KiB", idle >> 10, opened >> 10, loaded >> 10);
    Ok(json!({
        "delay_seconds": DELAY.as_secs_f64(),
        "seconds": seconds,
        "gets": requests.gets,
        "puts": requests.puts,
        "first_read_seconds": first_read_seconds,
        "fetched_by_reads": fetched,
        "stored": gateway.counted.stored(),
        "idle_bytes": idle,
        "above_idle_bytes": opened.saturating_sub(idle),
        "above_idle_after_reads_bytes": loaded.saturating_sub(idle),
        "memory": stage.memory(&content)?,
    }))
}

fn trimmed_bytes() -> Result<u64, Failure> {
    process::give_memory_back();
    process::resident_bytes()
}
