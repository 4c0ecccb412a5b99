//! The trace of a run: every event in order, hashed, and printed when a seed is replayed.

use std::fmt::{Arguments, Write as _};

use xxhash_rust::xxh3::Xxh3;

/// Lines kept for the report of a violation.
const KEPT: usize = 60;

/// Number of events so far.
pub(super) struct Trace {
    hash: Xxh3,
    print: bool,
    lines: u64,
    last: std::collections::VecDeque<String>,
}

impl Trace {
    /// Creates an empty trace.
    pub(super) fn new(print: bool) -> Self {
        Self { hash: Xxh3::new(), print, lines: 0, last: std::collections::VecDeque::new() }
    }

    /// Adds an event at a time in milliseconds.
    pub(super) fn line(&mut self, now: u64, event: Arguments<'_>) {
        let mut line = if self.last.len() == KEPT { self.last.pop_front().unwrap() } else { String::new() };
        line.clear();
        write!(line, "{:>5}.{:03} {event}", now / 1000, now % 1000).expect("a string takes all");
        self.hash.update(line.as_bytes());
        self.hash.update(b"\n");
        self.lines += 1;
        if self.print {
            println!("{line}");
        }
        self.last.push_back(line);
    }

    /// Returns the hash of all events.
    pub(super) fn hash(&self) -> u64 {
        self.hash.digest()
    }

    /// Returns the number of events.
    pub(super) fn lines(&self) -> u64 {
        self.lines
    }

    /// Returns the last events, for the report of a violation.
    pub(super) fn tail(&self) -> String {
        self.last.iter().map(|line| format!("  {line}\n")).collect()
    }
}
