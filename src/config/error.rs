//! What is wrong with settings.
//!
//! Owns the errors, and must not know a setting by name. Invariant: every error names the key or file that it
//! concerns.

use std::fmt;
use std::path::PathBuf;

/// What is wrong with one setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The configuration file cannot be read or parsed.
    #[error("{}: {why}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The error of the system or of the parser.
        why: String,
    },
    /// The key does not exist.
    #[error("unknown setting {key} ({origin}); {hint}")]
    Unknown {
        /// The unknown key, or the name of the variable.
        key: String,
        /// Where the key was set: file, environment or flag.
        origin: String,
        /// Which keys exist, or what to write instead.
        hint: String,
    },
    /// The value is not allowed.
    #[error("{key} = {value}: {why} ({origin})")]
    Invalid {
        /// The key, as `section.key`.
        key: String,
        /// The value as it was written.
        value: String,
        /// What is allowed.
        why: String,
        /// Where the value was set: file, environment variable or flag.
        origin: String,
    },
}

/// Everything that is wrong with the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors(pub Vec<Error>);

impl std::error::Error for Errors {}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if n == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl Errors {
    pub(super) fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}
