//! The envelope that every object shares, and the primitives to read and write one.
//!
//! An object is `magic (8) | format version (2) | volume uuid (16) | fields | checksum (16)`, little-endian.
//! The checksum is XXH3-128 of everything before it. Knows nothing of what the fields mean. Invariant: a
//! [`Decoder`] is total: any bytes give a value or an error, and no allocation exceeds what the input
//! justifies.

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

/// Format version of every object; a change to any golden file bumps it.
pub const FORMAT_VERSION: u16 = 1;

/// A checksum of an object or a frame: XXH3-128, stored little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Checksum(pub [u8; 16]);

impl Checksum {
    /// Bytes that a checksum takes.
    pub const BYTES: usize = 16;

    /// The checksum of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(xxh3_128(bytes).to_le_bytes())
    }
}

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_le_bytes(self.0))
    }
}

/// What an object is: its first eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Identity of a volume.
    Identity,
    /// Head of a volume.
    Head,
    /// Commit record, opening record or seal.
    Record,
    /// Root.
    Root,
    /// Root table.
    RootTable,
    /// Map page.
    MapPage,
    /// Chunk object.
    Chunk,
    /// Pack.
    Pack,
    /// Name of a volume.
    Name,
}

impl Kind {
    /// First eight bytes of an object of this kind.
    #[must_use]
    pub fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Identity => b"CAIRNVOL",
            Self::Head => b"CAIRNHED",
            Self::Record => b"CAIRNJNL",
            Self::Root => b"CAIRNROO",
            Self::RootTable => b"CAIRNTAB",
            Self::MapPage => b"CAIRNMAP",
            Self::Chunk => b"CAIRNCHK",
            Self::Pack => b"CAIRNPAK",
            Self::Name => b"CAIRNNAM",
        }
    }
}

