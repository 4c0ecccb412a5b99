//! The object that records in a store that the store has passed the probe.
//!
//! Owns the format of this record, and must not probe. It is JSON, so that people can read it. If somebody
//! deletes it, the next start probes the store in full. Invariant: a record counts only if it can be read,
//! comes from this version of the probe, and was written for this location.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Key of the record.
pub const RECORD: &str = "probe/passed";
/// Version of the probe. A probe that checks more gets the next number, and every store is then probed again.
const PROBE: u32 = 1;

/// The record of a passed probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// Version of the probe that passed.
    pub probe: u32,
    /// When the probe passed, in the format of RFC 3339.
    pub passed_at: String,
    /// Version of Cairn that ran the probe.
    pub cairn: String,
    /// What was probed: the service, bucket and prefix, or the directory.
    pub against: String,
}

impl Passed {
    /// Creates the record that the store at `against` passed this probe at `now_seconds`, in seconds since
    /// 1970.
    pub(super) fn now(against: &str, now_seconds: u64) -> Self {
        // The year 9999, the last one that RFC 3339 can express.
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

    /// Returns whether the record says that the store at `against` passed this version of the probe.
    pub(super) fn says_so(record: &[u8], against: &str) -> bool {
        let passed: Option<Self> = serde_json::from_slice(record).ok();
        passed.is_some_and(|passed| passed.probe == PROBE && passed.against == against)
    }
}
