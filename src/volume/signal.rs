//! A value that tasks wait on.
//!
//! Must not know what the value means. The watch channel of tokio wakes its waiters in random order. A signal
//! wakes them in the order in which they began to wait, so that a run of the volume depends only on its
//! inputs. Invariant: a task that waits for a condition that became true before or while it began to wait
//! does not wait for ever.

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// A value that tasks wait on. Tasks wake in the order in which they began to wait.
#[derive(Debug, Default)]
pub struct Signal<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T> Signal<T> {
    /// Creates a signal with this value.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Notify::new() }
    }

    /// Locks the value, which cannot change until the guard is dropped.
    pub fn borrow(&self) -> MutexGuard<'_, T> {
        self.value.lock()
    }

    /// Sets the value and wakes all waiting tasks.
    pub fn set(&self, value: T) {
        self.update(|old| *old = value);
    }

    /// Changes the value in place and wakes all waiting tasks.
    pub fn update(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.value.lock());
        self.changed.notify_waiters();
    }

    /// Waits until `check` returns `Some` for the value, and returns its contents.
    pub async fn wait<R>(&self, mut check: impl FnMut(&T) -> Option<R>) -> R {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registers the waiter before `check` sees the value, so that no change in between is missed.
            changed.as_mut().enable();
            if let Some(found) = check(&self.value.lock()) {
                return found;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::task::Tasks;

    #[tokio::test]
    async fn those_who_wait_wake_in_the_order_in_which_they_came() {
        let (signal, order) = (Arc::new(Signal::new(0)), Arc::new(Mutex::new(Vec::new())));
        let tasks = Tasks::new();
        for number in 0..40 {
            let (signal, order) = (Arc::clone(&signal), Arc::clone(&order));
            let wait = async move {
                signal.wait(|value| (*value > 0).then_some(())).await;
                order.lock().push(number);
            };
            drop(tasks.spawn(wait));
            tokio::task::yield_now().await;
        }
        assert!(order.lock().is_empty());
        signal.set(1);
        tasks.join().await;
        assert_eq!(*order.lock(), (0..40).collect::<Vec<_>>());
        signal.wait(|value| (*value == 1).then_some(())).await;
    }
}
