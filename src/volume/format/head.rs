//! The object `head`: who writes the volume, and from where it is recovered. The only object of a volume that is
//! overwritten.

use uuid::Uuid;

use super::codec::{Checksum, DecodeError, Decoder, Encoder, Kind, invalid};
use super::keys::{Epoch, ObjectId, Slot};

/// Bytes of a head at most.
pub const MAX_HEAD_BYTES: usize = 1024;
/// Bytes of a holder's description at most.
pub const MAX_HOLDER_BYTES: usize = 200;

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
    pub holder_name: String,
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
        assert!(
            self.holder_name.len() <= MAX_HOLDER_BYTES,
            "a holder's name is cut to its bound where it is made"
        );
        to.short_string(&self.holder_name);
        to.u32(match self.lease {
            Lease::Released => 0,
            Lease::Unswept => u32::MAX,
            Lease::Held { ttl_ms } => ttl_ms.clamp(1, u32::MAX - 1),
        });
        to.u32(self.checkpoint.slot.epoch);
        to.u64(self.checkpoint.slot.n);
        to.raw(&self.checkpoint.checksum.0);
        for id in [self.root, self.root_table] {
            to.u32(id.epoch);
            to.u64(id.k);
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
        let holder_name = from.short_string("holder")?;
        if holder_name.len() > MAX_HOLDER_BYTES {
            return Err(invalid("holder", "longer than 200 bytes"));
        }
        let lease = match from.u32()? {
            0 => Lease::Released,
            u32::MAX => Lease::Unswept,
            ttl_ms => Lease::Held { ttl_ms },
        };
        let slot = Slot { epoch: from.u32()?, n: from.u64()? };
        if slot.epoch > epoch {
            return Err(invalid("checkpoint", "of a later epoch than the head"));
        }
        let checkpoint = Checkpoint { slot, checksum: from.checksum()? };
        let root = ObjectId { epoch: from.u32()?, k: from.u64()? };
        let root_table = ObjectId { epoch: from.u32()?, k: from.u64()? };
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
