//! Writing: changes enter the dirty layer, and commits make them durable.
//!
//! Owns the path from a change to a durable record. It must not know maps and roots beyond what a read of a
//! partly covered sector needs. Invariant: no commit contains half of a change, and commits are settled in
//! order.

pub(super) mod change;
pub(super) mod commit;
pub(super) mod resize;
pub(super) mod snapshot;
mod upload;
