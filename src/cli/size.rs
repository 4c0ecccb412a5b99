//! The syntax `NAME=SIZE` of `--create`.
//!
//! Owns this syntax, and must not know volumes. Invariant: both parts are present; the layer of volumes
//! checks their values.

use crate::config::Size;

/// A volume to create if it does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Name of the volume.
    pub(super) name: String,
    /// Size in bytes.
    pub(super) size_bytes: u64,
}

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, size) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=SIZE"))?;
        let Size(size_bytes) = size.parse().map_err(|e| format!("{text:?}: {e}"))?;
        Ok(Self { name: name.to_owned(), size_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_size() {
        let wanted = |text: &str| text.parse::<Wanted>();
        assert_eq!(wanted("disk=10GiB"), Ok(Wanted { name: "disk".to_owned(), size_bytes: 10 << 30 }));
        assert_eq!(wanted("a.b=512"), Ok(Wanted { name: "a.b".to_owned(), size_bytes: 512 }));
        assert!(wanted("disk").unwrap_err().contains("NAME=SIZE"));
        let ambiguous = wanted("disk=1G").unwrap_err();
        assert!(ambiguous.contains("1GiB") && ambiguous.contains("1GB"), "{ambiguous}");
    }
}
