//! Random reads with an empty cache: the requests and bytes that each of them costs.

use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Stage;
use crate::Failure;
use crate::disk::{check, read};
use crate::plan::Run;

/// Number of reads.
const READS: u64 = 50_000;
/// Reads in flight.
const DEPTH: usize = 8;

/// Reads random blocks of the whole disk. Map pages and indexes that a read fetches on its way count.
pub(super) async fn cold(stage: &Stage) -> Result<Value, Failure> {
    let content = stage.plan.content_after_load();
    let gateway = stage.disk.gateway(Duration::ZERO).await?;
    let volume = gateway.open().await?;
    let (before, begun, count) = (gateway.counted.counts(), Instant::now(), stage.disk.scale.count(READS));
    let mut rng = SmallRng::seed_from_u64(stage.plan.seed ^ 0x636f_6c64);
    let blocks: Vec<u64> = (0..count).map(|_| rng.random_range(0..stage.plan.disk_blocks())).collect();
    let reads = blocks.into_iter().map(|block| {
        let (volume, content, run) = (&volume, &content, Run { block, blocks: 1 });
        async move { check(run, &read(volume, run).await?, &content.bytes(run)) }
    });
    stream::iter(reads).buffer_unordered(DEPTH).try_collect::<()>().await?;
    let seconds = begun.elapsed().as_secs_f64();
    let fetched = &gateway.counted.counts().gets - &before.gets;
    volume.close().await?;
    let total = fetched.total();
    println!("{count} reads in {seconds:.1} s; fetched {}", json!(fetched));
    Ok(json!({
        "reads": count,
        "seconds": seconds,
        "fetched": fetched,
        "gets_per_read": total.requests as f64 / count as f64,
        "bytes_per_read": total.bytes as f64 / count as f64,
        "memory": stage.memory(&content)?,
    }))
}
