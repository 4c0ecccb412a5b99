//! Why a snapshot cannot be backed up onto what a store has under a name.
//!
//! Owns these reasons and what to do about each, and must not know how they were found. Invariant: each of
//! them was found before anything was written.

use uuid::Uuid;

use crate::volume::format::stream::Digest;

/// Why a snapshot cannot be backed up onto what a store has under a name.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum BackupError {
    /// The target is the source.
    #[error(
        "it is the volume that is to be backed up, or a copy of its objects: choose another store, or \
         another name (--as)"
    )]
    Itself,
    /// A first backup was cut short, or runs.
    #[error(
        "a first backup or an import under this name was cut short, or is still running: add --resume to go \
         on, or delete what is left: cairn volume delete --id {id}{flags}"
    )]
    Unfinished {
        /// Id of what is left.
        id: Uuid,
        /// The flags by which a command finds its store.
        flags: String,
    },
    /// Nothing shows that the volume is a copy of the source.
    #[error(
        "nothing shows that it is a backup of {volume}, so it is not overwritten: choose another name \
         (--as), or delete it; if the first backup was cut short at its very end, or it is a complete copy \
         of {of} that was made otherwise, add --resume, which compares all of it"
    )]
    NoCopy {
        /// Name of the volume that is to be backed up.
        volume: String,
        /// The snapshot that is to be backed up, `VOLUME@NAME`.
        of: String,
    },
    /// The snapshot that the copy has the content of is gone.
    #[error(
        "it is a backup of {volume}, but the snapshot that was backed up last is gone, so nothing shows what \
         has changed since: add --full to send all of {of}"
    )]
    NoBase {
        /// Name of the volume that is to be backed up.
        volume: String,
        /// The snapshot that is to be backed up, `VOLUME@NAME`.
        of: String,
    },
    /// The copy has a snapshot of that name, of which nothing shows the content.
    #[error(
        "it has a snapshot named {name:?}, and nothing shows that this has the content of {of}: add --digest \
         to compare all of both, or delete it"
    )]
    OtherSnapshot {
        /// Name of the snapshot.
        name: String,
        /// The snapshot that is to be backed up, `VOLUME@NAME`.
        of: String,
    },
    /// The copy has a snapshot of that name with another content.
    #[error("the SHA-256 of its snapshot {name:?} is {found}, and that of {of} is {wanted}")]
    OtherContent {
        /// Name of the snapshot.
        name: String,
        /// Digest of the copy's snapshot.
        found: Digest,
        /// The snapshot that is to be backed up, `VOLUME@NAME`.
        of: String,
        /// Digest of the snapshot that is to be backed up.
        wanted: Digest,
    },
}

impl BackupError {
    /// Whether the command line is wrong, whatever the stores have.
    pub(super) fn is_mistake(&self) -> bool {
        matches!(self, Self::Itself)
    }
}
