//! The object `head`: who writes a volume, and where its recovery starts. It is the only object of a volume
//! that is overwritten.
//!
//! Must not know how the head is replaced or what a lease requires. Invariant: a head with all fields at
//! their limits stays within [`MAX_HEAD_BYTES`].

use std::fmt;

use uuid::Uuid;

use super::codec::{Checksum, DecodeError, Decoder, Encoder, Kind, invalid};
use super::keys::{Epoch, ObjectId, Slot, is_valid_name};

/// Limit on the length of a head in bytes.
pub const MAX_HEAD_BYTES: usize = 1280;
/// The name of the gateway that holds a volume, for people. It has at most [`HolderName::MAX_BYTES`] bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HolderName(String);

impl HolderName {
    /// Limit on the length of a name in bytes.
    pub const MAX_BYTES: usize = 200;

    /// Creates a name from `text`. A longer text is cut at a character boundary.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text[..text.floor_char_boundary(Self::MAX_BYTES)].to_owned())
    }

    /// Appends the name to an object.
    pub fn encode(&self, to: &mut Encoder) {
        to.short_string(&self.0);
    }

    /// Reads a name from an object.
    ///
    /// # Errors
    /// Returns an error if the name is too long or not UTF-8, or if too few bytes are left.
    pub fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let text = from.short_string("holder")?;
        if text.len() > Self::MAX_BYTES {
            return Err(invalid("holder", format!("longer than {} bytes", Self::MAX_BYTES)));
        }
        Ok(Self(text))
    }
}

impl fmt::Display for HolderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The last commit whose changes are in the root. Replay starts after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Slot of the commit; (0, 0) for a new volume.
    pub slot: Slot,
    /// Checksum of the record in that slot. The next record must contain it.
    pub checksum: Checksum,
}

/// Whether a gateway claims the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Nobody claims the volume, so it may be opened at once.
    Released,
    /// Nobody claims the volume, but unreferenced objects may exist. The next opener must look for them.
    Unswept,
    /// The holder claims the volume for this long after each renewal.
    Held {
        /// Duration in milliseconds.
        ttl_ms: u32,
    },
}

/// Whether the volume is in use, was deleted and is kept, or is being deleted for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// The volume is in use.
    Live,
    /// The volume was deleted, and it can be brought back. It is not opened meanwhile.
    Kept(Kept),
    /// The volume is being deleted, or only this tombstone is left. It is never opened again.
    Deleting,
}

impl VolumeState {
    /// Whether the volume may be opened and read.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Live)
    }
}

/// What is known of a deleted volume that can be brought back. The time is counted down here, so that no time
/// of day decides when the volume is deleted for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// When the volume was deleted, as Unix time in seconds, by the clock of whoever did it. It is shown to
    /// people.
    pub deleted_at_seconds: u64,
    /// How long the volume is kept still, in seconds. Whoever has seen this head unchanged for some time may
    /// replace it by one that has as much less left.
    pub seconds_left: u32,
}

/// Bit of the state: the volume is being deleted.
const DELETING: u8 = 1;
/// Bit of the state: the names of the volume follow.
const NAMED: u8 = 2;
/// Bit of the state: the volume was deleted and is kept. What is known of that follows the names.
const KEPT: u8 = 4;

/// The names that may be bound to a volume.
///
/// A volume that was never renamed has the name in its identity. Until a new name is recorded here, it is not
/// bound to the volume; and until the old one is recorded as gone, it may still be. So whoever replaces the
/// head knows every name that a request in flight can bind to the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The name of the volume.
    pub current: String,
    /// The name that the volume is about to get, or has got already, in place of the current one.
    pub next: Option<String>,
}

impl Names {
    /// Whether this is one of the names.
    #[must_use]
    pub fn contain(&self, name: &str) -> bool {
        self.current == name || self.next.as_deref() == Some(name)
    }
}

/// The contents of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The volume that the head belongs to.
    pub volume: Uuid,
    /// Increases with every update, so that no two heads have equal bytes.
    pub version: u64,
    /// Epoch of the writer.
    pub epoch: Epoch,
    /// Identifies the opening that wrote the head. No two openings have the same value.
    pub holder: u128,
    /// Name of the gateway that wrote the head, for people.
    pub holder_name: HolderName,
    /// Whether the holder claims the volume.
    pub lease: Lease,
    /// Where replay starts.
    pub checkpoint: Checkpoint,
    /// Id of the root of the checkpoint.
    pub root: ObjectId,
    /// Id of the table of all roots that are kept.
    pub root_table: ObjectId,
    /// Wrapped data key of an encrypted volume; empty if it is not encrypted.
    pub wrapped_key: Vec<u8>,
    /// Location of commits that may be missing in the bucket; empty if there are none.
    pub local_journal: String,
    /// Whether the volume is in use, kept, or being deleted.
    pub state: VolumeState,
    /// The names of the volume; `None` if it was never renamed, so that it has the name in its identity. A
    /// volume that is kept always has them here.
    pub names: Option<Names>,
}

