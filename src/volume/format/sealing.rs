//! What binds the objects of a volume to it, so that no other bytes pass for them.
//!
//! Must not know what the objects contain, nor where their frames lie. Invariant: an object that was encoded
//! with one sealing is refused by whoever decodes it with another one.

use uuid::Uuid;

/// What binds the objects of a volume to it: its uuid. The envelope of each object contains it, and the tag
/// of each frame covers it. The key of an encrypted volume would be here too, and nowhere else.
///
/// Encoding and decoding such an object, and the [`Place`](super::frame::Place) of its frames, take the
/// sealing of the volume that owns the object. With clones, that can be another volume than the one that is
/// read.
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
