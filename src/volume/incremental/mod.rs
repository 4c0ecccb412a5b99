//! Incremental copies: what differs between two snapshots of a volume, as a stream that brings a copy of the
//! first one up to date.
//!
//! Owns how a stream is made ([`send`]) and applied ([`receive`]), and must not know where its bytes are kept
//! meanwhile. Invariant: a stream is applied only to a volume that is known to have the content of its base.
//!
//! A stream has no bytes of what did not change. If they differed between the base and the copy, the result
//! would be wrong, and nothing in the stream would show it. So the copy must be known to be one, and there
//! are two ways to know it:
//!
//! * A stream that was applied completely leaves a snapshot in the copy whose name says which content it is:
//!   the volume and the root of the snapshot that was sent. The id of a root is never reused, so the name
//!   stands for one content. If the map of the copy says that nothing has changed since, the copy has it.
//! * The first stream after a full copy has the SHA-256 of the whole base, with which the copy is compared.

pub mod receive;
pub mod send;
