//! What all parts of a check share: the head that it began with, and how an object is found to be lost.
//!
//! Must not know in which order objects are read. Invariant: an object counts as lost only if repeated
//! answers of the store say so, and if a head that was read after these answers still references it. A
//! gateway deletes only what no head references, so what it deletes while a check runs is never taken for
//! damage.

use std::sync::Arc;

use uuid::Uuid;

use super::report::{Depth, ObjectKind, Trouble};
use super::suspects::{Loss, Part, Suspects};
use crate::store::{self, Store};
use crate::volume::cache::index::MapView;
use crate::volume::environment::Environment;
use crate::volume::error::OpenError;
use crate::volume::format::codec::DecodeError;
use crate::volume::format::head::Head;
use crate::volume::format::keys::{Keys, Parsed};
use crate::volume::format::map::{MapPage, OverlayPlace};
use crate::volume::format::root::{MapPageRef, Root};
use crate::volume::objects::read_head;
use crate::volume::read::base::LoadedMapPage;
use crate::volume::store_exact::{CheckedError, fetch_checked};

/// Why a check does not go on.
#[derive(Debug)]
pub(super) enum Stop {
    /// Something that was being checked was replaced: begin again with the current head.
    Moved,
    /// The volume cannot be checked.
    Failed(OpenError),
}

impl From<OpenError> for Stop {
    fn from(error: OpenError) -> Self {
        Self::Failed(error)
    }
}

impl From<store::Error> for Stop {
    fn from(error: store::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// An object of the volume that is checked, or of another volume that it shares objects with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    /// The owner, unless it is the volume that is checked.
    owner: Option<Keys>,
    object: Parsed,
}

impl From<Parsed> for Owned {
    fn from(object: Parsed) -> Self {
        Self { owner: None, object }
    }
}

impl From<(Keys, Parsed)> for Owned {
    fn from((owner, object): (Keys, Parsed)) -> Self {
        Self { owner: Some(owner), object }
    }
}

/// One attempt to check a volume.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) env: &'a Environment,
    pub(super) keys: Keys,
    /// The head that the attempt began with.
    pub(super) head: Head,
    pub(super) depth: Depth,
}

