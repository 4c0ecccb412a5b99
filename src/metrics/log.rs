//! Metrics of the log itself.
//!
//! Knows nothing of how lines are written. They can be counted before there is anybody to show them to.

use prometheus::{IntCounter, Registry};

use super::definitions as define;
use super::family::{By, counters};
use super::labels::{Label, LogLoss};

/// Metrics of the log.
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

    /// Lines that were not written so far.
    #[must_use]
    pub fn lines_lost(&self, reason: LogLoss) -> u64 {
        self.lost.of(reason).get()
    }
}
