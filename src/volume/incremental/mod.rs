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
//!   the volume, and a checksum of all that is known of the snapshot that was sent. In one history of a
//!   volume, the id of a root is never reused, so the name stands for one content. A bucket that is restored
//!   from a backup begins a second history, with the same ids. Then the name, the time and the root's
//!   checksum tell the snapshots apart. If the map of the copy says that nothing has changed since, the copy
//!   has that content.
//! * If a stream has the SHA-256 of the whole base, the copy is compared with it, whatever its snapshots say.
//!   That shows the content itself. The first stream after a full copy needs it, and so does the first one
//!   after a bucket was restored, because what is known of two snapshots could be the same by chance.

pub mod receive;
pub mod send;
