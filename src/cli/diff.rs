//! `cairn snapshot diff`: prints which ranges of a disk differ between two snapshots.
//!
//! Owns both formats, and must not know how contents are compared. Invariants: both formats show the same
//! ranges. What is held in memory does not depend on how many there are. Output that was cut off shows it:
//! the totals come last.

use serde::Serialize;

use super::endpoint::Exported;
use super::error::Error;
use super::output;
use super::settings::Options;
use super::snapshot_args::SnapshotDiff;
use super::stored_disk::StoredDisk;
use crate::task::Tasks;
use crate::volume::{Change, Diff, DiffError};

/// Text is written when there is this much of it.
const WRITTEN_BYTES: usize = 64 << 10;

/// Executes the command.
pub(super) async fn run(args: SnapshotDiff, options: Options) -> Result<(), Error> {
    let from = Exported::Snapshot(args.from.clone());
    let before = StoredDisk::open(&from, options.clone()).await?;
    let after = StoredDisk::open(&args.to, options).await.map_err(|error| match error {
        Error::ExportHeld { name, holder } => Error::CompareHeld { name, holder },
        error => error,
    })?;
    let printed = compare(&args, &before, &after).await;
    let closed = after.close().await;
    printed?;
    closed
}

async fn compare(args: &SnapshotDiff, before: &StoredDisk, after: &StoredDisk) -> Result<(), Error> {
    let failed =
        |source: DiffError| Error::Compare { from: args.from.to_string(), to: args.to.to_string(), source };
    let before = before.side().await.map_err(|error| failed(error.into()))?;
    let after = after.side().await.map_err(|error| failed(error.into()))?;
    let sizes = (before.size_bytes(), after.size_bytes());
    let mut diff = Diff::between(before, after).map_err(failed)?;
    let mut printed = Printed::begin(args, sizes);
    while let Some(change) = diff.next_change().await.map_err(|error| failed(error.into()))? {
        printed.add(&change);
        if printed.text.len() >= WRITTEN_BYTES {
            printed.write().await?;
        }
    }
    printed.end();
    printed.write().await
}

/// A range, in JSON.
#[derive(Debug, Serialize)]
struct Row {
    offset: u64,
    length: u64,
    /// Whether it reads as zeros now.
    zero: bool,
}

/// What was printed, and what is to be written next.
struct Printed {
    json: bool,
    text: String,
    sizes: (u64, u64),
    ranges: u64,
    changed_bytes: u64,
    zero_bytes: u64,
    work: Tasks,
}

impl Printed {
    fn begin(args: &SnapshotDiff, sizes: (u64, u64)) -> Self {
        let text = match args.json {
            false => row("OFFSET", "LENGTH", "CONTENT"),
            true => format!(
                "{{\n  \"from\": {},\n  \"to\": {},\n  \"from_size_bytes\": {},\n  \"to_size_bytes\": {},\n  \
                 \"ranges\": [",
                json(&args.from.to_string()),
                json(&args.to.to_string()),
                sizes.0,
                sizes.1
            ),
        };
        let work = Tasks::new();
        Self { json: args.json, text, sizes, ranges: 0, changed_bytes: 0, zero_bytes: 0, work }
    }

    fn add(&mut self, Change { range, zero }: &Change) {
        let (offset, length, zero) = (range.start, range.end - range.start, *zero);
        let text = match self.json {
            false => row(offset, length, if zero { "zeros" } else { "data" }),
            true => {
                let separator = if self.ranges == 0 { "" } else { "," };
                format!("{separator}\n    {}", json(&Row { offset, length, zero }))
            }
        };
        self.text.push_str(&text);
        self.ranges += 1;
        self.changed_bytes += length;
        self.zero_bytes += if zero { length } else { 0 };
    }

    fn end(&mut self) {
        let (ranges, bytes, zeros) = (self.ranges, self.changed_bytes, self.zero_bytes);
        let (old, new) = self.sizes;
        let text = match (self.json, ranges) {
            (false, _) => format!("{ranges} ranges, {bytes} bytes, {zeros} of them zeros"),
            (true, 0) => format!("],\n  \"changed_bytes\": {bytes},\n  \"zero_bytes\": {zeros}\n}}"),
            (true, _) => format!("\n  ],\n  \"changed_bytes\": {bytes},\n  \"zero_bytes\": {zeros}\n}}"),
        };
        let resized = match self.json || old == new {
            true => String::new(),
            false => format!("; the size was {old} bytes, and is {new}"),
        };
        self.text.push_str(&format!("{text}{resized}\n"));
    }

    async fn write(&mut self) -> Result<(), Error> {
        let text = std::mem::take(&mut self.text);
        let written = self.work.spawn_blocking(move || output::answer(&text)).await;
        let written = written.expect("the work does not panic");
        written.map_err(|source| Error::System { what: "cannot print", source })
    }
}

fn row(offset: impl ToString, length: impl ToString, content: &str) -> String {
    format!("{:<18}  {:<18}  {content}\n", offset.to_string(), length.to_string())
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data is JSON")
}
