//! The integration tests: one binary, so that the crate graph is linked once; each module is a suite of `tests/run.sh`.

mod interop;
mod model;
mod store;
mod support;
mod tidy;
mod vm;
mod volume;
