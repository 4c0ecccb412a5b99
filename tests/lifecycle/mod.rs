//! The life of a gateway under a supervisor: it reloads its settings, is watched, is replaced, and ends after
//! its clients.

mod log;
mod reload;
mod replacement;
mod sidecar;
mod systemd;
