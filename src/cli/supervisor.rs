//! Notifies the service manager, if it is systemd: when we are ready, reload and exit, and that we are alive.
//!
//! Owns the messages of `sd_notify(3)`, and must not know what is served. Invariant: without `NOTIFY_SOCKET`
//! nothing is sent, and a failed notification has no effect.

use std::time::Duration;

use sd_notify::NotifyState;

/// Reports that the gateway serves.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports that the gateway reloads its settings. [`ready`] must follow.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!("cannot determine the time for the service manager: {error}"),
    }
}

/// Reports that the gateway is ending.
pub(super) fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Reports what the gateway is doing.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Reports regularly that the process is alive, as often as the service manager requires. Never returns.
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
        tracing::debug!("cannot notify the service manager: {error}");
    }
}
