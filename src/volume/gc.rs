//! `cairn gc`: deletes what nothing references, on request: what crashes left and what late requests made.
//!
//! Owns the order of looking and deleting. It must not know how an object is judged, which `check` does, or
//! how one is deleted, which `collect` does. Invariant: an object is deleted only if all of these agree.
//!
//! * A check of the volume in the store: no head, kept root or record after the checkpoint references the
//!   object, and nothing of the volume is missing or damaged.
//! * Its key: an epoch before that of the holder made it, so the holder needs it only if that is recorded.
//! * The open volume: neither its root nor its journal in memory uses the object.
//! * The head, which is read after the list was fixed: the volume is still held.
//!
//! What waits for its grace period is left to the collector, which deletes it when that is over.
//!
//! Memory is bounded by that of a check, which compares a large volume share by share, and by the keys of
//! `MOST_ORPHANS` objects. If there are more, the volume is checked again once these are deleted.

use uuid::Uuid;

use super::check::{self, Count, ObjectKind, Purpose, Report};
use super::disk::Volume;
use super::environment::Environment;
use super::error::CollectError;
use crate::store::MAXIMUM_DELETE_KEYS;

/// Limit on the orphans that are deleted before the volume is checked again; their keys take some 8 MiB.
const MOST_ORPHANS: usize = 64 * MAXIMUM_DELETE_KEYS;

/// The objects of a volume in the store, by what they are there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pub all: Count,
    /// Those that nothing references. Whoever made them no longer holds the volume.
    pub orphans: Count,
    /// Those whose keys no volume has. They are never deleted.
    pub foreign: Count,
    /// Those that are deleted when their grace period is over.
    pub waiting: Count,
    /// Those that the holder made and nothing references yet.
    pub unsettled: Count,
}

impl Tally {
    fn of(report: &Report) -> Self {
        let is_foreign = |kind| kind == ObjectKind::Unknown;
        let of = |purpose| report.usage.sum(|kind, its| its == purpose && !is_foreign(kind));
        Self {
            all: report.usage.sum(|_, _| true),
            orphans: of(Purpose::Orphan),
            foreign: report.usage.sum(|kind, _| is_foreign(kind)),
            waiting: of(Purpose::Waiting),
            unsettled: of(Purpose::Unsettled),
        }
    }
}

/// What a look at a volume shows.
#[derive(Clone, Debug)]
pub struct Found {
    /// Name of the volume.
    pub name: String,
    /// Uuid of the volume.
    pub volume: Uuid,
    /// Its objects.
    pub tally: Tally,
    /// The keys of orphans, at most as many as were asked for.
    orphans: Vec<String>,
}

/// What a collection did.
#[derive(Clone, Debug)]
pub struct Collected {
    /// Name of the volume.
    pub name: String,
    /// Uuid of the volume.
    pub volume: Uuid,
    /// The objects before it.
    pub before: Tally,
    /// The objects after it.
    pub after: Tally,
    /// Number of objects that the holder deleted meanwhile. If the volume was opened for the collection, this
    /// includes what its opening found.
    pub deleted_objects: u64,
}

/// Finds out what could be deleted. Changes nothing, and works while a gateway holds the volume.
///
/// # Errors
/// If the volume cannot be found or read, if it is damaged, or if it changes too fast.
pub async fn look(env: &Environment, name: &str) -> Result<Found, CollectError> {
    look_for(env, name, 0).await
}

async fn look_for(env: &Environment, name: &str, most: usize) -> Result<Found, CollectError> {
    let report = Box::pin(check::orphans(env, name, most)).await?;
    if let Some(why) = report.incomplete {
        return Err(CollectError::Unsteady(why));
    }
    let (Some(volume), false) = (report.volume, report.is_damaged()) else {
        let objects = report.findings.len() as u64 + report.omitted_findings;
        return Err(CollectError::Damaged { objects });
    };
    let tally = Tally::of(&report);
    let orphans = report.orphans.listed.into_iter().map(|(key, _)| key).collect();
    Ok(Found { name: report.name, volume, tally, orphans })
}

/// Deletes what is left of earlier epochs, as far as its grace period is over, and every orphan. `before` is
/// what a look showed before the volume was opened for this, and `None` if it was open already. A call that
/// is dropped may have deleted a part.
///
/// # Errors
/// As [`look`]; also if the volume stopped.
pub async fn collect(volume: &Volume, before: Option<Found>) -> Result<Collected, CollectError> {
    collect_at_most(volume, before, MOST_ORPHANS).await
}

async fn collect_at_most(
    volume: &Volume,
    before: Option<Found>,
    most: usize,
) -> Result<Collected, CollectError> {
    let deleted = || volume.collector().deleted();
    let deleted_before = if before.is_some() { 0 } else { deleted() };
    volume.collector().pass_again().await?;
    let (env, name) = (volume.environment(), volume.name());
    let mut now = look_for(env, &name, most).await?;
    let before = before.map_or(now.tally, |before| before.tally);
    while !now.orphans.is_empty() {
        volume.collector().delete_orphans(&now.orphans).await?;
        let last = now.tally.orphans.objects;
        now = look_for(env, &name, most).await?;
        if now.tally.orphans.objects >= last {
            // What is left is in use, or the store deletes nothing.
            break;
        }
    }
    let Found { name, volume, tally: after, .. } = now;
    tracing::info!(%volume, objects = deleted() - deleted_before, "collected the garbage of the volume");
    Ok(Collected { name, volume, before, after, deleted_objects: deleted() - deleted_before })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::effect::Durability::Durable;
    use crate::store::{Classes, MemoryStore};
    use crate::volume::format::geometry::ChunkIndex;
    use crate::volume::format::keys::{Keys, ObjectId};
    use crate::volume::{DirtyBudget, Entropy, Options, PageCache, catalog};

    /// However few orphans are deleted before the next check, all of them go.
    #[tokio::test(start_paused = true)]
    async fn more_orphans_than_are_kept_in_memory_go_in_several_rounds() {
        let memory = MemoryStore::unsorted(7);
        let env = Environment {
            store: Classes::one(Arc::new(memory.clone())),
            cache: PageCache::new(1 << 20, 1 << 20),
            budget: DirtyBudget::new(64 << 20),
            entropy: Entropy::seeded(1),
            wall_clock: Arc::new(|| 1_800_000_000),
        };
        let options = Options::default();
        let chunk = catalog::ChunkBytes(64 << 10);
        let made = catalog::create(&env, &options, "disk", 1 << 30, chunk).await.unwrap();
        let keys = Keys::new(made.volume);
        for k in 0..23 {
            let id = ObjectId { epoch: 0, k: 100 + k };
            memory.insert(&keys.chunk(ChunkIndex(7), id), Bytes::from_static(b"an orphan"));
        }
        let volume = Volume::open(&env, options, made.volume, false).await.unwrap();
        volume.write(0, Bytes::from(vec![7; 1 << 16]), Durable).await.unwrap();
        let collected = collect_at_most(&volume, None, 5).await.unwrap();
        assert_eq!((collected.before.orphans.objects, collected.after.orphans.objects), (23, 0));
        assert_eq!(collected.deleted_objects, 23);
        assert_eq!(memory.objects().keys().filter(|key| key.contains("/chunk/")).count(), 1);
        volume.close().await.unwrap();
    }
}
