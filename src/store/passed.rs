//! The object in a store that says that the store passed the probe.
//!
//! It is JSON for people to read; whoever deletes it has the store raced again. Invariant: what cannot be
//! read, what another probe wrote, and what was copied from another place say nothing.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Its key.
pub const RECORD: &str = "probe/passed";
/// Which probe this is. One that looks at more takes the next number, and every store is raced again.
const PROBE: u32 = 1;

/// What is remembered of a store that passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// Version of the probe.
    pub probe: u32,
    /// When, as RFC 3339 has it.
    pub passed_at: String,
    /// Version of Cairn that probed.
    pub cairn: String,
    /// What was probed: the service, bucket and prefix, or the directory.
    pub against: String,
}

impl Passed {
    /// That the store at `against` passed this probe, so many seconds after 1970.
    pub(super) fn now(against: &str, now_seconds: u64) -> Self {
        // The year 9999, which is as far as RFC 3339 goes.
        let now = Duration::from_secs(now_seconds.min(253_402_300_799));
        Self {
            probe: PROBE,
            passed_at: humantime::format_rfc3339_seconds(UNIX_EPOCH + now).to_string(),
            cairn: env!("CARGO_PKG_VERSION").to_owned(),
            against: against.to_owned(),
        }
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut text = serde_json::to_vec_pretty(self).expect("plain data is JSON");
        text.push(b'\n');
        text.into()
    }

    /// Whether these bytes say that the store at `against` passed this probe.
    pub(super) fn says_so(record: &[u8], against: &str) -> bool {
        let passed: Option<Self> = serde_json::from_slice(record).ok();
        passed.is_some_and(|passed| passed.probe == PROBE && passed.against == against)
    }
}
