//! What differs between two contents of a disk, as their maps say. No data is read.
//!
//! Owns the comparison of two roots, and must not know what is done with its result. A block is the same if
//! both maps locate it in the same place, because a stored block never changes. Map pages that both roots
//! share are not read. Invariants: every byte that differs is reported. What the maps cannot show to be the
//! same is reported too. What is held in memory does not depend on the size of the disks: two map pages, and
//! the changes of one chunk.
//!
//! Why a chunk with the same birth is the same, wherever its blocks are: the birth is the commit at which the
//! chunk last changed, no two commits of a volume have the same slot, and a volume that is restored goes on
//! with later ones. What a clone has from its parent is born at the start, once the map page is the clone's
//! own. Until then the births are those of the parent, so they show nothing while a root has origins.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use super::disk::Volume;
use super::environment::Environment;
use super::error::{DiffError, Error};
use super::format::geometry::{
    BLOCK_BYTES, BLOCKS_PER_PAGE, ChunkIndex, Geometry, MAP_PAGE_ENTRIES, PageIndex,
};
use super::format::interval::IntervalMap;
use super::format::keys::{Keys, ObjectId};
use super::format::map::Entry;
use super::format::root::{Root, Stretch};
use super::options::Options;
use super::read::base::{self, LoadedMapPage, Located, Mapped, located};
use super::snapshot::SnapshotDisk;
use crate::mutant::{self, Mutant};

/// One of the two contents that are compared.
#[derive(Clone, Debug)]
pub struct Side {
    env: Environment,
    keys: Keys,
    root: Arc<Root>,
    /// The snapshot that keeps the root. Without one, the volume is open.
    snapshot: Option<Arc<SnapshotDisk>>,
}

/// A range of the disk that may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The bytes of the disk.
    pub range: Range<u64>,
    /// Whether the second content is known to be zeros there.
    pub zero: bool,
}

/// A part of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Size of the first content in bytes.
    pub before_bytes: u64,
    /// Size of the second content in bytes.
    pub after_bytes: u64,
    /// The ranges that may differ.
    pub changes: Vec<Change>,
    /// Offset at which the next part begins, unless this is the last one.
    pub next_offset: Option<u64>,
}

/// Compares two snapshots of a volume from an offset on, as [`Diff::page`] does.
///
/// # Errors
/// If a snapshot does not exist, or if the store fails.
pub async fn page(
    env: &Environment,
    options: &Options,
    volume: Uuid,
    (before, after): (&str, &str),
    offset: u64,
    most: usize,
) -> Result<Page, DiffError> {
    let open = |name| SnapshotDisk::open(env, options, volume, name);
    let (before, after) = (open(before).await?, open(after).await?);
    let diff = Diff::between(Side::of_snapshot(&before), Side::of_snapshot(&after))?;
    Ok(diff.page(offset, most).await?)
}

/// A part of the second content, and whether it may differ from the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portion {
    /// Length of the part in bytes.
    pub length: u64,
    /// Whether it may differ.
    pub may_differ: bool,
}

impl Portion {
    /// Appends a part, which may be empty. Merges neighbours that are alike.
    fn push(to: &mut Vec<Self>, length: u64, may_differ: bool) {
        match to.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.may_differ == may_differ => last.length += length,
            _ => to.push(Self { length, may_differ }),
        }
    }
}

/// Says of a range of a snapshot which parts may differ from another snapshot of the same volume, as
/// [`Diff::portions`] does.
///
/// # Errors
/// If the range is not within the second snapshot, if one of the two was deleted, if they are not related,
/// or if the store fails.
pub async fn portions(
    (before, after): (&Arc<SnapshotDisk>, &Arc<SnapshotDisk>),
    offset: u64,
    length: u64,
    most: usize,
) -> Result<Vec<Portion>, DiffError> {
    let range = after.range(offset, length)?;
    before.check_kept()?;
    let diff = Diff::between(Side::of_snapshot(before), Side::of_snapshot(after))?;
    Ok(diff.portions(range, most).await?)
}

/// Limit on the map pages that a page of a comparison loads of each side.
const PAGE_LOADS: usize = 64;
/// Limit on the chunks that are compared for one call of [`Diff::portions`]. So it loads at most as many
/// map pages of each side as these chunks have.
const PORTIONS_CHUNKS: u64 = 4096;
/// Limit on the bytes of these chunks. With larger ones, fewer are compared.
const PORTIONS_BYTES: u64 = 16 << 30;

