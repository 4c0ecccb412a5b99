//! The size of a run in proportion to the full size.
//!
//! Pure arithmetic. Invariant: at full size, every number is exactly that of the table.

use std::fmt;
use std::str::FromStr;

/// A proportion, at most 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale {
    numerator: u64,
    denominator: u64,
}

impl Scale {
    /// Whether this is the full size.
    pub(crate) fn is_full(self) -> bool {
        self.numerator == self.denominator
    }

    /// Scales a number of bytes to a multiple of `unit`, but to no less than `unit`.
    pub(crate) fn bytes(self, bytes: u64, unit: u64) -> u64 {
        (self.of(bytes) / unit).max(1) * unit
    }

    /// Scales a count, but to no less than 1.
    pub(crate) fn count(self, count: u64) -> u64 {
        self.of(count).max(1)
    }

    fn of(self, number: u64) -> u64 {
        let scaled = u128::from(number) * u128::from(self.numerator) / u128::from(self.denominator);
        u64::try_from(scaled).expect("no larger than the number itself")
    }
}

impl FromStr for Scale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (numerator, denominator) = text.split_once('/').unwrap_or((text, "1"));
        let number = |part: &str| part.trim().parse::<u64>().map_err(|error| format!("{part}: {error}"));
        let (numerator, denominator) = (number(numerator)?, number(denominator)?);
        if numerator == 0 || numerator > denominator {
            return Err("a scale is above 0 and at most 1".to_owned());
        }
        Ok(Self { numerator, denominator })
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.numerator, self.denominator)
    }
}
