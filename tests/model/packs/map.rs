//! What a checkpoint makes, as values: packs, chunk objects, overlays, map pages, roots; where a root locates
//! a block; and how a new root follows from an old one and the changes of the journal.
//!
//! Every object has the number of the checkpoint that made it, and its content is fixed when it is named. A
//! checkpoint that fails is given up: another has another number. Whether an object exists is not known here.
//! This file must not know what has to hold: that is in [`super`]. Invariant: without a broken rule,
//! [`History::fold`] follows docs/FORMAT.md, and shares nothing with the code that it describes.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use super::scope::{Broken, Scope};

/// Blocks of the volume, two in each chunk.
pub(super) const BLOCKS: usize = 4;
const BLOCKS_OF_CHUNK: usize = 2;
pub(super) const CHUNKS: usize = BLOCKS / BLOCKS_OF_CHUNK;
/// Limit on the map pages of the volume.
pub(super) const PAGES: usize = 2;
/// Limit on the overlays of a map page.
const OVERLAYS: usize = 2;

/// The bytes of a block: 0 for zeros, otherwise the number of the change that wrote them.
pub(super) type Value = u8;

/// The number of a checkpoint.
pub(super) type Number = u8;

/// Returns the chunk of a block.
pub(super) fn chunk_of(block: usize) -> usize {
    block / BLOCKS_OF_CHUNK
}

/// A flushed change of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Change {
    pub block: usize,
    pub value: Value,
}

/// The kind of an object. A checkpoint makes at most one object of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Pack,
    Chunk,
    /// The overlay of a map page with the changes of the checkpoint.
    Overlay(usize),
    /// An overlay of a map page that replaces two.
    Merged(usize),
    Map(usize),
    Root,
    Table,
}

/// Every kind, in the order in which a checkpoint sends them.
const KINDS: [Kind; 10] = [
    Kind::Pack,
    Kind::Chunk,
    Kind::Overlay(0),
    Kind::Overlay(1),
    Kind::Merged(0),
    Kind::Merged(1),
    Kind::Map(0),
    Kind::Map(1),
    Kind::Root,
    Kind::Table,
];

/// The name of an object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Object {
    pub by: Number,
    pub kind: Kind,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}-{}", self.kind, self.by)
    }
}

/// A set of objects of at most 12 checkpoints.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Objects(u128);

impl Objects {
    fn bit(object: Object) -> u128 {
        let kind = KINDS.iter().position(|kind| *kind == object.kind).expect("a listed kind");
        1 << (usize::from(object.by) * KINDS.len() + kind)
    }

    pub(super) fn contains(self, object: Object) -> bool {
        self.0 & Self::bit(object) != 0
    }

    pub(super) fn insert(&mut self, object: Object) {
        self.0 |= Self::bit(object);
    }

    pub(super) fn remove(&mut self, object: Object) {
        self.0 &= !Self::bit(object);
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the objects in the order in which they were named.
    pub(super) fn iter(self) -> impl Iterator<Item = Object> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let place = usize::try_from(left.trailing_zeros()).expect("at most 128");
            left &= left.wrapping_sub(1);
            let by = Number::try_from(place / KINDS.len()).expect("at most 12");
            (place < 128).then(|| Object { by, kind: KINDS[place % KINDS.len()] })
        })
    }
}

/// Returns the objects that a checkpoint can make.
pub(super) fn all_of(by: Number) -> Objects {
    KINDS.into_iter().map(|kind| Object { by, kind }).collect()
}

impl FromIterator<Object> for Objects {
    fn from_iter<I: IntoIterator<Item = Object>>(objects: I) -> Self {
        let mut set = Self::default();
        objects.into_iter().for_each(|object| set.insert(object));
        set
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Where an overlay or a map page locates a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Zeros,
    /// The block's frame in the pack of this checkpoint.
    Pack(Number),
    /// The block's frame in the chunk object of this checkpoint.
    Chunk(Number),
}

/// An overlay as its map page references it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Overlay {
    /// Its object, or `None` if it is embedded in the map page.
    pub object: Option<Object>,
    places: [Option<Place>; BLOCKS],
    /// The chunks that it applies to.
    applies: [bool; CHUNKS],
}