/// What one side has for a map page.
#[derive(Clone, Debug)]
enum Half {
    /// Every byte is zero.
    Zero,
    /// What the map page says.
    Page(LoadedMapPage),
    /// The map page is lost.
    Unknown,
}

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nowhere: it reads as zeros.
    Zero,
    /// In a chunk object, at its own place.
    Chunk(Uuid, ObjectId),
    /// In a frame of a pack.
    Frame(Uuid, ObjectId, u16),
    /// It cannot be read, or only in part.
    Unknown,
}

impl Place {
    /// Whether a block that is in one of these places on each side may differ.
    fn differs(self, other: Self) -> bool {
        self != other || self == Self::Unknown
    }
}

impl Side {
    /// The content of a snapshot.
    #[must_use]
    pub fn of_snapshot(disk: &Arc<SnapshotDisk>) -> Self {
        Self {
            env: disk.environment().clone(),
            keys: disk.keys(),
            root: Arc::clone(disk.root()),
            snapshot: Some(Arc::clone(disk)),
        }
    }

    /// The content of an open volume. Makes a checkpoint, so that the map contains everything that was
    /// written. Nobody may write to the volume while it is compared.
    ///
    /// # Errors
    /// If the volume stopped.
    pub async fn of_volume(volume: &Volume) -> Result<Self, Error> {
        volume.checkpoint().await?;
        let (env, keys) = (volume.environment().clone(), Keys::new(volume.id()));
        Ok(Self { env, keys, root: volume.root(), snapshot: None })
    }

    /// A disk like another one that consists of one hole.
    fn hole(like: &Self) -> Self {
        let root = Root {
            id: like.root.id,
            commit: like.root.commit,
            size_bytes: like.root.size_bytes,
            geometry: like.root.geometry,
            origins: Vec::new(),
            map_pages: BTreeMap::new(),
            packs: BTreeMap::new(),
            zeroed: IntervalMap::default(),
        };
        Self { env: like.env.clone(), keys: like.keys, root: Arc::new(root), snapshot: None }
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.root.size_bytes
    }

    /// The volumes whose objects the content may have.
    fn owners(&self) -> impl Iterator<Item = Uuid> + '_ {
        std::iter::once(self.keys.volume()).chain(self.root.origins.iter().copied())
    }

    /// The owner of a map page that the root references.
    fn owner(&self, origin: u16) -> Uuid {
        match origin {
            0 => self.keys.volume(),
            other => self.root.origins[usize::from(other) - 1],
        }
    }

    /// Loads what the root has for a map page.
    async fn load(&self, number: u32) -> Result<Half, Error> {
        let loaded = base::map_page(&self.env, self.keys, self.root.geometry, &self.root, number).await;
        match loaded {
            Ok(Mapped::Holes | Mapped::Zeroed(_)) => Ok(Half::Zero),
            Ok(Mapped::Page(map)) => {
                let lost = map.view.overlays.iter().find_map(|overlay| overlay.overlay.as_ref().err());
                match lost.cloned() {
                    Some(error) => self.unless_deleted(error).await.map(|()| Half::Page(map)),
                    None => Ok(Half::Page(map)),
                }
            }
            Err(error) if error.is_loss() => self.unless_deleted(error).await.map(|()| Half::Unknown),
            Err(error) => Err(error),
        }
    }

    /// Returns an error if an object is gone because the snapshot was deleted. Otherwise the object is lost,
    /// and what it located is unknown.
    async fn unless_deleted(&self, error: Error) -> Result<(), Error> {
        match &self.snapshot {
            None => Ok(()),
            Some(disk) => match disk.explained(error).await {
                error if error.is_loss() => Ok(()),
                error => Err(error),
            },
        }
    }
}

/// A comparison. It covers the size of the second content.
#[derive(Debug)]
pub struct Diff {
    before: Side,
    after: Side,
    /// Whether equal births show that a chunk is the same.
    births_agree: bool,
    /// Where the comparison began. It is not always the start of a chunk.
    from: u64,
    /// How far the disk has been compared.
    at: u64,
    /// How many map pages it may still load.
    loads_left: usize,
    /// The changes that are not returned yet. The next one may continue the last of them.
    found: VecDeque<Change>,
    /// The map page that is being compared, and what both sides have for it.
    loaded: Option<(u32, Half, Half)>,
}

impl Diff {
    /// Starts a comparison of two contents of a volume, or of volumes of which one is a clone of the other or
    /// both are clones of a third. Beyond its end, the first content counts as zeros.
    ///
    /// # Errors
    /// If the two can have no objects in common.
    pub fn between(before: Side, after: Side) -> Result<Self, DiffError> {
        let is_related = before.owners().any(|owner| after.owners().any(|other| owner == other));
        if !is_related || before.root.geometry != after.root.geometry {
            return Err(DiffError::Unrelated);
        }
        Ok(Self::of(before, after))
    }

