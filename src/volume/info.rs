//! What people want to know of a volume, whether it is open or not.
//!
//! Knows nothing of how it is found out: [`catalog`](super::catalog) reads it from the store, an open volume
//! has it in memory.

use uuid::Uuid;

/// What is known of a volume without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Name.
    pub name: String,
    /// The volume.
    pub volume: Uuid,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Chunk size in bytes.
    pub chunk_bytes: u64,
    /// When it was created, in seconds since 1970.
    pub created_at_seconds: u64,
    /// Generation of its last writer; 0 if it never had one.
    pub epoch: u32,
    /// Who claims it, if anybody; the claim may have run out.
    pub holder: Option<String>,
}
