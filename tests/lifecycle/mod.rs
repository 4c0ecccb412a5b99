//! A gateway's life under a supervisor: told to read its settings again, watched, replaced, ended after its clients.

mod log;
mod reload;
mod replacement;
mod sidecar;
mod systemd;
