//! All objects that the roots and the journal reference, share by share, and what else the bucket holds.
//!
//! Must not know how one object is checked. Invariants: memory is bounded by one share of the references
//! and one group of pack indexes. What was verified byte by byte is not read again when a check begins
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::context::{Context, Stop};
use super::journal::Journal;
use super::listing::{self, Seen};
use super::maps::{self, ChunkAt, Counted};
use super::packs::{self, INDEX_FRAMES, Indexes};
use super::references::{Full, LIMIT, MOST_SHARES, References, Share};
use super::report::{Depth, MAX_ORPHANS, Purpose};
use super::suspects::{Loss, Part, Suspects};
use crate::mutant::{self, Mutant};
use crate::store;
use crate::volume::cache::index::MapView;
use crate::volume::format::chunk;
use crate::volume::format::geometry::{BLOCKS_PER_PAGE, MAP_PAGE_ENTRIES};
use crate::volume::format::keys::{ObjectId, Parsed};
use crate::volume::format::pack;
use crate::volume::format::root::{KeptRoot, MapPageRef, Root, RootTable};
use crate::volume::read::base::LoadedMapPage;
use crate::volume::store_exact::{CheckedError, fetch_checked};

/// What stays known when a check begins again.
#[derive(Debug, Default)]
pub(super) struct Verified {
    /// The map page objects whose chunk objects were all verified, by number.
    map_pages: BTreeMap<u32, ObjectId>,
    packs: BTreeSet<(Uuid, ObjectId)>,
}

/// Limits on what is in memory at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// References of one share.
    pub(super) references: usize,
    /// Frames of the packs whose indexes are in memory.
    pub(super) index_frames: u64,
    /// Orphans whose keys are in the report.
    pub(super) orphans: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { references: LIMIT, index_frames: INDEX_FRAMES, orphans: MAX_ORPHANS }
    }
}

/// The roots and the journal of a volume.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub(super) root: &'a Root,
    pub(super) table: Option<&'a RootTable>,
    pub(super) journal: &'a Journal,
}

/// Checks all objects. Returns what the listings show, and notes for people.
pub(super) async fn check(
    context: &Context<'_>,
    sources: Sources<'_>,
    limits: Limits,
    verified: &mut Verified,
    suspects: &mut Suspects,
) -> Result<(Seen, Vec<String>), Stop> {
    let mut of = shares(sources, limits);
    loop {
        let mut pass = Pass {
            context,
            sources,
            limits,
            verified,
            suspects,
            of,
            notes: Vec::new(),
            shared_packs: BTreeSet::new(),
            shared_blocks: 0,
        };
        match pass.run().await? {
            Ok(seen) => return Ok((seen, pass.notes)),
            Err(Full) => of *= 2,
        }
    }
}

/// Into how many shares the references must be divided, by the counts in the root.
fn shares(sources: Sources<'_>, limits: Limits) -> u32 {
    let per_page = |stored: u32| u64::from((stored / BLOCKS_PER_PAGE).min(MAP_PAGE_ENTRIES));
    let chunks: u64 = sources.root.map_pages.values().map(|page| per_page(page.counts.stored)).sum();
    let chunks = chunks + sources.journal.chunks.len() as u64;
    let shares = chunks.div_ceil(limits.references as u64).max(1).next_power_of_two();
    u32::try_from(shares).unwrap_or(MOST_SHARES).min(MOST_SHARES)
}

/// One round through all shares.
struct Pass<'a> {
    context: &'a Context<'a>,
    sources: Sources<'a>,
    limits: Limits,
    verified: &'a mut Verified,
    suspects: &'a mut Suspects,
    of: u32,
    notes: Vec<String>,
    /// The packs of other volumes that the current root needs.
    shared_packs: BTreeSet<(Uuid, ObjectId)>,
    /// Blocks that a read gets from other volumes.
    shared_blocks: u64,
}

