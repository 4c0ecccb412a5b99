//! The JSON type of a warming.
//!
//! Must not know what is loaded. Invariant: if nothing was recorded, nothing was loaded.

use serde::{Deserialize, Serialize};

use crate::volume::Warmed;

/// What was loaded into the cache.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WarmView {
    /// `loaded`, or `no_record`: nothing says which blocks to load.
    pub state: String,
    /// Bytes that were fetched. What was in the cache already is not counted.
    pub bytes: u64,
    /// Number of GETs that fetched them.
    pub requests: u64,
    /// Whether there was more to load, but no room for it.
    pub full: bool,
}

impl From<Option<Warmed>> for WarmView {
    fn from(warmed: Option<Warmed>) -> Self {
        match warmed {
            None => Self { state: "no_record".to_owned(), bytes: 0, requests: 0, full: false },
            Some(Warmed { brought, is_full }) => Self {
                state: "loaded".to_owned(),
                bytes: brought.bytes,
                requests: brought.requests,
                full: is_full,
            },
        }
    }
}
