//! Snapshots in the root table: lists, deletes and restores them.
//!
//! Part of the folding task, because only it replaces the root table. It does not take snapshots: a commit
//! that ends with one does, and the fold that ends there adds the root to the table. Invariant: a snapshot is
//! gone only once the head references a table without it, and only then are its objects garbage.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{FoldHandle, Folder, Refused, Request, Scope, answer, put_new};
use crate::metrics::labels::ObjectKind;
use crate::mutant::{self, Mutant};
use crate::volume::collect::{Garbage, TableFull, kept_root};
use crate::volume::error::{Error, SnapshotError};
use crate::volume::format::keys::ObjectId;
use crate::volume::format::root::Root;
use crate::volume::format::snapshot::Snapshot;
use crate::volume::shared::Shared;

/// Limit on the snapshots of a volume. The root table has room for more, because it also contains the roots
/// that checkpoints replaced.
pub(crate) const MAX_SNAPSHOTS: usize = 2048;

impl FoldHandle {
    /// The snapshots of the root table, in the order in which they were taken.
    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        self.trash.snapshots().into_iter().map(|(snapshot, _)| snapshot).collect()
    }

    /// Deletes a snapshot. Returns once the head no longer keeps it.
    ///
    /// # Errors
    /// If there is no such snapshot, if a clone needs it, if the store fails, or if the volume stopped.
    pub(crate) async fn delete_snapshot(&self, shared: &Shared, name: &str) -> Result<(), Refused> {
        self.ask(shared, |done| Request::DeleteSnapshot(name.to_owned(), done)).await?
    }

    /// Makes the volume what it was at a snapshot. Returns once the head says so. The volume must not accept
    /// changes any more, and all of them must be durable.
    ///
    /// # Errors
    /// If there is no such snapshot, if its root is lost, if the store fails, or if the volume stopped.
    pub(crate) async fn restore(&self, shared: &Shared, name: &str) -> Result<(), SnapshotError> {
        self.ask(shared, |done| Request::Restore(name.to_owned(), done)).await?
    }
}

impl Folder {
    /// Serves a request to delete a snapshot. A snapshot that is not in a root yet gets one first. Returns an
    /// error only once the volume has stopped.
    pub(super) async fn serve_deletion(
        &self,
        name: &str,
        done: oneshot::Sender<Result<(), Refused>>,
    ) -> Result<(), Error> {
        self.fold_closed().await?;
        let deleted = self.delete_snapshot(name).await;
        answer(done, deleted);
        self.shared.check_serving()
    }

    async fn delete_snapshot(&self, name: &str) -> Result<(), Refused> {
        let shared = &self.shared;
        shared.check_serving()?;
        let now = (shared.env.wall_clock)();
        let without = self.trash.table_without(shared.next_id(), name, now);
        let without = without.map_err(Refused::Clones)?;
        let (table, root) = without.ok_or_else(|| SnapshotError::NoSuchSnapshot(name.to_owned()))?;
        let (id, old_table) = (table.id, self.trash.table_id());
        self.put_all(vec![(shared.keys.root(id), table.encode(shared.keys.sealing()))]).await?;
        let (checkpoint, current) = (*self.last.lock(), shared.state.lock().root.id);
        if !mutant::is(Mutant::SnapshotFreedEarly) {
            self.head.publish(shared, checkpoint, current, id).await?;
        }
        self.trash.set_table(table);
        if self.trash.is_retired(root) {
            self.trash.add(shared, Garbage::Root(root));
        }
        if mutant::is(Mutant::SnapshotFreedEarly) {
            self.head.publish(shared, checkpoint, current, id).await?;
        }
        self.trash.add(shared, Garbage::Objects(vec![shared.keys.root(old_table)]));
        tracing::info!(volume = %shared.keys.volume(), snapshot = name, "deleted the snapshot");
        Ok(())
    }

    /// Serves a request to restore a snapshot. Everything that is committed is folded first. Returns an error
    /// only once the volume has stopped.
    pub(super) async fn serve_restoration(
        &self,
        name: &str,
        done: oneshot::Sender<Result<(), SnapshotError>>,
    ) -> Result<(), Error> {
        self.fold_all(Scope::Committed).await?;
        answer(done, self.restore(name).await);
        self.shared.check_serving()
    }

    /// Publishes a root that has the content of a snapshot, and the snapshot's root as its parent.
    async fn restore(&self, name: &str) -> Result<(), SnapshotError> {
        let shared = &self.shared;
        let found = self.trash.snapshots().into_iter().find(|(snapshot, _)| snapshot.name == name);
        let (_, id) = found.ok_or_else(|| SnapshotError::NoSuchSnapshot(name.to_owned()))?;
        let restored = kept_root(shared, id).await?.ok_or_else(|| Error::lost(shared.keys.root(id)))?;
        let checkpoint = *self.last.lock();
        let (old, is_settled) = {
            let state = shared.state.lock();
            let is_settled =
                state.dirty.is_empty() && state.in_flight.is_empty() && state.committed.is_empty();
            (Arc::clone(&state.root), is_settled)
        };
        assert!(is_settled, "a volume that accepts no changes is restored after all of them are folded");
        // A snapshot may list origins that the volume does not need any more.
        let origins = if old.origins.is_empty() { Vec::new() } else { restored.origins.clone() };
        let root = Root { id: shared.next_id(), commit: checkpoint.slot, origins, ..restored };
        let size_bytes = root.size_bytes;
        self.replace_root(&old, root, id).await?;
        shared.state.lock().size_bytes = size_bytes;
        tracing::info!(volume = %shared.keys.volume(), snapshot = name, "restored the snapshot");
        Ok(())
    }

    /// Publishes a root that no fold made, at the last checkpoint, and discards the current root `old`.
    pub(super) async fn replace_root(&self, old: &Root, root: Root, parent: ObjectId) -> Result<(), Error> {
        let (shared, root) = (&self.shared, Arc::new(root));
        self.trash.check_room().map_err(|TableFull| self.table_full())?;
        let now = (shared.env.wall_clock)();
        let table = self.trash.next_table(shared.next_id(), old, &root, parent, None, now);
        let table = table.map_err(|TableFull| self.table_full())?;
        let (sealing, old_table) = (shared.keys.sealing(), self.trash.table_id());
        let objects = [(root.id, root.encode(sealing)), (table.id, table.encode(sealing))];
        self.put_all(objects.map(|(id, bytes)| (shared.keys.root(id), bytes)).into()).await?;
        let checkpoint = *self.last.lock();
        self.head.publish(shared, checkpoint, root.id, table.id).await?;
        self.trash.set_table(table);
        shared.state.lock().root = Arc::clone(&root);
        shared.gauge_root(&root);
        if self.trash.is_retired(old.id) {
            self.trash.add(shared, Garbage::Root(old.id));
        }
        self.trash.add(shared, Garbage::Objects(vec![shared.keys.root(old_table)]));
        Ok(())
    }

    /// Creates objects that the next head references. If that fails, they are garbage, and even the last one
    /// may exist although the store reported a failure.
    pub(super) async fn put_all(&self, objects: Vec<(String, Vec<u8>)>) -> Result<(), Error> {
        let mut keys = Vec::with_capacity(objects.len());
        for (key, bytes) in objects {
            keys.push(key.clone());
            if let Err(error) = put_new(&self.shared, ObjectKind::Root, key, bytes).await {
                self.trash.add(&self.shared, Garbage::Orphans(keys));
                return Err(error);
            }
        }
        Ok(())
    }
}
