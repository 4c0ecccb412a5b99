//! The service manager that started us, if it is systemd: it is told when we are ready, reload and end, and
//! that we live.
//!
//! Knows only `sd_notify(3)`. Without `NOTIFY_SOCKET` nothing is said, and nobody notices.

use std::time::Duration;

use sd_notify::NotifyState;

/// It serves.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It reads its settings again; [`ready`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!("no time for the service manager: {error}"),
    }
}

/// It ends.
pub(super) fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// What it does.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Says that we live as often as the service manager wants to hear it, for as long as this is polled.
pub(super) async fn say_alive() {
    let Some(within) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut interval = tokio::time::interval((within / 2).max(Duration::from_millis(1)));
    loop {
        interval.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}
