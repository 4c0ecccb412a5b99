//! What a key may look like.
//!
//! Invariant: a key that passes [`check`] names the same object in every store, and no path outside of its
//! root.

use super::error::{Error, cause};

/// Bytes that a key may have; S3 allows 1,024 with the store's own prefix before it.
pub const MAX_KEY_BYTES: usize = 768;
/// Bytes that a segment may have, as in a file name.
pub const MAX_SEGMENT_BYTES: usize = 200;

/// Refuses what is not a key.
pub fn check(key: &str) -> Result<(), Error> {
    let fault = if key.is_empty() || key.len() > MAX_KEY_BYTES {
        Some("a key has 1 to 768 bytes")
    } else {
        key.split('/').find_map(segment_fault)
    };
    reject(key, fault)
}

/// Refuses what no key can begin with. Empty is allowed.
pub fn check_prefix(prefix: &str) -> Result<(), Error> {
    let fault = if prefix.len() > MAX_KEY_BYTES {
        Some("a key has at most 768 bytes")
    } else {
        let (whole, last) =
            prefix.rsplit_once('/').map_or((None, prefix), |(whole, last)| (Some(whole), last));
        // The last segment may yet go on, so it may still be empty, `.` or `..`.
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
