//! The flags that say which store or gateway a command is for.
//!
//! Owns the flags that many commands share, and must not know a command. Invariant: a command is for a store
//! or for a gateway, never for both.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::config::{self, Config, Flag, FlagValue};

/// The settings that every command on a store has.
#[derive(Clone, Debug, Args)]
pub(super) struct Common {
    /// Configuration file (TOML); environment variables (CAIRN_<SECTION>__<KEY>) and flags override it
    #[allow(rustdoc::invalid_html_tags, reason = "clap prints this text as it is")]
    #[arg(long, value_name = "FILE", env = config::CONFIG_FILE)]
    config: Option<PathBuf>,
    /// Where the volumes are stored: file:///path, file://./path or s3://bucket/prefix [default:
    /// file://./cairn-data]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

/// Where a command on volumes is carried out.
#[derive(Clone, Debug, Args)]
pub(super) struct Place {
    #[command(flatten)]
    pub(super) common: Common,
    /// Send the command to the admin socket of a gateway on this machine instead of the store [default:
    /// admin.socket]
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, require_equals = true, conflicts_with = "store")]
    pub(super) gateway: Option<Option<PathBuf>>,
}

impl Common {
    /// The configuration file, if one is given.
    pub(super) fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Loads the settings, with these flags and `flags` taking precedence.
    pub(super) fn config(&self, mut flags: Vec<Flag>) -> Result<Config, config::Errors> {
        if let Some(url) = &self.store {
            flags.push(Flag { key: "store.url", flag: "--store", value: FlagValue::One(url.clone()) });
        }
        config::load(self.config.as_deref(), std::env::vars_os(), flags)
    }
}
