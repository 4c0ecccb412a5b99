//! What a backup has to do: what the source has, what the target has, and which way leads from one to the
//! other.
//!
//! Owns the decision, and must not carry it out. Invariants: nothing is written here. A volume is never
//! replaced that is not known to be a copy of the source.

use std::sync::Arc;

use uuid::Uuid;

use super::apply::Onto;
use super::stream::Stream;
use super::{Shown, digest};
use crate::cli::backup_args::Backup;
use crate::cli::environment::{environment, for_reading};
use crate::cli::error::{BackupError, Error};
use crate::cli::opened::of_command;
use crate::cli::settings::Options;
use crate::cli::snapshot_name::SnapshotName;
use crate::cli::stored_disk::StoredDisk;
use crate::metrics::Metrics;
use crate::store;
use crate::volume::catalog::{self, Progress};
use crate::volume::format::snapshot::Snapshot;
use crate::volume::format::stream::{Digest, copied_volume};
use crate::volume::incremental::send::{Sender, copy_name};
use crate::volume::{self, Diff, DiffError, Environment, OpenError, Side, SnapshotDisk, snapshot};

/// The snapshot that is backed up.
pub(super) struct Source {
    env: Environment,
    options: volume::Options,
    /// Id of its volume.
    pub(super) id: Uuid,
    pub(super) of: SnapshotName,
    pub(super) disk: Arc<SnapshotDisk>,
}

impl Source {
    /// Opens the snapshot for reading.
    pub(super) async fn open(of: &SnapshotName, options: Options) -> Result<Self, Error> {
        let volume = options.volume.clone();
        let env = for_reading(options, &Metrics::new()).await?;
        let failed = |source| Error::Volume { name: of.volume.clone(), source };
        let id = catalog::resolve(&env, &of.volume).await.map_err(failed)?;
        let disk = SnapshotDisk::open(&env, &volume, id, &of.name).await.map_err(failed)?;
        Ok(Self { env, options: volume, id, of: of.clone(), disk })
    }

    /// The stream that leads from another snapshot of the volume to this one.
    pub(super) fn since(
        &self,
        before: &Arc<SnapshotDisk>,
        base_digest: Option<Digest>,
        result_digest: Option<Digest>,
    ) -> Result<Stream, Error> {
        let (from, to) = (self.name_of(before), self.of.to_string());
        match Sender::begin(before, &self.disk, base_digest) {
            Ok(begun) => Ok(Stream::made(begun, Some(from), to, result_digest)),
            Err(source) => Err(Error::Compare { from, to, source }),
        }
    }

    /// The stream that has all of the snapshot.
    pub(super) fn whole(&self, result_digest: Option<Digest>) -> Stream {
        Stream::made(Sender::whole(&self.disk), None, self.of.to_string(), result_digest)
    }

    /// Reads all of the snapshot.
    pub(super) async fn digest(&self, shown: Shown) -> Result<Digest, Error> {
        digest(&self.of.to_string(), StoredDisk::Snapshot(Arc::clone(&self.disk)), shown).await
    }

    /// What another snapshot of the volume is called in messages.
    fn name_of(&self, disk: &SnapshotDisk) -> String {
        format!("{}@{}", self.of.volume, disk.snapshot().name)
    }

    /// Returns the snapshot of the volume whose content a copy has. `markers` are the snapshots of the copy
    /// that say so, the latest first: a later one counts more.
    async fn base(&self, markers: &[&str]) -> Result<Option<Arc<SnapshotDisk>>, Error> {
        let failed = |source| Error::Volume { name: self.of.volume.clone(), source };
        let all = snapshot::list(&self.env, self.id).await.map_err(failed)?;
        let mut best: Option<(usize, Arc<SnapshotDisk>)> = None;
        for Snapshot { name, .. } in all.iter().rev() {
            let disk = match SnapshotDisk::open(&self.env, &self.options, self.id, name).await {
                Ok(disk) => disk,
                Err(error) if is_of_one_snapshot(&error) => continue,
                Err(source) => return Err(failed(source)),
            };
            let marker = copy_name(&disk);
            let Some(place) = markers.iter().position(|found| **found == *marker) else { continue };
            if best.as_ref().is_none_or(|(found, _)| place < *found) {
                best = Some((place, disk));
            }
            if place == 0 {
                break;
            }
        }
        Ok(best.map(|(_, disk)| disk))
    }
}

/// Whether an error says nothing about other snapshots: the snapshot was deleted, or its root is lost.
fn is_of_one_snapshot(error: &OpenError) -> bool {
    matches!(
        error,
        OpenError::NoSuchSnapshot(_)
            | OpenError::Damaged { .. }
            | OpenError::Store(store::Error::NotFound { .. })
    )
}

/// What is to be done.
pub(super) enum Plan {
    /// Nothing: the target has the snapshot.
    Nothing,
    /// A new volume is made.
    First,
    /// What has changed since a snapshot of the source is sent.
    Since(Arc<SnapshotDisk>),
    /// The volume is compared with the snapshot, and becomes a copy of it.
    Compare,
    /// All of the snapshot replaces the content of a copy.
    Whole,
}

/// The volume that the snapshot is backed up to, which may not exist yet.
pub(super) struct Target {
    pub(super) env: Environment,
    pub(super) options: volume::Options,
    pub(super) onto: Onto,
}

