//! Tasks with an owner. This is the only file that spawns.
//!
//! A [`Tasks`] owns every task that it spawns, and must not know what the tasks do. The tasks share one
//! cancellation token. Dropping the owner cancels them. Invariant: once [`Tasks::shutdown`] has returned, no
//! task of that owner runs.
#![allow(
    clippy::disallowed_methods,
    reason = "the one place where tasks are spawned, each owned by its `Tasks`"
)]

use std::future::Future;
use std::io;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// An owner of tasks, which spawns, cancels and joins them.
#[derive(Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// Creates an owner without tasks.
    #[must_use]
    pub fn new() -> Self {
        Self { tracker: TaskTracker::new(), token: CancellationToken::new() }
    }

    /// Creates an owner that is cancelled together with this one, but joined on its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { tracker: TaskTracker::new(), token: self.token.child_token() }
    }

    /// Spawns a task that is joined by [`Tasks::shutdown`]. It should end soon after [`Tasks::token`] is
    /// cancelled.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(future)
    }

    /// Spawns a task that is dropped at its next await point once [`Tasks::token`] is cancelled.
    pub fn spawn_until_cancelled<F>(&self, future: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let token = self.token.clone();
        self.tracker.spawn(async move { token.run_until_cancelled_owned(future).await })
    }

    /// Runs blocking work (file I/O) on the runtime's blocking threads and joins it with the others.
    pub fn spawn_blocking<F, T>(&self, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.tracker.spawn_blocking(work)
    }

    /// Returns the token that tells the tasks to end.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Returns how many tasks have not ended yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Returns whether every task has ended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Waits until every task has ended by itself.
    pub async fn join(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Cancels every task and waits until all of them have ended.
    pub async fn shutdown(&self) {
        self.token.cancel();
        self.join().await;
    }
}

/// Runs work on a thread of its own that nobody waits for. The thread ends with the process, even if it
/// hangs. Use it only for a system call that may block forever, and only if the work holds nothing that must
/// be released.
///
/// # Errors
/// If the system cannot create a thread.
pub fn run_detached(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // Dropping the handle detaches the thread.
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.token.cancel();
    }
}
