//! The integration tests: one binary, so that the crate graph is linked once; each module is a suite of `tests/run.sh`.

#![allow(clippy::unwrap_used, reason = "a test fails by unwrapping")]

mod cli;
mod client;
mod conformance;
mod golden;
mod interop;
mod model;
mod nbd;
mod ops;
mod protocol;
mod simulation;
mod store;
mod support;
mod tidy;
mod vm;
mod volume;
