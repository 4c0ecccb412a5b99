//! The process: its name, limits, signals and exit.
//!
//! Owns what concerns the whole process, and must not know any command. Invariant: a panic in any thread ends
//! the process. Half of a storage process is worse than none: a restart replays the journal, but without its
//! committer the process would keep every FLUSH waiting.

use std::future::Future;
use std::time::UNIX_EPOCH;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::Error;
use super::log::PANICS;
use super::output;
use crate::volume::WallClock;

/// Exit status of a process that received a second signal to end.
pub(super) const GIVEN_UP: i32 = 1;

/// Makes every panic from now on write to the log and abort the process.
pub(super) fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::force_capture();
        tracing::error!(
            target: PANICS,
            "{panic}; aborting, because the state of the process can no longer be trusted\n{backtrace}"
        );
        output::finish();
        std::process::abort();
    }));
}

/// Raises the limit of file descriptors to the maximum. Each connection and each request to the store needs
/// one.
pub(super) fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!("cannot raise the limit of file descriptors: {error}");
        }
    }
}

/// Returns the name of this process for people: `host/process`.
pub(super) fn name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}/{}", std::process::id())
}

/// Returns a clock that reads the time in seconds since 1970.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place that asks the system; it is handed on as an argument"
)]
pub(super) fn wall_clock() -> WallClock {
    std::sync::Arc::new(|| {
        std::time::SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    })
}

/// Runs a future on a new runtime.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let failed = |source| Error::System { what: "cannot start the runtime", source };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    let result = runtime.block_on(future);
    // Blocking calls that hang in a file system must not delay the exit.
    runtime.shutdown_background();
    result
}

/// The signals that ask the process to end or to reload its settings.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// End the process. Contains the name of the signal.
    End(&'static str),
    /// Reload the settings.
    Reload,
}

impl Signals {
    /// Listens for SIGTERM, SIGINT and SIGHUP from now on.
    pub(super) fn new() -> Result<Self, Error> {
        let listen =
            |kind| signal(kind).map_err(|source| Error::System { what: "cannot wait for signals", source });
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal.
    pub(super) async fn asked(&mut self) -> Asked {
        tokio::select! {
            Some(()) = self.hangup.recv() => Asked::Reload,
            Some(()) = self.terminate.recv() => Asked::End("SIGTERM"),
            Some(()) = self.interrupt.recv() => Asked::End("SIGINT"),
            else => std::future::pending().await,
        }
    }

    /// Waits for the next signal that ends the process, and returns its name.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.terminate.recv() => "SIGTERM",
            Some(()) = self.interrupt.recv() => "SIGINT",
            else => std::future::pending().await,
        }
    }
}
