//! How far a command is: a bar on standard error if that is a terminal, otherwise nothing.
//!
//! Owns what it looks like, and must not know what the command does. Invariant: it shows how much is done,
//! how fast, and how long the rest takes, as far as the end is known.

use indicatif::{ProgressBar, ProgressStyle};

/// Starts a bar for this many bytes.
pub(super) fn bar(size_bytes: u64) -> ProgressBar {
    let template = "{percent:>3} % [{wide_bar}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    ProgressBar::new(size_bytes).with_style(style(template))
}

/// Starts a bar for a number of bytes that is not known.
pub(super) fn endless() -> ProgressBar {
    ProgressBar::no_length().with_style(style("{bytes}, {bytes_per_sec}, since {elapsed}"))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is right")
}
