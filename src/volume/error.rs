//! Errors of the volume layer. Each variant implies what the caller should do.
//!
//! Must not know about errno values or NBD: the gateway chooses the errno. Invariant: each variant has one
//! kind of cause and calls for one reaction.

use super::format::codec::DecodeError;
use super::format::geometry::GeometryError;
use super::format::stream::Digest;
use crate::store;

/// Why a command on an open volume failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The range is not within the volume. This is the caller's mistake.
    #[error("{length} bytes at {offset} are beyond the volume's {size} bytes")]
    OutOfRange {
        /// Offset of the first byte of the range.
        offset: u64,
        /// Length of the range in bytes.
        length: u64,
        /// Size of the volume in bytes.
        size: u64,
    },
    /// The volume has stopped, because another gateway took it over or because this one gave it up. Every
    /// further command fails. Contains the reason.
    #[error("{0}")]
    Stopped(String),
    /// The bytes of an object are not what was written. The range that it stores is unreadable.
    #[error("{key}: {why}")]
    Damaged {
        /// Key of the object in the store.
        key: String,
        /// What is wrong with the object.
        why: String,
        /// For a READ: offset of the first byte of the volume that is unreadable because of this object.
        at: Option<u64>,
    },
    /// An object that the volume references does not exist any more. The range that it stores is unreadable.
    #[error("{key}: the object is gone although the volume references it")]
    Lost {
        /// Key of the object in the store.
        key: String,
        /// For a READ: offset of the first byte of the volume that is unreadable because of this object.
        at: Option<u64>,
    },
    /// The root table has no room for another root until old roots are deleted.
    #[error("{key}: the table of roots is full until old roots are deleted")]
    TableFull {
        /// Key of the root table.
        key: String,
    },
    /// An object with bytes that this gateway did not write exists under a key that was never used.
    #[error("{key}: exists already, with bytes that this gateway did not write")]
    NameTaken {
        /// Key of the object in the store.
        key: String,
    },
    /// The store did not complete the request within the deadline. Written data stays dirty, so a
    /// later flush may succeed.
    #[error("not durable within {after_ms} ms; the data is kept and sent on")]
    Deadline {
        /// How long the command waited, in milliseconds.
        after_ms: u64,
    },
    /// The store failed, after any retries.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// Whether an object is damaged or gone, so that waiting for the store does not help.
    #[must_use]
    pub const fn is_loss(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Lost { .. })
    }

    /// Creates an error for an object that is gone.
    pub(super) const fn lost(key: String) -> Self {
        Self::Lost { key, at: None }
    }

    /// Creates an error for an object that is damaged, with a description of the damage.
    pub(super) const fn damaged(key: String, why: String) -> Self {
        Self::Damaged { key, why, at: None }
    }

    /// Adds the offset of the first byte of the volume that a READ cannot return, unless the
    /// error already has one.
    pub(super) fn first_at(mut self, offset: u64) -> Self {
        if let Self::Damaged { at, .. } | Self::Lost { at, .. } = &mut self {
            at.get_or_insert(offset);
        }
        self
    }

    /// Offset of the first byte of the volume that cannot be read because an object is damaged or gone.
    #[must_use]
    pub const fn offset(&self) -> Option<u64> {
        match self {
            Self::Damaged { at, .. } | Self::Lost { at, .. } => *at,
            _ => None,
        }
    }
}

/// Why a snapshot cannot be taken or deleted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A snapshot cannot have this name.
    #[error(
        "{0:?} is not a valid name of a snapshot: use 1 to 128 characters of A-Z a-z 0-9 . _ -, and no dot \
         first"
    )]
    BadName(String),
    /// The volume has a snapshot of this name.
    #[error("a snapshot named {0:?} exists already")]
    Exists(String),
    /// The volume has no snapshot of this name.
    #[error("no snapshot named {0:?}")]
    NoSuchSnapshot(String),
    /// The volume has as many snapshots as it may have.
    #[error("the volume has {0} snapshots, which is the maximum: delete some first")]
    TooMany(usize),
    /// Clones read the snapshot's objects.
    #[error("snapshot {name:?} is needed by {}: delete clones first", clones.as_clones())]
    Pinned {
        /// Name of the snapshot.
        name: String,
        /// The clones of it.
        clones: Mentioned,
    },
    /// The snapshot has as many clones as it may have.
    #[error("snapshot {name:?} has {count} clones, which is the maximum: clone another snapshot")]
    TooManyClones {
        /// Name of the snapshot.
        name: String,
        /// Number of its clones.
        count: usize,
    },
    /// The volume stopped, or the store failed.
    #[error(transparent)]
    Volume(#[from] Error),
}