/// Why bytes are not the object that they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Ends too early.
    #[error("ends {missing} bytes too early")]
    Truncated {
        /// Bytes missing at least.
        missing: usize,
    },
    /// Is of another kind, or no object of Cairn's.
    #[error("does not begin with the magic of a {0:?} object")]
    Magic(Kind),
    /// Written by another version.
    #[error("format version {0} is not supported (this program reads version {FORMAT_VERSION})")]
    Version(u16),
    /// The checksum does not fit the bytes.
    #[error("checksum mismatch")]
    Checksum,
    /// Belongs to another volume.
    #[error("belongs to volume {0}")]
    Volume(Uuid),
    /// Bytes follow the last field.
    #[error("{0} bytes follow the last field")]
    Trailing(usize),
    /// A field has a value that it cannot have.
    #[error("{field}: {why}")]
    Invalid {
        /// Field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// An invalid field.
pub(crate) fn invalid(field: &'static str, why: impl Into<String>) -> DecodeError {
    DecodeError::Invalid { field, why: why.into() }
}

/// Writes an object.
#[derive(Debug)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// Bytes of the envelope before the fields.
    pub const PROLOGUE_BYTES: usize = 8 + 2 + 16;

    /// Begins an object with room for `capacity` bytes.
    #[must_use]
    pub fn new(kind: Kind, volume: Uuid, capacity: usize) -> Self {
        Self::within(kind, volume, Vec::with_capacity(capacity))
    }

    /// Begins an object in memory that held something else before.
    #[must_use]
    pub fn within(kind: Kind, volume: Uuid, memory: Vec<u8>) -> Self {
        let mut bytes = memory;
        bytes.clear();
        bytes.extend_from_slice(kind.magic());
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(volume.as_bytes());
        Self { bytes }
    }

    /// Appends a byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    /// Appends a string of at most 255 bytes with its length.
    ///
    /// # Panics
    /// If it is longer.
    pub fn short_string(&mut self, value: &str) {
        self.u8(u8::try_from(value.len()).expect("a short string has at most 255 bytes"));
        self.raw(value.as_bytes());
    }

    /// Appends a count or length as four bytes.
    ///
    /// # Panics
    /// If it does not fit; everything that is counted is bounded far below.
    pub fn len(&mut self, value: usize) {
        self.u32(u32::try_from(value).expect("counts are bounded below 2^32"));
    }

    /// Bytes so far.
    #[must_use]
    pub fn position(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes so far, to append to, or to set what was not known before.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Bytes so far.
    #[must_use]
    pub fn written(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends the checksum and gives the object.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let checksum = Checksum::of(&self.bytes);
        self.bytes.extend_from_slice(&checksum.0);
        self.bytes
    }
}

/// Reads an object.
#[derive(Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Checks the checksum, magic and version of a whole object, and gives its volume and a decoder of its
    /// fields.
    ///
    /// # Errors
    /// If any of them is wrong.
    pub fn object(kind: Kind, bytes: &'a [u8]) -> Result<(Uuid, Self), DecodeError> {
        let least = Encoder::PROLOGUE_BYTES + Checksum::BYTES;
        if bytes.len() < least {
            return Err(DecodeError::Truncated { missing: least - bytes.len() });
        }
        let (body, checksum) = bytes.split_at(bytes.len() - Checksum::BYTES);
        let (volume, decoder) = Self::prologue(kind, body)?;
        if Checksum::of(body).0 != checksum {
            return Err(DecodeError::Checksum);
        }
        Ok((volume, decoder))
    }

    /// As [`Decoder::object`], and the volume must be this one.
    ///
    /// # Errors
    /// If anything is wrong with the envelope.
    pub fn object_of(kind: Kind, volume: Uuid, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (found, decoder) = Self::object(kind, bytes)?;
        if found == volume { Ok(decoder) } else { Err(DecodeError::Volume(found)) }
    }

    /// Reads magic, version and volume of bytes whose checksum is checked elsewhere.
    ///
    /// # Errors
    /// If magic or version is wrong, or the bytes end before.
    pub fn prologue(kind: Kind, bytes: &'a [u8]) -> Result<(Uuid, Self), DecodeError> {
        let mut decoder = Self { rest: bytes };
        if decoder.raw(8)? != kind.magic() {
            return Err(DecodeError::Magic(kind));
        }
        let version = decoder.u16()?;
        if version != FORMAT_VERSION {
            return Err(DecodeError::Version(version));
        }
        let volume = Uuid::from_bytes(decoder.array()?);
        Ok((volume, decoder))
    }

    /// A decoder of bare fields.
    #[must_use]
    pub fn fields(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes `length` bytes.
    ///
    /// # Errors
    /// If fewer are left.
    pub fn raw(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(length) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(DecodeError::Truncated { missing: length - self.rest.len() }),
        }
    }

    /// Takes an array.
    ///
    /// # Errors
    /// If fewer bytes are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.raw(N)?.try_into().expect("raw gives exactly N bytes"))
    }

    /// Takes a byte.
    ///
    /// # Errors
    /// If none is left.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes a byte that is 0 or 1.
    ///
    /// # Errors
    /// If it is neither.
    pub fn bool(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(invalid(field, format!("{other} is neither 0 nor 1"))),
        }
    }

    /// Takes two bytes.
    ///
    /// # Errors
    /// If fewer are left.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Takes four bytes.
    ///
    /// # Errors
    /// If fewer are left.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Takes eight bytes.
    ///
    /// # Errors
    /// If fewer are left.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Takes a string with its length in one byte.
    ///
    /// # Errors
    /// If it is not UTF-8 or too short.
    pub fn short_string(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let length = usize::from(self.u8()?);
        let bytes = self.raw(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| invalid(field, "not UTF-8"))
    }

    /// Takes a checksum.
    ///
    /// # Errors
    /// If fewer bytes are left.
    pub fn checksum(&mut self) -> Result<Checksum, DecodeError> {
        Ok(Checksum(self.array()?))
    }

    /// Takes a count of items that take at least `item_bytes` each, so that the input justifies an allocation
    /// for them.
    ///
    /// # Errors
    /// If fewer bytes are left than the items need.
    pub fn count(&mut self, item_bytes: usize) -> Result<usize, DecodeError> {
        let count = usize::try_from(self.u32()?).map_err(|_| invalid("count", "too large"))?;
        match count.checked_mul(item_bytes) {
            Some(needed) if needed <= self.rest.len() => Ok(count),
            _ => Err(DecodeError::Truncated {
                missing: count.saturating_mul(item_bytes).saturating_sub(self.rest.len()),
            }),
        }
    }

    /// Bytes left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// If bytes are left.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.rest.len())) }
    }
}
