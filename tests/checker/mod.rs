//! What the promises allow: stamps of cells, the history of what clients were told, and whether a recovered image is the
//! state after some prefix of it. The simulation and the crashes of real parts are judged by the same rules.

pub(crate) mod cells;
pub(crate) mod history;
pub(crate) mod prefix;
