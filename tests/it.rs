//! Integration tests.

mod model;
mod tidy;
mod volume;
