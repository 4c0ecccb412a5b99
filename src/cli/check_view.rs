//! The output of `cairn check`: text and JSON.
//!
//! Owns both formats, and must not look anything up. Invariants: both formats show the same findings in the
//! same order. What comes from the store is escaped in the text.

use serde::Serialize;

use super::error::Error;
use super::printed::{print, print_json};
use super::text::printable;
use super::volume_view::size;
use crate::volume::check::{Depth, Effect, Finding, Ranges, Report};

/// How many ranges of a finding, and how many orphans, the text shows.
const SHOWN: usize = 10;

pub(super) fn print_report(report: &Report, store: &str, json: bool) -> Result<(), Error> {
    if json { print_json(&Shown::of(report, store)) } else { print(&text(report)) }
}

/// The result in one word.
fn result(report: &Report) -> &'static str {
    match (report.is_damaged(), &report.incomplete) {
        (true, _) => "damaged",
        (false, Some(_)) => "incomplete",
        (false, None) => "clean",
    }
}

const fn effect_name(effect: Effect) -> &'static str {
    match effect {
        Effect::Eio => "eio",
        Effect::NotOpened => "not opened",
        Effect::Older => "older data",
        Effect::Nothing => "nothing",
    }
}

/// The result in JSON.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    name: &'a str,
    id: Option<uuid::Uuid>,
    store: &'a str,
    size_bytes: Option<u64>,
    epoch: Option<u32>,
    data: bool,
    result: &'static str,
    incomplete: Option<&'a str>,
    findings: Vec<ShownFinding<'a>>,
    findings_omitted: u64,
    damage: ShownRanges,
    orphans: ShownOrphans<'a>,
    notes: &'a [String],
    objects: u64,
    bytes: u64,
    requests: u64,
    read_bytes: u64,
}

#[derive(Debug, Serialize)]
struct ShownFinding<'a> {
    key: &'a str,
    object: &'static str,
    trouble: &'static str,
    why: &'a str,
    effect: &'static str,
    #[serde(flatten)]
    damage: ShownRanges,
}

#[derive(Debug, Serialize)]
struct ShownRanges {
    bytes: u64,
    ranges: Vec<ShownRange>,
    bytes_omitted: u64,
}

#[derive(Debug, Serialize)]
struct ShownRange {
    offset: u64,
    length: u64,
}

#[derive(Debug, Serialize)]
struct ShownOrphans<'a> {
    objects: u64,
    bytes: u64,
    listed: Vec<ShownOrphan<'a>>,
}

#[derive(Debug, Serialize)]
struct ShownOrphan<'a> {
    key: &'a str,
    bytes: u64,
}

impl ShownRanges {
    fn of(ranges: &Ranges) -> Self {
        let shown = ranges.iter().map(|it| ShownRange { offset: it.start, length: it.end - it.start });
        Self { bytes: ranges.bytes(), ranges: shown.collect(), bytes_omitted: ranges.omitted_bytes() }
    }
}

impl<'a> Shown<'a> {
    fn of(report: &'a Report, store: &'a str) -> Self {
        let all = report.usage.sum(|_, _| true);
        let findings = report.findings.iter().map(|finding| ShownFinding {
            key: &finding.key,
            object: finding.object.name(),
            trouble: finding.trouble.name(),
            why: &finding.why,
            effect: effect_name(finding.effect),
            damage: ShownRanges::of(&finding.ranges),
        });
        let orphans = report.orphans.listed.iter();
        let listed = orphans.map(|(key, bytes)| ShownOrphan { key, bytes: *bytes }).collect();
        Self {
            name: &report.name,
            id: report.volume,
            store,
            size_bytes: report.size_bytes,
            epoch: report.epoch,
            data: report.depth == Depth::Data,
            result: result(report),
            incomplete: report.incomplete.as_deref(),
            findings: findings.collect(),
            findings_omitted: report.omitted_findings,
            damage: ShownRanges::of(&report.ranges),
            orphans: ShownOrphans { objects: report.orphans.objects, bytes: report.orphans.bytes, listed },
            notes: &report.notes,
            objects: all.objects,
            bytes: all.bytes,
            requests: report.requests,
            read_bytes: report.read_bytes,
        }
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text += &finding_text(finding);
    }
    if report.omitted_findings > 0 {
        text += &format!("and {} more objects\n", report.omitted_findings);
    }
    for (key, bytes) in report.orphans.listed.iter().take(SHOWN) {
        text += &format!("orphan {}: {bytes} bytes of space, no data is lost\n", printable(key));
    }
    if report.orphans.objects > SHOWN as u64 {
        let (objects, bytes) = (report.orphans.objects, size(report.orphans.bytes));
        text += &format!("{objects} orphans in all, {bytes}\n");
    }
    for note in &report.notes {
        text += &format!("note: {}\n", printable(note));
    }
    if let Some(why) = &report.incomplete {
        text += &format!("{why}\n");
    }
    let all = report.usage.sum(|_, _| true);
    text += &format!(
        "{}: {} objects, {}; {} requests, {} read: {}\n",
        report.name,
        all.objects,
        size(all.bytes),
        report.requests,
        size(report.read_bytes),
        result(report)
    );
    text
}

fn finding_text(finding: &Finding) -> String {
    let Finding { key, object, trouble, why, effect, ranges } = finding;
    let (trouble, object) = (trouble.name(), object.name());
    let mut text = format!("{trouble}: {object} {}\n  {}\n", printable(key), printable(why));
    text += &match effect {
        Effect::Nothing => "  everything can be read\n".to_owned(),
        Effect::NotOpened => "  the volume cannot be opened\n".to_owned(),
        Effect::Older => format!("  the next opening loses the changes of {}\n", shown(ranges)),
        Effect::Eio => format!("  reading fails with EIO: {}\n", shown(ranges)),
    };
    text
}

/// Ranges as `offset+length` in bytes.
fn shown(ranges: &Ranges) -> String {
    let count = ranges.iter().count();
    let first: Vec<String> = ranges
        .iter()
        .take(SHOWN)
        .map(|range| format!("{}+{}", range.start, range.end - range.start))
        .collect();
    let more = if count > SHOWN { format!(" and {} more ranges", count - SHOWN) } else { String::new() };
    format!("{} bytes, {}{more}", ranges.bytes().saturating_add(ranges.omitted_bytes()), first.join(" "))
}