/// Why the size of a volume cannot be changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResizeError {
    /// The requested size is not valid.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The volume would become smaller, and the caller did not allow that.
    #[error(
        "the volume has {size} bytes: to discard what is beyond {wanted} bytes, allow it to shrink (--shrink)"
    )]
    Smaller {
        /// Size of the volume in bytes.
        size: u64,
        /// The requested size in bytes.
        wanted: u64,
    },
    /// The volume stopped, or the store failed.
    #[error(transparent)]
    Volume(#[from] Error),
}

/// Why a snapshot cannot be cloned.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CloneError {
    /// The clone would read the objects of too many volumes.
    #[error("a clone of this volume would need the objects of {0} other volumes, which are too many")]
    TooDeep(usize),
    /// The snapshot cannot be kept for the clone.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The new volume cannot be made.
    #[error(transparent)]
    Volume(#[from] OpenError),
}

/// Why the garbage of a volume cannot be collected.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CollectError {
    /// The volume cannot be found or read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Objects are lost. What nothing references may help to repair the volume, so nothing is deleted.
    #[error(
        "{objects} objects of the volume are missing or damaged (cairn check says which), so nothing is \
         deleted: what seems to be garbage may help to repair it"
    )]
    Damaged {
        /// Number of objects that are not as they should be.
        objects: u64,
    },
    /// The volume changes faster than it can be read. Contains what was tried.
    #[error("{0}")]
    Unsteady(String),
    /// The volume stopped, or the store failed.
    #[error(transparent)]
    Volume(#[from] Error),
}

/// Volumes, as a message for people mentions them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mentioned {
    /// The names of the first of them, or the id of each that has no name.
    pub names: Vec<String>,
    /// How many more there are.
    pub more: usize,
}

impl Mentioned {
    fn as_clones(&self) -> String {
        let noun = if self.names.len() + self.more == 1 { "its clone" } else { "its clones" };
        format!("{noun} {self}")
    }
}

impl std::fmt::Display for Mentioned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.names.join(", "))?;
        if self.more > 0 { write!(f, " and {} more", self.more) } else { Ok(()) }
    }
}