impl Head {
    /// Encodes the object.
    ///
    /// # Panics
    /// Panics if a field exceeds its limit, or if the volume is kept and has no names.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::new(Kind::Head, self.volume, MAX_HEAD_BYTES);
        to.u64(self.version);
        to.u32(self.epoch);
        to.raw(&self.holder.to_le_bytes());
        self.holder_name.encode(&mut to);
        to.u32(match self.lease {
            Lease::Released => 0,
            Lease::Unswept => u32::MAX,
            Lease::Held { ttl_ms } => ttl_ms.clamp(1, u32::MAX - 1),
        });
        self.checkpoint.slot.encode(&mut to);
        to.raw(&self.checkpoint.checksum.0);
        for id in [self.root, self.root_table] {
            id.encode(&mut to);
        }
        to.u8(u8::try_from(self.wrapped_key.len()).expect("a wrapped key has at most 255 bytes"));
        to.raw(&self.wrapped_key);
        to.short_string(&self.local_journal);
        let state = match self.state {
            VolumeState::Live => 0,
            VolumeState::Kept(_) => KEPT,
            VolumeState::Deleting => DELETING,
        };
        to.u8(state | if self.names.is_some() { NAMED } else { 0 });
        if let Some(Names { current, next }) = &self.names {
            to.short_string(current);
            to.short_string(next.as_deref().unwrap_or_default());
        }
        if let VolumeState::Kept(kept) = self.state {
            assert!(self.names.is_some(), "the head of a volume that is kept has its names");
            to.u64(kept.deleted_at_seconds);
            to.u32(kept.seconds_left);
        }
        let bytes = to.finish();
        assert!(bytes.len() <= MAX_HEAD_BYTES, "all fields at their bounds stay within the limit");
        bytes
    }

    /// Decodes the object.
    ///
    /// # Errors
    /// Returns an error if the object is damaged, or belongs to another volume.
    pub fn decode(volume: Uuid, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Decoder::object_of(Kind::Head, volume, bytes)?;
        let version = from.u64()?;
        let epoch = from.u32()?;
        let holder = u128::from_le_bytes(from.array()?);
        let holder_name = HolderName::decode(&mut from)?;
        let lease = match from.u32()? {
            0 => Lease::Released,
            u32::MAX => Lease::Unswept,
            ttl_ms => Lease::Held { ttl_ms },
        };
        let slot = Slot::decode(&mut from)?;
        if slot.epoch > epoch {
            return Err(invalid("checkpoint", "of a later epoch than the head"));
        }
        let checkpoint = Checkpoint { slot, checksum: from.checksum()? };
        let root = ObjectId::decode(&mut from)?;
        let root_table = ObjectId::decode(&mut from)?;
        let key_bytes = usize::from(from.u8()?);
        let wrapped_key = from.raw(key_bytes)?.to_vec();
        let local_journal = from.short_string("local journal")?;
        let flags = from.u8()?;
        let is_valid = match flags & (DELETING | KEPT) {
            0 | DELETING => true,
            KEPT => flags & NAMED != 0,
            _ => false,
        };
        if flags & !(DELETING | NAMED | KEPT) != 0 || !is_valid {
            return Err(invalid("state", format!("{flags} is unknown")));
        }
        let names = if flags & NAMED == 0 { None } else { Some(names(&mut from)?) };
        let state = match flags & (DELETING | KEPT) {
            DELETING => VolumeState::Deleting,
            KEPT => VolumeState::Kept(Kept { deleted_at_seconds: from.u64()?, seconds_left: from.u32()? }),
            _ => VolumeState::Live,
        };
        from.finish()?;
        Ok(Self {
            volume,
            version,
            epoch,
            holder,
            holder_name,
            lease,
            checkpoint,
            root,
            root_table,
            wrapped_key,
            local_journal,
            state,
            names,
        })
    }
}

/// Reads the names of a volume.
fn names(from: &mut Decoder<'_>) -> Result<Names, DecodeError> {
    let (current, next) = (from.short_string("name")?, from.short_string("next name")?);
    let next = Some(next).filter(|next| !next.is_empty());
    if let Some(wrong) =
        [Some(&current), next.as_ref()].into_iter().flatten().find(|name| !is_valid_name(name))
    {
        return Err(invalid("name", format!("{wrong:?} is not a name")));
    }
    if next.as_ref() == Some(&current) {
        return Err(invalid("next name", "is the current one"));
    }
    Ok(Names { current, next })
}