impl Overlay {
    /// Returns where the overlay locates a block, if it applies to the chunk and has the block.
    fn place(&self, block: usize) -> Option<Place> {
        self.places[block].filter(|_| self.applies[chunk_of(block)])
    }
}

/// The content of a map page.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Page {
    /// The checkpoint that made the chunk object of each chunk.
    bases: [Option<Number>; CHUNKS],
    /// Oldest first.
    overlays: Vec<Overlay>,
}

impl Page {
    fn locate(&self, block: usize) -> Place {
        let newest = self.overlays.iter().rev().find_map(|overlay| overlay.place(block));
        newest.unwrap_or_else(|| self.bases[chunk_of(block)].map_or(Place::Zeros, Place::Chunk))
    }

    /// Returns the chunk objects that the page references.
    pub(super) fn chunks(&self) -> Objects {
        self.bases.iter().flatten().map(|by| Object { by: *by, kind: Kind::Chunk }).collect()
    }

    /// Returns the overlay objects that the page references.
    pub(super) fn overlays(&self) -> Objects {
        self.overlays.iter().filter_map(|overlay| overlay.object).collect()
    }
}

/// The content of a root.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Root {
    /// Number of changes that it contains.
    pub commit: usize,
    /// The checkpoint that made each map page.
    pub pages: [Option<Number>; PAGES],
    /// The packs in use, and how many frames of each are.
    pub live: BTreeMap<Number, u8>,
}

impl Root {
    pub(super) fn packs(&self) -> Objects {
        self.live.keys().map(|by| Object { by: *by, kind: Kind::Pack }).collect()
    }

    fn lower(&mut self, pack: Number) {
        if let Some(live) = self.live.get_mut(&pack) {
            *live = live.saturating_sub(1);
        }
    }
}

/// The content of every object that one checkpoint makes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Checkpoint {
    /// Epoch of the gateway that makes it.
    pub epoch: u8,
    /// The frames of its pack.
    pub pack: [Option<Value>; BLOCKS],
    /// The chunk that it rewrites, and the bytes of the chunk object.
    pub chunk: Option<(usize, [Value; BLOCKS_OF_CHUNK])>,
    /// The map pages that it makes.
    pub pages: [Option<Page>; PAGES],
    pub root: Root,
    /// The root table: the checkpoints whose roots are kept, the current last. Each root's parent is the one
    /// before it.
    pub kept: Vec<Number>,
}

impl Checkpoint {
    /// Returns the objects of this checkpoint, in the order in which they are sent.
    pub(super) fn objects(&self, by: Number) -> Vec<Object> {
        let overlays =
            self.pages.iter().flatten().map(Page::overlays).fold(Objects::default(), Objects::union);
        let is_made = |kind: Kind| match kind {
            Kind::Pack => self.pack.iter().any(Option::is_some),
            Kind::Chunk => self.chunk.is_some_and(|(_, values)| values.iter().any(|value| *value != 0)),
            Kind::Overlay(_) | Kind::Merged(_) => overlays.contains(Object { by, kind }),
            Kind::Map(page) => self.pages[page].is_some() && self.root.pages[page] == Some(by),
            Kind::Root | Kind::Table => true,
        };
        KINDS.into_iter().filter(|kind| is_made(*kind)).map(|kind| Object { by, kind }).collect()
    }
}

/// Which of two overlays in excess are merged: neighbours in age only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    Oldest,
    Newest,
}

/// What a checkpoint does besides folding the changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// The chunk that it rewrites as a whole.
    pub chunk: Option<usize>,
    /// The pack whose frames in use it moves to its own.
    pub pack: Option<Number>,
    pub merge: Merge,
}

/// Every checkpoint that was begun, by number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct History(Vec<Rc<Checkpoint>>);

impl History {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds a checkpoint and returns its number.
    pub(super) fn add(&mut self, checkpoint: Checkpoint) -> Number {
        self.0.push(Rc::new(checkpoint));
        Number::try_from(self.0.len() - 1).expect("few checkpoints")
    }

    pub(super) fn of(&self, number: Number) -> &Checkpoint {
        &self.0[usize::from(number)]
    }

    pub(super) fn of_mut(&mut self, number: Number) -> &mut Checkpoint {
        Rc::make_mut(&mut self.0[usize::from(number)])
    }

