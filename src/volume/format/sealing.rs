//! With what the objects of one volume are sealed, so that no other bytes pass for them.
//!
//! Must not know what the objects contain, nor where their frames lie. Invariant: an object that was sealed
//! with one sealing is refused with any other.

use uuid::Uuid;

/// With what the objects of one volume are sealed: the volume that owns them. The envelope of each object names
/// it, and the tag of each frame covers it.
///
/// Whoever encodes or decodes such an object, or makes a [`Place`](super::frame::Place) of its frames, needs
/// the sealing of the object's owner, which may be another volume than the one that is read. If volumes are
/// encrypted one day, their key comes in here and nowhere else.
///
/// The identity, the head and the object of a name take no sealing. They are read before any key can be
/// known: the identity says which cipher a volume has, and the head contains its wrapped key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealing {
    volume: Uuid,
}

impl Sealing {
    /// Creates the sealing of the objects that `volume` owns.
    #[must_use]
    pub const fn new(volume: Uuid) -> Self {
        Self { volume }
    }

    /// Returns the volume that owns the objects.
    #[must_use]
    pub const fn volume(self) -> Uuid {
        self.volume
    }
}
