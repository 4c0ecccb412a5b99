//! Standard output and standard error. This is the only place that writes to them. And standard input, as
//! far as it is content.
//!
//! Owns these streams, and must not know what is written. A gateway never waits for a reader, and a command
//! exits even if nobody reads. Invariant: a failed write is never a panic, and the exit of the process waits
//! for a write no longer than [`LAST_WORDS`].

mod outlet;

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

pub(super) use outlet::{Notice, Outlet};

use super::text::printable;

/// How long the exit of the process waits for pending writes.
const LAST_WORDS: Duration = Duration::from_secs(1);

static ERROR: OnceLock<Outlet> = OnceLock::new();
static OUTPUT: OnceLock<Outlet> = OnceLock::new();

/// Starts standard error. `notice` is told what happens to it. Call this once, before anything is written.
pub(super) fn start_error(notice: impl Fn(Notice) + Send + Sync + 'static) {
    ERROR.get_or_init(|| outlet("cairn-stderr", io::stderr(), notice));
}

/// Returns standard error, for texts that may be lost.
pub(super) fn error() -> &'static Outlet {
    ERROR.get_or_init(|| outlet("cairn-stderr", io::stderr(), |_| {}))
}

/// Returns whether standard error is a terminal.
pub(super) fn error_is_terminal() -> bool {
    io::stderr().is_terminal()
}

fn outlet(name: &str, stream: impl AsFd, notice: impl Fn(Notice) + Send + Sync + 'static) -> Outlet {
    // This bypasses the standard library's lock, for which the exit of the process would wait, and its
    // buffer.
    match stream.as_fd().try_clone_to_owned() {
        Ok(descriptor) => Outlet::start(name, File::from(descriptor), notice),
        Err(_) => Outlet::start(name, io::sink(), notice),
    }
}

/// Reports why the program failed. Each line is printed as one line, whatever foreign text it contains.
pub(super) fn complain<'a>(lines: impl IntoIterator<Item = &'a str>) {
    let lines: Vec<_> = lines.into_iter().map(printable).collect();
    error().say(format!("cairn: {}\n", lines.join("\n")).into_bytes());
}

/// Writes an optional message to standard output.
pub(super) fn announce(text: &str) {
    let output = OUTPUT.get_or_init(|| outlet("cairn-stdout", io::stdout(), |_| {}));
    output.say(text.as_bytes().to_vec());
}

/// Writes the result of a command to standard output, and waits until it is written.
///
/// # Errors
/// If nobody reads it, or if it cannot be written.
pub(super) fn answer(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Writes content to standard output, and waits until it is written.
///
/// # Errors
/// If nobody reads it, or if it cannot be written.
pub(super) fn pour(content: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(content).and_then(|()| out.flush())
}

/// Reads the next bytes of standard input: `bytes` of them, fewer at its end, and none after it.
///
/// # Errors
/// If it cannot be read.
pub(super) fn take(bytes: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(bytes);
    let limit = u64::try_from(bytes).expect("a usize fits 64 bits");
    io::stdin().lock().take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// Waits for pending writes, but no longer than [`LAST_WORDS`] per stream.
pub(super) fn finish() {
    for outlet in [&ERROR, &OUTPUT].into_iter().filter_map(OnceLock::get) {
        outlet.flush(LAST_WORDS);
    }
}
