//! Why a volume cannot be used, for whoever wants to use it.
//!
//! Owns the reasons, and must not know how a volume is opened. Invariant: clients and the admin server learn
//! the same reason.

use std::sync::Arc;

use super::failure::open_error;
use super::surface::Failure;
use crate::server;
use crate::volume::{self, OpenError, SnapshotError};

/// Why a volume cannot be used here.
#[derive(Clone, Debug)]
pub(crate) enum Unopened {
    /// The gateway is closing its volumes.
    Draining,
    /// As many volumes are open as may be.
    Full(usize),
    /// The volume has stopped. Contains its name and the reason.
    Stopped(String),
    /// It cannot be opened.
    Failed(Arc<OpenError>),
}

impl Unopened {
    /// Converts it for a client that requested an export by this name.
    pub(super) fn for_client(&self, name: &str) -> server::OpenError {
        match self {
            Self::Draining => server::OpenError::Shutdown,
            Self::Full(maximum) => server::OpenError::Refused(too_many(*maximum)),
            Self::Stopped(why) => server::OpenError::Refused(why.clone()),
            Self::Failed(error) => open_error(name, error),
        }
    }
}

impl From<Unopened> for Failure {
    fn from(unopened: Unopened) -> Self {
        match unopened {
            Unopened::Draining => Self::NotServing("the gateway is shutting down".to_owned()),
            Unopened::Full(maximum) => Self::NotServing(too_many(maximum)),
            Unopened::Stopped(why) => Self::Snapshot(SnapshotError::Volume(volume::Error::Stopped(why))),
            Unopened::Failed(error) => Self::Volume(error),
        }
    }
}

fn too_many(maximum: usize) -> String {
    format!("{maximum} volumes are already open, the maximum that volumes.maximum allows")
}
