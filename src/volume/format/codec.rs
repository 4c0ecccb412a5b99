//! The envelope of every object, and the primitives that read and write fields.
//!
//! An object is `magic (8) | format version (2) | volume uuid (16) | fields | checksum (16)`. Numbers are
//! little-endian. The checksum is the XXH3-128 of all bytes before it.
//!
//! Must not know what the fields mean. Invariant: a [`Decoder`] is total: any bytes result in a value or an
//! error, and no allocation is larger than the input justifies.

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

/// Format version of every object. Any change to a golden file requires a new version.
pub const FORMAT_VERSION: u16 = 2;

/// Checksum of an object or a frame: an XXH3-128, stored in little-endian byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Checksum(pub [u8; 16]);

impl Checksum {
    /// Length of a checksum in bytes.
    pub const BYTES: usize = 16;

    /// Computes the checksum of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(xxh3_128(bytes).to_le_bytes())
    }

    /// Returns the checksum that a whole object ends with. It must have been verified.
    ///
    /// # Panics
    /// Panics if the bytes are too few for an object.
    #[must_use]
    pub fn at_end_of(object: &[u8]) -> Self {
        Self(*object.last_chunk().expect("an object ends with its checksum"))
    }
}

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_le_bytes(self.0))
    }
}

/// The kind of an object, which its first eight bytes identify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The identity of a volume (`identity/<uuid>`).
    Identity,
    /// The head of a volume (`head`).
    Head,
    /// A record of the journal: commit, opening record or seal.
    Record,
    /// A root: the content of a volume at one commit.
    Root,
    /// A root table: all roots of a volume that are kept.
    RootTable,
    /// A map page: where the pages of 4,096 chunks are stored.
    MapPage,
    /// An overlay: where changed blocks of a map page are stored.
    Overlay,
    /// A chunk object: pages of one chunk.
    Chunk,
    /// A pack: changed blocks of any chunks.
    Pack,
    /// The object that binds a name to a volume (`name/<name>`).
    Name,
    /// The blocks of a volume that were read first after an opening (`reads`).
    FirstReads,
    /// The header of an incremental stream, which is never an object of a store.
    Stream,
}

impl Kind {
    /// Returns the magic: the first eight bytes of an object of this kind.
    #[must_use]
    pub fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Identity => b"CAIRNVOL",
            Self::Head => b"CAIRNHED",
            Self::Record => b"CAIRNJNL",
            Self::Root => b"CAIRNROO",
            Self::RootTable => b"CAIRNTAB",
            Self::MapPage => b"CAIRNMAP",
            Self::Overlay => b"CAIRNOVL",
            Self::Chunk => b"CAIRNCHK",
            Self::Pack => b"CAIRNPAK",
            Self::Name => b"CAIRNNAM",
            Self::FirstReads => b"CAIRNRDS",
            Self::Stream => b"CAIRNINC",
        }
    }
}

/// Why bytes cannot be decoded as the expected object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the object is complete.
    #[error("ends {missing} bytes too early")]
    Truncated {
        /// How many bytes are missing, at least.
        missing: usize,
    },
    /// The object is of another kind, or is not an object of Cairn. Contains the expected kind.
    #[error("does not begin with the magic of a {0:?} object")]
    Magic(Kind),
    /// The object has a format version that this program does not read.
    #[error("format version {0} is not supported (this program reads version {FORMAT_VERSION})")]
    Version(u16),
    /// The checksum does not match the bytes.
    #[error("checksum mismatch")]
    Checksum,
    /// The object belongs to another volume.
    #[error("belongs to volume {0}")]
    Volume(Uuid),
    /// This many bytes follow the last field.
    #[error("{0} bytes follow the last field")]
    Trailing(usize),
    /// A field has a value that is not allowed.
    #[error("{field}: {why}")]
    Invalid {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with the value.
        why: String,
    },
}

/// Creates the error for a field with an invalid value.
pub(crate) fn invalid(field: &'static str, why: impl Into<String>) -> DecodeError {
    DecodeError::Invalid { field, why: why.into() }
}

