//! Detachment: the root of a clone that needs no other volume any more lists no origins.
//!
//! Part of the folding task, because only it replaces roots. The maps are read beside this task before, which
//! takes long for a large disk: it only reads what is new since. Must not know what the parent does then.
//! Invariant: once the current root lists no origins, no root of the table references an object of another
//! volume, and none ever will. So any root of a volume shows whether the volume may need another one. What
//! was cloned from its snapshots needs no more than they do.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::handle::{Detached, Request, answer};
use super::own_pages::OwnPages;
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
        let mut own = OwnPages::default();
        self.survey(shared, &mut own).await?;
        self.ask(shared, |done| Request::Detach(own, done)).await?
    }

    /// Reads the maps of the roots, as far as they need no other volume.
    async fn survey(&self, shared: &Shared, own: &mut OwnPages) -> Result<(), Error> {
        let current = Arc::clone(&shared.state.lock().root);
        if current.origins.is_empty() || !own.have(shared, &current).await? {
            return Ok(());
        }
        for kept in self.trash.kept().iter().filter(|kept| kept.root != current.id) {
            if let Some(root) = kept_root(shared, kept.root).await? {
                own.have(shared, &root).await?;
            }
        }
        Ok(())
    }
}

impl Folder {
    /// Serves a request to detach the volume. Returns an error only once the volume has stopped.
    pub(super) async fn serve_detachment(
        &self,
        own: OwnPages,
        done: oneshot::Sender<Result<Detached, Error>>,
    ) -> Result<(), Error> {
        self.fold_closed().await?;
        answer(done, self.detach(own).await);
        self.shared.check_serving()
    }

    async fn detach(&self, mut own: OwnPages) -> Result<Detached, Error> {
        let shared = &self.shared;
        shared.check_serving()?;
        let current = Arc::clone(&shared.state.lock().root);
        if current.origins.is_empty() {
            return Ok(Detached::Done);
        }
        if !own.have(shared, &current).await? {
            return Ok(Detached::Foreign);
        }
        let (mut held, mut waits) = (Vec::new(), None);
        for kept in self.trash.kept().iter().filter(|kept| kept.root != current.id) {
            if is_own_root(shared, kept, &mut own).await? {
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
}

/// Whether a root other than the current one needs no other volume. A snapshot whose root cannot be read may
/// need one; any other root that is gone is not read any more.
async fn is_own_root(shared: &Shared, kept: &KeptRoot, own: &mut OwnPages) -> Result<bool, Error> {
    match kept_root(shared, kept.root).await? {
        Some(root) => own.have(shared, &root).await,
        None => Ok(kept.is_retired()),
    }
}
