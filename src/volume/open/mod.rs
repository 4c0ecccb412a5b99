//! Opening a volume for writing: takes the epoch, replays the journal, proves the result with an opening
//! record, and starts the tasks.
//!
//! Owns the wait for another gateway's lease and the bid for the epoch. It does not know what happens to the
//! volume after that. Invariant: a volume serves only after its opening record is durable, which proves that
//! the replay was complete.

pub(super) mod replay;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use self::replay::Replay;
use crate::metrics::{Metrics, VolumeMetrics};
use crate::mutant::{self, Mutant};
use crate::store;
use crate::volume::disk::Volume;
use crate::volume::environment::Environment;
use crate::volume::error::OpenError;
use crate::volume::fold::Folder;
use crate::volume::format::codec::Checksum;
use crate::volume::format::head::{Head, HolderName, Lease, Names};
use crate::volume::format::identity::Identity;
use crate::volume::format::keys::Keys;
use crate::volume::format::root::{Root, RootTable};
use crate::volume::format::stream::{is_begun_name, is_copy_name};
use crate::volume::held::{HeldHead, Updated, update_head};
use crate::volume::keeper::{HeadHandle, HeadKeeper};
use crate::volume::objects::{fetch, load_roots, read_head};
use crate::volume::options::Options;
use crate::volume::shared::Shared;
use crate::volume::state::segments::Segments;
use crate::volume::state::{State, Status};
use crate::volume::write::commit::Committer;

/// Number of times that another's head is read per lease time, to see whether the lease is renewed.
const LOOKS_PER_TTL: u32 = 10;
/// Number of replayed epochs above which a checkpoint follows at once.
const REPLAYED_EPOCHS: u32 = 4;
/// Limit on bids for the epoch while the holder keeps updating its head.
const BIDS: u32 = 100;

impl Volume {
    /// Opens a volume by its id for writing; [`catalog::open`](crate::volume::catalog::open) opens one by its
    /// name. If another gateway's lease has not expired, waits up to one lease time to
    /// see whether that gateway is still alive. With `takeover`, does not wait.
    ///
    /// # Errors
    /// If another gateway holds the volume or wins the epoch, if an object is damaged, or if the store fails.
    pub async fn open(
        env: &Environment,
        options: Options,
        volume: Uuid,
        takeover: bool,
    ) -> Result<Arc<Self>, OpenError> {
        Self::open_by(env, options, volume, None, takeover).await
    }

    /// Like [`Volume::open`], for a caller that found the volume by a name. If the volume has another name by
    /// now, the call fails and takes it from nobody.
    pub(super) async fn open_by(
        env: &Environment,
        options: Options,
        volume: Uuid,
        found_by: Option<&str>,
        takeover: bool,
    ) -> Result<Arc<Self>, OpenError> {
        let keys = Keys::new(volume);
        let (identity, _) = fetch(env, &keys.identity(), |bytes| Identity::decode(volume, bytes))
            .await
            .map_err(incomplete)?;
        let metrics =
            options.metrics.clone().unwrap_or_else(|| Metrics::new().volume(&keys.volume().to_string()));
        // Another process may delete the volume at any time, and with it the head.
        let taken = take_epoch(env, &options, keys, found_by, takeover, &metrics).await;
        let (mut held, unswept) = taken.map_err(incomplete)?;
        let head = held.head().clone();
        let from = head.checkpoint;
        let names =
            head.names.clone().unwrap_or_else(|| Names { current: identity.name.clone(), next: None });
        let recovering = recover(env, keys, &identity, &head);
        let Recovered { root, table, committed, opening } =
            match held.renewed_during(env.store.journal.as_ref(), recovering).await.flatten() {
                Ok(recovered) => {
                    if !mutant::is(Mutant::DeletionUnnoticed) {
                        check_not_deleted(env, keys, &head).await?;
                    }
                    recovered
                }
                Err(error) => return Err(explained(env, keys, &head, error).await),
            };
        tracing::info!(%volume, epoch = head.epoch, unswept, records = committed.records() - 1,
            journal_bytes = committed.bytes(), "volume opened");
        let geometry = root.geometry;
        let state = serving(root, committed);
        let shared = Arc::new(Shared::new(env.clone(), options, keys, geometry, &held, metrics, state));
        shared.metrics.fenced.set(0);
        shared.gauge(&shared.state.lock());
        shared.gauge_root(&shared.state.lock().root);
        let (handle, requests) = HeadHandle::new();
        let committer = Committer::new(Arc::clone(&shared), opening);
        shared.tasks.spawn_until_cancelled(committer.run());
        let keeper = HeadKeeper::new(Arc::clone(&shared), requests, held);
        shared.tasks.spawn_until_cancelled(keeper.run());
        let folder = Folder::new(Arc::clone(&shared), handle.clone(), table, from, unswept);
        let folds = folder.handle();
        shared.tasks.spawn_until_cancelled(folder.run());
        if shared.state.lock().committed.closed() > 0 {
            // A snapshot or a new size has no root yet, so other gateways do not see it.
            shared.fold_wake.notify_one();
        }
        if shared.epoch - from.slot.epoch > REPLAYED_EPOCHS {
            // A gateway that keeps crashing must not leave an ever longer series of logs to replay.
            let (shared, folds) = (Arc::clone(&shared), folds.clone());
            Arc::clone(&shared).tasks.spawn_until_cancelled(async move {
                if let Err(error) = folds.fold(&shared).await {
                    tracing::warn!("checkpoint after the opening failed: {error}");
                }
            });
        }
        Ok(Arc::new(Self::new(shared, handle, folds, names, identity.created_at_seconds)))
    }
}

