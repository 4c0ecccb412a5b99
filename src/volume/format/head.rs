//! The object `head`: who writes the volume, and from where it is recovered. The only object of a volume that
//! is overwritten.

use std::fmt;

use uuid::Uuid;

use super::codec::{Checksum, DecodeError, Decoder, Encoder, Kind, invalid};
use super::keys::{Epoch, ObjectId, Slot};

/// Bytes of a head at most.
pub const MAX_HEAD_BYTES: usize = 1024;
/// Who holds a volume, for people: at most [`HolderName::MAX_BYTES`] bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HolderName(String);

impl HolderName {
    /// Bytes of a name at most.
    pub const MAX_BYTES: usize = 200;

    /// A name from a text, which is cut at a character where it is longer.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text[..text.floor_char_boundary(Self::MAX_BYTES)].to_owned())
    }

    /// Appends it.
    pub fn encode(&self, to: &mut Encoder) {
        to.short_string(&self.0);
    }

    /// Takes one.
    ///
    /// # Errors
    /// If it is too long, not UTF-8, or fewer bytes are left.
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

/// The commit up to which everything is in the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its slot; (0, 0) on a fresh volume.
    pub slot: Slot,
    /// Checksum of the record there: what the next record must name.
    pub checksum: Checksum,
}

/// Whether a writer claims the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Nobody: it may be opened at once.
    Released,
    /// Nobody, but objects that nothing names may stand: the opener must look for them.
    Unswept,
    /// The holder, for this long after each renewal.
    Held {
        /// Milliseconds.
        ttl_ms: u32,
    },
}

/// What the volume's life has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// In use.
    Live,
    /// Being deleted, or a tombstone: never opened again.
    Deleting,
}

/// Head of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The volume.
    pub volume: Uuid,
    /// Grows with every update, so that no two heads have equal bytes.
    pub version: u64,
    /// Generation of the writer.
    pub epoch: Epoch,
    /// Unique to each opening.
    pub holder: u128,
    /// Who that is, for people.
    pub holder_name: HolderName,
    /// Whether the holder claims the volume.
    pub lease: Lease,
    /// From where to replay.
    pub checkpoint: Checkpoint,
    /// The root at the checkpoint.
    pub root: ObjectId,
    /// Every root that is kept.
    pub root_table: ObjectId,
    /// Wrapped data key of an encrypted volume; empty for none.
    pub wrapped_key: Vec<u8>,
    /// Where commits may be that the bucket does not have; empty for none.
    pub local_journal: String,
    /// Live or deleting.
    pub state: VolumeState,
}

impl Head {
    /// The object's bytes.
    ///
    /// # Panics
    /// If a bounded field is over its bound.
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
        to.u8(match self.state {
            VolumeState::Live => 0,
            VolumeState::Deleting => 1,
        });
        let bytes = to.finish();
        assert!(bytes.len() <= MAX_HEAD_BYTES, "all fields at their bounds stay under 1 KiB");
        bytes
    }

    /// Reads the object.
    ///
    /// # Errors
    /// If it is damaged or of another volume.
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
        let state = match from.u8()? {
            0 => VolumeState::Live,
            1 => VolumeState::Deleting,
            other => return Err(invalid("state", format!("{other} is unknown"))),
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
        })
    }
}
