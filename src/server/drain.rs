//! The signal that the server is draining, and how clients learn about it.
//!
//! Must not know connections or the protocol. Invariant: draining starts once, and the [`Farewell`] does not
//! change afterwards.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// How the server treats options and commands that arrive after draining has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// They fail with an error that gives the reason.
    Refuse,
    /// They are not read, and the connection ends.
    HangUp,
}

/// The drain signal. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drain {
    begun: CancellationToken,
    farewell: Arc<OnceLock<Farewell>>,
}

impl Drain {
    /// Starts draining. Only the first call sets the farewell.
    pub(crate) fn begin(&self, farewell: Farewell) {
        // The first caller decides.
        self.farewell.get_or_init(|| farewell);
        self.begun.cancel();
    }

    /// Whether draining has started.
    pub(super) fn is_cancelled(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Whether draining has started and the server reads nothing more.
    pub(super) fn hangs_up(&self) -> bool {
        self.farewell.get() == Some(&Farewell::HangUp)
    }

    /// Waits until draining starts.
    pub(crate) fn cancelled(&self) -> WaitForCancellationFuture<'_> {
        self.begun.cancelled()
    }
}