    /// Forgets the content of a checkpoint, since it does not matter any more.
    pub(super) fn forget(&mut self, number: Number) {
        self.0[usize::from(number)] = Rc::default();
    }

    pub(super) fn root(&self, number: Number) -> &Root {
        &self.of(number).root
    }

    /// Returns a map page of a root, if the root has it.
    pub(super) fn page(&self, root: Number, page: usize) -> Option<&Page> {
        let by = self.root(root).pages[page]?;
        self.of(by).pages[page].as_ref()
    }

    /// Returns where a root locates a block.
    pub(super) fn locate(&self, scope: &Scope, root: Number, block: usize) -> Place {
        let page = self.page(root, scope.page_of(chunk_of(block)));
        page.map_or(Place::Zeros, |page| page.locate(block))
    }

    /// Returns the bytes of a block at a place; `None` if the object has no frame for it.
    pub(super) fn value(&self, place: Place, block: usize) -> Option<Value> {
        match place {
            Place::Zeros => Some(0),
            Place::Pack(by) => self.of(by).pack[block],
            Place::Chunk(by) => match self.of(by).chunk {
                Some((chunk, values)) if chunk == chunk_of(block) => Some(values[block % BLOCKS_OF_CHUNK]),
                _ => None,
            },
        }
    }

    /// Returns the number of frames of a pack.
    pub(super) fn frames(&self, pack: Number) -> u8 {
        u8::try_from(self.of(pack).pack.iter().flatten().count()).expect("few blocks")
    }

    /// Returns the checkpoint that folds these changes into an old root: all of them, and nothing newer.
    pub(super) fn fold(
        &self,
        scope: &Scope,
        old: Number,
        changes: &[Change],
        plan: Plan,
        epoch: u8,
    ) -> Checkpoint {
        let by = Number::try_from(self.len()).expect("few checkpoints");
        let mut root = self.root(old).clone();
        let mut newest = [None; BLOCKS];
        for change in &changes[root.commit..] {
            newest[change.block] = Some(change.value);
        }
        root.commit = changes.len();
        let is_rewritten = |block: usize| plan.chunk == Some(chunk_of(block));
        // What goes to the pack and to the new overlays.
        let mut moved: [Option<Value>; BLOCKS] =
            std::array::from_fn(|block| newest[block].filter(|_| !is_rewritten(block)));
        for block in 0..BLOCKS {
            let place = self.locate(scope, old, block);
            if let Some(pack) = plan.pack
                && let Some(value) = self.value(Place::Pack(pack), block)
                && (place == Place::Pack(pack) || scope.breaks(Broken::RelocationMovesDead))
                && !is_rewritten(block)
                && (moved[block].is_none() || scope.breaks(Broken::RelocationWins))
            {
                moved[block] = Some(value);
            }
            if let Place::Pack(pack) = place
                && (moved[block].is_some() || is_rewritten(block))
            {
                let forgotten = if is_rewritten(block) {
                    Broken::CountForgetsConsolidated
                } else if newest[block].is_none() {
                    Broken::CountForgetsRelocated
                } else if newest[block] == Some(0) {
                    Broken::CountForgetsZeroed
                } else {
                    Broken::CountForgetsReplaced
                };
                if !scope.breaks(forgotten) {
                    root.lower(pack);
                }
            }
        }
        let pack = moved.map(|value| value.filter(|value| *value != 0));
        let chunk = plan.chunk.map(|chunk| (chunk, self.rewritten(scope, old, &newest, chunk)));
        let mut pages = [const { None }; PAGES];
        for number in 0..scope.pages {
            let is_here = |block: usize| scope.page_of(chunk_of(block)) == number;
            if (0..BLOCKS).any(|block| is_here(block) && (moved[block].is_some() || is_rewritten(block))) {
                let places = std::array::from_fn(|block| {
                    let value = moved[block].filter(|_| is_here(block));
                    value.map(|value| if value == 0 { Place::Zeros } else { Place::Pack(by) })
                });
                let page = self.fold_page(scope, (old, &mut root), number, places, chunk, plan.merge);
                let is_empty = page.overlays.is_empty() && page.bases == [None; CHUNKS];
                root.pages[number] = (!is_empty).then_some(by);
                pages[number] = Some(page);
            }
        }
        let frames = u8::try_from(pack.iter().flatten().count()).expect("few blocks");
        root.live.insert(by, frames);
        root.live.retain(|_, live| *live > 0);
        Checkpoint { epoch, pack, chunk, pages, root, kept: Vec::new() }
    }

