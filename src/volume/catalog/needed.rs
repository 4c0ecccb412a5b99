//! Whether clones need the objects of a volume that is to be deleted, whatever of the volume is damaged.
//!
//! Must not know how a volume is deleted. Invariants: a volume is never taken for one without clones because
//! an object of it cannot be read. Clones that are gone stay gone, so they are looked for once.
//!
//! The root table that the head references lists the clones. If it cannot be read, every other volume is
//! asked: each root of a clone lists the volumes whose objects it may read. All roots of a volume list the
//! same ones, except that a later one may list none: then no root of that volume needs them any more.

use std::collections::BTreeSet;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use super::name;
use super::volumes::{self, CONCURRENT_LOOKUPS};
use crate::mutant::{self, Mutant};
use crate::store::{self, Pages};
use crate::volume::clones;
use crate::volume::environment::Environment;
use crate::volume::error::OpenError;
use crate::volume::format::codec::DecodeError;
use crate::volume::format::head::{Head, VolumeState};
use crate::volume::format::keys::{Epoch, IDENTITIES, Keys, ObjectId, Parsed};
use crate::volume::format::root::{Root, RootTable};
use crate::volume::objects::{fetch, fetch_if_present, read_head};

/// Which head the answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// No clone needs the volume, as long as its head stays as it is.
    Unneeded,
    /// The volume has another head by now.
    Moved,
}

/// What is known about the clones of a volume, from one attempt to mark its head to the next.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Clones that do not exist any more, or need nothing of the volume.
    gone: BTreeSet<Uuid>,
    /// A root table that cannot be read, and that no other volume turned out to be pinned by. Whoever makes a
    /// clone replaces the table.
    searched: Option<ObjectId>,
}

/// What an object below `root/` is.
enum Stored {
    Root(Root),
    Table(RootTable),
}

impl Known {
    /// Checks that no clone needs a volume with this head.
    ///
    /// # Errors
    /// If a clone needs the volume, if that cannot be determined, or if the store fails.
    pub(super) async fn check(
        &mut self,
        env: &Environment,
        keys: Keys,
        head: &Head,
    ) -> Result<Answer, OpenError> {
        // Whoever clones a snapshot opens the volume before, which begins an epoch.
        if head.epoch == 0 {
            return Ok(Answer::Unneeded);
        }
        let (key, id) = (keys.root(head.root_table), head.root_table);
        let lost = match fetch(env, &key, |bytes| RootTable::decode(keys.sealing(), id, bytes)).await {
            Ok((table, _)) => {
                self.refuse(env, keys.volume(), pins(&table)).await?;
                return Ok(Answer::Unneeded);
            }
            Err(lost @ (OpenError::Damaged { .. } | OpenError::Store(store::Error::NotFound { .. }))) => lost,
            Err(error) => return Err(error),
        };
        match read_head(env, keys).await {
            Ok((now, _)) if now.version == head.version => {}
            // A checkpoint replaced the table, or the volume is being deleted.
            Ok(_) | Err(OpenError::Damaged { .. } | OpenError::Store(store::Error::NotFound { .. })) => {
                return Ok(Answer::Moved);
            }
            Err(error) => return Err(error),
        }
        tracing::warn!(%key, "asking all other volumes whether they are clones of this one: {lost}");
        if self.searched != Some(id) {
            self.check_without_table(env, keys).await?;
            self.searched = Some(id);
        }
        Ok(Answer::Unneeded)
    }

    /// Checks that no clone needs a volume whose head is lost.
    ///
    /// # Errors
    /// As [`Known::check`].
    pub(super) async fn check_without_head(
        &mut self,
        env: &Environment,
        keys: Keys,
    ) -> Result<(), OpenError> {
        if may_be_shared(env, keys).await? {
            tracing::warn!(volume = %keys.volume(),
                "asking all other volumes whether they are clones of this one: it has no head");
            self.check_without_table(env, keys).await?;
        }
        Ok(())
    }

