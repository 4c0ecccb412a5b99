//! The bytes of every object, in the order of docs/FORMAT.md: how it is encoded and decoded, and
//! what a decoder refuses.
//!
//! Must not know about stores, clocks or caches: nothing here imports from another folder. Invariant:
//! decoders are total. Any bytes result in a value or an error.

// Conventions: units, sets and ranges of them.
pub mod geometry;
pub mod interval;
pub mod page_set;
// Keys of objects, and with what the objects are sealed.
pub mod keys;
pub mod sealing;
// The envelope of every object.
pub mod codec;
// Identity and name.
pub mod identity;
// Head of a volume.
pub mod head;
// What is read first after an opening.
pub mod first_reads;
// Names of snapshots, in records and root tables.
pub mod snapshot;
// Records, and the description of a record in a slot that was taken.
pub(super) mod fence;
pub mod record;
// Roots and the root table.
pub mod root;
// Map pages and overlays.
pub mod map;
pub mod overlay;
// Chunk objects and packs.
pub mod chunk;
pub mod pack;
// Tags of frames.
pub mod frame;
// The incremental stream, which is no object of a store.
pub mod stream;
