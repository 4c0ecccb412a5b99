//! The process: its name, its limits, its signals, its end.
//!
//! Invariant: a panic anywhere ends the process, since half of a storage process is worse than none: a
//! restart replays the journal, whereas a dead committer would keep every FLUSH waiting.

use std::future::Future;
use std::time::UNIX_EPOCH;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::Error;
use super::log::PANICS;
use super::output;
use crate::volume::WallClock;

/// What a process that was told twice to end exits with.
pub(super) const GIVEN_UP: i32 = 1;

/// From now on a panic is logged and aborts.
pub(super) fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::force_capture();
        let why = "aborting, since nothing can be relied on any more";
        tracing::error!(target: PANICS, "{panic}; {why}\n{backtrace}");
        output::finish();
        std::process::abort();
    }));
}

/// Takes all file descriptors that the system allows: connections and requests to the store need one each.
pub(super) fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!("the limit of file descriptors stays as it is: {error}");
        }
    }
}

/// Who we are, for people: `host/process`.
pub(super) fn name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}/{}", std::process::id())
}

/// The time of day.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place that asks the system; it is handed on as an argument"
)]
pub(super) fn wall_clock() -> WallClock {
    std::sync::Arc::new(|| {
        std::time::SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    })
}

/// Runs a future on a runtime of its own.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let failed = |source| Error::System { what: "cannot start the runtime", source };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    let result = runtime.block_on(future);
    // Blocking calls that hang in a file system must not keep the process.
    runtime.shutdown_background();
    result
}

/// Requests to end, and to read the settings again.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// To end, by the signal of that name.
    End(&'static str),
    /// To read the settings again.
    Reload,
}

impl Signals {
    /// Listens for SIGTERM, SIGINT and SIGHUP from now on.
    pub(super) fn new() -> Result<Self, Error> {
        let listen =
            |kind| signal(kind).map_err(|source| Error::System { what: "cannot await signals", source });
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// What the next one asks for.
    pub(super) async fn asked(&mut self) -> Asked {
        tokio::select! {
            Some(()) = self.hangup.recv() => Asked::Reload,
            Some(()) = self.terminate.recv() => Asked::End("SIGTERM"),
            Some(()) = self.interrupt.recv() => Asked::End("SIGINT"),
            else => std::future::pending().await,
        }
    }

    /// The name of the next one that asks to end.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.terminate.recv() => "SIGTERM",
            Some(()) = self.interrupt.recv() => "SIGINT",
            else => std::future::pending().await,
        }
    }
}