    /// Checks the clones in all root tables that can be read, and all other volumes.
    async fn check_without_table(&mut self, env: &Environment, keys: Keys) -> Result<(), OpenError> {
        if mutant::is(Mutant::ClonesUnsearched) {
            return Ok(());
        }
        let reads = stream::iter(roots(env, keys).await?).map(|id| stored(env, keys, id));
        let mut reads = reads.buffer_unordered(CONCURRENT_LOOKUPS);
        let mut pinned = BTreeSet::new();
        while let Some(read) = reads.try_next().await? {
            if let Some(Stored::Table(table)) = read {
                pinned.extend(pins(&table));
            }
        }
        self.refuse(env, keys.volume(), pinned.into_iter().collect()).await?;
        search(env, keys.volume()).await
    }

    /// Returns an error if one of the clones exists and needs the volume.
    async fn refuse(&mut self, env: &Environment, volume: Uuid, clones: Vec<Uuid>) -> Result<(), OpenError> {
        let unknown: Vec<Uuid> = clones.into_iter().filter(|clone| !self.gone.contains(clone)).collect();
        let sighted = clones::look(env, &unknown).await?;
        self.gone.extend(clones::untied(env, &sighted.alive, volume).await?);
        let mut there: Vec<Uuid> =
            sighted.alive.into_iter().filter(|clone| !self.gone.contains(clone)).collect();
        if there.is_empty() {
            self.gone.extend(clones::gone(env, &sighted.doubtful).await?);
            there = sighted.doubtful.into_iter().filter(|clone| !self.gone.contains(clone)).collect();
        }
        if there.is_empty() {
            return Ok(());
        }
        Err(OpenError::HasClones { clones: clones::mention(env, &there).await })
    }
}

fn pins(table: &RootTable) -> Vec<Uuid> {
    table.roots.iter().flat_map(|kept| kept.pins.iter().copied()).collect()
}

/// Whether clones may need objects of a volume without a head. Whoever made one opened the volume before,
/// which begins an epoch. A clone never reads journal records: those that a former holder sends late may be
/// left of a volume that was deleted.
async fn may_be_shared(env: &Environment, keys: Keys) -> Result<bool, OpenError> {
    let prefix = keys.prefix();
    let mut pages = Pages::new(env.store.as_ref(), &prefix);
    let (mut was_opened, mut has_content) = (false, false);
    while let Some(entries) = pages.next().await? {
        for object in entries.iter().filter_map(|entry| keys.parse(&entry.key)) {
            let is_later = epoch_of(object).is_some_and(|epoch| epoch > 0);
            was_opened |= is_later;
            has_content |= match object {
                Parsed::Head | Parsed::FirstReads | Parsed::Record(_) => false,
                // Every volume has roots of epoch 0.
                Parsed::Root(_) => is_later,
                Parsed::MapPage(..) | Parsed::Chunk(..) | Parsed::Overlay(..) | Parsed::Pack(_) => true,
            };
        }
        if was_opened && has_content {
            return Ok(true);
        }
    }
    Ok(false)
}

fn epoch_of(object: Parsed) -> Option<Epoch> {
    match object {
        Parsed::Head | Parsed::FirstReads => None,
        Parsed::Record(slot) => Some(slot.epoch),
        Parsed::Root(id)
        | Parsed::MapPage(_, id)
        | Parsed::Chunk(_, id)
        | Parsed::Overlay(_, id)
        | Parsed::Pack(id) => Some(id.epoch),
    }
}

/// The ids of all roots and root tables of a volume.
async fn roots(env: &Environment, keys: Keys) -> Result<Vec<ObjectId>, OpenError> {
    let prefix = keys.roots();
    let mut pages = Pages::new(env.store.as_ref(), &prefix);
    let mut ids = Vec::new();
    while let Some(entries) = pages.next().await? {
        ids.extend(entries.iter().filter_map(|entry| match keys.parse(&entry.key) {
            Some(Parsed::Root(id)) => Some(id),
            _ => None,
        }));
    }
    Ok(ids)
}

