//! The integration tests: one binary, so that the crate graph is linked once; each module is a suite of `tests/run.sh`.

#![allow(clippy::unwrap_used, reason = "a test fails by unwrapping")]

#[allow(dead_code, reason = "the simulation uses the rest")]
mod checker;
mod cli;
mod client;
mod compare;
mod conformance;
mod crash;
mod golden;
mod guide;
mod interop;
mod lifecycle;
mod model;
mod nbd;
mod ops;
mod protocol;
mod store;
mod support;
mod tidy;
mod vm;
mod volume;
