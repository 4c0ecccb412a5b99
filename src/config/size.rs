//! Sizes in bytes as people write them.
//!
//! Owns the syntax of sizes, and must not know any setting. Invariants: an ambiguous size is an error that
//! shows both meanings. A size is exact, never rounded. The text that shows a [`Size`] parses to the same
//! size.

use std::fmt;
use std::str::FromStr;

use bytesize::ByteSize;

/// A size in bytes, such as `10GiB`, `10GB` (decimal) or `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Why a text is not a [`Size`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The unit may mean a power of two or of ten.
    #[error(
        "{text:?} is ambiguous: write {number}{unit}iB for {binary} bytes or \
         {number}{unit}B for {decimal} bytes"
    )]
    Ambiguous {
        /// The whole text.
        text: String,
        /// The number in the text.
        number: String,
        /// The letter of the unit.
        unit: char,
        /// Size in bytes if the unit is a power of two.
        binary: u64,
        /// Size in bytes if the unit is a power of ten.
        decimal: u64,
    },
    /// The unit looks like one of bits.
    #[error("{0:?} looks like a number of bits: write a size in bytes, such as 10GiB, 10GB or 4096")]
    Bits(String),
    /// The text is not a number with a unit.
    #[error(
        "{0:?} is not a size: write a number of bytes or use a unit, such as 4096, 512KiB, 10GiB or 10GB"
    )]
    Malformed(String),
    /// The size is not a whole number of bytes.
    #[error("{0:?} is not a whole number of bytes")]
    Fraction(String),
    /// The size does not fit in 64 bits.
    #[error("{0:?} is more than 16 EiB")]
    TooLarge(String),
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = (&trimmed[..end], trimmed[end..].trim_start());
        let bytes = |unit: &str| scale(number, unit, text);
        let mut letters = unit.chars();
        match (letters.next(), letters.next(), letters.next()) {
            (Some(letter), None, None) if "kmgtpe".contains(letter.to_ascii_lowercase()) => {
                let unit = letter.to_ascii_uppercase();
                Err(SizeError::Ambiguous {
                    text: text.to_owned(),
                    number: number.to_owned(),
                    unit,
                    binary: bytes(&format!("{unit}iB"))?,
                    decimal: bytes(&format!("{unit}B"))?,
                })
            }
            (Some('b'), None, None) => Err(SizeError::Bits(text.to_owned())),
            (Some(prefix), Some('b'), None) if prefix.is_ascii_uppercase() => {
                Err(SizeError::Bits(text.to_owned()))
            }
            (Some(_), Some('i'), Some('b')) if !unit.starts_with(|c: char| c.is_ascii_lowercase()) => {
                Err(SizeError::Bits(text.to_owned()))
            }
            _ => bytes(unit).map(Size),
        }
    }
}

/// Multiplies `number` by `unit` in decimal arithmetic, without rounding.
fn scale(number: &str, unit: &str, text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed(text.to_owned());
    let too_large = || SizeError::TooLarge(text.to_owned());
    let factor: ByteSize = match unit {
        "" => ByteSize(1),
        _ => format!("1{unit}").parse().map_err(|_| malformed())?,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return Err(malformed());
    }
    let digits = |digits: &str| digits.parse::<u128>().map_err(|_| too_large());
    let power = u32::try_from(fraction.len()).ok().and_then(|n| 10_u128.checked_pow(n));
    let parts = digits(fraction)?.checked_mul(u128::from(factor.0)).ok_or_else(too_large)?;
    let power = power.ok_or_else(|| SizeError::Fraction(text.to_owned()))?;
    if parts % power != 0 {
        return Err(SizeError::Fraction(text.to_owned()));
    }
    let bytes = digits(whole)?.checked_mul(u128::from(factor.0)).and_then(|n| n.checked_add(parts / power));
    bytes.and_then(|n| u64::try_from(n).ok()).ok_or_else(too_large)
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u32, &str); 6] =
            [(60, "EiB"), (50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let exact = UNITS.iter().find(|(shift, _)| self.0 != 0 && self.0.trailing_zeros() >= *shift);
        match exact {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_powers_of_two_or_of_ten() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("10KiB", 10_240),
            ("10kB", 10_000),
            ("10KB", 10_000),
            ("1MiB", 1_048_576),
            ("1MB", 1_000_000),
            ("10GiB", 10_737_418_240),
            ("10gib", 10_737_418_240),
            ("10 GiB", 10_737_418_240),
            ("10Gi", 10_737_418_240),
            (" 1.5GiB ", 1_610_612_736),
            ("0.5KiB", 512),
            ("1TB", 1_000_000_000_000),
            ("10TiB", 10_995_116_277_760),
            ("15EiB", 17_293_822_569_102_704_640),
            ("18446744073709551615", u64::MAX),
            ("9007199254740993B", 9_007_199_254_740_993),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn an_ambiguous_size_is_refused_with_both_readings() {
        for (text, binary, decimal) in [
            ("1G", "1GiB for 1073741824 bytes", "1GB for 1000000000 bytes"),
            ("1g", "1GiB for 1073741824 bytes", "1GB for 1000000000 bytes"),
            ("20 M", "20MiB for 20971520 bytes", "20MB for 20000000 bytes"),
            ("4k", "4KiB for 4096 bytes", "4KB for 4000 bytes"),
            ("2T", "2TiB for 2199023255552 bytes", "2TB for 2000000000000 bytes"),
        ] {
            let message = text.parse::<Size>().unwrap_err().to_string();
            assert!(message.contains("ambiguous"), "{message}");
            assert!(message.contains(binary) && message.contains(decimal), "{message}");
        }
    }

    #[test]
    fn invalid_sizes_are_refused() {
        let bad = |text: &str| text.parse::<Size>().unwrap_err();
        for text in ["", "GiB", "-1GiB", "1..5GiB", ".5GiB", "5.", "10 sheep", "0x10", "1e3", "∞"] {
            assert!(matches!(bad(text), SizeError::Malformed(_)), "{text}: {:?}", bad(text));
        }
        for text in ["1Gb", "1Mib", "8b"] {
            assert!(matches!(bad(text), SizeError::Bits(_)), "{text}: {:?}", bad(text));
        }
        for text in ["16EiB", "18446744073709551616", "99999999999999999999999999999999999999999GiB"] {
            assert!(matches!(bad(text), SizeError::TooLarge(_)), "{text}: {:?}", bad(text));
        }
        for text in ["0.1GiB", "1.5", "1.0000000000000000000000000000000000000000000001GiB"] {
            assert!(matches!(bad(text), SizeError::Fraction(_)), "{text}: {:?}", bad(text));
        }
    }

    proptest! {
        #[test]
        fn the_text_of_a_size_parses_to_the_same_size(bytes: u64, shift in 0..64_u32) {
            let size = Size(bytes << shift);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn any_text_is_a_size_or_an_error(text: String) {
            if let Ok(size) = text.parse::<Size>() {
                prop_assert_eq!(size.to_string().parse(), Ok(size));
            }
        }
    }
}
