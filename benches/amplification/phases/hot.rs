//! A hot set that fits in the cache: how much of its second reading comes from there.

use std::time::Duration;

use cairn::metrics::labels::Tier;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use serde_json::{Value, json};

use super::Stage;
use crate::Failure;
use crate::disk::{Gateway, check, read};
use crate::plan::Run;

/// Reads the hot set twice, in two orders.
///
/// The volume's metrics count lookups in the cache; the store counts what was fetched in spite of it. The ratio of hits
/// that counts is the lower one.
pub(super) async fn hot(stage: &Stage) -> Result<Value, Failure> {
    let content = stage.plan.content_after_load();
    let gateway = stage.disk.gateway(Duration::ZERO).await?;
    let volume = gateway.open().await?;
    let mut blocks = stage.plan.hot_set();
    let mut rng = SmallRng::seed_from_u64(stage.plan.seed ^ 0x7061_7373);
    let mut passes = Vec::new();
    for _ in 0..2 {
        blocks.shuffle(&mut rng);
        let (before, lookups) = (gateway.counted.counts(), lookups(&gateway));
        for &block in &blocks {
            let run = Run { block, blocks: 1 };
            check(run, &read(&volume, run).await?, &content.bytes(run))?;
        }
        passes.push(pass(&gateway, blocks.len() as u64, &before.gets, lookups));
    }
    volume.close().await?;
    println!("passes: {passes:?}");
    Ok(json!({
        "blocks": blocks.len(),
        "clean_bytes": stage.disk.clean_bytes(),
        "passes": passes,
        "hits": passes[1]["hits"],
        "memory": stage.memory(&content)?,
    }))
}

/// Hits and misses of the cache.
fn lookups(gateway: &Gateway) -> (u64, u64) {
    let metrics = &gateway.metrics;
    (metrics.cache_hits.of(Tier::Memory).get(), metrics.cache_misses.of(Tier::Memory).get())
}

fn pass(
    gateway: &Gateway,
    reads: u64,
    before: &crate::counted::Tallies,
    lookups_before: (u64, u64),
) -> Value {
    let fetched = &gateway.counted.counts().gets - before;
    let (hits, misses) = lookups(gateway);
    let (hits, misses) = (hits - lookups_before.0, misses - lookups_before.1);
    let by_metrics = hits as f64 / (hits + misses).max(1) as f64;
    let by_requests = 1.0 - fetched.total().requests as f64 / reads as f64;
    json!({
        "cache_hits": hits,
        "cache_misses": misses,
        "fetched": fetched,
        "hits_by_metrics": by_metrics,
        "hits_by_requests": by_requests,
        "hits": by_metrics.min(by_requests),
    })
}
