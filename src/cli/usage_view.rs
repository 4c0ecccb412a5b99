//! The output of `cairn volume usage`: a table and JSON.
//!
//! Owns both formats, and must not count anything. Invariant: both formats show the same figures.

use serde::Serialize;

use super::error::Error;
use super::printed::{print, print_json, table};
use super::volume_view::size;
use crate::volume::check::{Count, ObjectKind, Purpose, Report};

/// Length of a block in bytes.
const BLOCK_BYTES: u64 = 4096;

pub(super) fn print_usage(report: &Report, json: bool) -> Result<(), Error> {
    if json { print_json(&Shown::of(report)) } else { print(&text(report)) }
}

/// What a volume takes, in JSON.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    name: &'a str,
    id: Option<uuid::Uuid>,
    size_bytes: Option<u64>,
    /// Blocks of the last checkpoint, in bytes.
    data: Data,
    kinds: Vec<Row>,
    total: Row,
    garbage_bytes: u64,
    requests: u64,
    read_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Data {
    stored_bytes: u64,
    live_bytes: u64,
    /// What a read gets from the objects of other volumes.
    shared_bytes: u64,
}

/// The objects of one kind.
#[derive(Debug, Serialize)]
struct Row {
    kind: &'static str,
    objects: u64,
    bytes: u64,
    live_bytes: u64,
    waiting_bytes: u64,
    unsettled_bytes: u64,
    orphan_bytes: u64,
}

impl Row {
    fn of(report: &Report, kind: Option<ObjectKind>) -> Self {
        let is_wanted = |found: ObjectKind| kind.is_none_or(|kind| kind == found);
        let of = |purpose: Purpose| report.usage.sum(|found, its| is_wanted(found) && its == purpose).bytes;
        let Count { objects, bytes } = report.usage.sum(|found, _| is_wanted(found));
        Self {
            kind: kind.map_or("total", ObjectKind::name),
            objects,
            bytes,
            live_bytes: of(Purpose::Live),
            waiting_bytes: of(Purpose::Waiting),
            unsettled_bytes: of(Purpose::Unsettled),
            orphan_bytes: of(Purpose::Orphan),
        }
    }

    fn cells(&self) -> [String; 7] {
        [
            self.kind.to_owned(),
            self.objects.to_string(),
            size(self.bytes),
            size(self.live_bytes),
            size(self.waiting_bytes),
            size(self.unsettled_bytes),
            size(self.orphan_bytes),
        ]
    }
}

impl<'a> Shown<'a> {
    fn of(report: &'a Report) -> Self {
        let total = Row::of(report, None);
        let space = report.usage.space;
        Self {
            name: &report.name,
            id: report.volume,
            size_bytes: report.size_bytes,
            data: Data {
                stored_bytes: space.stored * BLOCK_BYTES,
                live_bytes: space.live * BLOCK_BYTES,
                shared_bytes: report.usage.shared_blocks * BLOCK_BYTES,
            },
            kinds: report.usage.kinds().into_iter().map(|kind| Row::of(report, Some(kind))).collect(),
            garbage_bytes: total.waiting_bytes.saturating_add(total.orphan_bytes),
            total,
            requests: report.requests,
            read_bytes: report.read_bytes,
        }
    }
}

fn text(report: &Report) -> String {
    let shown = Shown::of(report);
    let head = ["KIND", "OBJECTS", "BYTES", "LIVE", "WAITING", "UNSETTLED", "ORPHANS"].map(str::to_owned);
    let rows = shown.kinds.iter().chain([&shown.total]).map(Row::cells);
    let mut text = table(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    let Data { stored_bytes, live_bytes, shared_bytes } = shown.data;
    text +=
        &format!("data of the last checkpoint: {} live of {} stored", size(live_bytes), size(stored_bytes));
    if shared_bytes > 0 {
        text += &format!(", and {} shared with other volumes", size(shared_bytes));
    }
    text += &format!("\ngarbage: {}\n", size(shown.garbage_bytes));
    if report.is_damaged() {
        text += "objects are missing or damaged: run cairn check\n";
    }
    text
}
