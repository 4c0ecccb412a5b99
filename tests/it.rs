//! Integration tests.

mod model;
mod tidy;
