//! Integration tests.

mod model;
mod store;
mod support;
mod tidy;
mod volume;
