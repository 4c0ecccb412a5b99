//! A rate limit for log lines: each place in the code may log a number of lines at once, and then a few more
//! over time.
//!
//! Owns the counts per place, and must not know a format. Clients and a failing store can cause any number of
//! lines. Invariants: what one place adds to the log is bounded over time. Omitted lines are counted and
//! reported. `debug` and `trace` are not limited, because whoever enables them wants every line.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::{NOTICES, PANICS};
use crate::metrics::{LogLoss, LogMetrics};

/// Number of warnings and errors that a place may log at once.
const TROUBLE_AT_ONCE: u32 = 20;
/// Number of informational lines that a place may log at once: enough for one line per volume at the default
/// maximum of open volumes.
const INFO_AT_ONCE: u32 = 256;
/// After each interval, a place may log one more line.
const INTERVAL: Duration = Duration::from_secs(10);

/// How much each place has logged. Clones share the counts.
#[derive(Clone)]
pub(super) struct Limit {
    places: Arc<Mutex<BTreeMap<usize, Place>>>,
    metrics: LogMetrics,
}

struct Place {
    metadata: &'static Metadata<'static>,
    /// How many lines it may log now.
    left: u32,
    /// When `left` last increased.
    grown: Instant,
    /// How many omitted lines have not been reported yet.
    left_out: u64,
}

impl Place {
    fn admits(&mut self, at_once: u32, now: Instant) -> bool {
        while self.left < at_once && now.saturating_duration_since(self.grown) >= INTERVAL {
            self.left += 1;
            self.grown += INTERVAL;
        }
        if self.left == at_once {
            self.grown = now;
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.left_out += 1;
            return false;
        };
        self.left = left;
        true
    }
}

impl Limit {
    pub(super) fn new(metrics: LogMetrics) -> Self {
        Self { places: Arc::default(), metrics }
    }

    fn admits(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        let at_once = match *metadata.level() {
            _ if [NOTICES, PANICS].contains(&metadata.target()) => return true,
            Level::ERROR | Level::WARN => TROUBLE_AT_ONCE,
            Level::INFO => INFO_AT_ONCE,
            Level::DEBUG | Level::TRACE => return true,
        };
        let mut places = self.places.lock();
        let new = || Place { metadata, left: at_once, grown: now, left_out: 0 };
        let place = places.entry(std::ptr::from_ref(metadata).addr()).or_insert_with(new);
        let is_admitted = place.admits(at_once, now);
        drop(places);
        if !is_admitted {
            self.metrics.lost(LogLoss::Similar);
        }
        is_admitted
    }

    /// Reports for each place how many of its lines were omitted since the last call.
    pub(super) fn tell(&self) {
        let mut told = Vec::new();
        for place in self.places.lock().values_mut().filter(|place| place.left_out > 0) {
            told.push((place.metadata, std::mem::take(&mut place.left_out)));
        }
        for (metadata, lines) in told {
            let place = format!("{}:{}", metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0));
            tracing::warn!(target: NOTICES, lines, place, "similar lines were left out");
        }
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.admits(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::metrics::Metrics;

    /// The level of a line, and the number of omitted lines that it reports.
    type Line = (Level, Option<u64>);

    /// Records what was logged.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<Line>>>);

    impl<S: Subscriber> Layer<S> for Seen {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            struct Lines(Option<u64>);
            impl tracing::field::Visit for Lines {
                fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
                    if field.name() == "lines" {
                        self.0 = Some(value);
                    }
                }
                fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
            }
            let mut lines = Lines(None);
            event.record(&mut lines);
            self.0.lock().push((*event.metadata().level(), lines.0));
        }
    }

    fn complain(times: u32) {
        for _ in 0..times {
            tracing::warn!("cannot accept");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeated_line_is_logged_a_few_times_and_then_counted() {
        let (limit, seen) = (Limit::new(Metrics::new().log()), Seen::default());
        let subscriber = tracing_subscriber::registry().with(limit.clone()).with(seen.clone());
        let guard = tracing::subscriber::set_default(subscriber);
        let lines =
            |level| seen.0.lock().iter().filter(|(of, lines)| *of == level && lines.is_none()).count();
        complain(500);
        assert_eq!(lines(Level::WARN), 20);
        tracing::warn!("another place is not affected");
        assert_eq!(lines(Level::WARN), 21);
        limit.tell();
        limit.tell();
        assert_eq!(seen.0.lock().last(), Some(&(Level::WARN, Some(480))), "told once");
        assert_eq!(seen.0.lock().len(), 22);
        assert_eq!(limit.metrics.lines_lost(LogLoss::Similar), 480);
        tokio::time::advance(3 * INTERVAL).await;
        complain(10);
        assert_eq!(lines(Level::WARN), 24, "one for each interval");
        (0..1000).for_each(|_| tracing::debug!("all of it is wanted"));
        assert_eq!(lines(Level::DEBUG), 1000);
        (0..1000).for_each(|_| tracing::info!("open"));
        assert_eq!(lines(Level::INFO), 256);
        drop(guard);
    }
}