/// What the target's store has under the name.
pub(super) struct Existing {
    /// Id of the volume.
    pub(super) id: Uuid,
    snapshots: Vec<Snapshot>,
}

impl Existing {
    fn has(&self, name: &str) -> bool {
        self.snapshots.iter().any(|found| found.name == name)
    }
}

impl Target {
    /// Opens the store of the copy, or makes it.
    pub(super) async fn open(args: &Backup, options: Options) -> Result<Self, Error> {
        let options = options.impatient();
        let (env, _) = environment(&options, &Metrics::new()).await?;
        let (name, flags) = (args.name().to_owned(), args.target_flags());
        Ok(Self { env, options: of_command(options.volume), onto: Onto { name, flags } })
    }

    fn failed(&self, source: OpenError) -> Error {
        Error::Volume { name: self.onto.name.clone(), source }
    }

    fn refused(&self, source: BackupError) -> Error {
        Error::Refused { name: self.onto.name.clone(), source: Box::new(source) }
    }

    /// Looks up what the store has under the name. A volume that was deleted does not count, because its name
    /// is free.
    pub(super) async fn existing(&self, source: &Source) -> Result<Option<Existing>, Error> {
        let id = match catalog::resolve(&self.env, &self.onto.name).await {
            Ok(id) => id,
            Err(OpenError::NoSuchVolume(_)) => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        if id == source.id {
            return Err(self.refused(BackupError::Itself));
        }
        match snapshot::list(&self.env, id).await {
            Ok(snapshots) => Ok(Some(Existing { id, snapshots })),
            Err(OpenError::Deleting) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Decides what to do if there is no volume of that name. What an earlier run has left is noticed.
    pub(super) async fn plan_first(&self, args: &Backup) -> Result<Plan, Error> {
        if args.resume {
            return Ok(Plan::First);
        }
        let unnamed = catalog::unnamed(&self.env).await.map_err(Error::List)?;
        let left = unnamed.into_iter().find(|other| {
            other.made_for.as_ref() == Some(&self.onto.name)
                && matches!(other.progress, Progress::Incomplete | Progress::Unbound)
        });
        match left {
            None => Ok(Plan::First),
            Some(left) => {
                let (id, flags) = (left.volume, self.onto.flags.clone());
                Err(self.refused(BackupError::Unfinished { id, flags }))
            }
        }
    }

    /// Decides what to do with a volume that exists.
    pub(super) async fn plan(
        &self,
        args: &Backup,
        source: &Source,
        existing: &Existing,
    ) -> Result<Plan, Error> {
        if existing.has(&source.of.name) {
            return self.plan_none(args, source, existing).await;
        }
        let names = existing.snapshots.iter().rev().map(|found| &*found.name);
        let markers: Vec<&str> = names.filter(|name| copied_volume(name) == Some(source.id)).collect();
        let (volume, of) = (source.of.volume.clone(), source.of.to_string());
        match (markers.is_empty(), args.full, args.resume) {
            (false, true, _) => Ok(Plan::Whole),
            (false, false, _) => match source.base(&markers).await? {
                Some(base) => Ok(Plan::Since(base)),
                None => Err(self.refused(BackupError::NoBase { volume, of })),
            },
            (true, _, true) => Ok(Plan::Compare),
            (true, _, false) => Err(self.refused(BackupError::NoCopy { volume, of })),
        }
    }

    /// Checks that a snapshot of that name, which exists already, has the content.
    async fn plan_none(&self, args: &Backup, source: &Source, existing: &Existing) -> Result<Plan, Error> {
        let (name, of) = (source.of.name.clone(), source.of.to_string());
        if !args.digest {
            let marker = copy_name(&source.disk);
            let is_shown = existing.has(&marker) && self.is_same(existing.id, &marker, &name).await?;
            return match is_shown {
                true => Ok(Plan::Nothing),
                false => Err(self.refused(BackupError::OtherSnapshot { name, of })),
            };
        }
        let shown = Shown::of(args.quiet);
        let wanted = source.digest(shown).await?;
        let found = self.snapshot(existing.id, &name).await?;
        let called = format!("{}@{name}", self.onto.name);
        let found = digest(&called, StoredDisk::Snapshot(found), shown).await?;
        match found == wanted {
            true => Ok(Plan::Nothing),
            false => Err(self.refused(BackupError::OtherContent { name, found, of, wanted })),
        }
    }

    async fn snapshot(&self, id: Uuid, name: &str) -> Result<Arc<SnapshotDisk>, Error> {
        let opened = SnapshotDisk::open(&self.env, &self.options, id, name).await;
        opened.map_err(|error| self.failed(error))
    }

    /// Whether the maps of two snapshots of the copy show that they have the same content.
    async fn is_same(&self, id: Uuid, one: &str, other: &str) -> Result<bool, Error> {
        let (before, after) = (self.snapshot(id, one).await?, self.snapshot(id, other).await?);
        let failed = |source: DiffError| {
            let called = |name: &str| format!("{}@{name}", self.onto.name);
            Error::Compare { from: called(one), to: called(other), source }
        };
        let diff = Diff::between(Side::of_snapshot(&before), Side::of_snapshot(&after));
        let change = diff.map_err(failed)?.next_change().await.map_err(|error| failed(error.into()))?;
        Ok(change.is_none() && before.size_bytes() == after.size_bytes())
    }
}
