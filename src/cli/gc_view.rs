//! The output of `cairn gc`: text and JSON.
//!
//! Owns both formats, and must not collect anything. Invariants: both formats show the same volumes in the
//! same order. What comes from the store is escaped in the text.

use serde::Serialize;

use super::error::Error;
use super::printed::{print, print_json};
use super::text::printable;
use super::volume_view::size;
use crate::admin::{GarbageView, TallyView, UnnamedView};

/// What became of a volume.
pub(super) struct Outcome {
    /// Name of the volume.
    pub(super) name: String,
    /// What was collected, or why nothing was.
    pub(super) collected: Result<GarbageView, Error>,
}

pub(super) fn print_all(
    outcomes: &[Outcome],
    unnamed: &[UnnamedView],
    dry_run: bool,
    json: bool,
) -> Result<(), Error> {
    if json {
        let volumes = outcomes.iter().map(ShownOutcome::of).collect();
        let unnamed = unnamed.iter().map(ShownUnnamed::of).collect();
        return print_json(&Shown { dry_run, volumes, unnamed });
    }
    let mut text: String = outcomes.iter().map(line).collect();
    if outcomes.is_empty() {
        text += "the store has no volumes\n";
    }
    text += &advice(unnamed);
    print(&text)
}

/// The result in JSON.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    dry_run: bool,
    volumes: Vec<ShownOutcome<'a>>,
    unnamed: Vec<ShownUnnamed<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ShownOutcome<'a> {
    Collected(&'a GarbageView),
    Problem { name: &'a str, problem: String },
}

impl<'a> ShownOutcome<'a> {
    fn of(outcome: &'a Outcome) -> Self {
        match &outcome.collected {
            Ok(collected) => Self::Collected(collected),
            Err(error) => Self::Problem { name: &outcome.name, problem: error.to_string() },
        }
    }
}

/// A volume without a name, and the command that deletes it.
#[derive(Debug, Serialize)]
struct ShownUnnamed<'a> {
    #[serde(flatten)]
    volume: &'a UnnamedView,
    delete_with: String,
}

impl<'a> ShownUnnamed<'a> {
    fn of(volume: &'a UnnamedView) -> Self {
        Self { volume, delete_with: deletion(volume) }
    }
}

fn deletion(volume: &UnnamedView) -> String {
    format!("cairn volume delete --id {}", volume.id)
}

/// What became of a volume, as one line.
fn line(outcome: &Outcome) -> String {
    match &outcome.collected {
        Ok(collected) => format!("{}: {}\n", outcome.name, said(collected)),
        // The errors name the volume themselves.
        Err(error) => format!("{}\n", printable(&error.to_string())),
    }
}

fn said(collected: &GarbageView) -> String {
    let GarbageView { before, after, .. } = collected;
    let mut said = match collected.dry_run {
        true => format!("{} that nothing references", objects(before.orphan_objects, before.orphan_bytes)),
        false => format!(
            "deleted {} objects; {} before, {} now",
            collected.deleted_objects,
            objects(before.objects, before.bytes),
            objects(after.objects, after.bytes)
        ),
    };
    let TallyView { waiting_objects, waiting_bytes, foreign_objects, foreign_bytes, .. } = *after;
    if !collected.dry_run && after.orphan_objects > 0 {
        said += &format!("; {} are left", objects(after.orphan_objects, after.orphan_bytes));
    }
    if waiting_objects > 0 {
        let waiting = objects(waiting_objects, waiting_bytes);
        said += &format!("; {waiting} wait for the end of their grace period");
    }
    if foreign_objects > 0 {
        said += &format!("; {} are not of Cairn and stay", objects(foreign_objects, foreign_bytes));
    }
    said
}

fn objects(objects: u64, bytes: u64) -> String {
    format!("{objects} objects ({})", size(bytes))
}

/// What to type for volumes without a name.
fn advice(unnamed: &[UnnamedView]) -> String {
    if unnamed.is_empty() {
        return String::new();
    }
    let mut text = "volumes without a name, which are left alone: if nobody is creating or deleting one any \
                    more, delete it, or resume its import (cairn import --resume)\n"
        .to_owned();
    for volume in unnamed {
        let made_for = volume.made_for.as_deref().unwrap_or("?");
        let created_at = volume.created_at.as_deref().unwrap_or("?");
        let what = format!("made for {made_for}, created {created_at}, {}", volume.state);
        text += &format!("  {}    {}\n", deletion(volume), printable(&what));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error may contain what a store, a gateway or another holder sent.
    #[test]
    fn an_error_controls_no_terminal() {
        let why = "changes\n\x1b[2Jall is well".to_owned();
        let error = Error::Unsteady { name: "disk".to_owned(), why };
        let outcome = Outcome { name: "disk".to_owned(), collected: Err(error) };
        assert_eq!(line(&outcome), "volume \"disk\": changes\\n\\u{1b}[2Jall is well\n");
    }
}
