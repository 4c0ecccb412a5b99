//! The objects `identity/<uuid>`, which describes a volume and is written once, and `name/<name>`, which
//! binds a name to a volume.
//!
//! Must not know how volumes are created or deleted. Invariant: a decoded identity requires nothing that this
//! program does not support, and a decoded name is valid.

use uuid::Uuid;

use super::codec::{DecodeError, Decoder, Encoder, Kind, invalid};
use super::geometry::{BLOCK_BYTES, Geometry, PAGE_BYTES};
use super::keys::is_valid_name;

/// The properties of a volume that never change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Uuid of the volume.
    pub volume: Uuid,
    /// Features that a program must know to open the volume. Bits that are not in
    /// [`Identity::KNOWN_FEATURES`] are an error.
    pub features: u32,
    /// Features that a program must know to write to the volume. This program does not open a volume with
    /// unknown ones at all.
    pub write_features: u32,
    /// How the volume is divided into chunks.
    pub geometry: Geometry,
    /// Compression of frames; 0 if they are not compressed.
    pub codec: u8,
    /// Encryption of frames; 0 if they are not encrypted.
    pub cipher: u8,
    /// Time of creation in seconds since 1970, for people.
    pub created_at_seconds: u64,
    /// The name that the creator of the volume binds to it. A deletion by id ensures that this
    /// can no longer happen.
    pub name: String,
}

impl Identity {
    /// Bits of the features that this program knows.
    pub const KNOWN_FEATURES: u32 = 0;

    /// Encodes the object.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::new(Kind::Identity, self.volume, 224);
        to.u32(self.features);
        to.u32(self.write_features);
        to.u32(u32::try_from(self.geometry.chunk_bytes()).expect("at most 32 MiB"));
        to.u32(u32::try_from(PAGE_BYTES).expect("64 KiB"));
        to.u32(u32::try_from(BLOCK_BYTES).expect("4 KiB"));
        to.u8(self.codec);
        to.u8(self.cipher);
        to.u64(self.created_at_seconds);
        to.short_string(&self.name);
        to.finish()
    }

    /// Decodes the object.
    ///
    /// # Errors
    /// Returns an error if the object is damaged, belongs to another volume, or requires something that this
    /// program does not know.
    pub fn decode(volume: Uuid, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Decoder::object_of(Kind::Identity, volume, bytes)?;
        let features = from.u32()?;
        let write_features = from.u32()?;
        for (field, flags) in [("features", features), ("write features", write_features)] {
            let unknown = flags & !Self::KNOWN_FEATURES;
            if unknown != 0 {
                return Err(invalid(field, format!("{unknown:#x} is unknown to this version of Cairn")));
            }
        }
        let geometry =
            Geometry::new(u64::from(from.u32()?)).map_err(|e| invalid("chunk size", e.to_string()))?;
        let page_bytes = from.u32()?;
        if u64::from(page_bytes) != PAGE_BYTES {
            return Err(invalid("page size", format!("{page_bytes} is not {PAGE_BYTES}")));
        }
        let frame_bytes = from.u32()?;
        if u64::from(frame_bytes) != BLOCK_BYTES {
            return Err(invalid("frame size", format!("{frame_bytes} is not {BLOCK_BYTES}")));
        }
        let (codec, cipher) = (from.u8()?, from.u8()?);
        if codec != 0 {
            return Err(invalid("codec", format!("{codec} is unknown to this version of Cairn")));
        }
        if cipher != 0 {
            return Err(invalid("cipher", format!("{cipher} is unknown to this version of Cairn")));
        }
        let created_at_seconds = from.u64()?;
        let name = valid_name(from.short_string("name")?)?;
        from.finish()?;
        Ok(Self { volume, features, write_features, geometry, codec, cipher, created_at_seconds, name })
    }
}

fn valid_name(name: String) -> Result<String, DecodeError> {
    if is_valid_name(&name) { Ok(name) } else { Err(invalid("name", format!("{name:?} is not a name"))) }
}

/// The object of a name: binds the name to a volume, or records that it is free.
///
/// The object is only ever replaced, by compare-and-swap, and never deleted. So a request that was sent for
/// an earlier version can never take effect, however late it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameBinding {
    /// Increases with every change, so that no two versions have equal bytes.
    pub version: u64,
    /// The volume that the name refers to. For a free name, the volume that it was taken from.
    pub volume: Uuid,
    /// The name, or `None` if it is free (a tombstone).
    pub name: Option<String>,
}

impl NameBinding {
    /// Length in bytes of the object of a free name. The object of a bound name is longer.
    pub const FREE_BYTES: u64 = 52;

    /// Encodes the object.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::new(Kind::Name, self.volume, 192);
        to.u64(self.version);
        to.u8(u8::from(self.name.is_some()));
        to.short_string(self.name.as_deref().unwrap_or_default());
        to.finish()
    }

    /// Decodes the object.
    ///
    /// # Errors
    /// Returns an error if the object is damaged, or contains an invalid name.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (volume, mut from) = Decoder::object(Kind::Name, bytes)?;
        let version = from.u64()?;
        let state = from.u8()?;
        let name = from.short_string("name")?;
        let name = match state {
            0 if name.is_empty() => None,
            0 => return Err(invalid("name", "is free and has a name")),
            1 => Some(valid_name(name)?),
            other => return Err(invalid("state", format!("{other} is unknown"))),
        };
        from.finish()?;
        Ok(Self { version, volume, name })
    }
}
