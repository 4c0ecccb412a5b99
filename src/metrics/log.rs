//! Metrics of the log itself.
//!
//! Must not know how lines are written. Invariant: a lost line can be counted at any time, even before
//! anything exports the metrics.

use prometheus::{IntCounter, Registry};

use super::definitions as define;
use super::family::{By, counters};
use super::labels::{Label, LogLoss};

/// The metrics of the log. Clones share them.
#[derive(Clone, Debug)]
pub struct LogMetrics {
    lost: By<LogLoss, IntCounter>,
}

impl LogMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let lost = counters(registry, &define::LOG_LINES_LOST);
        Self { lost: By::new(|reason: LogLoss| lost.with_label_values(&[reason.as_str()])) }
    }

    /// Counts a line that was not written.
    pub fn lost(&self, reason: LogLoss) {
        self.lost.of(reason).inc();
    }

    /// Returns how many lines were not written so far for this reason.
    #[must_use]
    pub fn lines_lost(&self, reason: LogLoss) -> u64 {
        self.lost.of(reason).get()
    }
}