    /// Starts a comparison of a disk that consists of one hole with a content. Every range that is not listed
    /// reads as zeros.
    #[must_use]
    pub fn of_all(content: Side) -> Self {
        Self::of(Side::hole(&content), content)
    }

    fn of(before: Side, after: Side) -> Self {
        let is_alone = |side: &Side| side.root.origins.is_empty();
        let births_agree = before.keys == after.keys && is_alone(&before) && is_alone(&after);
        let (found, loads_left) = (VecDeque::new(), usize::MAX);
        Self { before, after, births_agree, from: 0, at: 0, loads_left, found, loaded: None }
    }

    /// How far the disk has been compared, in bytes from its start.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Returns the next range that may differ, in order of offset. Neighbours are merged if both are zeros in
    /// the second content, or neither is.
    ///
    /// # Errors
    /// If a snapshot was deleted, if the volume stopped, or if the store fails.
    pub async fn next_change(&mut self) -> Result<Option<Change>, Error> {
        while self.found.len() < 2 && self.at < self.after.size_bytes() && self.loads_left > 0 {
            self.step().await?;
        }
        Ok(self.found.pop_front())
    }

    /// Compares from an offset on, until a number of ranges is found or much was read. A change that an end
    /// of the page divides is listed in parts.
    ///
    /// # Errors
    /// As [`Diff::next_change`].
    pub async fn page(mut self, offset: u64, most: usize) -> Result<Page, Error> {
        let (before_bytes, after_bytes) = (self.before.size_bytes(), self.after.size_bytes());
        self.from = after_bytes.min(offset - offset % BLOCK_BYTES);
        (self.at, self.loads_left) = (self.from, PAGE_LOADS);
        let mut changes = Vec::new();
        while changes.len() < most
            && let Some(change) = self.next_change().await?
        {
            changes.push(change);
        }
        let next = self.found.front().map_or(self.at, |change| change.range.start);
        let next_offset = Some(next).filter(|next| *next < after_bytes);
        Ok(Page { before_bytes, after_bytes, changes, next_offset })
    }

    /// Says of a range of the second content which parts may differ, as at most `most` parts, the first of
    /// which begins with the range. Neighbours are not alike. They may end before the range does, because a
    /// call compares a bounded number of chunks, but they are never empty unless the range is.
    ///
    /// # Errors
    /// As [`Diff::next_change`].
    pub async fn portions(mut self, range: Range<u64>, most: usize) -> Result<Vec<Portion>, Error> {
        let end = range.end.min(self.after.size_bytes());
        (self.from, self.at) = (range.start, range.start);
        let mut portions = Vec::new();
        let mut told = range.start;
        for _ in 0..PORTIONS_CHUNKS.min(PORTIONS_BYTES / self.geometry().chunk_bytes()) {
            if told >= end || portions.len() > most {
                break;
            }
            self.step().await?;
            for Change { range: part, .. } in self.found.drain(..) {
                let (start, stop) = (part.start.min(end), part.end.min(end));
                Portion::push(&mut portions, start - told, false);
                Portion::push(&mut portions, stop - start, true);
                told = stop;
            }
            let compared = self.at.min(end);
            Portion::push(&mut portions, compared - told, false);
            told = compared;
        }
        portions.truncate(most);
        Ok(portions)
    }

    fn geometry(&self) -> Geometry {
        self.after.root.geometry
    }

