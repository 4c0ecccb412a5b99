//! Errors of the volume layer: each variant says what the caller should do.

use super::format::codec::DecodeError;
use super::format::geometry::GeometryError;
use crate::store;

/// Why a command on a volume failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The range is not within the volume. The caller's mistake.
    #[error("{length} bytes at {offset} are beyond the volume's {size} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Size of the volume.
        size: u64,
    },
    /// Another gateway took the volume over, or this one gave it up: nothing more is served.
    #[error("{0}")]
    Stopped(String),
    /// An object is not what was written: its range is unreadable.
    #[error("{key}: {why}")]
    Damaged {
        /// Key of the object.
        key: String,
        /// What is wrong with it.
        why: String,
        /// First byte of the volume that cannot be read for it, if the error is a READ's.
        at: Option<u64>,
    },
    /// An object that the volume references is gone: its range is unreadable.
    #[error("{key}: the object is gone although the volume references it")]
    Lost {
        /// Key of the object.
        key: String,
        /// First byte of the volume that cannot be read for it, if the error is a READ's.
        at: Option<u64>,
    },
    /// The root table has no room for another root until old roots are deleted.
    #[error("{key}: the table of roots is full until old roots are deleted")]
    TableFull {
        /// Key of the table.
        key: String,
    },
    /// An object exists already under a name that was never used, with bytes that this gateway did not write.
    #[error("{key}: exists already, with bytes that this gateway did not write")]
    NameTaken {
        /// Key of the object.
        key: String,
    },
    /// The store did not do it within the deadline. What was written stays dirty; a later flush may succeed.
    #[error("not durable within {after_ms} ms; the data is kept and sent on")]
    Deadline {
        /// Milliseconds waited.
        after_ms: u64,
    },
    /// The store failed for good.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// Whether an object is damaged or gone, so that waiting for the store does not help.
    #[must_use]
    pub const fn is_loss(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Lost { .. })
    }

    /// The object that is gone.
    pub(super) const fn lost(key: String) -> Self {
        Self::Lost { key, at: None }
    }

    /// The object that is damaged, and what is wrong with it.
    pub(super) const fn damaged(key: String, why: String) -> Self {
        Self::Damaged { key, why, at: None }
    }

    /// The same error of a READ: the first byte of the volume that it concerns, unless that is known already.
    pub(super) fn first_at(mut self, offset: u64) -> Self {
        if let Self::Damaged { at, .. } | Self::Lost { at, .. } = &mut self {
            at.get_or_insert(offset);
        }
        self
    }

    /// First byte of the volume that cannot be read because an object is damaged or gone.
    #[must_use]
    pub const fn offset(&self) -> Option<u64> {
        match self {
            Self::Damaged { at, .. } | Self::Lost { at, .. } => *at,
            _ => None,
        }
    }
}

/// Why a volume cannot be opened, created or deleted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// No volume has that name.
    #[error("no volume named {0:?}")]
    NoSuchVolume(String),
    /// There is nothing of a volume of that id.
    #[error("no volume has the id {0}")]
    NoSuchId(uuid::Uuid),
    /// An object of it is missing.
    #[error(
        "{key} is missing: the volume is incomplete, since its creation or deletion was cut short or the \
         store lost the object"
    )]
    Incomplete {
        /// Key of the object.
        key: String,
    },
    /// Nobody can say whether a gateway holds it.
    #[error("whether a gateway holds the volume cannot be read ({why}); if none does, take over")]
    Unclear {
        /// What cannot be read.
        why: String,
    },
    /// Others bound the name and took it away again, each time that it was about to be bound.
    #[error("the name {0:?} is created and deleted by others all the time")]
    Contended(String),
    /// A volume of that name stands already.
    #[error("a volume named {0:?} exists already")]
    Exists(String),
    /// It cannot have that name.
    #[error("{0:?} is not a volume name: 1 to 128 of A-Z a-z 0-9 . _ -, not beginning with a dot")]
    BadName(String),
    /// It stands with another size.
    #[error("volume {name:?} has {found} bytes, not the {wanted} asked for")]
    SizeDiffers {
        /// Name.
        name: String,
        /// Its size.
        found: u64,
        /// The size asked for.
        wanted: u64,
    },
    /// Another gateway holds it. Wait for it to end, or take over.
    #[error("volume is in use by {holder}; if that gateway is gone for good, take over")]
    Held {
        /// Who.
        holder: String,
    },
    /// Another gateway took it over while it was being opened, or is deleting it.
    #[error("lost the volume to another gateway while opening it: {0}")]
    Lost(String),
    /// The lease ran out while the volume was being opened, and could not be renewed, which `lease.strict`
    /// heeds.
    #[error("the lease ran out while the volume was being opened, and could not be renewed (lease.strict)")]
    LeaseOver,
    /// It is being deleted.
    #[error("volume is being deleted; deleting it again ends a deletion that was cut short")]
    Deleting,
    /// An object is not what was written.
    #[error("{key}: {source}")]
    Damaged {
        /// Key of the object.
        key: String,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
    /// The journal is not a chain: refuse rather than serve wrong data.
    #[error("{key}: {why}")]
    BrokenJournal {
        /// Key of the record.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A size that cannot be.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}
