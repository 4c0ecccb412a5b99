//! What a log line may contain: it has a bounded length, and no character that a terminal or a reader would
//! interpret.
//!
//! Owns the formats, and must not know who logs. Invariants: what [`Shape::fit`] returns contains exactly one
//! line end, at its end. JSON stays valid JSON.

use serde_json::Value;

use crate::cli::text::{printable, shortened};

/// Maximum size of a line in bytes, except for the message of a panic. An omission is marked.
const LINE_BYTES: usize = 4096;
/// Maximum size in bytes of a text in a JSON line that is too long.
const JSON_TEXT_BYTES: usize = 512;

/// A format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Text for people.
    Human,
    /// Text with colours, which are escape sequences.
    Coloured,
    /// One JSON object per line.
    Json,
}

impl Shape {
    /// Converts a formatted line into one that may be written.
    pub(super) fn fit(self, line: &str) -> String {
        let line = line.strip_suffix('\n').unwrap_or(line);
        let mut fit = match self {
            Self::Json if line.len() <= LINE_BYTES => line.to_owned(),
            Self::Json => shortened_json(line),
            Self::Human => shortened(&printable(line), LINE_BYTES).into_owned(),
            Self::Coloured => shortened(&coloured(line), LINE_BYTES).into_owned() + RESET,
        };
        fit.push('\n');
        fit
    }
}

/// The escape sequence that resets all colours.
const RESET: &str = "\x1b[0m";

/// Escapes everything that a terminal would interpret, except colours: `ESC [`, digits and `;`, then `m`.
fn coloured(line: &str) -> String {
    let mut parts = line.split('\x1b');
    let mut text = printable(parts.next().unwrap_or_default()).into_owned();
    for part in parts {
        let end = part.strip_prefix('[').and_then(|rest| {
            let length = rest.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
            rest[length..].starts_with('m').then_some(1 + length + 1)
        });
        match end {
            Some(end) => {
                text.push('\x1b');
                text.push_str(&part[..end]);
                text.push_str(&printable(&part[end..]));
            }
            None => {
                text.push_str("\\u{1b}");
                text.push_str(&printable(part));
            }
        }
    }
    text
}

/// Shortens the texts of a JSON object. An object with too many texts is replaced.
fn shortened_json(line: &str) -> String {
    let cut = serde_json::from_str(line).ok().map(|mut value| {
        cut_texts(&mut value);
        value.to_string()
    });
    cut.filter(|line| line.len() <= LINE_BYTES).unwrap_or_else(|| {
        let beginning = shortened(line, JSON_TEXT_BYTES);
        serde_json::json!({ "level": "WARN", "message": "the log line was too long", "beginning": beginning })
            .to_string()
    })
}

fn cut_texts(value: &mut Value) {
    match value {
        Value::String(text) => *text = shortened(text, JSON_TEXT_BYTES).into_owned(),
        Value::Array(values) => values.iter_mut().for_each(cut_texts),
        Value::Object(fields) => fields.values_mut().for_each(cut_texts),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_one_end_and_a_bounded_length() {
        for shape in [Shape::Human, Shape::Coloured] {
            assert_eq!(shape.fit("refused: \x1b]0;x\x07\n WARN forged\n").matches('\n').count(), 1);
            assert!(shape.fit("refused: \x1b]0;x\x07\n").starts_with("refused: \\u{1b}]0;x\\u{7}"));
            let long = shape.fit(&"\x01".repeat(40_000));
            assert!(long.len() < LINE_BYTES + 64 && long.contains("bytes more)"), "{}", long.len());
        }
        assert_eq!(Shape::Human.fit("\x1b[31mred\n"), "\\u{1b}[31mred\n");
        assert_eq!(Shape::Coloured.fit("\x1b[2;31mred\x1b[0m\n"), "\x1b[2;31mred\x1b[0m\x1b[0m\n");
        assert_eq!(Shape::Coloured.fit("\x1b[2Jx\n"), "\\u{1b}[2Jx\x1b[0m\n");
    }

    #[test]
    fn long_json_stays_valid_json() {
        let short = "{\"message\":\"a\\nb\"}\n";
        assert_eq!(Shape::Json.fit(short), short);
        let long = "\u{1}é".repeat(2000);
        let line = serde_json::json!({ "level": "INFO", "message": &long, "span": { "peer": &long } });
        let fit = Shape::Json.fit(&format!("{line}\n"));
        let value: Value = serde_json::from_str(&fit).unwrap();
        assert_eq!(value["level"], "INFO");
        assert!(value["span"]["peer"].as_str().unwrap().contains("bytes more)"), "{fit}");
        assert!(fit.len() <= LINE_BYTES, "{}", fit.len());
        let many: Vec<&str> = vec!["text"; 10_000];
        let fit = Shape::Json.fit(&serde_json::json!({ "message": many }).to_string());
        assert!(fit.len() <= LINE_BYTES && serde_json::from_str::<Value>(&fit).is_ok(), "{fit}");
    }
}
