//! What several test modules share.

pub(crate) mod memory_export;
pub(crate) mod scripted_export;
pub(crate) mod wire;
