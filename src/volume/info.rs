//! What people want to know about a volume, whether it is open or not.
//!
//! Must not know where the facts come from: [`catalog`](super::catalog) reads them from the store, and an
//! open volume has them in memory. Invariant: nothing here requires that the volume is open.

use uuid::Uuid;

/// Facts about a volume that are available without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Name by which clients and operators address the volume.
    pub name: String,
    /// Uuid that identifies the volume in the store.
    pub volume: Uuid,
    /// Size of the volume in bytes.
    pub size_bytes: u64,
    /// Size of a chunk in bytes.
    pub chunk_bytes: u64,
    /// Time of creation, in seconds since 1970.
    pub created_at_seconds: u64,
    /// Epoch of the last writer; 0 if the volume never had one.
    pub epoch: u32,
    /// Name of the gateway whose lease is in the head, if any. The lease may have expired.
    pub holder: Option<String>,
    /// Uuid of the volume that this one is a clone of, if any.
    pub clone_of: Option<Uuid>,
}
