//! The objects `identity/<uuid>` (identity of a volume, written once) and `name/<name>` (which volume a name
//! stands for).

use uuid::Uuid;

use super::codec::{DecodeError, Decoder, Encoder, Kind, invalid};
use super::geometry::{Geometry, PAGE_BYTES};
use super::keys::is_valid_name;

/// What a volume is and stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The volume.
    pub volume: Uuid,
    /// Features without which it cannot be opened; a bit that is not in [`Identity::KNOWN_FEATURES`] refuses
    /// it.
    pub features: u32,
    /// Features without which it can only be read.
    pub write_features: u32,
    /// Division into chunks.
    pub geometry: Geometry,
    /// Compression of pages: 0 for none.
    pub codec: u8,
    /// Encryption of pages: 0 for none.
    pub cipher: u8,
    /// Seconds since 1970, for people.
    pub created_at_seconds: u64,
    /// The name that its creator binds to it: a deletion by id makes sure that this does not happen any more.
    pub name: String,
}

impl Identity {
    /// Features that this program knows.
    pub const KNOWN_FEATURES: u32 = 0;

    /// The object's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::new(Kind::Identity, self.volume, 224);
        to.u32(self.features);
        to.u32(self.write_features);
        to.u32(u32::try_from(self.geometry.chunk_bytes()).expect("at most 32 MiB"));
        to.u32(u32::try_from(PAGE_BYTES).expect("64 KiB"));
        to.u8(self.codec);
        to.u8(self.cipher);
        to.u64(self.created_at_seconds);
        to.short_string(&self.name);
        to.finish()
    }

    /// Reads the object.
    ///
    /// # Errors
    /// If it is damaged, of another volume, or needs what this program does not know.
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

/// The object under a name: binds it to a volume, or says that it is free.
///
/// It is only ever replaced, by compare-and-swap, and never deleted: a request that was sent for an earlier
/// version can then never take effect, however late it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameBinding {
    /// Grows with every change, so that no two versions have equal bytes.
    pub version: u64,
    /// The volume that the name stands for; of a free name, the one that it was taken from.
    pub volume: Uuid,
    /// The name; `None` if it is free (a tombstone).
    pub name: Option<String>,
}

impl NameBinding {
    /// Bytes of a free name; every bound one has more.
    pub const FREE_BYTES: u64 = 52;

    /// The object's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::new(Kind::Name, self.volume, 192);
        to.u64(self.version);
        to.u8(u8::from(self.name.is_some()));
        to.short_string(self.name.as_deref().unwrap_or_default());
        to.finish()
    }

    /// Reads the object.
    ///
    /// # Errors
    /// If it is damaged or the name is none.
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
