//! The JSON types of a garbage collection.
//!
//! Must not know how garbage is found. Invariant: a look and a collection have the same fields, so that a
//! client can show what would be done in the same way as what was done.

use serde::{Deserialize, Serialize};

use crate::volume::check::Count;
use crate::volume::gc::{Collected, Found, Tally};

/// What a collection of the garbage of a volume did, or would do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GarbageView {
    /// Name of the volume.
    pub name: String,
    /// Id of the volume.
    pub id: uuid::Uuid,
    /// Whether nothing was to be deleted.
    pub dry_run: bool,
    /// Number of objects that were deleted.
    pub deleted_objects: u64,
    /// The objects of the volume before the collection.
    pub before: TallyView,
    /// The objects of the volume after the collection.
    pub after: TallyView,
}

/// The objects of a volume, by what they are there for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TallyView {
    /// All of them.
    pub objects: u64,
    /// Their total length in bytes.
    pub bytes: u64,
    /// Those that nothing references.
    pub orphan_objects: u64,
    /// Their total length in bytes.
    pub orphan_bytes: u64,
    /// Those that are deleted when their grace period is over.
    pub waiting_objects: u64,
    /// Their total length in bytes.
    pub waiting_bytes: u64,
    /// Those that the holder of the volume made and nothing references yet.
    pub unsettled_objects: u64,
    /// Their total length in bytes.
    pub unsettled_bytes: u64,
    /// Those with keys that no volume has.
    pub foreign_objects: u64,
    /// Their total length in bytes.
    pub foreign_bytes: u64,
}

impl From<Tally> for TallyView {
    fn from(tally: Tally) -> Self {
        let split = |Count { objects, bytes }: Count| (objects, bytes);
        let (objects, bytes) = split(tally.all);
        let (orphan_objects, orphan_bytes) = split(tally.orphans);
        let (waiting_objects, waiting_bytes) = split(tally.waiting);
        let (unsettled_objects, unsettled_bytes) = split(tally.unsettled);
        let (foreign_objects, foreign_bytes) = split(tally.foreign);
        Self {
            objects,
            bytes,
            orphan_objects,
            orphan_bytes,
            waiting_objects,
            waiting_bytes,
            unsettled_objects,
            unsettled_bytes,
            foreign_objects,
            foreign_bytes,
        }
    }
}

impl From<Found> for GarbageView {
    fn from(found: Found) -> Self {
        Self {
            name: found.name,
            id: found.volume,
            dry_run: true,
            deleted_objects: 0,
            before: found.tally.into(),
            after: found.tally.into(),
        }
    }
}

impl From<Collected> for GarbageView {
    fn from(collected: Collected) -> Self {
        Self {
            name: collected.name,
            id: collected.volume,
            dry_run: false,
            deleted_objects: collected.deleted_objects,
            before: collected.before.into(),
            after: collected.after.into(),
        }
    }
}
