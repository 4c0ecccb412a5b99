//! The log: what is logged, and in which format.
//!
//! Owns the path of a line, and must not know what is logged. A line passes the level filter ([`EnvFilter`]),
//! then the rate limit ([`limit`]). It is shortened and escaped ([`line`]) and put into the queue of standard
//! error ([`Outlet`](super::output::Outlet)). Invariant: logging neither waits nor fails, whatever standard
//! error is connected to.

mod limit;
mod line;

use std::io;

use tracing::Metadata;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt, reload};

use super::output::{self, Notice};
use crate::config::{self, Config};
use crate::metrics::{LogLoss, LogMetrics};
use limit::Limit;
use line::Shape;

/// Target of the log's messages about itself.
const NOTICES: &str = "cairn::log";
/// Target of the message of a panic, which is long and has many lines.
pub(super) const PANICS: &str = "cairn::panic";

/// Changes the level filter.
pub(super) type SetLevel = Box<dyn Fn(&Config) -> Result<(), config::Error> + Send + Sync>;

/// Starts to log to standard error according to the settings. Returns a function that changes the level
/// filter.
pub(super) fn start(config: &Config, metrics: LogMetrics) -> Result<SetLevel, config::Error> {
    install(config, &config.log.level, metrics)
}

/// Starts to log for commands whose output is what matters: only warnings and errors, unless configured
/// otherwise.
pub(super) fn start_quiet(config: &Config, metrics: LogMetrics) -> Result<(), config::Error> {
    let level = if config.is_given("log.level") { &config.log.level } else { "warn" };
    install(config, level, metrics).map(drop)
}

fn filter(config: &Config, level: &str) -> Result<EnvFilter, config::Error> {
    EnvFilter::builder().parse(level).map_err(|e: ParseError| config.refuse("log.level", e))
}

fn install(config: &Config, level: &str, metrics: LogMetrics) -> Result<SetLevel, config::Error> {
    let (filtered, handle) = reload::Layer::new(filter(config, level)?);
    let limit = Limit::new(metrics.clone());
    let of_notices = limit.clone();
    output::start_error(move |notice| match notice {
        Notice::Full => metrics.lost(LogLoss::Full),
        Notice::Failed => metrics.lost(LogLoss::Failed),
        Notice::Resumed { lost } => {
            let why = "standard error did not accept them";
            tracing::warn!(target: NOTICES, lines = lost, "log lines were lost: {why}");
        }
        Notice::Moment => of_notices.tell(),
    });
    let log = tracing_subscriber::registry().with(filtered).with(limit);
    // The library would report a failed write to the stream that cannot be written.
    let layer = fmt::layer().log_internal_errors(false);
    match config.log.format.as_str() {
        "json" => log.with(layer.json().flatten_event(true).with_writer(Lines(Shape::Json))).init(),
        _ if output::error_is_terminal() && std::env::var_os("NO_COLOR").is_none() => {
            log.with(layer.with_target(false).with_writer(Lines(Shape::Coloured))).init();
        }
        _ => log.with(layer.with_ansi(false).with_target(false).with_writer(Lines(Shape::Human))).init(),
    }
    Ok(Box::new(move |config| {
        let filter = filter(config, &config.log.level)?;
        handle.reload(filter).map_err(|e| config.refuse("log.level", e))
    }))
}

/// Creates a [`Line`] for each event.
struct Lines(Shape);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Some(self.0))
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line((metadata.target() != PANICS).then_some(self.0))
    }
}

/// Receives one whole line. Without a shape, the line is written unchanged.
struct Line(Option<Shape>);

impl io::Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = self.0.map_or_else(|| text.clone().into_owned(), |shape| shape.fit(&text));
        output::error().say(text.into_bytes());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
