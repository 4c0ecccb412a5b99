//! The syntax `VOLUME@NAME`, and `@NAME` or `NAME` where the volume is known.
//!
//! Owns this syntax, and must not know snapshots. Invariant: all names are valid.

use std::str::FromStr;

use crate::volume::format::keys::is_valid_name;

/// A snapshot on the command line: `VOLUME@NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SnapshotName {
    pub(super) volume: String,
    pub(super) name: String,
}

impl FromStr for SnapshotName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('@') {
            Some((volume, name)) if is_valid_name(volume) && is_valid_name(name) => {
                Ok(Self { volume: volume.to_owned(), name: name.to_owned() })
            }
            _ => Err("must be VOLUME@NAME, each of 1 to 128 characters of A-Z a-z 0-9 . _ -, not beginning \
                with a dot"
                .to_owned()),
        }
    }
}

impl std::fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.volume, self.name)
    }
}

/// Parses the name of a snapshot whose volume is named beside it.
pub(super) fn name(text: &str) -> Result<String, String> {
    match is_valid_name(text) {
        true => Ok(text.to_owned()),
        false => Err("must be 1 to 128 characters of A-Z a-z 0-9 . _ -, not beginning with a dot".to_owned()),
    }
}

/// An earlier snapshot of a volume that is named beside it: `@NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Earlier(pub(super) String);

impl FromStr for Earlier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('@').ok_or("must be @ and the name of a snapshot")?;
        Ok(Self(name(text)?))
    }
}