impl Pass<'_> {
    async fn run(&mut self) -> Result<Result<Seen, Full>, Stop> {
        let own = packs::own(self.context, self.sources.root);
        let groups = match self.context.depth {
            Depth::References => Vec::new(),
            Depth::Structure | Depth::Data => packs::groups(&own, self.limits.index_frames),
        };
        let shares = usize::try_from(self.of).expect("at most 256");
        let mut seen = Seen::new(self.limits.orphans);
        for round in 0..shares.max(groups.len()) {
            let indexes = match groups.get(round) {
                None => Indexes::default(),
                Some(group) => {
                    let group = &own[group.clone()];
                    packs::check(self.context, group, &mut self.verified.packs, self.suspects).await?
                }
            };
            let number = u32::try_from(round).expect("a root has fewer packs than that");
            let share = Share { number: number % self.of, of: self.of };
            let mut references = References::new(share);
            if let Err(full) = self.current(round == 0, &indexes, &mut references).await? {
                return Ok(Err(full));
            }
            if round >= shares {
                continue;
            }
            if let Err(full) = self.others(&mut references).await? {
                return Ok(Err(full));
            }
            let (context, journal) = (self.context, self.sources.journal);
            listing::check(context, &mut references, journal, &mut seen, self.suspects).await?;
        }
        self.check_shared_packs().await?;
        seen.usage.shared_blocks = self.shared_blocks;
        Ok(Ok(seen))
    }

    /// Checks the packs of other volumes, and that the map locates the right blocks in them.
    async fn check_shared_packs(&mut self) -> Result<(), Stop> {
        if self.context.depth == Depth::References || self.shared_packs.is_empty() {
            return Ok(());
        }
        let (context, root) = (self.context, self.sources.root);
        let shared = packs::shared(context, &self.shared_packs, self.suspects).await?;
        for group in packs::groups(&shared, self.limits.index_frames) {
            let group = &shared[group];
            let indexes = packs::check(context, group, &mut self.verified.packs, self.suspects).await?;
            for (number, reference) in &root.map_pages {
                if let Some(map) = maps::load(context, root, *number, *reference, self.suspects).await? {
                    let mut counted = Counted::default();
                    let into = (&mut counted, &mut *self.suspects);
                    maps::check(context, root, (*number, *reference), &map, &indexes, into);
                }
            }
        }
        Ok(())
    }

    /// Checks the map pages of the current root, and collects what they reference.
    async fn current(
        &mut self,
        is_first: bool,
        indexes: &Indexes,
        references: &mut References,
    ) -> Result<Result<(), Full>, Stop> {
        let (context, root) = (self.context, self.sources.root);
        for (id, pack) in &root.packs {
            references.pack(*id, pack::object_bytes(pack.frames), Purpose::Live);
        }
        let mut counted = Counted::default();
        for (number, reference) in &root.map_pages {
            if reference.origin == 0 {
                references.map_page(*number, reference.id, Purpose::Live);
            }
            let Some(map) = maps::load(context, root, *number, *reference, self.suspects).await? else {
                references.unknown_pages.insert(*number);
                counted.lose();
                continue;
            };
            maps::add_references(context, root, (*number, &map), Purpose::Live, references);
            if is_first {
                self.shared_blocks += maps::shared_blocks(context, root, &map);
            }
            if let Err(full) = references.check_room(2 * self.limits.references) {
                return Ok(Err(full));
            }
            if context.depth != Depth::References {
                let into = (&mut counted, &mut *self.suspects);
                maps::check(context, root, (*number, *reference), &map, indexes, into);
            }
            if is_first
                && context.depth == Depth::Data
                && self.verified.map_pages.get(number) != Some(&reference.id)
                && maps::verify_chunks(context, root, (*number, &map), self.suspects).await?
            {
                self.verified.map_pages.insert(*number, reference.id);
            }
        }
        let journal = &self.sources.journal.chunks;
        let pages = root.geometry.pages_per_chunk();
        for (index, id, stored) in journal {
            references.chunk(*index, *id, chunk::object_bytes(pages, stored.len()), Purpose::Live);
        }
        if is_first && context.depth == Depth::Data {
            let owner = context.keys;
            let chunks = journal.iter().map(|(index, id, stored)| ChunkAt {
                owner,
                index: *index,
                id: *id,
                stored: *stored,
            });
            maps::verify_objects(context, pages, chunks.collect(), self.suspects).await?;
        }
        self.shared_packs.append(&mut counted.shared_packs);
        if is_first && context.depth != Depth::References {
            let packs = counted.check(context, root, self.suspects);
            if packs > 0 {
                self.notes.push(format!(
                    "the root counts more frames of {packs} packs as in use than are; after a loss this is \
                     so until the packs are rewritten, and costs only space"
                ));
            }
        }
        Ok(Ok(()))
    }

    /// Collects what the roots reference that were replaced, or that a snapshot or a clone keeps. The
    /// deletion of those that were replaced may have begun, so nothing of them is missed.
    async fn others(&mut self, references: &mut References) -> Result<Result<(), Full>, Stop> {
        let context = self.context;
        let Some(table) = self.sources.table else {
            references.is_root_unknown = true;
            return Ok(Ok(()));
        };
        // Those that are kept come first, because a page that two roots share is read once: a page that does
        // not exist is a loss for the one, and for the other its deletion may have begun.
        let mut roots: Vec<&KeptRoot> =
            table.roots.iter().filter(|kept| kept.root != context.head.root).collect();
        roots.sort_by_key(|kept| kept.is_retired());
        for kept in roots {
            references.roots.insert(kept.root, Purpose::Waiting);
            if mutant::is(Mutant::KeptRootSkipped) {
                continue;
            }
            let Some(root) = self.kept_root(kept, references).await? else { continue };
            for (id, pack) in &root.packs {
                references.pack(*id, pack::object_bytes(pack.frames), Purpose::Waiting);
            }
            for (number, reference) in root.map_pages.iter().filter(|(_, reference)| reference.origin == 0) {
                if !references.map_page(*number, reference.id, Purpose::Waiting) {
                    continue;
                }
                if let Some(map) = self.kept_page(kept, &root, (*number, *reference), references).await? {
                    maps::add_references(context, &root, (*number, &map), Purpose::Waiting, references);
                }
                if let Err(full) = references.check_room(2 * self.limits.references) {
                    return Ok(Err(full));
                }
            }
        }
        Ok(Ok(()))
    }

    /// Reads a map page of a root that was replaced, unless it is deleted already. If the root is kept, a
    /// page that does not exist is a loss: it is unknown what it referenced.
    async fn kept_page(
        &mut self,
        kept: &KeptRoot,
        root: &Root,
        (number, reference): (u32, MapPageRef),
        references: &mut References,
    ) -> Result<Option<LoadedMapPage>, Stop> {
        let context = self.context;
        let loss = match context.map_page(root, number, reference).await {
            Ok(page) => {
                let view = Arc::new(MapView { page, overlays: Vec::new() });
                return Ok(Some(LoadedMapPage { view, owner: context.owner(root, reference.origin) }));
            }
            Err(CheckedError::Store(store::Error::NotFound { .. })) if kept.is_retired() => return Ok(None),
            Err(CheckedError::Store(store::Error::NotFound { .. })) => {
                context.confirm(Parsed::Root(context.head.root_table)).await?;
                Loss::missing()
            }
            Err(CheckedError::Store(error)) => return Err(error.into()),
            Err(CheckedError::Damaged(error)) => Loss::damaged(error),
        };
        references.unknown_pages.insert(number);
        context.note(self.suspects, Parsed::MapPage(number, reference.id), loss, Part::Unread);
        Ok(None)
    }

    /// Reads a root that was replaced, unless it is deleted already.
    async fn kept_root(
        &mut self,
        kept: &KeptRoot,
        references: &mut References,
    ) -> Result<Option<Root>, Stop> {
        let (context, id) = (self.context, kept.root);
        let key = context.keys.root(id);
        let decode = |bytes: &[u8]| Root::decode(context.keys.sealing(), id, bytes);
        let loss = match fetch_checked(context.store(), &key, decode).await {
            Ok((root, _)) => return Ok(Some(root)),
            Err(CheckedError::Store(store::Error::NotFound { .. })) if kept.is_retired() => return Ok(None),
            Err(CheckedError::Store(store::Error::NotFound { .. })) => {
                context.confirm(Parsed::Root(context.head.root_table)).await?;
                Loss::missing()
            }
            Err(CheckedError::Store(error)) => return Err(error.into()),
            Err(CheckedError::Damaged(error)) => Loss::damaged(error),
        };
        references.is_root_unknown = true;
        context.note(self.suspects, Parsed::Root(id), loss, Part::Unread);
        Ok(None)
    }
}
