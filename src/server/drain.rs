//! The end of service: that it has begun, and what clients are told who want more.
//!
//! Invariant: it begins once, and what clients are told does not change after.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// What clients are told whose options and commands come too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// An error that says why.
    Refuse,
    /// Nothing: they are not read, and the connection ends.
    HangUp,
}

/// Whether service ends, for all who take part in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drain {
    begun: CancellationToken,
    farewell: Arc<OnceLock<Farewell>>,
}

impl Drain {
    /// Begins the end.
    pub(crate) fn begin(&self, farewell: Farewell) {
        // Who came first decides.
        self.farewell.get_or_init(|| farewell);
        self.begun.cancel();
    }

    /// Whether it has begun.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Whether it has begun and nothing more is read.
    pub(crate) fn hangs_up(&self) -> bool {
        self.farewell.get() == Some(&Farewell::HangUp)
    }

    /// Waits until it begins.
    pub(crate) fn cancelled(&self) -> WaitForCancellationFuture<'_> {
        self.begun.cancelled()
    }
}