/// Encodes an object, field by field.
#[derive(Debug)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// Length in bytes of the envelope before the fields.
    pub const PROLOGUE_BYTES: usize = 8 + 2 + 16;

    /// Starts an object. The buffer has a capacity of `capacity` bytes.
    #[must_use]
    pub fn new(kind: Kind, volume: Uuid, capacity: usize) -> Self {
        Self::within(kind, volume, Vec::with_capacity(capacity))
    }

    /// Starts an object in a buffer that is reused. The old contents of `memory` are discarded.
    #[must_use]
    pub fn within(kind: Kind, volume: Uuid, memory: Vec<u8>) -> Self {
        let mut bytes = memory;
        bytes.clear();
        bytes.extend_from_slice(kind.magic());
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(volume.as_bytes());
        Self { bytes }
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Appends a number as two bytes, little-endian.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends a number as four bytes, little-endian.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends a number as eight bytes, little-endian.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends the bytes of `value` without a length.
    pub fn raw(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    /// Appends a string of at most 255 bytes, preceded by its length in one byte.
    ///
    /// # Panics
    /// Panics if the string is longer.
    pub fn short_string(&mut self, value: &str) {
        self.u8(u8::try_from(value.len()).expect("a short string has at most 255 bytes"));
        self.raw(value.as_bytes());
    }

    /// Appends a count or a length as four bytes.
    ///
    /// # Panics
    /// Panics if `value` does not fit into four bytes. Everything that is counted has a far lower limit.
    pub fn len(&mut self, value: usize) {
        self.u32(u32::try_from(value).expect("counts are bounded below 2^32"));
    }

    /// Returns the number of bytes written so far.
    #[must_use]
    pub fn position(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the buffer, to append to it or to fill in fields whose value was not known before.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Returns the bytes written so far.
    #[must_use]
    pub fn written(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends the checksum and returns the bytes of the object.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let checksum = Checksum::of(&self.bytes);
        self.bytes.extend_from_slice(&checksum.0);
        self.bytes
    }
}

/// Decodes an object, field by field.
#[derive(Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Verifies the checksum, magic and version of a whole object. Returns its volume and a
    /// decoder for its fields.
    ///
    /// # Errors
    /// Returns an error if any of them is wrong.
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

    /// As [`Decoder::object`], but the object must belong to `volume`.
    ///
    /// # Errors
    /// Returns an error if the envelope is wrong, or if the object belongs to another volume.
    pub fn object_of(kind: Kind, volume: Uuid, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (found, decoder) = Self::object(kind, bytes)?;
        if found == volume { Ok(decoder) } else { Err(DecodeError::Volume(found)) }
    }

    /// Reads the magic, version and volume. The checksum must be verified elsewhere.
    ///
    /// # Errors
    /// Returns an error if the magic or the version is wrong, or if too few bytes are left.
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

    /// Creates a decoder for fields without an envelope.
    #[must_use]
    pub fn fields(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Reads the next `length` bytes.
    ///
    /// # Errors
    /// Returns an error if fewer bytes are left.
    pub fn raw(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(length) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(DecodeError::Truncated { missing: length - self.rest.len() }),
        }
    }

    /// Reads the next `N` bytes as an array.
    ///
    /// # Errors
    /// Returns an error if fewer bytes are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.raw(N)?.try_into().expect("raw gives exactly N bytes"))
    }

    /// Reads one byte.
    ///
    /// # Errors
    /// Returns an error if no byte is left.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Reads a flag: a byte that is 0 or 1.
    ///
    /// # Errors
    /// Returns an error if the byte has another value, or if no byte is left.
    pub fn bool(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(invalid(field, format!("{other} is neither 0 nor 1"))),
        }
    }

    /// Reads a number of two bytes.
    ///
    /// # Errors
    /// Returns an error if fewer bytes are left.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Reads a number of four bytes.
    ///
    /// # Errors
    /// Returns an error if fewer bytes are left.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Reads a number of eight bytes.
    ///
    /// # Errors
    /// Returns an error if fewer bytes are left.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads a string that is preceded by its length in one byte.
    ///
    /// # Errors
    /// Returns an error if the string is not UTF-8, or if fewer bytes are left than its length says.
    pub fn short_string(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let length = usize::from(self.u8()?);
        let bytes = self.raw(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| invalid(field, "not UTF-8"))
    }

    /// Reads a number of four bytes as a length in memory.
    ///
    /// # Errors
    /// Returns an error if fewer bytes are left.
    pub fn length(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(self.u32()?).map_err(|_| invalid("length", "too large"))
    }

    /// Reads a checksum.
    ///
    /// # Errors
    /// Returns an error if fewer bytes are left.
    pub fn checksum(&mut self) -> Result<Checksum, DecodeError> {
        Ok(Checksum(self.array()?))
    }

    /// Reads a count of items. Each item takes at least `item_bytes` bytes, so a valid count justifies an
    /// allocation for all of them.
    ///
    /// # Errors
    /// Returns an error if fewer bytes are left than the items need.
    pub fn count(&mut self, item_bytes: usize) -> Result<usize, DecodeError> {
        let count = usize::try_from(self.u32()?).map_err(|_| invalid("count", "too large"))?;
        match count.checked_mul(item_bytes) {
            Some(needed) if needed <= self.rest.len() => Ok(count),
            _ => Err(DecodeError::Truncated {
                missing: count.saturating_mul(item_bytes).saturating_sub(self.rest.len()),
            }),
        }
    }

    /// Returns the number of bytes that are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Ends the decoding.
    ///
    /// # Errors
    /// Returns an error if bytes are left.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.rest.len())) }
    }
}
