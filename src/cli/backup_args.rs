//! The grammar of `cairn backup`.
//!
//! Owns its arguments and the settings of both stores, and must not know what the command does. Invariant:
//! variables of the environment are for the store of the volume. A file of its own for the store of the copy
//! replaces them all there.

use std::path::PathBuf;

use clap::Args;

use super::place::Common;
use super::snapshot_name::{self, SnapshotName};
use crate::config::{self, Config};
use crate::store::Location;

#[derive(Clone, Debug, Args)]
pub(super) struct Backup {
    #[command(flatten)]
    common: Common,
    /// Names of the volume and of its snapshot, separated by @
    #[arg(value_name = "VOLUME@NAME")]
    pub(super) of: SnapshotName,
    /// The other store: file:///path, file://./path or s3://bucket/prefix. It is used with the settings of
    /// the store of the volume
    #[arg(value_name = "URL")]
    pub(super) target: Location,
    /// Name of the copy in the other store [default: the name of the volume]
    #[arg(long = "as", value_name = "VOLUME", value_parser = snapshot_name::name)]
    to: Option<String>,
    /// Configuration file (TOML) whose section store says how to use the other store; its url does not count
    #[arg(long, value_name = "FILE")]
    target_config: Option<PathBuf>,
    /// Send all of the snapshot onto the copy, if what has changed since the last backup is not known
    #[arg(long)]
    pub(super) full: bool,
    /// Go on where an earlier run was cut short. What an incremental one has written is discarded first
    #[arg(long)]
    pub(super) resume: bool,
    /// Read all of the snapshot and of the copy, and compare their SHA-256
    #[arg(long)]
    pub(super) digest: bool,
    /// Show no progress
    #[arg(long)]
    pub(super) quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Backup {
    /// Loads the settings, with these flags taking precedence.
    pub(super) fn config(&self) -> Result<Config, config::Errors> {
        self.common.config(Vec::new())
    }

    /// Loads the settings for the store of the copy, if they are in a file of their own.
    pub(super) fn target_config(&self) -> Result<Option<Config>, config::Errors> {
        self.target_config.as_deref().map(|file| config::load(Some(file), [], [])).transpose()
    }

    /// The flags by which other commands find the store of the copy, with a space before each.
    pub(super) fn target_flags(&self) -> String {
        let file = self.target_config.as_deref().or_else(|| self.common.file());
        let config = file.map(|file| format!(" --config {}", file.display())).unwrap_or_default();
        format!("{config} --store {}", self.target)
    }

    /// Name of the copy.
    pub(super) fn name(&self) -> &str {
        self.to.as_deref().unwrap_or(&self.of.volume)
    }
}