/// Why a volume cannot be opened, created, renamed or deleted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// No volume has this name.
    #[error("no volume named {0:?}")]
    NoSuchVolume(String),
    /// The volume that had this name has another one by now.
    #[error("the volume was renamed from {from:?} to {to:?}")]
    Renamed {
        /// Its old name, by which it was to be opened.
        from: String,
        /// Its name.
        to: String,
    },
    /// The volume has no snapshot of this name.
    #[error("no snapshot named {0:?}")]
    NoSuchSnapshot(String),
    /// No object of a volume with this id exists.
    #[error("no volume has the id {0}")]
    NoSuchId(uuid::Uuid),
    /// An object of the volume is missing.
    #[error(
        "{key} is missing: the volume is incomplete, since its creation or deletion was cut short or the \
         store lost the object"
    )]
    Incomplete {
        /// Key of the object in the store.
        key: String,
    },
    /// It cannot be determined whether a gateway holds the volume. Take over if none does.
    #[error("whether a gateway holds the volume cannot be read ({why}); if none does, take over")]
    Unclear {
        /// What cannot be read, and why.
        why: String,
    },
    /// Other parties bound the name and freed it again each time that this one was about to bind it.
    #[error("the name {0:?} is created and deleted by others all the time")]
    Contended(String),
    /// A volume with this name already exists.
    #[error("a volume named {0:?} exists already")]
    Exists(String),
    /// This is not a valid volume name.
    #[error("{0:?} is not a volume name: 1 to 128 of A-Z a-z 0-9 . _ -, not beginning with a dot")]
    BadName(String),
    /// The volume exists with another size.
    #[error("volume {name:?} has {found} bytes, not the {wanted} asked for")]
    SizeDiffers {
        /// Name of the volume.
        name: String,
        /// Size of the existing volume in bytes.
        found: u64,
        /// Requested size in bytes.
        wanted: u64,
    },
    /// Another gateway holds the volume. Wait until it ends, or take over.
    #[error("volume is in use by {holder}; if that gateway is gone for good, take over")]
    Held {
        /// Who holds the volume, for people.
        holder: String,
    },
    /// Clones read the objects of the volume.
    #[error("the volume is needed by {}: delete clones first", clones.as_clones())]
    HasClones {
        /// The clones of it.
        clones: Mentioned,
    },
    /// The root table of the volume cannot be read, and neither can other volumes, which may be clones of it.
    /// Restore or delete these first.
    #[error(
        "the root table of the volume cannot be read, and neither can volumes that may be clones of it: \
         {others}; restore or delete those first"
    )]
    MayHaveClones {
        /// The other volumes.
        others: Mentioned,
    },
    /// Another gateway took the volume over while this one was opening it, or is deleting it.
    /// Contains who that is.
    #[error("lost the volume to another gateway while opening it: {0}")]
    Lost(String),
    /// The lease expired during the opening and could not be renewed. This is an
    /// error only with `lease.strict`.
    #[error("the lease ran out while the volume was being opened, and could not be renewed (lease.strict)")]
    LeaseOver,
    /// The volume was deleted and may be kept, or it is being deleted for good. Deleting it again completes a
    /// deletion that was interrupted.
    #[error(
        "volume is being deleted; deleting it again ends a deletion that was cut short; cairn volume list \
         --deleted shows what can be brought back"
    )]
    Deleting,
    /// The head of a volume that is to be deleted cannot be read, so the volume cannot be kept. Delete it for
    /// good.
    #[error("the volume cannot be kept, because its head cannot be read ({why}): delete it for good (--now)")]
    Unkeepable {
        /// What is wrong with the head.
        why: String,
    },
    /// No deleted volume with this name or id is kept.
    #[error("no deleted volume {0:?} is kept: cairn volume list --deleted shows those that are")]
    NotDeleted(String),
    /// Several deleted volumes had this name. Choose one by its id.
    #[error("{volumes} deleted volumes were named {name:?}: give an id of cairn volume list --deleted")]
    Ambiguous {
        /// The name.
        name: String,
        /// How many volumes had it.
        volumes: usize,
    },
    /// The name under which a deleted volume is to be brought back belongs to another volume.
    #[error("a volume named {0:?} exists: bring the deleted one back under another name (--as NEW)")]
    Taken(String),
    /// The bytes of an object are not what was written.
    #[error("{key}: {source}")]
    Damaged {
        /// Key of the object in the store.
        key: String,
        /// What is wrong with the object.
        #[source]
        source: DecodeError,
    },
    /// The records of the journal do not form a chain. The volume is not opened, rather
    /// than serve wrong data.
    #[error("{key}: {why}")]
    BrokenJournal {
        /// Key of the record that breaks the chain.
        key: String,
        /// What is wrong with the record.
        why: String,
    },
    /// The requested size is not valid.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The store failed, after any retries.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Why a volume cannot be imported.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImportError {
    /// No import of this name was cut short.
    #[error("there is no import of {0:?} to resume")]
    NothingToResume(String),
    /// An object of a resumed import exists with other bytes than the source has now.
    #[error(
        "{key}: the store has other data than the source; the source has changed since the import began, so \
         delete what was imported and begin again"
    )]
    SourceChanged {
        /// Key of the object in the store.
        key: String,
    },
    /// The name was bound and freed again since the import began, or somebody has deleted the import.
    #[error(
        "the name {0:?} was used by others since the import began, or the import was deleted; delete what is \
         left of it and begin again"
    )]
    NameChanged(String),
    /// The volume cannot be made, or the store failed.
    #[error(transparent)]
    Volume(#[from] OpenError),
}

