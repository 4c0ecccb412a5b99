//! The syntax of keys.
//!
//! Owns the limits on keys, and must not know what is stored under them. Invariant: a key that passes
//! [`check`] refers to the same object in every store, and never to a path outside the root of a store.

use super::error::{Error, cause};

/// Maximum length of a key in bytes. S3 allows 1,024, which include the prefix of the store.
pub const MAX_KEY_BYTES: usize = 768;
/// Maximum length of a segment in bytes. File systems limit the length of a file name.
pub const MAX_SEGMENT_BYTES: usize = 200;

/// Fails with [`Error::Rejected`] if the text is not a key.
pub fn check(key: &str) -> Result<(), Error> {
    let fault = if key.is_empty() || key.len() > MAX_KEY_BYTES {
        Some("a key has 1 to 768 bytes")
    } else {
        key.split('/').find_map(segment_fault)
    };
    reject(key, fault)
}

/// Fails with [`Error::Rejected`] if no key can begin with the text. An empty prefix is valid.
pub fn check_prefix(prefix: &str) -> Result<(), Error> {
    let fault = if prefix.len() > MAX_KEY_BYTES {
        Some("a key has at most 768 bytes")
    } else {
        let (whole, last) =
            prefix.rsplit_once('/').map_or((None, prefix), |(whole, last)| (Some(whole), last));
        // A key may continue the last segment, so that segment may still be empty, `.` or `..`.
        whole.and_then(|whole| whole.split('/').find_map(segment_fault)).or_else(|| characters_fault(last))
    };
    reject(prefix, fault)
}

fn segment_fault(segment: &str) -> Option<&'static str> {
    match segment {
        "" => Some("a segment of a key is not empty"),
        "." | ".." => Some("a segment of a key is not `.` or `..`"),
        _ => characters_fault(segment),
    }
}

fn characters_fault(segment: &str) -> Option<&'static str> {
    if segment.len() > MAX_SEGMENT_BYTES {
        Some("a segment of a key has at most 200 bytes")
    } else if segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        None
    } else {
        Some("a segment of a key is made of [A-Za-z0-9._-]")
    }
}

fn reject(key: &str, fault: Option<&'static str>) -> Result<(), Error> {
    fault.map_or(Ok(()), |fault| Err(Error::Rejected { key: format!("{key:?}"), source: cause(fault) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_segments_of_plain_characters() {
        for key in ["a", "a/b", "...", ".a", "a..b/-_/Z9", &"a".repeat(200), &["ab"; 256].join("/")] {
            assert!(check(key).is_ok(), "{key}");
        }
        let long = "a".repeat(201);
        let deep = ["ab"; 257].join("/");
        for key in [
            "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "a b", "ä", "a\\b", "a\0", "~", &long,
            &deep,
        ] {
            assert!(matches!(check(key), Err(Error::Rejected { .. })), "{key}");
        }
    }

    #[test]
    fn a_prefix_is_what_a_key_can_begin_with() {
        for prefix in ["", "a", "a/", "a/b", ".", "..", "a/.", "a/.."] {
            assert!(check_prefix(prefix).is_ok(), "{prefix}");
        }
        for prefix in ["/", "a//", "../", "a/../b", "a/ ", "~"] {
            assert!(matches!(check_prefix(prefix), Err(Error::Rejected { .. })), "{prefix}");
        }
    }
}
