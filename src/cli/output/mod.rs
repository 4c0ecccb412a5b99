//! Standard output and standard error: the only place that writes there.
//!
//! A gateway never waits for whoever reads them, and a command ends even where nobody does. Invariant: no
//! failure to write is a panic, and none is waited for longer than [`LAST_WORDS`].

mod outlet;

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

pub(super) use outlet::{Notice, Outlet};

use super::text::printable;

/// How long the end of the process waits for what was said to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

static ERROR: OnceLock<Outlet> = OnceLock::new();
static OUTPUT: OnceLock<Outlet> = OnceLock::new();

/// Starts standard error with somebody who is told of what happens to it. To be called once, before anything
/// is said.
pub(super) fn start_error(notice: impl Fn(Notice) + Send + Sync + 'static) {
    ERROR.get_or_init(|| outlet("cairn-stderr", io::stderr(), notice));
}

/// Standard error, for a text that may be lost.
pub(super) fn error() -> &'static Outlet {
    ERROR.get_or_init(|| outlet("cairn-stderr", io::stderr(), |_| {}))
}

/// Whether somebody sees what standard error says.
pub(super) fn error_is_terminal() -> bool {
    io::stderr().is_terminal()
}

fn outlet(name: &str, stream: impl AsFd, notice: impl Fn(Notice) + Send + Sync + 'static) -> Outlet {
    // Without the standard library's lock, which the end of the process would wait for, and without its
    // buffer.
    match stream.as_fd().try_clone_to_owned() {
        Ok(descriptor) => Outlet::start(name, File::from(descriptor), notice),
        Err(_) => Outlet::start(name, io::sink(), notice),
    }
}

/// Says why the program fails. Each line is shown as one, whatever others have put into it.
pub(super) fn complain<'a>(lines: impl IntoIterator<Item = &'a str>) {
    let lines: Vec<_> = lines.into_iter().map(printable).collect();
    error().say(format!("cairn: {}\n", lines.join("\n")).into_bytes());
}

/// Says something on standard output that the program does not need to be heard with.
pub(super) fn announce(text: &str) {
    let output = OUTPUT.get_or_init(|| outlet("cairn-stdout", io::stdout(), |_| {}));
    output.say(text.as_bytes().to_vec());
}

/// Writes what a command was asked for to standard output, and waits for whoever reads it.
///
/// # Errors
/// If nobody reads it, or it cannot be written.
pub(super) fn answer(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Waits a moment until what was said is written. Whoever reads nothing is not waited for longer.
pub(super) fn finish() {
    for outlet in [&ERROR, &OUTPUT].into_iter().filter_map(OnceLock::get) {
        outlet.flush(LAST_WORDS);
    }
}
