//! Which failures of an operation on names the weather or another process explains.
//!
//! It must not know how an operation is carried out. Invariant: what it does not explain is a broken promise.

use cairn::store::Error as StoreError;
use cairn::volume::{Error, OpenError};

use super::names::{Before, Deed, Failure};
use super::world::Inner;

impl Inner {
    /// Whether the weather, or another process, explains that an operation failed.
    pub(super) fn explains(&self, deed: &Deed, before: &Before, failure: &Failure, is_denied: bool) -> bool {
        let owed = match deed {
            Deed::Create(name)
            | Deed::Delete(name, _)
            | Deed::SetAside(name, _)
            | Deed::Open(name, _)
            | Deed::Rename(name, ..) => self.owed_since(before, name),
            Deed::DeleteById(..) | Deed::DeleteKept(_) | Deed::List | Deed::Undelete(..) | Deed::Watch => {
                None
            }
        };
        match failure {
            // The volume being created was deleted by its id.
            Failure::Opening(OpenError::Store(StoreError::NotFound { key })) => {
                matches!(deed, Deed::Create(_)) && self.is_deleted(key)
            }
            Failure::Opening(OpenError::Store(error)) => self.is_weather(error),
            Failure::Opening(OpenError::Held { .. } | OpenError::Lost(_) | OpenError::Contended(_)) => true,
            Failure::Opening(OpenError::NoSuchVolume(_)) => owed.is_none() || is_denied,
            // Nobody can say whether it was kept just then. The last look finds all that must be.
            Failure::Opening(OpenError::NotDeleted(_)) => {
                matches!(deed, Deed::Undelete(..) | Deed::DeleteById(..) | Deed::DeleteKept(_))
            }
            Failure::Opening(OpenError::Unkeepable { .. }) => {
                matches!(deed, Deed::SetAside(..)) && (owed.is_none() || is_denied)
            }
            Failure::Opening(OpenError::Taken(name)) => {
                let was_there = self.stood_until(name).is_some_and(|until| until >= before.now);
                matches!(deed, Deed::Undelete(..)) && was_there
            }
            Failure::Opening(OpenError::Renamed { .. }) => {
                matches!(deed, Deed::Open(..) | Deed::Rename(..) | Deed::Undelete(..)) && owed.is_none()
            }
            Failure::Opening(OpenError::NoSuchId(volume)) => {
                is_denied || !self.ledger.as_ref().is_some_and(|ledger| ledger.is_owed(*volume))
            }
            Failure::Opening(OpenError::Exists(name)) => {
                let was_there = self.stood_until(name).is_some_and(|until| until >= before.now);
                matches!(deed, Deed::Create(_) | Deed::Rename(..)) && was_there
            }
            Failure::Opening(OpenError::Incomplete { .. } | OpenError::Deleting) => {
                // What was brought back may have been deleted again before it is described.
                matches!(deed, Deed::Open(..) | Deed::Rename(..) | Deed::Undelete(..)) && owed.is_none()
            }
            // Nobody can say whether a damaged head is somebody's.
            Failure::Opening(OpenError::Unclear { .. }) => {
                matches!(deed, Deed::DeleteById(..) | Deed::DeleteKept(_))
            }
            // Late requests brought back something of a volume without a head. It may be what a damaged or incomplete
            // volume shares. In the end all of these must go.
            Failure::Opening(OpenError::MayHaveClones { .. }) => {
                matches!(deed, Deed::Delete(..) | Deed::DeleteById(..) | Deed::DeleteKept(_))
            }
            Failure::Serving(Error::Stopped(_) | Error::Lost { .. }) => true,
            Failure::Serving(Error::Store(error)) => self.is_weather(error),
            Failure::Serving(Error::Deadline { .. }) => self.plan.options.store_deadline.is_some(),
            Failure::Opening(_) | Failure::Serving(_) => false,
        }
    }
}
