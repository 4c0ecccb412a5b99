//! What a map page needs of other volumes, and which map pages need nothing.
//!
//! Must not know what is done about it. Invariant: a map page that cannot be read, or whose overlays cannot,
//! may need another volume.

use std::collections::BTreeSet;

use crate::mutant::{self, Mutant};
use crate::volume::cache::index::LoadedOverlay;
use crate::volume::error::Error;
use crate::volume::format::keys::ObjectId;
use crate::volume::format::root::{MapPageRef, Root};
use crate::volume::read::base::{self, LoadedMapPage, Located, Mapped};
use crate::volume::shared::Shared;

/// Limit on the map pages that are remembered. The others are read once more.
const MOST_REMEMBERED: usize = 1 << 20;

/// Map pages that need no other volume, by number and id. A map page never changes, so they never will.
#[derive(Debug, Default)]
pub(super) struct OwnPages(BTreeSet<(u32, ObjectId)>);

impl OwnPages {
    /// Whether a map page of a root needs no other volume. One that cannot be read may need one.
    async fn has(
        &mut self,
        shared: &Shared,
        root: &Root,
        (number, page): (u32, MapPageRef),
    ) -> Result<bool, Error> {
        if page.origin != 0 {
            return Ok(false);
        }
        if self.remembers(number, page.id) {
            return Ok(true);
        }
        shared.check_serving()?;
        let is_own = foreign_in(shared, root, number).await? == Some(0);
        if is_own && self.0.len() < MOST_REMEMBERED {
            self.0.insert((number, page.id));
        }
        Ok(is_own)
    }

    fn remembers(&self, number: u32, id: ObjectId) -> bool {
        if mutant::is(Mutant::OwnPageByNumber) {
            return self.0.iter().any(|(remembered, _)| *remembered == number);
        }
        self.0.contains(&(number, id))
    }

    /// Whether no map page of a root needs another volume.
    pub(super) async fn have(&mut self, shared: &Shared, root: &Root) -> Result<bool, Error> {
        for (number, page) in &root.map_pages {
            if !self.has(shared, root, (*number, *page)).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Counts what a map page of a root references of other volumes: chunks, and the map page itself or its
/// overlays. Returns `None` if it cannot be read.
pub(super) async fn foreign_in(shared: &Shared, root: &Root, number: u32) -> Result<Option<u64>, Error> {
    let map = match base::map_page(&shared.env, shared.keys, shared.geometry, root, number).await {
        Ok(Mapped::Page(map)) => map,
        Ok(Mapped::Holes | Mapped::Zeroed(_)) => return Ok(Some(0)),
        Err(error) if error.is_loss() => return Ok(None),
        Err(error) => return Err(error),
    };
    if map.view.overlays.iter().any(|overlay| overlay.overlay.is_err()) {
        return Ok(None);
    }
    let slots = map.view.page.entries().into_iter();
    let chunks = slots.filter(|(slot, _)| is_foreign(shared, &map, *slot)).count() as u64;
    let is_listed = map.view.overlays.iter().any(|overlay| overlay.owner != shared.keys);
    Ok(Some(chunks + u64::from(is_listed || map.owner != shared.keys)))
}

/// Whether a read of a chunk needs an object of another volume. An overlay that applies to the chunk is read
/// even if newer ones hide all that it locates.
fn is_foreign(shared: &Shared, map: &LoadedMapPage, slot: u16) -> bool {
    let (keys, geometry) = (shared.keys, shared.geometry);
    let blocks = u32::try_from(geometry.blocks_per_chunk()).expect("at most 8,192");
    let blocks = u32::from(slot) * blocks..(u32::from(slot) + 1) * blocks;
    let base = map.entry(slot).and_then(|entry| entry.base);
    let applies = |overlay: &LoadedOverlay| overlay.owner != keys && overlay.chunks.contains(slot);
    base.is_some_and(|base| map.origin(base.origin) != keys)
        || map.view.overlays.iter().any(applies)
        || base::located(&map.view.overlays, slot, blocks).iter().any(|(_, located)| match located {
            Located::Frames(owner, ..) => *owner != keys,
            Located::Zero(_) | Located::Unknown(_) => false,
        })
}
