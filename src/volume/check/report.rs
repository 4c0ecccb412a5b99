//! What a check finds: damage by object and by range of the volume, and what the bucket holds.
//!
//! Must not know how anything is found. Invariant: a report has a bound, however much is damaged: at most
//! [`MAX_FINDINGS`] findings and [`MAX_ORPHANS`] keys of orphans. Of the others it has the number.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::ranges::Ranges;
use crate::volume::format::keys::{Epoch, Parsed};
use crate::volume::format::root::Space;

/// Limit on the findings that are listed.
pub const MAX_FINDINGS: usize = 1000;
/// Limit on the orphans whose keys are listed.
pub const MAX_ORPHANS: usize = 1000;

/// How much of a volume is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// What references what, and that every object exists: enough to count what the bucket holds.
    References,
    /// All of it, except the data of the volume.
    Structure,
    /// All of it, and the checksum of every byte.
    Data,
}

/// The kinds of objects of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    /// The object of its name.
    Name,
    /// The identity.
    Identity,
    /// The head.
    Head,
    /// The blocks that were read first after an opening.
    FirstReads,
    /// A root or a root table.
    Root,
    /// A map page.
    MapPage,
    /// An overlay.
    Overlay,
    /// A chunk object.
    Chunk,
    /// A pack.
    Pack,
    /// A record of the journal.
    Record,
    /// An object that is none of these.
    Unknown,
}

impl ObjectKind {
    /// Returns the kind of the object with a parsed key.
    pub(super) const fn of(parsed: Parsed) -> Self {
        match parsed {
            Parsed::Head => Self::Head,
            Parsed::FirstReads => Self::FirstReads,
            Parsed::Record(_) => Self::Record,
            Parsed::Root(_) => Self::Root,
            Parsed::MapPage(..) => Self::MapPage,
            Parsed::Chunk(..) => Self::Chunk,
            Parsed::Overlay(..) => Self::Overlay,
            Parsed::Pack(_) => Self::Pack,
        }
    }

    /// Returns the name of the kind, as docs/FORMAT.md has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Identity => "identity",
            Self::Head => "head",
            Self::FirstReads => "first reads",
            Self::Root => "root",
            Self::MapPage => "map page",
            Self::Overlay => "overlay",
            Self::Chunk => "chunk",
            Self::Pack => "pack",
            Self::Record => "record",
            Self::Unknown => "unknown",
        }
    }
}

/// What is wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// It is referenced, and it does not exist.
    Missing,
    /// It has bytes that were never written there.
    Damaged,
    /// It ends too early.
    TooShort,
    /// A count in it is not the count of what it references.
    WrongCount,
    /// It records that data was lost earlier and has not been overwritten since.
    LostEarlier,
}

impl Trouble {
    /// Returns the name of the trouble, in one word or two.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Damaged => "damaged",
            Self::TooShort => "too short",
            Self::WrongCount => "wrong count",
            Self::LostEarlier => "lost earlier",
        }
    }
}

/// What the trouble with an object costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Reading the ranges fails with EIO. All other ranges can be read.
    Eio,
    /// The volume cannot be opened.
    NotOpened,
    /// The next opening loses the changes of these ranges, and nothing tells a client so.
    Older,
    /// Everything can be read.
    Nothing,
}

/// One object that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Key of the object in the store.
    pub key: String,
    /// Kind of the object.
    pub object: ObjectKind,
    /// What is wrong with it.
    pub trouble: Trouble,
    /// What exactly was found, for people.
    pub why: String,
    /// What it costs.
    pub effect: Effect,
    /// The ranges of the volume, in bytes, that it costs.
    pub ranges: Ranges,
}

/// Objects that nothing references. They cost space and no data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orphans {
    /// How many there are.
    pub objects: u64,
    /// Their total length in bytes.
    pub bytes: u64,
    /// The keys of the first [`MAX_ORPHANS`] of them, each with the length of the object in bytes.
    pub listed: Vec<(String, u64)>,
}

