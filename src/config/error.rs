//! What is wrong with settings.
//!
//! Owns the errors, and must not know a setting by name. Invariants: every error names the key or file that
//! it concerns. None quotes the user and the password of a URL.

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
    #[error("{key} = {}: {why} ({origin})", without_user(value))]
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

/// Returns a text that a person wrote as it may be shown. If it is meant as a URL, what is before the `@` may
/// contain a secret.
pub(crate) fn without_user(text: &str) -> String {
    let scheme_end = text.find("://").map(|at| at + "://".len());
    let quotes = text.len() - text.trim_start_matches('"').len();
    let (scheme, rest) = text.split_at(scheme_end.unwrap_or(quotes));
    // The name of an export may have an @, and the secret of a bucket a /.
    let end = match scheme.to_ascii_lowercase().starts_with("nbd") {
        true => rest.find(['/', '?', '#']).unwrap_or(rest.len()),
        false => rest.len(),
    };
    match rest[..end].rsplit_once('@') {
        // The name of a snapshot has an @, but neither a scheme nor a colon.
        Some((user, _)) if scheme_end.is_some() || user.contains(':') => {
            format!("{scheme}…{}", &rest[user.len()..])
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_user() {
        for (written, shown) in [
            ("s3://key:secret@disks/a", "s3://…@disks/a"),
            ("s3://key:sec/ret@disks/a", "s3://…@disks/a"),
            ("\"http://key:sec@ret@host\"", "\"http://…@host\""),
            ("key:secret@disks", "…@disks"),
            ("\"key:secret@disks\"", "\"…@disks\""),
            ("NBD://user:secret@host/disk@monday", "NBD://…@host/disk@monday"),
            ("nbd://user@host?a", "nbd://…@host?a"),
        ] {
            assert_eq!(without_user(written), shown);
        }
        for plain in ["", "@", "a:b", "disk@monday", "<VOLUME@NAME>", "nbd://host/disk@monday", "s3://a/b"] {
            assert_eq!(without_user(plain), plain);
        }
    }
}