    /// Compares the next chunk, or passes over map pages that are the same.
    async fn step(&mut self) -> Result<(), Error> {
        let (geometry, size) = (self.geometry(), self.after.size_bytes());
        let index = geometry.chunk_at(self.at);
        let number = index.map_page();
        let is_loaded = self.loaded.as_ref().is_some_and(|(loaded, ..)| *loaded == number);
        if !is_loaded {
            let ((before, one), (after, other)) =
                (self.before.root.stretch(number), self.after.root.stretch(number));
            if self.is_shared(before, after) {
                self.at = size.min(u64::from(one.min(other)) * geometry.map_page_bytes());
                // Nothing is read for it, so nothing else would let other tasks run.
                tokio::task::coop::consume_budget().await;
                return Ok(());
            }
            self.loads_left -= 1;
            let halves = (self.before.load(number).await?, self.after.load(number).await?);
            self.loaded = Some((number, halves.0, halves.1));
        }
        self.compare(index);
        self.at = size.min(geometry.chunk_range(index).end);
        if index.slot() % YIELD_CHUNKS == 0 {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Whether a map page has the same content on both sides, as far as the roots say.
    fn is_shared(&self, before: Stretch, after: Stretch) -> bool {
        match (before, after) {
            (Stretch::Page(before), Stretch::Page(after)) => {
                before.id == after.id && self.before.owner(before.origin) == self.after.owner(after.origin)
            }
            (Stretch::Page(_), _) | (_, Stretch::Page(_)) => false,
            (Stretch::Holes | Stretch::Zeroed(_), Stretch::Holes | Stretch::Zeroed(_)) => true,
        }
    }

    /// Compares a chunk of the map page that is loaded.
    fn compare(&mut self, index: ChunkIndex) {
        let geometry = self.geometry();
        let Some((_, before, after)) = &self.loaded else { return };
        if is_same(before, after, index.slot(), self.births_agree) {
            return;
        }
        let (before, after) = (places(before, geometry, index.slot()), places(after, geometry, index.slot()));
        let start = geometry.chunk_range(index).start;
        for (block, (before, after)) in (0..).zip(before.into_iter().zip(after)) {
            let is_zero = after == Place::Zero;
            if !before.differs(after) || is_zero && mutant::is(Mutant::DiffMissesZeros) {
                continue;
            }
            let first = start + block * BLOCK_BYTES;
            self.push(first..first + BLOCK_BYTES, is_zero);
        }
    }

    /// Adds a range that may differ, as far as it is within the disk.
    fn push(&mut self, range: Range<u64>, zero: bool) {
        let range = range.start.max(self.from)..range.end.min(self.after.size_bytes());
        if range.is_empty() {
            return;
        }
        match self.found.back_mut() {
            Some(last) if last.range.end == range.start && last.zero == zero => last.range.end = range.end,
            _ => self.found.push_back(Change { range, zero }),
        }
    }
}

/// After as many chunks, a comparison lets other tasks run.
const YIELD_CHUNKS: u16 = 64;
const _: () = assert!(MAP_PAGE_ENTRIES.is_multiple_of(64), "a map page begins with a pause");

/// Whether the entries alone show that a chunk is the same on both sides.
fn is_same(before: &Half, after: &Half, slot: u16, births_agree: bool) -> bool {
    let entry = |half: &Half| match half {
        Half::Zero => Some(None),
        Half::Page(map) => Some(map.entry(slot)),
        Half::Unknown => None,
    };
    let is_intact = |entry: &Entry| entry.damage.is_empty() && entry.lost.is_empty();
    match (entry(before), entry(after)) {
        (Some(None), Some(None)) => true,
        (Some(Some(before)), Some(Some(after))) => {
            let is_born_alike = before.birth.is_some() && before.birth == after.birth;
            is_born_alike
                && (births_agree || mutant::is(Mutant::DiffTrustsBirths))
                && is_intact(&before)
                && is_intact(&after)
        }
        _ => false,
    }
}

/// Returns where each block of a chunk is.
fn places(half: &Half, geometry: Geometry, slot: u16) -> Vec<Place> {
    let blocks = u32::try_from(geometry.blocks_per_chunk()).expect("at most 8,192");
    let all = |place| vec![place; length(blocks)];
    let map = match half {
        Half::Zero => return all(Place::Zero),
        Half::Unknown => return all(Place::Unknown),
        Half::Page(map) => map,
    };
    let Some(entry) = map.entry(slot) else { return all(Place::Zero) };
    let mut places: Vec<Place> = (0..blocks).map(|block| below(map, &entry, block)).collect();
    if entry.overlaid > 0 {
        let start = u32::from(slot) * blocks;
        for (range, found) in located(&map.view.overlays, slot, start..start + blocks) {
            for block in range.clone() {
                places[length(block - start)] = match &found {
                    Located::Zero(_) => Place::Zero,
                    Located::Unknown(_) => Place::Unknown,
                    Located::Frames(owner, id, first) => {
                        let frame = u32::from(*first) + (block - range.start);
                        Place::Frame(owner.volume(), *id, u16::try_from(frame).expect("of a pack"))
                    }
                };
            }
        }
    }
    for damage in &entry.damage {
        for block in 0..BLOCKS_PER_PAGE {
            let at = u64::from(block) * BLOCK_BYTES;
            if !damage.spares(at..at + BLOCK_BYTES) {
                places[length(damage.page.first_block() + block)] = Place::Unknown;
            }
        }
    }
    places
}

/// Returns where a block of a chunk is if no overlay says so.
fn below(map: &LoadedMapPage, entry: &Entry, block: u32) -> Place {
    let page = PageIndex::of_block(block);
    match &entry.base {
        Some(base) if base.stored.contains(page) => Place::Chunk(map.origin(base.origin).volume(), base.id),
        _ if entry.lost.contains(page) => Place::Unknown,
        _ => Place::Zero,
    }
}

/// A number of blocks of a chunk, as a length in memory.
fn length(blocks: u32) -> usize {
    usize::try_from(blocks).expect("at most 8,192")
}
