//! Detachment: the root of a clone that needs no other volume any more lists no origins.
//!
//! Part of the folding task, because only it replaces roots. Must not know what the parent does then.
//! Invariant: once the current root lists no origins, no root of the table references an object of another
//! volume, and none ever will. So any root of a volume shows whether the volume may need another one. What
//! was cloned from its snapshots needs no more than they do.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::handle::{Detached, Request, answer};
use super::{FoldHandle, Folder};
use crate::mutant::{self, Mutant};
use crate::volume::collect::{grace_left, kept_root};
use crate::volume::error::Error;
use crate::volume::format::root::{KeptRoot, Root};
use crate::volume::shared::Shared;

impl FoldHandle {
    /// Makes the root list no origins, if nothing that the volume keeps references another volume.
    ///
    /// # Errors
    /// If the store fails, or if the volume stopped.
    pub(crate) async fn detach(&self, shared: &Shared) -> Result<Detached, Error> {
        self.ask(shared, Request::Detach).await?
    }
}

impl Folder {
    /// Serves a request to detach the volume. Returns an error only once the volume has stopped.
    pub(super) async fn serve_detachment(
        &self,
        done: oneshot::Sender<Result<Detached, Error>>,
    ) -> Result<(), Error> {
        self.fold_closed().await?;
        answer(done, self.detach().await);
        self.shared.check_serving()
    }

    async fn detach(&self) -> Result<Detached, Error> {
        let shared = &self.shared;
        shared.check_serving()?;
        let current = Arc::clone(&shared.state.lock().root);
        if current.origins.is_empty() {
            return Ok(Detached::Done);
        }
        for number in current.map_pages.keys() {
            shared.check_serving()?;
            if self.foreign_in(&current, *number).await? != Some(0) {
                return Ok(Detached::Foreign);
            }
        }
        let (mut held, mut waits) = (Vec::new(), None);
        for kept in self.trash.kept().iter().filter(|kept| kept.root != current.id) {
            if !self.is_foreign_root(&current, kept).await? {
                continue;
            }
            match &kept.snapshot {
                Some(snapshot) => held.push(snapshot.name.clone()),
                None => waits = waits.max(Some(grace_left(shared, kept.retired_at_seconds))),
            }
        }
        match (held.is_empty() || mutant::is(Mutant::DetachedEarly), waits) {
            (false, _) => Ok(Detached::Held(held)),
            (true, Some(waits)) => Ok(Detached::Waits(waits)),
            (true, None) => {
                let root = Root { id: shared.next_id(), origins: Vec::new(), ..Root::clone(&current) };
                assert!(root.map_pages.values().all(|page| page.origin == 0), "nothing of it is foreign");
                self.replace_root(&current, root, current.id).await?;
                tracing::info!(volume = %shared.keys.volume(), "the volume needs no other volume any more");
                Ok(Detached::Done)
            }
        }
    }

    /// Whether a root other than the current one references objects of other volumes, or may do so.
    async fn is_foreign_root(&self, current: &Root, kept: &KeptRoot) -> Result<bool, Error> {
        let Some(root) = kept_root(&self.shared, kept.root).await? else {
            return Ok(!kept.is_retired());
        };
        for (number, page) in &root.map_pages {
            self.shared.check_serving()?;
            if current.map_pages.get(number).is_some_and(|of| of.origin == page.origin && of.id == page.id) {
                continue;
            }
            if page.origin != 0 || self.foreign_in(&root, *number).await? != Some(0) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
