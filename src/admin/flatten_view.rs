//! The JSON type of a flattening.
//!
//! Must not know how a clone is flattened. Invariant: each state has exactly the fields that belong to it;
//! the others are null.

use serde::{Deserialize, Serialize};

use crate::volume::Flattened;

/// How far a clone is flattened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlattenView {
    /// `flat`, `waits`, `held` or `unreadable`.
    pub state: String,
    /// If it waits: the seconds until the rest is done.
    pub seconds: Option<u64>,
    /// If it is held: the names of the snapshots that need other volumes.
    pub snapshots: Option<Vec<String>>,
    /// If it is unreadable: the number of chunks and map pages that cannot be read.
    pub chunks: Option<u64>,
}

impl From<Flattened> for FlattenView {
    fn from(flattened: Flattened) -> Self {
        let of = |state: &str| Self { state: state.to_owned(), seconds: None, snapshots: None, chunks: None };
        match flattened {
            Flattened::Done | Flattened::NoClone => of("flat"),
            Flattened::Waits { seconds } => Self { seconds: Some(seconds), ..of("waits") },
            Flattened::Held { snapshots } => Self { snapshots: Some(snapshots), ..of("held") },
            Flattened::Unreadable { chunks } => Self { chunks: Some(chunks), ..of("unreadable") },
        }
    }
}
