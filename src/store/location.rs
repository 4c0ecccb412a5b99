//! The URL of a store: a directory or a bucket.
//!
//! Owns the syntax of these URLs, and must not open anything. Invariant: a [`Location`] is well-formed, and
//! its text parses to the same location.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::key;

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// `file:///absolute/path`, `file://./relative/path` or `file://relative/path`. The path is taken
    /// literally, without percent-decoding.
    Directory(PathBuf),
    /// `s3://bucket/prefix`.
    S3 {
        /// Name of the bucket.
        bucket: String,
        /// Prefix of every key, without a trailing `/`. Empty if there is none.
        prefix: String,
    },
}

/// Why a text is not a [`Location`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a store: {fault}; write file:///path, file://./path or s3://bucket/prefix")]
pub struct LocationError {
    value: String,
    fault: &'static str,
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(value: &str) -> Result<Self, LocationError> {
        let parsed = match value.split_once("://") {
            None => Err("it has no scheme"),
            // "schemes are case-insensitive" (RFC 3986, section 3.1).
            Some((scheme, path)) if scheme.eq_ignore_ascii_case("file") => directory(path),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("s3") => bucket(rest),
            Some(_) => Err("its scheme is neither file nor s3"),
        };
        // The text before an `@` may contain a secret.
        let shown = value.rsplit_once('@').map_or_else(|| value.to_owned(), |(_, rest)| format!("…@{rest}"));
        parsed.map_err(|fault| LocationError { value: shown, fault })
    }
}

fn directory(path: &str) -> Result<Location, &'static str> {
    match path {
        "" => Err("the path is empty"),
        _ if path.contains('\0') => Err("the path contains a NUL"),
        _ => Ok(Location::Directory(PathBuf::from(path))),
    }
}

fn bucket(rest: &str) -> Result<Location, &'static str> {
    if rest.contains(['?', '#', '@', ':']) {
        return Err(
            "s3:// takes only a bucket and a prefix; region, endpoint, credentials are separate settings",
        );
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends_plain =
        |name: &[u8]| name.first().is_some_and(|b| plain(*b)) && name.last().is_some_and(|b| plain(*b));
    if !(3..=63).contains(&bucket.len())
        || !bucket.bytes().all(|b| plain(b) || matches!(b, b'.' | b'-'))
        || !ends_plain(bucket.as_bytes())
    {
        return Err(
            "a bucket's name must have 3 to 63 characters of [a-z0-9.-], and begin and end with a letter or \
             digit",
        );
    }
    // S3 allows keys of 1,024 bytes.
    if !prefix.is_empty() && (key::check(prefix).is_err() || prefix.len() + 1 + key::MAX_KEY_BYTES > 1024) {
        return Err(
            "the prefix must consist of segments of [A-Za-z0-9._-] joined by /, with at most 255 bytes",
        );
    }
    Ok(Location::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(bucket: &str, prefix: &str) -> Location {
        Location::S3 { bucket: bucket.into(), prefix: prefix.into() }
    }

    #[test]
    fn urls_of_directories_and_buckets() {
        let directory = |path: &str| Location::Directory(path.into());
        for (text, location, shown) in [
            ("file:///var/lib/cairn", directory("/var/lib/cairn"), "file:///var/lib/cairn"),
            ("file://./cairn-data", directory("./cairn-data"), "file://./cairn-data"),
            ("file://data/a b%20c", directory("data/a b%20c"), "file://data/a b%20c"),
            ("FILE:///var/lib/Cairn", directory("/var/lib/Cairn"), "file:///var/lib/Cairn"),
            ("s3://disks", s3("disks", ""), "s3://disks"),
            ("S3://disks/A", s3("disks", "A"), "s3://disks/A"),
            ("s3://disks/", s3("disks", ""), "s3://disks"),
            ("s3://my.disks-1/team/a/", s3("my.disks-1", "team/a"), "s3://my.disks-1/team/a"),
        ] {
            let parsed: Location = text.parse().unwrap();
            assert_eq!(parsed, location);
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(shown.parse::<Location>().unwrap(), location);
        }
    }

    #[test]
    fn an_error_names_the_value_and_what_is_allowed() {
        for (text, fault) in [
            ("", "no scheme"),
            ("/var/lib", "no scheme"),
            ("http://x/y", "neither file nor s3"),
            ("file://", "path is empty"),
            ("s3://", "3 to 63"),
            ("s3://ab", "3 to 63"),
            ("s3://Disks", "[a-z0-9.-]"),
            ("s3://-disks", "begin and end"),
            ("s3://disks//a", "segments"),
            ("s3://disks/a/../b", "segments"),
            ("s3://disks/a?region=x", "separate settings"),
        ] {
            let message = text.parse::<Location>().unwrap_err().to_string();
            assert!(message.contains(&format!("{text:?}")) && message.contains(fault), "{message}");
            assert!(message.contains("s3://bucket/prefix"), "{message}");
        }
        let message = "s3://key:secret@disks/a".parse::<Location>().unwrap_err().to_string();
        assert!(message.contains("separate settings") && !message.contains("secret"), "{message}");
    }
}
