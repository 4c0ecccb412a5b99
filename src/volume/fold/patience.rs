//! When a fold lets reads of clients go first.
//!
//! Owns how long it does so. Must not know what the steps of a fold do. Invariants: a fold that somebody
//! waits for never waits. Any other one waits at most [`WAITS`] times as long as its steps took.

use std::time::Duration;

use tokio::time::Instant;

use crate::volume::cache::read_load::{ReadLoad, Seen};

/// While clients read, a fold waits at most this many times as long as its steps took.
const WAITS: u32 = 8;
/// Time with few reads after which a fold goes on. A client that reads one block after the other pauses
/// between two reads, too.
const QUIET: Duration = Duration::from_millis(10);

/// How long a fold has worked since it last let others go first.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Held by the step that waits. The others queue for it. Contains which reads there had been before.
    turn: tokio::sync::Mutex<Option<Seen>>,
    /// The sum of the times that the steps took which have ended since the last wait.
    worked: parking_lot::Mutex<Duration>,
}

/// A step of a fold, until it is dropped.
#[derive(Debug)]
pub(super) struct Step<'a> {
    patience: &'a Patience,
    begun: Instant,
}

impl Patience {
    /// Waits while clients read much, unless `is_pressed`. Then a step begins.
    pub(super) async fn step(&self, reads: &ReadLoad, is_pressed: impl Fn() -> bool) -> Step<'_> {
        let mut turn = self.turn.lock().await;
        let seen = turn.get_or_insert_with(|| reads.now());
        let until = Instant::now() + std::mem::take(&mut *self.worked.lock()) * WAITS;
        while reads.is_high_since(seen) && !is_pressed() {
            let left = until - Instant::now();
            if left.is_zero() {
                break;
            }
            tokio::time::sleep(left.min(QUIET)).await;
        }
        Step { patience: self, begun: Instant::now() }
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        *self.patience.worked.lock() += self.begun.elapsed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Lets some steps of a second each run at the same time. Returns how long the next step waits.
    async fn waited(patience: &Patience, reads: &ReadLoad, steps: usize, is_pressed: bool) -> Duration {
        let mut running = Vec::new();
        for _ in 0..steps {
            running.push(patience.step(reads, || true).await);
        }
        tokio::time::sleep(SECOND).await;
        drop(running);
        let waits = Instant::now();
        let _step = patience.step(reads, || is_pressed).await;
        waits.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_fold_waits_in_proportion_to_its_work_and_only_while_clients_wait() {
        let (patience, reads) = (Patience::default(), ReadLoad::default());
        assert_eq!(waited(&patience, &reads, 1, false).await, Duration::ZERO, "nobody reads");
        let read = reads.wait();
        assert_eq!(waited(&patience, &reads, 1, false).await, SECOND * WAITS);
        assert_eq!(waited(&patience, &reads, 3, false).await, SECOND * 3 * WAITS);
        assert_eq!(waited(&patience, &reads, 3, true).await, Duration::ZERO, "somebody waits for it");
        drop(read);
        assert_eq!(waited(&patience, &reads, 1, false).await, Duration::ZERO);
        let step = patience.step(&reads, || false).await;
        tokio::time::sleep(SECOND).await;
        drop(step);
        drop(reads.wait());
        let waits = Instant::now();
        drop(patience.step(&reads, || false).await);
        assert_eq!(waits.elapsed(), QUIET, "a read came a moment ago");
    }
}