/// Why an object exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The volume needs it.
    Live,
    /// It waits for its deletion: only roots or records that were replaced reference it.
    Waiting,
    /// The gateway that holds the volume made it, and nothing references it: it is being written or about to
    /// be deleted, or it was left by a request that failed.
    Unsettled,
    /// Nothing references it, and whoever made it no longer holds the volume. The sweep of a later opening
    /// deletes it, or a collection on request.
    Orphan,
}

/// Objects, and their total length in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Number of objects.
    pub objects: u64,
    /// Total length in bytes.
    pub bytes: u64,
}

/// What the bucket holds for a volume, by kind and purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    counts: BTreeMap<(ObjectKind, Purpose), Count>,
    /// The blocks that chunk objects and packs of the current root store, and how many of them a read can
    /// return.
    pub space: Space,
    /// The blocks that a read gets from the objects of other volumes. They are not in `space`.
    pub shared_blocks: u64,
}

impl Usage {
    pub(super) fn add(&mut self, kind: ObjectKind, purpose: Purpose, bytes: u64) {
        let count = self.counts.entry((kind, purpose)).or_default();
        count.objects += 1;
        count.bytes = count.bytes.saturating_add(bytes);
    }

    pub(super) fn extend(&mut self, other: &Self) {
        for (key, count) in &other.counts {
            let to = self.counts.entry(*key).or_default();
            to.objects += count.objects;
            to.bytes = to.bytes.saturating_add(count.bytes);
        }
    }

    /// Returns the kinds of which an object exists, in order.
    #[must_use]
    pub fn kinds(&self) -> Vec<ObjectKind> {
        let mut kinds: Vec<ObjectKind> = self.counts.keys().map(|(kind, _)| *kind).collect();
        kinds.dedup();
        kinds
    }

    /// Returns the objects of a kind that exist for a purpose.
    #[must_use]
    pub fn of(&self, kind: ObjectKind, purpose: Purpose) -> Count {
        self.counts.get(&(kind, purpose)).copied().unwrap_or_default()
    }

    /// Returns the sum of those objects that `is_counted` accepts.
    #[must_use]
    pub fn sum(&self, is_counted: impl Fn(ObjectKind, Purpose) -> bool) -> Count {
        let counted = self.counts.iter().filter(|((kind, purpose), _)| is_counted(*kind, *purpose));
        counted.fold(Count::default(), |sum, (_, count)| Count {
            objects: sum.objects + count.objects,
            bytes: sum.bytes.saturating_add(count.bytes),
        })
    }
}

/// The result of a check.
#[derive(Clone, Debug)]
pub struct Report {
    /// Name of the volume.
    pub name: String,
    /// Uuid of the volume, or `None` if the object of its name cannot be read.
    pub volume: Option<Uuid>,
    /// Size of the volume in bytes, or `None` if its root cannot be read.
    pub size_bytes: Option<u64>,
    /// Epoch of the last writer, or `None` if the head cannot be read.
    pub epoch: Option<Epoch>,
    /// How much was checked.
    pub depth: Depth,
    /// What is not as it should be, by key.
    pub findings: Vec<Finding>,
    /// How many more objects are not as they should be.
    pub omitted_findings: u64,
    /// All ranges of the volume, in bytes, that the findings cost.
    pub ranges: Ranges,
    /// Objects that nothing references.
    pub orphans: Orphans,
    /// What the bucket holds.
    pub usage: Usage,
    /// What is worth knowing and is no damage, for people.
    pub notes: Vec<String>,
    /// Why not everything was checked, if so.
    pub incomplete: Option<String>,
    /// Number of requests to the store. Requests that were repeated after a failure count once.
    pub requests: u64,
    /// Number of bytes that were read.
    pub read_bytes: u64,
}

impl Report {
    pub(super) fn new(name: &str, depth: Depth) -> Self {
        Self {
            name: name.to_owned(),
            volume: None,
            size_bytes: None,
            epoch: None,
            depth,
            findings: Vec::new(),
            omitted_findings: 0,
            ranges: Ranges::default(),
            orphans: Orphans::default(),
            usage: Usage::default(),
            notes: Vec::new(),
            incomplete: None,
            requests: 0,
            read_bytes: 0,
        }
    }

    /// Whether anything is not as it should be. Orphans are no damage.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        !self.findings.is_empty()
    }
}