/// Reads a root or a root table. Returns `None` if it is damaged or deleted.
async fn stored(env: &Environment, keys: Keys, id: ObjectId) -> Result<Option<Stored>, OpenError> {
    let sealing = keys.sealing();
    let decode = |bytes: &[u8]| -> Result<Stored, DecodeError> {
        RootTable::decode(sealing, id, bytes)
            .map(Stored::Table)
            .or_else(|_| Root::decode(sealing, id, bytes).map(Stored::Root))
    };
    match fetch_if_present(env, &keys.root(id), decode).await {
        Ok((stored, _)) => Ok(Some(stored)),
        Err(OpenError::Damaged { .. } | OpenError::Store(store::Error::NotFound { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What another volume says about its origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kinship {
    None,
    Clone,
    Unknown,
}

/// Asks every other volume whether it is a clone of `parent`.
///
/// # Errors
/// If one is, or may be.
async fn search(env: &Environment, parent: Uuid) -> Result<(), OpenError> {
    let asked = stream::iter(others(env, parent).await?).map(|other| async move {
        Ok::<_, OpenError>((other, kinship(env, Keys::new(other), parent).await?))
    });
    let mut asked = asked.buffered(CONCURRENT_LOOKUPS);
    let (mut found, mut unknown) = (Vec::new(), Vec::new());
    while let Some((other, kinship)) = asked.try_next().await? {
        match kinship {
            Kinship::None => {}
            Kinship::Clone => found.push(other),
            Kinship::Unknown => unknown.push(other),
        }
    }
    if !found.is_empty() {
        return Err(OpenError::HasClones { clones: clones::mention(env, &found).await });
    }
    if !unknown.is_empty() {
        return Err(OpenError::MayHaveClones { others: clones::mention(env, &unknown).await });
    }
    Ok(())
}

/// All volumes but one: those with an identity, and those with a name.
async fn others(env: &Environment, but: Uuid) -> Result<BTreeSet<Uuid>, OpenError> {
    let mut all = BTreeSet::new();
    let mut pages = Pages::new(env.store.as_ref(), IDENTITIES);
    while let Some(entries) = pages.next().await? {
        all.extend(
            entries.iter().filter_map(|entry| Uuid::parse_str(entry.key.strip_prefix(IDENTITIES)?).ok()),
        );
    }
    let names = volumes::list(env).await?;
    let lookups = stream::iter(names).map(|name| async move {
        match name::look(env, &name).await {
            Ok(found) => Ok(found.volume()),
            // Its volume has an identity.
            Err(OpenError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let mut lookups = lookups.buffer_unordered(CONCURRENT_LOOKUPS);
    while let Some(volume) = lookups.try_next().await? {
        all.extend(volume);
    }
    all.retain(|volume| *volume != but && !volume.is_nil());
    Ok(all)
}

/// Finds out whether a volume is a clone of `parent`, from any of its roots.
async fn kinship(env: &Environment, keys: Keys, parent: Uuid) -> Result<Kinship, OpenError> {
    let by = |root: &Root| if root.origins.contains(&parent) { Kinship::Clone } else { Kinship::None };
    let roots = roots(env, keys).await?;
    for id in &roots {
        if let Some(Stored::Root(root)) = stored(env, keys, *id).await? {
            // A root from before the clone was flattened may be left for a while. So may what a clone of it
            // listed.
            return match by(&root) {
                Kinship::Clone if clones::is_untied(env, keys.volume(), parent).await? => Ok(Kinship::None),
                kinship => Ok(kinship),
            };
        }
    }
    let head = match read_head(env, keys).await {
        Ok((head, _)) => head,
        Err(OpenError::Damaged { .. } | OpenError::Store(store::Error::NotFound { .. })) => {
            return Ok(Kinship::Unknown);
        }
        Err(error) => return Err(error),
    };
    let decode = |bytes: &[u8]| Root::decode(keys.sealing(), head.root, bytes);
    match fetch(env, &keys.root(head.root), decode).await {
        // The listing left it out.
        Ok((root, _)) => Ok(by(&root)),
        // It is never opened again.
        Err(_) if head.state == VolumeState::Deleting => Ok(Kinship::None),
        // An import that is not complete. The head of a clone is made after its root.
        Err(OpenError::Store(store::Error::NotFound { .. })) if head.epoch == 0 && roots.is_empty() => {
            Ok(Kinship::None)
        }
        Err(OpenError::Damaged { .. } | OpenError::Store(store::Error::NotFound { .. })) => {
            Ok(Kinship::Unknown)
        }
        Err(error) => Err(error),
    }
}
