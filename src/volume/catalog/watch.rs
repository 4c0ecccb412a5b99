//! Counts the time for which deleted volumes are kept, and deletes them for good when it is over.
//!
//! Owns what one gateway has seen of the heads of deleted volumes. It must not know when it is asked to look.
//! Invariant: a volume is never deleted for good before it was kept for the time that its head says, whatever
//! the clocks of the gateways show. No time of day plays a part. A gateway counts the time for which it has
//! seen the very same head, by its own monotonic clock, and replaces exactly that head by one with as much
//! less left. Two gateways cannot count the same hour: the first one to do so replaces the head, and the
//! other one has not seen the new one yet. Likewise the last step replaces exactly the head that was judged,
//! so a volume that is brought back at the last moment stays.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::deletion::{delete_by_id, purge};
use super::settle::replace;
use crate::mutant::{self, Mutant};
use crate::store::{self, ETag};
use crate::volume::environment::Environment;
use crate::volume::error::OpenError;
use crate::volume::format::head::{Head, Kept, VolumeState};
use crate::volume::format::keys::Keys;
use crate::volume::objects::fetch_if_present;
use crate::volume::options::Options;

/// Limit on volumes that one look deletes for good.
const PURGES: usize = 64;
/// Least time that a gateway subtracts. It is also the age at which it finishes a deletion that was cut
/// short, and the least time between two looks at a volume, however often volumes are created and deleted.
const COUNT_EVERY: Duration = Duration::from_secs(600);
/// What a clock may be fast by is not counted: one part in this many.
const SLACK: u32 = 64;

/// What one gateway has seen of the heads of volumes without a name.
#[derive(Debug, Default)]
pub struct Watch {
    seen: BTreeMap<Uuid, Seen>,
    /// When each volume was last asked for. It limits the requests, and counts no time.
    asked: BTreeMap<Uuid, Instant>,
}

/// A head, and since when this gateway has seen it unchanged.
#[derive(Clone, Debug)]
struct Seen {
    etag: ETag,
    since: Instant,
}

impl Watch {
    /// Looks at volumes, all of those that no name refers to: subtracts from the time for which deleted ones
    /// are kept, and deletes those for good whose time is over. Also finishes deletions that were cut short.
    /// Leaves out volumes that it has asked for a short time ago. Returns what was deleted. A failure that
    /// concerns one volume is only logged.
    pub async fn look(&mut self, env: &Environment, options: &Options, volumes: &[Uuid]) -> Vec<Uuid> {
        let listed: BTreeSet<Uuid> = volumes.iter().copied().collect();
        self.seen.retain(|volume, _| listed.contains(volume));
        self.asked.retain(|volume, _| listed.contains(volume));
        let pause = COUNT_EVERY.min(options.undelete / 2);
        let mut deleted = Vec::new();
        for volume in listed {
            if deleted.len() == PURGES {
                break;
            }
            if self.asked.get(&volume).is_some_and(|asked_at| asked_at.elapsed() < pause) {
                continue;
            }
            self.asked.insert(volume, Instant::now());
            match self.look_at(env, options, volume).await {
                Ok(false) => {}
                Ok(true) => {
                    self.seen.remove(&volume);
                    tracing::info!(%volume, "deleted the volume for good");
                    deleted.push(volume);
                }
                Err(error @ OpenError::HasClones { .. }) => {
                    tracing::debug!(%volume, "the deleted volume is still kept: {error}");
                }
                Err(error) => tracing::warn!(%volume, "the deleted volume is still kept: {error}"),
            }
        }
        deleted
    }

    /// Looks at one volume. Returns whether it was deleted.
    async fn look_at(
        &mut self,
        env: &Environment,
        options: &Options,
        volume: Uuid,
    ) -> Result<bool, OpenError> {
        let asked_at = Instant::now();
        let decode = |bytes: &[u8]| Head::decode(volume, bytes);
        let (head, etag) = match fetch_if_present(env, &Keys::new(volume).head(), decode).await {
            Ok(found) => found,
            // It is being made, or it is damaged. Only people decide about such a volume.
            Err(OpenError::Damaged { .. } | OpenError::Store(store::Error::NotFound { .. })) => {
                self.seen.remove(&volume);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let unchanged = |seen: &&Seen| seen.etag == etag || mutant::is(Mutant::CountedTwice);
        let Some(seen) = self.seen.get(&volume).filter(unchanged) else {
            self.sees(volume, etag);
            return Ok(false);
        };
        // From an answer that showed this head to the question that is answered by it again.
        let passed = asked_at.saturating_duration_since(seen.since);
        let passed = passed.saturating_sub(passed / SLACK);
        match head.state {
            VolumeState::Live => Ok(false),
            VolumeState::Deleting if passed < COUNT_EVERY => Ok(false),
            VolumeState::Deleting => delete_by_id(env, options, volume, false).await.map(|()| true),
            VolumeState::Kept(kept) => self.count(env, options, (head, &etag), kept, passed).await,
        }
    }

    /// Subtracts the time that has passed, or deletes the volume if none is left. Returns whether it did.
    async fn count(
        &mut self,
        env: &Environment,
        options: &Options,
        (head, etag): (Head, &ETag),
        kept: Kept,
        passed: Duration,
    ) -> Result<bool, OpenError> {
        let volume = head.volume;
        let passed_seconds = u32::try_from(passed.as_secs()).unwrap_or(u32::MAX);
        let seconds_left = kept.seconds_left.saturating_sub(passed_seconds);
        if seconds_left == 0 {
            return purge(env, options, head, etag).await;
        }
        if passed >= COUNT_EVERY {
            let state = VolumeState::Kept(Kept { seconds_left, ..kept });
            match replace(env, Head { state, ..head }, etag).await? {
                Some((_, etag)) => self.sees(volume, etag),
                None => drop(self.seen.remove(&volume)),
            }
        }
        Ok(false)
    }

    /// Notes a head that was seen just now.
    fn sees(&mut self, volume: Uuid, etag: ETag) {
        self.seen.insert(volume, Seen { etag, since: Instant::now() });
    }
}
