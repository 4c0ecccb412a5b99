//! Integration tests.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conformance;
mod protocol;
mod support;
