//! What clients of the API send as JSON.
//!
//! Must not know routes, or what is done with a request. Invariants: `openapi.json` describes every field
//! here. A field that it does not describe is refused.

use std::fmt;

use axum::http::StatusCode;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

use super::view::Problem;
use crate::volume::Shrink;

/// A request to create a volume.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewVolume {
    pub(super) name: String,
    pub(super) size_bytes: Whole,
    pub(super) chunk_bytes: Option<Whole>,
}

/// A request to change a volume.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VolumeChange {
    #[serde(default, deserialize_with = "not_null")]
    size_bytes: Option<Whole>,
    #[serde(default, deserialize_with = "not_null")]
    shrink: Option<bool>,
    #[serde(default, deserialize_with = "not_null")]
    name: Option<String>,
}

/// Reads a field that may be left out, and is no `null`: as its description says.
fn not_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(field: D) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

/// What to change of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Its size in bytes.
    Size(u64, Shrink),
    /// Its name.
    Name(String),
}

impl VolumeChange {
    /// Returns the one change that is requested.
    pub(super) fn what(self) -> Result<Change, Problem> {
        match self {
            Self { size_bytes: Some(Whole(size)), shrink, name: None } => {
                let shrink = if shrink == Some(true) { Shrink::Discard } else { Shrink::Refuse };
                Ok(Change::Size(size, shrink))
            }
            Self { size_bytes: None, shrink: None, name: Some(name) } => Ok(Change::Name(name)),
            _ => {
                let why = "give either size_bytes, with or without shrink, or name";
                Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why))
            }
        }
    }
}

/// A request to take a snapshot.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSnapshot {
    pub(super) name: String,
}

/// A request to clone a snapshot.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewClone {
    pub(super) name: String,
}

/// A request to bring a deleted volume back.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Undeletion {
    pub(super) name: Option<String>,
}

/// A non-negative integer. JSON has only one kind of number, and JSON Schema treats `512.0` as an integer
/// too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole(pub(super) u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Whole, E> {
                Ok(Whole(number))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Whole, E> {
                // Formatted without a fraction or an exponent, however large the number is.
                let digits = format!("{number:.0}");
                match digits.parse() {
                    Ok(whole) if number.fract() == 0.0 => Ok(Whole(whole)),
                    _ => Err(E::invalid_value(de::Unexpected::Float(number), &self)),
                }
            }
        }

        from.deserialize_any(Number)
    }
}
