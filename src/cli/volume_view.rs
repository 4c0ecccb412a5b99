//! The output of `cairn volume`: volumes as tables and as JSON.
//!
//! Owns both formats, and must not look anything up. Invariant: both formats show the same volumes in the
//! same order.

use bytesize::ByteSize;
use serde::Serialize;

use super::error::Error;
use super::printed::{print, print_json, table};
use super::snapshot_name::SnapshotName;
use crate::admin::{DeletedView, FlattenView, UnnamedView, WarmView};
use crate::config::Size;
use crate::gateway::chain;
use crate::volume::catalog::{Info, Listed};

/// An entry of a list: its volume, or why nothing is known about it.
pub(super) enum Row {
    /// The volume.
    Volume(Info),
    /// The volume cannot be described.
    Problem {
        /// Name of the volume.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl From<Listed> for Row {
    fn from(listed: Listed) -> Self {
        match listed.found {
            Ok(info) => Self::Volume(info),
            Err(error) => Self::Problem { name: listed.name, problem: chain(&*error) },
        }
    }
}

pub(super) fn print_created(info: &Info, json: bool) -> Result<(), Error> {
    if json {
        return print_json(&Shown::of(info));
    }
    print(&format!("created {} of {}\n", info.name, size(info.size_bytes)))
}

pub(super) fn print_cloned(info: &Info, of: &SnapshotName, json: bool) -> Result<(), Error> {
    if json {
        return print_json(&Shown::of(info));
    }
    print(&format!("created {} of {}, a clone of {of}\n", info.name, size(info.size_bytes)))
}

pub(super) fn print_resized(info: &Info, json: bool) -> Result<(), Error> {
    if json {
        return print_json(&Shown::of(info));
    }
    print(&format!("resized {} to {}\n", info.name, size(info.size_bytes)))
}

pub(super) fn print_renamed(from: &str, info: &Info, json: bool) -> Result<(), Error> {
    if json {
        return print_json(&Shown::of(info));
    }
    print(&format!("renamed {from} to {}\n", info.name))
}

/// Who does what is left of a flattening when the grace period is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Later {
    /// The gateway.
    ByGateway,
    /// Whoever repeats the command.
    Again,
}

/// Prints that a volume is flattened or will be. What is in the way is an error of the command.
pub(super) fn print_flattened(name: &str, view: &FlattenView, json: bool, later: Later) -> Result<(), Error> {
    if json {
        return print_json(view);
    }
    match (&*view.state, view.seconds) {
        ("flat", _) => print(&format!("{name} needs no other volume\n")),
        ("waits", Some(seconds)) => {
            let after = humantime::format_duration(std::time::Duration::from_secs(seconds));
            let what = match later {
                Later::ByGateway => "the gateway cuts the tie then, while it has the volume open",
                Later::Again => "repeat the command then to cut the tie",
            };
            print(&format!("all data of {name} is its own; what it replaced is kept for {after}: {what}\n"))
        }
        _ => Ok(()),
    }
}

/// Prints what was loaded into the cache.
pub(super) fn print_warmed(name: &str, view: &WarmView, json: bool) -> Result<(), Error> {
    if json {
        return print_json(view);
    }
    if view.state == "no_record" {
        return print(&format!(
            "nothing is loaded: no first reads of {name} are recorded yet (volumes.record_reads); --all \
             loads the disk from its beginning\n"
        ));
    }
    let why = if view.full { "; the cache has no room for more" } else { "" };
    print(&format!("loaded {} of {name} in {} requests{why}\n", size(view.bytes), view.requests))
}

pub(super) fn print_undeleted(info: &Info, json: bool) -> Result<(), Error> {
    if json {
        return print_json(&Shown::of(info));
    }
    print(&format!("brought back {}\n", info.name))
}

pub(super) fn print_deleted(deleted: Vec<DeletedView>, json: bool) -> Result<(), Error> {
    if json { print_json(&deleted) } else { print(&deleted_table(&deleted)) }
}

pub(super) fn print_all(rows: Vec<Row>, json: bool) -> Result<(), Error> {
    if json {
        print_json(&rows.iter().map(ShownRow::of).collect::<Vec<_>>())
    } else {
        print(&volumes_table(&rows))
    }
}

pub(super) fn print_unnamed(unnamed: Vec<UnnamedView>, json: bool) -> Result<(), Error> {
    if json { print_json(&unnamed) } else { print(&unnamed_table(&unnamed)) }
}

