//! How the command line names what is imported or exported, and where to.
//!
//! Owns this syntax, and must not open anything. Invariant: each text has exactly one meaning.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use clap::ValueEnum;

use super::nbd::{DiskName, DiskNameError, Place};
use super::snapshot_name::SnapshotName;
use crate::volume::format::keys::is_valid_name;

/// The other side of an import or export.
#[derive(Clone, Debug)]
pub(super) enum Endpoint {
    /// Standard input or output.
    Standard,
    /// A file, a block device or an export of an NBD server.
    Disk(DiskName),
}

impl Endpoint {
    /// Returns the path of a file.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Disk(DiskName { place: Place::File(path), .. }) => Some(path),
            _ => None,
        }
    }
}

impl FromStr for Endpoint {
    type Err = DiskNameError;

    fn from_str(text: &str) -> Result<Self, DiskNameError> {
        if text == "-" { Ok(Self::Standard) } else { text.parse().map(Self::Disk) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard => f.write_str("-"),
            Self::Disk(name) => name.fmt(f),
        }
    }
}

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// The bytes of the disk and nothing else
    Raw,
    /// An image of QEMU; needs qemu-nbd and qemu-img
    Qcow2,
}

/// What is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Exported {
    Volume(String),
    Snapshot(SnapshotName),
}

impl FromStr for Exported {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.contains('@') {
            true => text.parse().map(Self::Snapshot),
            false if is_valid_name(text) => Ok(Self::Volume(text.to_owned())),
            false => {
                Err("must be VOLUME or VOLUME@SNAPSHOT, each of 1 to 128 characters of A-Z a-z 0-9 . _ \
                -, not beginning with a dot"
                    .to_owned())
            }
        }
    }
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => f.write_str(name),
            Self::Snapshot(of) => of.fmt(f),
        }
    }
}
