//! The rules that every run is judged by: stamps of cells, the history of what clients were told, and the
//! check whether a recovered image is the state after a prefix of it.
//!
//! It must not know how a run is made: the simulation and the crashes of real processes use the same rules.

pub(crate) mod cells;
pub(crate) mod history;
pub(crate) mod prefix;