/// Prints a volume. `parent` is the name of the volume that it is a clone of, if that has one.
pub(super) fn print_one(info: &Info, parent: Option<String>, json: bool) -> Result<(), Error> {
    if json { print_json(&Shown::of(info)) } else { print(&details(info, parent)) }
}

/// A volume in JSON.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    name: &'a str,
    id: uuid::Uuid,
    size_bytes: u64,
    chunk_bytes: u64,
    created_at: String,
    epoch: u32,
    holder: Option<&'a str>,
    clone_of: Option<uuid::Uuid>,
}

impl<'a> Shown<'a> {
    fn of(info: &'a Info) -> Self {
        Self {
            name: &info.name,
            id: info.volume,
            size_bytes: info.size_bytes,
            chunk_bytes: info.chunk_bytes,
            created_at: time(info.created_at_seconds),
            epoch: info.epoch,
            holder: info.holder.as_deref(),
            clone_of: info.clone_of,
        }
    }
}

/// An entry of a list in JSON.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ShownRow<'a> {
    Volume(Shown<'a>),
    Problem { name: &'a str, problem: &'a str },
}

impl<'a> ShownRow<'a> {
    fn of(row: &'a Row) -> Self {
        match row {
            Row::Volume(info) => Self::Volume(Shown::of(info)),
            Row::Problem { name, problem } => Self::Problem { name, problem },
        }
    }
}

/// Formats seconds since 1970 as RFC 3339.
fn time(seconds: u64) -> String {
    // The year 9999, the last one that RFC 3339 can express.
    const LAST: u64 = 253_402_300_799;
    let since = std::time::Duration::from_secs(seconds.min(LAST));
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}

/// Formats a size for people. Exact if that is short.
pub(super) fn size(bytes: u64) -> String {
    let exact = Size(bytes).to_string();
    if exact.len() <= 7 { exact } else { ByteSize(bytes).display().iec().to_string() }
}

fn volumes_table(rows: &[Row]) -> String {
    let head = ["NAME", "SIZE", "CHUNK", "CREATED", "HELD BY"].map(str::to_owned);
    let rows = rows.iter().map(|row| match row {
        Row::Volume(info) => {
            let holder = info.holder.clone().unwrap_or_else(|| "-".to_owned());
            let created = time(info.created_at_seconds);
            [info.name.clone(), size(info.size_bytes), size(info.chunk_bytes), created, holder]
        }
        Row::Problem { name, problem } => {
            let unknown = || "?".to_owned();
            [name.clone(), unknown(), unknown(), unknown(), problem.clone()]
        }
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn unnamed_table(unnamed: &[UnnamedView]) -> String {
    let head = ["ID", "INTENDED NAME", "CREATED", "STATE"].map(str::to_owned);
    let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "?".to_owned());
    let rows = unnamed.iter().map(|volume| {
        [volume.id.to_string(), known(&volume.made_for), known(&volume.created_at), volume.state.clone()]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn deleted_table(deleted: &[DeletedView]) -> String {
    let head = ["ID", "NAME", "SIZE", "DELETED", "KEPT UNTIL"].map(str::to_owned);
    let rows = deleted.iter().map(|volume| {
        let size = volume.size_bytes.map_or_else(|| "?".to_owned(), size);
        let (deleted_at, kept_until) = (volume.deleted_at.clone(), volume.kept_until.clone());
        [volume.id.to_string(), volume.name.clone(), size, deleted_at, kept_until]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn details(info: &Info, parent: Option<String>) -> String {
    let holder = info.holder.as_deref().unwrap_or("nobody");
    let mut fields = vec![
        ("name", info.name.clone()),
        ("id", info.volume.to_string()),
        ("size", format!("{} ({} bytes)", size(info.size_bytes), info.size_bytes)),
        ("chunk size", size(info.chunk_bytes)),
        ("created", time(info.created_at_seconds)),
        ("epoch", info.epoch.to_string()),
        ("held by", holder.to_owned()),
    ];
    fields.extend(info.clone_of.map(|id| match parent {
        Some(name) => ("clone of", format!("{name} ({id})")),
        None => ("clone of", id.to_string()),
    }));
    fields.iter().map(|(field, value)| format!("{field:<11} {value}\n")).collect()
}
