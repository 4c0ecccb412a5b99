//! The figures of docs/engine.md: each of them is recorded in docs/engine.json, and none is left out.

use std::path::Path;

use serde_json::Value;

use super::read;

const PAGE: &str = "docs/engine.md";
const RECORD: &str = "docs/engine.json";

/// What is wrong with a page whose table shows the rows of a record: rows in only one of them, and other figures.
fn differences(page: &str, record: &Value) -> Vec<String> {
    let rows: Vec<Vec<&str>> = page
        .lines()
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.len() == 7 && cells[1].starts_with(|first: char| first.is_ascii_digit()))
        .collect();
    let recorded = record["rows"].as_object().into_iter().flatten();
    let mut wrong: Vec<String> = recorded
        .clone()
        .filter(|(id, row)| {
            let measured = row["measured"].as_str().expect("a row has been measured");
            !rows.iter().any(|cells| cells[1] == id.as_str() && cells[4].starts_with(measured))
        })
        .map(|(id, _)| format!("{PAGE} does not show row {id} of {RECORD}"))
        .collect();
    let is_recorded = |id: &str| recorded.clone().any(|(known, _)| known == id);
    let shown = rows.iter().filter(|cells| cells[4] != "not yet" && !is_recorded(cells[1]));
    wrong.extend(shown.map(|cells| format!("{RECORD} does not have row {} of {PAGE}", cells[1])));
    wrong
}

#[test]
fn the_figures_of_the_engine_are_those_that_were_recorded() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(RECORD);
    let record = if path.exists() { serde_json::from_str(&read(RECORD)).expect("JSON") } else { Value::Null };
    assert_eq!(differences(&read(PAGE), &record), [""; 0]);
}

#[test]
fn a_figure_in_only_one_place_is_found() {
    let record = serde_json::json!({ "rows": { "1b": { "measured": "uploaded 3.1" } } });
    let page = |row: &str| format!("| # | work | goal | measured | met |\n|---|---|---|---|---|\n{row}\n");
    for row in ["", "| 1b | x | y | uploaded 3 | yes |", "| 1 | x | y | uploaded 3.1 | yes |"] {
        assert!(!differences(&page(row), &record).is_empty(), "{row}");
    }
    let right = "| 1b | x | y | uploaded 3.1 | yes |\n| 2 | x | y | not yet |  |";
    assert_eq!(differences(&page(right), &record), [""; 0]);
}