impl Context<'_> {
    pub(super) fn store(&self) -> &dyn Store {
        self.env.store.as_ref()
    }

    pub(super) fn volume(&self) -> Uuid {
        self.keys.volume()
    }

    /// Reads the current head.
    pub(super) async fn head_now(&self) -> Result<Head, Stop> {
        match read_head(self.env, self.keys).await {
            Ok((head, _)) if !head.state.is_live() => Err(OpenError::Deleting.into()),
            Ok((head, _)) => Ok(head),
            Err(OpenError::Store(store::Error::NotFound { .. })) => Err(Stop::Moved),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns normally only if the current head still references an object.
    pub(super) async fn confirm(&self, object: impl Into<Owned>) -> Result<(), Stop> {
        if self.is_referenced(object.into()).await? { Ok(()) } else { Err(Stop::Moved) }
    }

    /// Returns normally only if the current head continues at the same place of the journal.
    pub(super) async fn confirm_checkpoint(&self) -> Result<(), Stop> {
        let now = self.head_now().await?;
        if now.checkpoint == self.head.checkpoint { Ok(()) } else { Err(Stop::Moved) }
    }

    async fn is_referenced(&self, Owned { owner, object }: Owned) -> Result<bool, Stop> {
        let now = self.head_now().await?;
        let owner = owner.unwrap_or(self.keys);
        let (number, id) = match object {
            Parsed::Head | Parsed::FirstReads => return Ok(true),
            Parsed::Record(_) => return Ok(now.checkpoint == self.head.checkpoint),
            Parsed::Root(id) => return Ok(now.root == id || now.root_table == id),
            _ if now.root == self.head.root => return Ok(true),
            // Nothing deletes what a clone shares, whether or not the clone still reads it.
            Parsed::Pack(_) if owner != self.keys => return Ok(true),
            Parsed::Pack(id) => return Ok(self.root(&now).await?.packs.contains_key(&id)),
            Parsed::MapPage(number, id) | Parsed::Overlay(number, id) => (number, id),
            Parsed::Chunk(index, id) => (index.map_page(), id),
        };
        let root = self.root(&now).await?;
        let Some(reference) = root.map_pages.get(&number) else { return Ok(false) };
        let of_page = self.owner(&root, reference.origin);
        if let Parsed::MapPage(..) = object {
            return Ok(reference.id == id && of_page == owner);
        }
        let page = self.newer(self.map_page(&root, number, *reference).await)?;
        let map = LoadedMapPage { view: Arc::new(MapView { page, overlays: Vec::new() }), owner: of_page };
        Ok(match object {
            Parsed::Chunk(index, _) => map
                .entry(index.slot())
                .and_then(|entry| entry.base)
                .is_some_and(|base| base.id == id && map.origin(base.origin) == owner),
            _ => map.view.page.overlays().iter().any(|overlay| match overlay.place {
                OverlayPlace::Object { origin, id: its } => its == id && map.origin(origin) == owner,
                OverlayPlace::Embedded(_) => false,
            }),
        })
    }

    async fn root(&self, head: &Head) -> Result<Root, Stop> {
        let (sealing, id) = (self.keys.sealing(), head.root);
        let key = self.keys.root(id);
        let fetched = fetch_checked(self.store(), &key, |bytes| Root::decode(sealing, id, bytes)).await;
        self.newer(fetched.map(|(root, _)| root))
    }

    /// Begins again if an object of a later head is lost: the next attempt reports it.
    fn newer<T>(&self, fetched: Result<T, CheckedError>) -> Result<T, Stop> {
        match fetched {
            Ok(value) => Ok(value),
            Err(CheckedError::Damaged(_) | CheckedError::Store(store::Error::NotFound { .. })) => {
                Err(Stop::Moved)
            }
            Err(CheckedError::Store(error)) => Err(error.into()),
        }
    }

    /// Returns the keys of the volume that owns an object of a root.
    pub(super) fn owner(&self, root: &Root, origin: u16) -> Keys {
        match origin {
            0 => self.keys,
            other => Keys::new(root.origins[usize::from(other) - 1]),
        }
    }

    /// Fetches a map page.
    pub(super) async fn map_page(
        &self,
        root: &Root,
        number: u32,
        reference: MapPageRef,
    ) -> Result<MapPage, CheckedError> {
        let owner = self.owner(root, reference.origin);
        let decode =
            |bytes: &[u8]| MapPage::decode(owner.sealing(), number, reference.id, root.geometry, bytes);
        let key = owner.map_page(number, reference.id);
        fetch_checked(self.store(), &key, decode).await.map(|(page, _)| page)
    }

    /// Fetches and decodes an object that the head references. Returns a loss only if the object is
    /// referenced still.
    pub(super) async fn fetch<T>(
        &self,
        object: impl Into<Owned>,
        decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<Result<T, Loss>, Stop> {
        let object = object.into();
        let fetched = fetch_checked(self.store(), &self.key_of(object), decode).await;
        self.unless_replaced(object, fetched.map(|(value, _)| value)).await
    }

    /// Separates losses from failures of the store.
    pub(super) async fn unless_replaced<T>(
        &self,
        object: impl Into<Owned>,
        fetched: Result<T, CheckedError>,
    ) -> Result<Result<T, Loss>, Stop> {
        let loss = match fetched {
            Ok(value) => return Ok(Ok(value)),
            Err(CheckedError::Store(store::Error::NotFound { .. })) => Loss::missing(),
            Err(CheckedError::Store(store::Error::CutShort { size_bytes, wanted, .. })) => {
                let why = format!("it has {size_bytes} bytes, and not even the {wanted} that are needed");
                Loss { trouble: Trouble::TooShort, why }
            }
            Err(CheckedError::Store(error)) => return Err(error.into()),
            Err(CheckedError::Damaged(error)) => Loss::damaged(error),
        };
        self.confirm(object).await?;
        Ok(Err(loss))
    }

    /// Returns the key of an object.
    pub(super) fn key_of(&self, object: impl Into<Owned>) -> String {
        let Owned { owner, object } = object.into();
        owner.unwrap_or(self.keys).key_of(object)
    }

    /// Notes an object that is not as it should be.
    pub(super) fn note(&self, suspects: &mut Suspects, object: impl Into<Owned>, loss: Loss, part: Part) {
        let object = object.into();
        suspects.note(self.key_of(object), ObjectKind::of(object.object), loss, part);
    }
}
