//! Writes the base and the load of an experiment, and counts what that uploads and what is stored meanwhile.
//!
//! The measurement of the load begins at its first write, and ends when the background work after it is done. What is
//! stored is compared with the live data at every flush, and every 100 ms during that wait.

use std::time::Duration;

use cairn::server::Durability;
use cairn::volume::Volume;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Stage;
use crate::Failure;
use crate::content::Content;
use crate::counted::Counted;
use crate::disk::{Gateway, size_of_files};
use crate::experiment::BLOCK_BYTES;
use crate::plan::Run;

const GIB: u64 = 1 << 30;
/// Samples of the curve in the result.
const CURVE: u64 = 64;

/// The state of the disk at a moment of the load.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    written_bytes: u64,
    uploaded_bytes: u64,
    stored_bytes: u64,
    live_bytes: u64,
}

impl Sample {
    fn ratio(&self) -> f64 {
        self.stored_bytes as f64 / self.live_bytes.max(1) as f64
    }

    fn shown(&self) -> Value {
        json!({
            "written_bytes": self.written_bytes,
            "uploaded_bytes": self.uploaded_bytes,
            "stored_bytes": self.stored_bytes,
            "live_bytes": self.live_bytes,
        })
    }
}

/// What is seen while the load is written.
#[derive(Debug)]
struct Watch {
    counted: Counted,
    before_bytes: u64,
    /// The sample with the largest ratio of stored to live bytes.
    fullest: Sample,
    /// A sample for each checkpoint, taken at the first flush after it was published.
    checkpoints: Vec<Sample>,
    checkpoints_seen: u64,
    curve: Vec<Sample>,
    curve_step_bytes: u64,
}

impl Watch {
    fn new(counted: &Counted, volume: &Volume, load_bytes: u64) -> Self {
        Self {
            counted: counted.clone(),
            before_bytes: counted.counts().puts.total().bytes,
            fullest: Sample::default(),
            checkpoints: Vec::new(),
            checkpoints_seen: volume.usage().checkpoints,
            curve: Vec::new(),
            curve_step_bytes: load_bytes / CURVE,
        }
    }

    fn sample(&mut self, volume: &Volume, written_bytes: u64, content: &Content) {
        let sample = Sample {
            written_bytes,
            uploaded_bytes: self.counted.counts().puts.total().bytes - self.before_bytes,
            stored_bytes: self.counted.stored_bytes(),
            live_bytes: content.live_bytes(),
        };
        if sample.ratio() > self.fullest.ratio() {
            self.fullest = sample;
        }
        let checkpoints = volume.usage().checkpoints;
        if std::mem::replace(&mut self.checkpoints_seen, checkpoints) != checkpoints {
            self.checkpoints.push(sample);
        }
        let last = self.curve.last().map_or(0, |last| last.written_bytes);
        if self.curve.is_empty() || written_bytes >= last + self.curve_step_bytes.max(1) {
            self.curve.push(sample);
            println!(
                "{:8.2} MiB written, {:.2} uploaded for each byte, {:.2} stored for each live byte",
                written_bytes as f64 / 1_048_576.0,
                sample.uploaded_bytes as f64 / written_bytes.max(1) as f64,
                sample.ratio()
            );
        }
    }

    /// Bytes uploaded for each byte written in the last `bytes` of the load. From checkpoint to checkpoint, because
    /// otherwise the number of checkpoints that fall into the interval would decide.
    fn last(&self, bytes: u64) -> Option<f64> {
        let end = self.checkpoints.last()?;
        let mut earlier = self.checkpoints.iter().rev();
        let start = earlier.find(|sample| sample.written_bytes + bytes <= end.written_bytes)?;
        let written = end.written_bytes - start.written_bytes;
        Some((end.uploaded_bytes - start.uploaded_bytes) as f64 / written as f64)
    }
}