/// The state of a volume that begins to serve.
fn serving(root: Root, committed: Segments) -> State {
    State {
        status: Status::Serving,
        size_bytes: committed.resized().unwrap_or(root.size_bytes),
        dirty: crate::volume::state::layer::DirtyLayer::default(),
        dirty_since: None,
        dirty_permits: 0,
        filled_at: None,
        flushes: 0,
        waiting_writes: 0,
        next_n: 2,
        in_flight: VecDeque::new(),
        committed,
        folding: None,
        root: Arc::new(root),
    }
}

/// The state that an opening recovers.
struct Recovered {
    root: Root,
    table: RootTable,
    /// The changes of the journal after the checkpoint.
    committed: Segments,
    /// Checksum of our opening record.
    opening: Checksum,
}

/// Recovers the state that the head references, and proves with an opening record that it is complete.
async fn recover(
    env: &Environment,
    keys: Keys,
    identity: &Identity,
    head: &Head,
) -> Result<Recovered, OpenError> {
    let (root, table) = load_roots(env, keys, head).await?;
    warn_of_mixture(keys, &table);
    if root.geometry != identity.geometry {
        let why = "its chunk size is not the volume's".to_owned();
        return Err(OpenError::BrokenJournal { key: keys.root(root.id), why });
    }
    let replay = Replay::new(env, keys, &root, head.epoch, head.checkpoint);
    let (committed, opening) = replay.run(head.checkpoint).await?;
    Ok(Recovered { root, table, committed, opening })
}

/// Says so in the log if an incremental import was cut short, because nothing else shows it to those who use
/// the disk.
fn warn_of_mixture(keys: Keys, table: &RootTable) {
    let names = table.roots.iter().rev().filter_map(|kept| Some(&*kept.snapshot.as_ref()?.name));
    if let Some(begun) = names.take_while(|name| !is_copy_name(name)).find(|name| is_begun_name(name)) {
        tracing::warn!(volume = %keys.volume(), snapshot = begun,
            "an import of an incremental stream has begun and not ended: until it is repeated, the volume is \
             a mixture of what it had and what it gets");
    }
}

/// Returns an error if the volume is being or has been deleted. A deletion marks the head before it deletes
/// anything, so everything read before the head was seen without the mark was complete. Without this check,
/// an opening could mistake records and seals that a deletion removes ahead of it for the end of the journal,
/// and serve an empty disk.
async fn check_not_deleted(env: &Environment, keys: Keys, ours: &Head) -> Result<(), OpenError> {
    match read_head(env, keys).await.map_err(incomplete)? {
        (now, _) if is_deleted(&now, ours) => Err(OpenError::Deleting),
        _ => Ok(()),
    }
}

/// Whether a volume is being or has been deleted, as far as its head shows. Epochs only rise. A head of an
/// earlier epoch than ours is the first one, which a late request of the volume's creator has made once more
/// after the deletion.
fn is_deleted(now: &Head, ours: &Head) -> bool {
    !now.state.is_live() || now.epoch < ours.epoch
}

