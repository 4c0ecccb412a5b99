//! Writing: changes go into the dirty layer, and commits make them durable.

pub(super) mod change;
pub(super) mod commit;
mod upload;
