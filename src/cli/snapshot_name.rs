//! The syntax `VOLUME@NAME`, and `@NAME` where the volume is known.
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

/// An earlier snapshot of a volume that is named beside it: `@NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Earlier(pub(super) String);

impl FromStr for Earlier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('@').filter(|name| is_valid_name(name)) {
            Some(name) => Ok(Self(name.to_owned())),
            None => Err("must be @ and the name of a snapshot".to_owned()),
        }
    }
}