/// Returns the cause of a failed opening. If a later gateway has the volume, it may have folded and deleted
/// what we were reading, and nothing is damaged. The same holds if the volume is being deleted.
async fn explained(env: &Environment, keys: Keys, ours: &Head, error: OpenError) -> OpenError {
    let looks_damaged = matches!(
        error,
        OpenError::Damaged { .. }
            | OpenError::BrokenJournal { .. }
            | OpenError::Store(store::Error::NotFound { .. })
    );
    if !looks_damaged {
        return error;
    }
    match read_head(env, keys).await {
        Ok((now, _)) if is_deleted(&now, ours) => OpenError::Deleting,
        Ok((now, _)) if now.epoch > ours.epoch => {
            OpenError::Lost(format!("epoch {} of {}", now.epoch, now.holder_name))
        }
        _ => incomplete(error),
    }
}

/// Maps the error for a missing object that every complete volume has.
fn incomplete(error: OpenError) -> OpenError {
    match error {
        OpenError::Store(store::Error::NotFound { key }) => OpenError::Incomplete { key },
        other => other,
    }
}

/// Waits until no other gateway's lease protects the volume, and takes the next epoch, unless the volume has
/// lost the name by which it was found. Also returns whether unreferenced objects may exist.
async fn take_epoch(
    env: &Environment,
    options: &Options,
    keys: Keys,
    found_by: Option<&str>,
    takeover: bool,
    metrics: &VolumeMetrics,
) -> Result<(HeldHead, bool), OpenError> {
    let (mut old, mut etag) = read_head(env, keys).await?;
    for bids_left in (0..BIDS).rev() {
        if !old.state.is_live() {
            return Err(OpenError::Deleting);
        }
        if let (Some(name), Some(names)) = (found_by, &old.names)
            && !names.contain(name)
        {
            return Err(OpenError::Renamed { from: name.to_owned(), to: names.current.clone() });
        }
        let holder_name = HolderName::new(&options.holder_name);
        let is_own = options.holder_is_stable && old.holder_name == holder_name;
        match old.lease {
            Lease::Held { .. } if is_own => {
                tracing::info!(volume = %keys.volume(), %holder_name, "the lease is our own from before");
            }
            Lease::Held { ttl_ms } if !takeover => {
                watch_lease(env, keys, &old, Duration::from_millis(u64::from(ttl_ms))).await?;
            }
            Lease::Held { .. } | Lease::Released | Lease::Unswept => {}
        }
        let ttl_ms = u32::try_from(options.lease_ttl.as_millis()).unwrap_or(u32::MAX).max(1);
        let head = Head {
            version: old.version + 1,
            epoch: old.epoch + 1,
            holder: env.entropy.next_u128(),
            holder_name,
            lease: Lease::Held { ttl_ms },
            ..old.clone()
        };
        let sent_at = Instant::now();
        match update_head(env.store.journal.as_ref(), &keys.head(), &etag, &head).await? {
            Updated::Done(etag) => {
                let held = HeldHead::new(head, etag, sent_at, options, metrics.clone());
                return Ok((held, old.lease != Lease::Released));
            }
            Updated::Lost(holder) if !takeover && !is_own => return Err(OpenError::Held { holder }),
            Updated::Lost(_) if bids_left == 0 => {}
            Updated::Lost(_) => {
                let newer;
                (newer, etag) = read_head(env, keys).await?;
                old = if mutant::is(Mutant::StaleCheckpoint) {
                    Head { checkpoint: old.checkpoint, root: old.root, root_table: old.root_table, ..newer }
                } else {
                    newer
                };
            }
        }
    }
    Err(OpenError::Lost("its holder, which updates the head faster than we can take it over".to_owned()))
}

/// Returns once a lease has not been renewed for its whole duration by our own clock. Returns an error as
/// soon as it is renewed.
async fn watch_lease(env: &Environment, keys: Keys, old: &Head, ttl: Duration) -> Result<(), OpenError> {
    tracing::info!(volume = %keys.volume(), holder = %old.holder_name, ?ttl,
        "another gateway holds the lease, waiting whether it is renewed");
    for _ in 0..LOOKS_PER_TTL {
        tokio::time::sleep(ttl / LOOKS_PER_TTL).await;
        let (now, _) = read_head(env, keys).await?;
        if now.version != old.version {
            let holder = format!("{} (epoch {})", now.holder_name, now.epoch);
            return Err(OpenError::Held { holder });
        }
    }
    Ok(())
}
