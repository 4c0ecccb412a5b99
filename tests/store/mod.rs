//! The store: one contract for every implementation, its decorators, the start-up probe, and misbehaving S3
//! servers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod contract;
mod credentials;
mod fault;
mod hedge;
mod probe;
mod refusals;
mod retry;
mod s3;
