//! Pins in the root table: a clone keeps the root of the snapshot that it is a clone of.
//!
//! Part of the folding task, because only it replaces the root table. It does not know whether a clone
//! exists; its caller says which clones are gone. Invariant: a root is returned to whoever makes a clone only
//! once the head references a table with its pin.

use tokio::sync::oneshot;
use uuid::Uuid;

use super::{FoldHandle, Folder, Refused, Request, answer};
use crate::volume::collect::{Garbage, kept_root};
use crate::volume::error::{Error, SnapshotError};
use crate::volume::format::root::{Root, RootTable};
use crate::volume::shared::Shared;

impl FoldHandle {
    /// Keeps the root of a snapshot for a clone. Returns that root once the head says so.
    ///
    /// # Errors
    /// If there is no such snapshot, if it has too many clones, if its root is lost, if the store fails, or
    /// if the volume stopped.
    pub(crate) async fn pin(&self, shared: &Shared, name: &str, clone: Uuid) -> Result<Root, Refused> {
        self.ask(shared, |done| Request::Pin(name.to_owned(), clone, done)).await?
    }

    /// Keeps no root for these clones any more. Returns once the head says so.
    ///
    /// # Errors
    /// If the store fails, or if the volume stopped.
    pub(crate) async fn unpin(&self, shared: &Shared, gone: Vec<Uuid>) -> Result<(), Error> {
        self.ask(shared, |done| Request::Unpin(gone, done)).await?
    }

    /// Whether clones keep the root of a snapshot, as far as the root table says.
    pub(crate) fn is_pinned(&self, name: &str) -> bool {
        self.trash.is_pinned(name)
    }
}

impl Folder {
    /// Serves a request to keep the root of a snapshot for a clone. A snapshot that is not in a root yet gets
    /// one first. Returns an error only once the volume has stopped.
    pub(super) async fn serve_pin(
        &self,
        name: &str,
        clone: Uuid,
        done: oneshot::Sender<Result<Root, Refused>>,
    ) -> Result<(), Error> {
        self.fold_closed().await?;
        answer(done, self.pin(name, clone).await);
        self.shared.check_serving()
    }

    /// Serves a request to keep no root for some clones. Returns an error only once the volume has stopped.
    pub(super) async fn serve_unpinning(
        &self,
        gone: &[Uuid],
        done: oneshot::Sender<Result<(), Error>>,
    ) -> Result<(), Error> {
        answer(done, self.unpin(gone).await);
        self.shared.check_serving()
    }

    async fn pin(&self, name: &str, clone: Uuid) -> Result<Root, Refused> {
        let shared = &self.shared;
        shared.check_serving()?;
        let with = self.trash.table_with_pin(shared.next_id(), name, clone);
        let with = with.map_err(Refused::Clones)?;
        let (table, id) = with.ok_or_else(|| SnapshotError::NoSuchSnapshot(name.to_owned()))?;
        let root = kept_root(shared, id).await?.ok_or_else(|| Error::lost(shared.keys.root(id)))?;
        self.replace_table(table).await?;
        tracing::info!(volume = %shared.keys.volume(), snapshot = name, %clone, "a clone keeps the snapshot");
        // A snapshot may list origins that neither it nor the volume needs any more.
        let is_detached = shared.state.lock().root.origins.is_empty();
        Ok(if is_detached { Root { origins: Vec::new(), ..root } } else { root })
    }

    async fn unpin(&self, gone: &[Uuid]) -> Result<(), Error> {
        self.shared.check_serving()?;
        let Some(table) = self.trash.table_without_pins(self.shared.next_id(), gone) else { return Ok(()) };
        self.replace_table(table).await?;
        tracing::info!(volume = %self.shared.keys.volume(), clones = gone.len(),
            "clones that are gone keep no snapshot any more");
        Ok(())
    }

    /// Publishes a table that keeps the same roots as the current one.
    async fn replace_table(&self, table: RootTable) -> Result<(), Error> {
        let (shared, old_table) = (&self.shared, self.trash.table_id());
        self.put_all(vec![(shared.keys.root(table.id), table.encode(shared.keys.sealing()))]).await?;
        let (checkpoint, current) = (*self.last.lock(), shared.state.lock().root.id);
        self.head.publish(shared, checkpoint, current, table.id).await?;
        self.trash.set_table(table);
        self.trash.add(shared, Garbage::Objects(vec![shared.keys.root(old_table)]));
        Ok(())
    }
}