    /// Returns the bytes of a chunk in an old root with the newest values instead of the old.
    pub(super) fn rewritten(
        &self,
        scope: &Scope,
        old: Number,
        newest: &[Option<Value>; BLOCKS],
        chunk: usize,
    ) -> [Value; BLOCKS_OF_CHUNK] {
        std::array::from_fn(|place| {
            let block = chunk * BLOCKS_OF_CHUNK + place;
            let before = || self.value(self.locate(scope, old, block), block).expect("a located frame");
            newest[block].unwrap_or_else(before)
        })
    }

    /// Returns a map page of the new root.
    fn fold_page(
        &self,
        scope: &Scope,
        (old, root): (Number, &mut Root),
        number: usize,
        places: [Option<Place>; BLOCKS],
        chunk: Option<(usize, [Value; BLOCKS_OF_CHUNK])>,
        merge: Merge,
    ) -> Page {
        let by = Number::try_from(self.len()).expect("few checkpoints");
        let mut page = self.page(old, number).cloned().unwrap_or_default();
        if let Some((chunk, values)) = chunk.filter(|(chunk, _)| scope.page_of(*chunk) == number) {
            page.bases[chunk] = values.iter().any(|value| *value != 0).then_some(by);
            let count = page.overlays.len();
            for (place, overlay) in page.overlays.iter_mut().enumerate() {
                let is_kept = match scope.broken {
                    Some(Broken::ClearsNoOverlay) => true,
                    Some(Broken::ClearsNewestOverlay) => place + 1 < count,
                    Some(Broken::ClearsOldestOverlay) => place > 0,
                    _ => false,
                };
                overlay.applies[chunk] &= is_kept;
            }
            page.overlays.retain(|overlay| overlay.applies != [false; CHUNKS]);
        }
        if places != [None; BLOCKS] {
            let applies = std::array::from_fn(|chunk| {
                (0..BLOCKS).any(|block| chunk_of(block) == chunk && places[block].is_some())
            });
            let is_embedded = scope.embeds && places.iter().flatten().count() == 1;
            let object = (!is_embedded).then_some(Object { by, kind: Kind::Overlay(number) });
            let overlay = Overlay { object, places, applies };
            let at = if scope.breaks(Broken::NewestOverlayFirst) { 0 } else { page.overlays.len() };
            page.overlays.insert(at, overlay);
        }
        if page.overlays.len() > OVERLAYS {
            let (older, newer) = match merge {
                _ if scope.breaks(Broken::MergesAcross) => (0, 2),
                Merge::Oldest => (0, 1),
                Merge::Newest => (1, 2),
            };
            let mut merged = merged(scope, &page.overlays[older], &page.overlays[newer], root);
            merged.object = Some(Object { by, kind: Kind::Merged(number) });
            page.overlays[newer] = merged;
            page.overlays.remove(older);
        }
        page
    }
}

/// Returns one overlay for two. An entry counts only if its overlay applies to the chunk, and then the newer.
fn merged(scope: &Scope, older: &Overlay, newer: &Overlay, root: &mut Root) -> Overlay {
    let mut merged = newer.clone();
    for (chunk, applies) in merged.applies.iter_mut().enumerate() {
        *applies |= older.applies[chunk];
    }
    for block in 0..BLOCKS {
        let revived = older.places[block].filter(|_| scope.breaks(Broken::MergeRevives));
        let (below, above) = (older.place(block).or(revived), newer.place(block));
        merged.places[block] =
            if scope.breaks(Broken::MergeKeepsOlder) { below.or(above) } else { above.or(below) };
        if let (Some(Place::Pack(pack)), Some(_)) = (below, above)
            && scope.breaks(Broken::CountLoweredByMerge)
        {
            root.lower(pack);
        }
        if merged.places[block] == Some(Place::Zeros) && scope.breaks(Broken::MergeDropsZeros) {
            merged.places[block] = None;
        }
    }
    if scope.breaks(Broken::MergeDropsEntry)
        && let Some(last) = merged.places.iter_mut().rev().find(|place| place.is_some())
    {
        *last = None;
    }
    merged
}
