//! The report: lines for the terminal, engine.json, and the table of engine.md.
//!
//! Owns the form of the figures. Invariant: the table shows only what engine.json contains. A run that measures some of the
//! rows leaves the others as they are.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::options::Cli;
use crate::rows::{Bound, Figure, ROWS, Row};
use crate::{Failure, Results, machine};

/// The lines of engine.md between which the table is.
const BEGIN: &str = "<!-- the table: tests/tools/amplification.sh writes it -->";
const END: &str = "<!-- the end of the table -->";

/// Prints the rows, and updates the files if the command line names a directory for them.
pub(crate) fn write(cli: &Cli, rows: &[&Row], results: &Results) -> Result<(), Failure> {
    println!("\nat scale {}:", cli.scale);
    for row in rows {
        let met = if row.is_met(results) { "met" } else { "NOT MET" };
        println!("{:>3}  {:<60}  {}  ({})", row.id, shown(&row.figures(results)), met, row.goal);
    }
    let Some(out) = &cli.out else { return Ok(()) };
    std::fs::create_dir_all(out)?;
    let json = update(&out.join("engine.json"), cli, rows, results)?;
    std::fs::write(out.join("engine.json"), serde_json::to_string_pretty(&json)? + "\n")?;
    let page = out.join("engine.md");
    let text = std::fs::read_to_string(&page).unwrap_or_else(|_| format!("{BEGIN}\n{END}\n"));
    std::fs::write(&page, with_table(&text, &table(&json))?)?;
    Ok(())
}

/// The content of engine.json with the new rows and phases in place of older ones.
fn update(path: &Path, cli: &Cli, rows: &[&Row], results: &Results) -> Result<Value, Failure> {
    let mut json: Value = match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => json!({ "rows": {}, "phases": {} }),
        Err(error) => return Err(error.into()),
    };
    let source = json!({
        "machine": machine::machine(&cli.dir),
        "commit": machine::commit(),
        "command": command(cli),
        "scale": cli.scale.to_string(),
        "optimized": !cfg!(debug_assertions),
    });
    let mut section = |name: &str| -> Result<Map<String, Value>, Failure> {
        Ok(json[name].as_object_mut().map(std::mem::take).ok_or("engine.json has another form")?)
    };
    let (mut measured, mut phases) = (section("rows")?, section("phases")?);
    for row in rows {
        let entry = json!({
            "work": row.work,
            "goal": row.goal,
            "figures": row.figures(results),
            "measured": shown(&row.figures(results)),
            "met": row.is_met(results),
            "source": &source,
        });
        measured.insert(row.id.to_owned(), entry);
    }
    for (name, result) in results {
        phases.insert(name.clone(), json!({ "result": result, "source": &source }));
    }
    Ok(json!({ "rows": measured, "phases": phases }))
}

/// The command that repeats this run.
fn command(cli: &Cli) -> String {
    let mut command = "tests/tools/amplification.sh".to_owned();
    let mut add = |option: &str, value: &dyn std::fmt::Display| {
        write!(command, " --{option} {value}").expect("a String takes all");
    };
    cli.rows.iter().for_each(|row| add("row", row));
    if !cli.scale.is_full() {
        add("scale", &cli.scale);
    }
    add("seed", &cli.seed);
    command
}

/// The table of all rows, measured or not.
fn table(json: &Value) -> String {
    let mut table = "| # | work | goal | measured | met |\n|---|---|---|---|---|\n".to_owned();
    for row in ROWS {
        let entry = &json["rows"][row.id];
        let scale = entry["source"]["scale"].as_str().filter(|scale| *scale != "1/1");
        let mut measured = entry["measured"].as_str().unwrap_or("not yet").to_owned();
        if let Some(scale) = scale {
            write!(measured, " (at scale {scale})").expect("a String takes all");
        }
        let met = entry["met"].as_bool().map_or("", |met| if met { "yes" } else { "no" });
        writeln!(table, "| {} | {} | {} | {measured} | {met} |", row.id, row.work, row.goal)
            .expect("a String takes all");
    }
    table
}

fn with_table(text: &str, table: &str) -> Result<String, Failure> {
    let (before, rest) = text.split_once(BEGIN).ok_or("engine.md has no place for the table")?;
    let (_, after) = rest.split_once(END).ok_or("engine.md has no end of the table")?;
    Ok(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

/// Figures in one line. Numbers are rounded up where they must not be large, and down where they must not be small.
fn shown(figures: &[Figure]) -> String {
    if figures.is_empty() {
        return "not measured".to_owned();
    }
    let one = |figure: &Figure| {
        let steps = if figure.value < 10.0 { 1000.0 } else { 10.0 };
        let value = match figure.bound {
            Some(Bound::AtLeast(_)) => (figure.value * steps).floor() / steps,
            _ => (figure.value * steps).ceil() / steps,
        };
        format!("{} {value} {}", figure.name, figure.unit).trim_end().to_owned()
    };
    figures.iter().map(one).collect::<Vec<_>>().join("; ")
}
