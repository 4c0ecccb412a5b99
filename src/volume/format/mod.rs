//! The bytes of every object, in the order of docs/FORMAT.md: encoding, decoding and what a decoder refuses.
//!
//! Knows no store, no clock and no memory: nothing here imports from another folder.

// Conventions: units, numbers that count sectors and pages, sets and runs of them.
pub mod geometry;
pub mod interval;
pub mod page_set;
// Keys.
pub mod keys;
// Envelope.
pub mod codec;
// Identity, name.
pub mod identity;
// Head.
pub mod head;
// Record, and what a record in a taken slot is called.
pub(super) mod fence;
pub mod record;
// Root, root table.
pub mod root;
// Map page.
pub mod map;
// Chunk, pack.
pub mod chunk;
pub mod pack;
// Tags.
pub mod frame;
