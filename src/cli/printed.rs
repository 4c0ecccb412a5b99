//! Results of commands on standard output: text, tables and JSON.
//!
//! Owns their form, and must not know what they show. Invariant: a result that cannot be written is an error
//! of the command.

use serde::Serialize;

use super::error::Error;
use super::output;

/// Prints a text as it is.
pub(super) fn print(text: &str) -> Result<(), Error> {
    output::answer(text).map_err(|source| Error::System { what: "cannot print", source })
}

/// Prints a value as indented JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Error> {
    let mut text = serde_json::to_string_pretty(value).expect("plain data is JSON");
    text.push('\n');
    print(&text)
}

/// Formats lines of cells as aligned columns.
pub(super) fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    // The last cell of a line is not padded.
    let width = |column: usize| if column + 1 < COLUMNS { width(column) } else { 0 };
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