/// Why two contents cannot be compared.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DiffError {
    /// The two have no volume in common.
    #[error(
        "the two have nothing in common: compare snapshots of one volume, or of a volume and a clone of it"
    )]
    Unrelated,
    /// A snapshot cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A volume stopped, or the store failed.
    #[error(transparent)]
    Volume(#[from] Error),
}

/// Why an incremental stream cannot be applied to a volume.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Nothing shows that the volume has the content of the base.
    #[error(
        "nothing shows that the volume has the content of the snapshot {of:?} that the stream begins with: \
         it has no snapshot {marker:?}, which an import of the stream before this one leaves, and this \
         stream has no digest; apply the streams in order, or export this one with --digest"
    )]
    NoBase {
        /// Name of the snapshot of the volume that is missing.
        marker: String,
        /// Name of the snapshot that the stream leads from.
        of: String,
    },
    /// The volume was written to since it had the content of a snapshot.
    #[error(
        "the volume has changed since its snapshot {snapshot:?}, first at byte {offset}: to take that back, \
         use cairn volume restore"
    )]
    Changed {
        /// Name of the snapshot.
        snapshot: String,
        /// Offset of the first byte that may differ.
        offset: u64,
    },
    /// A stream that has everything is applied only to a copy of the volume that it is of.
    #[error(
        "the volume is no copy of the volume with the id {of}: it has no snapshot that an import or a backup \
         of that volume leaves"
    )]
    NoCopy {
        /// Id of the volume that the stream is of.
        of: uuid::Uuid,
    },
    /// Others may have opened a volume since it was made.
    #[error("others may have used the volume since it was made, so it may have another content")]
    Touched,
    /// The volume has another size than the base.
    #[error("the volume has {found} bytes, and the snapshot that the stream begins with has {wanted}")]
    OtherSize {
        /// Size of the volume in bytes.
        found: u64,
        /// Size of the base in bytes.
        wanted: u64,
    },
    /// The volume has another content than the base.
    #[error(
        "the volume is no copy of the snapshot that the stream begins with: its SHA-256 is {found}, and \
         that of the snapshot {wanted}"
    )]
    OtherContent {
        /// Digest of the volume.
        found: Digest,
        /// Digest of the base.
        wanted: Digest,
    },
    /// The volume has another content than the result after everything was applied.
    #[error("the SHA-256 of the volume is {found} after the import, and should be {wanted}")]
    OtherResult {
        /// Digest of the volume.
        found: Digest,
        /// Digest of the result.
        wanted: Digest,
    },
    /// An import of the same stream was cut short.
    #[error(
        "an import of this stream was cut short: add --resume to discard what was written to the volume \
         since it began, and to apply the stream again"
    )]
    CutShort,
    /// The snapshot to take in the end may not have this name.
    #[error(
        "a snapshot with a name like {0:?} says what a copy has, so none is taken by hand: choose another \
         name"
    )]
    Reserved(String),
    /// An import of another stream was cut short.
    #[error(
        "an import or a backup of another stream was cut short, so the volume has a part of that one since \
         its snapshot {begun:?}: repeat that one with --resume, or take back what was written since"
    )]
    OtherCutShort {
        /// Name of the snapshot that was taken when it began.
        begun: String,
    },
    /// The volume has the base, and the first steps failed. Nothing of the stream was written, but the volume
    /// may have the size of the result, and the snapshot that says that a stream is being applied.
    #[error(transparent)]
    Begun(Box<Self>),
    /// The volume and its snapshot cannot be compared.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// The volume cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A snapshot of the volume cannot be taken or deleted.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The volume cannot get the size of the result.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// The volume stopped, or the store failed.
    #[error(transparent)]
    Volume(#[from] Error),
}

impl From<GeometryError> for ImportError {
    fn from(error: GeometryError) -> Self {
        Self::Volume(error.into())
    }
}

impl From<store::Error> for ImportError {
    fn from(error: store::Error) -> Self {
        Self::Volume(error.into())
    }
}
