//! What is wrong with settings.
//!
//! Invariant: every error says which key or file it is about.

use std::fmt;
use std::path::PathBuf;

/// What is wrong with one setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: {why}", path.display())]
    File {
        /// File.
        path: PathBuf,
        /// The system's or the parser's word.
        why: String,
    },
    /// There is no such key.
    #[error("{key} is no setting ({origin}); {hint}")]
    Unknown {
        /// Key.
        key: String,
        /// Where it is.
        origin: String,
        /// What there is.
        hint: String,
    },
    /// A value that is not allowed.
    #[error("{key} = {value}: {why} ({origin})")]
    Invalid {
        /// Key.
        key: String,
        /// Value.
        value: String,
        /// What is allowed.
        why: String,
        /// Where it is.
        origin: String,
    },
}

/// All that is wrong.
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