/// Creates the disk and writes its base.
pub(super) async fn fill(stage: &Stage) -> Result<Value, Failure> {
    let gateway = stage.disk.gateway(Duration::ZERO).await?;
    gateway.create(stage.plan.disk_bytes()).await?;
    let volume = gateway.open().await?;
    let (begun, mut content) = (Instant::now(), Content::new(stage.plan.seed));
    for run in stage.plan.base() {
        write(&volume, &mut content, run).await?;
    }
    gateway.drain(&volume, || {}).await?;
    let seconds = begun.elapsed().as_secs_f64();
    volume.close().await?;
    compare_with_files(stage, &gateway)?;
    println!("base: {} MiB in {seconds:.1} s", content.live_bytes() >> 20);
    Ok(json!({
        "disk_bytes": stage.plan.disk_bytes(),
        "live_bytes": content.live_bytes(),
        "seconds": seconds,
        "uploaded": gateway.counted.counts().puts,
        "stored": gateway.counted.stored(),
        "memory": stage.memory(&content)?,
    }))
}

/// Writes the load, and waits for the background work.
pub(super) async fn overwrite(stage: &Stage) -> Result<Value, Failure> {
    let gateway = stage.disk.gateway(Duration::ZERO).await?;
    let volume = gateway.open().await?;
    let mut content = stage.plan.content_after_base();
    let before = gateway.counted.counts();
    let mut watch = Watch::new(&gateway.counted, &volume, stage.plan.load_blocks() * BLOCK_BYTES);
    let (begun, mut written_bytes, mut longest_flush) = (Instant::now(), 0, Duration::ZERO);
    for (run, n) in stage.plan.load().zip(1_u64..) {
        write(&volume, &mut content, run).await?;
        written_bytes += run.blocks * BLOCK_BYTES;
        if n.is_multiple_of(stage.plan.flush_every()) {
            longest_flush = longest_flush.max(flush(&volume).await?);
            watch.sample(&volume, written_bytes, &content);
        }
    }
    longest_flush = longest_flush.max(flush(&volume).await?);
    watch.sample(&volume, written_bytes, &content);
    let (seconds, undrained) = (begun.elapsed().as_secs_f64(), gateway.counted.counts());
    gateway.drain(&volume, || watch.sample(&volume, written_bytes, &content)).await?;
    let (after, stored_bytes) = (gateway.counted.counts(), gateway.counted.stored_bytes());
    let stored = gateway.counted.stored();
    volume.close().await?;
    compare_with_files(stage, &gateway)?;
    let (uploaded, ratio) = (&after.puts - &before.puts, |bytes: u64| bytes as f64 / written_bytes as f64);
    let result = json!({
        "written_bytes": written_bytes,
        "live_bytes": content.live_bytes(),
        "seconds": seconds,
        "seconds_with_drain": begun.elapsed().as_secs_f64(),
        "longest_flush_seconds": longest_flush.as_secs_f64(),
        "uploaded": uploaded,
        "fetched": &after.gets - &before.gets,
        "deleted_objects": after.deleted_keys - before.deleted_keys,
        "amplification": ratio(uploaded.total().bytes),
        "amplification_before_drain": ratio((&undrained.puts - &before.puts).total().bytes),
        "amplification_of_last_gib": watch.last(stage.disk.scale.bytes(GIB, BLOCK_BYTES)),
        "puts_besides_journal": uploaded.sum(|kind| kind != "journal").requests,
        "checkpoints": watch.checkpoints.len(),
        "fullest": watch.fullest.shown(),
        "fullest_ratio": watch.fullest.ratio(),
        "final_ratio": stored_bytes as f64 / content.live_bytes() as f64,
        "stored": stored,
        "curve": watch.curve.iter().map(Sample::shown).collect::<Vec<_>>(),
        "memory": stage.memory(&content)?,
    });
    println!("load: {} MiB in {seconds:.1} s; uploaded {}", written_bytes >> 20, json!(uploaded));
    Ok(result)
}

async fn write(volume: &Volume, content: &mut Content, run: Run) -> Result<(), Failure> {
    Ok(volume.write(run.block * BLOCK_BYTES, content.next(run), Durability::Volatile).await?)
}

async fn flush(volume: &Volume) -> Result<Duration, Failure> {
    let begun = Instant::now();
    volume.flush().await?;
    Ok(begun.elapsed())
}

/// Fails if the counts of the store differ from the files in its directory.
fn compare_with_files(stage: &Stage, gateway: &Gateway) -> Result<(), Failure> {
    let (counted, files) =
        (gateway.counted.stored_bytes(), size_of_files(&stage.disk.directory.join("store"))?);
    if counted == files {
        return Ok(());
    }
    Err(format!("the store holds {files} bytes in files, but {counted} were counted").into())
}
