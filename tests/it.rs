//! Integration tests.

mod golden;
mod model;
mod tidy;
