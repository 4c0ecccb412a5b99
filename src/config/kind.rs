//! The types of values and their allowed ranges: how a value is read from text, shown, and checked.
//!
//! Owns the conversion between text and values, and must not know any setting. Invariant: the text that shows
//! a value parses to the same value.

use std::ops::RangeInclusive;
use std::time::Duration;

use figment::value::Value;

use super::size::Size;

/// A type that a setting can have.
pub(super) trait Kind: Sized {
    /// Name of the type in the reference.
    const NAME: &'static str;

    /// Reads a single value. The error says what is expected.
    fn parse(text: &str) -> Result<Self, String>;

    /// Returns the value as it is written in a file, a variable or a flag.
    fn show(&self) -> String;

    /// Reads a value from any source. The environment and flags only contain text, so numbers and booleans of
    /// a file are converted to text and parsed, too.
    fn read(value: &Value) -> Result<Self, String> {
        Self::parse(&scalar(value).ok_or_else(|| format!("expected a single {}", Self::NAME))?)
    }
}

/// Returns the text of a single value, or `None` for a list or a table.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Char(_, c) => Some(c.to_string()),
        Value::Bool(_, b) => Some(b.to_string()),
        Value::Num(_, n) => {
            let whole = n.to_i128().map(|n| n.to_string()).or_else(|| n.to_u128().map(|n| n.to_string()));
            whole.or_else(|| n.to_f64().map(|n| n.to_string()))
        }
        Value::Empty(..) | Value::Dict(..) | Value::Array(..) => None,
    }
}

/// Formats a value for an error message.
pub(super) fn quote(value: &Value) -> String {
    match value {
        Value::Array(_, items) => format!("[{}]", items.iter().map(quote).collect::<Vec<_>>().join(", ")),
        Value::Dict(..) => "{…}".to_owned(),
        Value::Empty(..) => "nothing".to_owned(),
        Value::String(_, text) => format!("{text:?}"),
        other => scalar(other).unwrap_or_default(),
    }
}

impl Kind for String {
    const NAME: &'static str = "text";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Kind for bool {
    const NAME: &'static str = "boolean";

    fn parse(text: &str) -> Result<Self, String> {
        text.trim().parse().map_err(|_| "must be true or false".to_owned())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Kind for u32 {
    const NAME: &'static str = "number";

    fn parse(text: &str) -> Result<Self, String> {
        text.trim().parse().map_err(|_| "must be a whole number".to_owned())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Kind for Size {
    const NAME: &'static str = "size";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse::<Self>().map_err(|e| e.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Kind for Duration {
    const NAME: &'static str = "duration";

    fn parse(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text.trim())
            .map_err(|e| format!("{e}; write a duration such as 500ms, 5s or 1h 30m"))
    }

    fn show(&self) -> String {
        humantime::format_duration(*self).to_string()
    }
}

/// A duration, or `never`.
impl Kind for Option<Duration> {
    const NAME: &'static str = "duration or `never`";

    fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "never" => Ok(None),
            text => Duration::parse(text).map(Some).map_err(|e| format!("{e}, or never")),
        }
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "never".to_owned(), Kind::show)
    }
}

/// A list of texts: an array in a file, comma-separated in other sources.
impl Kind for Vec<String> {
    const NAME: &'static str = "list";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
    }

    fn show(&self) -> String {
        self.join(",")
    }

    fn read(value: &Value) -> Result<Self, String> {
        let expected = || "expected a list of strings".to_owned();
        match value {
            Value::Array(_, items) => items.iter().map(|item| scalar(item).ok_or_else(expected)).collect(),
            value => Self::parse(&scalar(value).ok_or_else(expected)?),
        }
    }
}

/// The allowed values of a type.
pub(super) trait Bound<K> {
    /// Describes the allowed values for the reference and for errors. Empty if all values are allowed.
    fn show(&self) -> String;
    /// Returns whether a value is allowed.
    fn allows(&self, value: &K) -> bool;
}

impl<K: Kind + PartialOrd> Bound<K> for RangeInclusive<K> {
    fn show(&self) -> String {
        format!("{} to {}", self.start().show(), self.end().show())
    }

    fn allows(&self, value: &K) -> bool {
        self.contains(value)
    }
}

impl Bound<Option<Duration>> for RangeInclusive<Duration> {
    fn show(&self) -> String {
        format!("{} or never", Bound::<Duration>::show(self))
    }

    fn allows(&self, value: &Option<Duration>) -> bool {
        value.is_none_or(|value| self.contains(&value))
    }
}

/// Allows every value. The layer that uses a text checks it before anything listens.
pub(super) struct Any;

impl<K> Bound<K> for Any {
    fn show(&self) -> String {
        String::new()
    }

    fn allows(&self, _: &K) -> bool {
        true
    }
}

/// Allows exactly the listed texts.
impl Bound<String> for &[&str] {
    fn show(&self) -> String {
        self.join(", ")
    }

    fn allows(&self, value: &String) -> bool {
        self.contains(&value.as_str())
    }
}
